package test

import (
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// This file breaks what pipelines lean on: builds are aborted and killed,
// the server stops, answers are lost.

// Twenty builds are granted in the order in which they came; those that are
// aborted or killed while they wait hold up nobody for longer than their place
// is kept.
func TestOrder(t *testing.T) {
	t.Parallel()
	const builds = 20
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	p.Out(t, "0", lockertest.LockParams("k", "")).OK(t)
	steps := make([]*lockertest.Step, builds)
	for i := range steps {
		steps[i] = p.Out(t, fmt.Sprint(i+1), lockertest.LockParams("k", ""))
		s.Await("myLock", lockertest.WithWaiters(i+1))
	}
	killed := map[int]os.Signal{2: syscall.SIGTERM, 3: syscall.SIGKILL, 5: syscall.SIGTERM, 9: syscall.SIGTERM, 13: syscall.SIGKILL, 14: syscall.SIGTERM, 19: syscall.SIGTERM}
	for i, signal := range killed {
		steps[i].End(signal)
	}
	p.Out(t, "0", lockertest.UnlockParams("k", "")).OK(t)
	for i, step := range steps {
		if killed[i] != nil {
			if step.Code() == 0 {
				t.Errorf("build %d was granted the lock", i+1)
			}
			continue
		}
		step.OK(t)
		if l := s.Lock("myLock"); len(l.Holders) != 1 || l.Holders[0].Link != "https://ci.example/builds/"+fmt.Sprint(i+1) {
			t.Fatalf("build %d should hold the lock: %+v", i+1, l)
		}
		p.Out(t, fmt.Sprint(i+1), lockertest.UnlockParams("k", "")).OK(t)
	}
	if l := s.Lock("myLock"); !lockertest.Nobodys(l) {
		t.Errorf("lock %+v", l)
	}
}

// An aborted build leaves the queue, and its ensure frees nobody else.
func TestAbortWhileWaiting(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	p.Out(t, "1", lockertest.LockParams("k", "")).OK(t)
	for _, unlock := range []map[string]any{lockertest.UnlockParams("k", ""), lockertest.OwnUnlock("k")} {
		waiter := p.Out(t, "2", lockertest.LockParams("k", ""))
		s.Await("myLock", lockertest.WithWaiters(1))
		waiter.Abort()
		waiter.Failed(t, "lock myLock: stopped by an abort or a timeout: the claim of k is given back\n")
		ensure := p.Out(t, "2", unlock)
		ensure.OK(t)
		ensure.Said(t, "nothing to do: this claim of k on lock myLock was withdrawn at ")
		if l := s.Lock("myLock"); len(l.Holders) != 1 || len(l.Waiters) != 0 {
			t.Errorf("lock %+v", l)
		}
	}
}

// The abort of a run whose place a later run of its build has taken up leaves that
// place, and says so.
func TestAbortOfAnEarlierRun(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	p.Out(t, "1", lockertest.LockParams("k", "")).OK(t)
	earlier := p.Out(t, "2", lockertest.LockParams("other", "two"))
	s.Await("myLock", lockertest.WithWaiters(1))
	earlier.Said(t, "next in line")
	later := p.Out(t, "2", lockertest.LockParams("other", "two"))
	later.Said(t, "next in line")
	earlier.Abort()
	earlier.Failed(t, "lock myLock: stopped by an abort or a timeout: the claim of two stays: a later run of this same build keeps it\n")
	if l := s.Lock("myLock"); len(l.Waiters) != 1 {
		t.Errorf("lock %+v", l)
	}
	p.Out(t, "1", lockertest.OwnUnlock("k")).OK(t)
	later.OK(t)
}

// A build that is aborted while the server does not answer ends within 5 s;
// its ensure makes up for it.
func TestAbortOfASlowServer(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	p.Out(t, "1", lockertest.LockParams("k", "")).OK(t)
	waiter := p.Out(t, "2", lockertest.LockParams("k", ""))
	s.Await("myLock", lockertest.WithWaiters(1))
	s.Process.Signal(syscall.SIGSTOP)
	t.Cleanup(func() { s.Process.Signal(syscall.SIGCONT) })
	aborted := time.Now()
	waiter.Abort()
	waiter.Failed(t, "stopped by an abort or a timeout: lock myLock could not be given back: http://"+s.Address)
	if took := waiter.At.Sub(aborted); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	s.Process.Signal(syscall.SIGCONT)
	p.Out(t, "2", lockertest.OwnUnlock("k")).OK(t)
	p.Out(t, "1", lockertest.OwnUnlock("k")).OK(t)
	if l := s.Lock("myLock"); !lockertest.Nobodys(l) {
		t.Errorf("lock %+v", l)
	}
}

// An unlock that is aborted goes on, and ends well when it released.
func TestUnlockOutlivesAbort(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	p.Out(t, "1", lockertest.LockParams("k", "")).OK(t)
	s.Stop()
	unlock := p.Out(t, "1", lockertest.UnlockParams("k", ""))
	unlock.Said(t, "warning: \x1b[0mhttp://"+s.Address+": dial tcp "+s.Address+": connect: connection refused: trying again in ")
	unlock.Abort()
	s.Restart()
	unlock.OK(t)
	if l := s.Lock("myLock"); !lockertest.Nobodys(l) {
		t.Errorf("lock %+v", l)
	}
}

// With own, the ensure of a build whose lock never reached the server frees
// nobody; without it, and without another key, it would.
func TestOwnUnlockOfWhatNeverArrived(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	p.Out(t, "1", lockertest.LockParams("k", "")).OK(t)
	ensure := p.Out(t, "2", lockertest.OwnUnlock("k"))
	ensure.OK(t)
	ensure.Said(t, "nothing to do: this claim never got lock myLock")
	if l := s.Lock("myLock"); len(l.Holders) != 1 {
		t.Errorf("lock %+v", l)
	}
}

// An unlock with a misspelt key succeeds, and says that its build holds the lock.
func TestUnlockWithAMisspeltKey(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	p.Out(t, "1", lockertest.LockParams("shop-deploy", "")).OK(t)
	ensure := p.Out(t, "1", lockertest.OwnUnlock("shop-deplyo"))
	ensure.OK(t)
	ensure.Said(t, "\x1b[31mheld: \x1b[0mthis same build still holds lock myLock with the key shop-deploy as shop-deploy: ")
	other := p.Out(t, "2", lockertest.OwnUnlock("shop-deploy"))
	other.OK(t)
	if strings.Contains(other.Stderr.String(), "still holds") {
		t.Errorf("another build is told %q", other.Stderr)
	}
	right := p.Out(t, "1", lockertest.OwnUnlock("shop-deploy"))
	right.OK(t)
	if strings.Contains(right.Stderr.String(), "still holds") || !lockertest.Nobodys(s.Lock("myLock")) {
		t.Errorf("said %q, lock %+v", right.Stderr, s.Lock("myLock"))
	}
}

func TestServerDownAtFirst(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	s.Stop()
	p := lockertest.NewPipeline(s.Address)
	lock := p.Out(t, "1", lockertest.LockParams("k", ""))
	look := p.Begin(t, "in", "1", map[string]any{"version": map[string]string{"ref": "1"}}, t.TempDir())
	lock.Said(t, "connection refused: trying again in")
	look.Said(t, "connection refused: trying again in")
	s.Restart()
	lock.OK(t)
	look.OK(t)
}

// A restart, orderly or not, changes nobody's place.
func TestServerRestarted(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	p.Out(t, "1", lockertest.LockParams("k", "")).OK(t)
	var waiters []*lockertest.Step
	for i := range 3 {
		waiters = append(waiters, p.Out(t, fmt.Sprint(i+2), lockertest.LockParams("k", "")))
		s.Await("myLock", lockertest.WithWaiters(i+1))
	}
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		s.Process.Signal(signal)
		s.Wait()
		for _, w := range waiters {
			w.Said(t, "trying again")
		}
		s.Restart()
	}
	p.Out(t, "1", lockertest.UnlockParams("k", "")).OK(t)
	for i, w := range waiters {
		w.OK(t)
		p.Out(t, fmt.Sprint(i+2), lockertest.UnlockParams("k", "")).OK(t)
	}
}

// An answer lost after the server acted costs a retry, and nothing else.
func TestAnswersLost(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
	var lost sync.Map
	proxy := &lossy{target: s.Address, asked: func(string, resource.Take) {}, lose: func(method string, claim resource.Take, _ int) bool {
		_, before := lost.LoadOrStore(method, true)
		return !before
	}}
	p := lockertest.NewPipeline(serveQuietly(t, proxy))
	lock := p.Out(t, "1", lockertest.LockParams("k", ""))
	lock.OK(t)
	lock.Said(t, "the connection was closed before the answer: trying again in")
	lock.Said(t, "before, by this same claim")
	next := lockertest.NewPipeline(s.Address).Out(t, "2", lockertest.LockParams("k", ""))
	s.Await("myLock", lockertest.WithWaiters(1))
	p.Out(t, "1", lockertest.UnlockParams("k", "")).OK(t)
	next.OK(t)
	if l := s.Lock("myLock"); len(l.Holders) != 1 || l.Holders[0].Link != "https://ci.example/builds/2" {
		t.Errorf("the retried unlock freed the next build's hold: %+v", l)
	}
}

// The programs reach a locker that has a certificate of its own and
// credentials, behind a proxy that gives it a path.
func TestTLSCredentialsAndPrefix(t *testing.T) {
	t.Parallel()
	certFile, keyFile := lockertest.NewCertificate(t, t.TempDir(), "locker")
	ca := lockertest.Read(t, certFile)
	s := lockertest.Start(t, "SSL_CERT="+certFile, "SSL_KEY="+keyFile, "AUTH_USER=test", "AUTH_PASS=pass:word")
	p := lockertest.NewPipeline(s.Address)
	p.Source["locker_uri"] = "https://" + s.Address + "/"
	p.Out(t, "1", lockertest.LockParams("k", "")).Failed(t, "the server's certificate is not signed by a known authority: set ca_cert")
	p.Source["ca_cert"] = ca
	p.Out(t, "1", lockertest.LockParams("k", "")).Failed(t, "401 Unauthorized")
	p.Source["username"], p.Source["password"] = "test", "pass:word"
	p.Out(t, "1", lockertest.LockParams("k", "")).OK(t)

	target, err := url.Parse("https://" + s.Address)
	if err != nil {
		t.Fatal(err)
	}
	prefixed := httputil.NewSingleHostReverseProxy(target)
	prefixed.Transport = &http.Transport{TLSClientConfig: trusting(t, certFile)}
	p.Source["locker_uri"] = "http://" + serveQuietly(t, http.StripPrefix("/ci/locker", prefixed)) + "/ci/locker"
	p.Put(t, "1", lockertest.UnlockParams("k", ""))
}
