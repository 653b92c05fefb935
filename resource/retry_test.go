package resource

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Attempts are repeated after pauses of 0.5 s doubled up to 10 s, shortened by
// up to a quarter; check and in stop after 30 s, out after 10 minutes.
func TestRetries(t *testing.T) {
	for _, test := range []struct {
		name    string
		main    func(*program, context.Context) error
		request string
		args    []string
		budget  time.Duration
	}{
		{"check", (*program).check, askCheck, nil, 30 * time.Second},
		{"in", (*program).in, askIn, []string{t.TempDir()}, 30 * time.Second},
		{"lock", (*program).out, askLock, nil, 10 * time.Minute},
		{"unlock", (*program).out, askUnlock, nil, 10 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var attempts []time.Time
				s := serve(t, nil)
				s.down = func() bool { attempts = append(attempts, time.Now()); return true }
				r := s.run(t.Context(), test.main, test.request, test.args...)
				if r.err == nil || !strings.Contains(r.err.Error(), "http://locker.example:8910: dial tcp: connection refused: gave up after") {
					t.Fatalf("error %v", r.err)
				}
				if r.took != test.budget {
					t.Errorf("took %s of %s", r.took, test.budget)
				}
				checkPauses(t, attempts)
				if got := len(r.lines()); got != len(attempts)-1 {
					t.Errorf("%d lines of %d attempts:\n%s", got, len(attempts), r.stderr.String())
				}
				if r.stdout.Len() > 0 {
					t.Errorf("stdout: %s", r.stdout.String())
				}
			})
		})
	}
}

func checkPauses(t *testing.T, attempts []time.Time) {
	t.Helper()
	longest := firstPause
	for i := 1; i < len(attempts); i++ {
		last := i == len(attempts)-1 // what is left of the time, when it is less
		if pause := attempts[i].Sub(attempts[i-1]); pause > longest || pause < longest*3/4 && !last {
			t.Errorf("pause %d is %s, of %s", i, pause, longest)
		}
		longest = min(2*longest, maxPause)
	}
}

// Where the locker itself says that it cannot, its address is right and it runs.
func TestGivingUpSaysWhereToLook(t *testing.T) {
	const (
		address = "gave up after 10m0s: check that this is the locker's address, and that it runs"
		locker  = "gave up after 10m0s: the locker runs, but cannot do this now: see its /health and its log"
	)
	for _, test := range []struct {
		status     int
		body, want string
	}{
		{http.StatusInsufficientStorage, `{"error":"nothing was changed, the locker's disk is full: make room, then try again"}`, locker},
		{http.StatusServiceUnavailable, `{"error":"no locker leads at the moment"}`, locker},
		{http.StatusTooManyRequests, `{"error":"lock myLock has 1000 waiters, more are not allowed: try again when some are gone"}`, locker},
		{http.StatusBadGateway, "<html>Bad Gateway", address},
		{http.StatusServiceUnavailable, "{}", address},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := serve(t, func(w http.ResponseWriter, r *http.Request) { answerWith(w, test.status, test.body) })
			r := s.run(t.Context(), (*program).out, askUnlock)
			if r.err == nil || !strings.Contains(r.err.Error(), test.want) {
				t.Errorf("%d %s: error %v, want %q", test.status, test.body, r.err, test.want)
			}
		})
	}
}

// A name that does not exist is most likely a typing error.
func TestUnknownHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		p := &patience{budget: outBudget, say: &speaker{w: io.Discard}}
		_, err := retry(t.Context(), p, func() (int, error) { return 0, &failure{message: "no such host", noHost: true} })
		if took := time.Since(start); err == nil || took != time.Minute {
			t.Errorf("error %v after %s", err, took)
		}
		queued := &patience{say: &speaker{w: io.Discard}} // no outage is too long
		for range 20 {
			if err := queued.after(t.Context(), &failure{message: "no such host", noHost: true}); err != nil {
				t.Fatalf("gave up after %s: %v", time.Since(start), err)
			}
		}
	})
}

// Each line says when the trying ends, if it does.
func TestRetriesSayTheirEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, budget := range []time.Duration{time.Minute, 0} {
			want := "s\n"
			if budget > 0 {
				want = ", until " + time.Now().Add(budget).UTC().Format(time.TimeOnly) + " UTC\n"
			}
			var said strings.Builder
			(&patience{budget: budget, say: &speaker{w: &said}}).after(t.Context(), &failure{message: "down"})
			if !strings.HasSuffix(said.String(), want) || strings.Contains(said.String(), "until") != (budget > 0) {
				t.Errorf("%s: %q", budget, said.String())
			}
		}
	})
}

// Every kind of passing trouble is tried again, and said with its cause.
func TestPassingTrouble(t *testing.T) {
	for name, test := range map[string]struct {
		trouble http.HandlerFunc
		said    string
	}{
		"503": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1")
			answerWith(w, 503, `{"error":"the locker is shutting down: try again"}`)
		}, "503 Service Unavailable: the locker is shutting down: try again: trying again in 1s"},
		"502 of a proxy": {func(w http.ResponseWriter, _ *http.Request) { answerWith(w, 502, "<html>") }, "502 Bad Gateway: trying again in"},
		"507":            {func(w http.ResponseWriter, _ *http.Request) { answerWith(w, 507, `{"error":"disk full"}`) }, "507 Insufficient Storage: disk full: trying"},
		"429":            {func(w http.ResponseWriter, _ *http.Request) { answerWith(w, 429, `{"error":"no more fit"}`) }, "429 Too Many Requests: no more fit: trying"},
		"closed":         {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "the connection was closed before the answer: trying"},
		"half an answer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			answerWith(w, 200, grantJSON[:50])
			panic(http.ErrAbortHandler)
		}, "the connection was closed before the answer: trying"},
		"slow": {func(_ http.ResponseWriter, r *http.Request) { hold(r, time.Hour) }, "no answer within 11s: trying"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked record
				s := serve(t, func(w http.ResponseWriter, r *http.Request) {
					asked.note(r)
					if len(asked.all()) < 3 {
						test.trouble(w, r)
						return
					}
					answerWith(w, http.StatusOK, grantJSON)
				})
				r := s.run(t.Context(), (*program).out, askLock)
				if r.err != nil {
					t.Fatal(r.err)
				}
				if lines := r.lines(); len(lines) != 3 || !strings.HasPrefix(lines[0], "warning: http://locker.example:8910: "+test.said) {
					t.Errorf("said:\n%s", strings.Join(lines, "\n"))
				}
			})
		})
	}
}

// A server that asks for a long pause gets the longest one of ours.
func TestRetryAfter(t *testing.T) {
	for after, want := range map[string]time.Duration{"7": 7 * time.Second, "3600": maxPause} {
		synctest.Test(t, func(t *testing.T) {
			var asked record
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if asked.note(r); len(asked.all()) > 1 {
					answerWith(w, http.StatusOK, freedJSON)
					return
				}
				w.Header().Set("Retry-After", after)
				answerWith(w, http.StatusServiceUnavailable, `{"error":"stopping"}`)
			})
			if r := s.run(t.Context(), (*program).out, askUnlock); r.err != nil || r.took != want {
				t.Errorf("Retry-After %s: error %v, took %s", after, r.err, r.took)
			}
		})
	}
}
