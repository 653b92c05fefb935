package main

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// rig is a committer with a real state file whose steps a test can count,
// block and fail, and whose clock is the bubble's.
type rig struct {
	t    testing.TB
	path string
	c    *committer
	jump atomic.Int64 // of the wall clock, in nanoseconds

	mu    sync.Mutex
	calls []string
	fault func(step string, do func() error) error // nil: none
	ended chan error
}

func newRig(t testing.TB, path string) *rig {
	t.Helper()
	r := &rig{t: t, path: path}
	st, s, err := openState(path, r.steps(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r.c, err = newCommitter(st, s, newMetrics(), quiet(), func() time.Time { return time.Now().Add(time.Duration(r.jump.Load())) })
	if err != nil {
		t.Fatal(err)
	}
	r.ended = make(chan error, 1)
	go func() { r.ended <- r.c.run() }()
	t.Cleanup(func() { r.stop() })
	return r
}

// stop ends the committer, as a shutdown does, and lets go of the file.
func (r *rig) stop() error {
	r.c.close()
	err := <-r.ended
	r.ended <- nil
	r.c.store.close()
	return err
}

// steps are the real ones, noted, and passed through fault.
func (r *rig) steps() steps {
	real := realSteps()
	step := func(name string, do func() error) error {
		r.mu.Lock()
		r.calls = append(r.calls, name)
		fault := r.fault
		r.mu.Unlock()
		if fault == nil {
			return do()
		}
		return fault(name, do)
	}
	onFile := func(name string, do func(*os.File) error) func(*os.File) error {
		return func(f *os.File) error { return step(name, func() error { return do(f) }) }
	}
	opening := func(name string, f **os.File, do func() (*os.File, error)) error {
		return step(name, func() (err error) { *f, err = do(); return err })
	}
	return steps{
		open: func(name string) (f *os.File, err error) {
			err = opening("open folder", &f, func() (*os.File, error) { return real.open(name) })
			return f, err
		},
		create: func(dir, pattern string) (f *os.File, err error) {
			err = opening("create", &f, func() (*os.File, error) { return real.create(dir, pattern) })
			return f, err
		},
		write: func(f *os.File, data []byte) (int, error) {
			return len(data), step("write", func() error { _, err := real.write(f, data); return err })
		},
		sync:    onFile("fsync file", real.sync),
		close:   onFile("close", real.close),
		rename:  func(from, to string) error { return step("rename", func() error { return real.rename(from, to) }) },
		syncDir: onFile("fsync folder", real.syncDir),
	}
}

func (r *rig) setFault(fault func(step string, do func() error) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = fault
}

// beforeSync has something happen in each commit, before its file is synced: it
// makes the disk a slow one.
func (r *rig) beforeSync(happen func()) {
	r.setFault(func(step string, do func() error) error {
		if step == "fsync file" {
			happen()
		}
		return do()
	})
}

func (r *rig) count(step string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, c := range r.calls {
		if c == step {
			n++
		}
	}
	return n
}

// take asks for lock l for the claim in words ("key name id"), waiting that
// long, and returns at once; the answer comes through the channel.
func (r *rig) take(ctx context.Context, words string, wait time.Duration) chan answer {
	return r.takeClaim(ctx, of(words), wait)
}

func (r *rig) takeClaim(ctx context.Context, c claim, wait time.Duration) chan answer {
	got := make(chan answer, 1)
	go func() { got <- r.ask(ctx, c, wait) }()
	synctest.Wait()
	return got
}

// ask is takeClaim that returns with the answer.
func (r *rig) ask(ctx context.Context, c claim, wait time.Duration) answer {
	req := &request{lock: "l", ctx: ctx, apply: func(d *draft) outcome { return d.take("l", c, wait > 0) }}
	if wait > 0 {
		req.until = time.Now().Add(wait)
	}
	return r.c.do(req)
}

func (r *rig) release(words string) answer {
	return r.c.do(&request{lock: "l", frees: true, ctx: context.Background(), apply: func(d *draft) outcome {
		return d.release("l", of(words).identity, false)
	}})
}

func (r *rig) want(a answer, want verdict) answer {
	r.t.Helper()
	if a.err != nil || a.verdict != want {
		r.t.Fatalf("%q, error %v; want %q", a.verdict, a.err, want)
	}
	return a
}

func (r *rig) wantWaiting(got chan answer) {
	r.t.Helper()
	synctest.Wait()
	select {
	case a := <-got:
		r.t.Fatalf("answered %q, error %v; want it to wait", a.verdict, a.err)
	default:
	}
}

func (r *rig) wantState(holders, queue string) {
	r.t.Helper()
	b := &bench{t: r.t, s: r.c.state().state}
	b.want(holders, queue)
}

// now returns the holders.
func (r *rig) now() string { return (&bench{s: r.c.state().state}).holders() }

// inBubble runs a test in a synctest bubble, with a rig.
func inBubble(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "locker.json")
	synctest.Test(t, func(t *testing.T) { test(t, newRig(t, path)) })
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
