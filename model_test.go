package main

import (
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
}

type modelLock struct {
	revision uint64
	holders  []modelClaim
	queue    []modelClaim
	ended    map[identity]time.Time
}

type modelClaim struct {
	who     identity
	link    string
	ttl     time.Duration
	number  uint64    // token of a holder, revision of a waiter
	expires time.Time // zero: never
	here    bool      // a waiter's request is in this batch
}

func newModel() *model { return &model{locks: map[string]*modelLock{}} }

func (m *model) clone() *model {
	c := &model{m.revision, map[string]*modelLock{}}
	for name, l := range m.locks {
		c.locks[name] = &modelLock{l.revision, slices.Clone(l.holders), slices.Clone(l.queue), maps.Clone(l.ended)}
		for i := range c.locks[name].queue {
			c.locks[name].queue[i].here = false
		}
	}
	return c
}

func (m *model) lock(name string) *modelLock {
	if m.locks[name] == nil {
		m.locks[name] = &modelLock{ended: map[identity]time.Time{}}
	}
	return m.locks[name]
}

type inFlight func(uint64) (bool, time.Duration)

func (m *model) tend(now time.Time, asking inFlight) {
	for _, name := range slices.Sorted(maps.Keys(m.locks)) {
		l := m.locks[name]
		for _, h := range slices.Clone(l.holders) {
			if !h.expires.IsZero() && !h.expires.After(now) {
				m.free(l, h.who, now)
				m.moveUp(l, now, asking)
			}
		}
		for _, w := range slices.Clone(l.queue) {
			if there, away := asking(w.number); !there && (w.who.ID == "" || away >= 15*time.Second) {
				m.unqueue(l, w.number, now)
			}
		}
		m.moveUp(l, now, asking)
	}
}

func (m *model) free(l *modelLock, who identity, now time.Time) {
	m.revision++
	l.revision = m.revision
	l.holders = slices.DeleteFunc(l.holders, func(h modelClaim) bool { return h.who == who })
	l.end(who, now)
}

func (m *model) unqueue(l *modelLock, number uint64, now time.Time) {
	m.revision++
	l.queue = slices.DeleteFunc(l.queue, func(w modelClaim) bool {
		if w.number == number {
			l.end(w.who, now)
		}
		return w.number == number
	})
}

func (l *modelLock) end(who identity, now time.Time) {
	if who.ID != "" {
		l.ended[who] = now
	}
}

func (l *modelLock) room(who identity) bool {
	for _, h := range l.holders {
		if h.who.Key != who.Key || h.who.LockedBy == who.LockedBy {
			return false
		}
	}
	return true
}

func (m *model) moveUp(l *modelLock, now time.Time, asking inFlight) {
	for len(l.queue) > 0 {
		w := l.queue[0]
		if there, _ := asking(w.number); !there && !w.here || !l.room(w.who) {
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
	l.holders = append(l.holders, c)
	return c.number
}

func (m *model) take(name string, c modelClaim, wait bool, now time.Time, asking inFlight) outcome {
	l := m.lock(name)
	for i, h := range l.holders {
		if c.who.ID != "" && h.who == c.who {
			if c.ttl > 0 {
				m.revision++
				l.holders[i].expires = now.Add(c.ttl)
			}
			return outcome{verdict: repeated, token: h.number}
		}
	}
	for i, w := range l.queue {
		if c.who.ID != "" && w.who == c.who {
			if w.ttl != c.ttl || w.link != c.link {
				m.revision++
			}
			here := wait || w.here
			l.queue[i].ttl, l.queue[i].link, l.queue[i].here = c.ttl, c.link, true
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
	if len(l.queue) == 0 && l.room(c.who) {
		delete(l.ended, c.who)
		return outcome{verdict: granted, token: m.grant(l, c, now)}
	}
	if !wait {
		return outcome{verdict: refused}
	}
	delete(l.ended, c.who)
	m.revision++
	c.number, c.here = m.revision, true
	l.queue = append(l.queue, c)
	return outcome{verdict: queued, waiter: c.number}
}

func (m *model) release(name string, who identity, own bool, now time.Time, asking inFlight) outcome {
	l := m.lock(name)
	isID := func(c modelClaim) bool { return who.ID != "" && c.who == who }
	if slices.ContainsFunc(l.holders, isID) {
		m.free(l, who, now)
		m.moveUp(l, now, asking)
		return outcome{verdict: released}
	}
	if i := slices.IndexFunc(l.queue, isID); i >= 0 {
		m.unqueue(l, l.queue[i].number, now)
		m.moveUp(l, now, asking)
		return outcome{verdict: withdrew}
	}
	if at, ok := l.ended[who]; ok && now.Sub(at) < time.Hour {
		return outcome{verdict: alreadyEnded}
	}
	if own {
		if who.ID != "" {
			m.revision++
		}
		l.end(who, now)
		return outcome{verdict: neverTaken}
	}
	if len(l.holders) == 0 {
		return outcome{verdict: wasFree}
	}
	if l.holders[0].who.Key != who.Key {
		return outcome{verdict: wrongKey}
	}
	for _, h := range l.holders {
		if h.who.LockedBy == who.LockedBy {
			if who.ID != "" {
				m.revision++
			}
			l.end(who, now)
			m.free(l, h.who, now)
			m.moveUp(l, now, asking)
			return outcome{verdict: released}
		}
	}
	return outcome{verdict: noSuchHolder}
}

func (m *model) force(name, lockedBy string, now time.Time, asking inFlight) outcome {
	l := m.lock(name)
	freed := false
	for _, h := range slices.Clone(l.holders) {
		if lockedBy == "" || h.who.LockedBy == lockedBy {
			m.free(l, h.who, now)
			freed = true
		}
	}
	if freed {
		m.moveUp(l, now, asking)
		return outcome{verdict: forced}
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
}

func randomOp(r *rand.Rand) op {
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
	if o.what == "force" && r.IntN(3) == 0 {
		o.who.LockedBy = ""
	}
	return o
}

func (o op) apply(d *draft) outcome {
	switch o.what {
	case "take":
		return d.take(o.lock, claim{o.who, resource.Duration(o.ttl), o.link}, o.wait)
	case "release":
		return d.release(o.lock, o.who, o.own)
	}
	return d.force(o.lock, o.who.LockedBy, nil, "", "")
}

func (o op) model(m *model, now time.Time, asking inFlight) outcome {
	switch o.what {
	case "take":
		return m.take(o.lock, modelClaim{who: o.who, ttl: o.ttl, link: o.link}, o.wait, now, asking)
	case "release":
		return m.release(o.lock, o.who, o.own, now, asking)
	}
	return m.force(o.lock, o.who.LockedBy, now, asking)
}

// dump lists all that matters of a state, in the words that model.dump uses.
// What is remembered as ended shows in the verdicts.
func dump(s *state) []string {
	lines := []string{fmt.Sprint("revision ", s.revision)}
	for _, l := range s.locks {
		if l.free() && len(l.Waiters) == 0 {
			continue
		}
		line := fmt.Sprintf("%s %d:", l.name, l.Revision)
		for _, h := range l.Holders {
			line += fmt.Sprint(" ", identity{l.Key, h.LockedBy, h.ID}, h.Token, h.Link, h.Expires.Unix())
		}
		for _, w := range l.Waiters {
			line += fmt.Sprint(" then ", w.identity, w.Revision, w.Link, time.Duration(w.TTL))
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
			line += fmt.Sprint(" ", h.who, h.number, h.link, h.expires.Unix())
		}
		for _, w := range l.queue {
			line += fmt.Sprint(" then ", w.who, w.number, w.link, w.ttl)
		}
		lines = append(lines, line)
	}
	return lines
}
