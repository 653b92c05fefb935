package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// varying is what differs from run to run in a log.
var varying = regexp.MustCompile(`^time=\S+ |(waited|held)=\S+|(address|state|version)=\S+`)

// TestLogTellsALocksStory: `grep lock=NAME` shows everything that happened to a
// lock, each thing once, and what changed nothing is not there.
func TestLogTellsALocksStory(t *testing.T) {
	s := startServer(t, withAuth())
	right, wrong := basic(user, password), basic(user, "wrong-"+canary)
	do := func(method, path, body string) exchange {
		return s.do(t, method, path, body, "Authorization", right)
	}
	do(put, "/lock/myLock", jane)
	do(put, "/lock/myLock", jane)                                      // again
	do(put, "/lock/myLock", `{"key": "other"}`)                        // refused
	do(del, "/lock/myLock", `{"key": "other"}`)                        // the wrong key
	do(del, "/lock/myLock?force=true", `{"locked_by": "nobody"}`)      // nobody
	s.do(t, put, "/lock/myLock", jane, "Authorization", wrong)         // refused
	do(put, "/lock/other", `{"key": "k", "reason": "not understood"}`) // 400

	george := make(chan exchange, 1)
	go func() {
		george <- do(put, "/lock/myLock", `{"key": "deploy", "locked_by": "george", "wait": "60s"}`)
	}()
	s.log.await(t, `msg=queue lock=myLock key=deploy`)
	ann := s.dial(t)
	const waits = `{"key": "test", "locked_by": "ann", "wait": "60s"}`
	fmt.Fprintf(ann, "PUT /lock/myLock HTTP/1.1\r\nHost: locker\r\nAuthorization: %s\r\nContent-Length: %d\r\n\r\n%s", right, len(waits), waits)
	s.log.await(t, `msg=queue lock=myLock key=test`)
	ann.Close()
	s.log.await(t, `msg=withdraw lock=myLock key=test`)
	do(put, "/lock/myLock", `{"key": "k3", "id": "3", "wait": "1ms"}`)
	do(del, "/lock/myLock", `{"key": "k3", "id": "3"}`)
	do(del, "/lock/myLock", `{"key": "k", "locked_by": "jane"}`)
	if got := <-george; got.status != "200 OK" {
		t.Fatalf("george got %s %s", got.status, got.body)
	}
	do(del, "/lock/myLock?force=true", `{"reason": "it \"hangs\"\nlock=myLock"}`)
	do(put, "/lock/myLock", `{"key": "brief", "ttl": "1s"}`)
	s.log.await(t, `msg=expire`)
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
		"level=INFO msg=grant lock=myLock key=k locked_by=jane" + link + " token=1 waited",
		"level=INFO msg=queue lock=myLock key=deploy locked_by=george",
		"level=INFO msg=queue lock=myLock key=test locked_by=ann",
		"level=INFO msg=withdraw lock=myLock key=test locked_by=ann waited reason=\"its request ended, and it did not come back in time\"",
		"level=INFO msg=queue lock=myLock key=k3 locked_by=k3",
		"level=INFO msg=withdraw lock=myLock key=k3 locked_by=k3 waited reason=\"it was released while it waited\"",
		"level=INFO msg=release lock=myLock key=k locked_by=jane" + link + " token=1 held",
		"level=INFO msg=grant lock=myLock key=deploy locked_by=george token=8 waited",
		"level=INFO msg=force lock=myLock key=deploy locked_by=george token=8 held by=" + user + ` reason="it \"hangs\"\nlock=myLock"`,
		"level=INFO msg=grant lock=myLock key=brief locked_by=brief token=10 waited",
		"level=INFO msg=expire lock=myLock key=brief locked_by=brief token=10 held",
	}
	if !slices.Equal(story, want) {
		t.Errorf("the story is\n%s\nwant\n%s", strings.Join(story, "\n"), strings.Join(want, "\n"))
	}
	want = []string{
		"level=INFO msg=start version address tls=false auth=true state locks=0 claims=0",
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
	s.log.await(t, `msg=force .* by=`+regexp.QuoteMeta(conn.LocalAddr().String())+` reason=""\n`)
}
