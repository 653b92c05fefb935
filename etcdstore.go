package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// This file is the state in etcd: how it is loaded, and how a batch is saved.
//
//	PREFIX leader      who leads: its create revision is the term
//	PREFIX state       {"version": 2, "revision": 18}
//	PREFIX lock/NAME   the lock, as in the state file
//
// Each transaction is applied only if this locker still leads and the state is
// still the one that it wrote last. So what was delayed or sent twice changes
// nothing, and a leader that was replaced without noticing finds out.

const (
	saveTime  = 10 * time.Second // that a transaction whose outcome is unknown is sent again
	savePause = 50 * time.Millisecond
	mostOps   = 100     // locks in one transaction: etcd allows 128 operations
	mostBytes = 1 << 20 // of one transaction, and of one lock: etcd allows 1.5 MiB
)

// What keeps a locker from leading.
var (
	errNoState = errors.New("etcd has no locks yet: run `locker import FILE`, or `locker import -empty` for a new set")
	errHalf    = errors.New("etcd has locks but no state: an import was cut short, or somebody else writes here: run `locker import` again")
	errNewer   = errors.New("the state in etcd is of a later version than this locker reads")
)

// What ends a term: a transaction that was not applied, or of which nobody knows.
var (
	errDeposed = fmt.Errorf("another locker leads now, or somebody else wrote to etcd: %w", errUnknown)
	errDoubt   = fmt.Errorf("etcd did not say: %w", errUnknown)
)

// etcdStore is the state in etcd as one leader has it. The writer owns it.
type etcdStore struct {
	etcd  *etcd
	keys  keys
	ctx   context.Context // done: what is not written yet is given up
	term  int64           // the create revision of the leader's record
	guard string          // the key that each transaction writes
	last  int64           // the revision of etcd at which guard was written last
	saved *state          // what etcd has
	gone  bool            // etcd could not be reached for as long as a save is tried
}

// newEtcdStore returns the store of a leader whose record was created at term.
func newEtcdStore(ctx context.Context, e *etcd, k keys, term int64) *etcdStore {
	return &etcdStore{etcd: e, keys: k, ctx: ctx, term: term, guard: k.state()}
}

// head is the value of the key `state`.
type head struct {
	Version  int    `json:"version"`
	Revision uint64 `json:"revision"`
}

func (s *state) head() []byte { return encode(head{stateVersion, s.revision}) }

// load reads what the last leader has left, at one revision of etcd. The error is
// errDeposed, or one of those that keep a locker from leading, or what etcd says.
func (st *etcdStore) load() (*state, error) {
	success := []etcdOp{readKey(st.keys.state()), {Range: under(st.keys.locks())}}
	answer, err := st.etcd.txn(st.ctx, transaction([]compare{created(st.keys.leader(), st.term)}, success, nil), etcdLoad)
	switch {
	case err != nil:
		return nil, fmt.Errorf("load state: %w", err)
	case !answer.Succeeded:
		return nil, fmt.Errorf("load state: %w", errDeposed)
	}
	s, err := st.keys.decode(answer.kv(0), answer.kvs(1))
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	st.last, st.saved = answer.kv(0).ModRevision, s
	return s, nil
}

// decode makes a state of what etcd has.
func (k keys) decode(found keyValue, locks []keyValue) (*state, error) {
	if found.ModRevision == 0 && len(locks) > 0 {
		return nil, errHalf
	}
	if found.ModRevision == 0 {
		return nil, errNoState
	}
	var h head
	if err := json.Unmarshal(found.Value, &h); err != nil {
		return nil, fmt.Errorf("%s: %w", k.state(), err)
	}
	if h.Version > stateVersion {
		return nil, fmt.Errorf("%w: %d, not %d", errNewer, h.Version, stateVersion)
	}
	members := map[string]json.RawMessage{}
	for _, kv := range locks {
		if !json.Valid(kv.Value) {
			return nil, fmt.Errorf("%s: its value is not JSON: remove the key, or put back what was there", kv.Key)
		}
		members[strings.TrimPrefix(string(kv.Key), k.locks())] = kv.Value
	}
	s, _, err := decodeState(encode(map[string]any{"version": h.Version, "revision": h.Revision, "locks": members}), time.Time{})
	return s, err
}

// save is store's. What changed since the last save goes into one transaction
// or, when that is too much, into several, each with the revision of the whole:
// locks have nothing in common but that, and nobody was answered yet.
func (st *etcdStore) save(s *state) (int, error) {
	parts := divide(changes(st.keys, st.saved, s))
	for i, part := range parts {
		last, err := st.write(append([]etcdOp{putKey(st.keys.state(), s.head())}, part...))
		if err != nil && i > 0 && !errors.Is(err, errUnknown) {
			err = fmt.Errorf("part %d of %d: %w: %w", i+1, len(parts), errDoubt, err)
		}
		if err != nil {
			return 0, fmt.Errorf("save state: %w", err)
		}
		st.last = last
	}
	st.saved = s
	return 0, nil
}

// confirm returns nil when this locker led after the call, with the state that it
// saved last.
func (st *etcdStore) confirm() error {
	_, err := st.write(nil)
	return err
}

// changes returns what makes the locks of one state those of the other. Chunks
// that both have are not looked at.
func changes(k keys, from, to *state) (ops []etcdOp) {
	old, now := without(from, to), without(to, from)
	for len(old) > 0 || len(now) > 0 {
		switch {
		case len(old) > 0 && len(now) > 0 && old[0] == now[0]:
			old, now = old[1:], now[1:]
		case len(now) == 0 || len(old) > 0 && old[0].name < now[0].name:
			ops = append(ops, deleteKey(k.lock(old[0].name)))
			old = old[1:]
		default:
			if len(old) > 0 && old[0].name == now[0].name {
				old = old[1:]
			}
			ops = append(ops, putKey(k.lock(now[0].name), now[0].object()))
			now = now[1:]
		}
	}
	return ops
}

// without returns the locks of a state, by name, that are in no chunk of the other.
func without(s, other *state) (locks []*lock) {
	both := map[*chunk]bool{}
	for _, c := range other.chunks {
		both[c] = true
	}
	for _, c := range s.chunks {
		if !both[c] {
			locks = append(locks, c.locks...)
		}
	}
	return locks
}

// hasRoom reports whether a lock can have one more claim and still be one key of
// etcd's.
func hasRoom(l *lock, c claim) bool {
	const few = 200 // of the longest names, links and reasons fit
	if len(l.Holders)+len(l.Waiters) < few {
		return true
	}
	size := sizeOfClaim(c)
	for _, h := range l.Holders {
		size += sizeOfClaim(claim{identity: identity{LockedBy: h.LockedBy, ID: h.ID}, Link: h.Link, Reason: h.Reason})
	}
	for _, w := range l.Waiters {
		size += sizeOfClaim(w.claim)
	}
	return size <= mostBytes
}

// sizeOfClaim returns about how many bytes a claim has in etcd: its texts, with those
// characters for which JSON writes more, and what is about them.
func sizeOfClaim(c claim) (size int) {
	size = 200
	for _, text := range []string{c.Key, c.LockedBy, c.ID, c.Link, c.Reason} {
		size += len(text) + strings.Count(text, `"`) + strings.Count(text, `\`) + 3*strings.Count(text, "\u2028") + 3*strings.Count(text, "\u2029")
	}
	return size
}

// divide returns operations in parts that fit into a transaction; at least one.
func divide(ops []etcdOp) [][]etcdOp {
	parts, size := [][]etcdOp{nil}, 0
	for _, o := range ops {
		last := len(parts) - 1
		if len(parts[last]) == mostOps || len(parts[last]) > 0 && size+o.size() > mostBytes {
			parts, size = append(parts, nil), 0
			last++
		}
		parts[last] = append(parts[last], o)
		size += o.size()
	}
	return parts
}

// write has one transaction applied, unless this locker is not the leader any
// more or the guard not the one it wrote last. An attempt whose outcome is not
// known is followed by the same bytes: whichever of them etcd applies first, the
// others then fail. To read instead would not do, since a proposal that timed out
// may still be applied after the read. It returns etcd's revision then. An error
// that does not wrap errUnknown says that nothing was changed.
func (st *etcdStore) write(ops []etcdOp) (int64, error) {
	body := transaction([]compare{created(st.keys.leader(), st.term), modified(st.guard, st.last)}, ops, []etcdOp{readKey(st.keys.leader()), readKey(st.guard)})
	doubt := false
	for tries, deadline := 1, time.Now().Add(saveTime); ; tries++ {
		answer, err := st.etcd.txn(st.ctx, body, etcdAttempt)
		_, unsent := errors.AsType[notSent](err)
		if !unsent {
			st.gone = false
		}
		switch {
		case err == nil && answer.Succeeded:
			return answer.Header.Revision, nil
		case err == nil:
			return st.refute(answer, doubt && len(ops) > 0)
		case isRefusal(err) && doubt:
			return 0, fmt.Errorf("%w: %w, after an attempt that was not answered", errDoubt, err)
		case isRefusal(err):
			return 0, err
		}
		doubt = doubt || !unsent
		switch over := time.Now().After(deadline) || st.ctx.Err() != nil; {
		case over && doubt:
			return 0, fmt.Errorf("%w: %w", errDoubt, err)
		case over, st.gone && !doubt && tries >= len(st.etcd.endpoints):
			st.gone = true
			return 0, err
		}
		time.Sleep(savePause)
	}
}

// refute decides what a transaction that was not applied means: an earlier
// attempt with the same bytes was, or this locker does not lead.
func (st *etcdStore) refute(answer *txnAnswer, doubt bool) (int64, error) {
	leader, guard := answer.kv(0), answer.kv(1)
	if doubt && leader.CreateRevision == st.term && guard.ModRevision > st.last {
		return guard.ModRevision, nil
	}
	return 0, errDeposed
}
