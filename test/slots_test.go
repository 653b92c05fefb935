package test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// Fifty builds of one job over three slots, half of them aborted: never more than
// three hold the lock, no slot is two builds' at once, and in the end none is.
func TestSlots(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	const builds, slots = 50, 3
	var mu sync.Mutex
	working := map[string]string{} // the build of each slot
	work := func(n int) {
		build := fmt.Sprint(n)
		params := lockertest.LockParams("deploy", "build-"+build)
		params["slots"], params["reason"] = slots, "deploying build "+build
		step := p.Out(t, build, params)
		if n%2 == 1 {
			time.Sleep(rand.N(100 * time.Millisecond))
			step.Abort()
		}
		if code := step.Code(); code == 0 {
			answer := step.OK(t)
			dir := filepath.Join(t.TempDir(), "get")
			p.Begin(t, "in", build, map[string]any{"version": answer.Version}, dir).OK(t)
			slot, token := lockertest.Read(t, filepath.Join(dir, "slot")), lockertest.Read(t, filepath.Join(dir, "token"))
			if token != answer.Version["ref"] {
				t.Errorf("token %s, version %v", token, answer.Version)
			}
			mu.Lock()
			if other := working[slot]; other != "" || len(working) >= slots || slot < "1" || slot > "3" {
				t.Errorf("build %s has slot %s, which build %q has; at work: %v", build, slot, other, working)
			}
			working[slot] = build
			mu.Unlock()
			time.Sleep(rand.N(10 * time.Millisecond))
			mu.Lock()
			delete(working, slot)
			mu.Unlock()
		} else if n%2 == 0 {
			t.Errorf("build %s: %s", build, step.Stderr)
		}
		if unlock := p.Out(t, build, lockertest.UnlockParams("deploy", "")); n%2 == 0 {
			unlock.OK(t)
			unlock.Said(t, "lock myLock released by build-"+build)
		} else {
			p.Out(t, build, lockertest.OwnUnlock("deploy")).OK(t)
		}
	}
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for n := worker; n < builds; n += 8 {
				work(n)
			}
		})
	}
	all.Wait()
	if l := s.Lock("myLock"); !lockertest.Nobodys(l) {
		t.Errorf("in the end: %+v", l)
	}
}

// Two grants of one commit have versions of their own: Concourse, which does not
// run a get of a version again, would give both builds one slot.
func TestVersionsOfGrantsDiffer(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	p.Out(t, "gate", lockertest.LockParams("gate", "")).OK(t)
	var steps []*lockertest.Step
	for n := range 3 {
		params := lockertest.LockParams("deploy", fmt.Sprint("build-", n))
		params["slots"] = 3
		steps = append(steps, p.Out(t, fmt.Sprint(n), params))
		s.Await("myLock", lockertest.WithWaiters(n+1))
	}
	p.Out(t, "gate", lockertest.UnlockParams("gate", "")).OK(t)
	seen := map[string]bool{}
	for _, step := range steps {
		seen[step.OK(t).Version["ref"]] = true
	}
	if len(seen) != 3 {
		t.Errorf("versions %v", seen)
	}
}
