package test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file is clients that are many, and say nothing or half of something.

// TestTenThousandConnections opens as many to a server process, silent ones and
// half-sent ones: others are served meanwhile, and afterwards the process has
// its file descriptors again.
func TestTenThousandConnections(t *testing.T) {
	const many, spare, dear = 10_000, 500, 100 // dear is KiB for a connection, much more than it takes
	lockertest.AllowFiles(t, many+spare)
	p := lockertest.StartLimited(t, fmt.Sprint("ulimit -n ", many+spare))
	p.Want("PUT", "/lock/held", jane, http.StatusOK)
	before := footprintOf(t, p.Process).files
	conns := lockertest.Flood(t, p.Address, many, lockertest.Halves(""))
	lockertest.Eventually(t, "most of them", func() bool { return footprintOf(t, p.Process).files >= many*9/10 })
	start := time.Now()
	p.Want("PUT", "/lock/others", `{"key": "k"}`, http.StatusOK)
	p.Want("GET", "/locks", "", http.StatusOK)
	p.Want("DELETE", "/lock/others", `{"key": "k"}`, http.StatusOK)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("three requests took %v beside %d connections", took, many)
	}
	if mib := footprintOf(t, p.Process).mib; mib > many*dear/1024 {
		t.Errorf("%d connections take %v MiB", many, mib)
	}
	conns.Close()
	lockertest.Eventually(t, "descriptors as before", func() bool { return footprintOf(t, p.Process).files <= before+1 })
	p.Want("PUT", "/lock/held", `{"key": "other"}`, http.StatusLocked)
}

// TestFewFiles lets connections on which nothing is asked take all the file
// descriptors that they can get: they make room for those who ask.
func TestFewFiles(t *testing.T) {
	for name, sent := range map[string]string{"silent": "", "idle": "GET /health HTTP/1.1\r\nHost: l\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			p := lockertest.StartLimited(t, "ulimit -n 80")
			p.Want("PUT", "/lock/l", `{"key": "k"}`, http.StatusOK)
			for range 120 {
				conn, err := net.Dial("tcp", p.Address)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				io.WriteString(conn, sent)
			}
			start := time.Now()
			p.Want("DELETE", "/lock/l", `{"key": "k"}`, http.StatusOK)
			http.DefaultClient.CloseIdleConnections()
			p.Want("PUT", "/lock/l", `{"key": "k"}`, http.StatusOK)
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("two requests took %v", took)
			}
			if log := p.Log.String(); strings.Count(log, "too many connections") != 1 {
				t.Errorf("it is not said once that there are too many:\n%s", log)
			}
		})
	}
}

// TestOnlyWaiters lets clients that wait, and come back at once, have all the
// connections: one that is new can release what they wait for.
func TestOnlyWaiters(t *testing.T) {
	p := lockertest.StartLimited(t, "ulimit -n 40")
	p.Want("PUT", "/lock/l", `{"key": "k"}`, http.StatusOK)
	http.DefaultClient.CloseIdleConnections()
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	waiters := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 20}}
	for i := range 20 {
		all.Go(func() {
			for status := 0; ctx.Err() == nil && status != http.StatusOK; {
				status, _ = lockertest.SendBy(ctx, waiters, "PUT", p.URL+"/lock/l", fmt.Sprintf(`{"key": "other", "locked_by": "w%d", "id": "%d", "wait": "500ms"}`, i, i))
			}
		})
	}
	lockertest.Eventually(t, "more than there is room for", func() bool { return strings.Contains(p.Log.String(), "too many connections") })
	start := time.Now()
	p.Want("DELETE", "/lock/l", `{"key": "k"}`, http.StatusOK)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the release took %v", took)
	}
	stop()
	all.Wait()
}
