package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/test/history"
)

func TestPipelining(t *testing.T) {
	s := startServer(t, nil)
	conn := s.dial(t)
	request := func(method, path, body string) string {
		return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
	}
	go io.WriteString(conn, request(put, "/lock/a", jane)+
		request(put, "/lock/a", `{"key": "other", "wait": "10ms"}`)+
		request(del, "/lock/a", `{"key": "k", "locked_by": "jane"}`)+
		request(get, "/nowhere", "")+
		request(get, "/lock/a", ""))
	answers := bufio.NewReader(conn)
	for _, want := range []string{"200 OK", "423 Locked", "200 OK", "404 Not Found", "200 OK"} {
		if got := nextAnswer(t, answers); got.status != want {
			t.Errorf("got %s, want %s: %s", got.status, want, got.body)
		}
	}
}

// stall sends text and nothing more, and returns what came back until the
// server gave the connection up, and how long that took.
func stall(t *testing.T, conn net.Conn, text string) (string, time.Duration) {
	t.Helper()
	start := time.Now()
	go io.WriteString(conn, text)
	got, _ := io.ReadAll(conn)
	return string(got), time.Since(start)
}

// TestStalledClients shows when those who send nothing more are cut off, in a
// bubble in which that takes no time.
func TestStalledClients(t *testing.T) {
	const put = "PUT /lock/a HTTP/1.1\r\nHost: locker\r\n"
	authorized := put + "Authorization: " + basic(user, password) + "\r\n"
	for _, test := range []struct {
		name, text string
		answer     string // how it begins
		after      time.Duration
	}{
		{"nothing", "", "", headerTime},
		{"half a line", "GET /lo", "HTTP/1.1 400 Bad Request", headerTime},
		{"half a header", authorized, "", headerTime},
		{"half a header after a request", "GET /health HTTP/1.1\r\nHost: locker\r\n\r\nGET /lo", "HTTP/1.1 200 OK", headerTime},
		{"half a body", authorized + "Content-Length: 100\r\n\r\n{", "HTTP/1.1 408 Request Timeout", bodyTime},
		{"half a chunk", authorized + "Transfer-Encoding: chunked\r\n\r\n5\r\n{", "HTTP/1.1 408 Request Timeout", bodyTime},
		{"no body", authorized + "Content-Length: 100\r\n\r\n", "HTTP/1.1 408 Request Timeout", bodyTime},
		{"a body that was asked for", authorized + "Expect: 100-continue\r\nContent-Length: 100\r\n\r\n", "HTTP/1.1 100 Continue", bodyTime},
		{"a body without credentials", put + "Content-Length: 100\r\n\r\n{", "HTTP/1.1 401 Unauthorized", refusedTime},
		{"chunks without credentials", put + "Transfer-Encoding: chunked\r\n\r\n5\r\n{", "HTTP/1.1 401 Unauthorized", refusedTime},
		{"a body for nothing", strings.Replace(authorized, "/lock/a", "/nowhere", 1) + "Content-Length: 100\r\n\r\n{", "HTTP/1.1 404 Not Found", bodyTime},
		{"a body from another site", authorized + "Sec-Fetch-Site: cross-site\r\nContent-Length: 100\r\n\r\n{", "HTTP/1.1 403 Forbidden", bodyTime},
		{"idle", "GET /health HTTP/1.1\r\nHost: locker\r\n\r\n", "HTTP/1.1 200 OK", idleTime},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, _ := serveMemory(t, &config{credentials: newCredentials(user, password)})
				got, after := stall(t, m.dial(t), test.text)
				if !strings.HasPrefix(got, test.answer) || test.answer == "" && got != "" {
					t.Errorf("got %q, want %q", got, test.answer)
				}
				if late := after - test.after; late < 0 || late > time.Second {
					t.Errorf("cut off after %v, want %v", after, test.after)
				}
			})
		})
	}
}

// A client that goes on sending a little is cut off no later.
func TestDrippingClients(t *testing.T) {
	for name, text := range map[string]string{
		"header": "GET /locks HTTP/1.1\r\nCookie: ",
		"body":   "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: 1000\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, _ := serveMemory(t, &config{})
				conn := m.dial(t)
				noticed := make(chan struct{})
				go func() {
					defer close(noticed)
					for _, err := io.WriteString(conn, text); err == nil; _, err = io.WriteString(conn, " ") {
						time.Sleep(time.Second)
					}
				}()
				start := time.Now()
				io.ReadAll(conn)
				<-noticed
				if took := time.Since(start); took > 11*time.Second {
					t.Errorf("cut off after %v", took)
				}
			})
		})
	}
}

// A client that does not take its answer loses the connection.
func TestAnswerNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, stop := serveMemory(t, &config{})
		conn := m.dial(t)
		io.WriteString(conn, "GET /locks HTTP/1.1\r\nHost: locker\r\n\r\n")
		time.Sleep(sendTime + time.Second)
		if got, _ := io.ReadAll(conn); len(got) > 0 {
			t.Errorf("got %q", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// Clients that ask for much and read nothing leave 64 MiB unsent at most: the
// slowest lose their connections before the others, and those who read a little
// stay.
func TestAnswersThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := serveMemory(t, &config{})
		fill := m.dial(t)
		for i := range 500 {
			body := fmt.Sprintf(`{"key": "k", "link": "https://ci.example/%s"}`, strings.Repeat("x", 2000))
			talk(t, fill, fmt.Sprintf("PUT /lock/%d HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body))
		}
		fill.Close()
		var all []net.Conn
		for range 70 { // answers of 1.1 MB
			conn := m.dial(t)
			io.WriteString(conn, "GET /locks HTTP/1.1\r\nHost: locker\r\n\r\n")
			all = append(all, conn)
			time.Sleep(time.Millisecond)
		}
		for range 12 {
			if _, err := io.ReadFull(all[0], make([]byte, 5000)); err != nil {
				t.Fatalf("one that reads: %v", err)
			}
			time.Sleep(500 * time.Millisecond)
		}
		lost := ""
		for _, conn := range all {
			conn.SetReadDeadline(time.Now().Add(time.Nanosecond))
			_, err := conn.Read(nil)
			lost += map[bool]string{true: "x", false: "."}[err == io.EOF]
		}
		if !regexp.MustCompile(`^\.x{5,15}\.+$`).MatchString(lost) {
			t.Errorf("which lost their connections: %s", lost)
		}
	})
}

// A hold without an id whose grant was not taken is given back.
func TestGrantNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := serveMemory(t, &config{})
		io.WriteString(m.dial(t), "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: 12\r\n\r\n{\"key\": \"k\"}")
		time.Sleep(sendTime - time.Second)
		if got := talk(t, m.dial(t), "GET /lock/a HTTP/1.1\r\nHost: locker\r\n\r\n"); !strings.Contains(got.body, `"locked_by":{"k":1}`) {
			t.Errorf("got %s", got.body)
		}
		time.Sleep(2 * time.Second)
		if got := talk(t, m.dial(t), "GET /lock/a HTTP/1.1\r\nHost: locker\r\n\r\n"); !strings.Contains(got.body, `"locked_by":{}`) {
			t.Errorf("got %s", got.body)
		}
	})
}

// No deadline of a request cuts the wait that it asks for, which is 55 s at most, nor one of the
// request before it on the same connection.
func TestLongWaits(t *testing.T) {
	for name, request := range map[string]string{
		"take": "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: 31\r\n\r\n" + `{"key": "other", "wait": "90s"}`,
		"take that asks first": "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nExpect: 100-continue\r\nContent-Length: 31\r\n\r\n" +
			`{"key": "other", "wait": "90s"}`,
		"list": "GET /locks?wait=90s HTTP/1.1\r\nHost: locker\r\nIf-None-Match: \"2\"\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, _ := serveMemory(t, &config{})
				conn := m.dial(t)
				answers := bufio.NewReader(conn)
				go fmt.Fprintf(conn, "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", len(jane), jane)
				nextAnswer(t, answers)
				for range 3 {
					time.Sleep(sendTime + bodyTime)
					start := time.Now()
					go io.WriteString(conn, request)
					got := nextAnswer(t, answers)
					if got.status == "100 Continue" {
						got = nextAnswer(t, answers)
					}
					if took := time.Since(start); took.Round(time.Second) != 55*time.Second || got.status[0] == '5' || got.status[0] == '2' || got.status[0] == '4' && !strings.Contains(got.body, "; this request waited 55s\"") {
						t.Errorf("got %s after %v: %s", got.status, took, got.body)
					}
				}
			})
		})
	}
}

// A grant comes through at the very end of a wait.
func TestGrantAtTheEndOfAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := serveMemory(t, &config{})
		talk(t, m.dial(t), fmt.Sprintf("PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", len(jane), jane))
		conn := m.dial(t)
		io.WriteString(conn, "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: 31\r\n\r\n"+`{"key": "other", "wait": "60s"}`)
		time.Sleep(54 * time.Second)
		talk(t, m.dial(t), "DELETE /lock/a?force=true HTTP/1.1\r\nHost: locker\r\n\r\n")
		got := nextAnswer(t, bufio.NewReader(conn))
		if got.status != "200 OK" || !strings.Contains(got.body, "lock a acquired by other") {
			t.Errorf("got %s %s", got.status, got.body)
		}
	})
}

// A connection that is lost while its claim waits is noticed at once, and a
// claim without an id leaves the queue.
func TestConnectionLostWhileWaiting(t *testing.T) {
	for name, header := range map[string]string{
		"length":  "Content-Length: 31\r\n\r\n" + `{"key": "other", "wait": "60s"}`,
		"chunked": "Transfer-Encoding: chunked\r\n\r\n1f\r\n" + `{"key": "other", "wait": "60s"}` + "\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, _ := serveMemory(t, &config{})
				queue := func() string {
					time.Sleep(100 * time.Millisecond)
					return talk(t, m.dial(t), "GET /lock/a HTTP/1.1\r\nHost: locker\r\n\r\n").body
				}
				talk(t, m.dial(t), fmt.Sprintf("PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", len(jane), jane))
				conn := m.dial(t)
				io.WriteString(conn, "PUT /lock/a HTTP/1.1\r\nHost: locker\r\n"+header)
				if got := queue(); !strings.Contains(got, `"waiters":[{"key":"other"`) {
					t.Errorf("it does not wait: %s", got)
				}
				conn.Close()
				if got := queue(); !strings.Contains(got, `"waiters":[]`) {
					t.Errorf("it still waits: %s", got)
				}
			})
		})
	}
}

// TestHalfSentRequests leaves 1,000 requests half sent and wants others to be
// answered.
func TestHalfSentRequests(t *testing.T) {
	lockertest.AllowFiles(t, 2*1_000+500)
	s := startServer(t, withAuth())
	conns := lockertest.Flood(t, s.address, 1_000, lockertest.Halves(basic(user, password)))
	defer conns.Close()
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

// TestConnectionsLeaveNothing opens connections to a server of which the memory
// can be looked at, and wants it back when they are closed. What other tests
// leave behind may come and go meanwhile, but not each time.
func TestConnectionsLeaveNothing(t *testing.T) {
	const many, each = 2_000, 200 // each is bytes: what knows a connection keeps twice as many alive
	lockertest.AllowFiles(t, 2*many+500)
	s := startServer(t, nil)
	s.do(t, get, "/health", "")
	few := runtime.NumGoroutine() + 10
	var grown []int
	for before := inUse(); len(grown) < 5; {
		conns := lockertest.Flood(t, s.address, many, lockertest.Halves(""))
		lockertest.Eventually(t, "a goroutine for most", func() bool { return runtime.NumGoroutine() > many*9/10 })
		conns.Close()
		conns = nil
		lockertest.Eventually(t, "no more goroutines than before", func() bool { return runtime.NumGoroutine() <= few })
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

// Hosts that vanish are noticed by keep-alive probes: 5 s, 3 of them.
func TestKeepAliveProbes(t *testing.T) {
	l, err := listen(t.Context(), "127.0.0.1:0", "-listen")
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

// served is a locker on a real port, with its state on a real disk.
func served(t testing.TB) (url string) {
	t.Helper()
	st, s, err := openState(filepath.Join(t.TempDir(), "locker.json"), realSteps(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCommitter(st, s, newMetrics(), quiet(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := listen(t.Context(), "127.0.0.1:0", "-listen")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, listener, &config{}, c, quiet()) }()
	t.Cleanup(func() {
		stop()
		<-done
		st.close()
	})
	return "http://" + listener.Addr().String()
}

// TestNothingLeftBehind lets a crowd loose on a locker in this process, which
// then has the goroutines that it had before, and not much more memory.
func TestNothingLeftBehind(t *testing.T) {
	url := served(t)
	c := history.NewCrowd(t, url)
	c.Look()
	c.Leave()
	goroutines, heap := fewestGoroutines(), inUse()
	stop := c.Begin()
	time.Sleep(2 * time.Second)
	stop()
	c.Clear()
	n := c.Check()
	c.Leave()
	lockertest.Eventually(t, "as many goroutines as before", func() bool { return runtime.NumGoroutine() <= goroutines })
	if n.Holds < 100 || n.Queued < 100 || n.Cut < 50 {
		t.Errorf("that was no load: %+v", n)
	}
	const kept = 1 << 10 // bytes of a claim that is remembered as ended
	if more := inUse() - heap; more > 1<<20+(n.Holds+n.Withdrew)*kept {
		t.Errorf("%d bytes more are in use than before, after %+v", more, n)
	}
}

// fewestGoroutines returns how many there are when none is about to end.
func fewestGoroutines() int {
	fewest := runtime.NumGoroutine()
	for range 20 {
		time.Sleep(10 * time.Millisecond)
		fewest = min(fewest, runtime.NumGoroutine())
	}
	return fewest
}

// A waiter without an id whose connection is closed is granted nothing, also when
// what it sent ahead hides that from net/http.
func TestClosedBehindFurtherBytes(t *testing.T) {
	certFile, keyFile := lockertest.NewCertificate(t, t.TempDir(), "locker")
	for name, env := range map[string]map[string]string{"plain": nil, "TLS": {"SSL_CERT": certFile, "SSL_KEY": keyFile}} {
		for _, ahead := range []string{"\r\n", "GET /locks HTTP/1.1\r\nHost: locker\r\n\r\n"} {
			t.Run(fmt.Sprintf("%s %.3q", name, ahead), func(t *testing.T) {
				s := startServer(t, env)
				dial := func() net.Conn {
					conn := s.dial(t)
					if env != nil {
						conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
					}
					return conn
				}
				send := func(conn net.Conn, method, body string) {
					fmt.Fprintf(conn, "%s /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", method, len(body), body)
				}
				holder := dial()
				answers := bufio.NewReader(holder)
				send(holder, put, jane)
				nextAnswer(t, answers)
				waiter := dial()
				send(waiter, put, `{"key": "other", "wait": "50s"}`)
				s.log.Await(t, "msg=queue")
				time.Sleep(20 * time.Millisecond) // until net/http looks out for what comes next
				io.WriteString(waiter, ahead)
				time.Sleep(20 * time.Millisecond)
				waiter.Close()
				time.Sleep(20 * time.Millisecond)
				send(holder, del, `{"key": "k", "locked_by": "jane"}`)
				if got := nextAnswer(t, answers); !strings.Contains(got.body, `"holders":[],"waiters":[]`) {
					t.Errorf("got %s %s", got.status, got.body)
				}
				s.log.Await(t, `msg=withdraw .* reason="its connection was closed"`)
			})
		}
	}
}
