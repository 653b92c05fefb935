package test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file tests the locker as a process: its exit status, its limits and its
// log.

func TestExitStatus(t *testing.T) {
	busy := lockertest.Start(t).Address
	for _, test := range []struct {
		name   string
		args   []string
		signal os.Signal // sent once it serves; nil: it ends by itself
		status int
		stderr string
	}{
		{"TERM", []string{"-listen", "127.0.0.1:0"}, syscall.SIGTERM, 0, "msg=stop\n"},
		{"INT", []string{"-listen", "127.0.0.1:0"}, os.Interrupt, 0, "msg=stop\n"},
		{"HUP", []string{"-listen", "127.0.0.1:0"}, syscall.SIGHUP, 0, "msg=stop\n"},
		{"version", []string{"-version"}, nil, 0, ""},
		{"help", []string{"-help"}, nil, 0, ""},
		{"configuration", []string{"-port", "x"}, nil, 2, `locker: -port is "x"`},
		{"unknown flag", []string{"-x"}, nil, 2, "locker: flag provided but not defined: -x: see -help"},
		{"port in use", []string{"-listen", busy}, nil, 1, "locker: listen tcp " + busy},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd, stderr := lockertest.Command(t, "locker"), lockertest.NewLog()
			cmd.Args = append(cmd.Args, test.args...)
			cmd.Dir, cmd.Stderr = t.TempDir(), stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer time.AfterFunc(lockertest.Patience, func() { cmd.Process.Kill() }).Stop()
			if test.signal != nil {
				stderr.Await(t, `msg=start`)
				cmd.Process.Signal(test.signal)
			}
			cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != test.status || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("status %d, want %d; stderr:\n%s", got, test.status, stderr)
			}
		})
	}
}

// TestFileSizeLimit runs the locker under RLIMIT_FSIZE: it refuses what does
// not fit and goes on.
func TestFileSizeLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	p := lockertest.StartLimited(t, "ulimit -f 4", "LOCKER_CONFIG="+path)
	fitted := 0
	for ; ; fitted++ {
		status, body := lockertest.Send(t.Context(), "PUT", fmt.Sprintf("%s/lock/l%d", p.URL, fitted), `{"key": "k"}`)
		if status == http.StatusInsufficientStorage {
			break
		}
		if status != http.StatusOK || fitted > 100 {
			t.Fatalf("lock %d: %d %s\n%s", fitted, status, body, p.Log)
		}
	}
	p.Want("DELETE", "/lock/l0", `{"key": "k"}`, http.StatusOK)
	p.Want("GET", "/health", "", http.StatusOK)
	p.Kill()
	if n := savedClaims(t, path); n != fitted-1 {
		t.Errorf("%d claims saved, want %d", n, fitted-1)
	}
}

// TestLogThatNobodyReads fills the pipe behind the log: the locker works on,
// and stops when it is told to.
func TestLogThatNobodyReads(t *testing.T) {
	unread, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	address := "127.0.0.1:" + lockertest.FreePort(t) // the log that would tell is not read
	cmd := lockertest.Command(t, "locker", "LISTEN="+address, "LOCKER_CONFIG="+filepath.Join(t.TempDir(), "locker.json"))
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stderr.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	ask := func(method, path, body string) int {
		status, _ := lockertest.Send(t.Context(), method, "http://"+address+path, body)
		return status
	}
	lockertest.Eventually(t, "an answer", func() bool { return ask("GET", "/health", "") == http.StatusOK })
	long := `{"key": "` + strings.Repeat("k", 250) + `"}` // a pipe holds 64 KiB
	for range 100 {
		if took, released := ask("PUT", "/lock/l", long), ask("DELETE", "/lock/l", long); took != http.StatusOK || released != http.StatusOK {
			t.Fatalf("taken with %d, released with %d", took, released)
		}
	}
	start := time.Now()
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("it ended after %v: %v", time.Since(start), err)
	}
}

// TestStoppedProcess stops the locker for longer than a place is kept, while
// both waiters are between two requests. They come back at once, and have their
// places.
func TestStoppedProcess(t *testing.T) {
	t.Parallel()
	p := lockertest.Start(t)
	p.Want("PUT", "/lock/l", `{"key": "k"}`, http.StatusOK)
	for _, waiter := range []string{"a", "b"} {
		p.Want("PUT", "/lock/l", `{"key": "`+waiter+`", "id": "`+waiter+`", "wait": "1ms"}`, http.StatusLocked)
	}
	before := p.Lock("l").Waiters
	time.Sleep(1100 * time.Millisecond) // the writer has nothing to do but to wait for them
	p.Process.Signal(syscall.SIGSTOP)
	time.Sleep(16500 * time.Millisecond)
	p.Process.Signal(syscall.SIGCONT)
	time.Sleep(300 * time.Millisecond)
	for _, waiter := range []string{"b", "a"} {
		p.Want("PUT", "/lock/l", `{"key": "`+waiter+`", "id": "`+waiter+`", "wait": "1ms"}`, http.StatusLocked)
	}
	if after := p.Lock("l").Waiters; !slices.Equal(before, after) {
		t.Errorf("the queue was %+v and is %+v", before, after)
	}
}

// TestHangUpIgnored starts the locker as nohup does: the end of its terminal is
// not its own.
func TestHangUpIgnored(t *testing.T) {
	p := lockertest.StartLimited(t, "trap '' HUP")
	p.Process.Signal(syscall.SIGHUP)
	time.Sleep(300 * time.Millisecond)
	p.Want("PUT", "/lock/l", `{"key": "k"}`, http.StatusOK)
}
