package main

import (
	"slices"
	"time"
)

// This file is the rules: who gets a lock, in which order, and who may free
// it. It is pure. The time and which requests are in flight come in; a state
// and outcomes go out. Nothing here blocks, reads a clock or touches a file.

const (
	placeKept  = 15 * time.Second // how long a waiter with an id may be away before it loses its place
	maxFree    = 1_000            // free locks remembered
	maxClaims  = 20_000           // holders and waiters of all locks
	maxWaiters = 5_000            // waiters on one lock
)

// draft is a copy of a state to which one batch of requests is applied. It is
// owned by one goroutine.
type draft struct {
	state
	*recollection
	base *state
	now  time.Time // wall clock, UTC

	// asking says whether a request of the waiter is in flight and, when
	// none is, how long ago the last one ended.
	asking  func(waiter uint64) (inFlight bool, away time.Duration)
	hungUp  func(waiter uint64) bool    // the connection of its request is closed
	room    func(l *lock, c claim) bool // the lock may grow by the claim, as far as its size counts
	arrived map[uint64]bool             // waiters whose request was applied
	coming  map[uint64]bool             // waiters whose request is in this batch

	own    map[*lock]bool     // locks that are the draft's to change
	moved  map[uint64]outcome // what became of waiters: granted, withdrawn, or refused in the end
	events []event
}

func newDraft(base *state, m *endings, given ticket, now time.Time, asking func(uint64) (bool, time.Duration)) *draft {
	return &draft{
		state: *base, recollection: newRecollection(m, given), base: base, now: now, asking: asking, hungUp: func(uint64) bool { return false }, room: func(*lock, claim) bool { return true },
		arrived: map[uint64]bool{}, coming: map[uint64]bool{}, own: map[*lock]bool{}, moved: map[uint64]outcome{},
	}
}

// changed reports whether the draft differs from the state it started from.
func (d *draft) changed() bool { return d.revision != d.base.revision }

// edit returns the lock of that name for changing.
func (d *draft) edit(name string) *lock {
	l := d.look(name)
	if d.own[l] {
		return l
	}
	mine := newLock(name)
	mine.Key, mine.Revision = l.Key, l.Revision
	mine.Holders = slices.Clone(l.Holders)
	mine.Waiters = slices.Clone(l.Waiters)
	mine.Left = slices.Clone(l.Left)
	d.put(mine)
	d.own[mine] = true
	return mine
}

// since returns how long ago t was; if the wall clock was set back since then,
// no time has passed.
func (d *draft) since(t time.Time) time.Duration { return max(0, d.now.Sub(t)) }

func (d *draft) note(e event) { d.events = append(d.events, e) }

// begin marks the first draft of a start. It raises the revision, so that new tickets
// differ from all before, and sets the horizon to it.
func (d *draft) begin() {
	d.revision++
	d.horizon = ticket{d.revision, 0}
}

// take asks for a lock. With wait, a claim that is not granted is queued.
// A claim of a present holder or waiter is not a second one, but that claim
// again.
func (d *draft) take(name string, c claim, wait bool) outcome {
	if o := d.late(name, c); o.verdict != "" {
		return o
	}
	l := d.look(name)
	if i := l.holding(c.identity); i >= 0 {
		return d.repeat(name, i, c)
	}
	if i := l.waiting(c.identity); i >= 0 {
		return d.takeAgain(name, i, c, wait)
	}
	if !c.Ticket.IsZero() && c.Ticket.compare(d.horizon) < 0 {
		return outcome{verdict: oldTicket}
	}
	fits := len(l.Waiters) == 0 && l.fits(c)
	switch {
	case !fits && !wait:
		return outcome{verdict: refused}
	case d.claims >= maxClaims || !fits && len(l.Waiters) >= maxWaiters, !d.room(l, c):
		return outcome{verdict: overLimit}
	}
	l = d.edit(name)
	if c.Ticket.IsZero() {
		d.forgetEnd(l, c.identity)
	}
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

// late says why a take with a ticket is refused without a look at the lock; its
// verdict is empty when it is not.
func (d *draft) late(name string, c claim) outcome {
	if c.Ticket.IsZero() {
		return outcome{}
	}
	e := d.notOlder(newEndID(name, c.Key, c.LockedBy, c.ID), c.Ticket)
	switch {
	case e != nil && !e.How.unheard():
		return outcome{verdict: tooLate}
	case e != nil:
		return outcome{verdict: oldTicket, how: e.How, at: e.At}
	case d.notGiven(c.Ticket):
		return outcome{verdict: oldTicket}
	}
	return outcome{}
}

// repeat is take for the claim of the holder at i.
func (d *draft) repeat(name string, i int, c claim) outcome {
	h := d.look(name).Holders[i]
	if c.TTL > 0 {
		h.Expires = d.now.Add(time.Duration(c.TTL))
	}
	h.Ticket = h.Ticket.newest(c.Ticket)
	if was := d.look(name).Holders[i]; c.TTL > 0 || h != was {
		d.revision++
		d.edit(name).Holders[i] = h
	}
	return outcome{verdict: repeated, token: h.Token}
}

// takeAgain is take for the claim of the waiter at i, whose request arrived.
func (d *draft) takeAgain(name string, i int, c claim, wait bool) outcome {
	l := d.look(name)
	w := l.Waiters[i]
	if len(c.Link)+len(c.Reason) > len(w.Link)+len(w.Reason) && !d.room(l, c) {
		return outcome{verdict: overLimit}
	}
	c.Ticket = c.Ticket.newest(w.Ticket)
	if w.claim != c {
		d.revision++
		d.edit(name).Waiters[i].claim = c
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
	h := holder{
		LockedBy: c.LockedBy, ID: c.ID, Link: c.Link, Since: d.now, Token: d.revision,
		Slot: l.slot(), Slots: c.Slots, Reason: c.Reason, Ticket: c.Ticket,
	}
	if c.TTL > 0 {
		h.Expires = d.now.Add(time.Duration(c.TTL))
	}
	l.Key, l.Revision, l.Holders = c.Key, d.revision, append(l.Holders, h)
	d.note(event{what: "grant", lock: l.name, identity: c.identity, link: c.Link, token: h.Token, lasted: waited, why: c.Reason})
	return h.Token
}

// advance grants a lock to its waiters in their order, up to the first that
// does not fit or is not there.
func (d *draft) advance(name string) {
	for {
		l := d.look(name)
		if len(l.Waiters) == 0 || !l.fits(l.Waiters[0].claim) || !d.there(l.Waiters[0]) {
			return
		}
		w := l.Waiters[0]
		if w.ID == "" && d.hungUp(w.Revision) {
			d.leave(name, 0, endAway, "its connection was closed")
			return
		}
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

// release gives back what r names, and remembers that it did.
func (d *draft) release(name string, r release) outcome {
	if d.notGiven(r.ticket) {
		return outcome{verdict: oldTicket}
	}
	before := d.revision
	o := d.giveUp(name, r)
	how := leftNothing
	switch o.verdict {
	case wrongKey:
		how = leftRefused
	case released:
		how = endReleased
	}
	if d.remember(d.look(name), r.identity, how, r.ticket) && d.revision == before {
		d.revision++
	}
	return o
}

// giveUp gives back what r names, by the first of these lines that fits. What a
// later run has, or was granted after r's ticket was given out, is not touched.
func (d *draft) giveUp(name string, r release) outcome {
	l := d.look(name)
	who := l.whose(r.identity)
	holding, waiting, named := l.holding(who), l.waiting(who), l.named(who.LockedBy)
	older := func(t ticket) bool { return r.ticket.IsZero() || t.compare(r.ticket) <= 0 }
	o := outcome{name: who.LockedBy}
	past := (*memo)(nil)
	if r.ID != "" {
		past = d.pastOf(newEndID(name, r.Key, r.LockedBy, r.ID))
	}
	switch {
	case holding >= 0 && !older(l.Holders[holding].Ticket), waiting >= 0 && !older(l.Waiters[waiting].Ticket):
		o.verdict = laterRun
	case holding >= 0:
		o.verdict = released
		d.end(name, holding, endReleased, event{what: "release"})
	case waiting >= 0:
		o.verdict = withdrew
		d.leave(name, waiting, endWithdrawn, "it was given back while it waited")
	case past != nil:
		o.verdict, o.how, o.at = alreadyEnded, past.How, past.At
	case r.own:
		o.verdict = neverTaken
	case l.free():
		o.verdict = wasFree
	case l.Key != r.Key:
		o.verdict = wrongKey
	case named < 0:
		o.verdict = noSuchHolder
	case !older(l.Holders[named].Ticket), !older(ticket{l.Holders[named].Token, 0}):
		o.verdict = laterRun
	default:
		o.verdict = released
		d.end(name, named, endFreed, event{what: "release"})
	}
	return o
}

// giveBack releases the hold of that token, if it is there, for an asker
// without an id that was gone before it could be told of its grant.
func (d *draft) giveBack(name string, token uint64) {
	if i := slices.IndexFunc(d.look(name).Holders, func(h holder) bool { return h.Token == token }); i >= 0 {
		d.end(name, i, endReleased, event{what: "release", why: "its answer could not be delivered"})
	}
}

// force frees one holder or all of them.
func (d *draft) force(name string, f force) outcome {
	l := d.look(name)
	if f.ifMatch != nil && *f.ifMatch != l.Revision {
		return outcome{verdict: changedHands}
	}
	if f.lockedBy != "" && l.named(f.lockedBy) < 0 {
		return outcome{verdict: noSuchHolder}
	}
	if l.free() {
		return outcome{verdict: wasFree}
	}
	names := ""
	for _, h := range slices.Clone(l.Holders) {
		if f.lockedBy == "" || h.LockedBy == f.lockedBy {
			names += ", " + h.LockedBy
			d.drop(name, d.look(name).named(h.LockedBy), endForced, event{what: "force", by: f.by, person: f.person, why: f.why})
		}
	}
	d.advance(name)
	return outcome{verdict: forced, name: names[len(", "):]}
}

// end drops the holder at i and lets the waiters move up.
func (d *draft) end(name string, i int, how how, e event) {
	d.drop(name, i, how, e)
	d.advance(name)
}

// drop frees the holder at i; e says what for.
func (d *draft) drop(name string, i int, how how, e event) {
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
	d.remember(l, who, how, h.Ticket)
	e.lock, e.identity, e.link, e.token, e.lasted = name, who, h.Link, h.Token, d.since(h.Since)
	d.note(e)
}

// leave takes the waiter at i out of the queue and lets those behind it move up.
func (d *draft) leave(name string, i int, how how, why string) {
	l := d.edit(name)
	d.withdraw(l, l.Waiters[i], how, why)
	l.Waiters = slices.Delete(l.Waiters, i, i+1)
	d.advance(name)
}

// leaveGone takes the waiters that are gone out of the queue.
func (d *draft) leaveGone(name string) {
	l := d.edit(name)
	l.Waiters = slices.DeleteFunc(l.Waiters, func(w waiter) bool {
		gone := d.gone(w)
		if gone {
			d.withdraw(l, w, endAway, "its request ended, and it did not come back in time")
			d.moved[w.Revision] = outcome{verdict: refused}
		}
		return gone
	})
}

func (d *draft) withdraw(l *lock, w waiter, how how, why string) {
	d.revision++
	d.claims--
	if how == endAway {
		w.Ticket = ticket{} // so that the same run may queue anew
	}
	d.remember(l, w.identity, how, w.Ticket)
	d.moved[w.Revision] = outcome{verdict: withdrawn}
	d.note(event{what: "withdraw", lock: l.name, identity: w.identity, link: w.Link, lasted: d.since(w.Since), why: why})
}

// remember keeps how a claim ended, with the newest of its tickets, and reports
// whether that is news.
func (d *draft) remember(l *lock, who identity, how how, t ticket) bool {
	if who.ID == "" {
		return false
	}
	e, news := d.add(end{Claim: newEndID(l.name, who.Key, who.LockedBy, who.ID), How: how, At: d.now, Ticket: t}, d.now)
	if news {
		l = d.edit(l.name)
		l.Left = slices.DeleteFunc(l.Left, func(old end) bool { return old.Claim == e.Claim || d.now.Sub(old.At) >= endedKept })
		l.Left = append(l.Left, e)
		l.Left = l.Left[max(0, len(l.Left)-maxLeft):]
	}
	return news
}

// forgetEnd has a new claim without a ticket begin as if it had never been there.
func (d *draft) forgetEnd(l *lock, who identity) {
	if who.ID == "" {
		return
	}
	if id := newEndID(l.name, who.Key, who.LockedBy, who.ID); d.forget(id) {
		l.Left = slices.DeleteFunc(l.Left, func(e end) bool { return e.Claim == id })
	}
}

// tend does what time and lost connections ask for: holds expire, waiters that
// are gone leave, and those who are there move up.
func (d *draft) tend() {
	for _, c := range d.base.chunks {
		sum := c.summary()
		if sum.waiting || !sum.expires.IsZero() && !d.now.Before(sum.expires) {
			for _, l := range c.locks {
				d.tendLock(l)
			}
		}
	}
}

func (d *draft) tendLock(l *lock) {
	for _, h := range l.Holders {
		if !h.Expires.IsZero() && !d.now.Before(h.Expires) {
			d.end(l.name, d.look(l.name).named(h.LockedBy), endExpired, event{what: "expire"})
		}
	}
	if slices.ContainsFunc(l.Waiters, d.gone) {
		d.leaveGone(l.name)
	}
	if len(l.Waiters) > 0 {
		d.advance(l.name)
	}
}

// tidy forgets the idle locks beyond the maxFree that were released last. It is
// the last thing that is done to a draft, and only to one with a change.
func (d *draft) tidy() {
	idle := 0
	for _, c := range d.chunks {
		idle += len(c.summary().idle)
	}
	for ; d.changed() && idle > maxFree; idle-- {
		d.remove(d.longestIdle().name)
	}
}

func (d *draft) longestIdle() (longest *lock) {
	for _, c := range d.chunks {
		if idle := c.summary().idle; len(idle) > 0 && (longest == nil || idle[0].Revision < longest.Revision) {
			longest = idle[0]
		}
	}
	return longest
}
