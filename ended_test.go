package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

func TestEndsAreAtMostTwentyThousand(t *testing.T) {
	b := newBench(t)
	b.take(of("k a"), false)
	b.batch(func(d *draft) outcome {
		for i := range maxEnded + 1 {
			d.release("l", release{of(fmt.Sprintf("k a %d", i)).identity, true, ticket{1, uint64(i + 1)}})
		}
		return outcome{}
	})
	b.batch() // trims
	if b.past.size != maxEnded || len(b.past.memos) != maxEnded || b.past.horizon != (ticket{1, 2}) {
		t.Errorf("%d remembered, %d listed, horizon %v; want the oldest dropped", b.past.size, len(b.past.memos), b.past.horizon)
	}
	b.wantVerdict(b.release(of("k a 1").identity, false), alreadyEnded)
	b.wantVerdict(b.release(of("k a 0").identity, false), released)
}

// The order in which ends are dropped does not grow with ends that are remembered
// anew.
func TestEndsThatAreRememberedAnew(t *testing.T) {
	b := newBench(t)
	for i := range 3*maxEnded + 10 {
		b.batch(func(d *draft) outcome {
			return d.release("l", release{of("k a 1").identity, true, ticket{1, uint64(i + 1)}})
		})
	}
	if b.past.size != 1 || len(b.past.order) > 2*maxEnded {
		t.Errorf("%d remembered, %d in order", b.past.size, len(b.past.order))
	}
}

func TestEightOfALockAreSaved(t *testing.T) {
	b := newBench(t)
	for i := range 20 {
		b.release(of(fmt.Sprintf("k a %d", i)).identity, true)
	}
	left := b.s.look("l").Left
	if len(left) != maxLeft || left[7].Claim != newEndID("l", "k", "a", "19") {
		t.Errorf("saved: %v", left)
	}
	b.now = b.now.Add(endedKept)
	b.release(of("k a 2").identity, true)
	if left := b.s.look("l").Left; len(left) != 1 {
		t.Errorf("saved after an hour: %v, want the last one alone", left)
	}
	b.take(of("k a 2"), false)
	if left := b.s.look("l").Left; len(left) != 0 {
		t.Errorf("a claim that is present is saved as ended: %v", left)
	}
}

// Releases on names that nobody uses leave no file that grows.
func TestReleasesOfNewNamesStaySmall(t *testing.T) {
	b := newBench(t)
	for i := range 3 {
		b.batch(func(d *draft) outcome {
			for j := range 1_000 {
				d.release(fmt.Sprintf("name %d %d", i, j), release{identity: of("k a 1").identity, own: true})
			}
			return outcome{}
		})
	}
	if b.s.size() != maxFree || b.past.size != 3_000 {
		t.Errorf("%d locks, %d ends remembered", b.s.size(), b.past.size)
	}
}

// What a crash loses is the answer, not the end: a release that is sent again
// after a start frees nobody else.
func TestReleaseAgainAfterAStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	r := newRig(t, path)
	r.ask(t.Context(), of("k a 1"), 0)
	r.want(r.release("k a 1"), released)
	r.stop()
	again := newRig(t, path)
	again.want(again.ask(t.Context(), of("k a 2"), 0), granted)
	again.want(again.release("k a 1"), alreadyEnded)
}

// An older file has the claims themselves, and more of them.
func TestOlderEndsAreRead(t *testing.T) {
	var left []string
	at := time.Now().UTC().Truncate(time.Second)
	for i := range 20 {
		left = append(left, fmt.Sprintf(`{"key":"k","locked_by":"a","id":"%d","at":%q}`, i, at.Format(time.RFC3339)))
	}
	path := filepath.Join(t.TempDir(), "locker.json")
	lockertest.WriteFile(t, path, fmt.Appendf(nil, `{"version": 2, "revision": 9, "locks": {"l": {"key":"k","revision":9,"holders":[{"locked_by":"a","since":%q,"token":9}],"left":[%s]}}}`,
		at.Format(time.RFC3339), strings.Join(left, ",")))
	r := newRig(t, path)
	r.want(r.release("k a 0"), alreadyEnded)
	r.want(r.release("k a 19"), alreadyEnded)
}

// A ticket is given out once the start is saved, and is newer than all before.
func TestTicketsWaitForTheStart(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, filepath.Join(dir, "locker.json"))
	first, err := r.c.ticket(t.Context())
	second, _ := r.c.ticket(t.Context())
	if err != nil || first.compare(second) >= 0 {
		t.Fatalf("%v, then %v: %v", first, second, err)
	}
	r.stop()
	st, s := openAt(t, filepath.Join(dir, "locker.json"))
	st.steps.sync = func(*os.File) error { return syscall.ENOSPC }
	c, err := newCommitter(st, s, newMetrics(), quiet(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.ticket(t.Context()); err != errNotBegun {
		t.Errorf("ticket %v, %v, before the start is saved", got, err)
	}
	st.steps = realSteps()
	if err := c.commit(&batch{now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if third, err := c.ticket(t.Context()); err != nil || second.compare(third) >= 0 {
		t.Errorf("%v, then %v: %v", second, third, err)
	}
}
