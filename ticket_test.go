package main

import (
	"testing"
	"time"
)

const brief = time.Minute

func TestTicketText(t *testing.T) {
	for _, text := range []string{"1.1", "18.3", "0.7", "9007199254740992.18446744073709551615"} {
		var read ticket
		if err := read.UnmarshalText([]byte(text)); err != nil || read.String() != text || len(text) > 40 {
			t.Errorf("%s: %v, %v", text, read, err)
		}
	}
	for _, text := range []string{"", "1", "1.", ".1", "0.0", "01.1", "1.01", "+1.1", "1.1.1", " 1.1", "1.1 ", "-1.1", "1,1", "x", "18446744073709551616.1"} {
		if read := (ticket{}); read.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q was read as %v", text, read)
		}
	}
}

func TestTicketsCompareByRevisionFirst(t *testing.T) {
	order := []ticket{{}, {1, 9}, {2, 1}, {2, 10}, {10, 0}}
	for i := range order {
		for j := range order {
			if got := order[i].compare(order[j]); got != max(-1, min(1, i-j)) {
				t.Errorf("%v and %v: %d", order[i], order[j], got)
			}
		}
	}
}

// stage is a locker to which the runs of TestTraces send messages; see bench.
type stage struct {
	*bench
	count   uint64
	tickets map[string]ticket // by run
}

func newStage(t *testing.T) *stage {
	s := &stage{bench: newBench(t), tickets: map[string]ticket{}}
	s.restart()
	return s
}

// restart loses what is not saved, and moves the horizon.
func (s *stage) restart() {
	s.past = newEndings()
	var left []end
	for l := range s.s.all() {
		left = append(left, l.Left...)
	}
	s.past.load(left, s.now)
	s.count = 0
	s.given = ticket{} // and none is given out before somebody asks
	s.batch(func(d *draft) outcome { d.begin(); return outcome{} })
}

// ticket has the run fetch one.
func (s *stage) ticket(run string) {
	s.count++
	s.given = ticket{s.s.revision, s.count}
	s.tickets[run] = s.given
}

// take is a take of the claim by a run; it arrives now, however old it is.
func (s *stage) take(run, words string) verdict {
	c := of(words)
	c.Ticket = s.tickets[run]
	return s.bench.take(c, true).verdict
}

func (s *stage) release(run, words string, own bool) verdict {
	return s.batch(func(d *draft) outcome {
		return d.release("l", release{of(words).identity, own, s.tickets[run]})
	})[0].verdict
}

func (s *stage) verdict(got, want verdict) {
	s.t.Helper()
	if got != want {
		s.t.Fatalf("%s, want %s", got, want)
	}
}

// TestTraces plays, for each sentence of the ticket rules, messages that go wrong
// without it.
func TestTraces(t *testing.T) {
	for name, play := range map[string]func(s *stage){
		"a take that a proxy held back until after the give-back": func(s *stage) {
			s.ticket("1")
			s.verdict(s.release("1", "k a 1", true), neverTaken)
			s.verdict(s.take("1", "k a 1"), tooLate)
			s.want(":", "")
		},
		"a take that comes once more after the release": func(s *stage) {
			s.ticket("1")
			s.verdict(s.take("1", "k a 1"), granted)
			s.verdict(s.release("1", "k a 1", false), released)
			s.verdict(s.take("1", "k a 1"), tooLate)
		},
		"a take that comes once more after a release by a later run": func(s *stage) {
			s.ticket("lock")
			s.verdict(s.take("lock", "k a 1"), granted)
			s.ticket("unlock")
			s.verdict(s.release("unlock", "k a 1", false), released)
			s.verdict(s.take("lock", "k a 1"), tooLate)
		},
		"a give-back that a proxy held back until the next attempt holds": func(s *stage) {
			s.ticket("1")
			s.ticket("2")
			s.verdict(s.take("2", "k a 1"), granted)
			s.verdict(s.release("1", "k a 1", true), laterRun)
			s.want("k:a", "")
		},
		"and until it waits": func(s *stage) {
			s.bench.take(of("k a"), false)
			s.ticket("1")
			s.ticket("2")
			s.verdict(s.take("2", "other b 1"), queued)
			s.verdict(s.release("1", "other b 1", true), laterRun)
			s.want("k:a", "b")
		},
		"a repeat brings the newer ticket": func(s *stage) {
			s.ticket("1")
			s.verdict(s.take("1", "k a 1"), granted)
			s.ticket("2")
			before := s.s.revision
			s.verdict(s.take("2", "k a 1"), repeated)
			if s.s.revision == before || s.s.look("l").Revision == s.s.revision {
				s.t.Error("the state's revision must move, the lock's must not")
			}
			s.verdict(s.release("1", "k a 1", true), laterRun)
			s.verdict(s.take("1", "k a 1"), tooLate)  // what 1 sent is before its release
			s.verdict(s.take("2", "k a 1"), repeated) // and 2 still holds
		},
		"a waiter's newer request brings the newer ticket": func(s *stage) {
			s.bench.take(of("k a"), false)
			s.ticket("1")
			s.verdict(s.take("1", "other b 1"), queued)
			s.ticket("2")
			s.verdict(s.take("2", "other b 1"), queued)
			s.verdict(s.release("1", "other b 1", true), laterRun)
		},
		"a take passes by an older end and leaves it there": func(s *stage) {
			s.ticket("1")
			s.ticket("2")
			s.verdict(s.release("1", "k a 1", true), neverTaken)
			s.verdict(s.take("2", "k a 1"), granted)
			s.verdict(s.take("1", "k a 1"), tooLate)
		},
		"an older release does not make an end older": func(s *stage) {
			s.ticket("1")
			s.ticket("2")
			s.verdict(s.release("2", "k a 1", true), neverTaken)
			s.verdict(s.release("1", "k a 1", true), alreadyEnded)
			s.verdict(s.take("2", "k a 1"), tooLate)
		},
		"another's unlock from before a later run of the holder": func(s *stage) {
			s.ticket("1")
			s.verdict(s.take("1", "k a 1"), granted)
			s.ticket("unlock")
			s.ticket("2")
			s.verdict(s.take("2", "k a 1"), repeated)
			s.verdict(s.release("unlock", "k a 9", false), laterRun)
		},
		"a take without ticket takes none away": func(s *stage) {
			s.ticket("1")
			s.ticket("2")
			s.verdict(s.take("2", "k a 1"), granted)
			s.verdict(s.take("none", "k a 1"), repeated)
			s.verdict(s.release("1", "k a 1", true), laterRun)
		},
		"nor does one of a waiter, nor an older one that comes late": func(s *stage) {
			s.bench.take(of("k a"), false)
			s.ticket("1")
			s.ticket("2")
			s.verdict(s.take("2", "other b 1"), queued)
			s.verdict(s.take("none", "other b 1"), queued)
			s.verdict(s.take("1", "other b 1"), queued)
			s.verdict(s.release("1", "other b 1", true), laterRun)
		},
		"a waiter's ticket goes with its grant": func(s *stage) {
			s.bench.take(of("k a"), false)
			s.ticket("1")
			s.ticket("2")
			s.verdict(s.take("2", "other b 1"), queued)
			s.bench.release(of("k a").identity, false)
			s.want("other:b", "")
			s.verdict(s.release("1", "other b 1", true), laterRun)
		},
		"an unlock from before another build's hold of that name": func(s *stage) {
			s.ticket("unlock")
			s.ticket("1")
			s.verdict(s.take("1", "k a 1"), granted)
			s.verdict(s.release("unlock", "k a 9", false), laterRun)
			s.want("k:a", "")
		},
		"and of a hold without a ticket: its token tells": func(s *stage) {
			s.ticket("unlock")
			s.verdict(s.take("none", "k a 1"), granted)
			s.verdict(s.release("unlock", "k a 9", false), laterRun)
			s.ticket("unlock")
			s.verdict(s.release("unlock", "k a 8", false), released)
		},
		"a new run takes after an end, and keeps what its release left": func(s *stage) {
			s.ticket("1")
			s.take("1", "k a 1")
			s.release("1", "k a 1", false)
			s.ticket("2")
			s.verdict(s.take("2", "k a 1"), granted)
			s.verdict(s.release("2", "k a 1", false), released)
			s.verdict(s.take("1", "k a 1"), tooLate)
			s.verdict(s.take("2", "k a 1"), tooLate)
		},
		"the same run may queue anew when nobody came back for its place": func(s *stage) {
			s.bench.take(of("k a"), false)
			s.ticket("1")
			s.verdict(s.take("1", "other b 1"), queued)
			s.away[s.s.look("l").Waiters[0].Revision] = placeKept
			s.batch()
			s.want("k:a", "")
			s.verdict(s.take("1", "other b 1"), queued)
		},
		"a hold that expired: its run may not have heard of it": func(s *stage) {
			s.ticket("1")
			c := ttl(of("k a 1"), brief)
			c.Ticket = s.tickets["1"]
			s.bench.take(c, false)
			s.now = s.now.Add(brief)
			s.verdict(s.take("1", "k a 1"), oldTicket)
			s.ticket("1")
			s.verdict(s.take("1", "k a 1"), granted)
		},
		"a hold that was forced": func(s *stage) {
			s.ticket("1")
			s.take("1", "k a 1")
			s.force("", nil)
			s.verdict(s.take("1", "k a 1"), oldTicket)
		},
		"a hold that another's unlock freed": func(s *stage) {
			s.ticket("1")
			s.take("1", "k a 1")
			s.ticket("unlock")
			s.verdict(s.release("unlock", "k a 9", false), released)
			s.verdict(s.take("1", "k a 1"), oldTicket)
		},
		"a refused release counts for takes, not for line 3": func(s *stage) {
			s.bench.take(of("k a"), false)
			s.ticket("1")
			s.verdict(s.release("1", "other b 1", false), wrongKey)
			s.verdict(s.take("1", "other b 1"), tooLate)
			s.verdict(s.release("1", "other b 1", false), wrongKey)
			s.verdict(s.release("1", "other b 1", true), neverTaken)
			s.verdict(s.release("1", "other b 1", false), alreadyEnded)
		},
		"a ticket from before the start": func(s *stage) {
			s.ticket("1")
			s.restart()
			s.verdict(s.take("1", "k a 1"), oldTicket)
			s.ticket("1")
			s.verdict(s.take("1", "k a 1"), granted)
		},
		"a present claim's ticket outlives a start": func(s *stage) {
			s.ticket("1")
			s.take("1", "k a 1")
			s.restart()
			s.verdict(s.take("1", "k a 1"), repeated)
			s.verdict(s.release("1", "k a 1", false), released)
		},
		"423 is looked at before 409": func(s *stage) {
			s.ticket("1")
			s.take("1", "k a 1")
			s.release("1", "k a 1", false)
			s.restart()
			s.verdict(s.take("1", "k a 1"), tooLate)
		},
		"a ticket that was never given out: an old file was restored": func(s *stage) {
			s.tickets["1"] = ticket{s.s.revision + 1, 1}
			s.verdict(s.take("1", "k a 1"), oldTicket)
			s.verdict(s.release("1", "k a 1", true), oldTicket)
			s.bench.take(of("k a 1"), false)
			s.verdict(s.take("1", "k a 1"), oldTicket) // it would be newer than all that follow
		},
		"the horizon moves beyond what an hour made forgotten": func(s *stage) {
			s.ticket("1")
			s.take("1", "k a 1")
			s.release("1", "k a 1", false)
			s.now = s.now.Add(endedKept)
			s.verdict(s.take("1", "k a 1"), oldTicket)
		},
		"and beyond what a take without a ticket made forgotten": func(s *stage) {
			s.ticket("1")
			s.take("1", "k a 1")
			s.release("1", "k a 1", false)
			s.verdict(s.take("none", "k a 1"), granted)
			s.bench.force("", nil)
			s.verdict(s.take("1", "k a 1"), oldTicket)
		},
		"a release without a name counts for every name": func(s *stage) {
			s.ticket("1")
			s.take("1", "k b 1")
			s.verdict(s.batch(func(d *draft) outcome {
				return d.release("l", release{identity{"k", "", "1"}, false, s.tickets["1"]})
			})[0].verdict, released)
			s.verdict(s.take("1", "k c 1"), tooLate)
		},
		"an entry of a commit that failed is none": func(s *stage) {
			s.ticket("1")
			d := newDraft(s.s, s.past, s.given, s.now, nil)
			d.release("l", release{of("k a 1").identity, true, s.tickets["1"]})
			s.verdict(s.take("1", "k a 1"), granted)
		},
	} {
		t.Run(name, func(t *testing.T) { play(newStage(t)) })
	}
}

// Each message without a ticket is as if there were none.
func TestNoTickets(t *testing.T) {
	s := newStage(t)
	s.verdict(s.release("none", "k a 1", true), neverTaken)
	s.verdict(s.take("none", "k a 1"), granted)
	s.verdict(s.release("none", "k a 9", false), released)
	s.ticket("1")
	s.verdict(s.take("1", "k a 2"), granted)
	s.verdict(s.release("none", "k a 2", false), released)
}

// A release without a name means the claim of its id, whatever its name.
func TestReleaseWithoutName(t *testing.T) {
	unnamed := func(key, id string) func(*draft) outcome {
		return func(d *draft) outcome { return d.release("l", release{identity: identity{key, "", id}}) }
	}
	b := newBench(t)
	b.take(of("k jane 1"), false)
	b.take(of("k k 2"), false)
	b.take(of("other ann 3"), true)
	if o := b.wantVerdict(b.batch(unnamed("other", "3"))[0], withdrew); o.name != "ann" {
		t.Errorf("withdrew %q", o.name)
	}
	if o := b.wantVerdict(b.batch(unnamed("k", "1"))[0], released); o.name != "jane" {
		t.Errorf("released %q", o.name)
	}
	b.want("k:k", "")
	b.wantVerdict(b.batch(unnamed("k", "1"))[0], alreadyEnded) // sent again: it frees nobody who is named as the key
	b.want("k:k", "")
	b.wantVerdict(b.batch(unnamed("k", "9"))[0], released) // no claim of that id: the key's value
	b.want(":", "")

	b.take(ttl(of("k jane 4"), brief), false)
	b.now = b.now.Add(brief)
	b.take(of("k k 5"), false)
	if o := b.wantVerdict(b.batch(unnamed("k", "4"))[0], alreadyEnded); o.how != endExpired {
		t.Errorf("it ended %s", o.how)
	}
	b.want("k:k", "")
}
