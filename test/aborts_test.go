package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// This file aborts builds at every moment, while answers are lost.

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
	if claim.ID != "" {
		l.asked(r.Method, claim)
	}
	req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+l.target+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || claim.ID != "" && l.lose(r.Method, claim, resp.StatusCode) {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Locker-Ticket", resp.Header.Get("Locker-Ticket"))
	w.WriteHeader(resp.StatusCode)
	w.Write(answer)
}

func serveQuietly(t *testing.T, h http.Handler) (address string) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// storm is builds of one job, half of which are aborted.
type storm struct {
	*lockertest.Pipeline
	t       *testing.T
	builds  [50]stormBuild
	queued  sync.WaitGroup // of the steps that are aborted while they wait
	holding atomic.Int32
	granted atomic.Int32
}

// stormBuild is one of them: at a moment of its claim it is aborted.
type stormBuild struct {
	abortWhen string // start, asked, queued or granted; "" is never
	step      *lockertest.Step
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
		b.step.Abort()
	}
}

func (s *storm) build(id string) *stormBuild {
	var n int
	if _, err := fmt.Sscanf(id, "https://ci.example/builds/%d", &n); err != nil || n >= len(s.builds) {
		s.t.Errorf("id %q is not a build's", id)
		return &stormBuild{}
	}
	return &s.builds[n]
}

// run plays a build: lock, task, and unlock as its ensure.
func (s *storm) run(n int) {
	b := &s.builds[n]
	b.step = s.Out(s.t, fmt.Sprint(n), lockertest.LockParams("job", ""))
	close(b.begun)
	if b.abortWhen == "start" {
		b.step.Abort()
	}
	code := b.step.Code()
	if b.abortWhen == "queued" {
		s.queued.Done()
	}
	if b.abortWhen == "" {
		if code != 0 {
			s.t.Errorf("build %d: exit status %d: %s", n, code, b.step.Stderr)
		}
		if holders := s.holding.Add(1); holders != 1 {
			s.t.Errorf("build %d is one of %d that hold the lock", n, holders)
		}
		s.granted.Add(1)
		s.holding.Add(-1)
	} else if code == 0 && b.abortWhen != "granted" {
		s.t.Errorf("build %d, aborted when %s, was granted the lock", n, b.abortWhen)
	}
	if ensure := s.Out(s.t, fmt.Sprint(n), lockertest.OwnUnlock("job")); ensure.Code() != 0 {
		s.t.Errorf("build %d: ensure: %s", n, ensure.Stderr)
	}
}

// Fifty builds of one job, half of them aborted at every moment of a claim, a
// third of all answers lost: never do two hold the lock, and in the end nobody.
func TestAbortsAndLostAnswers(t *testing.T) {
	t.Parallel()
	s := lockertest.Start(t)
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
		target: s.Address,
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
	st.Pipeline = lockertest.NewPipeline(serveQuietly(t, proxy))
	gate := lockertest.NewPipeline(s.Address) // nobody is granted the lock before those are gone that should wait
	gate.Out(t, "gate", lockertest.LockParams("job", "")).OK(t)
	var all sync.WaitGroup
	for n := range st.builds {
		all.Go(func() { st.run(n) })
	}
	watched, stop := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() { watchHolders(t, watched, s) })
	st.queued.Wait()
	gate.Out(t, "gate", lockertest.UnlockParams("job", "")).OK(t)
	all.Wait()
	stop()
	watch.Wait()
	if l := s.Lock("myLock"); !lockertest.Nobodys(l) {
		t.Errorf("in the end: %+v", l)
	}
	if n := st.granted.Load(); n != int32(len(st.builds)/2) {
		t.Errorf("%d builds were granted the lock", n)
	}
}

// watchHolders looks at every state of the server's until ctx is done.
func watchHolders(t *testing.T, ctx context.Context, s *lockertest.Locker) {
	for revision := ""; ctx.Err() == nil; {
		var locks map[string]resource.Lock
		if locks, revision = s.Poll(revision); len(locks["myLock"].Holders) > 1 {
			t.Errorf("held by several: %+v", locks["myLock"].Holders)
		}
	}
}
