// Package history lets a crowd of clients loose on a locker, writes down what
// each asked and was answered, and finds in that history what a correct locker
// cannot have done.
package history

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// Crowd is many clients of one locker that take, wait, time out, disconnect,
// come back and release at random, and write down what they asked and were
// answered. Begin is called once, and then everything else by one goroutine.
type Crowd struct {
	t        testing.TB
	http     *http.Client
	urls     atomic.Pointer[[]string] // where the lockers are now
	start    time.Time
	locks    int
	seed     uint64
	visitors []*visitor
	watcher  *visitor // who looks at all locks
	deaths   []time.Duration
	halts    []halt
	leaving  chan struct{} // closed when nobody is to begin anything
}

const locksPerCrowd, visitorsPerCrowd = 20, 200

// NewCrowd returns a crowd that has not yet begun, for the locker at url, or several
// that serve the same locks.
func NewCrowd(t testing.TB, urls ...string) *Crowd {
	c := &Crowd{t: t, start: time.Now(), locks: locksPerCrowd, seed: rand.Uint64(), leaving: make(chan struct{})}
	c.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: visitorsPerCrowd}}
	c.urls.Store(&urls)
	for n := range visitorsPerCrowd {
		c.visitors = append(c.visitors, c.visitor(n))
	}
	c.watcher = c.visitor(visitorsPerCrowd)
	t.Cleanup(c.http.CloseIdleConnections)
	seed := c.seed
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("seed", seed)
		}
	})
	return c
}

// visitor returns the n-th visitor.
func (c *Crowd) visitor(n int) *visitor {
	return &visitor{Crowd: c, n: n, random: rand.New(rand.NewPCG(c.seed, uint64(n)))}
}

// Begin lets all visitors loose until stop, which returns when each has ended
// its round.
func (c *Crowd) Begin() (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	var all sync.WaitGroup
	for _, v := range c.visitors {
		all.Go(func() {
			for ctx.Err() == nil {
				v.round()
			}
		})
	}
	return func() {
		close(c.leaving)
		cancel()
		all.Wait()
	}
}

// Look has the crowd look at all locks.
func (c *Crowd) Look() { c.watcher.list() }

// Died tells the crowd that the locker's process has ended.
func (c *Crowd) Died() { c.deaths = append(c.deaths, time.Since(c.start)) }

// TookOver tells the crowd when each of several lockers began to lead, but for the
// first.
func (c *Crowd) TookOver(at []time.Time) {
	for _, t := range at {
		c.deaths = append(c.deaths, t.Sub(c.start))
	}
}

// Halted tells the crowd that the process was stopped from one time to another.
func (c *Crowd) Halted(from, to time.Time) {
	c.halts = append(c.halts, halt{from.Sub(c.start), to.Sub(c.start)})
}

// Moved tells the crowd where the locker is from now on.
func (c *Crowd) Moved(url string) {
	c.urls.Store(&[]string{url})
	c.Look()
}

// Leave closes the connections on which nobody asks.
func (c *Crowd) Leave() { c.http.CloseIdleConnections() }

// Clear releases what late requests may have taken until every lock is free.
func (c *Crowd) Clear() {
	c.t.Helper()
	busy := c.watcher.clear()
	for late := time.Now().Add(lockertest.Patience); len(busy) > 0; busy = c.watcher.clear() {
		if time.Now().After(late) {
			c.t.Errorf("not free when everything is released: %+v", busy)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// clear returns the locks that were not free, and does what it can.
func (v *visitor) clear() map[string]resource.Lock {
	busy := v.list()
	maps.DeleteFunc(busy, func(_ string, l resource.Lock) bool { return len(l.Holders)+len(l.Waiters) == 0 })
	for name := range busy {
		v.releaseDoubts(name)
	}
	return busy
}

func (v *visitor) releaseDoubts(lock string) {
	for _, other := range v.visitors {
		for _, d := range other.doubts {
			if d.lock == lock {
				v.ask(v.t.Context(), d, 0)
			}
		}
	}
}

// Check checks what the crowd was told, and returns what that was about.
func (c *Crowd) Check() Tally {
	c.t.Helper()
	h := &history{asked: c.watcher.told, deaths: c.deaths, halts: c.halts}
	n := Tally{Restarts: len(c.deaths)}
	for _, v := range c.visitors {
		h.asked = append(h.asked, v.told...)
		n.Cut += v.cuts
		n.Away += v.away
	}
	ended, checked := time.Since(c.start), time.Now()
	var found []string
	found, n.Weight = h.check()
	for _, f := range found[:min(len(found), 20)] {
		c.t.Error(f)
	}
	n.Queued, n.Repeated, n.Withdrew = h.count("take", queued), h.count("take", repeated), h.count("release", withdrew)
	n.Forced, n.Changed = h.count("force", released), h.count("force", refused)
	for _, a := range h.asked {
		if a.expired {
			n.Expired++
		}
	}
	c.t.Logf("%d requests in %v, %d findings in %v: %+v", len(h.asked), ended, len(found), time.Since(checked), n)
	return n
}

// Tally is what a history has of everything that may go wrong.
type Tally struct {
	Weight
	Restarts int
	Queued   int // waits that timed out
	Repeated int
	Withdrew int
	Cut      int // requests that were given up
	Away     int // for longer than a place is kept
	Expired  int // holds, before their release
	Forced   int
	Changed  int // locks that were not forced, because they had changed hands
}

// count returns how many answers of that verdict there were to such requests.
func (h *history) count(what string, is verdict) int {
	n := 0
	for _, a := range h.asked {
		if a.what == what && a.verdict == is {
			n++
		}
	}
	return n
}
