package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// rig is a committer with a real state file whose steps a test can count,
// block and fail, and whose clock is the bubble's.
type rig struct {
	t     testing.TB
	path  string
	c     *committer
	st    *fileStore
	jump  atomic.Int64 // of the wall clock, in nanoseconds
	stall atomic.Int64 // of the writer when it next looks at the clock, in nanoseconds

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
	r.st = st
	r.c, err = newCommitter(st, s, newMetrics(), quiet(), func() time.Time {
		time.Sleep(time.Duration(r.stall.Swap(0)))
		return time.Now().Add(time.Duration(r.jump.Load()))
	})
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
	r.st.close()
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
		lock: real.lock,
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
	req := &request{lock: "l", asker: c.identity, ctx: ctx, apply: func(d *draft) outcome { return d.take("l", c, wait > 0) }}
	if wait > 0 {
		req.until = time.Now().Add(wait)
	}
	return r.c.do(req)
}

func (r *rig) release(words string) answer {
	return r.c.do(&request{lock: "l", frees: true, ctx: context.Background(), apply: func(d *draft) outcome {
		return d.release("l", release{identity: of(words).identity})
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
	return lockertest.Read(t, path)
}

// server is a locker that runs in this process.
type server struct {
	address string
	log     *lockertest.Log
	stop    func() error // does what TERM does and returns what run returned
}

// startServer runs the locker as main does, with env for its environment, on a
// free port and a new state file unless env says otherwise.
func startServer(t testing.TB, env map[string]string) *server {
	t.Helper()
	settings := map[string]string{"LISTEN": "127.0.0.1:0", "LOCKER_CONFIG": filepath.Join(t.TempDir(), "locker.json")}
	maps.Copy(settings, env)
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{log: lockertest.NewLog()}
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, nil, func(name string) string { return settings[name] }, io.Discard, s.log)
		s.log.Write([]byte("ended\n"))
	}()
	s.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(lockertest.Patience):
			return errors.New("the server does not stop")
		}
	})
	t.Cleanup(func() { s.stop() })
	found := s.log.Await(t, `msg=start .*address=(\S+)|(?m:^ended)`)
	if found[1] == "" {
		t.Fatalf("the server did not start: %v", s.stop())
	}
	s.address = found[1]
	return s
}

// exchange is an answer, read to its end.
type exchange struct {
	status string // as on the status line, with the reason
	header http.Header
	body   string
}

// do sends one request; header is names and values in turn. The path is sent
// as it is given, and no redirect is followed.
func (s *server) do(t testing.TB, method, path, body string, header ...string) exchange {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.address+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Add(header[i], header[i+1])
	}
	answer, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return readAnswer(t, answer)
}

func readAnswer(t testing.TB, answer *http.Response) exchange {
	t.Helper()
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("read answer: %v", err)
	}
	return exchange{answer.Status, answer.Header, string(data)}
}

// dial opens a connection to send bytes on as they are.
func (s *server) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(lockertest.Patience))
	return conn
}

// talk writes bytes on a connection, while the answer to them is read.
func talk(t testing.TB, conn net.Conn, text string) exchange {
	t.Helper()
	go io.WriteString(conn, text)
	return nextAnswer(t, bufio.NewReader(conn))
}

func nextAnswer(t testing.TB, r *bufio.Reader) exchange {
	t.Helper()
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	return readAnswer(t, answer)
}

// memory is a listener whose connections are pipes, for synctest bubbles.
type memory struct {
	incoming chan net.Conn
	closed   chan struct{}
	close    func()
}

func newMemory() *memory {
	m := &memory{incoming: make(chan net.Conn), closed: make(chan struct{})}
	m.close = sync.OnceFunc(func() { close(m.closed) })
	return m
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case conn := <-m.incoming:
		return conn, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error   { m.close(); return nil }
func (m *memory) Addr() net.Addr { return &net.TCPAddr{} }

func (m *memory) dial(t testing.TB) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	select {
	case m.incoming <- server:
	case <-m.closed:
		t.Fatal("the server does not listen any more")
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// serveMemory serves from memory until stop, which returns what serve
// returned. In a synctest bubble its time is the bubble's.
func serveMemory(t testing.TB, cfg *config) (m *memory, stop func() error) {
	t.Helper()
	m = newMemory()
	return m, serveOn(t, m, cfg)
}

func serveOn(t testing.TB, l net.Listener, cfg *config) (stop func() error) {
	t.Helper()
	return serveBy(t, l, cfg, slog.New(slog.DiscardHandler), time.Now)
}

// serveBy is serveOn with that log and by that wall clock.
func serveBy(t testing.TB, l net.Listener, cfg *config, log *slog.Logger, wall func() time.Time) (stop func() error) {
	t.Helper()
	quick := realSteps()
	quick.sync = func(*os.File) error { return nil }
	quick.syncDir = quick.sync
	st, s, err := openState(filepath.Join(t.TempDir(), "locker.json"), quick, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCommitter(st, s, newMetrics(), log, wall)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, l, cfg, c, log)
		st.close()
	}()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { stop() })
	return stop
}

// serve has an endpoint serve what c decides.
func serve(ctx context.Context, l net.Listener, cfg *config, c *committer, log *slog.Logger) error {
	a := newAPI(cfg, c.metrics, log, c.wall)
	a.begin(c)
	return newEndpoint(l, cfg, a, log).serve(ctx, c)
}
