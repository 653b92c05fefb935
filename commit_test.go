package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestExpiryLetsTheNextOneIn(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		start := time.Now()
		r.want(<-r.takeClaim(t.Context(), ttl(of("k a 1"), 30*time.Second), 0), granted)
		next := r.take(t.Context(), "other b", time.Minute)
		time.Sleep(20*time.Second - time.Since(start))
		r.want(<-r.takeClaim(t.Context(), ttl(of("k a 1"), 30*time.Second), 0), repeated)
		r.want(<-next, granted)
		if held := time.Since(start); held < 50*time.Second || held > 51*time.Second {
			t.Errorf("held for %v, want 50 s", held)
		}
	})
}

func TestWallClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.want(<-r.take(t.Context(), "k a", 0), granted)
				r.want(<-r.takeClaim(t.Context(), ttl(of("k b"), time.Hour), 0), granted)
				waiting := r.take(t.Context(), "other c 1", 30*time.Second)
				r.jump.Store(int64(jump))
				time.Sleep(2 * wallPause)
				if jump > 0 {
					r.wantState("k:a", "c") // only what has a ttl goes by the wall clock
				} else {
					r.wantState("k:a,b", "c")
				}
				r.want(<-waiting, queued)
				time.Sleep(placeKept - time.Second)
				r.wantState(r.now(), "c")
				time.Sleep(2 * time.Second)
				r.wantState(r.now(), "")
			})
		})
	}
}

// TestGroupCommit blocks a commit and sees that all requests that arrive
// meanwhile ride in the next, and that nobody sees what is not committed.
func TestGroupCommit(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		disk := make(chan struct{})
		r.beforeSync(func() { <-disk })
		before := r.count("rename")
		first := r.take(t.Context(), "k a", 0)
		var more []chan answer
		for i := range 50 {
			more = append(more, r.take(t.Context(), fmt.Sprintf("k n%d", i), 0))
		}
		r.wantWaiting(first)
		r.wantState(":", "")
		close(disk)
		r.want(<-first, granted)
		for _, got := range more {
			r.want(<-got, granted)
		}
		if n := r.count("rename") - before; n != 2 {
			t.Errorf("%d commits, want 2", n)
		}
	})
}

// TestHandOffIsOneCommit lets clients take, release and queue again, and
// counts: the release, the next grant and the place of who queues again ride
// together.
func TestHandOffIsOneCommit(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		const clients, rounds = 8, 50
		r.beforeSync(func() { time.Sleep(time.Millisecond) })
		before := r.count("rename")
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				for range rounds {
					who := fmt.Sprintf("k%d n %d", i, i)
					if a := r.ask(t.Context(), of(who), time.Minute); a.verdict != granted {
						t.Errorf("%+v, want a grant", a)
					}
					r.release(who)
				}
			})
		}
		wg.Wait()
		if n := r.count("rename") - before; n > clients*rounds*11/10 {
			t.Errorf("%d commits for %d hand-offs", n, clients*rounds)
		}
	})
}

func TestOrderOfTheDurableWrite(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.mu.Lock()
		r.calls = nil
		r.mu.Unlock()
		got := r.take(t.Context(), "k a", 0)
		r.want(<-got, granted)
		r.mu.Lock()
		defer r.mu.Unlock()
		if want := []string{"open folder", "create", "write", "fsync file", "close", "rename", "fsync folder"}; !slices.Equal(r.calls, want) {
			t.Errorf("steps %q, want %q", r.calls, want)
		}
	})
}

func TestGiveBack(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		a := r.want(<-r.take(t.Context(), "k a", 0), granted)
		waiting := r.take(t.Context(), "other b", time.Minute)
		r.setFault(faultAt("write", false, syscall.EIO))
		r.c.giveBack(hold{"l", a.token})
		r.wantWaiting(waiting)
		r.setFault(nil) // the commit that failed has not lost it
		r.want(<-waiting, granted)
		r.c.giveBack(hold{"l", a.token}) // a hold that has ended
		synctest.Wait()
		r.wantState("other:b", "")
		if _, unclaimed, _ := r.c.inbox.receive(); len(unclaimed) > 0 {
			t.Errorf("still to be given back: %v", unclaimed)
		}
	})
}

// TestNothingChangedIsNotSaved writes no file for what changes nothing.
func TestNothingChangedIsNotSaved(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.want(<-r.take(t.Context(), "k a 1", 0), granted)
		before := r.count("rename")
		r.want(<-r.take(t.Context(), "k a 1", 0), repeated)
		r.want(<-r.take(t.Context(), "other b", 0), refused)
		r.want(r.release("k nobody"), noSuchHolder)
		if saves := r.count("rename") - before; saves != 0 {
			t.Errorf("%d saves, want none", saves)
		}
	})
}

// TestStartForgetsNothingInPlace starts on more free locks than are remembered,
// which the first save, without a change, must leave as they are.
func TestStartForgetsNothingInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	st, _ := openAt(t, path)
	var locks []*lock
	for i := range maxFree + 100 {
		l := newLock(fmt.Sprintf("l%04d", i))
		l.Revision = uint64(i + 1)
		locks = append(locks, l)
	}
	if _, err := st.save(newState(maxFree+100, locks)); err != nil {
		t.Fatal(err)
	}
	st.close()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, path)
		r.want(<-r.take(t.Context(), "k a", 0), granted)
		if free := r.c.state().size() - 1; free != maxFree {
			t.Errorf("%d free locks after a change, want %d", free, maxFree)
		}
	})
}

// TestGoneBeforeTheAnswer ends the connection while the grant is committed: who
// has no id gives it back, who has one keeps it, and a release is done all the
// same.
func TestGoneBeforeTheAnswer(t *testing.T) {
	for _, row := range []struct{ name, method, body, holders string }{
		{"take without id", "PUT", `{"key": "k", "locked_by": "b"}`, "k:a"},
		{"take with id", "PUT", `{"key": "k", "locked_by": "b", "id": "1"}`, "k:a,b"},
		{"release", "DELETE", `{"key": "k", "locked_by": "a"}`, ":"},
	} {
		t.Run(row.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.want(<-r.take(t.Context(), "k a", 0), granted)
				ctx, hangUp := context.WithCancel(t.Context())
				r.setFault(func(step string, do func() error) error {
					hangUp()
					return do()
				})
				if row.method == "DELETE" {
					hangUp()
				}
				a := apiFor(r.c, quiet())
				a.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, row.method, "/lock/l", strings.NewReader(row.body)))
				synctest.Wait()
				r.wantState(row.holders, "")
			})
		})
	}
}

// TestStopGivesBackWhatIsNotTaken stops while a client does not take its
// answer, a grant: the hold must not stay in the file.
func TestStopGivesBackWhatIsNotTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	synctest.Test(t, func(t *testing.T) {
		st, s := openAt(t, path)
		c, err := newCommitter(st, s, newMetrics(), quiet(), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		m := newMemory()
		done := make(chan error, 1)
		go func() { done <- serve(ctx, m, &config{}, c, quiet()) }()
		conn := m.dial(t)
		body := `{"key": "k"}`
		fmt.Fprintf(conn, "PUT /lock/l HTTP/1.1\r\nHost: l\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		synctest.Wait()
		if (&bench{s: c.state().state}).holders() != "k:k" {
			t.Fatal("not granted")
		}
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if file := read(t, path); strings.Contains(file, "holders") {
			t.Errorf("the hold stays: %s", file)
		}
	})
}

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
