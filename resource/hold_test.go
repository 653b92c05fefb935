package resource

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// holding is a hold of `locker run` against a server in a bubble.
type holding struct {
	*Hold
	asked  record
	answer func(since time.Duration) (status int, body string) // of a renewal
	said   strings.Builder
}

const hangs, breaks = 0, 1 // statuses of a server that does not answer

// holdFor takes a lock for 2 minutes, to be lost 13 s before their end.
func holdFor(t *testing.T, answer func(since time.Duration) (int, string)) *holding {
	t.Helper()
	h := &holding{answer: answer}
	start := time.Now()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		h.asked.note(r)
		if len(h.asked.all()) == 1 {
			answerWith(w, http.StatusOK, grantJSON)
			return
		}
		status, body := h.answer(time.Since(start))
		switch status {
		case hangs:
			hold(r, time.Hour)
			return
		case breaks:
			panic(http.ErrAbortHandler)
		}
		answerWith(w, status, body)
	})
	p := &program{getenv: func(string) string { return "" }, say: &speaker{w: &h.said, plain: true}, dial: s.dial}
	w := Wish{URI: "http://locker.example", Lock: "myLock", Key: "k", LockedBy: "me", TTL: 2 * time.Minute, Spare: 13 * time.Second}
	take, err := w.take(p)
	if err != nil {
		t.Fatal(err)
	}
	if h.Hold, err = take(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

const (
	repeatJSON  = `{"response":"lock myLock was acquired by me with the key k before, by this same claim","lock":{"key":"k","locked_by":{"me":1},"holders":[{"locked_by":"me","since":"2026-11-23T10:00:00Z","token":9}],"waiters":[],"revision":9},"token":9,"repeat":true}`
	anotherJSON = `{"response":"lock myLock acquired by me with the key k","lock":{"key":"k","locked_by":{"me":1},"holders":[{"locked_by":"me","since":"2026-11-23T10:00:00Z","token":12}],"waiters":[],"revision":12},"token":12}`
)

// A hold is renewed every quarter of its ttl, with the ticket that it was taken with,
// for as long as it lasts.
func TestHoldIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := holdFor(t, func(time.Duration) (int, string) { return http.StatusOK, repeatJSON })
		start := time.Now()
		if err := h.Keep(abortAfter(t, 10*time.Minute+time.Second)); err != nil || time.Since(start) != 10*time.Minute+time.Second {
			t.Errorf("error %v after %s", err, time.Since(start))
		}
		all := h.asked.all()
		if len(all) != 21 {
			t.Errorf("%d requests", len(all))
		}
		for i, a := range all[1:] {
			if a.at.Sub(start) != time.Duration(i+1)*30*time.Second || !strings.Contains(a.body, `"ttl":"2m0s"`) || !strings.Contains(a.body, `"ticket":"1.1"`) || strings.Contains(a.body, `"wait"`) {
				t.Fatalf("at %s %s", a.at.Sub(start), a.body)
			}
		}
		if h.Token != 9 {
			t.Errorf("token %d", h.Token)
		}
	})
}

// A hold is lost at once when the server says so, and otherwise so long before the
// end of its ttl that a command can be ended first.
func TestHoldIsLost(t *testing.T) {
	outage := func(from, to time.Duration) func(time.Duration) (int, string) {
		return func(since time.Duration) (int, string) {
			if since >= from && since < to {
				return breaks, ""
			}
			return http.StatusOK, repeatJSON
		}
	}
	always := func(status int, body string) func(time.Duration) (int, string) {
		return func(time.Duration) (int, string) { return status, body }
	}
	for _, row := range []struct {
		name   string
		answer func(time.Duration) (int, string)
		after  time.Duration // 0: never
		says   string
	}{
		{"held by another", always(http.StatusLocked, queuedJSON), 30 * time.Second, "lock myLock is held"},
		{"the ticket too old", always(http.StatusConflict, `{"error":"this ticket is too old"}`), 30 * time.Second, "it was forced, or expired"},
		{"granted anew", always(http.StatusOK, anotherJSON), 30 * time.Second, "it was somebody else's meanwhile, or free"},
		{"an outage for ever", outage(time.Minute, time.Hour), 30*time.Second + 107*time.Second, "it was not renewed for 1m47s: "},
		{"a short outage", outage(time.Minute, 2*time.Minute), 0, ""},
		{"no room", always(http.StatusInsufficientStorage, `{"error":"the disk is full"}`), 107 * time.Second, "the disk is full"},
		{"a changed password", always(http.StatusUnauthorized, `{"error":"no"}`), 107 * time.Second, "LOCKER_USERNAME"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := holdFor(t, row.answer)
				start := time.Now()
				err := h.Keep(abortAfter(t, 20*time.Minute))
				if row.after == 0 {
					if err != nil || !strings.Contains(h.said.String(), "lock myLock was not renewed: http://locker.example: the connection was closed before the answer: trying again in 3.8s") {
						t.Errorf("error %v, said %s", err, h.said.String())
					}
					return
				}
				if !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), row.says) || time.Since(start).Round(time.Second) != row.after {
					t.Errorf("error %v after %s, want %s", err, time.Since(start), row.after)
				}
			})
		})
	}
}

// A grant whose answer was long on its way is renewed before the command starts. When
// it is over by then, nothing is held, and what may be there is given back.
func TestHoldThatIsGrantedLate(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusConflict} {
		synctest.Test(t, func(t *testing.T) {
			var asked record
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				switch a := asked.note(r); {
				case a.method == http.MethodDelete:
					answerWith(w, http.StatusOK, freedJSON)
				case len(asked.all()) == 1:
					hold(r, 2*time.Second)
					answerWith(w, http.StatusOK, grantJSON)
				case status == http.StatusOK:
					answerWith(w, status, repeatJSON)
				default:
					answerWith(w, status, `{"error":"this ticket is too old"}`)
				}
			})
			p := &program{getenv: func(string) string { return "" }, say: &speaker{w: io.Discard}, dial: s.dial}
			take, err := Wish{URI: "http://locker.example", Lock: "myLock", Key: "k", LockedBy: "me", TTL: 6 * time.Second}.take(p)
			if err != nil {
				t.Fatal(err)
			}
			h, err := take(t.Context())
			all := asked.all()
			switch {
			case status == http.StatusOK && (err != nil || len(all) != 2 || time.Since(h.sent) > time.Second):
				t.Errorf("error %v, asked %+v", err, all)
			case status != http.StatusOK && (err == nil || !strings.Contains(err.Error(), "lock myLock: it was granted, but not renewed: ") || all[len(all)-1].method != http.MethodDelete):
				t.Errorf("error %v, asked %+v", err, all)
			}
		})
	}
}

// A machine that slept asks at once when it wakes; when nobody answers, the hold is
// lost by the wall clock, after one attempt and not after many.
func TestHoldOfAMachineThatSleeps(t *testing.T) {
	for name, row := range map[string]struct {
		status int
		body   string
		slept  time.Duration
		asked  int // with the take, within 3 s of waking
		lost   bool
	}{
		"still there":                    {http.StatusOK, repeatJSON, 10 * time.Minute, 2, false},
		"forced":                         {http.StatusConflict, `{"error":"this ticket is too old"}`, 10 * time.Minute, 2, true},
		"nobody answers":                 {http.StatusServiceUnavailable, `{"error":"no"}`, 10 * time.Minute, 2, true},
		"nobody answers, and it is soon": {http.StatusServiceUnavailable, `{"error":"no"}`, 40 * time.Second, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := holdFor(t, func(time.Duration) (int, string) { return row.status, row.body })
				wakes := time.Now().Add(10 * time.Second)
				h.wall = func() time.Time {
					if time.Now().Before(wakes) {
						return wallClock()
					}
					return wallClock().Add(row.slept)
				}
				err := h.Keep(abortAfter(t, 13*time.Second))
				if errors.Is(err, ErrLost) != row.lost || len(h.asked.all()) != row.asked {
					t.Errorf("error %v after %d requests", err, len(h.asked.all()))
				}
			})
		})
	}
}

// A server that hangs costs a hold no more time than one that is gone.
func TestHoldOfAHangingServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := holdFor(t, func(time.Duration) (int, string) { return hangs, "" })
		start := time.Now()
		h.wall = func() time.Time { return wallClock().Add(time.Since(start) / 1e6) } // no two clocks are alike
		if err := h.Keep(t.Context()); !errors.Is(err, ErrLost) || time.Since(start) > 107*time.Second || !strings.Contains(err.Error(), "it was not renewed for 1m47s") || strings.Contains(h.said.String(), "again in 0s") {
			t.Errorf("error %v after %s", err, time.Since(start))
		}
	})
}

// A release whose answer was lost is sent again, and finds that its hold is over: by
// its own first attempt. Only what that cannot have done is a loss.
func TestHoldIsReleased(t *testing.T) {
	nothing := func(why, ended string) string {
		return `{"response":"nothing to do: ` + why + `"` + ended + `,"lock":{"key":"","locked_by":{},"holders":[],"waiters":[],"revision":10}}`
	}
	released := nothing("this claim of me on lock myLock was released at 2026-11-23T10:00:00Z", `,"ended":"released","ended_at":"2026-11-23T10:00:00Z"`)
	forgotten := nothing("this claim never got lock myLock, and nobody else's hold was touched", "")
	forced := nothing("this claim of me on lock myLock was ended by force at 2026-11-23T10:00:00Z", `,"ended":"forced","ended_at":"2026-11-23T10:00:00Z"`)
	for _, row := range []struct {
		name   string
		first  int // the fate of the first attempt
		answer string
		lost   string
	}{
		{"at once", http.StatusOK, freedJSON, ""},
		{"after one that broke", breaks, released, ""},
		{"after one that hung", hangs, released, ""},
		{"after one that broke, and a restart that forgot", breaks, forgotten, ""},
		{"by somebody else", http.StatusOK, released, "was released at"},
		{"by force", http.StatusOK, forced, "was ended by force at"},
		{"by force, after one that broke", breaks, forced, "was ended by force at"},
		{"of a lost state", http.StatusOK, forgotten, "never got lock myLock"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				h := holdFor(t, func(time.Duration) (int, string) {
					if asked++; asked == 1 {
						return row.first, row.answer
					}
					return http.StatusOK, row.answer
				})
				start := time.Now()
				err := h.Release(abortAfter(t, 8*time.Second))
				if errors.Is(err, ErrLost) != (row.lost != "") || row.lost == "" && err != nil || row.lost != "" && !strings.Contains(err.Error(), row.lost) {
					t.Errorf("%v after %s", err, time.Since(start))
				}
			})
		})
	}
}
