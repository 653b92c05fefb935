package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

const prefix = keys("/locker/")

// stateOf makes a state of that revision with locks of those names, each changed
// at the revision.
func stateOf(revision uint64, names ...string) *state {
	var locks []*lock
	for _, name := range names {
		l := newLock(name)
		l.Key, l.Revision = "k", revision
		l.Holders = []holder{{LockedBy: "a", Since: noon, Token: revision, Slot: 1}}
		l.Left = []end{{Claim: newEndID(name, "k", "b", "1"), How: endReleased, At: noon}}
		locks = append(locks, l)
	}
	return newState(revision, locks)
}

func document(s *state) string { return string(bytes.Join(s.pieces(), nil)) }

// leadBy makes a leader's store on a gateway that has a state without locks.
func leadBy(t testing.TB, g *gateway) *etcdStore {
	t.Helper()
	g.set(prefix.state(), `{"version":2,"revision":1}`, 0)
	return loadBy(t, g.client(), g.set(prefix.leader(), `{}`, 0))
}

func loadBy(t testing.TB, e *etcd, term int64) *etcdStore {
	t.Helper()
	st := newEtcdStore(t.Context(), e, prefix, term)
	if _, err := st.load(); err != nil {
		t.Fatal(err)
	}
	return st
}

// TestSaveOutcomes has each row of the table of outcomes: what etcd does with the
// attempts, and what the writer is told.
func TestSaveOutcomes(t *testing.T) {
	t.Parallel()
	const tooLarge = "code 3 etcdserver: request is too large"
	for _, row := range []struct {
		name    string
		script  []string
		deposed bool  // another leads before the save
		want    error // that the save's wraps; nil: saved
		unknown bool
		saved   bool
	}{
		{name: "succeeds", script: []string{"ok"}, saved: true},
		{name: "answer lost", script: []string{"lost", "ok"}, saved: true},
		{name: "not applied, no answer", script: []string{"cut", "ok"}, saved: true},
		{name: "applied, then timed out", script: []string{"late 14 etcdserver: request timed out", "ok"}, saved: true},
		{name: "no leader in etcd, then one", script: []string{"code 14 etcdserver: no leader", "code 4 timeout", "code 2 unknown", "ok"}, saved: true},
		{name: "held back, then the same passes", script: []string{"held", "ok"}, saved: true},
		{name: "deposed", script: []string{"ok"}, deposed: true, want: errDeposed, unknown: true},
		{name: "deposed after a doubt", script: []string{"cut", "ok"}, deposed: true, want: errDeposed, unknown: true},
		{name: "no space", script: []string{"code 8 etcdserver: mvcc: database space exceeded"}, want: syscall.ENOSPC},
		{name: "too large", script: []string{tooLarge}},
		{name: "permission", script: []string{"code 7 etcdserver: permission denied"}},
		{name: "refused after a doubt that was applied", script: []string{"lost", tooLarge}, unknown: true, saved: true},
		{name: "refused after a doubt", script: []string{"cut", tooLarge}, unknown: true},
		{name: "never answered", script: slices.Repeat([]string{"cut"}, 1000), unknown: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			for _, g := range []*gateway{newGateway(t), newGateway(t)} {
				g.shape36 = !g.shape36
				st := leadBy(t, g)
				if row.deposed {
					g.mu.Lock()
					delete(g.kvs, prefix.leader())
					g.mu.Unlock()
					g.set(prefix.leader(), `{}`, 0)
				}
				g.plan(row.script...)
				_, err := st.save(stateOf(2, "l"))
				g.letGo()
				succeeds := row.saved && !row.unknown
				if succeeds != (err == nil) || row.unknown != errors.Is(err, errUnknown) || row.want != nil && !errors.Is(err, row.want) {
					t.Errorf("save: %v", err)
				}
				if saved := g.get(prefix.lock("l")) != ""; saved != row.saved {
					t.Errorf("saved: %t, want %t", saved, row.saved)
				}
				if succeeds {
					if _, err := st.save(stateOf(3, "l", "m")); err != nil || g.get(prefix.state()) != `{"version":2,"revision":3}` {
						t.Errorf("the next save: %v, %s", err, g.get(prefix.state()))
					}
				}
			}
		})
	}
}

// TestSaveToNobody wants what was surely not sent to be no doubt.
func TestSaveToNobody(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	st := leadBy(t, g)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	live := st.etcd.endpoints
	st.etcd.endpoints = []string{"http://" + closed.Addr().String()}
	if _, err := st.save(stateOf(2, "l")); err == nil || errors.Is(err, errUnknown) {
		t.Errorf("nobody there: %v, want that nothing was changed", err)
	}
	start := time.Now()
	if _, err := st.save(stateOf(2, "l")); err == nil || time.Since(start) > saveTime/2 {
		t.Errorf("still nobody there: %v after %v, want that at once", err, time.Since(start))
	}
	st.etcd.endpoints = append(st.etcd.endpoints, live...)
	g.plan("ok")
	if _, err := st.save(stateOf(2, "l")); err != nil || st.gone {
		t.Errorf("the next endpoint: %v; still gone: %t", err, st.gone)
	}
}

// TestHeldBackTransaction lets a transaction go that was held back, once another
// leader has written: the newer state stays. Without the condition on the state's
// key it would be overwritten in the same term.
func TestHeldBackTransaction(t *testing.T) {
	g := newGateway(t)
	st := leadBy(t, g)
	g.plan("held", "ok")
	if _, err := st.save(stateOf(2, "l")); err != nil {
		t.Fatal(err)
	}
	if _, err := st.save(stateOf(3)); err != nil { // l is released
		t.Fatal(err)
	}
	g.letGo()
	next := loadBy(t, g.client(), st.term)
	if next.saved.revision != 3 || next.saved.size() != 0 {
		t.Errorf("revision %d with %d locks is loaded, want 3 with none", next.saved.revision, next.saved.size())
	}
}

// TestConfirm asks whether this is still the leader, and the state its own.
func TestConfirm(t *testing.T) {
	g := newGateway(t)
	st := leadBy(t, g)
	g.plan("cut", "ok")
	if err := st.confirm(); err != nil {
		t.Errorf("confirm: %v", err)
	}
	g.set(prefix.state(), `{"version":2,"revision":9}`, 0)
	if err := st.confirm(); !errors.Is(err, errDeposed) {
		t.Errorf("somebody else wrote: %v", err)
	}
	g.plan("cut", "ok")
	if err := st.confirm(); !errors.Is(err, errDeposed) {
		t.Errorf("somebody else wrote, after a doubt: %v", err)
	}
}

// TestImportIsWrittenOnce lets the import's deletes go late that were sent again, once
// a part of the locks is written: they change nothing.
func TestImportIsWrittenOnce(t *testing.T) {
	g := newGateway(t)
	g.plan("ok", "held", "ok", "ok", "go", "ok") // the record, the deletes twice, two parts, the state
	g.set(prefix.lock("of an import that was cut short"), `{"key":"k"}`, 0)
	var names []string
	for i := range 150 {
		names = append(names, fmt.Sprintf("l%03d", i))
	}
	if err := importState(t.Context(), g.client(), prefix, stateOf(9, names...)); err != nil {
		t.Error(err)
	}
	after := loadBy(t, g.client(), g.set(prefix.leader(), `{}`, 0)).saved
	if got, want := document(after), document(stateOf(9, names...)); got != want || len(g.held)+len(g.script) > 0 {
		t.Errorf("%d locks of revision %d, want 150 of 9", after.size(), after.revision)
	}
}

// TestImportOfALockThatDoesNotFit wants etcd as it was.
func TestImportOfALockThatDoesNotFit(t *testing.T) {
	g := newGateway(t)
	s := stateOf(9, "l")
	for range 3000 {
		s.look("l").Waiters = append(s.look("l").Waiters, waiter{claim: claim{identity: identity{Key: "k", LockedBy: strings.Repeat("w", 255), ID: "1"}, Reason: strings.Repeat("r", 255)}})
	}
	if err := importState(t.Context(), g.client(), prefix, s); err == nil || !strings.Contains(err.Error(), "/locker/lock/l has more holders and waiters than fit") || len(g.kvs) > 0 {
		t.Errorf("%v; etcd has %d keys", err, len(g.kvs))
	}
}

// TestSaveInParts saves more than one transaction holds, and fails the second of
// three.
func TestSaveInParts(t *testing.T) {
	var names []string
	for i := range 250 {
		names = append(names, fmt.Sprintf("l%03d", i))
	}
	for _, step := range []string{"ok", "lost", "code 8 no space"} {
		t.Run(step, func(t *testing.T) {
			g := newGateway(t)
			st := leadBy(t, g)
			g.plan("ok", step, "ok")
			_, err := st.save(stateOf(250, names...))
			if strings.HasPrefix(step, "code") != errors.Is(err, errUnknown) {
				t.Errorf("save: %v", err)
			}
			after := loadBy(t, g.client(), st.term)
			want := map[bool]int{false: 250, true: 100}[err != nil]
			if after.saved.revision != 250 || after.saved.size() != want {
				t.Errorf("revision %d with %d locks, want 250 with %d", after.saved.revision, after.saved.size(), want)
			}
		})
	}
}

// TestDivide wants parts that etcd accepts, whatever the sizes.
func TestDivide(t *testing.T) {
	large := putKey("k", make([]byte, mostBytes))
	small := putKey("k", make([]byte, 100))
	for _, row := range []struct {
		ops  []etcdOp
		want []int
	}{
		{nil, []int{0}},
		{slices.Repeat([]etcdOp{small}, 100), []int{100}},
		{slices.Repeat([]etcdOp{small}, 101), []int{100, 1}},
		{[]etcdOp{large, large, small}, []int{1, 1, 1}},
		{[]etcdOp{small, large}, []int{1, 1}},
	} {
		var got []int
		for _, part := range divide(row.ops) {
			got = append(got, len(part))
		}
		if !slices.Equal(got, row.want) {
			t.Errorf("%d operations: parts of %v, want %v", len(row.ops), got, row.want)
		}
	}
}

// TestRenewedAuthentication lets a token expire: that is no doubt.
func TestRenewedAuthentication(t *testing.T) {
	g := newGateway(t)
	st := leadBy(t, g)
	g.user, st.etcd.user, st.etcd.pass = "locker", "locker", "secret"
	for revision, step := range []string{"ok", "code 16 etcdserver: invalid auth token", "code 3 etcdserver: revision in header is old", "code 3 etcdserver: user name is empty"} {
		g.plan(step, "ok")
		if _, err := st.save(stateOf(uint64(revision+2), "l")); err != nil {
			t.Errorf("%s: %v", step, err)
		}
	}
	if g.tokens != 4 {
		t.Errorf("%d tokens, want 4", g.tokens)
	}
	st.etcd.user, st.etcd.token = "other", ""
	if err := st.confirm(); err == nil || errors.Is(err, errUnknown) || !strings.Contains(err.Error(), "invalid user ID or password") {
		t.Errorf("a wrong user: %v", err)
	}
}

// TestLoadRefuses wants nobody to lead with what could not be an agreed state.
func TestLoadRefuses(t *testing.T) {
	for _, row := range []struct {
		state, lock string
		want        error
	}{
		{"", "", errNoState},
		{"", `{"key":""}`, errHalf},
		{`{"version":3,"revision":1,"more":true}`, "", errNewer},
		{`{"version":2}`, `{"key":"k","revision":9,"holders":[]}`, nil},
		{`{"version":2,"revision":`, "", nil},
		{`{"version":2,"revision":9}`, `foo`, nil},
	} {
		g := newGateway(t)
		if row.state != "" {
			g.set(prefix.state(), row.state, 0)
		}
		if row.lock != "" {
			g.set(prefix.lock("l"), row.lock, 0)
		}
		st := newEtcdStore(t.Context(), g.client(), prefix, g.set(prefix.leader(), `{}`, 0))
		if _, err := st.load(); err == nil || row.want != nil && !errors.Is(err, row.want) {
			t.Errorf("%s %s: %v, want %v", row.state, row.lock, err, row.want)
		}
	}
}

// onEtcd is leadBy on a real etcd, with a lease.
func onEtcd(t testing.TB) *etcdStore {
	t.Helper()
	e := (&etcdConfig{endpoints: lockertest.StartEtcd(t, 1).URLs}).client()
	l, err := e.grant(t.Context(), time.Minute)
	if err != nil || l.ID == 0 || l.TTL != 60 {
		t.Fatalf("%+v, %v", l, err)
	}
	leader := putKey(prefix.leader(), []byte(`{}`))
	leader.Put.Lease = l.ID
	answer, err := e.txn(t.Context(), transaction([]compare{created(prefix.leader(), 0)}, []etcdOp{leader, putKey(prefix.state(), stateOf(1).head())}, nil), etcdAttempt)
	if err != nil || !answer.Succeeded {
		t.Fatalf("%+v, %v", answer, err)
	}
	return loadBy(t, e, answer.Header.Revision)
}

// TestEtcd saves, loads and confirms over the real one, whose answers say what
// each member means.
func TestEtcd(t *testing.T) {
	st := onEtcd(t)
	for _, s := range []*state{stateOf(2, "a", "b/ü \"quoted\""), stateOf(3, "a"), stateOf(4)} {
		if _, err := st.save(s); err != nil {
			t.Fatal(err)
		}
		if err := st.confirm(); err != nil {
			t.Fatal(err)
		}
		after := loadBy(t, st.etcd, st.term)
		if got, want := document(after.saved), document(s); got != want || after.last != st.last {
			t.Errorf("loaded %s at %d, want %s at %d", got, after.last, want, st.last)
		}
	}
	if l, err := st.etcd.renew(t.Context(), 12345, etcdAttempt); err != nil || l.TTL != 0 {
		t.Errorf("an unknown lease: %+v, %v", l, err)
	}
	if err := st.etcd.revoke(t.Context(), 12345); err != nil {
		t.Errorf("revoke an unknown lease: %v", err)
	}
	if _, err := st.etcd.txn(t.Context(), transaction(nil, []etcdOp{putKey("a", nil), putKey("a", nil)}, nil), etcdAttempt); !isRefusal(err) {
		t.Errorf("a key twice: %v, want a refusal", err)
	}
}

// TestWrongCompareIsRefused sends each condition wrong, all else right: etcd must
// see that it is.
func TestWrongCompareIsRefused(t *testing.T) {
	st := onEtcd(t)
	for what, c := range map[string]compare{
		"created absent": created(prefix.leader(), 0), "created before": created(prefix.leader(), st.term-1), "created later": created(prefix.leader(), st.term+1),
		"modified absent": modified(prefix.state(), 0), "modified before": modified(prefix.state(), st.last-1), "modified later": modified(prefix.state(), st.last+1),
	} {
		right := []compare{created(prefix.leader(), st.term), modified(prefix.state(), st.last)}
		for _, compares := range [][]compare{{c}, append(right, c), append([]compare{c}, right...)} {
			answer, err := st.etcd.txn(t.Context(), transaction(compares, []etcdOp{putKey("harm", nil)}, []etcdOp{readKey(prefix.leader())}), etcdAttempt)
			if err != nil || answer.Succeeded || answer.kv(0).CreateRevision != st.term {
				t.Errorf("%s: %+v, %v", what, answer, err)
			}
		}
	}
	if st.term++; !errors.Is(st.confirm(), errDeposed) {
		t.Error("confirmed in another term")
	}
	st.term--
	if st.last++; !errors.Is(st.confirm(), errDeposed) {
		t.Error("confirmed with another state")
	}
}

// TestLargeStateInEtcd has 20,000 locks saved, loaded and deleted.
func TestLargeStateInEtcd(t *testing.T) {
	st := onEtcd(t)
	var names []string
	for i := range 20_000 {
		names = append(names, fmt.Sprintf("lock-%05d", i))
	}
	for _, s := range []*state{stateOf(20_000, names...), stateOf(40_000)} {
		start := time.Now()
		if _, err := st.save(s); err != nil {
			t.Fatal(err)
		}
		saved := time.Now()
		if after := loadBy(t, st.etcd, st.term); after.saved.size() != s.size() {
			t.Errorf("%d locks are loaded, want %d", after.saved.size(), s.size())
		}
		t.Logf("%d locks: %v to save, %v to load", s.size(), saved.Sub(start), time.Since(saved))
	}
}

// TestLockOfOneKey fills a lock with waiters until it would not be one key of
// etcd's any more, and saves it.
func TestLockOfOneKey(t *testing.T) {
	b := newBench(t)
	fill := func(words string, link, reason string) (n int, s *state) {
		b.s = &state{}
		b.batch(func(d *draft) outcome { return d.take("l", of("held held held"), false) })
		for {
			c := of(fmt.Sprintf("%s %s%d id%d", words, words, n, n))
			c.ID, c.Link, c.Reason = c.ID+reason, link, reason
			o := b.batch(func(d *draft) outcome { d.room = hasRoom; return d.take("l", c, true) })[0]
			if o.verdict == overLimit {
				return n, b.s
			}
			n++
		}
	}
	for _, texts := range [][3]string{
		{"x", "http://ci.example/" + strings.Repeat("l", 2048-18), "x"},
		{strings.Repeat(`"`, 240), "", strings.Repeat(`"`, 255)},
		{strings.Repeat(`\`, 240), "", strings.Repeat(`\`, 255)},
		{"x", "", strings.Repeat("\u2028", 85)},
	} {
		n, s := fill(texts[0], texts[1], texts[2])
		l := s.look("l")
		size := len(l.object())
		t.Logf("%d waiters in %d bytes", n, size)
		if size > 3<<19 || size < 3<<18 || !strings.Contains(l.overLimit(), "more do not fit into etcd") {
			t.Errorf("%d waiters in %d bytes: %s", n, size, l.overLimit())
		}
		again := l.Waiters[0].claim
		for _, row := range []struct {
			reason string
			want   verdict
		}{{again.Reason, queued}, {strings.Repeat("r", 4000), overLimit}, {"", queued}} {
			again.Reason = row.reason
			if o := b.batch(func(d *draft) outcome { d.room = hasRoom; return d.take("l", again, true) })[0]; o.verdict != row.want {
				t.Errorf("a waiter comes back with the reason %.10q: %s, want %s", row.reason, o.verdict, row.want)
			}
		}
	}
}
