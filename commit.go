package main

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// This file is the one writer. Requests queue while it commits; the next batch
// has all of them: the rules are applied to a draft, the draft is saved, then it
// is published, and only then is anyone answered. A batch that cannot be saved
// is rejected as a whole.
//
// What nobody asked for (a hold expires, a waiter's place ends, a connection is
// lost) is not queued: each batch derives it from the state, the time and the
// requests in flight, so that a commit that fails loses none of it.

const (
	retryPause = time.Second            // between the saves that are tried while commits fail
	longest    = time.Second            // that the writer may be late, or a commit take, before it counts as stopped
	wallPause  = 5 * time.Second        // between looks at the wall clock, which may jump, while a ttl runs
	gatherMost = 100 * time.Millisecond // that others are waited for, however long a commit takes
)

// store keeps the state. The writer owns it.
type store interface {
	// save makes s what is kept, durably, and returns its size in bytes, 0 when
	// it is not known. An error that wraps errUnknown leaves it open whether that
	// happened; after any other nothing has changed.
	save(s *state) (size int, err error)
}

// committer owns the state: run is the one goroutine that changes it. Its
// other methods are safe for concurrent use.
type committer struct {
	inbox    *inbox
	store    store
	confirm  func() error            // nil: nobody else can change what is saved
	room     func(*lock, claim) bool // nil: a lock may have any size
	farewell error                   // for those who wait when the committer ends
	metrics  *metrics
	log      *slog.Logger
	wall     func() time.Time
	recent   *recent

	published atomic.Pointer[snapshot]
	trouble   troubles
	begun     atomic.Bool // a commit has succeeded
	tickets   tickets

	// Owned by run.
	places    places
	endings   *endings
	unsaved   bool      // the store may not have the published state
	gathering time.Time // until when others are waited for
}

// newCommitter returns a committer of s, which it saves once, so that a folder
// that cannot be written is found before anyone is served. An error means that
// it is not known what the file holds; a save that was refused is tried again.
func newCommitter(st store, s *state, m *metrics, log *slog.Logger, wall func() time.Time) (*committer, error) {
	c := &committer{
		inbox: newInbox(), store: st, metrics: m, log: log, wall: wall, recent: newRecent(wall()), farewell: errStopping,
		places: places{}, endings: newEndings(), unsaved: true,
	}
	var left []end
	for l := range s.all() {
		left = append(left, l.Left...)
	}
	c.endings.load(left, wall())
	c.published.Store(&snapshot{s, make(chan struct{})})
	c.places.keep(s)
	err := c.commit(&batch{})
	if t := c.failing(); err == nil && t != nil && errors.Is(t.err, syscall.EBUSY) {
		err = t.err // it will not go away
	}
	return c, err
}

// state returns the committed state.
func (c *committer) state() *snapshot { return c.published.Load() }

// failing says since when and why commits fail; nil: they do not.
func (c *committer) failing() *trouble { return c.trouble.now.Load() }

// ticket gives out a ticket. The error is errNotBegun as long as no commit has
// moved the revision beyond that of every earlier ticket, or one of do's.
func (c *committer) ticket(ctx context.Context) (ticket, error) {
	if c.confirm != nil {
		nothing := func(*draft) outcome { return outcome{} }
		if a := c.do(&request{ctx: ctx, apply: nothing}); a.err != nil {
			return ticket{}, a.err
		}
	}
	if !c.begun.Load() {
		return ticket{}, errNotBegun
	}
	return c.tickets.next(func() uint64 { return c.state().revision }), nil
}

// stopping returns a channel that is closed when no more requests are taken.
func (c *committer) stopping() <-chan struct{} { return c.inbox.stopping }

// do has r applied and committed, and returns what became of it: at once, or
// when r waits, when it is granted or its wait or its connection ends. The
// answer's error is errStopping, errGone, that of a save that was refused, or
// one that wraps errUnknown.
func (c *committer) do(r *request) answer {
	r.done = make(chan answer, 1)
	handOver := r.frees && len(c.state().look(r.lock).Waiters) > 0
	if err := c.inbox.put(r, handOver); err != nil {
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
	c.inbox.poke()
	return <-r.done
}

// giveBack has the hold released, now or with the first commit that succeeds.
func (c *committer) giveBack(h hold) { c.inbox.giveBack(h) }

// drain refuses new requests and answers those that wait; what is being
// committed is committed. It does not wait for that.
func (c *committer) drain() { c.inbox.refuse(c.farewell) }

// close drains, and lets run return once everything is committed that was asked
// for, as far as commits succeed.
func (c *committer) close() {
	c.drain()
	c.inbox.close()
}

// run commits until close. It returns an error, and everyone who still waits
// has been answered, when a commit's outcome is unknown: the process must end,
// and the next one read what is there.
func (c *committer) run() error {
	c.places.keep(c.state().state)
	last := time.Now() // until when all time was looked at for a stop, which may fall anywhere
	for {
		pause := c.pause()
		c.inbox.await(pause)
		c.inbox.gather(c.gathering)
		now := time.Now()
		c.addLost(now.Sub(last) - pause)
		b, closed := c.draw(now)
		if err := c.commit(b); err != nil {
			c.drain()
			b, _ = c.draw(time.Now())
			c.reject(b, c.farewell)
			c.places.dismiss(c.farewell)
			return err
		}
		last = time.Now()
		c.addLost(last.Sub(now))
		select {
		case <-c.stopping():
			c.places.dismiss(c.farewell)
		default:
		}
		if closed {
			return nil
		}
	}
}

// addLost gives the places the time in which the writer was stopped, and with it
// those who were to come back.
func (c *committer) addLost(lost time.Duration) {
	if lost > longest {
		c.places.add(lost)
	}
}

// pause returns how long nothing will happen unless a request arrives.
func (c *committer) pause() time.Duration {
	now, pause := time.Now(), time.Hour
	if c.failing() != nil {
		return retryPause
	}
	if end := c.places.nextEnd(); !end.IsZero() {
		pause = min(pause, max(0, end.Sub(now)), longest) // at each second it is noticed whether the process was stopped
	}
	if expiry := c.state().nextExpiry(); !expiry.IsZero() {
		pause = min(pause, wallPause, max(expiry.Sub(c.wall()), time.Millisecond))
	}
	return pause
}

// draw takes what is queued and those requests from their places whose wait or
// connection has ended.
func (c *committer) draw(now time.Time) (b *batch, closed bool) {
	b = &batch{now: now}
	for r, waiter := range c.places.over(now) {
		b.entries = append(b.entries, entry{r, answer{outcome: outcome{verdict: queued, waiter: waiter}}, true})
	}
	requests, unclaimed, closed := c.inbox.receive()
	for _, r := range requests {
		b.entries = append(b.entries, entry{request: r})
	}
	b.unclaimed = unclaimed
	return b, closed
}

// commit applies a batch, saves the result and answers. It returns an error
// only when it is not known whether the result was saved.
func (c *committer) commit(b *batch) error {
	c.apply(b)
	if err := c.keep(b); err != nil {
		c.reject(b, err)
		if errors.Is(err, errUnknown) {
			return err
		}
		return nil
	}
	c.publish(b.draft)
	c.inbox.forget(len(b.unclaimed))
	c.recent.add(b.draft.now, b.draft.events)
	c.deliver(b)
	runtime.Gosched() // to those who were answered: their clients wait, the log does not
	logEvents(c.log, b.draft.events)
	return nil
}

// keep returns nil once the draft is saved or, when it is as the state is, that
// is known to be the one that counts.
func (c *committer) keep(b *batch) error {
	changed := b.draft.changed()
	if changed || c.unsaved {
		err := c.save(b.draft)
		c.unsaved = err != nil
		if err == nil || changed || errors.Is(err, errUnknown) {
			return err
		}
	}
	if c.confirm != nil && len(b.entries) > 0 {
		return c.confirm()
	}
	return nil
}

// apply makes the draft: what time and lost connections ask for comes first,
// then what clients do.
func (c *committer) apply(b *batch) {
	now := c.wall().UTC().Truncate(time.Millisecond)
	c.endings.trim(now)
	b.draft = newDraft(c.state().state, c.endings, c.tickets.given(), now, c.places.asking(b.now))
	b.draft.hungUp = c.places.hungUp
	if c.room != nil {
		b.draft.room = c.room
	}
	if !c.begun.Load() {
		b.draft.begin()
	}
	for _, e := range b.entries {
		if !e.over && e.request.ctx.Err() == nil {
			b.draft.expect(e.request.lock, e.request.asker)
		}
	}
	b.draft.tend()
	for _, h := range b.unclaimed {
		b.draft.giveBack(h.lock, h.token)
	}
	for i := range b.entries {
		switch e := &b.entries[i]; {
		case e.over:
		case e.request.ctx.Err() != nil:
			e.err = errGone
		default:
			e.outcome = e.request.apply(b.draft)
		}
	}
}

func (c *committer) save(d *draft) error {
	d.tidy()
	start := time.Now()
	size, err := 0, errRevision
	if d.revision <= maxRevision {
		size, err = c.store.save(&d.state)
	}
	c.metrics.commit(time.Since(start), size, err)
	c.trouble.note(err, c.log)
	return err
}

func (c *committer) publish(d *draft) {
	if !d.changed() {
		return
	}
	c.metrics.grants(d.events)
	c.endings.learn(d.recollection)
	s := d.state
	old := c.published.Swap(&snapshot{&s, make(chan struct{})})
	close(old.replaced)
	c.begun.Store(true)
}

// deliver tells everyone of a committed batch what became of their requests.
// A waiter whose claim moved is told so, whichever of its requests it was; one
// that still waits gets a place.
func (c *committer) deliver(b *batch) {
	answered := 0
	tell := func(r *request, o outcome) {
		answered++
		r.done <- answer{outcome: o, lock: c.state().look(r.lock)}
	}
	for waiter, o := range b.draft.moved {
		for _, r := range c.places.vacate(waiter) {
			tell(r, o)
		}
	}
	for _, e := range b.entries {
		o, moved := b.draft.moved[e.waiter]
		switch {
		case e.err != nil:
			e.request.done <- answer{err: e.err}
		case moved:
			tell(e.request, o)
		case e.verdict == queued && !e.over && c.places.wait(e.request, e.waiter, b.now):
			if e.request.over(time.Now()) {
				c.inbox.poke() // its own poke may have come before it was in its place
			}
		default:
			tell(e.request, e.outcome)
		}
	}
	c.gathering = time.Time{}
	if c.inbox.expect(answered, len(b.entries)) {
		c.gathering = time.Now().Add(min(time.Since(b.now), gatherMost))
	}
}

// reject answers the requests of a batch that was not committed. Those that
// wait go on waiting, and places stay: nothing has changed for them. If that
// is not known, the waiters that were to be granted the lock are told so too.
func (c *committer) reject(b *batch, err error) {
	for _, e := range b.entries {
		e.request.done <- answer{err: err}
		c.places.renew(e.waiter, b.now)
	}
	if !errors.Is(err, errUnknown) {
		return
	}
	for waiter := range b.draft.moved {
		for _, r := range c.places.vacate(waiter) {
			r.done <- answer{err: err}
		}
	}
}
