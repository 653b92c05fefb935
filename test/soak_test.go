package test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/test/history"
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

// TestSoak kills and restarts the locker under a crowd every few seconds, and stops
// it once for longer than places are kept if there is time for that. The
// last process is left alone for a quarter of the time, and then has as many
// files open as at its start, and not much more memory.
func TestSoak(t *testing.T) {
	length, start := soakLength(t), time.Now()
	path := filepath.Join(t.TempDir(), "locker.json")
	p := lockertest.Start(t, "LOCKER_CONFIG="+path)
	c := history.NewCrowd(t, p.URL)
	stop := c.Begin()
	var before footprint
	stopped := false
	for time.Since(start) < length*3/4 {
		time.Sleep(time.Second + rand.N(time.Second))
		if time.Since(start) > length/3 && length > time.Minute && !stopped {
			stopped = true
			c.Halted(halt(t, p, 16*time.Second)) // longer than a place is kept
			continue
		}
		if rand.IntN(3) == 0 {
			p.Stop()
		} else {
			p.Kill()
		}
		c.Died()
		p = lockertest.Start(t, "LOCKER_CONFIG="+path)
		before = footprintOf(t, p.Process)
		c.Moved(p.URL)
	}
	time.Sleep(length - time.Since(start))
	stop()
	c.Clear()
	wantWork(t, c.Check(), length)
	c.Leave()
	wantAsBefore(t, p, before)
	p.Stop()
	if n := savedClaims(t, path); n != 0 {
		t.Errorf("%d claims are saved", n)
	}
}

// halt stops the process for that long, without its knowledge, and returns from when
// to when.
func halt(t *testing.T, p *lockertest.Locker, length time.Duration) (from, to time.Time) {
	t.Helper()
	from = time.Now()
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(length)
	if err := p.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	return from, time.Now()
}

func wantAsBefore(t *testing.T, p *lockertest.Locker, before footprint) {
	t.Helper()
	lockertest.Eventually(t, "as many open files as at the start", func() bool { return footprintOf(t, p.Process).files <= before.files })
	after := footprintOf(t, p.Process)
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
func wantWork(t *testing.T, n history.Tally, length time.Duration) {
	t.Helper()
	tens := int(length / (10 * time.Second))
	for _, of := range []struct {
		what     string
		n, least int // the least in 10 s, a fifth of what the race detector on a busy machine lets through
	}{
		{"restarts", n.Restarts, 1},
		{"holds", n.Holds, 50},
		{"holds found after a restart", n.Survived, 2},
		{"stays in the queue", n.Stays, 30},
		{"stays over a restart", n.Resumed, 1},
		{"waits that timed out", n.Queued, 100},
		{"repeats", n.Repeated, 20},
		{"withdrawals", n.Withdrew, 10},
		{"disconnects", n.Cut, 100},
		{"holds that expired", n.Expired, 1},
		{"forces", n.Forced, 2},
		{"forces of what had changed hands", n.Changed, 1},
	} {
		if of.n < of.least*tens {
			t.Errorf("only %d %s, want at least %d", of.n, of.what, of.least*tens)
		}
	}
	if length > time.Minute && n.Away == 0 {
		t.Error("nobody was away for longer than a place is kept")
	}
}
