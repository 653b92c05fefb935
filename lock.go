package main

import (
	"cmp"
	"slices"
	"time"
)

// This file is the rules: who gets a lock, in which order, and who may free
// it. It is pure. The time and which requests are in flight come in; a state
// and outcomes go out. Nothing here blocks, reads a clock or touches a file.

const (
	placeKept  = 15 * time.Second // how long a waiter with an id may be away before it loses its place
	maxEnded   = 1_000            // ended claims remembered on one lock
	maxFree    = 1_000            // free locks remembered
	maxClaims  = 20_000           // holders and waiters of all locks
	maxWaiters = 5_000            // waiters on one lock
)

// verdict says what became of a request. Its value is a metric's label.
type verdict string

const (
	granted      verdict = "granted"
	repeated     verdict = "repeat"  // granted before, to the same claim
	queued       verdict = "queued"  // it waits, or keeps its place
	refused      verdict = "refused" // it is not queued
	overLimit    verdict = "limit"   // it would be one claim too many
	released     verdict = "released"
	withdrew     verdict = "withdrew"  // it took a queued claim back
	withdrawn    verdict = "withdrawn" // it waited, and its claim was taken back
	alreadyEnded verdict = "ended"     // released, withdrawn, expired or forced before
	neverTaken   verdict = "own"       // only its own hold was to be freed, and it has none
	wasFree      verdict = "free"
	wrongKey     verdict = "wrong_key"
	noSuchHolder verdict = "no_holder"
	forced       verdict = "forced"
	changedHands verdict = "changed" // a forced release named another revision
)

// outcome is a verdict and what belongs to it.
type outcome struct {
	verdict verdict
	token   uint64 // of a grant
	waiter  uint64 // the waiter's revision, when it is or was queued
}

// event is a change, for the log.
type event struct {
	what     string // grant, queue, release, withdraw, expire or force
	lock     string
	identity identity
	link     string
	token    uint64
	lasted   time.Duration // how long it was held or waited for
	by       string        // who forced it
	why      string        // it was forced, withdrawn or given back
}

// draft is a copy of a state to which one batch of requests is applied. It is
// owned by one goroutine.
type draft struct {
	state
	base *state
	now  time.Time // wall clock, UTC

	// asking says whether a request of the waiter is in flight and, when
	// none is, how long ago the last one ended.
	asking  func(waiter uint64) (inFlight bool, away time.Duration)
	arrived map[uint64]bool // waiters whose request was applied
	coming  map[uint64]bool // waiters whose request is in this batch

	own    map[*lock]bool     // locks that are the draft's to change
	moved  map[uint64]outcome // what became of waiters: granted, withdrawn, or refused in the end
	events []event
}

func newDraft(base *state, now time.Time, asking func(uint64) (bool, time.Duration)) *draft {
	return &draft{
		state: *base, base: base, now: now, asking: asking,
		arrived: map[uint64]bool{}, coming: map[uint64]bool{}, own: map[*lock]bool{}, moved: map[uint64]outcome{},
	}
}

// changed reports whether the draft differs from the state it started from.
func (d *draft) changed() bool { return d.revision != d.base.revision }

// edit returns the lock of that name for changing.
func (d *draft) edit(name string) *lock {
	l, i := d.find(name)
	if d.own[l] {
		return l
	}
	if len(d.own) == 0 {
		d.locks = append(make([]*lock, 0, len(d.locks)+1), d.locks...)
	}
	mine := newLock(name)
	if l == nil {
		d.locks = slices.Insert(d.locks, i, mine)
	} else {
		mine.Key, mine.Revision = l.Key, l.Revision
		mine.Holders = slices.Clone(l.Holders)
		mine.Waiters = slices.Clone(l.Waiters)
		mine.Left = slices.Clone(l.Left)
		d.locks[i] = mine
	}
	d.own[mine] = true
	return mine
}

// since returns how long ago t was; if the wall clock was set back since then,
// no time has passed.
func (d *draft) since(t time.Time) time.Duration { return max(0, d.now.Sub(t)) }

func (d *draft) note(e event) { d.events = append(d.events, e) }

// take asks for a lock. With wait, a claim that is not granted is queued.
// A claim of a present holder or waiter is not a second one, but that claim
// again.
func (d *draft) take(name string, c claim, wait bool) outcome {
	l := d.look(name)
	if i := l.holding(c.identity); i >= 0 {
		if c.TTL > 0 {
			d.revision++
			d.edit(name).Holders[i].Expires = d.now.Add(time.Duration(c.TTL))
		}
		return outcome{verdict: repeated, token: l.Holders[i].Token}
	}
	if i := l.waiting(c.identity); i >= 0 {
		return d.takeAgain(name, i, c, wait)
	}
	fits := len(l.Waiters) == 0 && l.fits(c.identity)
	switch {
	case !fits && !wait:
		return outcome{verdict: refused}
	case d.claims >= maxClaims || !fits && len(l.Waiters) >= maxWaiters:
		return outcome{verdict: overLimit}
	}
	l = d.edit(name)
	l.forget(c.identity)
	d.claims++
	if fits {
		return outcome{verdict: granted, token: d.grant(l, c, 0)}
	}
	d.revision++
	l.Waiters = append(l.Waiters, waiter{claim: c, Since: d.now, Revision: d.revision})
	d.arrived[d.revision] = true
	d.note(event{what: "queue", lock: name, identity: c.identity, link: c.Link})
	return outcome{verdict: queued, waiter: d.revision}
}

// takeAgain is take for the claim of the waiter at i, whose request arrived.
func (d *draft) takeAgain(name string, i int, c claim, wait bool) outcome {
	w := d.look(name).Waiters[i]
	if w.TTL != c.TTL || w.Link != c.Link {
		d.revision++
		again := &d.edit(name).Waiters[i]
		again.TTL, again.Link = c.TTL, c.Link
	}
	stays := wait || d.arrived[w.Revision]
	d.arrived[w.Revision] = true
	d.advance(name)
	d.arrived[w.Revision] = stays
	if o, ok := d.moved[w.Revision]; ok {
		return o
	}
	return outcome{verdict: queued, waiter: w.Revision}
}

// grant makes c a holder that waited that long, and returns its token.
func (d *draft) grant(l *lock, c claim, waited time.Duration) uint64 {
	d.revision++
	h := holder{LockedBy: c.LockedBy, ID: c.ID, Link: c.Link, Since: d.now, Token: d.revision}
	if c.TTL > 0 {
		h.Expires = d.now.Add(time.Duration(c.TTL))
	}
	l.Key, l.Revision, l.Holders = c.Key, d.revision, append(l.Holders, h)
	d.note(event{what: "grant", lock: l.name, identity: c.identity, link: c.Link, token: h.Token, lasted: waited})
	return h.Token
}

// advance grants a lock to its waiters in their order, up to the first that
// does not fit or is not there.
func (d *draft) advance(name string) {
	for {
		l := d.look(name)
		if len(l.Waiters) == 0 || !l.fits(l.Waiters[0].identity) || !d.there(l.Waiters[0]) {
			return
		}
		w := l.Waiters[0]
		l = d.edit(name)
		l.Waiters = slices.Delete(l.Waiters, 0, 1)
		d.moved[w.Revision] = outcome{verdict: granted, token: d.grant(l, w.claim, d.since(w.Since)), waiter: w.Revision}
	}
}

func (d *draft) there(w waiter) bool {
	if d.arrived[w.Revision] {
		return true
	}
	inFlight, _ := d.asking(w.Revision)
	return inFlight
}

// expect keeps the place of a waiter whose request is in the batch, although it
// is not applied yet.
func (d *draft) expect(name string, c identity) {
	l := d.look(name)
	if i := l.waiting(c); i >= 0 {
		d.coming[l.Waiters[i].Revision] = true
	}
}

// gone reports whether a waiter has lost its place.
func (d *draft) gone(w waiter) bool {
	inFlight, away := d.asking(w.Revision)
	return !inFlight && !d.coming[w.Revision] && (w.ID == "" || away >= placeKept)
}

// release gives back what r names, by the first of these lines that fits. With
// own it frees nothing but the hold or the place that r.ID itself has.
func (d *draft) release(name string, r identity, own bool) outcome {
	l := d.look(name)
	holding, waiting, named := l.holding(r), l.waiting(r), l.named(r.LockedBy)
	switch {
	case holding >= 0:
		d.end(name, holding, event{what: "release"})
		return outcome{verdict: released}
	case waiting >= 0:
		d.leave(name, waiting)
		return outcome{verdict: withdrew}
	case l.ended(r, d.now):
		return outcome{verdict: alreadyEnded}
	case own:
		d.remember(name, r)
		return outcome{verdict: neverTaken}
	case l.free():
		return outcome{verdict: wasFree}
	case l.Key != r.Key:
		return outcome{verdict: wrongKey}
	case named < 0:
		return outcome{verdict: noSuchHolder}
	}
	d.remember(name, r)
	d.end(name, named, event{what: "release"})
	return outcome{verdict: released}
}

// giveBack releases the hold of that token, if it is there, for an asker
// without an id that was gone before it could be told of its grant.
func (d *draft) giveBack(name string, token uint64) {
	if i := slices.IndexFunc(d.look(name).Holders, func(h holder) bool { return h.Token == token }); i >= 0 {
		d.end(name, i, event{what: "release", why: "its answer could not be delivered"})
	}
}

// force frees the holder lockedBy, or every holder when that is empty, whatever
// the key. With ifMatch it does so only when the lock has that revision. It is
// logged with who asked for it, by, and why.
func (d *draft) force(name, lockedBy string, ifMatch *uint64, by, why string) outcome {
	l := d.look(name)
	if ifMatch != nil && *ifMatch != l.Revision {
		return outcome{verdict: changedHands}
	}
	if lockedBy != "" && l.named(lockedBy) < 0 {
		return outcome{verdict: noSuchHolder}
	}
	if l.free() {
		return outcome{verdict: wasFree}
	}
	for _, h := range slices.Clone(l.Holders) {
		if lockedBy == "" || h.LockedBy == lockedBy {
			d.drop(name, d.look(name).named(h.LockedBy), event{what: "force", by: by, why: why})
		}
	}
	d.advance(name)
	return outcome{verdict: forced}
}

// end drops the holder at i and lets the waiters move up.
func (d *draft) end(name string, i int, e event) {
	d.drop(name, i, e)
	d.advance(name)
}

// drop frees the holder at i; e says what for.
func (d *draft) drop(name string, i int, e event) {
	d.revision++
	d.claims--
	l := d.edit(name)
	h := l.Holders[i]
	who := identity{l.Key, h.LockedBy, h.ID}
	l.Holders = slices.Delete(l.Holders, i, i+1)
	l.Revision = d.revision
	if l.free() {
		l.Key = ""
	}
	l.remember(who, d.now)
	e.lock, e.identity, e.link, e.token, e.lasted = name, who, h.Link, h.Token, d.since(h.Since)
	d.note(e)
}

// leave takes the waiter at i out of the queue and lets those behind it move up.
func (d *draft) leave(name string, i int) {
	l := d.edit(name)
	d.withdraw(l, l.Waiters[i], "it was released while it waited")
	l.Waiters = slices.Delete(l.Waiters, i, i+1)
	d.advance(name)
}

// leaveGone takes the waiters that are gone out of the queue.
func (d *draft) leaveGone(name string) {
	l := d.edit(name)
	l.Waiters = slices.DeleteFunc(l.Waiters, func(w waiter) bool {
		gone := d.gone(w)
		if gone {
			d.withdraw(l, w, "its request ended, and it did not come back in time")
			d.moved[w.Revision] = outcome{verdict: refused}
		}
		return gone
	})
}

func (d *draft) withdraw(l *lock, w waiter, why string) {
	d.revision++
	d.claims--
	l.remember(w.identity, d.now)
	d.moved[w.Revision] = outcome{verdict: withdrawn}
	d.note(event{what: "withdraw", lock: l.name, identity: w.identity, link: w.Link, lasted: d.since(w.Since), why: why})
}

// remember keeps r as ended.
func (d *draft) remember(name string, r identity) {
	if r.ID != "" {
		d.revision++
		d.edit(name).remember(r, d.now)
	}
}

func (l *lock) remember(r identity, now time.Time) {
	if r.ID == "" {
		return
	}
	l.Left = slices.DeleteFunc(l.Left, func(e ended) bool { return !e.live(now) })
	l.Left = append(l.Left, ended{r, now})
	l.Left = l.Left[max(0, len(l.Left)-maxEnded):]
}

func (l *lock) forget(r identity) {
	l.Left = slices.DeleteFunc(l.Left, func(e ended) bool { return e.identity == r })
}

// tend does what time and lost connections ask for: holds expire, waiters that
// are gone leave, and those who are there move up.
func (d *draft) tend() {
	for _, l := range d.base.locks {
		for _, h := range l.Holders {
			if !h.Expires.IsZero() && !d.now.Before(h.Expires) {
				d.end(l.name, d.look(l.name).named(h.LockedBy), event{what: "expire"})
			}
		}
		if slices.ContainsFunc(l.Waiters, d.gone) {
			d.leaveGone(l.name)
		}
		if len(l.Waiters) > 0 {
			d.advance(l.name)
		}
	}
}

// tidy forgets the free locks beyond the maxFree most recently released, but
// none that still remembers a claim that ended, or has waiters. It does so with
// a change only: a draft without one shares its list of locks with its base.
func (d *draft) tidy() {
	if !d.changed() {
		return
	}
	var free []*lock
	for _, l := range d.locks {
		if l.free() {
			free = append(free, l)
		}
	}
	if len(free) <= maxFree {
		return
	}
	slices.SortFunc(free, func(a, b *lock) int { return cmp.Compare(b.Revision, a.Revision) })
	idle := map[*lock]bool{}
	for _, l := range free[maxFree:] {
		remembers := slices.ContainsFunc(l.Left, func(e ended) bool { return e.live(d.now) })
		idle[l] = len(l.Waiters) == 0 && !remembers
	}
	d.locks = slices.DeleteFunc(d.locks, func(l *lock) bool { return idle[l] })
}
