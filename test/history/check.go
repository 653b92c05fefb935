package history

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// This file is a checker of histories: what clients asked, when, and what they
// were answered goes in; what a correct locker cannot have done comes out. It
// is pure, and it never accuses a correct locker: where an answer is missing,
// whatever may have happened is taken to have happened. It relies on what the
// rules promise only while fewer than 1,000 locks are used, and while who shares
// a key and a name with others sends tickets.

const forever = time.Duration(math.MaxInt64)

// verdict is what an answer says that became of a request.
type verdict string

const (
	granted  verdict = "granted"
	repeated verdict = "repeat" // granted before, to the same claim
	queued   verdict = "queued"
	refused  verdict = "refused" // and not queued
	released verdict = "released"
	withdrew verdict = "withdrew" // it took a queued claim back
	nothing  verdict = "nothing"  // a release that found nothing to release
	looked   verdict = "looked"   // a request that only shows the lock
)

// identity is what makes two requests those of one claim; without an id, each
// is a claim of its own.
type identity struct{ Key, LockedBy, ID string }

// asked is one request as its client saw it. The times are of one monotonic
// clock.
type asked struct {
	identity
	lock, what  string // what is take, release, force or look
	ticket      string // of the run; empty: none
	tooOld      bool   // it must fetch another
	expired     bool   // the hold ended by its ttl before this
	own         bool
	ttl         time.Duration // of a take; 0: none
	ifMatch     uint64        // of a force: the revision that it is for; 0: any
	sent, ended time.Duration
	verdict     verdict // empty: no answer, or one that leaves open what happened
	token       uint64
	position    int
	shown       *view // nil: the answer had no lock
}

// view is a lock as an answer showed it.
type view struct {
	key      string
	revision uint64
	holders  []held
	waiters  []identity // without their ids
}

type held struct {
	lockedBy string
	token    uint64
}

// history is what all clients asked, and when each process of the locker had
// ended.
type history struct {
	asked  []asked
	deaths []time.Duration // ascending
	halts  []halt
}

// halt is a time in which the locker's process was stopped.
type halt struct{ from, to time.Duration }

// story is what was asked about one lock, in the order in which it was sent.
type story struct {
	name     string
	takes    map[identity][]*asked
	releases map[identity][]*asked
	claims   map[identity]int      // how many there were of a key and name
	wild     map[identity][]*asked // by key and name: releases that may free the hold of another id
	forces   []*asked
	views    []*asked
	tenures  []*tenure // by token
}

// tenure is one hold, from its grant to its end.
type tenure struct {
	token    uint64
	who      identity
	certain  bool          // an answer said whose it is; else its id is not known
	earliest time.Duration // when its grant was first asked for; 0 when that is not known
	known    time.Duration // it was granted before this
	seen     time.Duration // it was still held at some time after this
	free     time.Duration // when something was sent that may have ended it
	gone     time.Duration // it was released before this
}

// until returns when the tenure surely still was.
func (t *tenure) until() time.Duration { return max(t.free, t.seen) }

func (t *tenure) String() string {
	return fmt.Sprintf("token %d of %s/%s/%s", t.token, t.who.Key, t.who.LockedBy, t.who.ID)
}

// checker is one check of a history.
type checker struct {
	*history
	stories map[string]*story
	tokens  map[uint64]*tenure
	where   map[uint64]string // a token's lock
	found   []string
	weighed Weight
}

// Weight is what the findings of a check rest on.
type Weight struct {
	Holds    int // that were answered for
	Survived int // of them, over the end of a process
	Stays    int // in the queue, unbroken until the grant
	Resumed  int // of them, over the end of a process
}

// check returns what a correct locker cannot have done.
func (h *history) check() ([]string, Weight) {
	c := &checker{history: h, stories: map[string]*story{}, tokens: map[uint64]*tenure{}, where: map[uint64]string{}}
	c.tell()
	for _, name := range slices.Sorted(maps.Keys(c.stories)) {
		s := c.stories[name]
		c.findTenures(s)
		c.findEnds(s)
		c.checkHeldAlone(s)
		c.checkNothingLost(s)
		c.checkRevisions(s)
		c.checkNobodyPassed(s)
	}
	c.checkTokensGrow()
	return c.found, c.weighed
}

// outlived reports whether a process ended between the two times.
func (h *history) outlived(from, to time.Duration) bool {
	i, _ := slices.BinarySearch(h.deaths, from)
	return i < len(h.deaths) && h.deaths[i] < to
}

func (c *checker) accuse(s *story, format string, args ...any) {
	c.found = append(c.found, "lock "+s.name+": "+fmt.Sprintf(format, args...))
}

// nameless returns who without the id.
func nameless(who identity) identity { return identity{Key: who.Key, LockedBy: who.LockedBy} }

// tell sorts what was asked into stories.
func (c *checker) tell() {
	slices.SortStableFunc(c.asked, func(a, b asked) int { return cmp.Compare(a.sent, b.sent) })
	for i := range c.asked {
		a := &c.asked[i]
		s := c.stories[a.lock]
		if s == nil {
			s = &story{name: a.lock, takes: map[identity][]*asked{}, releases: map[identity][]*asked{}, claims: map[identity]int{}, wild: map[identity][]*asked{}}
			c.stories[a.lock] = s
		}
		switch {
		case a.what == "take":
			if a.ID == "" || len(s.takes[a.identity]) == 0 {
				s.claims[nameless(a.identity)]++
			}
			s.takes[a.identity] = append(s.takes[a.identity], a)
		case a.what == "release":
			s.releases[a.identity] = append(s.releases[a.identity], a)
		case a.what == "force":
			s.forces = append(s.forces, a)
		}
		if a.shown != nil {
			s.views = append(s.views, a)
		}
	}
	for _, s := range c.stories {
		s.findWild()
	}
}

// findWild finds the releases that may free a hold of another id: not those
// that must not, nor those whose id the locker knew when they were sent, for
// that id then held, waited or was remembered as ended.
func (s *story) findWild() {
	for who, releases := range s.releases {
		met := forever
		for _, a := range slices.Concat(s.takes[who], releases) {
			if slices.Contains([]verdict{granted, repeated, queued, released, withdrew}, a.verdict) {
				met = min(met, a.ended)
			}
		}
		for _, r := range releases {
			if !r.own && r.mayFree() && (who.ID == "" || r.sent < met) {
				s.wild[nameless(who)] = append(s.wild[nameless(who)], r)
			}
		}
	}
}

func (a *asked) mayFree() bool { return a.verdict == released || a.verdict == "" }

// latest returns when a request can have had its effect at the latest: an
// unanswered one is forgotten with the process that it was sent to.
func (c *checker) latest(a *asked) time.Duration {
	if a.verdict != "" {
		return a.ended
	}
	if i, _ := slices.BinarySearch(c.deaths, a.ended); i < len(c.deaths) {
		return c.deaths[i]
	}
	return forever
}

// findTenures finds the holds of a lock: those that were answered for, and
// those that were only seen. A token is one claim's.
func (c *checker) findTenures(s *story) {
	for who, takes := range s.takes {
		for _, a := range takes {
			if a.verdict != granted && a.verdict != repeated {
				continue
			}
			if who.ID == "" && (a.verdict == repeated || c.tokens[a.token] != nil) {
				c.accuse(s, "token %d was granted again, to a claim without id", a.token)
			}
			t := c.tenure(s, a.token, who, a)
			t.certain, t.earliest = true, takes[0].sent
			if who.ID == "" {
				t.earliest = a.sent
			}
		}
	}
	for _, a := range s.views {
		for _, h := range a.shown.holders {
			c.tenure(s, h.token, identity{a.shown.key, h.lockedBy, ""}, a)
		}
	}
	slices.SortFunc(s.tenures, func(a, b *tenure) int { return cmp.Compare(a.token, b.token) })
}

// tenure returns the hold of that token, of which a tells.
func (c *checker) tenure(s *story, token uint64, who identity, a *asked) *tenure {
	t := c.tokens[token]
	if t == nil {
		t = &tenure{token: token, who: who, known: a.ended, seen: a.sent, free: forever, gone: forever}
		c.tokens[token], c.where[token] = t, s.name
		s.tenures = append(s.tenures, t)
	}
	if c.where[token] != s.name || nameless(t.who) != nameless(who) || who.ID != "" && t.who.ID != who.ID || token == 0 {
		c.accuse(s, "%v, of lock %s, is also that of %s/%s/%s", t, c.where[token], who.Key, who.LockedBy, who.ID)
	}
	t.known, t.seen = min(t.known, a.ended), max(t.seen, a.sent)
	return t
}

// findEnds finds when each hold may have ended, and when it surely had.
func (c *checker) findEnds(s *story) {
	for _, t := range s.tenures {
		c.weigh(t)
		for _, r := range s.releasesOf(t) {
			same := t.certain && r.ID == t.who.ID
			if r.mayFree() && c.latest(r) > max(t.earliest, t.seen) {
				t.free = min(t.free, r.sent)
			}
			if (same || r.ID == "") && r.sent >= t.known && (r.verdict == released || r.verdict == nothing) {
				t.gone = min(t.gone, r.ended)
			}
		}
		c.findForced(s, t)
		t.free = min(t.free, s.expires(t))
		if !t.certain {
			t.free = min(t.free, c.givenBack(s, t))
		}
	}
}

// findForced finds when a hold may have been ended by force, and when it surely was.
func (c *checker) findForced(s *story, t *tenure) {
	for _, f := range s.forces {
		if f.LockedBy != "" && f.LockedBy != t.who.LockedBy || f.ifMatch > 0 && t.token > f.ifMatch {
			continue
		}
		if f.mayFree() && c.latest(f) > max(t.earliest, t.seen) {
			t.free = min(t.free, f.sent)
		}
		if f.sent >= t.known && (f.verdict == released || f.verdict == nothing) {
			t.gone = min(t.gone, f.ended)
		}
	}
}

// expires returns when a hold may have expired. Each take that was answered began
// its ttl anew.
func (s *story) expires(t *tenure) time.Duration {
	soonest, answered := forever, time.Duration(0)
	for who, takes := range s.takes {
		for _, a := range takes {
			switch {
			case nameless(who) != nameless(t.who) || t.certain && who != t.who || a.ttl == 0:
			case a.token == t.token && (a.verdict == granted || a.verdict == repeated):
				answered = max(answered, a.sent+a.ttl)
			default:
				soonest = min(soonest, a.sent+a.ttl)
			}
		}
	}
	if answered > 0 {
		return answered
	}
	return soonest
}

func (c *checker) weigh(t *tenure) {
	if !t.certain {
		return
	}
	c.weighed.Holds++
	if c.outlived(t.known, t.seen) {
		c.weighed.Survived++
	}
}

// givenBack returns when a hold of which nobody was told may have been given
// back: when a request without id was sent that was not answered.
func (c *checker) givenBack(s *story, t *tenure) time.Duration {
	for _, a := range s.takes[t.who] {
		if a.verdict == "" && c.latest(a) > t.seen {
			return a.sent
		}
	}
	return forever
}

// releasesOf returns the releases that can have had to do with a hold.
func (s *story) releasesOf(t *tenure) []*asked {
	if t.certain {
		return slices.Concat(s.releases[t.who], s.wild[nameless(t.who)], s.releases[nameless(t.who)])
	}
	var all []*asked
	for who, releases := range s.releases {
		if nameless(who) == t.who {
			all = append(all, releases...)
		}
	}
	return all
}

// checkHeldAlone wants holds that surely were at one time to have one key, and
// a name each.
func (c *checker) checkHeldAlone(s *story) {
	var now []*tenure
	for _, t := range slices.SortedFunc(slices.Values(s.tenures), byKnown) {
		now = slices.DeleteFunc(now, func(o *tenure) bool { return o.until() <= t.known })
		if t.until() <= t.known {
			continue
		}
		for _, o := range now {
			if o.who.Key != t.who.Key || o.who.LockedBy == t.who.LockedBy {
				c.accuse(s, "held twice: %v, and %v, at %v", o, t, t.known)
			}
		}
		now = append(now, t)
	}
}

func byKnown(a, b *tenure) int { return cmp.Compare(a.known, b.known) }

// checkNothingLost wants each hold to be found while it surely is, and not when
// it was released.
func (c *checker) checkNothingLost(s *story) {
	later := slices.SortedFunc(slices.Values(s.tenures), byKnown)
	var now []*tenure
	for _, a := range s.views {
		for len(later) > 0 && later[0].known <= a.sent {
			now, later = append(now, later[0]), later[1:]
		}
		now = slices.DeleteFunc(now, func(t *tenure) bool { return t.until() < a.sent })
		for _, t := range now {
			if a.ended <= t.until() && !slices.Contains(a.shown.holders, held{t.who.LockedBy, t.token}) {
				c.accuse(s, "lost: %v, known at %v, is not shown at %v", t, t.known, a.ended)
			}
		}
	}
	for _, t := range s.tenures {
		if t.seen >= t.gone {
			c.accuse(s, "lost: the release of %v, answered at %v: it is held at %v", t, t.gone, t.seen)
		}
		c.checkRepeats(s, t)
	}
}

// checkRepeats wants the claim that surely holds the lock to be told so.
func (c *checker) checkRepeats(s *story, t *tenure) {
	if !t.certain || t.who.ID == "" {
		return
	}
	for _, a := range s.takes[t.who] {
		if a.sent >= t.known && a.ended <= t.until() && a.verdict != "" && (a.verdict != repeated || a.token != t.token) {
			c.accuse(s, "lost: %v, known at %v, is %s with token %d at %v", t, t.known, a.verdict, a.token, a.ended)
		}
	}
}

// checkRevisions wants a lock never to be an older one again, and each of its
// revisions to be one thing.
func (c *checker) checkRevisions(s *story) {
	var newest uint64
	answered := slices.SortedFunc(slices.Values(s.views), func(a, b *asked) int { return cmp.Compare(a.ended, b.ended) })
	of := map[uint64]*view{}
	for _, a := range s.views {
		for ; len(answered) > 0 && answered[0].ended <= a.sent; answered = answered[1:] {
			newest = max(newest, answered[0].shown.revision)
		}
		v := a.shown
		if v.revision < newest {
			c.accuse(s, "lost: revision %d, at %v it is %d", newest, a.ended, v.revision)
		}
		if o := of[v.revision]; o != nil && (o.key != v.key || !slices.Equal(o.holders, v.holders)) {
			c.accuse(s, "revision %d is %v and %v", v.revision, *o, *v)
		}
		of[v.revision] = v
		if !slices.IsSortedFunc(v.holders, func(a, b held) int { return cmp.Compare(a.token, b.token) }) {
			c.accuse(s, "the holders %v are not in the order of their grants", v.holders)
		}
	}
}

// checkTokensGrow wants what was granted before something was asked for to have
// the smaller token.
func (c *checker) checkTokensGrow() {
	first := &tenure{known: forever} // granted first of those with larger tokens
	for _, token := range slices.Backward(slices.Sorted(maps.Keys(c.tokens))) {
		t := c.tokens[token]
		if t.certain && first.known <= t.earliest {
			c.found = append(c.found, fmt.Sprintf("tokens: %v was granted before %v, %v was asked for at %v", first, first.known, t, t.earliest))
		}
		if t.known < first.known {
			first = t
		}
	}
}
