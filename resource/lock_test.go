package resource

import (
	"crypto/sha256"
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
			"waiting: lock myLock is held with the key k by d since " + since + " (for 1m11s) https://ci.example/builds/2; me is next in line; see http://locker.example:8910/#myLock",
			"waiting: lock myLock is held with the key k by d since " + since + " (for 2m1s) https://ci.example/builds/2; me is next in line; see http://locker.example:8910/#myLock",
			"waiting: lock myLock is held with the key k by d since " + since + " (for 2m51s) https://ci.example/builds/2; me is next in line; see http://locker.example:8910/#myLock",
			"lock myLock acquired by me with the key k (waited 3m21s, token 9)",
		}
		if got := r.lines(); !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// After an outage the line comes again, changed or not, and a holder of the same
// build is named as such.
func TestWaitingLineAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch n++; n {
			case 3:
				panic(http.ErrAbortHandler)
			case 5:
				answerWith(w, http.StatusOK, grantJSON)
			default:
				answerWith(w, http.StatusLocked, strings.Replace(queuedJSON, "builds/2", "builds/7", 1))
			}
		})
		env := map[string]string{"ATC_EXTERNAL_URL": "https://ci.example", "BUILD_ID": "7", "BUILD_URL": "https://ci.example/builds/7"}
		r := s.runAs(t.Context(), (*program).out, strings.NewReader(askLock), env)
		var said []string
		for _, line := range r.lines() {
			word, rest, _ := strings.Cut(line, ": ")
			if said = append(said, word); word == "waiting" && !strings.Contains(rest, "; me is next in line; it is held by this same build: it waits for itself") {
				t.Errorf("said %s", line)
			}
		}
		if got := strings.Join(said[:3], " "); r.err != nil || got != "waiting warning waiting" {
			t.Errorf("error %v, said %s", r.err, r.stderr.String())
		}
	})
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
				want := "lock myLock: stopped by an abort or a timeout: the claim of me is given back"
				if !test.givenBack {
					want = "lock myLock: stopped by an abort or a timeout: lock myLock could not be given back: http://locker.example:8910: no answer before the time was up: a place in the queue ends by itself, but a hold stays"
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

// What a later run of the build has keeps its place or its hold: an abort of an
// earlier one does not say that it is given back.
func TestAbortOfAnEarlierRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				hold(r, time.Hour)
				return
			}
			answerWith(w, http.StatusOK, strings.Replace(freedJSON, "lock myLock released by me", LaterRun+"myLock, and this release was sent before it", 1))
		})
		const want = "lock myLock: stopped by an abort or a timeout: the claim of me stays: a later run of this same build keeps it"
		if r := s.run(abortAfter(t, time.Second), (*program).out, askLock); r.err == nil || r.err.Error() != want {
			t.Errorf("error %v, want %q", r.err, want)
		}
	})
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
		if want := `{"key":"k","locked_by":"me","id":"https://ci.example/builds/7","own":true,"ticket":"1.1"}`; a.method == http.MethodDelete && a.body != want {
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

// A claim that is queued outlasts any outage, and keeps its id.
func TestQueuedClaimOutlastsOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked record
		start := time.Now()
		down := func() bool { return time.Since(start) > 2*time.Minute && time.Since(start) < 9*time.Hour }
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.note(r)
			if time.Since(start) > 9*time.Hour {
				answerWith(w, http.StatusOK, grantJSON)
				return
			}
			if hold(r, firstWait); down() {
				panic(http.ErrAbortHandler)
			}
			answerWith(w, http.StatusLocked, queuedJSON)
		})
		s.down = down
		r := s.run(t.Context(), (*program).out, askLock)
		if r.err != nil {
			t.Fatal(r.err)
		}
		for _, a := range asked.all() {
			if !strings.Contains(a.body, `"id":"https://ci.example/builds/7"`) {
				t.Fatalf("body %s", a.body)
			}
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

// A limit to waiting counts from the first answer, also over outages; then the
// place is given back.
func TestWaitLimit(t *testing.T) {
	for _, test := range []struct {
		name, wait string
		up         func(since time.Duration) bool
		took       time.Duration // about
		want       string
	}{
		{"try once", "0s", nil, 0, "not free within 0s: lock myLock is held"},
		{"a while", "25s", nil, 25 * time.Second, "not free within 25s: lock myLock is held"},
		{"an outage before the first answer", "25s", func(d time.Duration) bool { return d > 2*time.Minute }, 2*time.Minute + 25*time.Second, "not free within 25s: "},
		{"an outage after it", "2m", func(d time.Duration) bool { return d < 30*time.Second }, 2 * time.Minute, "not taken when the wait of 2m0s was over: http://locker.example:8910: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked record
				start := time.Now()
				down := func() bool { return test.up != nil && !test.up(time.Since(start)) }
				s := serve(t, func(w http.ResponseWriter, r *http.Request) {
					a := asked.note(r)
					if down() {
						panic(http.ErrAbortHandler)
					}
					if r.Method == http.MethodDelete {
						answerWith(w, http.StatusOK, freedJSON)
						return
					}
					take, err := DecodeTake([]byte(a.body))
					if err != nil {
						t.Error(err)
					}
					hold(r, time.Duration(take.Wait))
					answerWith(w, http.StatusLocked, queuedJSON)
				})
				s.down = down
				r := s.run(t.Context(), (*program).out, strings.Replace(askLock, `"lock_op"`, `"wait":"`+test.wait+`","lock_op"`, 1))
				if r.err == nil || !strings.Contains(r.err.Error(), test.want) {
					t.Errorf("error %v, want %s", r.err, test.want)
				}
				if r.took < test.took || r.took > test.took+15*time.Second {
					t.Errorf("took %s, want about %s", r.took, test.took)
				}
				if all := asked.all(); test.name != "an outage after it" && all[len(all)-1].method != http.MethodDelete {
					t.Errorf("the place was not given back: %+v", all)
				}
			})
		})
	}
}

// A lock that is tried once and not queued leaves nothing to give back.
func TestTryOnceLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked record
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.note(r)
			answerWith(w, http.StatusLocked, strings.Replace(queuedJSON, `,"position":1`, "", 1))
		})
		r := s.run(t.Context(), (*program).out, strings.Replace(askLock, `"lock_op"`, `"wait":"0s","lock_op"`, 1))
		if all := asked.all(); r.err == nil || !strings.Contains(r.err.Error(), "not free within 0s: lock myLock is held") || len(all) != 1 || strings.Contains(all[0].body, `"wait"`) {
			t.Errorf("error %v, asked %+v", r.err, all)
		}
	})
}

// slots may be text of digits, as a variable from Vault always is.
func TestSlotsOfText(t *testing.T) {
	for given, want := range map[string]string{
		`3`: "", `"3"`: "", `"03"`: "",
		`"0"`:                    "slots is 0",
		`""`:                     "slots: a JSON string is not what belongs here: write a whole number, such as 3",
		`"3 "`:                   "slots: a JSON string is not what belongs here: write a whole number, such as 3",
		`"-3"`:                   "slots: a JSON string is not what belongs here: write a whole number, such as 3",
		`"٣"`:                    "slots: a JSON string is not what belongs here: write a whole number, such as 3",
		`"3.5"`:                  "slots: a JSON string is not what belongs here: write a whole number, such as 3",
		`"99999999999999999999"`: "slots: a JSON number is not what belongs here: write a whole number, such as 3",
		`3.5`:                    "slots: a JSON number is not what belongs here: write a whole number, such as 3",
		`true`:                   "slots: a JSON bool is not what belongs here: write a whole number, such as 3",
	} {
		var p outParams
		err := decode([]byte(`{"key":"k","locked_by":"me","lock_op":"lock","slots":`+given+`}`), p.fields(), true)
		if err == nil {
			err = p.check(func(string) string { return "" })
		}
		if want == "" && (err != nil || p.slots == nil || *p.slots != 3) || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%s: error %v, want %q", given, err, want)
		}
	}
	var p outParams
	if err := decode([]byte(`{"key":"k","lock_op":"lock","slots":null}`), p.fields(), true); err != nil || p.slots != nil {
		t.Errorf("null: error %v, slots %v", err, p.slots)
	}
}

// Builds of one job that share slots need no names of their own.
func TestSlotsNameTheBuild(t *testing.T) {
	long := strings.Repeat("j", 250)
	for _, test := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"BUILD_TEAM_NAME": "main", "BUILD_PIPELINE_NAME": "shop", "BUILD_JOB_NAME": "deploy", "BUILD_NAME": "12"}, "main/shop/deploy #12"},
		{map[string]string{"BUILD_TEAM_NAME": "main", "BUILD_PIPELINE_NAME": "shop", "BUILD_JOB_NAME": "deploy", "BUILD_NAME": "12", "BUILD_PIPELINE_INSTANCE_VARS": `{"a":1}`}, `main/shop/{"a":1}/deploy #12`},
		{map[string]string{"BUILD_TEAM_NAME": "main", "BUILD_PIPELINE_NAME": "shop", "BUILD_JOB_NAME": long, "BUILD_NAME": "12"}, fmt.Sprintf("%x", sha256.Sum256([]byte("main/shop/"+long+" #12")))},
		{map[string]string{"BUILD_ID": "77"}, "build 77"},
	} {
		p := outParams{key: "k", lockOp: "lock", slots: new(int)}
		*p.slots = 3
		if err := p.check(func(name string) string { return test.env[name] }); err != nil || p.lockedBy != test.want {
			t.Errorf("%v: %q, %v, want %q", test.env, p.lockedBy, err, test.want)
		}
	}
	p := outParams{key: "k", lockOp: "unlock", ttl: 1, wait: new(span), slots: new(int), reason: "r"}
	if err := p.check(func(string) string { return "" }); err == nil || err.Error() != `ttl goes with lock_op: lock, not with unlock: leave it out
wait goes with lock_op: lock, not with unlock: leave it out
slots goes with lock_op: lock, not with unlock: leave it out
reason goes with lock_op: lock, not with unlock: leave it out` || p.lockedBy != "" {
		t.Errorf("error %v, name %q", err, p.lockedBy)
	}
}

// Against a server without tickets, what an abort leaves on the way counts.
func TestAbortWithoutTickets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serveAll(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.RawQuery != "":
				answerWith(w, http.StatusBadRequest, `{"error":"query: \"ticket\" is unknown here, or given twice"}`)
			case r.Method == http.MethodGet:
				answerWith(w, http.StatusOK, freeLock)
			case r.Method == http.MethodPut:
				hold(r, time.Hour)
			default:
				answerWith(w, http.StatusOK, freedJSON)
			}
		})
		r := s.run(abortAfter(t, 5*time.Second), (*program).out, askLock)
		if r.err == nil || !strings.HasPrefix(r.err.Error(), "lock myLock: stopped by an abort or a timeout: the locker has nothing of me now, but a request that it had not answered may reach it yet") {
			t.Errorf("error %v", r.err)
		}
	})
}

// A ticket is fetched before anything is asked, and again when it is too old; the
// give-back has the newest.
func TestTickets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked record
		given := 0
		s := serveAll(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery == "ticket=true" {
				if r.Header.Get("Cache-Control") != "no-cache" {
					t.Error("a cache may answer")
				}
				given++
				w.Header().Set("Locker-Ticket", fmt.Sprint("1.", given))
				answerWith(w, http.StatusOK, strings.Replace(queuedJSON[strings.Index(queuedJSON, `{"key"`):strings.Index(queuedJSON, `,"position"`)], `"key":"k"`, `"key":"other"`, 1))
				return
			}
			switch a := asked.note(r); {
			case r.Method == http.MethodDelete:
				answerWith(w, http.StatusOK, freedJSON)
			case strings.Contains(a.body, `"ticket":"1.1"`):
				answerWith(w, http.StatusConflict, `{"error":"this ticket is too old: fetch another, then ask again"}`)
			default:
				answerWith(w, http.StatusUnauthorized, `{"error":"no"}`)
			}
		})
		r := s.run(t.Context(), (*program).out, askLock)
		all := asked.all()
		if r.err == nil || len(all) != 2 || !strings.Contains(all[1].body, `"ticket":"1.2"`) {
			t.Errorf("error %v, asked %+v", r.err, all)
		}
		if first := r.lines()[0]; !strings.HasPrefix(first, "lock myLock is held with the key other by other since ") {
			t.Errorf("the first line is %q", first)
		}
	})
}

// The locker of 2017 has no such path.
func TestLockerOf2017(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serveAll(t, func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) })
		for _, ask := range []string{askLock, askUnlock} {
			r := s.run(t.Context(), (*program).out, ask)
			if r.err == nil || !strings.Contains(r.err.Error(), "there is no locker at this path of locker_uri, or it is the locker of 2017: upgrade it first") || r.took > time.Second {
				t.Errorf("error %v after %s", r.err, r.took)
			}
		}
	})
}

// A release by the same build ends a claim that waits; it does not queue anew.
func TestWithdrawnClaimIsNotAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked record
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.note(r)
			answerWith(w, http.StatusLocked, strings.Replace(queuedJSON, `,"position":1`, "", 1))
		})
		r := s.run(t.Context(), (*program).out, askLock)
		if r.err == nil || !strings.Contains(r.err.Error(), "a release by this same build, or by a later run of it, ended the claim") || len(asked.all()) != 1 {
			t.Errorf("error %v, asked %+v", r.err, asked.all())
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

// A build waits for itself when a hold has its link; a locker run when the hold is that
// of the one around it, whatever its link.
func TestOwnHold(t *testing.T) {
	const link = "https://ci.example/builds/7"
	for _, row := range []struct {
		leased            bool
		link, lock, token string // of who asks, and what its environment has
		holder            Holder
		want              bool
	}{
		{false, link, "", "", Holder{Link: link}, true},
		{false, link, "", "", Holder{Link: link + "1"}, false},
		{false, "", "", "", Holder{}, false},
		{true, link, "l", "17", Holder{Token: 17}, true},
		{true, link, "l", "16", Holder{Token: 17, Link: link}, false},
		{true, link, "other", "17", Holder{Token: 17, Link: link}, false},
		{true, link, "", "", Holder{Token: 17, Link: link}, false},
	} {
		env := map[string]string{"LOCKER_LOCK": row.lock, "LOCKER_TOKEN": row.token}
		p := &program{getenv: func(name string) string { return env[name] }}
		q := &queueLog{claim: &claim{program: p, leased: row.leased, link: row.link, name: "l"}}
		if got := q.own(row.holder); got != row.want {
			t.Errorf("%+v: %v", row, got)
		}
	}
}
