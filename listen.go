package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// This file is the connections: how they are accepted, how many, and which are
// closed first.

const (
	probeTime  = 5 * time.Second        // between keep-alive probes
	probes     = 3                      // unanswered, before a connection is given up
	spareFiles = 32                     // file descriptors that connections leave for everything else
	quietTime  = time.Second            // before a connection is closed to make room
	roomPause  = 100 * time.Millisecond // between looks for room, when there are too many
	fullPause  = time.Minute            // between log lines that say so
)

func listen(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeTime, Interval: probeTime, Count: probes}}
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w: set LISTEN or PORT to an address that is free on this machine", err)
	}
	return l, nil
}

// maxConns returns how many connections the limit of open files allows.
func maxConns() int {
	files := syscall.Rlimit{Cur: 1 << 10}
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) // fails for no process's own limits
	return max(int(min(files.Cur, 1<<20))-spareFiles, 1)
}

// limited is a listener that has at most a number of connections open, so that
// clients cannot use up the file descriptors that a save needs. Others wait
// until one is closed.
type limited struct {
	net.Listener
	open     chan struct{}
	makeRoom func(most int) bool // asked, when there is none, to close one
	crowded  *atomic.Bool        // true while one waits for room
	closing  chan struct{}
	close    func()
}

func newLimited(l net.Listener, most int, makeRoom func(most int) bool, crowded *atomic.Bool) *limited {
	closing := make(chan struct{})
	return &limited{l, make(chan struct{}, most), makeRoom, crowded, closing, sync.OnceFunc(func() { close(closing) })}
}

func (l *limited) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	for !l.enter() {
		l.crowded.Store(true)
		if l.makeRoom(cap(l.open)) {
			continue
		}
		select {
		case <-l.closing:
			conn.Close()
			return nil, net.ErrClosed
		case <-time.After(roomPause):
		}
	}
	l.crowded.Store(false)
	return &limitedConn{conn, sync.OnceFunc(func() { <-l.open })}, nil
}

// enter reports whether there was room for one more.
func (l *limited) enter() bool {
	select {
	case l.open <- struct{}{}:
		return true
	default:
		return false
	}
}

func (l *limited) Close() error {
	l.close()
	return l.Listener.Close()
}

// limitedConn makes room for another connection when it is closed.
type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// CloseWrite lets net/http half-close the connection, so that who is refused
// while it sends can read why.
func (c *limitedConn) CloseWrite() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}

// closedByPeer reports whether the other end has closed a connection. net/http
// notices that only when nothing else comes after the request: what a client sent
// ahead hides it. Where the system cannot tell, the connection is open.
func closedByPeer(conn net.Conn) bool {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	counted, ok := conn.(*limitedConn)
	if !ok {
		return false
	}
	tcp, ok := counted.Conn.(*net.TCPConn)
	if !ok || runtime.GOOS != "linux" {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	const tcpInfo, established = 11, 1 // TCP_INFO begins with the state, see tcp(7)
	state := 0
	err = raw.Control(func(fd uintptr) {
		if info, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpInfo); err == nil {
			state = info & 0xff
		}
	})
	return err != nil || state != established
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

func withConn(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// conns knows the quiet connections: those on which no whole header has been
// sent yet (browsers open some in advance), and those that are idle between
// requests. Safe for concurrent use.
type conns struct {
	mu     sync.Mutex
	quiet  map[net.Conn]silence
	log    *slog.Logger
	logged time.Time // when makeRoom logged last; the listener's alone
}

type silence struct {
	state http.ConnState
	since time.Time
}

func newConns(log *slog.Logger) *conns { return &conns{quiet: map[net.Conn]silence{}, log: log} }

func (c *conns) track(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state == http.StateNew || state == http.StateIdle {
		c.quiet[conn] = silence{state, time.Now()}
	} else {
		delete(c.quiet, conn)
	}
}

// closeNew closes the connections on which no request has been sent yet:
// http.Server.Shutdown would wait 5 s for them.
func (c *conns) closeNew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn, s := range c.quiet {
		if s.state == http.StateNew {
			conn.Close()
		}
	}
}

// makeRoom closes the connection that has been quiet for longest, if a request
// is hardly on its way there, and reports whether it did.
func (c *conns) makeRoom(most int) bool {
	if time.Since(c.logged) >= fullPause {
		c.logged = time.Now()
		c.log.Warn("too many connections: quiet ones are closed, others wait until there is room: raise the limit of open files (ulimit -n)", "most", most)
	}
	conn := c.quietest()
	if conn == nil {
		return false
	}
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn() // a farewell could take seconds
	}
	conn.Close()
	return true
}

func (c *conns) quietest() (quietest net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn, s := range c.quiet {
		if quietest == nil || s.since.Before(c.quiet[quietest].since) {
			quietest = conn
		}
	}
	if time.Since(c.quiet[quietest].since) < quietTime {
		return nil
	}
	delete(c.quiet, quietest)
	return quietest
}
