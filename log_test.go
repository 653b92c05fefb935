package main

import (
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// varying is what differs from run to run in a log.
var varying = regexp.MustCompile(`^time=\S+ |(waited|held)=\S+|(address|state|version|page)=\S+`)

// TestLogTellsALocksStory: `grep lock=NAME` shows everything that happened to a
// lock, each thing once, and what changed nothing is not there.
func TestLogTellsALocksStory(t *testing.T) {
	s := startServer(t, withAuth())
	right, wrong := basic(user, password), basic(user, "wrong-"+canary)
	do := func(method, path, body string) exchange {
		return s.do(t, method, path, body, "Authorization", right)
	}
	do(put, "/lock/myLock", jane)
	do(put, "/lock/myLock", jane)                                       // again
	do(put, "/lock/myLock", `{"key": "other"}`)                         // refused
	do(del, "/lock/myLock", `{"key": "other"}`)                         // the wrong key
	do(del, "/lock/myLock?force=true", `{"locked_by": "nobody"}`)       // nobody
	s.do(t, put, "/lock/myLock", jane, "Authorization", wrong)          // refused
	do(put, "/lock/other", `{"key": "k", "because": "not understood"}`) // 400

	george := make(chan exchange, 1)
	go func() {
		george <- do(put, "/lock/myLock", `{"key": "deploy", "locked_by": "george", "wait": "60s"}`)
	}()
	s.log.Await(t, `msg=queue lock=myLock key=deploy`)
	ann := s.dial(t)
	const waits = `{"key": "test", "locked_by": "ann", "wait": "60s"}`
	fmt.Fprintf(ann, "PUT /lock/myLock HTTP/1.1\r\nHost: locker\r\nAuthorization: %s\r\nContent-Length: %d\r\n\r\n%s", right, len(waits), waits)
	s.log.Await(t, `msg=queue lock=myLock key=test`)
	ann.Close()
	s.log.Await(t, `msg=withdraw lock=myLock key=test`)
	do(put, "/lock/myLock", `{"key": "k3", "id": "3", "wait": "1ms"}`)
	do(del, "/lock/myLock", `{"key": "k3", "id": "3"}`)
	do(del, "/lock/myLock", `{"key": "k", "locked_by": "jane"}`)
	if got := <-george; got.status != "200 OK" {
		t.Fatalf("george got %s %s", got.status, got.body)
	}
	do(del, "/lock/myLock?force=true", `{"reason": "it \"hangs\"\nlock=myLock"}`)
	do(put, "/lock/myLock", `{"key": "brief", "ttl": "1s"}`)
	s.log.Await(t, `msg=expire`)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}

	var story, rest []string
	for line := range strings.Lines(strings.TrimSuffix(s.log.String(), "ended\n")) {
		line = strings.TrimSpace(varying.ReplaceAllString(line, "$1$2"))
		if strings.Contains(line, " lock=myLock ") {
			story = append(story, line)
		} else {
			rest = append(rest, line)
		}
	}
	const link = " link=https://ci.example/builds/12"
	want := []string{
		"level=INFO msg=grant lock=myLock key=k locked_by=jane" + link + " token=2 waited",
		"level=INFO msg=queue lock=myLock key=deploy locked_by=george",
		"level=INFO msg=queue lock=myLock key=test locked_by=ann",
		"level=INFO msg=withdraw lock=myLock key=test locked_by=ann waited reason=\"its request ended, and it did not come back in time\"",
		"level=INFO msg=queue lock=myLock key=k3 locked_by=k3",
		"level=INFO msg=withdraw lock=myLock key=k3 locked_by=k3 waited reason=\"it was given back while it waited\"",
		"level=INFO msg=release lock=myLock key=k locked_by=jane" + link + " token=2 held",
		"level=INFO msg=grant lock=myLock key=deploy locked_by=george token=9 waited",
		"level=INFO msg=force lock=myLock key=deploy locked_by=george token=9 held by=" + user + ` reason="it \"hangs\"\nlock=myLock"`,
		"level=INFO msg=grant lock=myLock key=brief locked_by=brief token=11 waited",
		"level=INFO msg=expire lock=myLock key=brief locked_by=brief token=11 held",
	}
	if !slices.Equal(story, want) {
		t.Errorf("the story is\n%s\nwant\n%s", strings.Join(story, "\n"), strings.Join(want, "\n"))
	}
	want = []string{
		`level=WARN msg="there was no state file, no lock is held: if this is not the first start, stop the locker and put the file back" state`,
		"level=INFO msg=start version address tls=false auth=true state locks=0 claims=0 page",
		`level=WARN msg="credentials refused" address method=PUT path=/lock/myLock`,
		"level=INFO msg=stop",
	}
	if !slices.Equal(rest, want) {
		t.Errorf("the rest is\n%s\nwant\n%s", strings.Join(rest, "\n"), strings.Join(want, "\n"))
	}
	for _, secret := range []string{canary, password, strings.TrimPrefix(right, "Basic "), strings.TrimPrefix(wrong, "Basic ")} {
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("the log shows %s", secret)
		}
	}
}

// Without credentials the actor of a force is the address it came from.
func TestLogNamesTheAddressWhereThereIsNoUser(t *testing.T) {
	s := startServer(t, nil)
	s.do(t, put, "/lock/a", jane)
	conn := s.dial(t)
	io.WriteString(conn, "DELETE /lock/a?force=true HTTP/1.1\r\nHost: locker\r\nAuthorization: "+basic("somebody", "x")+"\r\n\r\n")
	s.log.Await(t, `msg=force .* by=`+regexp.QuoteMeta(conn.LocalAddr().String())+` reason=""\n`)
}

// What happens is logged, a line each, with names and never with an id.
func TestEventsAreLogged(t *testing.T) {
	s := startServer(t, withAuth())
	right := basic(user, password)
	for _, c := range []apiCall{
		{put, "/lock/a", strings.Replace(jane, `"7"`, `"secret-id"`, 1), nil},
		{put, "/lock/a", georgeWaits, nil},
		{del, "/lock/a", `{"key": "other", "locked_by": "george", "id": "8"}`, nil},
		{del, "/lock/a", `{"key": "k", "locked_by": "jane"}`, nil},
		{put, "/lock/a", `{"key": "k2", "locked_by": "line\\feed"}`, nil},
		{del, "/lock/a?force=true", `{"reason": "it hangs\nmsg=grant"}`, nil},
	} {
		s.do(t, c.method, c.path, c.body, "Authorization", right)
	}
	for _, pattern := range []string{
		`level=INFO msg=grant lock=a key=k locked_by=jane link=https://ci.example/builds/12 token=2 waited=0s\n`,
		`level=INFO msg=queue lock=a key=other locked_by=george\n`,
		`level=INFO msg=withdraw lock=a key=other locked_by=george waited=\S+ reason="it was given back while it waited"\n`,
		`level=INFO msg=release lock=a key=k locked_by=jane link=\S+ token=2 held=\S+\n`,
		`level=INFO msg=grant lock=a key=k2 locked_by=line\\feed token=\d+ waited=0s\n`,
		`level=INFO msg=force lock=a key=k2 locked_by=line\\feed token=\d+ held=\S+ by=george reason="it hangs\\nmsg=grant"\n`,
	} {
		s.log.Await(t, pattern)
	}
	if log := s.log.String(); strings.Contains(log, "secret-id") || strings.Contains(log, canary) {
		t.Errorf("the log shows an id or a password:\n%s", log)
	}
}

// TestOutsidersDoNotFillTheLog floods the log from without: its lines are short
// and few, and the rest is counted.
func TestOutsidersDoNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		written := lockertest.NewLog()
		o := &outsiders{log: slog.New(slog.NewTextHandler(written, nil))}
		handshakes := stdlog.New(o, "", 0)
		kinds := []string{"x", `/"\`, "\xff", "\u200b", "\x00"} // the log quotes them, and makes them longer
		for i := range 500 {
			long := strings.Repeat(kinds[i%len(kinds)], 5_000)
			o.refused(true, "[2001:db8:1111:2222:3333:4444:5555:6666%a-long-zone]:65535", strings.Repeat("M", 5_000), long)
			o.refused(true, "[::1]:65535", "GET", "/lock/"+strings.Repeat("\xff", mostPath-len("/lock/"))) // not too long before
			handshakes.Printf("http: TLS handshake error from [::1]:1: %s", long)
		}
		time.Sleep(time.Minute + time.Second)
		handshakes.Print("http: TLS handshake error: the next minute")
		handshakes.Print("http: panic serving: " + strings.Repeat("a stack is kept whole ", 100))
		lines := strings.Split(strings.TrimSpace(written.String()), "\n")
		if len(lines) != mostLines+3 || !strings.Contains(lines[mostLines], "more=1440") || !strings.Contains(lines[mostLines+1], "the next minute") {
			t.Fatalf("%d lines, then %q", len(lines), lines[min(len(lines), mostLines):])
		}
		for _, line := range lines[:mostLines+2] {
			if len(line) >= 300 {
				t.Errorf("%d bytes: %s", len(line), line)
			}
		}
		if len(lines[mostLines+2]) < 2_000 {
			t.Errorf("cut: %s", lines[mostLines+2])
		}
	})
}

// TestLogSaysWhy: an end that nobody asked for says what for, others say nothing.
func TestLogSaysWhy(t *testing.T) {
	written := lockertest.NewLog()
	logEvents(slog.New(slog.NewTextHandler(written, nil)), []event{{what: "release", why: "undelivered"}, {what: "expire"}, {what: "withdraw", why: "gone"}})
	for i, want := range []string{"held=0s reason=undelivered", "held=0s", "waited=0s reason=gone"} {
		if line := strings.Split(written.String(), "\n")[i]; !strings.HasSuffix(line, want) {
			t.Errorf("%s: want it to end in %q", line, want)
		}
	}
}
