package main

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// This file is the way to the one writer and back: requests queue in its inbox
// while it commits, those that wait for a grant stand in their places, and what
// became of each comes back through its channel.

var (
	errStopping   = errors.New("the locker is shutting down: try again")
	errNotLeading = errors.New("this locker does not lead any more: try again")
	errNotBegun   = errors.New("the locker has not saved its start yet: try again")
	errGone       = errors.New("the connection was closed before the lock was granted, so it was not: keep it open until the answer, or send an id")
)

// request is one change that somebody asks for.
type request struct {
	lock  string
	apply func(*draft) outcome
	ctx   context.Context // when it is done before the request is applied, nothing is
	until time.Time       // when it stops waiting for a grant; zero: it does not wait
	frees bool            // it may hand the lock over to a waiter
	asker identity        // of a take
	conn  net.Conn        // nil: it is not looked at
	done  chan answer     // capacity 1
}

// answer is what became of a request. With err, the other fields are empty.
type answer struct {
	outcome
	lock   *lock         // as committed
	waited time.Duration // by a request that was to wait
	err    error
}

func (r *request) over(now time.Time) bool {
	return r.ctx.Err() != nil || !now.Before(r.until)
}

// hold names a granted claim.
type hold struct {
	lock  string
	token uint64
}

// inbox is what the writer has not taken yet. Its methods are safe for
// concurrent use; receive and gather are the writer's alone.
type inbox struct {
	mu        sync.Mutex
	requests  []*request
	unclaimed []hold // granted, but their answers could not be delivered
	expected  int    // requests worth waiting for, see gather
	refusal   error  // why no more requests are taken; nil while they are
	closed    bool

	wake     chan struct{} // capacity 1
	stopping chan struct{} // closed when no more requests are taken
}

func newInbox() *inbox {
	return &inbox{wake: make(chan struct{}, 1), stopping: make(chan struct{})}
}

// put queues a request. With handOver the writer waits for no others.
func (in *inbox) put(r *request, handOver bool) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.refusal != nil {
		return in.refusal
	}
	in.requests = append(in.requests, r)
	if handOver {
		in.expected = 0
	}
	if n := len(in.requests); n == 1 || n >= in.expected {
		in.poke()
	}
	return nil
}

// giveBack has the hold released, now or with the first commit that succeeds.
func (in *inbox) giveBack(h hold) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.unclaimed = append(in.unclaimed, h)
	in.poke()
}

// poke wakes the writer.
func (in *inbox) poke() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// refuse has every further request refused with err.
func (in *inbox) refuse(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.refusal == nil {
		in.refusal = err
		close(in.stopping)
	}
	in.poke()
}

// close tells the writer that nothing more will come.
func (in *inbox) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.poke()
}

// await returns when the writer is poked, after that long at most.
func (in *inbox) await(pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-in.wake:
	case <-timer.C:
	}
}

// expect takes it that all who were answered will ask again, and reports whether
// to wait for them: whether all who were expected before came, with the requests
// of this commit, while it was under way. Then they take less time than a commit,
// and together they need one less; otherwise the next one is better begun without
// them. Who does not come is forgotten after some commits.
func (in *inbox) expect(answered, had int) (worth bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	missing := max(0, in.expected-had-len(in.requests))
	in.expected = answered + len(in.requests) + missing*7/8
	return missing == 0
}

// gather waits for the expected requests, until then at most.
func (in *inbox) gather(until time.Time) {
	left := time.Until(until)
	if left <= 0 {
		return
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	for in.short() {
		select {
		case <-in.wake:
		case <-timer.C:
			return
		}
	}
}

func (in *inbox) short() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.requests) < in.expected
}

// receive takes all that is queued. What is unclaimed stays until forget: a
// commit that fails must not lose it.
func (in *inbox) receive() (requests []*request, unclaimed []hold, closed bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	requests, in.requests = in.requests, nil
	return requests, in.unclaimed, in.closed
}

// forget drops the first n of what is unclaimed: they are released.
func (in *inbox) forget(n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.unclaimed = in.unclaimed[n:]
}

// batch is what one commit is made of.
type batch struct {
	now       time.Time // monotonic
	entries   []entry
	unclaimed []hold
	draft     *draft
}

// entry is a request of a batch and what the rules made of it.
type entry struct {
	request *request
	answer
	over bool // its wait or its connection has ended
}

// place is what is in flight for a waiter.
type place struct {
	requests []*request
	left     time.Time     // when the last one ended, by the monotonic clock
	given    time.Duration // added to it, for time in which nobody could come back; 0 while there are requests
}

// places are the waiters' by revision. The writer owns them.
type places map[uint64]*place

// keep starts the time in which the waiters that were saved have to come back.
func (ps places) keep(s *state) {
	for l := range s.all() {
		for _, w := range l.Waiters {
			ps[w.Revision] = &place{left: time.Now()}
		}
	}
}

// asking says whether a request of a waiter is in flight and, when none is, how
// long ago the last one ended.
func (ps places) asking(now time.Time) func(waiter uint64) (bool, time.Duration) {
	return func(waiter uint64) (bool, time.Duration) {
		p := ps[waiter]
		if p == nil {
			return false, placeKept
		}
		return len(p.requests) > 0, now.Sub(p.left)
	}
}

// hungUp reports whether the connections of all requests of a waiter are closed,
// which those who wait for the end of a request may not have noticed.
func (ps places) hungUp(waiter uint64) bool {
	p := ps[waiter]
	return p != nil && !slices.ContainsFunc(p.requests, func(r *request) bool { return r.conn == nil || !closedByPeer(r.conn) })
}

// nextEnd returns when the first place ends unless its waiter comes back; zero
// is never.
func (ps places) nextEnd() (next time.Time) {
	for _, p := range ps {
		if end := p.left.Add(placeKept); len(p.requests) == 0 && (next.IsZero() || end.Before(next)) {
			next = end
		}
	}
	return next
}

// over takes the requests whose wait or connection has ended from their places,
// and returns them with their waiters.
func (ps places) over(now time.Time) map[*request]uint64 {
	var over map[*request]uint64
	for waiter, p := range ps {
		p.requests = slices.DeleteFunc(p.requests, func(r *request) bool {
			if !r.over(now) {
				return false
			}
			if over == nil {
				over = map[*request]uint64{}
			}
			over[r], p.left = waiter, now
			return true
		})
	}
	return over
}

// wait renews the place of a waiter, and lets r wait there if it wants to.
func (ps places) wait(r *request, waiter uint64, now time.Time) bool {
	if ps[waiter] == nil {
		ps[waiter] = &place{}
	}
	ps.renew(waiter, now)
	if r.until.IsZero() {
		return false
	}
	ps[waiter].requests = append(ps[waiter].requests, r)
	return true
}

// renew has the time of a place, if there is one, start anew.
func (ps places) renew(waiter uint64, now time.Time) {
	if p := ps[waiter]; p != nil {
		p.left, p.given = now, 0
	}
}

// add gives the waiters without a request that time again, in which they could
// not come back: the disk hung or the process was stopped. Of several such times
// in one absence the longest counts, not their sum, or a disk that is always slow
// would let the dead keep the head of a queue.
func (ps places) add(lost time.Duration) {
	for _, p := range ps {
		if len(p.requests) == 0 && p.given < lost {
			p.left, p.given = p.left.Add(lost-p.given), lost
		}
	}
}

// vacate ends a waiter's place and returns the requests that waited there.
func (ps places) vacate(waiter uint64) []*request {
	p := ps[waiter]
	if p == nil {
		return nil
	}
	delete(ps, waiter)
	return p.requests
}

// dismiss answers everyone who waits with err. The places stay, for those who
// come back after a restart.
func (ps places) dismiss(err error) {
	for _, p := range ps {
		for _, r := range p.requests {
			r.done <- answer{err: err}
		}
		p.requests, p.left, p.given = nil, time.Now(), 0
	}
}
