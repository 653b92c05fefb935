package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file puts a network between builds and a locker that delivers requests
// late, more than once, and when nobody waits for their answers any more.

// late is that network. When says how long after it was sent each copy of a request
// arrives; a request without copies is lost. Only the first one's answer finds its
// way back, if it is not lost too. What only looks passes at once.
type late struct {
	target string
	when   func(method, body string) []time.Duration
	loses  func() bool // an answer; nil: none
	onWay  atomic.Int64
}

func (l *late) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	copies := []time.Duration{0}
	if r.Method != http.MethodGet {
		copies = l.when(r.Method, string(body))
	}
	if len(copies) == 0 {
		panic(http.ErrAbortHandler)
	}
	loses := r.Method != http.MethodGet && l.loses != nil && l.loses()
	answered := make(chan bool)
	for i, after := range copies {
		l.onWay.Add(1)
		go func() {
			defer l.onWay.Add(-1)
			time.Sleep(after)
			resp := l.deliver(r, body)
			if i > 0 {
				return
			}
			if resp == nil || loses {
				answered <- false
				return
			}
			w.Header().Set("Locker-Ticket", resp.Header.Get("Locker-Ticket"))
			w.WriteHeader(resp.StatusCode)
			io.Copy(w, resp.Body)
			answered <- true
		}()
	}
	if !<-answered {
		panic(http.ErrAbortHandler)
	}
}

// wait returns when everything has arrived.
func (l *late) wait(t *testing.T) {
	t.Helper()
	lockertest.Eventually(t, "everything has arrived", func() bool { return l.onWay.Load() == 0 })
}

// deliver sends a request, whether or not its sender is still there, and reads
// the answer to its end.
func (l *late) deliver(r *http.Request, body []byte) *http.Response {
	req, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, "http://"+l.target+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil
	}
	data, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(data))
	if err != nil {
		return nil
	}
	return resp
}

// held delays the requests of that method by d.
func held(method string, d time.Duration) func(string, string) []time.Duration {
	return func(m, _ string) []time.Duration {
		if m == method {
			return []time.Duration{d}
		}
		return []time.Duration{0}
	}
}

// A take that arrives when its build was aborted and has given everything back
// is granted to nobody.
func TestTakeArrivesAfterTheAbort(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			s := lockertest.Start(t)
			sent := make(chan bool, 20)
			slow := &late{target: s.Address, when: func(method, body string) []time.Duration {
				sent <- true
				return held(http.MethodPut, 3*time.Second)(method, body)
			}}
			p := lockertest.NewPipeline(serveQuietly(t, slow))
			lock := p.Out(t, "1", lockertest.LockParams("k", ""))
			<-sent
			time.Sleep(time.Duration(50*i) * time.Millisecond)
			lock.Abort()
			lock.Failed(t, "lock myLock: stopped by an abort or a timeout: ")
			if i%2 == 0 {
				p.Out(t, "1", lockertest.OwnUnlock("k")).OK(t)
			}
			slow.wait(t)
			if l := s.Lock("myLock"); !lockertest.Nobodys(l) {
				t.Errorf("the dead build holds it: %+v", l)
			}
		})
	}
}

// A give-back that arrives when the next attempt of the same build holds the
// lock frees nothing.
func TestGiveBackArrivesAfterTheNextAttempt(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	slow := &late{target: s.Address, when: held(http.MethodDelete, 6*time.Second)}
	gate := lockertest.NewPipeline(s.Address)
	gate.Out(t, "gate", lockertest.LockParams("gate", "")).OK(t)
	first := lockertest.NewPipeline(serveQuietly(t, slow)).Out(t, "1", lockertest.LockParams("k", ""))
	s.Await("myLock", lockertest.WithWaiters(1))
	first.Abort()
	second := lockertest.NewPipeline(s.Address).Out(t, "1", lockertest.LockParams("k", ""))
	gate.Out(t, "gate", lockertest.UnlockParams("gate", "")).OK(t)
	second.OK(t)
	slow.wait(t)
	first.Code()
	if l := s.Lock("myLock"); len(l.Holders) != 1 || l.Holders[0].LockedBy != "k" {
		t.Errorf("a late give-back freed it: %+v", l)
	}
}

// Builds over a network that delays, loses, repeats and reorders, half of them
// aborted: two never hold at once, and no hold is left that nobody knows of.
func TestLateMessages(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	moment := func() time.Duration { return time.Duration(rand.Int64N(int64(time.Second))) }
	network := &late{target: s.Address, when: func(string, string) []time.Duration {
		switch rand.IntN(5) {
		case 0:
			return nil
		case 1:
			return []time.Duration{0}
		case 2:
			return []time.Duration{moment() / 4}
		case 3:
			return []time.Duration{0, moment(), 2 * moment()}
		}
		return []time.Duration{moment(), moment()}
	}, loses: func() bool { return rand.IntN(5) == 0 }}
	p := lockertest.NewPipeline(serveQuietly(t, network))
	var mu sync.Mutex
	holds := 0
	work := func(n int) {
		build := fmt.Sprint(n)
		step := p.Out(t, build, lockertest.LockParams(fmt.Sprint("key-", n%3), "job"))
		aborted := n%2 == 1
		if aborted {
			time.Sleep(moment())
			step.Abort()
		}
		if code := step.Code(); code != 0 && !aborted {
			t.Errorf("build %s: exit status %d: %s", build, code, step.Stderr)
		} else if !aborted {
			mu.Lock()
			if holds++; holds != 1 {
				t.Errorf("build %s is one of %d that hold the lock", build, holds)
			}
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			holds--
			mu.Unlock()
		}
		if ensure := p.Out(t, build, map[string]any{"lock_op": "unlock", "key": fmt.Sprint("key-", n%3), "locked_by": "job", "own": true}); ensure.Code() != 0 {
			t.Errorf("build %s: ensure: %s", build, ensure.Stderr)
		}
	}
	rounds := 24
	if soakLength(t) >= time.Minute {
		rounds = 100
	}
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for n := worker; n < rounds; n += 4 {
				work(n)
			}
		})
	}
	all.Wait()
	network.wait(t)
	if l := s.Lock("myLock"); !lockertest.Nobodys(l) {
		t.Errorf("in the end: %+v\n%s", l, s.Log)
	}
}
