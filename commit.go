package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// This file is the one writer. Requests queue while it commits; the next commit
// carries all of them: the rules are applied to a draft, the draft is saved,
// then it is published, and only then is anyone answered.
//
// What nobody asked for (a hold expires, a waiter's place ends, a connection is
// lost) is not queued: each commit derives it from the state, the time and the
// requests in flight, so that a commit that fails loses none of it.

const (
	retryPause = time.Second          // between the saves that are tried while commits fail
	wallPause  = 5 * time.Second      // between looks at the wall clock, which may jump, while a ttl runs
	gatherMost = 2 * time.Millisecond // about what clients of the same machine or network need to come back
)

var (
	errStopping = errors.New("the locker is shutting down: try again")
	errGone     = errors.New("the connection was closed before the lock was granted, so it was not: keep it open until the answer, or send an id")
)

// request is one change that somebody asks for.
type request struct {
	lock  string
	apply func(*draft) outcome
	ctx   context.Context // when it is done before the request is applied, nothing is
	until time.Time       // when it stops waiting for a grant; zero: it does not wait
	frees bool            // it may hand the lock over to who waits for it
	done  chan answer     // capacity 1
}

// answer is what became of a request; with err, nothing that is known.
type answer struct {
	outcome
	lock *lock // as committed
	err  error
}

func (r *request) over(now time.Time) bool {
	return r.ctx.Err() != nil || !now.Before(r.until)
}

// place is what is in flight for a waiter.
type place struct {
	requests []*request
	left     time.Time // when the last one ended, by the monotonic clock
}

// hold names a granted claim.
type hold struct {
	lock  string
	token uint64
}

// snapshot is a committed state and the signal that there is a newer one.
type snapshot struct {
	*state
	replaced chan struct{}
}

// trouble says since when and why commits fail.
type trouble struct {
	since time.Time
	err   error
}

// committer owns the state: run is the one goroutine that changes it. Its
// other methods are safe for concurrent use.
type committer struct {
	store *store
	log   *slog.Logger
	wall  func() time.Time

	metrics *metrics

	mu        sync.Mutex
	queue     []*request
	expect    int    // requests worth waiting for, see gather
	unclaimed []hold // granted to askers without an id that were gone by then
	refuse    error  // why no more requests are taken; nil while they are
	closed    bool

	wake      chan struct{} // capacity 1
	stopping  chan struct{} // closed when no more requests are taken
	published atomic.Pointer[snapshot]
	failing   atomic.Pointer[trouble] // nil while commits succeed

	// Owned by run.
	places    map[uint64]*place // by the waiter's revision
	unsaved   bool              // the file may not hold the published state
	answered  int               // requests, by this commit
	gathering time.Time         // until when others are waited for
}

// newCommitter returns a committer of s, which it saves once, so that a folder
// that cannot be written is found before anyone is served. An error means that
// it is not known what the file holds; a save that was refused is tried again.
func newCommitter(st *store, s *state, log *slog.Logger, wall func() time.Time) (*committer, error) {
	c := &committer{
		store: st, log: log, wall: wall, metrics: newMetrics(),
		wake: make(chan struct{}, 1), stopping: make(chan struct{}),
		places: map[uint64]*place{}, unsaved: true,
	}
	c.published.Store(&snapshot{s, make(chan struct{})})
	c.keepPlaces()
	return c, c.commit(nil)
}

// keepPlaces starts the time in which the waiters that were saved have to come
// back. A waiter without an id cannot.
func (c *committer) keepPlaces() {
	for _, l := range c.state().locks {
		for _, w := range l.Waiters {
			if w.ID != "" {
				c.places[w.Revision] = &place{left: time.Now()}
			}
		}
	}
}

// state returns the committed state.
func (c *committer) state() *snapshot { return c.published.Load() }

// do has r applied and committed, and returns what became of it: at once, or
// when r waits, when it is granted or its wait or its connection ends. The
// answer's error is errStopping, errGone, that of a save that was refused, or
// one that wraps errUnknown.
func (c *committer) do(r *request) answer {
	r.done = make(chan answer, 1)
	if err := c.enqueue(r); err != nil {
		return answer{err: err}
	}
	if r.until.IsZero() {
		return <-r.done
	}
	timer := time.NewTimer(time.Until(r.until))
	defer timer.Stop()
	select {
	case a := <-r.done:
		return a
	case <-timer.C:
	case <-r.ctx.Done():
	}
	c.poke()
	return <-r.done
}

func (c *committer) enqueue(r *request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return c.refuse
	}
	c.queue = append(c.queue, r)
	if r.frees && len(c.state().look(r.lock).Waiters) > 0 {
		c.expect = 0 // a hand-over waits for nobody
	}
	if n := len(c.queue); n == 1 || n >= c.expect {
		c.poke()
	}
	return nil
}

// giveBack has the hold released, now or with the first commit that succeeds.
func (c *committer) giveBack(h hold) {
	c.mu.Lock()
	c.unclaimed = append(c.unclaimed, h)
	c.mu.Unlock()
	c.poke()
}

func (c *committer) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// drain refuses new requests and answers those that wait; what is being
// committed is committed. It does not wait for that.
func (c *committer) drain() {
	c.stop(errStopping)
	c.poke()
}

func (c *committer) stop(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse == nil {
		c.refuse = err
		close(c.stopping)
	}
}

// close lets run return once everything is committed that was asked for, as far
// as commits succeed.
func (c *committer) close() {
	c.drain()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.poke()
}

// run commits until close. It returns an error, and everyone who still waits
// has been answered, when a commit's outcome is unknown: the process must end,
// and the next one read what is there.
func (c *committer) run() error {
	c.keepPlaces()
	for {
		batch, closed := c.next()
		if err := c.commit(batch); err != nil {
			c.stop(errStopping)
			batch, _ = c.dequeue()
			c.refuseAll(batch, errStopping)
			return err
		}
		select {
		case <-c.stopping:
			c.refuseAll(nil, errStopping)
		default:
		}
		if closed {
			return nil
		}
	}
}

// next waits until there is something to do and returns the requests to apply.
func (c *committer) next() (batch []*request, closed bool) {
	timer := time.NewTimer(c.pause())
	defer timer.Stop()
	select {
	case <-c.wake:
	case <-timer.C:
	}
	c.gather()
	return c.dequeue()
}

// gather waits a moment for as many requests as the last commit answered, and
// left in the queue: busy clients come back at once, and one commit for all of
// them is cheaper than one for each half. It waits no longer than three commits
// take, so that it never costs more than it can win, and not at all when a lock
// that others wait for is to be handed over.
func (c *committer) gather() {
	left := time.Until(c.gathering)
	if left <= 0 {
		return
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	for c.short() {
		select {
		case <-c.wake:
		case <-timer.C:
			return
		}
	}
}

// expectMore says what gather waits for, after a commit that took that long.
func (c *committer) expectMore(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expect = c.answered + len(c.queue)
	c.gathering = time.Now().Add(min(3*took, gatherMost))
}

func (c *committer) short() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) < c.expect
}

func (c *committer) dequeue() (batch []*request, closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	batch, c.queue = c.queue, nil
	return batch, c.closed
}

// pause returns how long nothing will happen unless a request arrives.
func (c *committer) pause() time.Duration {
	now, pause := time.Now(), time.Hour
	if c.failing.Load() != nil {
		return retryPause
	}
	for _, p := range c.places {
		if len(p.requests) == 0 {
			pause = min(pause, p.left.Add(placeKept).Sub(now))
		}
	}
	if expiry := c.state().nextExpiry(); !expiry.IsZero() {
		pause = min(pause, wallPause, max(expiry.Sub(c.wall()), time.Millisecond))
	}
	return pause
}

// commit applies a batch, saves the result and answers. It returns an error
// only when it is not known whether the result was saved.
func (c *committer) commit(batch []*request) error {
	now := time.Now()
	over := c.endRequests(now)
	d := newDraft(c.state().state, c.wall().UTC().Truncate(time.Millisecond), c.asking(now))
	d.tend()
	gaveBack := c.applyUnclaimed(d)
	outcomes := make([]answer, len(batch))
	for i, r := range batch {
		outcomes[i] = answer{err: errGone}
		if r.ctx.Err() == nil {
			outcomes[i] = answer{outcome: r.apply(d)}
		}
	}
	if d.changed() || c.unsaved {
		err := c.save(d)
		c.unsaved = err != nil
		switch {
		case errors.Is(err, errUnknown):
			c.fail(batch, over, err)
			c.failMoved(d, err)
			return err
		case err != nil && d.changed():
			c.fail(batch, over, err)
			c.renew(outcomes, now)
			return nil
		}
	}
	c.publish(d)
	c.forgetUnclaimed(gaveBack)
	c.answered = 0
	c.tellAll(d, batch, outcomes, now)
	c.answerOver(over, d)
	c.expectMore(time.Since(now))
	logEvents(c.log, d.events)
	return nil
}

// endRequests takes those requests from their places whose wait or connection has
// ended, and returns them by waiter.
func (c *committer) endRequests(now time.Time) map[*request]uint64 {
	var over map[*request]uint64
	for waiter, p := range c.places {
		p.requests = slices.DeleteFunc(p.requests, func(r *request) bool {
			if !r.over(now) {
				return false
			}
			if over == nil {
				over = map[*request]uint64{}
			}
			over[r] = waiter
			p.left = now
			return true
		})
	}
	return over
}

func (c *committer) asking(now time.Time) func(uint64) (bool, time.Duration) {
	return func(waiter uint64) (bool, time.Duration) {
		p := c.places[waiter]
		if p == nil {
			return false, placeKept
		}
		return len(p.requests) > 0, now.Sub(p.left)
	}
}

func (c *committer) applyUnclaimed(d *draft) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.unclaimed {
		d.giveBack(h.lock, h.token)
	}
	return len(c.unclaimed)
}

func (c *committer) forgetUnclaimed(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unclaimed = c.unclaimed[n:]
}

func (c *committer) save(d *draft) error {
	d.tidy()
	start := time.Now()
	err := c.store.save(&d.state)
	c.metrics.commit(time.Since(start), len(c.store.buf), err)
	switch was := c.failing.Load(); {
	case err == nil && was != nil:
		c.log.Info("commits succeed again", "failed_for", time.Since(was.since).Round(time.Millisecond))
		c.failing.Store(nil)
	case err != nil && was == nil:
		c.log.Error("commit failed", "err", err)
		c.failing.Store(&trouble{time.Now(), err})
	case err != nil && cause(was.err) != cause(err):
		c.log.Error("commit failed", "err", err)
		c.failing.Store(&trouble{was.since, err})
	}
	return err
}

func (c *committer) publish(d *draft) {
	if !d.changed() {
		return
	}
	c.metrics.grants(d.events)
	s := d.state
	old := c.published.Swap(&snapshot{&s, make(chan struct{})})
	close(old.replaced)
}

// tellAll tells each request of a committed batch what became of it, and the
// waiters that were granted or withdrawn. Who still waits gets a place.
func (c *committer) tellAll(d *draft, batch []*request, outcomes []answer, now time.Time) {
	s := c.state()
	for waiter, o := range d.moved {
		if p := c.places[waiter]; p != nil {
			for _, r := range p.requests {
				c.tell(r, answer{outcome: o, lock: s.look(r.lock)})
			}
			delete(c.places, waiter)
		}
	}
	for i, r := range batch {
		a := outcomes[i]
		if moved, ok := d.moved[a.waiter]; ok {
			a.outcome = moved
		}
		if a.verdict == queued && c.wait(r, a.waiter, now) {
			continue
		}
		a.lock = s.look(r.lock)
		c.tell(r, a)
	}
}

// wait renews the place of a waiter, and lets r wait there if it wants to.
func (c *committer) wait(r *request, waiter uint64, now time.Time) bool {
	p := c.places[waiter]
	if p == nil {
		p = &place{}
		c.places[waiter] = p
	}
	p.left = now
	if r.until.IsZero() {
		return false
	}
	p.requests = append(p.requests, r)
	if r.over(time.Now()) {
		c.poke() // its own may have come while it was not in its place yet
	}
	return true
}

// answerOver answers the requests whose wait has ended. If their claim was
// granted or withdrawn in this very commit, by another request, they are told
// so.
func (c *committer) answerOver(over map[*request]uint64, d *draft) {
	for r, waiter := range over {
		o, moved := d.moved[waiter]
		if !moved {
			o = outcome{verdict: queued, waiter: waiter}
		}
		c.tell(r, answer{outcome: o, lock: c.state().look(r.lock)})
	}
}

func (c *committer) tell(r *request, a answer) {
	c.answered++
	r.done <- a
}

// fail answers the requests of a commit that failed. Those that wait go on
// waiting: nothing has changed for them.
func (c *committer) fail(batch []*request, over map[*request]uint64, err error) {
	for _, r := range batch {
		r.done <- answer{err: err}
	}
	for r := range over {
		r.done <- answer{err: err}
	}
}

// renew keeps the places of waiters whose request a failed commit has ended.
func (c *committer) renew(outcomes []answer, now time.Time) {
	for _, a := range outcomes {
		if p := c.places[a.waiter]; p != nil {
			p.left = now
		}
	}
}

// failMoved answers the waiters that a commit of unknown outcome was to grant
// the lock to: they may hold it.
func (c *committer) failMoved(d *draft, err error) {
	for waiter := range d.moved {
		if p := c.places[waiter]; p != nil {
			c.fail(p.requests, nil, err)
			p.requests = nil
		}
	}
}

// refuseAll answers a batch and all who wait with err. The places stay, for
// those who come back after a restart.
func (c *committer) refuseAll(batch []*request, err error) {
	c.fail(batch, nil, err)
	for _, p := range c.places {
		c.fail(p.requests, nil, err)
		p.requests, p.left = nil, time.Now()
	}
}
