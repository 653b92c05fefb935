package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// Fifty builds of one job over three slots, half of them aborted: never more than
// three hold the lock, no slot is two builds' at once, who came first is first, and
// in the end none holds it.
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
			time.Sleep(rand.N(100 * time.Millisecond))
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
	var told resource.Events
	if err := json.Unmarshal(s.Want("GET", "/events", "", http.StatusOK), &told); err != nil {
		t.Fatal(err)
	}
	var queue []string
	holders, waited := 0, 0
	for _, e := range slices.Backward(told.Events) {
		place := slices.Index(queue, e.LockedBy)
		switch e.Event {
		case "queue":
			queue = append(queue, e.LockedBy)
			continue
		case "grant":
			if holders++; holders > slots || place > 0 || place < 0 && len(queue) > 0 {
				t.Errorf("%s is granted as holder %d; in the queue: %v", e.LockedBy, holders, queue)
			}
		case "release":
			holders--
		}
		if place >= 0 {
			queue = slices.Delete(queue, place, place+1)
			waited++
		}
	}
	if waited < builds/10 || holders != 0 || len(queue) > 0 {
		t.Errorf("%d waited, %d hold and %v wait in the end", waited, holders, queue)
	}
}

// The grants of one commit have versions of their own: Concourse, which does not run
// a get of a version again, would give two builds one slot.
func TestSlotsFromACache(t *testing.T) {
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
	cache := map[string]string{} // what a get wrote, by its version
	got := map[string]bool{}
	for n, step := range steps {
		version := step.OK(t).Version
		dir, cached := cache[version["ref"]]
		if !cached {
			dir = filepath.Join(t.TempDir(), "get")
			p.Begin(t, "in", fmt.Sprint(n), map[string]any{"version": version}, dir).OK(t)
			cache[version["ref"]] = dir
		}
		got[lockertest.Read(t, filepath.Join(dir, "slot"))] = true
	}
	if len(got) != 3 {
		t.Errorf("three builds have the slots %v", got)
	}
}
