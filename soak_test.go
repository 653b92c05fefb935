package main

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"
	"time"
)

// This file lets a crowd loose on a locker, and wants its history to be right
// and nothing to be left behind.

// soakLength is 10 s, or what LOCKER_SOAK says.
func soakLength(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("LOCKER_SOAK")
	if text == "" {
		return 10 * time.Second
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("LOCKER_SOAK: %v", err)
	}
	return length
}

// TestSoak kills and restarts the locker under a crowd every few seconds. The
// last process is left alone for a quarter of the time, and then has as many
// files open as at its start, and not much more memory.
func TestSoak(t *testing.T) {
	length := soakLength(t)
	path := filepath.Join(t.TempDir(), "locker.json")
	p := startProcess(t, path)
	c := newCrowd(t, p.url)
	stop := c.begin()
	killer := c.visitor()
	var deaths []time.Duration
	var before footprint
	for time.Since(c.start) < length*3/4 {
		killer.pause(time.Second, 2*time.Second)
		p.end(t, killer.in100(33))
		deaths = append(deaths, time.Since(c.start))
		p = startProcess(t, path)
		before = p.footprint()
		c.url.Store(p.url)
		killer.list()
	}
	time.Sleep(length - time.Since(c.start))
	stop()
	c.clear()
	wantWork(t, c.check(deaths), length)
	c.http.CloseIdleConnections()
	wantAsBefore(t, p, before)
	p.end(t, true)
	if s, _, err := decodeState([]byte(read(t, path)), noon); err != nil || s.claims != 0 {
		t.Errorf("%d claims are saved, %v", s.claims, err)
	}
}

// end ends a process as an operator does, or kills it.
func (p *process) end(t *testing.T, gently bool) {
	t.Helper()
	if !gently {
		p.kill()
		return
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("exit: %v\n%s", err, p.log)
	}
}

// check checks the crowd's history, and returns what it was about.
func (c *crowd) check(deaths []time.Duration) tally {
	c.t.Helper()
	h := c.history(deaths)
	start := time.Now()
	found, weighed := h.check()
	for _, f := range found[:min(len(found), 20)] {
		c.t.Error(f)
	}
	n := tally{weight: weighed, restarts: len(deaths), queued: h.count(queued), repeated: h.count(repeated), withdrew: h.count(withdrew)}
	for _, v := range c.visitors {
		n.cut += v.cuts
	}
	c.t.Logf("%d requests in %v, %d findings in %v: %+v", len(h.asked), start.Sub(c.start), len(found), time.Since(start), n)
	return n
}

// tally is what a history has of everything that may go wrong.
type tally struct {
	weight
	restarts, queued, repeated, withdrew, cut int
}

func wantAsBefore(t *testing.T, p *process, before footprint) {
	t.Helper()
	eventually(t, "as many open files as at the start", func() bool { return p.footprint().files <= before.files })
	after := p.footprint()
	t.Logf("%+v before, %+v after", before, after)
	if more := after.mib - before.mib; more > mostMiB() {
		t.Errorf("%v MiB more than at the start", more)
	}
}

// mostMiB returns how much larger a process may be after the load of a crowd:
// 200 connections are 8 MiB, 20 locks with 1,000 ended claims each are another
// 8, as values, as they are saved and as they are shown, and the heap has half
// as much room again; what was given back stays with the process for a while.
// The race detector takes 5 to 10 times as much.
func mostMiB() float64 {
	info, ok := debug.ReadBuildInfo()
	if ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return 8 * 40
	}
	return 40
}

// wantWork wants a soak of that length to have come to all that it is for.
func wantWork(t *testing.T, n tally, length time.Duration) {
	t.Helper()
	tens := int(length / (10 * time.Second))
	for _, of := range []struct {
		what     string
		n, least int // the least in 10 s, a fifth of what the race detector on a busy machine lets through
	}{
		{"restarts", n.restarts, 1},
		{"holds", n.holds, 50},
		{"holds found after a restart", n.survived, 2},
		{"stays in the queue", n.stays, 30},
		{"stays over a restart", n.resumed, 1},
		{"waits that timed out", n.queued, 100},
		{"repeats", n.repeated, 20},
		{"withdrawals", n.withdrew, 10},
		{"disconnects", n.cut, 100},
	} {
		if of.n < of.least*tens {
			t.Errorf("only %d %s, want at least %d", of.n, of.what, of.least*tens)
		}
	}
}

// TestNothingLeftBehind lets a crowd loose on a locker in this process, which
// then has the goroutines that it had before, and not much more memory.
func TestNothingLeftBehind(t *testing.T) {
	url, _ := served(t)
	c := newCrowd(t, url)
	c.visitor().list()
	c.http.CloseIdleConnections()
	goroutines, heap := fewestGoroutines(), heapMiB()
	stop := c.begin()
	time.Sleep(2 * time.Second)
	stop()
	c.clear()
	n := c.check(nil)
	c.http.CloseIdleConnections()
	c.visitors = nil
	eventually(t, "as many goroutines as before", func() bool { return runtime.NumGoroutine() <= goroutines })
	if n.holds < 100 || n.queued < 100 || n.cut < 50 {
		t.Errorf("that was no load: %+v", n)
	}
	const kept = 1.0 / (1 << 10) // for a claim that is remembered as ended
	if more := heapMiB() - heap; more > 1+float64(n.holds+n.withdrew)*kept {
		t.Errorf("%.1f MiB more are in use than before, after %+v", more, n)
	}
}

// fewestGoroutines returns how many there are when none is about to end.
func fewestGoroutines() int {
	fewest := runtime.NumGoroutine()
	for range 20 {
		time.Sleep(10 * time.Millisecond)
		fewest = min(fewest, runtime.NumGoroutine())
	}
	return fewest
}

// heapMiB returns what is in use on the heap.
func heapMiB() float64 {
	runtime.GC()
	runtime.GC() // what was in pools goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}
