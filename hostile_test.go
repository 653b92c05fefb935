package main

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
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

// No deadline of a request cuts the wait that it asks for, which is a minute at most, nor one of the
// request before it on the same connection.
func TestLongWaits(t *testing.T) {
	for name, request := range map[string]string{
		"take": "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: 31\r\n\r\n" + `{"key": "other", "wait": "90s"}`,
		"take that asks first": "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nExpect: 100-continue\r\nContent-Length: 31\r\n\r\n" +
			`{"key": "other", "wait": "90s"}`,
		"list": "GET /locks?wait=90s HTTP/1.1\r\nHost: locker\r\nIf-None-Match: \"1\"\r\n\r\n",
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
					if took := time.Since(start); took.Round(time.Second) != time.Minute || got.status[0] == '5' || got.status[0] == '2' {
						t.Errorf("got %s after %v", got.status, took)
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
		time.Sleep(59 * time.Second)
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

func TestTLSHandshakeStall(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		certFile, keyFile := newCertificate(t, dir, "locker")
		cert, err := loadCertificate(certFile, keyFile, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		m, _ := serveMemory(t, &config{certificate: cert})
		hello := clientHello(t)
		for _, text := range []string{"", hello[:3], hello[:100], hello} {
			got, after := stall(t, m.dial(t), text)
			if answered := text == hello; (got != "") != answered || after != headerTime {
				t.Errorf("%d bytes: got %d bytes after %v", len(text), len(got), after)
			}
		}
	})
}
