package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// This file decides which of several lockers leads, for how long, and how a term
// begins and ends. Each locker looks at one key of etcd; whoever creates it leads.
// Nothing is decided by a clock, but that a leader which could not renew its lease
// does not answer reads.

const (
	leaseTime   = 5 * time.Second
	lookPause   = 250 * time.Millisecond // between looks at who leads
	loadPause   = time.Second            // after a state that could not be loaded
	renewPause  = 200 * time.Millisecond // after a renewal that failed
	reportPause = 10 * time.Second       // between log lines about what troubles etcd
)

// node is a decider: the committer of this locker's terms, and in between the
// leader's. Its methods are safe for concurrent use.
type node struct {
	etcd        *etcd
	keys        keys
	advertise   string
	certificate *certificate // nil: plain HTTP
	metrics     *metrics
	log         *slog.Logger
	wall        func() time.Time

	leading atomic.Pointer[term] // nil: another locker leads, or nobody
	leader  atomic.Pointer[peer] // the other; nil: none is known
	vacancy atomic.Pointer[error]

	looks   chan struct{}   // capacity 1: look at once
	ctx     context.Context // done: lead no more
	drained func()
	closing chan struct{} // closed: everyone is answered
	closed  func()

	// Owned by run.
	leases   map[int64]bool // that were to be revoked
	trouble  string         // that was logged last
	reported time.Time      // when
}

// term is the time in which this locker leads.
type term struct {
	*committer
	number int64 // the create revision of its record
	lease  int64
	ttl    time.Duration
	since  time.Time
	fresh  atomic.Pointer[time.Time] // until when nobody else can lead; see node.fresh
	lost   chan struct{}             // closed when etcd has ended the lease
	mu     sync.Mutex
	record record // as written
}

func newNode(cfg *etcdConfig, cert *certificate, m *metrics, log *slog.Logger, wall func() time.Time) *node {
	n := &node{
		etcd: cfg.client(), keys: cfg.keys, advertise: cfg.advertise, certificate: cert, metrics: m, log: log, wall: wall,
		looks: make(chan struct{}, 1), closing: make(chan struct{}), leases: map[int64]bool{},
	}
	n.ctx, n.drained = context.WithCancel(context.Background())
	n.closed = sync.OnceFunc(func() { close(n.closing) })
	n.vacate(errors.New("etcd was not asked yet"))
	if m.several = true; cert != nil {
		cert.announce = n.announceIfLeading
	}
	return n
}

// run looks who leads, and leads when nobody does, until close is called.
func (n *node) run() error {
	defer n.forget()
	for {
		n.look()
		select {
		case <-n.ctx.Done():
			return nil
		case <-n.looks:
		case <-time.After(lookPause):
		}
	}
}

// drain ends this locker's term, if it leads, and what is being forwarded.
func (n *node) drain() {
	n.drained()
	if t := n.leading.Load(); t != nil {
		t.drain()
	}
	if p := n.leader.Load(); p != nil {
		p.over()
	}
}

func (n *node) close() {
	n.drain()
	n.closed()
}

// lookNow has run look at who leads without a pause.
func (n *node) lookNow() {
	select {
	case n.looks <- struct{}{}:
	default:
	}
}

// look finds out who leads, and leads if nobody does.
func (n *node) look() {
	ask := transaction(nil, []etcdOp{readKey(n.keys.leader()), readKey(n.keys.state()), {Range: oneUnder(n.keys.locks())}}, nil)
	answer, err := n.etcd.txn(n.ctx, ask, etcdAttempt)
	if n.ctx.Err() != nil {
		return
	}
	if n.report(err); err != nil {
		if n.leader.Load() == nil {
			n.vacate(fmt.Errorf("etcd does not answer: %w", err))
		}
		return
	}
	found := answer.kv(0)
	if n.follow(found); found.CreateRevision != 0 {
		n.revokeOwn(found.Lease)
		return
	}
	if err := n.mayLead(answer.kv(1), answer.kvs(2)); err != nil {
		n.vacate(err)
		return
	}
	n.campaign()
}

// mayLead returns an error that keeps this locker from leading.
func (n *node) mayLead(state keyValue, locks []keyValue) error {
	if state.ModRevision != 0 {
		locks = nil // they are read by the leader
	}
	_, err := n.keys.decode(state, locks)
	if errors.Is(err, errHalf) || errors.Is(err, errNoState) || errors.Is(err, errNewer) {
		return err
	}
	return nil // what else is wrong, load says
}

// report logs trouble with etcd when it changes.
func (n *node) report(err error) {
	words := ""
	if err != nil {
		words = err.Error()
	}
	switch {
	case words == n.trouble:
	case words == "":
		n.log.Info("etcd answers again")
	case n.trouble != "" && time.Since(n.reported) < reportPause: // the same of another endpoint, most likely
		return
	default:
		n.log.Warn("trouble with etcd", "err", words)
		n.reported = time.Now()
	}
	n.trouble = words
}

// vacate notes why nobody leads, and logs it when it changes.
func (n *node) vacate(why error) {
	if was := n.vacancy.Swap(&why); was != nil && (*was).Error() != why.Error() {
		n.log.Warn("no locker leads", "err", why)
	}
}

// follow takes note of the leader's record; one that was not found is no leader.
// What is being forwarded to the leader of another term is cut.
func (n *node) follow(found keyValue) {
	old := n.leader.Load()
	if old != nil && old.term == found.CreateRevision && old.written == found.ModRevision {
		return
	}
	if old != nil && old.term != found.CreateRevision {
		old.over()
	}
	var next *peer
	if found.CreateRevision != 0 {
		next = newPeer(found, old, n.wall())
	}
	n.leader.Store(next)
	if next != nil && (old == nil || old.term != next.term) {
		n.log.Info("leader", "url", next.URL, "term", next.term)
		nobody := errors.New("the leader is gone, another locker is about to lead")
		n.vacancy.Store(&nobody)
	}
}

// forget ends what is forwarded.
func (n *node) forget() { n.follow(keyValue{}) }

// revokeOwn ends a lease of this locker's own that is bound to the leader's
// record, although the locker does not lead: its grant or its end were not
// answered.
func (n *node) revokeOwn(lease int64) {
	if n.leases[lease] {
		n.revoke(lease)
	}
}

// revoke ends a lease, or remembers that it is to be ended.
func (n *node) revoke(lease int64) {
	n.leases[lease] = true
	if n.etcd.revoke(context.Background(), lease) == nil {
		delete(n.leases, lease)
	}
}

// campaign leads if nobody else does.
func (n *node) campaign() {
	start := time.Now()
	l, err := n.etcd.grant(n.ctx, leaseTime)
	if n.report(err); err != nil {
		n.vacate(fmt.Errorf("etcd gives no lease: %w", err))
		return
	}
	mine := n.record()
	answer, err := n.etcd.txn(n.ctx, n.claim(mine, l.ID, 0), etcdAttempt)
	n.report(err)
	if err != nil || !answer.Succeeded {
		n.revoke(l.ID)
		n.lookNow()
		return
	}
	t := &term{number: answer.Header.Revision, lease: l.ID, ttl: time.Duration(l.TTL) * time.Second, since: n.wall(), lost: make(chan struct{}), record: mine}
	t.extend(start)
	n.lead(t)
}

// record returns what this locker says about itself when it leads.
func (n *node) record() record { return record{n.advertise, n.certificate.fingerprint()} }

// claim returns the transaction that writes the leader's record, if that is the one
// of this term; term 0 is none.
func (n *node) claim(r record, lease, term int64) []byte {
	o := putKey(n.keys.leader(), encode(r))
	o.Put.Lease = lease
	return transaction([]compare{created(n.keys.leader(), term)}, []etcdOp{o}, nil)
}

// lead serves a term, from the load of the state to the end of the lease.
func (n *node) lead(t *term) {
	keeping, stop := context.WithCancel(context.Background())
	var kept sync.WaitGroup
	kept.Go(func() { n.keep(keeping, t) })
	err := n.serve(t)
	stop()
	kept.Wait()
	n.revoke(t.lease)
	if t.committer != nil {
		n.log.Info("no longer leading", "term", t.number, "why", err)
		return
	}
	n.vacate(err)
	select {
	case <-n.ctx.Done():
	case <-time.After(loadPause):
	}
}

// serve decides until the term ends, and returns why it does.
func (n *node) serve(t *term) error {
	store := newEtcdStore(n.ctx, n.etcd, n.keys, t.number)
	s, err := store.load()
	if err != nil {
		return err
	}
	c, err := newCommitter(store, s, n.metrics, n.log, n.wall)
	if err != nil {
		return err
	}
	store.ctx = context.Background() // from here on somebody may wait for what is saved
	t.committer = c
	t.confirm, t.room, t.farewell = store.confirm, hasRoom, errNotLeading
	n.metrics.takeovers.Add(1)
	n.log.Info("leading", "term", t.number, "revision", t.state().revision, "locks", t.state().size(), "claims", t.state().claims)
	n.leading.Store(t)
	defer n.leading.Store(nil)
	ended := make(chan error, 1)
	go func() { ended <- t.committer.run() }()
	select {
	case err := <-ended:
		return err
	case <-t.lost:
		err = errors.New("the lease is gone")
	case <-n.ctx.Done():
		err = errStopping
		t.drain()
		<-n.closing
	}
	t.committer.close()
	return errors.Join(err, <-ended)
}

// keep renews the lease of a term until ctx is done or etcd has ended it.
func (n *node) keep(ctx context.Context, t *term) {
	for {
		start := time.Now()
		l, err := n.etcd.renew(ctx, t.lease, t.ttl/3)
		pause := renewPause
		switch failure, _ := errors.AsType[*etcdError](err); {
		case ctx.Err() != nil:
			return
		case err == nil && l.TTL == 0, failure != nil && failure.code == codeNotFound:
			t.extend(time.Time{})
			close(t.lost)
			return
		case err == nil:
			t.extend(start)
			pause = t.ttl / 3
			n.announce(t)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// extend notes that a lease was renewed by a request that was sent at that time.
func (t *term) extend(sent time.Time) {
	until := sent.Add(t.ttl * 9 / 10)
	t.fresh.Store(&until)
}

// current reports whether nobody else can have led when it was called.
func (t *term) current() bool { return time.Now().Before(*t.fresh.Load()) }

// announce writes the record anew when the certificate is another. Without an
// error the other lockers can know it.
func (n *node) announce(t *term) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine := n.record()
	if mine == t.record {
		return nil
	}
	answer, err := n.etcd.txn(context.Background(), n.claim(mine, t.lease, t.number), etcdAttempt)
	if err == nil && answer.Succeeded {
		t.record = mine
	}
	if err == nil && !answer.Succeeded {
		err = errDeposed
	}
	return err
}

// announceIfLeading has the others know a certificate before it is served.
func (n *node) announceIfLeading() error {
	if t := n.leading.Load(); t != nil {
		return n.announce(t)
	}
	return nil
}

// committer returns that of this locker's term; nil: it does not lead.
func (n *node) committer() *committer {
	if t := n.leading.Load(); t != nil {
		return t.committer
	}
	return nil
}

// health returns who leads, as far as this locker knows, and since when, or why
// nobody does.
func (n *node) health() (leader string, since time.Time, problem error) {
	if t := n.leading.Load(); t != nil && !t.current() {
		return "", time.Time{}, errStale
	} else if t != nil {
		return n.advertise, t.since, nil
	}
	if p := n.leader.Load(); p != nil {
		return p.URL, p.since, nil
	}
	return "", time.Time{}, *n.vacancy.Load()
}
