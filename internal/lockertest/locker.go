package lockertest

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// Locker is a process of the built server. It is killed when its test ends.
type Locker struct {
	Address string // host:port
	URL     string // of http or https
	Log     *Log   // of the process that runs now
	Process *os.Process

	t      testing.TB
	limits string
	env    []string
	ended  chan struct{}
	err    error // of the process that has ended
}

// Start starts the locker on a free port and a new state file, unless the
// environment says otherwise, and waits until it listens. There is no more
// environment than what is given.
func Start(t testing.TB, env ...string) *Locker {
	t.Helper()
	return StartLimited(t, "", env...)
}

// StartLimited is Start under limits, which are commands of a shell such as
// "ulimit -n 80".
func StartLimited(t testing.TB, limits string, env ...string) *Locker {
	t.Helper()
	settings := []string{"LISTEN=127.0.0.1:0", "LOCKER_CONFIG=" + filepath.Join(t.TempDir(), "locker.json")}
	l := &Locker{t: t, limits: limits, env: append(settings, env...)}
	l.start()
	t.Cleanup(l.Kill)
	return l
}

// Restart starts the locker again, where it was. More environment can be given.
func (l *Locker) Restart(env ...string) {
	l.t.Helper()
	l.env = append(append(l.env, "LISTEN="+l.Address), env...)
	l.start()
}

func (l *Locker) start() {
	l.t.Helper()
	cmd := Command(l.t, "locker", l.env...)
	if l.limits != "" {
		limited := exec.Command("sh", "-c", l.limits+` && exec "$0"`, cmd.Path)
		limited.Env = cmd.Env
		cmd = limited
	}
	l.Log, l.ended = NewLog(), make(chan struct{})
	log, ended := l.Log, l.ended
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.Process = cmd.Process
	go func() {
		l.err = cmd.Wait()
		io.WriteString(log, "ended\n")
		close(ended)
	}()
	started := log.Await(l.t, `msg=start .*address=(\S+) tls=(\S+)|(?m:^ended)`)
	if started[1] == "" {
		l.t.Fatalf("the locker did not start: %v\n%s", l.err, log)
	}
	scheme := map[string]string{"false": "http", "true": "https"}[started[2]]
	l.Address, l.URL = started[1], scheme+"://"+started[1]
}

// Stop ends the locker as an operator does, and wants its exit status to be 0.
func (l *Locker) Stop() {
	l.t.Helper()
	l.Process.Signal(syscall.SIGTERM)
	if err := l.Wait(); err != nil {
		l.t.Errorf("exit: %v\n%s", err, l.Log)
	}
}

// Kill ends the locker without a warning.
func (l *Locker) Kill() {
	l.Process.Kill()
	l.Wait()
}

// Wait waits for the end of the process, and returns its error.
func (l *Locker) Wait() error {
	<-l.ended
	if strings.Contains(l.Log.String(), "DATA RACE") {
		l.t.Errorf("the locker races:\n%s", l.Log)
	}
	return l.err
}

// Send sends a request and returns the status and the body; status 0 is no
// answer.
func Send(ctx context.Context, method, url, body string) (int, []byte) {
	return SendBy(ctx, http.DefaultClient, method, url, body)
}

// SendBy is Send by that client.
func SendBy(ctx context.Context, client *http.Client, method, url, body string) (int, []byte) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	return SendRequest(client, req)
}

// SendRequest is SendBy of that request.
func SendRequest(client *http.Client, req *http.Request) (int, []byte) {
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil
	}
	return resp.StatusCode, data
}

// Want sends a request that must be answered with that status, and returns the
// body.
func (l *Locker) Want(method, path, body string, status int) []byte {
	l.t.Helper()
	got, data := Send(l.t.Context(), method, l.URL+path, body)
	if got != status {
		l.t.Fatalf("%s %s %s: %d %s, want %d\n%s", method, path, body, got, data, status, l.Log)
	}
	return data
}

// Lock returns the lock as the locker shows it.
func (l *Locker) Lock(name string) resource.Lock {
	l.t.Helper()
	locks, _ := l.Poll("")
	return locks[name]
}

// Poll returns all locks and the state's revision, once it is not the given
// one; after 5 s without a change, no locks.
func (l *Locker) Poll(revision string) (map[string]resource.Lock, string) {
	l.t.Helper()
	req, err := http.NewRequestWithContext(l.t.Context(), "GET", l.URL+"/locks?wait=5s", nil)
	if err != nil {
		l.t.Fatal(err)
	}
	if revision != "" {
		req.Header.Set("If-None-Match", revision)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	locks := map[string]resource.Lock{}
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(&locks); err != nil {
			l.t.Fatal(err)
		}
	}
	return locks, resp.Header.Get("ETag")
}

// Await returns once the lock is as wanted.
func (l *Locker) Await(name string, wanted func(resource.Lock) bool) {
	l.t.Helper()
	revision := ""
	for deadline := time.Now().Add(2 * Patience); time.Now().Before(deadline); {
		var locks map[string]resource.Lock
		if locks, revision = l.Poll(revision); len(locks) > 0 && wanted(locks[name]) {
			return
		}
	}
	l.t.Fatalf("lock %s did not become what is waited for: %+v", name, l.Lock(name))
}

// Nobodys reports whether a lock has neither holders nor waiters.
func Nobodys(l resource.Lock) bool { return len(l.Holders) == 0 && len(l.Waiters) == 0 }

// WithWaiters returns what is true of a lock that is held and has n waiters.
func WithWaiters(n int) func(resource.Lock) bool {
	return func(l resource.Lock) bool { return len(l.Waiters) == n && len(l.Holders) > 0 }
}
