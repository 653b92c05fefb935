package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

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
	talk(t, m.dial(t), "GET /locks?wait=20s HTTP/1.1\r\nHost: locker\r\nIf-None-Match: \"1\"\r\n\r\n") // until it is queued
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
	s.log.await(t, `msg=stop`)
	again := startServer(t, env)
	again.log.await(t, `msg=start version=\S+ address=127\.0\.0\.1:\d+ tls=false auth=false state=\S+/locker\.json locks=1 claims=1`)
	if got := again.do(t, get, "/lock/a", ""); !strings.Contains(got.body, `"locked_by":{"jane":1}`) {
		t.Errorf("got %s", got.body)
	}
}

// runAgainst runs the locker until it ends by itself, and returns why.
func runAgainst(t *testing.T, listen, state string) error {
	t.Helper()
	env := map[string]string{"LISTEN": listen, "LOCKER_CONFIG": state}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
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
	for _, want := range []string{l.Addr().String(), "address already in use", "set LISTEN or PORT to an address that is free"} {
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
	for _, want := range []string{"another locker has the state file, it holds " + state + ".lock", "stop it, or set LOCKER_CONFIG to another file"} {
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
	s.log.await(t, `msg=queue`)
	rename(t, state, state+".aside")
	folder(t, state, 0o700) // which a rename cannot replace
	got := s.do(t, put, "/lock/b", `{"key": "k"}`)
	if got.status != "503 Service Unavailable" || !strings.Contains(got.body, "it is not known whether this was saved") {
		t.Errorf("got %s %s", got.status, got.body)
	}
	if got := nextAnswer(t, bufio.NewReader(conn)); got.status != "503 Service Unavailable" || got.header.Get("Retry-After") != "1" {
		t.Errorf("the waiter got %s %s", got.status, got.body)
	}
	s.log.await(t, "ended")
	if err := s.stop(); !errors.Is(err, errUnknown) {
		t.Errorf("run ended with %v", err)
	}
}

// What happens is logged, a line each, with names and never with an id.
func TestEventsAreLogged(t *testing.T) {
	s := startServer(t, withAuth())
	right := basic(user, password)
	for _, c := range []apiCall{
		{put, "/lock/a", strings.Replace(jane, `"7"`, `"secret-id"`, 1), nil},
		{put, "/lock/a", georgeWaits, nil},
		{del, "/lock/a", `{"key": "other", "locked_by": "george", "id": "8"}`, nil},
		{del, "/lock/a", `{"key": "k", "locked_by": "jane"}`, nil},
		{put, "/lock/a", `{"key": "k2", "locked_by": "line\\feed"}`, nil},
		{del, "/lock/a?force=true", `{"reason": "it hangs\nmsg=grant"}`, nil},
	} {
		s.do(t, c.method, c.path, c.body, "Authorization", right)
	}
	for _, pattern := range []string{
		`level=INFO msg=grant lock=a key=k locked_by=jane link=https://ci.example/builds/12 token=1 waited=0s\n`,
		`level=INFO msg=queue lock=a key=other locked_by=george\n`,
		`level=INFO msg=withdraw lock=a key=other locked_by=george waited=\S+ reason="it was released while it waited"\n`,
		`level=INFO msg=release lock=a key=k locked_by=jane link=\S+ token=1 held=\S+\n`,
		`level=INFO msg=grant lock=a key=k2 locked_by=line\\feed token=\d+ waited=0s\n`,
		`level=INFO msg=force lock=a key=k2 locked_by=line\\feed token=\d+ held=\S+ by=george reason="it hangs\\nmsg=grant"\n`,
	} {
		s.log.await(t, pattern)
	}
	if log := s.log.String(); strings.Contains(log, "secret-id") || strings.Contains(log, canary) {
		t.Errorf("the log shows an id or a password:\n%s", log)
	}
}

// Hosts that vanish are noticed by keep-alive probes: 5 s, 3 of them.
func TestKeepAliveProbes(t *testing.T) {
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		for _, option := range []struct{ level, name, want int }{
			{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
			{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 5},
			{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 5},
			{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 3},
		} {
			if got, err := syscall.GetsockoptInt(int(fd), option.level, option.name); got != option.want || err != nil {
				t.Errorf("option %+v is %d, %v", option, got, err)
			}
		}
	})
}

// program returns the locker as a process of its own, which is this test binary.
func program(t testing.TB, args ...string) (*exec.Cmd, *logs) {
	t.Helper()
	name, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), name, "-test.run=^TestExitStatus$")
	cmd.Env = []string{"LOCKER_TEST_ARGS=" + strings.Join(args, " "), "GORACE=atexit_sleep_ms=0"}
	cmd.Dir = t.TempDir()
	stderr := newLogs()
	cmd.Stderr = stderr
	return cmd, stderr
}

func TestExitStatus(t *testing.T) {
	if args, ok := os.LookupEnv("LOCKER_TEST_ARGS"); ok {
		os.Args = append(os.Args[:1], strings.Fields(args)...)
		main()
		os.Exit(0)
	}
	busy := startServer(t, nil).address
	for _, test := range []struct {
		name   string
		args   []string
		signal os.Signal // sent once it serves; nil: it ends by itself
		status int
		stderr string
	}{
		{"TERM", []string{"-listen", "127.0.0.1:0"}, syscall.SIGTERM, 0, "msg=stop\n"},
		{"INT", []string{"-listen", "127.0.0.1:0"}, os.Interrupt, 0, "msg=stop\n"},
		{"version", []string{"-version"}, nil, 0, ""},
		{"help", []string{"-help"}, nil, 0, ""},
		{"configuration", []string{"-port", "x"}, nil, 2, `locker: PORT is "x"`},
		{"unknown flag", []string{"-x"}, nil, 2, "locker: flag provided but not defined: -x: see -help"},
		{"port in use", []string{"-listen", busy}, nil, 1, "locker: listen tcp " + busy},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd, stderr := program(t, test.args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if test.signal != nil {
				stderr.await(t, `msg=start`)
				cmd.Process.Signal(test.signal)
			}
			cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != test.status || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("status %d, want %d; stderr:\n%s", got, test.status, stderr)
			}
		})
	}
}
