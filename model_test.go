package main

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// model is section 2 of the spec written as plainly as possible: slow, and
// obviously right. It shares no code with the rules.
type model struct {
	revision uint64
	locks    map[string]*modelLock
	horizon  ticket
	given    ticket
}

type modelLock struct {
	revision uint64
	holders  []modelClaim
	queue    []modelClaim
	ended    []modelEnd // in the order in which they were last remembered
	saved    []modelEnd // the youngest of them
}

// modelEnd remembers a claim that ended; without a name it is every name's.
type modelEnd struct {
	who         identity
	how         how
	at, touched time.Time
	ticket      ticket
}

type modelClaim struct {
	who     identity
	link    string
	ttl     time.Duration
	number  uint64    // token of a holder, revision of a waiter
	expires time.Time // zero: never
	ticket  ticket
	slots   int // 0: no limit
	slot    int
	here    bool // a waiter's request is in this batch
}

func newModel() *model { return &model{locks: map[string]*modelLock{}} }

func (m *model) clone() *model {
	c := &model{m.revision, map[string]*modelLock{}, m.horizon, m.given}
	for name, l := range m.locks {
		c.locks[name] = &modelLock{l.revision, slices.Clone(l.holders), slices.Clone(l.queue), slices.Clone(l.ended), slices.Clone(l.saved)}
		for i := range c.locks[name].queue {
			c.locks[name].queue[i].here = false
		}
	}
	return c
}

func (m *model) lock(name string) *modelLock {
	if m.locks[name] == nil {
		m.locks[name] = &modelLock{}
	}
	return m.locks[name]
}

type inFlight func(uint64) (bool, time.Duration)

func earlier(a, b ticket) bool {
	return a.Revision < b.Revision || a.Revision == b.Revision && a.Count < b.Count
}

func later(a, b ticket) ticket {
	if earlier(a, b) {
		return b
	}
	return a
}

// restart keeps what is saved of what each lock remembers, and moves the horizon
// and the revision.
func (m *model) restart(now time.Time) {
	for _, l := range m.locks {
		l.ended = slices.Clone(l.saved)
		for i := range l.ended {
			l.ended[i].touched = l.ended[i].at
		}
	}
	m.age(now)
	m.revision++
	m.horizon = ticket{m.revision, 0}
	m.given = m.horizon
}

// age forgets what was remembered an hour ago.
func (m *model) age(now time.Time) {
	for _, l := range m.locks {
		l.ended = slices.DeleteFunc(l.ended, func(e modelEnd) bool {
			old := now.Sub(e.touched) >= time.Hour
			if old {
				m.forgotten(e)
			}
			return old
		})
	}
}

func (m *model) forgotten(e modelEnd) {
	if e.ticket != (ticket{}) {
		m.horizon = later(m.horizon, ticket{e.ticket.Revision, e.ticket.Count + 1})
	}
}

func (m *model) tend(now time.Time, asking inFlight) {
	m.age(now)
	for _, name := range slices.Sorted(maps.Keys(m.locks)) {
		l := m.locks[name]
		for _, h := range slices.Clone(l.holders) {
			if !h.expires.IsZero() && !h.expires.After(now) {
				m.free(l, h.who, endExpired, now)
				m.moveUp(l, now, asking)
			}
		}
		for _, w := range slices.Clone(l.queue) {
			if there, away := asking(w.number); !there && (w.who.ID == "" || away >= 15*time.Second) {
				m.unqueue(l, w.number, endAway, now)
			}
		}
		m.moveUp(l, now, asking)
	}
}

func (m *model) free(l *modelLock, who identity, how how, now time.Time) {
	m.revision++
	l.revision = m.revision
	i := slices.IndexFunc(l.holders, func(h modelClaim) bool { return h.who == who })
	l.end(who, how, l.holders[i].ticket, now)
	l.holders = slices.Delete(l.holders, i, i+1)
}

func (m *model) unqueue(l *modelLock, number uint64, how how, now time.Time) {
	m.revision++
	l.queue = slices.DeleteFunc(l.queue, func(w modelClaim) bool {
		if w.number == number {
			if how == endAway {
				w.ticket = ticket{}
			}
			l.end(w.who, how, w.ticket, now)
		}
		return w.number == number
	})
}

// end remembers, and reports whether that is news.
func (l *modelLock) end(who identity, how how, t ticket, now time.Time) bool {
	if who.ID == "" {
		return false
	}
	e := modelEnd{who, how, now, now, t}
	for i, old := range l.ended {
		if old.who != who {
			continue
		}
		e.ticket = later(old.ticket, t)
		keeps := how == endReleased && old.how == endReleased || how == leftRefused || how == leftNothing && old.how != leftRefused
		if keeps {
			e.how, e.at = old.how, old.at
		}
		if e.how == old.how && e.at.Equal(old.at) && e.ticket == old.ticket {
			return false
		}
		l.ended = slices.Delete(l.ended, i, i+1)
		break
	}
	l.ended = append(l.ended, e)
	l.saved = slices.DeleteFunc(l.saved, func(old modelEnd) bool { return old.who == who || now.Sub(old.at) >= time.Hour })
	l.saved = append(l.saved, e)
	l.saved = l.saved[max(0, len(l.saved)-8):]
	return true
}

// about returns what is remembered of a claim, or of all of its id and key.
func (l *modelLock) about(who identity) []modelEnd {
	var found []modelEnd
	for _, e := range l.ended {
		if e.who.ID == who.ID && e.who.Key == who.Key && (e.who.LockedBy == who.LockedBy || e.who.LockedBy == "" || who.LockedBy == "") {
			found = append(found, e)
		}
	}
	return found
}

func (m *model) forget(l *modelLock, c modelClaim) {
	if c.who.ID == "" || c.ticket != (ticket{}) {
		return
	}
	l.ended = slices.DeleteFunc(l.ended, func(e modelEnd) bool {
		if e.who == c.who {
			m.forgotten(e)
		}
		return e.who == c.who
	})
	l.saved = slices.DeleteFunc(l.saved, func(e modelEnd) bool { return e.who == c.who })
}

func (l *modelLock) room(c modelClaim) bool {
	for _, h := range append(slices.Clone(l.holders), c) {
		if h.slots > 0 && len(l.holders) >= h.slots {
			return false
		}
	}
	for _, h := range l.holders {
		if h.who.Key != c.who.Key || h.who.LockedBy == c.who.LockedBy {
			return false
		}
	}
	return true
}

func (m *model) moveUp(l *modelLock, now time.Time, asking inFlight) {
	for len(l.queue) > 0 {
		w := l.queue[0]
		if there, _ := asking(w.number); !there && !w.here || !l.room(w) {
			return
		}
		l.queue = l.queue[1:]
		m.grant(l, w, now)
	}
}

func (m *model) grant(l *modelLock, c modelClaim, now time.Time) uint64 {
	m.revision++
	l.revision = m.revision
	c.number, c.expires = m.revision, time.Time{}
	if c.ttl > 0 {
		c.expires = now.Add(c.ttl)
	}
	taken := map[int]bool{}
	for _, h := range l.holders {
		taken[h.slot] = true
	}
	for c.slot = 1; taken[c.slot]; c.slot++ {
	}
	l.holders = append(l.holders, c)
	return c.number
}

func (m *model) take(name string, c modelClaim, wait bool, now time.Time, asking inFlight) outcome {
	l := m.lock(name)
	if c.ticket != (ticket{}) {
		for _, e := range l.about(c.who) {
			if !earlier(e.ticket, c.ticket) {
				if slices.Contains([]how{endExpired, endForced, endFreed}, e.how) {
					return outcome{verdict: oldTicket, how: e.how, at: e.at}
				}
				return outcome{verdict: tooLate}
			}
		}
		if earlier(m.given, c.ticket) {
			return outcome{verdict: oldTicket}
		}
	}
	for i, h := range l.holders {
		if c.who.ID != "" && h.who == c.who {
			if c.ttl > 0 || earlier(h.ticket, c.ticket) {
				m.revision++
			}
			if c.ttl > 0 {
				l.holders[i].expires = now.Add(c.ttl)
			}
			l.holders[i].ticket = later(h.ticket, c.ticket)
			return outcome{verdict: repeated, token: h.number}
		}
	}
	for i, w := range l.queue {
		if c.who.ID != "" && w.who == c.who {
			if w.ttl != c.ttl || w.link != c.link || w.slots != c.slots || earlier(w.ticket, c.ticket) {
				m.revision++
			}
			l.queue[i].ticket = later(w.ticket, c.ticket)
			here := wait || w.here
			l.queue[i].ttl, l.queue[i].link, l.queue[i].here = c.ttl, c.link, true
			l.queue[i].slots = c.slots
			m.moveUp(l, now, asking)
			for _, h := range l.holders {
				if h.who == c.who {
					return outcome{verdict: granted, token: h.number, waiter: w.number}
				}
			}
			for i := range l.queue {
				if l.queue[i].who == c.who {
					l.queue[i].here = here
				}
			}
			return outcome{verdict: queued, waiter: w.number}
		}
	}
	if c.ticket != (ticket{}) && earlier(c.ticket, m.horizon) {
		return outcome{verdict: oldTicket}
	}
	if len(l.queue) == 0 && l.room(c) {
		m.forget(l, c)
		return outcome{verdict: granted, token: m.grant(l, c, now)}
	}
	if !wait {
		return outcome{verdict: refused}
	}
	m.forget(l, c)
	m.revision++
	c.number, c.here = m.revision, true
	l.queue = append(l.queue, c)
	return outcome{verdict: queued, waiter: c.number}
}

func (m *model) release(name string, r release, now time.Time, asking inFlight) outcome {
	if earlier(m.given, r.ticket) {
		return outcome{verdict: oldTicket}
	}
	l := m.lock(name)
	before := m.revision
	o := m.giveUp(l, r, now, asking)
	how := leftNothing
	switch o.verdict {
	case released:
		how = endReleased
	case wrongKey:
		how = leftRefused
	}
	if l.end(r.identity, how, r.ticket, now) && m.revision == before {
		m.revision++
	}
	return o
}

func (m *model) giveUp(l *modelLock, r release, now time.Time, asking inFlight) outcome {
	who := r.identity
	if who.LockedBy == "" {
		who.LockedBy = r.Key
		for _, c := range slices.Concat(l.holders, l.queue) {
			if r.ID != "" && c.who.Key == r.Key && c.who.ID == r.ID {
				who = c.who
				break
			}
		}
	}
	say := func(v verdict) outcome { return outcome{verdict: v, name: who.LockedBy} }
	newer := func(c modelClaim) bool { return r.ticket != (ticket{}) && earlier(r.ticket, c.ticket) }
	isID := func(c modelClaim) bool { return who.ID != "" && c.who == who }
	if i := slices.IndexFunc(l.holders, isID); i >= 0 {
		if newer(l.holders[i]) {
			return say(laterRun)
		}
		m.free(l, who, endReleased, now)
		m.moveUp(l, now, asking)
		return say(released)
	}
	if i := slices.IndexFunc(l.queue, isID); i >= 0 {
		if newer(l.queue[i]) {
			return say(laterRun)
		}
		m.unqueue(l, l.queue[i].number, endWithdrawn, now)
		m.moveUp(l, now, asking)
		return say(withdrew)
	}
	if r.ID != "" {
		var trace, real *modelEnd
		for _, e := range l.about(r.identity) {
			switch e.how {
			case leftRefused:
			case leftNothing:
				trace = &e
			default:
				real = &e
			}
		}
		if e := cmp.Or(real, trace); e != nil {
			return outcome{verdict: alreadyEnded, name: who.LockedBy, how: e.how, at: e.at}
		}
	}
	if r.own {
		return say(neverTaken)
	}
	if len(l.holders) == 0 {
		return say(wasFree)
	}
	if l.holders[0].who.Key != r.Key {
		return say(wrongKey)
	}
	for _, h := range l.holders {
		if h.who.LockedBy == who.LockedBy {
			if newer(h) || r.ticket != (ticket{}) && h.number > r.ticket.Revision {
				return say(laterRun)
			}
			m.free(l, h.who, endFreed, now)
			m.moveUp(l, now, asking)
			return say(released)
		}
	}
	return say(noSuchHolder)
}

func (m *model) force(name, lockedBy string, now time.Time, asking inFlight) outcome {
	l := m.lock(name)
	freed := ""
	for _, h := range slices.Clone(l.holders) {
		if lockedBy == "" || h.who.LockedBy == lockedBy {
			m.free(l, h.who, endForced, now)
			freed += ", " + h.who.LockedBy
		}
	}
	if freed != "" {
		m.moveUp(l, now, asking)
		return outcome{verdict: forced, name: freed[2:]}
	}
	if lockedBy != "" {
		return outcome{verdict: noSuchHolder}
	}
	return outcome{verdict: wasFree}
}

// op is a random request, for the rules and for the model.
type op struct {
	what      string
	lock      string
	who       identity
	wait, own bool
	ttl       time.Duration
	link      string
	ticket    ticket
	slots     int
}

// randomOp returns a request of some run, which may be late or sent again: its
// ticket is any of those that were given out, or none.
func randomOp(r *rand.Rand, tickets []ticket) op {
	one := func(of ...string) string { return of[r.IntN(len(of))] }
	o := op{
		what: one("take", "take", "take", "release", "release", "force"),
		lock: one("a", "b", "c"),
		who:  identity{one("k", "k", "other"), one("x", "y", "z"), one("", "1", "2", "3")},
		wait: r.IntN(3) > 0, own: r.IntN(4) == 0, link: one("", "", "https://ci.example/1"),
	}
	if r.IntN(4) == 0 {
		o.ttl = time.Duration(1+r.IntN(30)) * time.Second
	}
	if r.IntN(2) == 0 {
		o.slots = 1 + r.IntN(3)
	}
	if o.what == "force" && r.IntN(3) == 0 || o.what == "release" && r.IntN(6) == 0 {
		o.who.LockedBy = ""
	}
	if o.who.ID != "" && r.IntN(3) > 0 {
		o.ticket = tickets[r.IntN(len(tickets))]
	}
	return o
}

func (o op) apply(d *draft) outcome {
	switch o.what {
	case "take":
		return d.take(o.lock, claim{o.who, resource.Duration(o.ttl), o.link, o.slots, "", o.ticket}, o.wait)
	case "release":
		return d.release(o.lock, release{o.who, o.own, o.ticket})
	}
	return d.force(o.lock, force{lockedBy: o.who.LockedBy})
}

func (o op) model(m *model, now time.Time, asking inFlight) outcome {
	switch o.what {
	case "take":
		return m.take(o.lock, modelClaim{who: o.who, ttl: o.ttl, link: o.link, ticket: o.ticket, slots: o.slots}, o.wait, now, asking)
	case "release":
		return m.release(o.lock, release{o.who, o.own, o.ticket}, now, asking)
	}
	return m.force(o.lock, o.who.LockedBy, now, asking)
}

// dump lists all that matters of a state, in the words that model.dump uses.
// What is remembered as ended shows in the verdicts.
func dump(s *state) []string {
	lines := []string{fmt.Sprint("revision ", s.revision)}
	for l := range s.all() {
		if l.free() && len(l.Waiters) == 0 {
			continue
		}
		line := fmt.Sprintf("%s %d:", l.name, l.Revision)
		for _, h := range l.Holders {
			line += fmt.Sprint(" ", identity{l.Key, h.LockedBy, h.ID}, h.Token, h.Link, h.Expires.Unix(), h.Ticket, h.Slot, h.Slots)
		}
		for _, w := range l.Waiters {
			line += fmt.Sprint(" then ", w.identity, w.Revision, w.Link, time.Duration(w.TTL), w.Ticket, w.Slots)
		}
		lines = append(lines, line)
	}
	return lines
}

func (m *model) dump() []string {
	lines := []string{fmt.Sprint("revision ", m.revision)}
	for _, name := range slices.Sorted(maps.Keys(m.locks)) {
		l := m.locks[name]
		if len(l.holders) == 0 && len(l.queue) == 0 {
			continue
		}
		line := fmt.Sprintf("%s %d:", name, l.revision)
		for _, h := range l.holders {
			line += fmt.Sprint(" ", h.who, h.number, h.link, h.expires.Unix(), h.ticket, h.slot, h.slots)
		}
		for _, w := range l.queue {
			line += fmt.Sprint(" then ", w.who, w.number, w.link, w.ttl, w.ticket, w.slots)
		}
		lines = append(lines, line)
	}
	return lines
}
