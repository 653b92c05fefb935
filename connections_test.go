package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// This file is clients that are many, and say nothing or half of something.

// halves are requests that are not finished, for a server with credentials.
func halves() []string {
	right := basic(user, password)
	return []string{
		"",
		"PUT /lock/a HT",
		"GET /locks HTTP/1.1\r\nHost: locker\r\nAuthorization: Basic ",
		"PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: 100\r\n\r\n{",
		"PUT /lock/a HTTP/1.1\r\nHost: locker\r\nAuthorization: " + right + "\r\nContent-Length: 100\r\n\r\n{",
		"PUT /lock/a HTTP/1.1\r\nHost: locker\r\nAuthorization: " + right + "\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
	}
}

// TestHalfSentRequests leaves 1,000 requests half sent and wants others to be
// answered.
func TestHalfSentRequests(t *testing.T) {
	allowFiles(t, 2*1_000+500)
	s := startServer(t, withAuth())
	conns := flood(t, s.address, 1_000)
	defer closeAll(conns)
	right := basic(user, password)
	start := time.Now()
	for _, c := range []apiCall{{get, "/health", "", nil}, {put, "/lock/b", jane, nil}, {get, "/locks", "", nil}, {del, "/lock/b", `{"key": "k", "locked_by": "jane"}`, nil}} {
		if got := s.do(t, c.method, c.path, c.body, "Authorization", right); got.status != "200 OK" {
			t.Errorf("%s %s: got %s", c.method, c.path, got.status)
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("four requests took %v", took)
	}
}

// TestTenThousandConnections opens as many to a server process, silent ones and
// half-sent ones: others are served meanwhile, and afterwards the process has
// its file descriptors again.
func TestTenThousandConnections(t *testing.T) {
	const many, spare, dear = 10_000, 500, 100 // dear is KiB for a connection, much more than it takes
	allowFiles(t, many+spare)
	p := startProcess(t, filepath.Join(t.TempDir(), "locker.json"), fmt.Sprintf("LOCKER_TEST_NOFILE=%d", many+spare))
	p.want("PUT", "/lock/held", jane, http.StatusOK)
	before := p.footprint().files
	conns := flood(t, strings.TrimPrefix(p.url, "http://"), many)
	eventually(t, "most of them", func() bool { return p.footprint().files >= many*9/10 })
	start := time.Now()
	p.want("PUT", "/lock/others", `{"key": "k"}`, http.StatusOK)
	p.want("GET", "/locks", "", http.StatusOK)
	p.want("DELETE", "/lock/others", `{"key": "k"}`, http.StatusOK)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("three requests took %v beside %d connections", took, many)
	}
	if mib := p.footprint().mib; mib > many*dear/1024 {
		t.Errorf("%d connections take %v MiB", many, mib)
	}
	closeAll(conns)
	eventually(t, "descriptors as before", func() bool { return p.footprint().files <= before+1 })
	p.want("PUT", "/lock/held", `{"key": "other"}`, http.StatusLocked)
}

// TestConnectionsLeaveNothing opens connections to a server of which the memory
// can be looked at, and wants it back when they are closed. What other tests
// leave behind may come and go meanwhile, but not each time.
func TestConnectionsLeaveNothing(t *testing.T) {
	const many, each = 2_000, 200 // each is bytes: what knows a connection keeps twice as many alive
	allowFiles(t, 2*many+500)
	s := startServer(t, nil)
	s.do(t, get, "/health", "")
	few := runtime.NumGoroutine() + 10
	var grown []int
	for before := inUse(); len(grown) < 5; {
		conns := flood(t, s.address, many)
		eventually(t, "a goroutine for most", func() bool { return runtime.NumGoroutine() > many*9/10 })
		closeAll(conns)
		conns = nil
		eventually(t, "no more goroutines than before", func() bool { return runtime.NumGoroutine() <= few })
		after := inUse()
		if grown = append(grown, after-before); after-before <= many*each {
			return
		}
		before = after
	}
	t.Errorf("%d connections leave %d bytes behind", many, grown)
}

// inUse returns the bytes of the heap that are in use after a collection.
func inUse() int {
	runtime.GC()
	runtime.GC() // pools keep what they have for one more
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestFewFiles lets connections on which nothing is asked take all the file
// descriptors that they can get: they make room for those who ask.
func TestFewFiles(t *testing.T) {
	for name, sent := range map[string]string{"silent": "", "idle": "GET /health HTTP/1.1\r\nHost: l\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			p := startProcess(t, filepath.Join(t.TempDir(), "locker.json"), "LOCKER_TEST_NOFILE=80")
			p.want("PUT", "/lock/l", `{"key": "k"}`, http.StatusOK)
			for range 120 {
				conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				io.WriteString(conn, sent)
			}
			start := time.Now()
			p.want("DELETE", "/lock/l", `{"key": "k"}`, http.StatusOK)
			http.DefaultClient.CloseIdleConnections()
			p.want("PUT", "/lock/l", `{"key": "k"}`, http.StatusOK)
			if took := time.Since(start); took > headerTime/2 {
				t.Errorf("two requests took %v", took)
			}
			if log := p.log.String(); strings.Count(log, "too many connections") != 1 {
				t.Errorf("it is not said once that there are too many:\n%s", log)
			}
		})
	}
}

// TestOnlyWaiters lets clients that wait, and come back at once, have all the
// connections: one that is new can release what they wait for.
func TestOnlyWaiters(t *testing.T) {
	p := startProcess(t, filepath.Join(t.TempDir(), "locker.json"), "LOCKER_TEST_NOFILE=40")
	p.want("PUT", "/lock/l", `{"key": "k"}`, http.StatusOK)
	http.DefaultClient.CloseIdleConnections()
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	waiters := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 20}}
	for i := range 20 {
		all.Go(func() {
			for status := 0; ctx.Err() == nil && status != http.StatusOK; {
				status, _ = sendBy(ctx, waiters, "PUT", p.url+"/lock/l", fmt.Sprintf(`{"key": "other", "locked_by": "w%d", "id": "%d", "wait": "500ms"}`, i, i))
			}
		})
	}
	eventually(t, "more than there is room for", func() bool { return strings.Contains(p.log.String(), "too many connections") })
	start := time.Now()
	p.want("DELETE", "/lock/l", `{"key": "k"}`, http.StatusOK)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the release took %v", took)
	}
	stop()
	all.Wait()
}

// allowFiles lets this process have that many files open.
func allowFiles(t testing.TB, n uint64) {
	t.Helper()
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Cur >= n {
		return
	}
	files.Cur, files.Max = n, max(files.Max, n)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		skip(t, fmt.Sprintf("a limit of %d open files: %v", n, err))
	}
}

// flood opens that many connections and sends half a request on each.
func flood(t *testing.T, address string, n int) []net.Conn {
	t.Helper()
	texts := halves()
	conns := make([]net.Conn, n)
	for i := range conns {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			closeAll(conns[:i])
			t.Fatal(err)
		}
		conn.(*net.TCPConn).SetLinger(0) // its port is free at once
		io.WriteString(conn, texts[i%len(texts)])
		conns[i] = conn
	}
	return conns
}

func closeAll(conns []net.Conn) {
	for _, conn := range conns {
		conn.Close()
	}
}
