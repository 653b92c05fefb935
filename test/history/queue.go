package history

import (
	"cmp"
	"slices"
	"time"
)

// This file is the part of the checker of histories that knows the queue.

// placePromised is how long an absent claim keeps its place, as the
// specification has it.
const placePromised = 15 * time.Second

// stay is a time in the queue in which a claim surely kept its place.
type stay struct {
	who      identity
	since    time.Duration // it was queued before this
	until    time.Duration // and still at some time after this
	renewed  time.Duration // its last renewal was after this
	answered time.Duration // when the last request that tells of it was
	position int           // 0: not known
	token    uint64        // of the grant that it came to; 0: none
}

// checkNobodyPassed wants nobody who asked after a claim was queued to be
// granted the lock before that claim is.
func (c *checker) checkNobodyPassed(s *story) {
	stays := c.stays(s)
	var after *tenure
	asked := slices.DeleteFunc(slices.Clone(s.tenures), func(t *tenure) bool { return !t.certain })
	slices.SortFunc(asked, func(a, b *tenure) int { return cmp.Compare(b.earliest, a.earliest) })
	slices.SortFunc(stays, func(a, b *stay) int { return cmp.Compare(b.since, a.since) })
	soonest := forever // when one of those asked for later was granted
	for _, w := range stays {
		for ; len(asked) > 0 && asked[0].earliest >= w.since; asked = asked[1:] {
			soonest = min(soonest, asked[0].known)
			if after == nil || asked[0].token < after.token {
				after = asked[0]
			}
		}
		if after != nil && after.token < w.token {
			c.accuse(s, "passed: %s/%s/%s, queued at %v and granted token %d, by %v, asked for at %v", w.who.Key, w.who.LockedBy, w.who.ID, w.since, w.token, after, after.earliest)
		}
		if soonest <= w.until {
			c.accuse(s, "passed: %s/%s/%s, queued from %v to %v, by one that was granted at %v", w.who.Key, w.who.LockedBy, w.who.ID, w.since, w.until, soonest)
		}
	}
}

// stays returns the unbroken stays of all claims in the queue.
func (c *checker) stays(s *story) []*stay {
	shown := s.queuedViews()
	var all []*stay
	for who, takes := range s.takes {
		if who.ID != "" {
			all = append(all, c.staysOf(s, takes, shown[nameless(who)])...)
			continue
		}
		for _, a := range takes {
			all = append(all, c.staysOf(s, []*asked{a}, shown[nameless(who)])...)
		}
	}
	return all
}

// queuedViews returns, for each key and name that only one claim ever had, when
// it first was shown in the queue.
func (s *story) queuedViews() map[identity]time.Duration {
	first := map[identity]time.Duration{}
	for _, a := range s.views {
		for _, who := range a.shown.waiters {
			if at, ok := first[who]; s.claims[who] == 1 && (!ok || a.ended < at) {
				first[who] = a.ended
			}
		}
	}
	return first
}

// staysOf returns the stays in the queue of the claim that sent these requests;
// shown is when it was first shown there, if it was.
func (c *checker) staysOf(s *story, takes []*asked, shown time.Duration) []*stay {
	var all []*stay
	var w *stay
	who, left, unheard := takes[0].identity, forever, forever
	if releases := s.releases[who]; who.ID != "" && len(releases) > 0 {
		left = releases[0].sent
	}
	for _, a := range takes {
		if a.verdict == "" {
			unheard = min(unheard, a.sent)
		}
		if a.verdict == "" || a.ended >= left {
			continue
		}
		if len(all) == 0 && w == nil && shown > 0 && shown < a.ended {
			w = &stay{who: who, since: shown, renewed: takes[0].sent}
			all = append(all, w)
		}
		if w != nil && (c.awake(w.renewed, a.ended) >= placePromised || a.sent < w.answered || c.mayHaveHeld(s, a, unheard)) {
			w = nil
		}
		if w == nil && a.verdict == queued {
			w = &stay{who: who, since: a.ended}
			all = append(all, w)
		}
		if w != nil {
			w = c.goOn(s, w, a)
		}
	}
	return all
}

// awake returns how much of a time the locker could take requests in: only that
// counts for the place of a claim that is away.
func (c *checker) awake(from, to time.Duration) time.Duration {
	length := to - from
	for _, h := range c.halts {
		length -= max(min(h.to, to)-max(h.from, from), 0)
	}
	return length
}

// mayHaveHeld reports whether a claim may have got the lock by a request that was not
// answered, sent at the earliest at that time, and have lost it by its ttl or by force
// before a was answered: then its place is a new one.
func (c *checker) mayHaveHeld(s *story, a *asked, unheard time.Duration) bool {
	if unheard >= a.ended {
		return false
	}
	forced := func(f *asked) bool { return f.mayFree() && f.sent < a.ended && c.latest(f) > unheard }
	return a.ttl > 0 && a.ended-unheard >= a.ttl || slices.ContainsFunc(s.forces, forced)
}

// goOn goes on with a stay by its next answered request, which came in time. It
// returns nil when it is over.
func (c *checker) goOn(s *story, w *stay, a *asked) *stay {
	switch a.verdict {
	case granted, repeated:
		w.token = a.token
		c.weighed.Stays++
		if c.outlived(w.since, a.sent) {
			c.weighed.Resumed++
		}
		return nil
	case refused:
		if w.who.ID != "" {
			c.accuse(s, "lost: the place of %s/%s/%s, queued at %v, at %v", w.who.Key, w.who.LockedBy, w.who.ID, w.since, a.ended)
		}
		return nil
	}
	if w.position > 0 && a.position > w.position {
		c.accuse(s, "passed: %s/%s/%s fell from position %d to %d at %v", w.who.Key, w.who.LockedBy, w.who.ID, w.position, a.position, a.ended)
	}
	w.until, w.renewed, w.answered, w.position = a.sent, a.sent, a.ended, a.position
	return w
}
