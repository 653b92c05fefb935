package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file is several lockers with their state in etcd.

// lockers are some that serve the same locks.
type lockers struct {
	etcd *lockertest.Etcd
	env  []string
	all  []*lockertest.Locker
}

// startLockers starts an etcd of that many members with an empty set of locks, and
// lockers beside it, and waits until one leads and the others know it.
func startLockers(t testing.TB, members, n int, env ...string) *lockers {
	t.Helper()
	return startWith(t, "-empty", members, n, env...)
}

// startWith is startLockers with the locks of a state file.
func startWith(t testing.TB, file string, members, n int, env ...string) *lockers {
	t.Helper()
	ls := &lockers{etcd: lockertest.StartEtcd(t, members)}
	ls.env = append([]string{"LOCKER_ETCD=" + strings.Join(ls.etcd.URLs, ","), "LOCKER_CONFIG=/nowhere/locker.json"}, env...)
	transfer(t, ls.env, 0, "import", file)
	for range n {
		address := freeAddress(t)
		scheme := "http"
		if strings.Contains(strings.Join(env, " "), "SSL_CERT=") {
			scheme = "https"
		}
		ls.all = append(ls.all, lockertest.Start(t, append(ls.env, "LISTEN="+address, "LOCKER_ADVERTISE="+scheme+"://"+address)...))
	}
	if n > 0 {
		ls.leader(t)
	}
	return ls
}

// transfer runs `locker import` or `locker export`, and returns what it printed.
func transfer(t testing.TB, env []string, status int, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := lockertest.Command(t, "locker", env...)
	cmd.Args = append(cmd.Args, args...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	err := cmd.Run()
	if cmd.ProcessState.ExitCode() != status {
		t.Fatalf("locker %v: %v: %s", args, err, words.Bytes())
	}
	return out.String(), words.String()
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// unverified takes any certificate for a locker's.
var unverified = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

// health is what a locker says of itself.
type health struct {
	Status, Leader, Error string
	Since                 time.Time `json:"leader_since"`
}

func healthOf(l *lockertest.Locker) (h health) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, body := lockertest.SendBy(ctx, unverified, "GET", l.URL+"/health", "")
	json.Unmarshal(body, &h)
	return h
}

// leader waits until one locker leads and all others that answer know it, and
// returns which.
func (ls *lockers) leader(t testing.TB) int {
	t.Helper()
	leader := -1
	lockertest.Eventually(t, "one locker leads and the others follow", func() bool {
		leader = -1
		var known []string
		for i, l := range ls.all {
			switch h := healthOf(l); h.Status {
			case "ok":
				if leader >= 0 {
					return false
				}
				leader = i
				known = append(known, h.Leader)
			case "standby":
				known = append(known, h.Leader)
			case "":
			default:
				return false
			}
		}
		for _, url := range known {
			if leader < 0 || url != ls.all[leader].URL {
				return false
			}
		}
		return leader >= 0
	})
	return leader
}

// TestSeveralLockers takes, waits, renews, lists and releases by whichever address.
func TestSeveralLockers(t *testing.T) {
	t.Parallel()
	ls := startLockers(t, 1, 3)
	for i, l := range ls.all {
		name := fmt.Sprintf("/lock/a%%2F%d", i)
		l.Want("PUT", name, `{"key": "k", "id": "1"}`, 200)
		next := ls.all[(i+1)%3]
		next.Want("PUT", name, `{"key": "other"}`, 423)
		granted := make(chan string, 1)
		go func() {
			granted <- string(ls.all[(i+2)%3].Want("PUT", name, `{"key": "other", "id": "2", "wait": "20s"}`, 200))
		}()
		next.Await(fmt.Sprintf("a/%d", i), lockertest.WithWaiters(1))
		if body := string(next.Want("PUT", name, `{"key": "k", "id": "1"}`, 200)); !strings.Contains(body, `"repeat":true`) {
			t.Errorf("a repeat is answered %s", body)
		}
		l.Want("DELETE", name, `{"key": "k", "id": "1"}`, 200)
		if body := <-granted; !strings.Contains(body, `"token"`) {
			t.Errorf("granted: %s", body)
		}
	}
	leader := ls.leader(t)
	for i, l := range ls.all {
		if h := healthOf(l); time.Since(h.Since) > time.Minute || h.Leader != ls.all[leader].URL {
			t.Errorf("locker %d says %+v of the leader", i, h)
		}
		metrics := string(l.Want("GET", "/metrics", "", 200))
		want := fmt.Sprintf("locker_leader %d\n", map[bool]int{true: 1}[i == leader])
		if !strings.Contains(metrics, want) || strings.Contains(metrics, "locker_waiters ") != (i == leader) {
			t.Errorf("locker %d of leader %d: %s", i, leader, metrics)
		}
	}
	ls.all[leader].Stop()
	start := time.Now()
	other := ls.all[(leader+1)%3]
	other.Want("PUT", "/lock/a%2F0", `{"key": "other", "id": "2"}`, 200)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("taking over after TERM took %v", took)
	}
}
