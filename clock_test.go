package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// jumpy is a server in a synctest bubble whose wall clock a test can set.
type jumpy struct {
	*memory
	t     *testing.T
	log   *logs
	jump  atomic.Int64 // of the wall clock, in nanoseconds
	begin time.Time
}

func serveJumpy(t *testing.T) *jumpy {
	j := &jumpy{memory: newMemory(), t: t, log: newLogs(), begin: time.Now()}
	serveBy(t, j.memory, &config{}, slog.New(slog.NewTextHandler(j.log, nil)), j.wall)
	return j
}

func (j *jumpy) wall() time.Time { return time.Now().Add(time.Duration(j.jump.Load())) }

func (j *jumpy) do(method, path, body string) exchange {
	j.t.Helper()
	return talk(j.t, j.dial(j.t), fmt.Sprintf("%s %s HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body))
}

// want sends a request that is to be answered with that status.
func (j *jumpy) want(method, path, body, status string) resource.Answer {
	j.t.Helper()
	got := j.do(method, path, body)
	if got.status != status {
		j.t.Errorf("%s %s %s after %v: got %s %s", method, path, body, time.Since(j.begin), got.status, got.body)
	}
	var a resource.Answer
	json.Unmarshal([]byte(got.body), &a)
	return a
}

// wantLock checks who holds a lock and who waits for it, as "key:names <names".
func (j *jumpy) wantLock(name, want string) resource.Lock {
	j.t.Helper()
	var l resource.Lock
	if err := json.Unmarshal([]byte(j.do(get, "/lock/"+name, "").body), &l); err != nil {
		j.t.Fatal(err)
	}
	var holders, waiters []string
	for _, h := range l.Holders {
		holders = append(holders, h.LockedBy)
	}
	for _, w := range l.Waiters {
		waiters = append(waiters, w.LockedBy)
	}
	if got := l.Key + ":" + strings.Join(holders, ",") + " <" + strings.Join(waiters, ","); got != want {
		j.t.Fatalf("lock %s after %v: %s, want %s", name, time.Since(j.begin), got, want)
	}
	return l
}

// at sleeps until so much time has gone by since the begin.
func (j *jumpy) at(since time.Duration) {
	time.Sleep(since - time.Since(j.begin))
	synctest.Wait()
}

var negative = regexp.MustCompile(`\S+=-\S+`)

// wantNothingNegative checks the log and the metrics for times before zero.
func (j *jumpy) wantNothingNegative() {
	j.t.Helper()
	if found := negative.FindAllString(j.log.String(), -1); found != nil {
		j.t.Errorf("logged %q", found)
	}
	for series, value := range parseExposition(j.t, j.do(get, "/metrics", "").body) {
		if value < 0 {
			j.t.Errorf("%s is %v", series, value)
		}
	}
}

// TestWallClockJumpsUnderTheAPI sets the wall clock while locks are held and
// waited for: what has no ttl is held on, the queue keeps its order and its
// times, and everybody is granted the lock in turn.
func TestWallClockJumpsUnderTheAPI(t *testing.T) {
	const day = 24 * time.Hour
	const held, free = "k:jane <", ": <"
	for _, test := range []struct {
		name   string
		jumps  []time.Duration // from where the clock was at first; 6 s between them
		leased string          // what becomes of a hold with a ttl of an hour
		again  string          // and of one, when a claim that ended before is released late; it is remembered for an hour
	}{
		{"not at all", nil, held, held},
		{"a day forward", []time.Duration{day}, free, free},
		{"a day back", []time.Duration{-day}, held, held},
		{"forward and back", []time.Duration{day, 0}, free, held},
		{"back and forward", []time.Duration{-day, 0}, held, held},
		{"two days forward, one back", []time.Duration{day, 2 * day, day}, free, free},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := serveJumpy(t)
				testWallClockJumps(t, j, test.jumps)
				j.wantLock("leased", test.leased)
				j.want(del, "/lock/again", `{"key": "k", "locked_by": "jane", "id": "first"}`, "200 OK")
				j.wantLock("again", test.again)
				j.wantNothingNegative()
			})
		})
	}
}

func testWallClockJumps(t *testing.T, j *jumpy, jumps []time.Duration) {
	t.Helper()
	last := j.want(put, "/lock/kept", `{"key": "k", "locked_by": "jane"}`, "200 OK").Token
	j.want(put, "/lock/leased", `{"key": "k", "locked_by": "jane", "ttl": "1h"}`, "200 OK")
	j.want(put, "/lock/again", `{"key": "k", "locked_by": "jane", "id": "first"}`, "200 OK")
	j.want(del, "/lock/again", `{"key": "k", "locked_by": "jane", "id": "first"}`, "200 OK")
	j.want(put, "/lock/again", `{"key": "k", "locked_by": "jane", "id": "second"}`, "200 OK")
	george := make(chan exchange, 1)
	go func() { george <- j.do(put, "/lock/kept", `{"key": "g", "locked_by": "george", "wait": "60s"}`) }()
	synctest.Wait()
	go func() {
		j.want(put, "/lock/kept", `{"key": "a", "locked_by": "ann", "id": "1", "wait": "25s"}`, "423 Locked")
		if waited := time.Since(j.begin).Round(time.Second); waited != 25*time.Second {
			t.Errorf("ann's wait of 25s ended after %v", waited)
		}
	}()
	for i, jump := range jumps {
		j.at(time.Duration(i+1) * 6 * time.Second)
		j.jump.Store(int64(jump))
		j.wantNothingNegative()
	}
	j.at(25*time.Second + placeKept - time.Second)
	j.wantLock("kept", "k:jane <george,ann")
	j.at(25*time.Second + placeKept + time.Second)
	j.wantLock("kept", "k:jane <george")

	j.want(del, "/lock/kept", `{"key": "k", "locked_by": "jane"}`, "200 OK")
	if got := <-george; got.status != "200 OK" {
		t.Errorf("george got %s %s", got.status, got.body)
	}
	l := j.wantLock("kept", "g:george <")
	if off := j.wall().Sub(l.Holders[0].Since); off < 0 || off > 2*time.Second || l.Holders[0].Token <= last {
		t.Errorf("granted %v before now, with token %d after %d", off, l.Holders[0].Token, last)
	}
	j.want(del, "/lock/kept", `{"key": "g", "locked_by": "george"}`, "200 OK")
	j.wantLock("kept", ": <")
}
