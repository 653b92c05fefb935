package test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file plays pipelines through the built programs against the built
// server.

// check answers the lock's own changes and nothing else.
func TestCheck(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	if refs := p.Check(t, nil); !slices.Equal(refs, []string{"0"}) {
		t.Errorf("a lock never used: %q", refs)
	}
	first := p.Out(t, "1", lockertest.LockParams("k", "")).OK(t).Version
	other := lockertest.NewPipeline(s.Address)
	other.Source["lock_name"] = "another/lock"
	other.Out(t, "1", lockertest.LockParams("k", "")).OK(t)
	for _, given := range []map[string]string{nil, first} {
		if refs := p.Check(t, given); !slices.Equal(refs, []string{first["ref"]}) {
			t.Errorf("after another lock's change, given %v: %q", given, refs)
		}
	}
	second := p.Out(t, "1", lockertest.UnlockParams("k", "")).OK(t).Version
	if refs := p.Check(t, first); !slices.Equal(refs, []string{first["ref"], second["ref"]}) {
		t.Errorf("after a change: %q", refs)
	}
	neverUsed := lockertest.NewPipeline(s.Address)
	neverUsed.Source["lock_name"] = "forgotten"
	if refs := neverUsed.Check(t, second); !slices.Equal(refs, []string{second["ref"]}) {
		t.Errorf("a forgotten lock: %q", refs)
	}
}

// A step that Concourse runs a second time gets the lock it has.
func TestRunTwice(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	first := p.Out(t, "1", lockertest.LockParams("k", "")).OK(t)
	again := p.Out(t, "1", lockertest.LockParams("k", ""))
	again.Said(t, "before, by this same claim")
	if got := again.OK(t); fmt.Sprint(got) != fmt.Sprint(first) {
		t.Errorf("first %v, then %v", first, got)
	}
	waiter := p.Out(t, "2", lockertest.LockParams("k", ""))
	s.Await("myLock", lockertest.WithWaiters(1))
	waiter.End(os.Kill)
	waiter = p.Out(t, "2", lockertest.LockParams("k", ""))
	waiter.Said(t, "k is next in line")
	p.Out(t, "1", lockertest.UnlockParams("k", "")).OK(t)
	waiter.OK(t)
}

// TestSeedPipelines plays the put steps of the two pipelines that the project
// was asked for with, as requests.
func TestSeedPipelines(t *testing.T) {
	p := lockertest.Start(t)
	waitFor := func(body string) chan int {
		got := make(chan int, 1)
		go func() {
			status, _ := lockertest.Send(t.Context(), "PUT", p.URL+"/lock/myLock", body)
			got <- status
		}()
		lockertest.Eventually(t, "a waiter", func() bool {
			return bytes.Contains(p.Want("GET", "/lock/myLock", "", http.StatusOK), []byte(`"waiters":[{`))
		})
		return got
	}
	t.Run("exclusive", func(t *testing.T) {
		p.Want("PUT", "/lock/myLock", `{"key": "exclusive-job-1"}`, http.StatusOK)
		second := waitFor(`{"key": "exclusive-job-2", "wait": "60s"}`)
		p.Want("DELETE", "/lock/myLock", `{"key": "exclusive-job-1"}`, http.StatusOK)
		if status := <-second; status != http.StatusOK {
			t.Errorf("the second job got %d", status)
		}
		// To the letter, the second job unlocks with the first job's key.
		p.Want("DELETE", "/lock/myLock", `{"key": "exclusive-job-1"}`, http.StatusLocked)
		p.Want("DELETE", "/lock/myLock", `{"key": "exclusive-job-2"}`, http.StatusOK)
	})
	t.Run("shared", func(t *testing.T) {
		one, two := `{"key": "can-coexist", "locked_by": "coexisting-1"`, `{"key": "can-coexist", "lock_by": "coexisting-2"`
		p.Want("PUT", "/lock/myLock", one+`}`, http.StatusOK)
		p.Want("PUT", "/lock/myLock", two+`}`, http.StatusOK)
		exclusive := waitFor(`{"key": "cannot-coexist", "locked_by": "exclusive-job", "wait": "60s"}`)
		p.Want("DELETE", "/lock/myLock", one+`}`, http.StatusOK)
		p.Want("PUT", "/lock/myLock", one+`}`, http.StatusLocked) // the waiter is not passed
		p.Want("DELETE", "/lock/myLock", two+`}`, http.StatusOK)
		if status := <-exclusive; status != http.StatusOK {
			t.Errorf("the exclusive job got %d", status)
		}
		p.Want("PUT", "/lock/myLock", one+`}`, http.StatusLocked)
		p.Want("DELETE", "/lock/myLock", `{"key": "cannot-coexist", "locked_by": "exclusive-job"}`, http.StatusOK)
		p.Want("PUT", "/lock/myLock", one+`}`, http.StatusOK)
	})
}
