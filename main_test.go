package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// TestMain has tests and benchmarks in this process run tuned as the locker is.
func TestMain(m *testing.M) {
	tune()
	lockertest.Main(m)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// waiting are requests that wait for up to a minute when jane holds the lock a
// and nothing else has happened.
var waiting = map[string]string{
	"take":           "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: 31\r\n\r\n" + `{"key": "other", "wait": "60s"}`,
	"take with id":   "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: 43\r\n\r\n" + `{"key": "other", "id": "10", "wait": "60s"}`,
	"list":           "GET /locks?wait=60s HTTP/1.1\r\nHost: locker\r\nIf-None-Match: *\r\n\r\n",
	"list with HEAD": "HEAD /locks?wait=60s HTTP/1.1\r\nHost: locker\r\nIf-None-Match: *\r\n\r\n",
}

func takeA(t testing.TB, m *memory) {
	t.Helper()
	got := talk(t, m.dial(t), fmt.Sprintf("PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", len(jane), jane))
	if got.status != "200 OK" {
		t.Fatalf("got %s %s", got.status, got.body)
	}
}

func TestStopAnswersThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, stop := serveMemory(t, &config{})
		takeA(t, m)
		conns := map[string]net.Conn{}
		for name, request := range waiting {
			conns[name] = m.dial(t)
			io.WriteString(conns[name], request)
		}
		time.Sleep(time.Minute / 2)
		start, ended := time.Now(), make(chan error, 1)
		go func() { ended <- stop() }()
		for name, conn := range conns {
			wantStopping(t, name, bufio.NewReader(conn))
		}
		if err := <-ended; err != nil || time.Since(start) > time.Second {
			t.Errorf("serve ended after %v with %v", time.Since(start), err)
		}
	})
}

// reluctant is a listener that takes its time to close.
type reluctant struct {
	*memory
	pause func()
}

func (r reluctant) Close() error {
	r.pause()
	return r.memory.Close()
}

// Nobody who was answered 503 can connect to the same process again.
func TestStopClosesTheListenerFirst(t *testing.T) {
	const pause = 50 * time.Millisecond
	m := newMemory()
	stop := serveOn(t, reluctant{m, sync.OnceFunc(func() { time.Sleep(pause) })}, &config{})
	takeA(t, m)
	conn := m.dial(t)
	io.WriteString(conn, waiting["take"])
	talk(t, m.dial(t), "GET /locks?wait=20s HTTP/1.1\r\nHost: locker\r\nIf-None-Match: \"2\"\r\n\r\n") // until it is queued
	start := time.Now()
	go stop()
	wantStopping(t, "take", bufio.NewReader(conn))
	if took := time.Since(start); took < pause {
		t.Errorf("answered after %v, while the listener took %v to close", took, pause)
	}
}

func wantStopping(t *testing.T, name string, answers *bufio.Reader) {
	t.Helper()
	status, _ := answers.ReadString('\n')
	rest, err := io.ReadAll(answers)
	if err != nil || status != "HTTP/1.1 503 Service Unavailable\r\n" || !strings.Contains(string(rest), "Retry-After: 1\r\n") {
		t.Errorf("%s: got %q %q, %v", name, status, rest, err)
	}
	if hasBody := strings.Contains(string(rest), `{"error":"the locker is shutting down: try again"}`); hasBody == strings.HasSuffix(name, "HEAD") {
		t.Errorf("%s: got %q", name, rest)
	}
}

// Clients who neither finish a request nor take an answer do not hold up the
// end for longer than the 5 s that are promised.
func TestStopIsNotHeldUp(t *testing.T) {
	for name, text := range map[string]string{
		"new connection":  "",
		"half a header":   "GET /locks HTTP/1.1\r\nHos",
		"half a body":     "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: 31\r\n\r\n{",
		"half a chunk":    "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
		"untaken answer":  "GET /locks HTTP/1.1\r\nHost: locker\r\n\r\n",
		"untaken refusal": waiting["take"],
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, stop := serveMemory(t, &config{})
				takeA(t, m)
				conn := m.dial(t)
				io.WriteString(conn, text)
				time.Sleep(time.Second)
				start := time.Now()
				err := stop()
				io.Copy(io.Discard, conn) // until the server closes it
				if err != nil || time.Since(start) > 5*time.Second {
					t.Errorf("all ended after %v, serve with %v", time.Since(start), err)
				}
			})
		})
	}
}

func TestIdleConnectionsDoNotDelayTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, stop := serveMemory(t, &config{})
		takeA(t, m)
		start := time.Now()
		if err := stop(); err != nil || time.Since(start) > time.Second {
			t.Errorf("serve ended after %v with %v", time.Since(start), err)
		}
	})
}

// TestSilentConnectionsDoNotDelayTheStop: a browser opens some in advance.
func TestSilentConnectionsDoNotDelayTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, stop := serveMemory(t, &config{})
		m.dial(t)
		m.dial(t)
		synctest.Wait()
		start := time.Now()
		if err := stop(); err != nil || time.Since(start) > time.Second {
			t.Errorf("stopped after %v: %v", time.Since(start), err)
		}
	})
}

func TestRestartFindsTheState(t *testing.T) {
	env := map[string]string{"LOCKER_CONFIG": filepath.Join(t.TempDir(), "locker.json")}
	s := startServer(t, env)
	s.do(t, put, "/lock/a", jane)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", s.address); err == nil {
		conn.Close()
		t.Error("somebody still listens")
	}
	s.log.Await(t, `msg=stop`)
	again := startServer(t, env)
	again.log.Await(t, `msg=start version=\S+ address=127\.0\.0\.1:\d+ tls=false auth=false state=\S+/locker\.json locks=1 claims=1`)
	if got := again.do(t, get, "/lock/a", ""); !strings.Contains(got.body, `"locked_by":{"jane":1}`) {
		t.Errorf("got %s", got.body)
	}
}

// runAgainst runs the locker until it ends by itself, and returns why.
func runAgainst(t *testing.T, listen, state string) error {
	t.Helper()
	env := map[string]string{"LISTEN": listen, "LOCKER_CONFIG": state}
	ctx, cancel := context.WithTimeout(t.Context(), lockertest.Patience)
	defer cancel()
	err := run(ctx, nil, func(name string) string { return env[name] }, io.Discard, io.Discard)
	if err == nil {
		t.Fatal("it ran")
	}
	if _, ok := errors.AsType[*configError](err); ok {
		t.Errorf("%v is a configuration error", err)
	}
	return err
}

func TestPortInUse(t *testing.T) {
	state := filepath.Join(t.TempDir(), "locker.json")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	writeFile(t, state, originalFile)
	err = runAgainst(t, l.Addr().String(), state)
	for _, want := range []string{l.Addr().String(), "address already in use", "another process has this port, maybe a locker: stop it, or choose a free port with LISTEN"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if read(t, state) != originalFile {
		t.Error("the original's file, which may still be in use, was replaced")
	}
	startServer(t, map[string]string{"LOCKER_CONFIG": state}) // the state is not left locked
}

func TestSecondServerOfAStateRefuses(t *testing.T) {
	state := filepath.Join(t.TempDir(), "locker.json")
	s := startServer(t, map[string]string{"LOCKER_CONFIG": state})
	s.do(t, put, "/lock/a", jane)
	err := runAgainst(t, "127.0.0.1:0", state)
	for _, want := range []string{fmt.Sprintf("another locker, process %d, has the state file, it holds %s.lock", os.Getpid(), state), "stop it, or set LOCKER_CONFIG to another file"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if got := s.do(t, del, "/lock/a", `{"key": "k", "locked_by": "jane"}`); got.status != "200 OK" {
		t.Errorf("the first one: got %s", got.status)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	startServer(t, map[string]string{"LOCKER_CONFIG": state})
}

// What only the start finds wrong is said by the flag or the variable that was used.
func TestTroubleNamesTheSetting(t *testing.T) {
	state := filepath.Join(t.TempDir(), "locker.json")
	s := startServer(t, map[string]string{"LOCKER_CONFIG": state})
	_, port, _ := net.SplitHostPort(s.address)
	other := filepath.Join(t.TempDir(), "locker.json")
	for _, test := range []struct {
		args []string
		env  map[string]string
		want string
	}{
		{[]string{"-listen", s.address}, map[string]string{"LISTEN": "127.0.0.1:0", "LOCKER_CONFIG": other}, "stop it, or choose a free port with -listen"},
		{[]string{"-port", port}, map[string]string{"LOCKER_CONFIG": other}, "stop it, or choose a free port with -port"},
		{nil, map[string]string{"PORT": port, "LOCKER_CONFIG": other}, "stop it, or choose a free port with PORT"},
		{[]string{"-port", "1"}, map[string]string{"LISTEN": "192.0.2.1:1", "LOCKER_CONFIG": other}, "choose an address of this machine with LISTEN"},
		{[]string{"-state", state}, map[string]string{"LOCKER_CONFIG": other, "LISTEN": "127.0.0.1:0"}, "stop it, or set -state to another file"},
		{[]string{"import", state}, map[string]string{"LOCKER_ETCD": "http://127.0.0.1:1"}, "stop it, or set the argument of import to another file"},
	} {
		err := run(t.Context(), test.args, func(name string) string { return test.env[name] }, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v %v: %v does not say %q", test.args, test.env, err, test.want)
		}
	}
}

// TERM may come before the server listens.
func TestStopWhileStarting(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	env := map[string]string{"LISTEN": "localhost:0", "LOCKER_CONFIG": filepath.Join(t.TempDir(), "locker.json")}
	if err := run(ctx, nil, func(name string) string { return env[name] }, io.Discard, io.Discard); err != nil {
		t.Errorf("got %v", err)
	}
}

// When it is not known what the state file holds, the server ends, and those
// who wait are told.
func TestUnknownCommitEndsRun(t *testing.T) {
	state := filepath.Join(t.TempDir(), "locker.json")
	s := startServer(t, map[string]string{"LOCKER_CONFIG": state})
	s.do(t, put, "/lock/a", jane)
	conn := s.dial(t)
	io.WriteString(conn, waiting["take with id"])
	s.log.Await(t, `msg=queue`)
	lockertest.Rename(t, state, state+".aside")
	folder(t, state, 0o700) // which a rename cannot replace
	got := s.do(t, put, "/lock/b", `{"key": "k"}`)
	if got.status != "503 Service Unavailable" || !strings.Contains(got.body, "it is not known whether this was saved") {
		t.Errorf("got %s %s", got.status, got.body)
	}
	if got := nextAnswer(t, bufio.NewReader(conn)); got.status != "503 Service Unavailable" || got.header.Get("Retry-After") != "1" {
		t.Errorf("the waiter got %s %s", got.status, got.body)
	}
	s.log.Await(t, "ended")
	if err := s.stop(); !errors.Is(err, errUnknown) {
		t.Errorf("run ended with %v", err)
	}
}

// jumpy is a server in a synctest bubble whose wall clock a test can set.
type jumpy struct {
	*memory
	t     *testing.T
	log   *lockertest.Log
	jump  atomic.Int64 // of the wall clock, in nanoseconds
	begin time.Time
}

func serveJumpy(t *testing.T) *jumpy {
	j := &jumpy{memory: newMemory(), t: t, log: lockertest.NewLog(), begin: time.Now()}
	serveBy(t, j.memory, &config{}, slog.New(slog.NewTextHandler(j.log, nil)), j.wall)
	return j
}

func (j *jumpy) wall() time.Time { return time.Now().Add(time.Duration(j.jump.Load())) }

func (j *jumpy) do(method, path, body string) exchange {
	j.t.Helper()
	return talk(j.t, j.dial(j.t), fmt.Sprintf("%s %s HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body))
}

// want sends a request that is to be answered with that status.
func (j *jumpy) want(method, path, body, status string) resource.Answer {
	j.t.Helper()
	got := j.do(method, path, body)
	if got.status != status {
		j.t.Errorf("%s %s %s after %v: got %s %s", method, path, body, time.Since(j.begin), got.status, got.body)
	}
	var a resource.Answer
	json.Unmarshal([]byte(got.body), &a)
	return a
}

// wantLock checks who holds a lock and who waits for it, as "key:names <names".
func (j *jumpy) wantLock(name, want string) resource.Lock {
	j.t.Helper()
	var l resource.Lock
	if err := json.Unmarshal([]byte(j.do(get, "/lock/"+name, "").body), &l); err != nil {
		j.t.Fatal(err)
	}
	var holders, waiters []string
	for _, h := range l.Holders {
		holders = append(holders, h.LockedBy)
	}
	for _, w := range l.Waiters {
		waiters = append(waiters, w.LockedBy)
	}
	if got := l.Key + ":" + strings.Join(holders, ",") + " <" + strings.Join(waiters, ","); got != want {
		j.t.Fatalf("lock %s after %v: %s, want %s", name, time.Since(j.begin), got, want)
	}
	return l
}

// at sleeps until so much time has gone by since the begin.
func (j *jumpy) at(since time.Duration) {
	time.Sleep(since - time.Since(j.begin))
	synctest.Wait()
}

var negative = regexp.MustCompile(`\S+=-\S+`)

// wantNothingNegative checks the log and the metrics for times before zero.
func (j *jumpy) wantNothingNegative() {
	j.t.Helper()
	if found := negative.FindAllString(j.log.String(), -1); found != nil {
		j.t.Errorf("logged %q", found)
	}
	for series, value := range parseExposition(j.t, j.do(get, "/metrics", "").body) {
		if value < 0 {
			j.t.Errorf("%s is %v", series, value)
		}
	}
}

// TestWallClockJumpsUnderTheAPI sets the wall clock while locks are held and
// waited for: what has no ttl is held on, the queue keeps its order and its
// times, and everybody is granted the lock in turn.
func TestWallClockJumpsUnderTheAPI(t *testing.T) {
	const day = 24 * time.Hour
	const held, free = "k:jane <", ": <"
	for _, test := range []struct {
		name   string
		jumps  []time.Duration // from where the clock was at first; 6 s between them
		leased string          // what becomes of a hold with a ttl of an hour
		again  string          // and of one, when a claim that ended before is released late; it is remembered for an hour
	}{
		{"not at all", nil, held, held},
		{"a day forward", []time.Duration{day}, free, free},
		{"a day back", []time.Duration{-day}, held, held},
		{"forward and back", []time.Duration{day, 0}, free, free},
		{"back and forward", []time.Duration{-day, 0}, held, held},
		{"two days forward, one back", []time.Duration{day, 2 * day, day}, free, free},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := serveJumpy(t)
				testWallClockJumps(t, j, test.jumps)
				j.wantLock("leased", test.leased)
				j.want(del, "/lock/again", `{"key": "k", "locked_by": "jane", "id": "first"}`, "200 OK")
				j.wantLock("again", test.again)
				j.wantNothingNegative()
			})
		})
	}
}

func testWallClockJumps(t *testing.T, j *jumpy, jumps []time.Duration) {
	t.Helper()
	last := j.want(put, "/lock/kept", `{"key": "k", "locked_by": "jane"}`, "200 OK").Token
	j.want(put, "/lock/leased", `{"key": "k", "locked_by": "jane", "ttl": "1h"}`, "200 OK")
	j.want(put, "/lock/again", `{"key": "k", "locked_by": "jane", "id": "first"}`, "200 OK")
	j.want(del, "/lock/again", `{"key": "k", "locked_by": "jane", "id": "first"}`, "200 OK")
	j.want(put, "/lock/again", `{"key": "k", "locked_by": "jane", "id": "second"}`, "200 OK")
	george := make(chan exchange, 1)
	go func() { george <- j.do(put, "/lock/kept", `{"key": "g", "locked_by": "george", "wait": "60s"}`) }()
	synctest.Wait()
	go func() {
		j.want(put, "/lock/kept", `{"key": "a", "locked_by": "ann", "id": "1", "wait": "25s"}`, "423 Locked")
		if waited := time.Since(j.begin).Round(time.Second); waited != 25*time.Second {
			t.Errorf("ann's wait of 25s ended after %v", waited)
		}
	}()
	for i, jump := range jumps {
		j.at(time.Duration(i+1) * 6 * time.Second)
		j.jump.Store(int64(jump))
		j.wantNothingNegative()
	}
	j.at(25*time.Second + placeKept - time.Second)
	j.wantLock("kept", "k:jane <george,ann")
	j.at(25*time.Second + placeKept + time.Second)
	j.wantLock("kept", "k:jane <george")

	j.want(del, "/lock/kept", `{"key": "k", "locked_by": "jane"}`, "200 OK")
	if got := <-george; got.status != "200 OK" {
		t.Errorf("george got %s %s", got.status, got.body)
	}
	l := j.wantLock("kept", "g:george <")
	if off := j.wall().Sub(l.Holders[0].Since); off < 0 || off > 2*time.Second || l.Holders[0].Token <= last {
		t.Errorf("granted %v before now, with token %d after %d", off, l.Holders[0].Token, last)
	}
	j.want(del, "/lock/kept", `{"key": "g", "locked_by": "george"}`, "200 OK")
	j.wantLock("kept", ": <")
}
