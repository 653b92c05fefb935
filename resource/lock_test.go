package resource

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// queueScript is the lock as the server shows it over time: from when on, held
// by whom, behind whom.
type queueScript []struct {
	from   time.Duration
	holder string
	ahead  []string
}

func (q queueScript) at(d time.Duration, start time.Time) string {
	now := q[0]
	for _, step := range q {
		if step.from <= d {
			now = step
		}
	}
	var waiters []string
	for _, name := range append(slices.Clone(now.ahead), "me") {
		waiters = append(waiters, fmt.Sprintf(`{"key":"k","locked_by":%q,"since":%q}`, name, start.Format(time.RFC3339)))
	}
	return fmt.Sprintf(`{"error":"held","lock":{"key":"k","locked_by":{%q:1},"holders":[{"locked_by":%q,"since":%q,"token":1,"link":"https://ci.example/builds/2"}],"waiters":[%s],"revision":1},"position":%d}`,
		now.holder, now.holder, start.UTC().Format(time.RFC3339), strings.Join(waiters, ","), len(now.ahead)+1)
}

// The log has a line at once, a new one when something changed, and one a
// minute when nothing did.
func TestWhatTheLogShowsWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		script := queueScript{
			{0, "a", []string{"b", "c", "d", "e"}},
			{25 * time.Second, "a", []string{"d"}},
			{70 * time.Second, "d", nil},
		}
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			wait := nextWait
			if time.Since(start) == 0 {
				wait = firstWait
			}
			hold(r, wait)
			if time.Since(start) > 200*time.Second {
				answerWith(w, http.StatusOK, grantJSON)
				return
			}
			answerWith(w, http.StatusLocked, script.at(time.Since(start), start))
		})
		r := s.run(t.Context(), (*program).out, askLock)
		if r.err != nil {
			t.Fatal(r.err)
		}
		since := start.UTC().Format(time.RFC3339)
		want := []string{
			"waiting: lock myLock is held with the key k by a since " + since + " (for 1s) https://ci.example/builds/2; me is 5th in line behind b, c, d and 1 more",
			"waiting: lock myLock is held with the key k by a since " + since + " (for 31s) https://ci.example/builds/2; me is 2nd in line behind d",
			"waiting: lock myLock is held with the key k by d since " + since + " (for 1m11s) https://ci.example/builds/2; me is next in line",
			"waiting: lock myLock is held with the key k by d since " + since + " (for 2m1s) https://ci.example/builds/2; me is next in line",
			"waiting: lock myLock is held with the key k by d since " + since + " (for 2m51s) https://ci.example/builds/2; me is next in line",
			"lock myLock acquired by me with the key k (waited 3m21s, token 9)",
		}
		if got := r.lines(); !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestOrdinals(t *testing.T) {
	for n, want := range map[int]string{2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 22: "22nd", 101: "101st", 111: "111th", 113: "113th"} {
		if got := ordinal(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

// A server that answers too early is not asked without a break.
func TestEarlyAnswersAreNotAskedForWithoutABreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked record
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if asked.note(r); len(asked.all()) > 10 {
				answerWith(w, http.StatusOK, grantJSON)
				return
			}
			answerWith(w, http.StatusLocked, queuedJSON)
		})
		if r := s.run(t.Context(), (*program).out, askLock); r.err != nil || r.took != 10*time.Second {
			t.Errorf("error %v, took %s", r.err, r.took)
		}
	})
}

// An aborted lock gives back within 5 s whatever the server does, fails, and
// answers no version. The release that counts is sent after the request that
// takes was answered, or given up.
func TestAbort(t *testing.T) {
	abortAt := 3 * time.Second
	for name, test := range map[string]struct {
		take      func(w http.ResponseWriter, r *http.Request, withdrawn <-chan struct{})
		release   time.Duration // until it is answered
		givenBack bool
		within    time.Duration
	}{
		"waiting": {func(w http.ResponseWriter, r *http.Request, withdrawn <-chan struct{}) {
			select {
			case <-withdrawn:
				answerWith(w, http.StatusLocked, strings.Replace(queuedJSON, `"position":1`, `"position":0`, 1))
			case <-r.Context().Done():
			}
		}, 0, true, 0},
		"granted just then": {func(w http.ResponseWriter, r *http.Request, _ <-chan struct{}) {
			hold(r, abortAt+time.Millisecond)
			answerWith(w, http.StatusOK, grantJSON)
		}, 0, true, time.Millisecond},
		"granted a little later": {func(w http.ResponseWriter, r *http.Request, _ <-chan struct{}) {
			hold(r, abortAt+time.Second)
			answerWith(w, http.StatusOK, grantJSON)
		}, 0, true, time.Second},
		"take never answered": {func(_ http.ResponseWriter, r *http.Request, _ <-chan struct{}) { hold(r, time.Hour) }, 0, true, answerGrace},
		"slow":                {func(_ http.ResponseWriter, r *http.Request, _ <-chan struct{}) { hold(r, time.Hour) }, 2 * time.Second, true, answerGrace + 2*time.Second},
		"nothing answered":    {func(_ http.ResponseWriter, r *http.Request, _ <-chan struct{}) { hold(r, time.Hour) }, time.Hour, false, giveBackTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked record
				withdrawn := make(chan struct{})
				var takeEnded time.Time
				s := serve(t, func(w http.ResponseWriter, r *http.Request) {
					asked.note(r)
					if r.Method == http.MethodPut {
						test.take(w, r, withdrawn)
						takeEnded = time.Now()
						return
					}
					if len(asked.all()) == 2 {
						close(withdrawn)
					}
					hold(r, test.release)
					answerWith(w, http.StatusOK, freedJSON)
				})
				r := s.run(abortAfter(t, abortAt), (*program).out, askLock)
				if r.err == nil || r.stdout.Len() > 0 {
					t.Fatalf("error %v, answered %s", r.err, r.stdout.String())
				}
				want := "lock myLock: aborted: the claim of me is given back"
				if test.within > time.Second {
					want = "lock myLock: aborted: the locker has nothing of me now, but a request that it had not answered may reach it yet"
				}
				if !test.givenBack {
					want = "lock myLock: aborted: give lock myLock back: http://locker.example:8910: no answer before the time was up: a place in the queue ends by itself, but a hold stays"
				}
				if !strings.HasPrefix(r.err.Error(), want) {
					t.Errorf("error %v", r.err)
				}
				if r.took > abortAt+test.within || r.took > abortAt+5*time.Second {
					t.Errorf("took %s", r.took)
				}
				synctest.Wait()
				checkLastRelease(t, asked.all(), takeEnded)
			})
		})
	}
}

func checkLastRelease(t *testing.T, all []asked, takeEnded time.Time) {
	t.Helper()
	last := all[len(all)-1]
	if last.method != http.MethodDelete || last.at.Before(takeEnded) {
		t.Errorf("last request: %+v, the take ended at %s", last, takeEnded)
	}
	checkReleases(t, all)
}

// checkReleases: no release may free another build's hold of the same name.
func checkReleases(t *testing.T, all []asked) {
	t.Helper()
	for _, a := range all {
		if want := `{"key":"k","locked_by":"me","id":"https://ci.example/builds/7","own":true}`; a.method == http.MethodDelete && a.body != want {
			t.Errorf("released %s", a.body)
		}
	}
}

// A lock that fails for good after something may have reached the server gives
// that back.
func TestFailedLockGivesBack(t *testing.T) {
	for name, first := range map[string]func(w http.ResponseWriter){
		"queued":        func(w http.ResponseWriter) { answerWith(w, http.StatusLocked, queuedJSON) },
		"answer lost":   func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"not known 503": func(w http.ResponseWriter) { answerWith(w, http.StatusServiceUnavailable, `{"error":"not known"}`) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked record
				s := serve(t, func(w http.ResponseWriter, r *http.Request) {
					switch asked.note(r); {
					case len(asked.all()) == 1:
						first(w)
					case r.Method == http.MethodDelete:
						answerWith(w, http.StatusOK, freedJSON)
					default:
						answerWith(w, http.StatusUnauthorized, `{"error":"credentials are wrong"}`)
					}
				})
				r := s.run(t.Context(), (*program).out, askLock)
				if r.err == nil || !strings.Contains(r.err.Error(), "401") {
					t.Errorf("error %v", r.err)
				}
				all := asked.all()
				if last := all[len(all)-1]; last.method != http.MethodDelete {
					t.Errorf("nothing was given back: %+v", all)
				}
				checkReleases(t, all)
			})
		})
	}
}

// What is asked for is what the params say.
func TestTakeCarriesTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked record
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.note(r)
			answerWith(w, http.StatusOK, grantJSON)
		})
		request := strings.Replace(askLock, `"lock_op":"lock"`, `"lock_op":"lock","ttl":"90m"`, 1)
		if r := s.run(t.Context(), (*program).out, request); r.err != nil {
			t.Fatal(r.err)
		}
		if body := asked.all()[0].body; !strings.Contains(body, `"ttl":"1h30m0s"`) {
			t.Errorf("asked for %s", body)
		}
	})
}

// An unlock that is aborted before its request has arrived releases all the same.
func TestUnlockAbortedBeforeItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked record
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.note(r)
			answerWith(w, http.StatusOK, freedJSON)
		})
		ctx, abort := context.WithCancel(t.Context())
		abort()
		if r := s.run(ctx, (*program).out, askUnlock); r.err != nil || len(asked.all()) != 1 {
			t.Errorf("error %v after %d requests", r.err, len(asked.all()))
		}
	})
}

// Where nobody answers, an abort is over within 5 s too.
func TestAbortWithoutServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, nil)
		s.down = func() bool { return true }
		r := s.run(abortAfter(t, time.Minute), (*program).out, askLock)
		if r.err == nil || !strings.Contains(r.err.Error(), "a hold stays: release it with an unlock step") || r.took > time.Minute+5*time.Second {
			t.Errorf("error %v after %s", r.err, r.took)
		}
	})
}

// An abort before the lock was asked for asks for nothing.
func TestAbortBeforeStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked record
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.note(r)
			answerWith(w, http.StatusOK, freedJSON)
		})
		for _, request := range []string{askLock, ""} {
			if r := s.run(abortAfter(t, 0), (*program).out, request); r.err == nil || r.stdout.Len() > 0 {
				t.Errorf("error %v, answered %s", r.err, r.stdout.String())
			}
		}
		for _, a := range asked.all() {
			if a.method != http.MethodDelete {
				t.Errorf("asked %+v", a)
			}
		}
	})
}

// A version that nobody can read was not answered: the lock is given back.
func TestVersionThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked record
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if asked.note(r); r.Method == http.MethodPut {
				answerWith(w, http.StatusOK, grantJSON)
				return
			}
			answerWith(w, http.StatusOK, freedJSON)
		})
		var stderr strings.Builder
		p := newProgram(strings.NewReader(askLock), brokenWriter{}, &stderr, nil, func(string) string { return "" })
		p.dial = s.dial
		if err := p.out(t.Context()); err == nil || !strings.Contains(err.Error(), "write answer") {
			t.Errorf("error %v", err)
		}
		if all := asked.all(); len(all) != 2 || all[1].method != http.MethodDelete {
			t.Errorf("asked %+v", all)
		}
	})
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, fmt.Errorf("broken pipe") }

// A release by the same build ends a claim that waits; it does not queue anew.
func TestWithdrawnClaimIsNotAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked record
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.note(r)
			answerWith(w, http.StatusLocked, strings.Replace(queuedJSON, `,"position":1`, "", 1))
		})
		r := s.run(t.Context(), (*program).out, askLock)
		if r.err == nil || !strings.Contains(r.err.Error(), "a release by this same build ended the claim") || len(asked.all()) != 1 {
			t.Errorf("error %v, asked %+v", r.err, asked.all())
		}
	})
}

// An unlock goes on for 8 s after an abort, and succeeds when it released.
func TestUnlockOutlivesAbort(t *testing.T) {
	abortAt := 5 * time.Minute // pauses are long by then
	for _, test := range []struct {
		upAfter time.Duration // after the abort
		ok      bool
	}{{0, true}, {6 * time.Second, true}, {time.Hour, false}} {
		t.Run(test.upAfter.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				s := serve(t, func(w http.ResponseWriter, r *http.Request) { answerWith(w, http.StatusOK, freedJSON) })
				s.down = func() bool { return time.Since(start) < abortAt+test.upAfter }
				r := s.run(abortAfter(t, abortAt), (*program).out, askUnlock)
				if (r.err == nil) != test.ok || (r.stdout.Len() > 0) != test.ok {
					t.Errorf("error %v, answered %s", r.err, r.stdout.String())
				}
				if r.took < abortAt+min(test.upAfter, unlockTime-time.Second) || r.took > abortAt+unlockTime {
					t.Errorf("took %s", r.took)
				}
			})
		})
	}
}

// An unlock whose server hangs ends 8 s after an abort too.
func TestUnlockOfAHangingServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, func(_ http.ResponseWriter, r *http.Request) { hold(r, time.Hour) })
		r := s.run(abortAfter(t, time.Second), (*program).out, askUnlock)
		if r.err == nil || r.took > time.Second+unlockTime {
			t.Errorf("error %v after %s", r.err, r.took)
		}
	})
}

// What a release did not do is a warning.
func TestUnlockOfNothingIsAWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			answerWith(w, http.StatusOK, strings.Replace(freedJSON, "lock myLock released by me", "nothing to do: lock myLock is free", 1))
		})
		r := s.run(t.Context(), (*program).out, askUnlock)
		if r.err != nil || r.lines()[0] != "warning: nothing to do: lock myLock is free" {
			t.Errorf("error %v, said %q", r.err, r.stderr.String())
		}
	})
}

// A grant that was a repeat is a warning; two runs of one step have one id.
func TestRepeatIsAWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked record
		repeat := strings.TrimSuffix(grantJSON, "}") + `,"repeat":true}`
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.note(r)
			answerWith(w, http.StatusOK, repeat)
		})
		for range 2 {
			r := s.run(t.Context(), (*program).out, askLock)
			if r.err != nil || !strings.HasPrefix(r.lines()[0], "warning: lock myLock acquired") {
				t.Errorf("error %v, said %q", r.err, r.stderr.String())
			}
		}
		if all := asked.all(); len(all) != 2 || all[0].body != all[1].body {
			t.Errorf("asked %+v", all)
		}
	})
}
