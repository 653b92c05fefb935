package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file breaks what pipelines lean on: builds are aborted and killed,
// the server stops, answers are lost.

// Twenty builds are granted in the order in which they came; those that are
// aborted or killed while they wait hold up nobody for longer than their place
// is kept.
func testOrder(t *testing.T, built programs) {
	const builds = 20
	s := built.startLocker(t)
	p := built.pipeline(s.address)
	p.out(t, "0", lockParams("k", "")).ok(t)
	steps := make([]*step, builds)
	for i := range steps {
		steps[i] = p.out(t, fmt.Sprint(i+1), lockParams("k", ""))
		s.await(t, "myLock", withWaiters(i+1))
	}
	killed := map[int]os.Signal{2: syscall.SIGTERM, 3: syscall.SIGKILL, 5: syscall.SIGTERM, 9: syscall.SIGTERM, 13: syscall.SIGKILL, 14: syscall.SIGTERM, 19: syscall.SIGTERM}
	for i, signal := range killed {
		steps[i].cmd.Process.Signal(signal)
		<-steps[i].ended
	}
	p.out(t, "0", unlockParams("k", "")).ok(t)
	for i, step := range steps {
		if killed[i] != nil {
			if step.code() == 0 {
				t.Errorf("build %d was granted the lock", i+1)
			}
			continue
		}
		step.ok(t)
		if l := s.lock(t, "myLock"); len(l.Holders) != 1 || l.Holders[0].Link != "https://ci.example/builds/"+fmt.Sprint(i+1) {
			t.Fatalf("build %d should hold the lock: %+v", i+1, l)
		}
		p.out(t, fmt.Sprint(i+1), unlockParams("k", "")).ok(t)
	}
	if l := s.lock(t, "myLock"); !nobodys(l) {
		t.Errorf("lock %+v", l)
	}
}

// An aborted build leaves the queue, and its ensure frees nobody else.
func testAbortWhileWaiting(t *testing.T, built programs) {
	s := built.startLocker(t)
	p := built.pipeline(s.address)
	p.out(t, "1", lockParams("k", "")).ok(t)
	for _, unlock := range []map[string]any{unlockParams("k", ""), ownUnlock("k")} {
		waiter := p.out(t, "2", lockParams("k", ""))
		s.await(t, "myLock", withWaiters(1))
		waiter.abort()
		waiter.failed(t, "lock myLock: aborted: the claim of k is given back\n")
		ensure := p.out(t, "2", unlock)
		ensure.ok(t)
		ensure.said(t, "warning: \x1b[0mnothing to do: this claim of k on lock myLock has ended before")
		if l := s.lock(t, "myLock"); len(l.Holders) != 1 || len(l.Waiters) != 0 {
			t.Errorf("lock %+v", l)
		}
	}
}

// A build that is aborted while the server does not answer ends within 5 s;
// its ensure makes up for it.
func testAbortOfASlowServer(t *testing.T, built programs) {
	s := built.startLocker(t)
	p := built.pipeline(s.address)
	p.out(t, "1", lockParams("k", "")).ok(t)
	waiter := p.out(t, "2", lockParams("k", ""))
	s.await(t, "myLock", withWaiters(1))
	s.cmd.Process.Signal(syscall.SIGSTOP)
	t.Cleanup(func() { s.cmd.Process.Signal(syscall.SIGCONT) })
	aborted := time.Now()
	waiter.abort()
	waiter.failed(t, "aborted: give lock myLock back: http://"+s.address)
	if took := waiter.at.Sub(aborted); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	s.cmd.Process.Signal(syscall.SIGCONT)
	p.out(t, "2", ownUnlock("k")).ok(t)
	p.out(t, "1", ownUnlock("k")).ok(t)
	if l := s.lock(t, "myLock"); !nobodys(l) {
		t.Errorf("lock %+v", l)
	}
}

// An unlock that is aborted goes on, and ends well when it released.
func testUnlockOutlivesAbort(t *testing.T, built programs) {
	s := built.startLocker(t)
	p := built.pipeline(s.address)
	p.out(t, "1", lockParams("k", "")).ok(t)
	s.stop()
	unlock := p.out(t, "1", unlockParams("k", ""))
	unlock.said(t, "warning: \x1b[0mhttp://"+s.address+": dial tcp "+s.address+": connect: connection refused: trying again in ")
	unlock.abort()
	s.restart(t)
	unlock.ok(t)
	if l := s.lock(t, "myLock"); !nobodys(l) {
		t.Errorf("lock %+v", l)
	}
}

// With own, the ensure of a build whose lock never reached the server frees
// nobody; without it, and without another key, it would.
func testOwnUnlockOfWhatNeverArrived(t *testing.T, built programs) {
	s := built.startLocker(t)
	p := built.pipeline(s.address)
	p.out(t, "1", lockParams("k", "")).ok(t)
	ensure := p.out(t, "2", ownUnlock("k"))
	ensure.ok(t)
	ensure.said(t, "nothing to do: this claim never got lock myLock")
	if l := s.lock(t, "myLock"); len(l.Holders) != 1 {
		t.Errorf("lock %+v", l)
	}
}

func testServerDownAtFirst(t *testing.T, built programs) {
	s := built.startLocker(t)
	s.stop()
	p := built.pipeline(s.address)
	lock := p.out(t, "1", lockParams("k", ""))
	look := p.begin(t, "in", "1", map[string]any{"version": map[string]string{"ref": "1"}}, t.TempDir())
	lock.said(t, "connection refused: trying again in")
	look.said(t, "connection refused: trying again in")
	s.restart(t)
	lock.ok(t)
	look.ok(t)
}

// A restart, orderly or not, changes nobody's place.
func testServerRestarted(t *testing.T, built programs) {
	s := built.startLocker(t)
	p := built.pipeline(s.address)
	p.out(t, "1", lockParams("k", "")).ok(t)
	var waiters []*step
	for i := range 3 {
		waiters = append(waiters, p.out(t, fmt.Sprint(i+2), lockParams("k", "")))
		s.await(t, "myLock", withWaiters(i+1))
	}
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		s.end(signal)
		for _, w := range waiters {
			w.said(t, "trying again")
		}
		s.restart(t)
	}
	p.out(t, "1", unlockParams("k", "")).ok(t)
	for i, w := range waiters {
		w.ok(t)
		p.out(t, fmt.Sprint(i+2), unlockParams("k", "")).ok(t)
	}
}

// lossy stands between pipelines and a server. It is told of every request and
// of its answer, and whether to lose that.
type lossy struct {
	target string
	asked  func(method string, claim resource.Take)
	lose   func(method string, claim resource.Take, status int) bool
}

func (l *lossy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	var claim resource.Take
	json.Unmarshal(body, &claim)
	l.asked(r.Method, claim)
	req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+l.target+r.URL.EscapedPath(), bytes.NewReader(body))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || l.lose(r.Method, claim, resp.StatusCode) {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(resp.StatusCode)
	w.Write(answer)
}

func serveQuietly(t *testing.T, h http.Handler) (address string) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// An answer lost after the server acted costs a retry, and nothing else.
func testAnswersLost(t *testing.T, built programs) {
	s := built.startLocker(t)
	var lost sync.Map
	proxy := &lossy{target: s.address, asked: func(string, resource.Take) {}, lose: func(method string, claim resource.Take, _ int) bool {
		_, before := lost.LoadOrStore(method, true)
		return !before
	}}
	p := built.pipeline(serveQuietly(t, proxy))
	lock := p.out(t, "1", lockParams("k", ""))
	lock.ok(t)
	lock.said(t, "the connection was closed before the answer: trying again in")
	lock.said(t, "before, by this same claim")
	next := built.pipeline(s.address).out(t, "2", lockParams("k", ""))
	s.await(t, "myLock", withWaiters(1))
	p.out(t, "1", unlockParams("k", "")).ok(t)
	next.ok(t)
	if l := s.lock(t, "myLock"); len(l.Holders) != 1 || l.Holders[0].Link != "https://ci.example/builds/2" {
		t.Errorf("the retried unlock freed the next build's hold: %+v", l)
	}
}

// storm is builds of one job, half of which are aborted.
type storm struct {
	*pipeline
	t       *testing.T
	builds  [50]stormBuild
	queued  sync.WaitGroup // of the steps that are aborted while they wait
	holding atomic.Int32
	granted atomic.Int32
}

// stormBuild is one of them: at a moment of its claim it is aborted.
type stormBuild struct {
	abortWhen string // start, asked, queued or granted; "" is never
	step      *step
	begun     chan struct{}
	lost      atomic.Int32 // answers lost in a row
}

// loses loses a third of a build's answers, never more than two in a row: the
// pauses would grow, and the others wait.
func (b *stormBuild) loses() bool {
	if rand.IntN(5) < 2 && b.lost.Load() < 2 {
		b.lost.Add(1)
		return true
	}
	b.lost.Store(0)
	return false
}

// is tells a build that its claim has come that far.
func (s *storm) is(moment, id string) {
	if b := s.build(id); b.abortWhen == moment {
		<-b.begun
		b.step.abort()
	}
}

func (s *storm) build(id string) *stormBuild {
	var n int
	if _, err := fmt.Sscanf(id, "https://ci.example/builds/%d", &n); err != nil || n >= len(s.builds) {
		s.t.Errorf("id %q is no build's", id)
		return &stormBuild{}
	}
	return &s.builds[n]
}

// run plays a build: lock, task, and unlock as its ensure.
func (s *storm) run(n int) {
	b := &s.builds[n]
	b.step = s.out(s.t, fmt.Sprint(n), lockParams("job", ""))
	close(b.begun)
	if b.abortWhen == "start" {
		b.step.abort()
	}
	code := b.step.code()
	if b.abortWhen == "queued" {
		s.queued.Done()
	}
	if b.abortWhen == "" {
		if code != 0 {
			s.t.Errorf("build %d: exit status %d: %s", n, code, b.step.stderr.String())
		}
		if holders := s.holding.Add(1); holders != 1 {
			s.t.Errorf("build %d is one of %d that hold the lock", n, holders)
		}
		s.granted.Add(1)
		s.holding.Add(-1)
	} else if code == 0 && b.abortWhen != "granted" {
		s.t.Errorf("build %d, aborted when %s, was granted the lock", n, b.abortWhen)
	}
	if ensure := s.out(s.t, fmt.Sprint(n), ownUnlock("job")); ensure.code() != 0 {
		s.t.Errorf("build %d: ensure: %s", n, ensure.stderr.String())
	}
}

// Fifty builds of one job, half of them aborted at every moment of a claim, a
// third of all answers lost: never do two hold the lock, and in the end nobody.
func testAbortsAndLostAnswers(t *testing.T, built programs) {
	s := built.startLocker(t)
	st := &storm{t: t}
	moments := []string{"start", "asked", "queued", "granted"}
	for i := range st.builds {
		st.builds[i].begun = make(chan struct{})
		if i%2 == 1 {
			st.builds[i].abortWhen = moments[i/2%len(moments)]
		}
		if st.builds[i].abortWhen == "queued" {
			st.queued.Add(1)
		}
	}
	proxy := &lossy{
		target: s.address,
		asked: func(method string, claim resource.Take) {
			if method == http.MethodPut {
				st.is("asked", claim.ID)
			}
		},
		lose: func(method string, claim resource.Take, status int) bool {
			if method == http.MethodPut && status == http.StatusOK {
				st.is("granted", claim.ID)
			} else if method == http.MethodPut && status == http.StatusLocked {
				st.is("queued", claim.ID)
			}
			return st.build(claim.ID).loses()
		},
	}
	st.pipeline = built.pipeline(serveQuietly(t, proxy))
	gate := built.pipeline(s.address) // nobody is granted the lock before those are gone that should wait
	gate.out(t, "gate", lockParams("job", "")).ok(t)
	var all sync.WaitGroup
	for n := range st.builds {
		all.Go(func() { st.run(n) })
	}
	watched, stop := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() { watchHolders(t, watched, s) })
	st.queued.Wait()
	gate.out(t, "gate", unlockParams("job", "")).ok(t)
	all.Wait()
	stop()
	watch.Wait()
	if l := s.lock(t, "myLock"); !nobodys(l) {
		t.Errorf("in the end: %+v", l)
	}
	if n := st.granted.Load(); n != int32(len(st.builds)/2) {
		t.Errorf("%d builds were granted the lock", n)
	}
}

// watchHolders looks at every state of the server's until ctx is done.
func watchHolders(t *testing.T, ctx context.Context, s *lockerServer) {
	for revision := ""; ctx.Err() == nil; {
		var locks map[string]resource.Lock
		if locks, revision = s.poll(t, revision); len(locks["myLock"].Holders) > 1 {
			t.Errorf("held by several: %+v", locks["myLock"].Holders)
		}
	}
}

// The programs reach a locker that has a certificate of its own and
// credentials, behind a proxy that gives it a path.
func testTLSCredentialsAndPrefix(t *testing.T, built programs) {
	certFile, keyFile, ca := ownCertificate(t)
	s := built.startLocker(t, "SSL_CERT="+certFile, "SSL_KEY="+keyFile, "AUTH_USER=test", "AUTH_PASS=pass:word")
	p := built.pipeline(s.address)
	p.source["locker_uri"] = "https://" + s.address + "/"
	p.out(t, "1", lockParams("k", "")).failed(t, "the server's certificate is not signed by a known authority: set ca_cert")
	p.source["ca_cert"] = ca
	p.out(t, "1", lockParams("k", "")).failed(t, "401 Unauthorized")
	p.source["username"], p.source["password"] = "test", "pass:word"
	p.out(t, "1", lockParams("k", "")).ok(t)

	target, err := url.Parse("https://" + s.address)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca))
	prefixed := httputil.NewSingleHostReverseProxy(target)
	prefixed.Transport = trusting(roots)
	p.source["locker_uri"] = "http://" + serveQuietly(t, http.StripPrefix("/ci/locker", prefixed)) + "/ci/locker"
	p.put(t, "1", unlockParams("k", ""))
}

// ownCertificate writes a certificate for 127.0.0.1 and its key.
func ownCertificate(t *testing.T) (certFile, keyFile, certPEM string) {
	t.Helper()
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	key, err := x509.MarshalPKCS8PrivateKey(srv.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) (string, string) {
		data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file, string(data)
	}
	certFile, certPEM = write("cert.pem", "CERTIFICATE", srv.Certificate().Raw)
	keyFile, _ = write("key.pem", "PRIVATE KEY", key)
	return certFile, keyFile, certPEM
}

func trusting(roots *x509.CertPool) *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
}
