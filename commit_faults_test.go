package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// This file fails the steps of a durable write, and looks at what a client is
// told and what the next start finds.

// TestFaultBeforeRename fails each step of the durable write before the rename,
// not applied and applied but reported as failed: the request is refused,
// nothing has changed, and the server goes on.
func TestFaultBeforeRename(t *testing.T) {
	for _, step := range []string{"open folder", "create", "write", "fsync file", "close"} {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s applied=%t", step, applied), func(t *testing.T) {
				inBubble(t, func(t *testing.T, r *rig) { testFaultBeforeRename(t, r, step, applied) })
			})
		}
	}
}

func testFaultBeforeRename(t *testing.T, r *rig, step string, applied bool) {
	r.want(<-r.take(t.Context(), "k a", 0), granted)
	waiting := r.take(t.Context(), "other b", time.Minute)
	file := read(t, r.path)
	r.setFault(faultAt(step, applied, syscall.ENOSPC))

	if a := r.release("k a"); !errors.Is(a.err, syscall.ENOSPC) {
		t.Fatalf("answer %+v, want no space", a)
	}
	if step != "create" || !applied { // a file that nobody was told of stays until the next start
		onlyFiles(t, r.path)
	}
	if read(t, r.path) != file || r.now() != "k:a" || r.c.failing() == nil {
		t.Errorf("state %s, failing %v; want it unchanged, and failing", r.now(), r.c.failing())
	}
	r.wantWaiting(waiting)
	r.want(<-r.take(t.Context(), "other c", 0), refused) // what needs no commit is answered

	r.setFault(nil)
	time.Sleep(time.Second + time.Millisecond)
	synctest.Wait()
	if r.c.failing() != nil {
		t.Error("still failing a second after the disk was well again")
	}
	r.want(r.release("k a"), released)
	r.want(<-waiting, granted)
}

// TestFaultLosesNothingDerived ends a hold, a place and a connection while
// commits fail: all three are found again when they succeed.
func TestFaultLosesNothingDerived(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.takeClaim(t.Context(), ttl(of("k a"), 5*time.Second), 0), granted)
		ctx, hangUp := context.WithCancel(t.Context())
		r.take(ctx, "other b", time.Minute)
		r.take(ctx, "other c 1", time.Minute)
		next := r.take(t.Context(), "more d", time.Minute)
		r.setFault(faultAt("write", false, syscall.EIO))
		hangUp()
		time.Sleep(40 * time.Second)
		r.wantState("k:a", "b,c,d")
		r.setFault(nil)
		r.want(<-next, granted)
		r.wantState("more:d", "")
	})
}

// TestFaultAtRename fails the rename and what comes after, both ways: the
// outcome is unknown, the committer ends, and the next start reads what is
// there, the old state or the new.
func TestFaultAtRename(t *testing.T) {
	for _, step := range []string{"rename", "fsync folder"} {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s applied=%t", step, applied), func(t *testing.T) {
				inBubble(t, func(t *testing.T, r *rig) { testFaultAtRename(t, r, step, applied) })
			})
		}
	}
}

func testFaultAtRename(t *testing.T, r *rig, step string, applied bool) {
	r.want(<-r.take(t.Context(), "k a", 0), granted)
	waiting := r.take(t.Context(), "other b 1", time.Minute)
	behind := r.take(t.Context(), "more c 1", time.Minute)
	r.setFault(faultAt(step, applied, syscall.EIO))

	if a := r.release("k a"); !errors.Is(a.err, errUnknown) {
		t.Fatalf("answer %+v, want an unknown outcome", a)
	}
	if a := <-waiting; !errors.Is(a.err, errUnknown) {
		t.Errorf("the waiter to whom this gave the lock got %+v, want an unknown outcome", a)
	}
	if a := <-behind; !errors.Is(a.err, errStopping) {
		t.Errorf("the waiter behind it got %+v, want %v", a, errStopping)
	}
	if a := r.release("k a"); !errors.Is(a.err, errStopping) {
		t.Errorf("a request afterwards got %+v, want %v", a, errStopping)
	}
	calls := r.count("fsync file") + r.count("fsync folder")
	if err := r.stop(); !errors.Is(err, errUnknown) {
		t.Errorf("the committer ended with %v", err)
	}
	if n := r.count("fsync file") + r.count("fsync folder"); n != calls {
		t.Error("an fsync was tried again")
	}
	after := newRig(t, r.path)
	if step == "rename" && !applied {
		after.wantState("k:a", "b,c")
	} else {
		after.wantState("other:b", "c")
		after.want(<-after.take(t.Context(), "other b 1", 0), repeated)
	}
}

// faultAt fails a step, after or instead of doing it.
func faultAt(at string, applied bool, err error) func(string, func() error) error {
	return func(step string, do func() error) error {
		if step != at {
			return do()
		}
		if applied {
			if realErr := do(); realErr != nil {
				return realErr
			}
		}
		return err
	}
}

// onlyFiles fails the test when there is more than the state file and its lock.
func onlyFiles(t testing.TB, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); name != filepath.Base(path) && name != filepath.Base(path)+".lock" {
			t.Errorf("left behind: %s", name)
		}
	}
}

// What is not saved for want of space is a 507, everything else a 503.
func TestStatusOfAFault(t *testing.T) {
	for errno, want := range map[error]int{
		syscall.ENOSPC: http.StatusInsufficientStorage,
		syscall.EDQUOT: http.StatusInsufficientStorage,
		syscall.EFBIG:  http.StatusInsufficientStorage,
		syscall.EIO:    http.StatusServiceUnavailable,
		fmt.Errorf("%w: %w", errUnknown, syscall.ENOSPC): http.StatusServiceUnavailable,
	} {
		if got := errorReply(fmt.Errorf("save state: %w", errno)).status; got != want {
			t.Errorf("%v: %d, want %d", errno, got, want)
		}
	}
}
