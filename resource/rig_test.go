package resource

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// This file runs the programs against a server in memory, so that inside a
// synctest bubble hours pass at once.

// run is one run of a program.
type run struct {
	stdout, stderr bytes.Buffer
	err            error
	took           time.Duration
}

// lines returns what the run said on stderr, without colours.
func (r *run) lines() []string {
	text := r.stderr.String()
	for _, colour := range []string{yellow, red, plain} {
		text = strings.ReplaceAll(text, colour, "")
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// server is an HTTP server in memory. Its handlers may break connections.
type server struct {
	conns  chan net.Conn
	closed chan struct{}
	down   func() bool // nil: never
}

func (s *server) Accept() (net.Conn, error) {
	select {
	case conn := <-s.conns:
		return conn, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *server) Close() error   { return nil }
func (s *server) Addr() net.Addr { return &net.TCPAddr{} }

var errDown = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}

func (s *server) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if s.down != nil && s.down() {
		return nil, errDown
	}
	ours, theirs := net.Pipe()
	select {
	case s.conns <- theirs:
		return ours, nil
	case <-s.closed: // the transport dials on, for a request that is over
		return nil, errDown
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
	}
}

// serve starts a server in the bubble of t that gives tickets and leaves the rest
// to handle.
func serve(t *testing.T, handle http.HandlerFunc) *server {
	t.Helper()
	return serveAll(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "ticket=true" {
			w.Header().Set("Locker-Ticket", "1.1")
			answerWith(w, http.StatusOK, freeLock)
			return
		}
		handle(w, r)
	})
}

// serveAll is serve without tickets.
func serveAll(t *testing.T, handle http.HandlerFunc) *server {
	t.Helper()
	s := &server{conns: make(chan net.Conn), closed: make(chan struct{})}
	srv := &http.Server{Handler: handle}
	ended := make(chan struct{})
	go func() { srv.Serve(s); close(ended) }()
	t.Cleanup(func() {
		close(s.closed)
		srv.Close()
		<-ended
		synctest.Wait()
	})
	return s
}

// run runs a program in the bubble.
func (s *server) run(ctx context.Context, main func(*program, context.Context) error, request string, args ...string) *run {
	return s.runAs(ctx, main, strings.NewReader(request), map[string]string{"ATC_EXTERNAL_URL": "https://ci.example", "BUILD_ID": "7"}, args...)
}

func (s *server) runAs(ctx context.Context, main func(*program, context.Context) error, stdin io.Reader, env map[string]string, args ...string) *run {
	r := &run{}
	p := newProgram(stdin, &r.stdout, &r.stderr, args, func(name string) string { return env[name] })
	p.dial = s.dial
	start := time.Now()
	r.err = main(p, ctx)
	r.took = time.Since(start)
	return r
}

// record keeps what was asked of a handler. It is safe for concurrent use.
type record struct {
	mu    sync.Mutex
	asked []asked
}

type asked struct {
	at     time.Time
	method string
	body   string
}

func (r *record) note(req *http.Request) asked {
	body, _ := io.ReadAll(req.Body)
	a := asked{time.Now(), req.Method, string(body)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, a)
	return a
}

func (r *record) all() []asked {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]asked(nil), r.asked...)
}

// abortAfter returns a context that is done after d, as on TERM.
func abortAfter(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

const (
	theSource  = `{"source":{"locker_uri":"http://locker.example:8910","lock_name":"myLock"}`
	askLock    = theSource + `,"params":{"key":"k","locked_by":"me","lock_op":"lock"}}`
	askUnlock  = theSource + `,"params":{"key":"k","locked_by":"me","lock_op":"unlock"}}`
	askCheck   = theSource + `}`
	askIn      = theSource + `,"version":{"ref":"3"}}`
	freeLock   = `{"key":"","locked_by":{},"holders":[],"waiters":[],"revision":9}`
	grantJSON  = `{"response":"lock myLock acquired by me with the key k","lock":{"key":"k","locked_by":{"me":1},"holders":[{"locked_by":"me","since":"2026-11-23T10:00:00Z","token":9}],"waiters":[],"revision":9},"token":9}`
	freedJSON  = `{"response":"lock myLock released by me","lock":{"key":"","locked_by":{},"holders":[],"waiters":[],"revision":10}}`
	queuedJSON = `{"error":"lock myLock is held","lock":{"key":"k","locked_by":{"other":1},"holders":[{"locked_by":"other","since":"2000-01-01T00:00:00Z","token":2,"link":"https://ci.example/builds/2"}],"waiters":[{"key":"k","locked_by":"me","since":"2000-01-01T00:00:00Z"}],"revision":8},"position":1}`
)

func answerWith(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	io.WriteString(w, body)
}

// hold keeps a request open for d, or as long as its connection lasts. Its end
// is noticed only when the body has been read.
func hold(r *http.Request, d time.Duration) {
	io.Copy(io.Discard, r.Body)
	select {
	case <-time.After(d):
	case <-r.Context().Done():
	}
}
