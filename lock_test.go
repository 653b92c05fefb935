package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// bench is a state and the world around it: the time, and which requests are
// in flight. Each call is a batch of its own.
type bench struct {
	t     testing.TB
	s     *state
	past  *endings
	given ticket
	now   time.Time
	away  map[uint64]time.Duration // waiters whose last request has ended, and how long ago
	moved map[uint64]outcome       // of the last batch
}

func newBench(t testing.TB) *bench {
	return &bench{t: t, s: &state{}, past: newEndings(), given: ticket{1 << 53, 0}, now: noon, away: map[uint64]time.Duration{}}
}

func (b *bench) batch(ops ...func(*draft) outcome) []outcome {
	b.past.trim(b.now)
	d := newDraft(b.s, b.past, b.given, b.now, func(w uint64) (bool, time.Duration) {
		away, ended := b.away[w]
		return !ended, away
	})
	d.tend()
	var outcomes []outcome
	for _, op := range ops {
		outcomes = append(outcomes, op(d))
	}
	before := b.s.size()
	d.tidy()
	if !d.changed() && (b.s.size() != before) {
		b.t.Fatal("a batch without a change changed the published state")
	}
	b.s, b.moved = &d.state, d.moved
	b.past.learn(d.recollection)
	return outcomes
}

func (b *bench) take(c claim, wait bool) outcome {
	return b.batch(func(d *draft) outcome { return d.take("l", c, wait) })[0]
}

func (b *bench) release(who identity, own bool) outcome {
	return b.batch(func(d *draft) outcome { return d.release("l", release{identity: who, own: own}) })[0]
}

func (b *bench) force(name string, ifMatch *uint64) outcome {
	return b.batch(func(d *draft) outcome {
		return d.force("l", force{lockedBy: name, ifMatch: ifMatch, by: "ann", why: "stuck"})
	})[0]
}

// holders returns who holds the lock, as key:name, name.
func (b *bench) holders() string {
	l := b.s.look("l")
	var names []string
	for _, h := range l.Holders {
		names = append(names, h.LockedBy)
	}
	return l.Key + ":" + strings.Join(names, ",")
}

func (b *bench) queue() string {
	var names []string
	for _, w := range b.s.look("l").Waiters {
		names = append(names, w.LockedBy)
	}
	return strings.Join(names, ",")
}

func (b *bench) want(holders, queue string) {
	b.t.Helper()
	if b.holders() != holders || b.queue() != queue {
		b.t.Fatalf("held by %q, queue %q; want %q, %q", b.holders(), b.queue(), holders, queue)
	}
}

func (b *bench) wantVerdict(got outcome, want verdict) outcome {
	b.t.Helper()
	if got.verdict != want {
		b.t.Fatalf("%s, want %s", got.verdict, want)
	}
	return got
}

// of returns a claim from "key name id"; the id may be missing.
func of(words string) claim {
	f := append(strings.Fields(words), "")
	return claim{identity: identity{f[0], f[1], f[2]}}
}

func ttl(c claim, d time.Duration) claim {
	c.TTL = resource.Duration(d)
	return c
}

func TestGrantAndQueue(t *testing.T) {
	for _, row := range []struct {
		name           string
		takes          string // claims in order, each waiting
		holders, queue string
	}{
		{"a free lock", "k a", "k:a", ""},
		{"one key, two names", "k a; k b", "k:a,b", ""},
		{"another key waits", "k a; other b", "k:a", "b"},
		{"the same name waits, even with its own key", "k a; k a", "k:a", "a"},
		{"another id of the same name waits", "k a 1; k a 2", "k:a", "a"},
		{"the holders' key does not pass a waiter", "k a; other b; k c", "k:a", "b,c"},
		{"the same id is the same claim", "k a 1; k a 1", "k:a", ""},
		{"the same id with another name is another claim", "k a 1; k b 1", "k:a,b", ""},
		{"the same waiter has one place", "k a; other b 1; other c 2; other b 1", "k:a", "b,c"},
		{"no id is no identity", "k a; other b; other b", "k:a", "b,b"},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newBench(t)
			for words := range strings.SplitSeq(row.takes, "; ") {
				b.take(of(words), true)
			}
			b.want(row.holders, row.queue)
		})
	}
}

// TestReleaseLines has a row for each line of the spec's section 2.2.
func TestReleaseLines(t *testing.T) {
	for _, row := range []struct {
		name           string
		setup, release string
		own            bool
		want           verdict
		holders, queue string
	}{
		{"1 this id holds", "k a 1; k b 2", "k a 1", false, released, "k:b", ""},
		{"1 own too", "k a 1", "k a 1", true, released, ":", ""},
		{"2 this id is queued", "k a 1; other b 2; other c 3", "other b 2", false, withdrew, "k:a", "c"},
		{"2 before the wrong key of line 6", "k a 1; other b 2", "other b 2", true, withdrew, "k:a", ""},
		{"3 ended is not the next build's", "k a 1; -k a 1; k a 2", "k a 1", false, alreadyEnded, "k:a", ""},
		{"3 withdrawn, then somebody's with that name", "k a 1; k a 2; -k a 2", "k a 2", false, alreadyEnded, "k:a", ""},
		{"3 forgotten by a new claim", "k a 1; -k a 1; k a 1", "k a 1", false, released, ":", ""},
		{"4 own and never taken", "k a 1", "k a 2", true, neverTaken, "k:a", ""},
		{"4 own on a free lock", "", "k a 2", true, neverTaken, ":", ""},
		{"4 own without id", "k a", "k a", true, neverTaken, "k:a", ""},
		{"5 free", "", "k a 1", false, wasFree, ":", ""},
		{"6 another key", "k a 1", "other a 1", false, wrongKey, "k:a", ""},
		{"7 not a holder", "k a 1", "k b 1", false, noSuchHolder, "k:a", ""},
		{"8 whoever's id", "k a 1", "k a 2", false, released, ":", ""},
		{"8 no id", "k a 1", "k a", false, released, ":", ""},
		{"8 the freed moves the queue up", "k a; other b; other c; k d", "k a", false, released, "other:b,c", "d"},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newBench(t)
			for words := range strings.SplitSeq(row.setup, "; ") {
				if done, ok := strings.CutPrefix(words, "-"); ok {
					b.release(of(done).identity, false)
				} else if words != "" {
					b.take(of(words), true)
				}
			}
			b.wantVerdict(b.release(of(row.release).identity, row.own), row.want)
			b.want(row.holders, row.queue)
		})
	}
}

// TestEndedIsRemembered has each way in which a claim ends and leaves an id
// that frees nobody else afterwards.
func TestEndedIsRemembered(t *testing.T) {
	for _, row := range []struct {
		name string
		end  func(b *bench)
	}{
		{"released", func(b *bench) { b.release(of("k a 1").identity, false) }},
		{"released by somebody without id", func(b *bench) { b.release(of("k a").identity, false) }},
		{"released by another id, which is remembered too", func(b *bench) {
			b.release(of("k a 9").identity, false)
			b.take(of("k a 2"), false)
			b.wantVerdict(b.release(of("k a 9").identity, false), alreadyEnded)
			b.release(of("k a 2").identity, false)
		}},
		{"expired", func(b *bench) {
			b.take(ttl(of("k a 1"), time.Second), false)
			b.now = b.now.Add(time.Second)
			b.batch()
		}},
		{"forced", func(b *bench) { b.force("a", nil) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newBench(t)
			b.take(of("k a 1"), false)
			row.end(b)
			b.want(":", "")
			b.take(of("k a 2"), false)
			b.wantVerdict(b.release(of("k a 1").identity, false), alreadyEnded)
			b.want("k:a", "")
			b.now = b.now.Add(endedKept)
			b.wantVerdict(b.release(of("k a 1").identity, false), released)
		})
	}
}

func TestRefusedClaimLeavesNoTrace(t *testing.T) {
	b := newBench(t)
	b.take(of("k a"), false)
	before := b.s.revision
	b.wantVerdict(b.take(of("other b 1"), false), refused)
	b.want("k:a", "")
	if b.s.revision != before {
		t.Errorf("revision %d, want %d: nothing changed", b.s.revision, before)
	}
}

func TestPlaceIsKept(t *testing.T) {
	b := newBench(t)
	b.take(of("k a"), false)
	first := b.take(of("other b 1"), true)
	b.take(of("k c 2"), true)
	b.away[first.waiter] = 0
	b.release(of("k a").identity, false)
	b.want(":", "b,c") // free, and nobody passes
	b.away[first.waiter] = placeKept - time.Millisecond
	b.wantVerdict(b.take(of("k d"), false), refused)

	b.wantVerdict(b.take(of("other b 1"), false), granted) // there, if only for a moment
	b.want("other:b", "c")

	b.release(of("other b 1").identity, false)
	b.want("k:c", "")
	second := b.take(of("other e 3"), true)
	b.take(of("k f"), true)
	b.away[second.waiter] = placeKept
	b.batch()
	b.want("k:c,f", "")
	b.wantVerdict(b.release(of("other e 3").identity, false), alreadyEnded)
}

func TestWaiterWithoutIDLeavesWithItsRequest(t *testing.T) {
	b := newBench(t)
	b.take(of("k a"), false)
	w := b.take(of("other b"), true)
	b.away[w.waiter] = 0
	b.batch()
	b.want("k:a", "")
}

// At most as many hold a lock as the fewest slots that one of them named; each
// has the smallest number that was free, and keeps it.
func TestSlots(t *testing.T) {
	b := newBench(t)
	take := func(words string, slots int) outcome {
		c := of(words)
		c.Slots = slots
		return b.take(c, true)
	}
	slots := func(want ...int) {
		t.Helper()
		var got []int
		for _, h := range b.s.look("l").Holders {
			got = append(got, h.Slot)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("slots %v, want %v", got, want)
		}
	}
	take("k a", 3)
	take("k b", 3)
	take("k c", 0) // no limit of its own
	b.wantVerdict(take("k d", 3), queued)
	b.wantVerdict(take("k e", 5), queued)
	slots(1, 2, 3)
	b.release(of("k b").identity, false)
	b.want("k:a,c,d", "e")
	slots(1, 3, 2)
	b.release(of("k a").identity, false)
	b.want("k:c,d,e", "")
	slots(3, 2, 1)
	b.wantVerdict(take("k f", 2), queued) // it would be one of four, and allows two
	b.release(of("k d").identity, false)
	b.want("k:c,e", "f")
	b.release(of("k c").identity, false)
	b.want("k:e,f", "")
	slots(1, 2)
}

// A waiter without an id is passed over when its connection turns out to be
// closed; one with an id comes back by another.
func TestHungUpWaiterIsPassedOver(t *testing.T) {
	b := newBench(t)
	b.take(of("k a"), false)
	b.take(of("other b"), true)
	b.take(of("third c 3"), true)
	d := newDraft(b.s, b.past, b.given, b.now, func(uint64) (bool, time.Duration) { return true, 0 })
	d.hungUp = func(uint64) bool { return true }
	d.release("l", release{identity: of("k a").identity})
	b.s = &d.state
	b.want("third:c", "")
}

func TestNoWaitRequestOfAWaiterIsNotThereAfterwards(t *testing.T) {
	b := newBench(t)
	b.take(of("k a 1"), false)
	w := b.take(of("other b 2"), true)
	b.away[w.waiter] = 0
	out := b.batch(
		func(d *draft) outcome { return d.take("l", of("other b 2"), false) },
		func(d *draft) outcome { return d.release("l", release{identity: of("k a 1").identity}) },
	)
	b.wantVerdict(out[0], queued)
	b.want(":", "b")
}

// TestNoWaitRequestBesideOneThatWaits: the second request of a claim does not
// take the first one's presence away.
func TestNoWaitRequestBesideOneThatWaits(t *testing.T) {
	b := newBench(t)
	b.take(of("k a 1"), false)
	b.batch(
		func(d *draft) outcome { return d.take("l", of("other b 2"), true) },
		func(d *draft) outcome { return d.take("l", of("other b 2"), false) },
		func(d *draft) outcome { return d.release("l", release{identity: of("k a 1").identity}) },
	)
	b.want("other:b", "")
}

func TestNewestRequestOfAWaiterCounts(t *testing.T) {
	b := newBench(t)
	b.take(of("k a"), false)
	c := ttl(of("other b 1"), time.Hour)
	b.take(c, true)
	c.TTL, c.Link = resource.Duration(time.Minute), "https://ci.example/2"
	b.take(c, true)
	b.release(of("k a").identity, false)
	h := b.s.look("l").Holders[0]
	if h.Link != c.Link || !h.Expires.Equal(noon.Add(time.Minute)) {
		t.Errorf("holder %+v, want the newest request's ttl and link", h)
	}
}

func TestRepeat(t *testing.T) {
	b := newBench(t)
	first := b.take(ttl(of("k a 1"), time.Minute), false)
	before := *b.s.look("l")
	b.now = b.now.Add(30 * time.Second)

	again := b.wantVerdict(b.take(of("k a 1"), true), repeated)
	if again.token != first.token || b.s.revision != before.Revision {
		t.Errorf("token %d at revision %d, want %d and no change", again.token, b.s.revision, first.token)
	}
	b.take(ttl(of("k a 1"), time.Minute), false)
	l := b.s.look("l")
	if l.Revision != before.Revision || b.s.revision != before.Revision+1 || !l.Holders[0].Expires.Equal(noon.Add(90*time.Second)) {
		t.Errorf("after a renewal: state %d, lock %+v; want only the state's revision and the expiry to move", b.s.revision, l)
	}
}

func TestExpiry(t *testing.T) {
	b := newBench(t)
	b.take(ttl(of("k a"), time.Minute), false)
	b.take(of("k b"), false)
	b.take(of("other c"), true)
	b.now = noon.Add(time.Minute - time.Millisecond)
	b.batch()
	b.want("k:a,b", "c")
	if next := b.s.nextExpiry(); !next.Equal(noon.Add(time.Minute)) {
		t.Errorf("next expiry %v", next)
	}
	b.now = noon.Add(time.Minute)
	b.batch()
	b.want("k:b", "c")
	b.now = noon.Add(24 * time.Hour)
	b.batch()
	b.want("k:b", "c") // no ttl, no expiry
}

func TestForce(t *testing.T) {
	b := newBench(t)
	b.take(of("k a"), false)
	b.take(of("k b"), false)
	b.take(of("other c"), true)
	stale := b.s.look("l").Revision - 1
	b.wantVerdict(b.force("", &stale), changedHands)
	b.want("k:a,b", "c")
	b.wantVerdict(b.force("x", nil), noSuchHolder)
	seen := b.s.look("l").Revision
	b.wantVerdict(b.force("a", &seen), forced)
	b.want("k:b", "c")
	b.wantVerdict(b.force("", nil), forced)
	b.want("other:c", "")
	b.force("", nil)
	b.wantVerdict(b.force("", nil), wasFree)
}

func TestEachGrantIsAChangeOfItsOwn(t *testing.T) {
	b := newBench(t)
	b.take(of("k a"), false)
	one, two := b.take(of("other b"), true), b.take(of("other c"), true)
	before := b.s.revision
	b.release(of("k a").identity, false)
	if b.moved[one.waiter].token != before+2 || b.moved[two.waiter].token != before+3 {
		t.Errorf("tokens %+v after revision %d, want one for the release and one each", b.moved, before)
	}
	if l := b.s.look("l"); l.Revision != b.s.revision {
		t.Errorf("lock's revision %d, state's %d", l.Revision, b.s.revision)
	}
}

func TestQueueDoesNotMoveTheLocksRevision(t *testing.T) {
	b := newBench(t)
	b.take(of("k a"), false)
	b.take(of("other b 1"), true)
	b.release(of("other b 1").identity, false)
	if l := b.s.look("l"); l.Revision != 1 || b.s.revision != 3 {
		t.Errorf("lock's revision %d, state's %d; want 1, 3", l.Revision, b.s.revision)
	}
}

func TestLimits(t *testing.T) {
	b := newBench(t)
	b.take(of("k a"), false)
	for i := range maxWaiters {
		b.wantVerdict(b.take(of(fmt.Sprintf("other w%d", i)), true), queued)
	}
	b.wantVerdict(b.take(of("other late"), true), overLimit)
	b.wantVerdict(b.take(of("k late"), false), refused)
	b.s.claims = maxClaims
	elsewhere := func(d *draft) outcome { return d.take("elsewhere", of("k a"), false) }
	b.wantVerdict(b.batch(elsewhere)[0], overLimit)
	b.s.claims--
	b.wantVerdict(b.batch(elsewhere)[0], granted)
}

// The first in line is not told that somebody behind it is.
func TestWhyNot(t *testing.T) {
	b := newBench(t)
	b.take(of("k a 1"), false)
	b.take(of("other b 2"), true)
	b.take(of("k c 3"), true)
	for words, want := range map[string]string{"k c 3": "; the key fits, but b was first in line with the key other", "other b 2": "", "k a 4": "; the same name holds the lock already: a name gets it again only when that hold has ended"} {
		if got := b.s.look("l").whyNot(of(words).identity); got != want {
			t.Errorf("%s: %q, want %q", words, got, want)
		}
	}
	first := &lock{name: "l", Key: "k", Holders: []holder{{LockedBy: "a"}}, Waiters: []waiter{{claim: of("k b 1")}, {claim: of("other c 2")}}}
	if got := first.whyNot(of("k b 1").identity); got != "" {
		t.Errorf("the first in line: %q", got)
	}
}

func TestFreeLocksAreForgotten(t *testing.T) {
	b := newBench(t)
	use := func(name, words string) {
		b.batch(func(d *draft) outcome { return d.take(name, of(words), false) },
			func(d *draft) outcome { return d.release(name, release{identity: of(words).identity}) })
	}
	use("oldest", "k a 1")
	for i := range maxFree {
		use(fmt.Sprint(i), "k a")
	}
	if _, _, found := b.s.find("oldest"); found {
		t.Error("a free lock was remembered beyond the most recent ones")
	}
	if _, _, found := b.s.find("0"); !found {
		t.Error("one of the most recent free locks was forgotten")
	}
	b.batch(func(d *draft) outcome { return d.take("kept for a waiter", of("k a"), false) })
	w := b.batch(func(d *draft) outcome { return d.take("kept for a waiter", of("other b 1"), true) })[0]
	b.away[w.waiter] = 0
	b.batch(func(d *draft) outcome { return d.release("kept for a waiter", release{identity: of("k a").identity}) })
	for i := range maxFree {
		use(fmt.Sprint("more ", i), "k a")
	}
	if _, _, found := b.s.find("kept for a waiter"); !found {
		t.Error("a free lock was forgotten whose place is kept for a waiter")
	}
}

// TestRandom applies random batches to the rules and to a model that is
// obviously right, and compares all of both after each.
func TestRandom(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	steps := 50_000
	if os.Getenv("LOCKER_SOAK") != "" {
		steps = 200_000
	}
	w := newWorld()
	for step := range steps {
		if err := w.step(r); err != nil {
			t.Fatalf("seed %d, step %d: %v", seed, step, err)
		}
		if step%500 == 499 {
			w = newWorld() // short histories meet more of the beginning
		}
	}
}

// world is the rules and the model side by side.
type world struct {
	s     *state
	past  *endings
	m     *model
	count uint64   // of tickets
	given []ticket // the youngest of them
	now   time.Time
	asked map[uint64]int       // requests in flight, by waiter
	ended map[uint64]time.Time // when the last one ended
}

func newWorld() *world {
	w := &world{s: &state{}, past: newEndings(), m: newModel(), now: noon, asked: map[uint64]int{}, ended: map[uint64]time.Time{}}
	w.start()
	return w
}

// start is what a start of the locker does.
func (w *world) start() {
	w.past = newEndings()
	var left []end
	for l := range w.s.all() {
		left = append(left, l.Left...)
	}
	w.past.load(left, w.now)
	d := newDraft(w.s, w.past, ticket{}, w.now, w.asking)
	d.begin()
	w.keep(d)
	w.m.restart(w.now)
	w.count = 0
	w.give()
}

func (w *world) keep(d *draft) {
	w.s = &d.state
	w.past.learn(d.recollection)
}

// give gives out a ticket.
func (w *world) give() {
	w.count++
	w.m.given = ticket{w.s.revision, w.count}
	w.given = append(w.given, w.m.given)
	w.given = w.given[max(0, len(w.given)-8):]
}

func (w *world) asking(waiter uint64) (bool, time.Duration) {
	return w.asked[waiter] > 0, w.now.Sub(w.ended[waiter])
}

// step changes the world around the locks, then applies a batch to both sides.
// Some batches are dropped, as by a commit that fails.
func (w *world) step(r *rand.Rand) error {
	w.pass(r)
	if r.IntN(50) == 0 {
		w.start()
	}
	if r.IntN(3) == 0 {
		w.give()
	}
	before := w.s
	w.past.trim(w.now)
	printed := fmt.Sprint(dump(before))
	d, m := newDraft(w.s, w.past, w.m.given, w.now, w.asking), w.m.clone()
	d.tend()
	m.tend(w.now, w.asking)
	var waiting []uint64
	for range r.IntN(12) {
		op := randomOp(r, w.given)
		got, want := op.apply(d), op.model(m, w.now, w.asking)
		if got != want {
			return fmt.Errorf("%v: %+v, want %+v", op, got, want)
		}
		if got.verdict == queued {
			if op.wait {
				waiting = append(waiting, got.waiter)
			}
			w.ended[got.waiter] = w.now
		}
	}
	if fmt.Sprint(dump(before)) != printed {
		return fmt.Errorf("a batch changed the published state\n%s\nto %v", printed, dump(before))
	}
	if r.IntN(10) == 0 {
		return nil // the commit fails: the draft and the model's copy are dropped
	}
	w.keep(d)
	w.m = m
	for _, waiter := range waiting {
		w.asked[waiter]++
	}
	return w.check(before)
}

// pass lets time go by and requests end.
func (w *world) pass(r *rand.Rand) {
	steps := []time.Duration{0, 0, time.Millisecond, time.Second, 5 * time.Second, placeKept, time.Minute}
	w.now = w.now.Add(steps[r.IntN(len(steps))])
	if r.IntN(200) == 0 {
		w.now = w.now.Add(endedKept)
	}
	for l := range w.s.all() {
		for _, waiter := range l.Waiters {
			if w.asked[waiter.Revision] > 0 && r.IntN(6) == 0 {
				w.asked[waiter.Revision]--
				w.ended[waiter.Revision] = w.now
			}
		}
	}
}

// check compares the state with the model and looks for what must never be.
func (w *world) check(before *state) error {
	if got, want := fmt.Sprint(dump(w.s)), fmt.Sprint(w.m.dump()); got != want {
		return fmt.Errorf("state\n%s\nwant\n%s", got, want)
	}
	claims := 0
	for l := range w.s.all() {
		claims += len(l.Holders) + len(l.Waiters)
		if err := l.check(w.s.revision); err != nil { // one key, one holder of a name, one place for a claim
			return fmt.Errorf("lock %s: %w", l.name, err)
		}
		if len(l.Waiters) > 0 && l.fits(l.Waiters[0].claim) && w.asked[l.Waiters[0].Revision] > 0 {
			return fmt.Errorf("lock %s: its next waiter is there, and was not granted it", l.name)
		}
		if err := orderKept(before.look(l.name), l, before.revision); err != nil {
			return err
		}
	}
	if claims != w.s.claims {
		return fmt.Errorf("%d claims counted, %d there", w.s.claims, claims)
	}
	return nil
}

// orderKept reports whether tokens grew and nobody passed anybody.
func orderKept(before, after *lock, revision uint64) error {
	if after.Revision < before.Revision {
		return fmt.Errorf("lock %s: revision went from %d to %d", after.name, before.Revision, after.Revision)
	}
	for _, h := range after.Holders {
		isNew := !slices.ContainsFunc(before.Holders, func(o holder) bool { return o.Token == h.Token })
		if isNew && h.Token <= revision {
			return fmt.Errorf("lock %s: a grant has the token %d at revision %d", after.name, h.Token, revision)
		}
	}
	var last int
	for _, w := range after.Waiters {
		i := before.position(w.Revision)
		if i == 0 {
			i = len(before.Waiters) + 1
		}
		if i < last {
			return fmt.Errorf("lock %s: %s was passed", after.name, w.LockedBy)
		}
		last = i
	}
	return nil
}
