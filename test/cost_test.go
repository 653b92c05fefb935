package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

const maxCost = 15 * time.Millisecond // of an uncontended out, beside the smallest process there is

// stopwatch runs an uncontended out, and true. The lock is taken once; from
// then on the same claim is a repeat, for which the server commits nothing.
type stopwatch struct {
	out, request string
	env          []string
}

func newStopwatch(t testing.TB) *stopwatch {
	s := &stopwatch{out: lockertest.Released(t, "out"), env: []string{"ATC_EXTERNAL_URL=https://ci.example", "BUILD_ID=1"}}
	s.request = `{"source":{"locker_uri":"http://` + lockertest.Start(t).Address + `","lock_name":"myLock"},"params":{"key":"k","lock_op":"lock"}}`
	s.run(t, s.out)
	return s
}

func (s *stopwatch) run(t testing.TB, program string) time.Duration {
	t.Helper()
	cmd := exec.Command(program)
	cmd.Stdin, cmd.Env = strings.NewReader(s.request), s.env
	begun := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return time.Since(begun)
}

// An uncontended out costs little. The best of many runs counts: other tests
// run at the same time.
func TestCost(t *testing.T) {
	s := newStopwatch(t)
	floor, out, deadline := time.Hour, time.Hour, time.Now().Add(lockertest.Patience/4)
	for n := 0; n < 20 || out-floor > maxCost && time.Now().Before(deadline); n++ {
		floor, out = min(floor, s.run(t, "true")), min(out, s.run(t, s.out))
	}
	if most := max(maxCost, 8*floor); out-floor > most { // where the smallest process takes long, the start of one of 6 MB does too
		t.Errorf("out takes %s, true %s: the difference should be at most %s", out, floor, most)
	}
}

// BenchmarkOut runs an uncontended out as a process, beside true.
func BenchmarkOut(b *testing.B) {
	s := newStopwatch(b)
	var out, floor time.Duration
	for b.Loop() {
		floor += s.run(b, "true")
		out += s.run(b, s.out)
	}
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(each(floor), "true-ms/op")
	b.ReportMetric(each(out), "out-ms/op")
	b.ReportMetric(each(out-floor), "more-ms/op")
}

// BenchmarkMemory reports the resident memory of the built program, in MiB:
// idle (at most 12), after ten seconds with 64 clients (at most 40), and with
// 5,000 requests waiting after each was renewed three times (at most 200).
func BenchmarkMemory(b *testing.B) {
	p, busy := lockertest.Start(b), lockertest.Start(b)
	lockertest.Send(b.Context(), "PUT", p.URL+"/lock/l", `{"key": "k", "id": "1"}`)
	idle := footprintOf(b, p.Process).mib
	clients := ask(busy.Address, "own", 64)
	clients.args[len(clients.args)-1] = "10s"
	newBench(b).turn(b, clients)
	for b.Loop() {
		lockertest.Send(b.Context(), "GET", p.URL+"/lock/l", "")
	}
	const waiters, renewals = 5_000, 3
	var queuedUp sync.WaitGroup
	for i := range waiters {
		queuedUp.Add(1)
		conn, err := net.Dial("tcp", p.Address)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		go func() {
			defer queuedUp.Done()
			answers := bufio.NewReader(conn)
			for n := range renewals + 1 {
				wait := "5s"
				if n == renewals {
					wait = "60s"
				}
				body := fmt.Sprintf(`{"key": "other", "id": "%d", "wait": "%s"}`, i, wait)
				fmt.Fprintf(conn, "PUT /lock/l HTTP/1.1\r\nHost: l\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				if n == renewals {
					return
				}
				if resp, err := http.ReadResponse(answers, nil); err != nil {
					b.Error(err)
				} else if io.Copy(io.Discard, resp.Body); resp.StatusCode != http.StatusLocked {
					b.Error(resp.Status)
				}
			}
		}()
	}
	queuedUp.Wait()
	time.Sleep(time.Second)
	b.ReportMetric(idle, "idle-MiB")
	b.ReportMetric(footprintOf(b, busy.Process).mib, "busy-MiB")
	b.ReportMetric(footprintOf(b, p.Process).mib, "waiting-MiB")
}
