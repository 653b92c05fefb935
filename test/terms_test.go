package test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file is what a leader and the others do when a term ends in trouble.

const leaseTime = 5 * time.Second

// add starts one more locker, which reaches etcd by these URLs.
func (ls *lockers) add(t testing.TB, etcd string) *lockertest.Locker {
	t.Helper()
	address := freeAddress(t)
	l := lockertest.Start(t, append(ls.env, "LOCKER_ETCD="+etcd, "LISTEN="+address, "LOCKER_ADVERTISE=http://"+address)...)
	ls.all = append(ls.all, l)
	return l
}

// freeze stops a process, and returns when none of its threads runs any more.
func freeze(t testing.TB, l *lockertest.Locker) {
	t.Helper()
	l.Process.Signal(syscall.SIGSTOP)
	lockertest.Eventually(t, "the process is stopped", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", l.Process.Pid))
		return err == nil && !slices.ContainsFunc(threads, func(name string) bool { return !strings.Contains(lockertest.Read(t, name), ") T ") })
	})
}

// put sends a request on a connection of its own, and returns where its answer is
// to be read. It is answered here or not at all: it says that it was passed on.
func put(t testing.TB, l *lockertest.Locker, method, path, body string) *bufio.Reader {
	t.Helper()
	conn, err := net.Dial("tcp", l.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * lockertest.Patience))
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: localhost\r\nLocker-Forwarded: test\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
	return bufio.NewReader(conn)
}

// TestWokenLeader stops a leader with requests in its sockets, lets another lead
// and the lock change hands, and wakes it without a word about its lease: only the
// transactions can tell it that it was replaced. What would change nothing is asked
// alone, since a change beside it is refused in any case.
func TestWokenLeader(t *testing.T) {
	for name, asked := range map[string][][2]string{
		"changes": {{"PUT /lock/free", `{"key": "late", "id": "3"}`}, {"PUT /lock/l", `{"key": "k", "id": "1"}`}, {"DELETE /lock/l", `{"key": "k", "id": "1"}`}, {"DELETE /lock/l?force=true", ""}, {"GET /locks", ""}},
		"repeat":  {{"PUT /lock/l", `{"key": "k", "id": "1"}`}},
		"refused": {{"PUT /lock/l", `{"key": "other"}`}},
		"nothing": {{"DELETE /lock/free", `{"key": "k"}`}},
		"ticket":  {{"GET /lock/l?ticket=true", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wakeLeader(t, asked)
		})
	}
}

func wakeLeader(t *testing.T, asked [][2]string) {
	ls := startLockers(t, 1, 0)
	network := newEtcdNet(t, ls.etcd.URLs[0])
	old := ls.add(t, network.URL)
	ls.leader(t)
	next := ls.add(t, ls.etcd.URLs[0])
	ls.leader(t)
	old.Want("PUT", "/lock/l", `{"key": "k", "id": "1"}`, 200)
	freeze(t, old)
	var answers []*bufio.Reader
	for _, a := range asked {
		method, path, _ := strings.Cut(a[0], " ")
		answers = append(answers, put(t, old, method, path, a[1]))
	}
	lockertest.Eventually(t, "the other leads", func() bool { return healthOf(next).Status == "ok" })
	next.Want("DELETE", "/lock/l", `{"key": "k", "id": "1"}`, 200)
	next.Want("PUT", "/lock/l", `{"key": "other", "id": "4"}`, 200)
	before := string(next.Want("GET", "/locks", "", 200))
	network.set(func(path string) fate {
		if isKeepalive(path) {
			return hangs
		}
		return passes
	})
	old.Process.Signal(syscall.SIGCONT)
	for i, r := range answers {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Errorf("%s: %v", asked[i][0], err)
			continue
		}
		if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 503 {
			t.Errorf("%s %s is answered %s %s", asked[i][0], asked[i][1], resp.Status, body)
		}
	}
	if after := string(next.Want("GET", "/locks", "", 200)); after != before {
		t.Errorf("the locks were %s, and are %s", before, after)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s", old.Log)
		}
	})
	lockertest.Eventually(t, "the old leader follows", func() bool { h := healthOf(old); return h.Status == "standby" && h.Leader == next.URL })
}

// TestForwardsAreCut stops a leader that others have passed requests on to: who
// asked them is answered as soon as another leads.
func TestForwardsAreCut(t *testing.T) {
	ls := startLockers(t, 1, 3)
	leader := ls.leader(t)
	standby := ls.all[(leader+1)%3]
	standby.Want("PUT", "/lock/l", `{"key": "k"}`, 200)
	answered := make(chan int, 2)
	wait := func(method, path, body string) {
		status, _ := lockertest.Send(t.Context(), method, standby.URL+path, body)
		answered <- status
	}
	go wait("PUT", "/lock/l", `{"key": "other", "id": "1", "wait": "55s"}`)
	standby.Await("l", lockertest.WithWaiters(1))
	freeze(t, ls.all[leader])
	go wait("PUT", "/lock/m", `{"key": "k", "id": "2"}`)
	start := time.Now()
	for range 2 {
		select {
		case status := <-answered:
			if took := time.Since(start); status != 503 || took > leaseTime+3*time.Second {
				t.Errorf("answered %d after %v", status, took)
			}
		case <-time.After(2 * leaseTime):
			t.Fatal("a stopped leader holds clients")
		}
	}
	ls.all[leader].Process.Signal(syscall.SIGCONT)
	standby.Want("PUT", "/lock/m", `{"key": "k", "id": "2"}`, 200)
}

// TestBlackHole takes etcd from a leader without a word: its last answer to a read
// lies before the first grant of the next.
func TestBlackHole(t *testing.T) {
	ls := startLockers(t, 1, 0)
	network := newEtcdNet(t, ls.etcd.URLs[0])
	old := ls.add(t, network.URL)
	ls.leader(t)
	next := ls.add(t, ls.etcd.URLs[0])
	ls.leader(t)
	ctx, cancel := context.WithCancel(t.Context())
	last := make(chan time.Time)
	go func() {
		var read time.Time
		for ctx.Err() == nil {
			r := put(t, old, "GET", "/lock/l", "")
			if resp, err := http.ReadResponse(r, nil); err == nil && resp.StatusCode == 200 {
				read = time.Now()
			}
			time.Sleep(time.Millisecond)
		}
		last <- read
	}()
	time.Sleep(200 * time.Millisecond)
	start := time.Now()
	network.set(func(string) fate { return hangs })
	var granted time.Time
	for granted.IsZero() {
		if status, _ := lockertest.Send(t.Context(), "PUT", next.URL+"/lock/l", `{"key": "k", "id": "1"}`); status == 200 {
			granted = time.Now()
		}
	}
	cancel()
	read := <-last
	t.Logf("the last read came %v, the first grant %v after etcd was gone", read.Sub(start), granted.Sub(start))
	if !read.Before(granted) || granted.Sub(start) > leaseTime+1500*time.Millisecond || read.Sub(start) < leaseTime/3 {
		t.Errorf("the last read came %v, the first grant %v after etcd was gone", read.Sub(start), granted.Sub(start))
	}
}

// TestQuorum stops two of three members of etcd, and lets them go on.
func TestQuorum(t *testing.T) {
	ls := startLockers(t, 3, 3)
	leader := ls.all[ls.leader(t)]
	leader.Want("PUT", "/lock/l", `{"key": "k", "id": "1"}`, 200)
	go lockertest.Send(t.Context(), "PUT", leader.URL+"/lock/l", `{"key": "first", "id": "2", "wait": "30s"}`)
	leader.Await("l", lockertest.WithWaiters(1))
	go lockertest.Send(t.Context(), "PUT", leader.URL+"/lock/l", `{"key": "second", "id": "3", "wait": "30s"}`)
	leader.Await("l", lockertest.WithWaiters(2))
	ls.etcd.Signal(syscall.SIGSTOP, 0, 1)
	start := time.Now()
	wrote := make(chan string, 1)
	go func() {
		status, body := lockertest.Send(t.Context(), "PUT", leader.URL+"/lock/new", `{"key": "k", "id": "4"}`)
		wrote <- fmt.Sprintf("%d after %v: %s", status, time.Since(start).Round(time.Second), body)
	}()
	for status := 200; status == 200; time.Sleep(50 * time.Millisecond) {
		if status, _ = lockertest.Send(t.Context(), "GET", leader.URL+"/lock/l", ""); time.Since(start) > leaseTime+3*time.Second {
			t.Fatalf("a read is answered %d %v after the quorum was lost", status, time.Since(start))
		}
	}
	reads := time.Since(start)
	got := <-wrote
	t.Logf("reads end after %v, a change is answered %s", reads, got)
	if !strings.HasPrefix(got, "503 after") || reads > leaseTime+readMore || time.Since(start) > 13*time.Second {
		t.Errorf("reads end after %v, a change is answered %s", reads, got)
	}
	ls.etcd.Signal(syscall.SIGCONT, 0, 1)
	back := time.Now()
	lockertest.Eventually(t, "service", func() bool {
		status, _ := lockertest.Send(t.Context(), "PUT", ls.all[0].URL+"/lock/new", `{"key": "k", "id": "4"}`)
		return status == 200
	})
	t.Logf("service is back after %v", time.Since(back))
	if took := time.Since(back); took > 6*time.Second+slowMachine {
		t.Errorf("service is back after %v", took)
	}
	held := ls.all[1].Lock("l")
	if len(held.Holders) != 1 || len(held.Waiters) != 2 || held.Waiters[0].Key != "first" {
		t.Errorf("the places are %+v", held)
	}
	ls.all[2].Want("DELETE", "/lock/l", `{"key": "k", "id": "1"}`, 200)
	ls.all[1].Want("PUT", "/lock/l", `{"key": "second", "id": "3"}`, 423)
	ls.all[1].Want("PUT", "/lock/l", `{"key": "first", "id": "2"}`, 200)
}

const readMore = 500 * time.Millisecond // until a read is asked for again and answered
