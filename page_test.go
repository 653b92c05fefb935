package main

import (
	"bufio"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const mostPage = 60_000 // bytes

func TestPageIsServedAsItIs(t *testing.T) {
	s := startServer(t, withAuth())
	if got := s.do(t, get, "/", ""); got.status != "401 Unauthorized" || strings.Contains(got.body, "html") {
		t.Errorf("without credentials: %s %s", got.status, got.body)
	}
	got := s.do(t, get, "/", "", "Authorization", basic(user, password))
	if got.status != "200 OK" || got.body != read(t, "page.html") {
		t.Errorf("got %s and %d bytes", got.status, len(got.body))
	}
	if got.header.Get("Content-Type") != "text/html; charset=utf-8" || got.header.Get("X-Content-Type-Options") != "nosniff" || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("header %v", got.header)
	}
	policy := got.header.Get("Content-Security-Policy")
	for _, part := range []string{"default-src 'none'; ", "connect-src 'self';", "script-src 'sha256-", "style-src 'sha256-", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, part) {
			t.Errorf("the policy has no %s: %s", part, policy)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") || !strings.HasPrefix(policy, "default-src") {
		t.Errorf("policy %s", policy)
	}
	if strings.Count(read(t, "page.html"), "<script") != 1 || strings.Count(read(t, "page.html"), "<style") != 1 {
		t.Error("the policy allows one script and one style")
	}
	if len(got.body) > mostPage {
		t.Errorf("the page has %d bytes", len(got.body))
	}
	if got := s.do(t, get, "/?q=jane&show=held", "", "Authorization", basic(user, password)); got.status != "200 OK" {
		t.Errorf("with a filter: %s", got.status)
	}
	if got := s.do(t, get, "/?x=1", "", "Authorization", basic(user, password)); got.status != "400 Bad Request" {
		t.Errorf("with a query: %s", got.status)
	}
}

// TestListTellsOfChangesTogether: whoever follows the list hears of a change
// within a tenth of a second, but of many at once not of each.
func TestListTellsOfChangesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := serveMemory(t, &config{})
		const changes = 400
		go func() {
			conn := m.dial(t)
			answers := bufio.NewReader(conn)
			for i := range changes {
				fmt.Fprintf(conn, "PUT /lock/l%d HTTP/1.1\r\nHost: locker\r\nContent-Length: 12\r\n\r\n{\"key\": \"k\"}", i)
				nextAnswer(t, answers)
				time.Sleep(5 * time.Millisecond)
			}
		}()
		conn := m.dial(t)
		answers, tag, told := bufio.NewReader(conn), `"1"`, 0
		start := time.Now()
		for tag != fmt.Sprintf(`"%d"`, 1+changes) {
			asked := time.Now()
			fmt.Fprintf(conn, "GET /locks?wait=60s HTTP/1.1\r\nHost: locker\r\nIf-None-Match: %s\r\n\r\n", tag)
			got := nextAnswer(t, answers)
			if took := time.Since(asked); got.status != "200 OK" || took > listPause+5*time.Millisecond {
				t.Fatalf("got %s after %v", got.status, took)
			}
			tag = got.header.Get("ETag")
			told++
		}
		if took := time.Since(start); told < 15 || told > int(took/listPause)+2 {
			t.Errorf("told %d times in %v", told, took)
		}
	})
}
