package main

import (
	"context"
	"crypto/tls"
	"errors"
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

// This file handles connections: how they are accepted, how many, and which are
// closed first.

const (
	probeTime  = 5 * time.Second        // between keep-alive probes
	probes     = 3                      // unanswered, before a connection is given up
	spareFiles = 32                     // file descriptors that connections leave for everything else
	quietTime  = time.Second            // before a connection is closed to make room
	roomPause  = 100 * time.Millisecond // between looks for room, when there are too many
	fullPause  = time.Minute            // between log lines that say so
	stallTime  = time.Second            // without a byte taken, before an answer counts as not read
	maxUnread  = 64 << 20               // bytes of all answers that are not read
	stretch    = 64 << 10               // bytes written at once, so that it is seen whether they are taken
)

// listen listens on an address. Its errors name the setting that it is from.
func listen(ctx context.Context, address, by string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeTime, Interval: probeTime, Count: probes}}
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		mend := "choose an address of this machine with " + by
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			mend = "another process has this port, maybe a locker: stop it, or choose a free port with " + by
		case errors.Is(err, syscall.EACCES):
			mend = "only root may have this port: choose one above 1023 with " + by
		}
		return nil, fmt.Errorf("%w: %s", err, mend)
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
	return &limitedConn{Conn: conn, leave: sync.OnceFunc(func() { <-l.open })}, nil
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

// limitedConn makes room for another connection when it is closed, and knows how
// much of an answer the other end has not taken yet.
type limitedConn struct {
	net.Conn
	leave  func()
	mu     sync.Mutex
	unsent int       // bytes of the answer that is being written
	moved  time.Time // when some were taken last
}

// limitedOf returns what is below a connection, nil when that is of no listener of
// ours.
func limitedOf(conn net.Conn) *limitedConn {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	limited, _ := conn.(*limitedConn)
	return limited
}

func (c *limitedConn) Write(b []byte) (int, error) {
	written := 0
	for {
		n, err := c.Conn.Write(b[written:min(written+stretch, len(b))])
		written += n
		c.mu.Lock()
		c.unsent, c.moved = c.unsent-n, time.Now()
		c.mu.Unlock()
		if err != nil || written == len(b) {
			return written, err
		}
	}
}

// owe says that an answer of that many bytes begins.
func (c *limitedConn) owe(bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsent, c.moved = bytes, time.Now()
}

// unread returns how many bytes of an answer the other end leaves unread, and
// since when; 0 unless it has taken nothing for stallTime.
func (c *limitedConn) unread() (bytes int, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.moved) < stallTime {
		return 0, c.moved
	}
	return max(c.unsent, 0), c.moved
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
	limited := limitedOf(conn)
	if limited == nil {
		return false
	}
	tcp, ok := limited.Conn.(*net.TCPConn)
	if !ok || runtime.GOOS != "linux" {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	const tcpInfo, established = 11, 1 // TCP_INFO begins with the state, see tcp(7)
	state := established
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

func connOf(ctx context.Context) net.Conn {
	conn, _ := ctx.Value(connKey{}).(net.Conn)
	return conn
}

// conns knows the open connections, and the quiet ones among them: those on which
// no whole header has been sent yet (browsers open some in advance), and those that
// are idle between requests. Safe for concurrent use.
type conns struct {
	mu     sync.Mutex
	open   map[net.Conn]bool
	quiet  map[net.Conn]silence
	log    *slog.Logger
	full   seldom // what makeRoom says; the listener's alone
	unread seldom // what closeUnread says; watch's alone
}

type silence struct {
	state http.ConnState
	since time.Time
}

func newConns(log *slog.Logger) *conns {
	return &conns{open: map[net.Conn]bool{}, quiet: map[net.Conn]silence{}, log: log}
}

// seldom says whether what happens often is to be logged again.
type seldom struct{ last time.Time }

func (s *seldom) again() bool {
	if time.Since(s.last) < fullPause {
		return false
	}
	s.last = time.Now()
	return true
}

func (c *conns) track(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.quiet, conn)
	switch state {
	case http.StateNew:
		c.open[conn] = true
		c.quiet[conn] = silence{state, time.Now()}
	case http.StateIdle:
		c.quiet[conn] = silence{state, time.Now()}
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	}
}

// watch looks every second, until ctx is done, for answers that are not read.
func (c *conns) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(stallTime):
			c.closeUnread()
		}
	}
}

// closeUnread closes connections whose clients do not read, the slowest first, until
// what all of them leave unread is no more than maxUnread.
func (c *conns) closeUnread() {
	for {
		slowest, all := c.slowest()
		if all <= maxUnread {
			return
		}
		if c.unread.again() {
			c.log.Warn("clients do not read their answers: the slowest are closed", "bytes", all, "address", slowest.RemoteAddr().String())
		}
		slowest.Close()
		slowest.owe(0)
	}
}

// slowest returns the connection that has taken nothing for longest, and the bytes
// that all leave unread.
func (c *conns) slowest() (slowest *limitedConn, all int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var oldest time.Time
	for conn := range c.open {
		limited := limitedOf(conn)
		bytes, since := limited.unread()
		if all += bytes; bytes > 0 && (slowest == nil || since.Before(oldest)) {
			slowest, oldest = limited, since
		}
	}
	return slowest, all
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
	if c.full.again() {
		c.log.Warn("too many connections: quiet ones are closed, others wait until there is room: raise the limit of open files (ulimit -n)", "most", most)
	}
	conn := c.quietest()
	if conn == nil {
		return false
	}
	limitedOf(conn).Close() // below TLS, whose farewell could take seconds
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
