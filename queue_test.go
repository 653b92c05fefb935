package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestWaitersAreGrantedInOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k0 n", 0), granted)
		var waiting []chan answer
		for i := 1; i < 20; i++ {
			waiting = append(waiting, r.take(t.Context(), fmt.Sprintf("k%d n", i), time.Minute))
		}
		for i, w := range waiting {
			r.wantWaiting(w)
			r.want(r.release(fmt.Sprintf("k%d n", i)), released)
			r.want(<-w, granted)
		}
	})
}

func TestWaitEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		start := time.Now()
		withID, without := r.take(t.Context(), "other b 1", 10*time.Second), r.take(t.Context(), "other c", 20*time.Second)
		a := r.want(<-withID, queued)
		if waited := time.Since(start); waited != 10*time.Second || a.lock.position(a.waiter) != 1 {
			t.Errorf("answered after %v at position %d", waited, a.lock.position(a.waiter))
		}
		r.want(<-without, refused)
		r.wantState("k:a", "b")

		time.Sleep(placeKept - 10*time.Second - 100*time.Millisecond) // the last moment to come back
		again := r.take(t.Context(), "other b 1", time.Second)
		r.want(<-again, queued)
		time.Sleep(placeKept + time.Millisecond)
		synctest.Wait()
		r.wantState("k:a", "")
		r.want(r.release("other b 1"), alreadyEnded)
	})
}

func TestLostConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		ctx, hangUp := context.WithCancel(t.Context())
		r.take(ctx, "other b", time.Minute)
		r.take(ctx, "other c 1", time.Minute)
		last := r.take(t.Context(), "more d", time.Minute)
		hangUp()
		synctest.Wait()
		r.wantState("k:a", "c,d")
		r.want(r.release("k a"), released)
		r.wantState(":", "c,d") // at the head its place is held
		r.wantWaiting(last)
		start := time.Now()
		r.want(<-last, granted)
		if waited := time.Since(start); waited > placeKept {
			t.Errorf("the place was held for %v longer than %v", waited-placeKept, placeKept)
		}
	})
}

func TestGoneBeforeItsRequestIsApplied(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		gone, hangUp := context.WithCancel(t.Context())
		hangUp()
		if a := <-r.take(gone, "k a", 0); !errors.Is(a.err, errGone) {
			t.Errorf("%+v, want %v", a, errGone)
		}
		if a := <-r.take(gone, "k a 1", time.Minute); !errors.Is(a.err, errGone) {
			t.Errorf("%+v, want %v", a, errGone)
		}
		r.wantState(":", "")
	})
}

func TestTwoRequestsOfOneClaim(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		ctx, hangUp := context.WithCancel(t.Context())
		r.take(ctx, "other b 1", time.Minute) // an old connection, half open
		second, third := r.take(t.Context(), "other b 1", time.Minute), r.take(t.Context(), "other b 1", 5*time.Second)
		hangUp()
		r.want(<-third, queued)
		time.Sleep(placeKept + time.Second) // the second keeps the place
		r.wantState("k:a", "b")
		fourth := r.take(t.Context(), "other b 1", time.Minute)
		r.want(r.release("k a"), released)
		one, two := r.want(<-second, granted), r.want(<-fourth, granted)
		if one.token != two.token {
			t.Errorf("tokens %d and %d, want the same", one.token, two.token)
		}
	})
}

// TestGrantedWhileItsOtherRequestEnds lets the wait of one request end in the
// very commit that grants the lock to another of the same claim.
func TestGrantedWhileItsOtherRequestEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		first := r.take(t.Context(), "other b 1", 10*time.Second)
		second := r.take(t.Context(), "other b 1", 20*time.Second)
		time.Sleep(9 * time.Second)
		r.beforeSync(func() { time.Sleep(2 * time.Second) })
		go r.ask(t.Context(), of("waits c 2"), time.Minute) // a commit that takes from 9 s to 11 s
		synctest.Wait()
		go r.release("k a")
		one, two := r.want(<-first, granted), r.want(<-second, granted)
		if one.token != two.token {
			t.Errorf("tokens %d and %d, want the same", one.token, two.token)
		}
	})
}

// TestWithdrawnWhileItsOtherRequestEnds is the same with a release of the claim
// itself.
func TestWithdrawnWhileItsOtherRequestEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		waits := r.take(t.Context(), "other b 1", 5*time.Second)
		r.beforeSync(func() { time.Sleep(6 * time.Second) })
		go r.ask(t.Context(), of("waits c 2"), time.Minute) // a commit that takes longer than the wait
		synctest.Wait()
		go r.release("other b 1")
		r.want(<-waits, withdrawn)
	})
}

// TestAskedWithoutWaitBesideOneThatWaits has a claim's waiting request, one of
// it that does not wait, and the release that makes room, in one commit: the
// waiting one is granted the lock.
func TestAskedWithoutWaitBesideOneThatWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		disk := make(chan struct{})
		r.beforeSync(func() { <-disk })
		r.take(t.Context(), "k c", 0) // the others queue behind its commit
		waits := r.take(t.Context(), "other b 1", time.Minute)
		asks := r.take(t.Context(), "other b 1", 0)
		go r.release("k a")
		go r.release("k c")
		synctest.Wait()
		close(disk)
		one, two := r.want(<-waits, granted), r.want(<-asks, granted)
		if one.token != two.token {
			t.Errorf("tokens %d and %d, want the same", one.token, two.token)
		}
		r.wantState("other:b", "")
	})
}

func TestWithdrawnWhileItWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		waiting := r.take(t.Context(), "other b 1", time.Minute)
		r.want(r.release("other b 1"), withdrew)
		r.want(<-waiting, withdrawn)
	})
}

func TestRestartKeepsPlaces(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		with, without := r.take(t.Context(), "other b 1", time.Minute), r.take(t.Context(), "other c", time.Minute)
		last := r.take(t.Context(), "more d 2", time.Minute)
		r.stop()
		for _, got := range []chan answer{with, without, last} {
			if a := <-got; !errors.Is(a.err, errStopping) {
				t.Errorf("a waiter got %+v, want %v", a, errStopping)
			}
		}
		after := newRig(t, r.path)
		after.wantState("k:a", "b,d")
		time.Sleep(placeKept - 100*time.Millisecond)
		again := after.take(t.Context(), "more d 2", time.Minute)
		after.wantState("k:a", "b,d")
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		after.wantState("k:a", "d") // b did not come back
		after.want(after.release("k a"), released)
		after.want(<-again, granted)
	})
}

// TestPlacesCountFromListening lets time pass between the load and the run.
func TestPlacesCountFromListening(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		r.take(t.Context(), "other b 1", time.Minute)
		r.stop()
		st, s, err := openState(r.path, realSteps(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		c, err := newCommitter(st, s, newMetrics(), quiet(), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(placeKept - time.Second) // a name that resolves slowly
		after := &rig{t: t, path: r.path, c: c, st: st, ended: make(chan error, 1)}
		go func() { after.ended <- c.run() }()
		defer after.stop()
		time.Sleep(placeKept - time.Second)
		after.want(<-after.take(t.Context(), "other b 1", 0), queued)
		after.wantState("k:a", "b")
	})
}

// TestNoWaitRequestRenewsThePlace asks again without waiting, also while the
// commit that this rides in fails.
func TestNoWaitRequestRenewsThePlace(t *testing.T) {
	for _, failing := range []bool{false, true} {
		t.Run(fmt.Sprintf("failing=%t", failing), func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.want(<-r.takeClaim(t.Context(), ttl(of("k a"), time.Second), 0), granted)
				r.want(<-r.take(t.Context(), "k c", 0), granted)
				r.want(<-r.take(t.Context(), "other b 1", 100*time.Millisecond), queued)
				if failing {
					r.setFault(faultAt("write", false, syscall.EIO))
				}
				for range 4 {
					time.Sleep(10 * time.Second)
					if a := <-r.take(t.Context(), "other b 1", 0); (a.err != nil) != failing {
						t.Fatalf("answer %+v while failing is %t", a, failing)
					}
				}
				r.setFault(nil)
				time.Sleep(2 * time.Second)
				r.wantState("k:c", "b")
			})
		})
	}
}

// TestEndsWhileItsOwnCommitRuns lets a wait and a connection end before the
// request has its place.
func TestEndsWhileItsOwnCommitRuns(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		r.beforeSync(func() { time.Sleep(3 * time.Second) })
		start := time.Now()
		ctx, hangUp := context.WithCancel(t.Context())
		gone := r.take(ctx, "other b 1", time.Minute)
		short := r.take(t.Context(), "other c 1", time.Second)
		hangUp()
		r.want(<-gone, queued)
		r.want(<-short, queued)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("answered after %v", took)
		}
	})
}

// TestGatherIsShort lets a lone client come back after a commit that took long
// and answered two.
func TestGatherIsShort(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.beforeSync(func() { time.Sleep(20 * time.Second) })
		first := r.take(t.Context(), "k z", 0)
		one, two := r.take(t.Context(), "k a", 0), r.take(t.Context(), "k b", 0)
		r.want(<-first, granted)
		r.want(<-one, granted)
		r.want(<-two, granted)
		r.setFault(nil)
		start := time.Now()
		r.want(<-r.take(t.Context(), "k c", 0), granted)
		if took := time.Since(start); took > gatherMost {
			t.Errorf("a lone client waited %v for others", took)
		}
	})
}

// TestHungDiskCostsNobodyTheirPlace has a commit take longer than a place is
// kept: a waiter that was between two requests keeps it, whether it comes back
// meanwhile or right after.
func TestHungDiskCostsNobodyTheirPlace(t *testing.T) {
	for name, comesBack := range map[string]time.Duration{"meanwhile": 10 * time.Second, "right after": placeKept + 2*time.Second} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.want(<-r.take(t.Context(), "k a", 0), granted)
				r.want(<-r.take(t.Context(), "other b 1", time.Second), queued)
				r.want(<-r.take(t.Context(), "third c 2", 0), refused)
				first := r.c.state().look("l").Waiters[0].Revision
				hang := sync.OnceFunc(func() { time.Sleep(placeKept + 1500*time.Millisecond) })
				r.beforeSync(hang)
				go r.ask(t.Context(), of("last d 3"), time.Second)
				time.Sleep(comesBack)
				r.want(<-r.take(t.Context(), "other b 1", time.Second), queued)
				if w := r.c.state().look("l").Waiters[0]; w.Revision != first {
					t.Errorf("it queued anew: first in line is %+v", w)
				}
			})
		})
	}
}

// TestSlowDiskDoesNotKeepTheDead gives a waiter that never comes back the time
// of a hung disk once.
func TestSlowDiskDoesNotKeepTheDead(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		r.want(<-r.take(t.Context(), "other b 1", time.Second), queued)
		r.beforeSync(func() { time.Sleep(5 * time.Second) })
		end := time.Now().Add(placeKept + 12*time.Second)
		for i := 0; time.Now().Before(end); i++ {
			r.want(<-r.take(t.Context(), fmt.Sprintf("z n%d", i), time.Millisecond), refused)
		}
		r.setFault(nil)
		r.wantState(r.now(), "")
	})
}

// TestStoppedWriterCostsNobodyTheirPlace stops the writer between two batches,
// as SIGSTOP does.
func TestStoppedWriterCostsNobodyTheirPlace(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.takeClaim(t.Context(), ttl(of("k a"), time.Hour), 0), granted) // so that the writer looks at the clock
		r.want(<-r.take(t.Context(), "other b 1", time.Second), queued)
		first := r.c.state().look("l").Waiters[0].Revision
		r.stall.Store(int64(placeKept + 1500*time.Millisecond))
		time.Sleep(placeKept + 3*time.Second)
		r.want(<-r.take(t.Context(), "other b 1", time.Second), queued)
		if w := r.c.state().look("l").Waiters[0]; w.Revision != first {
			t.Errorf("it queued anew: first in line is %+v", w)
		}
		time.Sleep(placeKept + time.Second)
		r.wantState(r.now(), "") // but no more than once
	})
}

// TestStopWhileOthersAreWaitedFor stops the writer between a commit and the next,
// while it waits for those whom it answered.
func TestStopWhileOthersAreWaitedFor(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.stop()
		st, s, err := openState(r.path, realSteps(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var c *committer
		stop := sync.OnceFunc(func() {
			c.gathering = time.Now().Add(placeKept + 1500*time.Millisecond)
			c.inbox.mu.Lock()
			defer c.inbox.mu.Unlock()
			c.inbox.expected = 1000
		})
		c, err = newCommitter(st, s, newMetrics(), slog.New(slog.NewTextHandler(onWrite(func(line string) {
			if strings.Contains(line, "locked_by=d") {
				stop()
			}
		}), nil)), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		r = &rig{t: t, path: r.path, c: c, st: st, ended: make(chan error, 1)}
		go func() { r.ended <- r.c.run() }()
		defer r.stop()
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		r.want(<-r.take(t.Context(), "other b 1", time.Second), queued)
		go r.ask(t.Context(), of("last d 3"), time.Minute)
		time.Sleep(placeKept + 4*time.Second)
		r.wantState("k:a", "b,d")
	})
}

// onWrite is called with what is written to it, by the writer when it logs.
type onWrite func(text string)

func (f onWrite) Write(text []byte) (int, error) { f(string(text)); return len(text), nil }

// TestLongStopAfterAShortOne has both in one absence of a waiter: the long one counts,
// as if it were the only one.
func TestLongStopAfterAShortOne(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		r.want(<-r.take(t.Context(), "other b 1", time.Second), queued)
		for _, hang := range []time.Duration{longest + 200*time.Millisecond, placeKept + 1500*time.Millisecond} {
			r.beforeSync(sync.OnceFunc(func() { time.Sleep(hang) }))
			r.want(<-r.take(t.Context(), fmt.Sprintf("z n%d", hang), time.Millisecond), refused)
		}
		r.wantState("k:a", "b")
		time.Sleep(placeKept - 2*time.Second)
		r.wantState("k:a", "b")
		time.Sleep(1500 * time.Millisecond)
		r.wantState("k:a", "") // the short one is not added
	})
}

// TestEachAbsenceIsGivenItsTime has two hangs of one length, and a waiter that comes
// back after each.
func TestEachAbsenceIsGivenItsTime(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		r.want(<-r.take(t.Context(), "other b 1", time.Second), queued)
		first := r.c.state().look("l").Waiters[0].Revision
		for range 2 {
			r.beforeSync(sync.OnceFunc(func() { time.Sleep(placeKept + 1500*time.Millisecond) }))
			r.want(<-r.take(t.Context(), "z n", time.Millisecond), refused)
			time.Sleep(time.Second)
			r.want(<-r.take(t.Context(), "other b 1", 0), queued)
		}
		if w := r.c.state().look("l").Waiters[0]; w.Revision != first {
			t.Errorf("it queued anew: first in line is %+v", w)
		}
	})
}

// TestShortStopIsNone stops the writer for less than a second just before it pauses
// for one: its pause is no stop.
func TestShortStopIsNone(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.takeClaim(t.Context(), ttl(of("k a"), time.Hour), 0), granted) // so that it looks at the clock then
		r.want(<-r.take(t.Context(), "other b 1", time.Second), queued)
		r.beforeSync(sync.OnceFunc(func() { r.stall.Store(int64(longest - 200*time.Millisecond)) }))
		go r.ask(t.Context(), of("last d 3"), time.Minute)
		time.Sleep(placeKept + time.Second)
		r.wantState(r.now(), "d")
	})
}

// TestQueuedRequestCountsAsThere has a waiter come back in time while a commit
// runs that ends when its time is over.
func TestQueuedRequestCountsAsThere(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		r.want(<-r.take(t.Context(), "other b 1", time.Millisecond), queued)
		first := r.c.state().look("l").Waiters[0].Revision
		time.Sleep(placeKept - 500*time.Millisecond)
		r.beforeSync(func() { time.Sleep(900 * time.Millisecond) })
		go r.ask(t.Context(), of("last d 3"), time.Second)
		time.Sleep(300 * time.Millisecond)
		r.want(<-r.take(t.Context(), "other b 1", 0), queued)
		if w := r.c.state().look("l").Waiters[0]; w.Revision != first {
			t.Errorf("it queued anew: first in line is %+v", w)
		}
	})
}

// Others are waited for when all who were answered came back within a commit, and
// not when some did not; those who never do are forgotten.
func TestExpect(t *testing.T) {
	in := newInbox()
	commit := func(answered, had, queued int) bool {
		in.requests = make([]*request, queued)
		return in.expect(answered, had)
	}
	for _, had := range []int{8, 8, 4} {
		if !commit(had, had, 8-had) {
			t.Error("all came back, and were not waited for")
		}
	}
	if commit(4, 4, 3) {
		t.Error("one did not come back in time, and is waited for")
	}
	commits := 1
	for ; commits < 10 && !commit(1, 1, 0); commits++ {
	}
	if commits == 1 || commits == 10 {
		t.Errorf("who went away is forgotten after %d commits", commits)
	}
}
