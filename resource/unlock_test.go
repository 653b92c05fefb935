package resource

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

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

// A refused unlock says whose lock it is, and is not tried again.
func TestUnlockOfAnothersKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) { answerWith(w, http.StatusLocked, queuedJSON) })
		r := s.run(t.Context(), (*program).out, askUnlock)
		if r.err == nil || r.err.Error() != "unlock myLock: lock myLock is held" || r.took > 0 {
			t.Errorf("error %v after %s", r.err, r.took)
		}
	})
}

// An unlock whose key or name fits nothing says what this build holds all the same:
// it may be misspelt, and the lock would stay held.
func TestUnlockSaysWhatTheBuildStillHolds(t *testing.T) {
	const (
		ours, theirs = "https://ci.example/builds/7", "https://ci.example/builds/8"
		never        = NothingDone + "this claim never got lock myLock, and nobody else's hold was touched"
		released     = "lock myLock released by me"
		still        = "this same build still holds lock myLock with the key shop-deploy as "
		mend         = ": to release that, write its key (and its locked_by) into the unlock"
	)
	held := func(link string, names ...string) (l Lock) {
		l.Key = "shop-deploy"
		for _, name := range names {
			l.Holders = append(l.Holders, Holder{LockedBy: name, Link: link})
		}
		return l
	}
	for name, test := range map[string]struct {
		link   string
		answer Answer
		want   string
	}{
		"misspelt":                  {ours, Answer{Response: never, Lock: held(ours, "shop-deploy")}, red + "held: " + plain + still + "shop-deploy" + mend + "\n"},
		"many names":                {ours, Answer{Response: never, Lock: held(ours, "a", "b", "c", "d")}, red + "held: " + plain + still + "a, b, c and 1 more" + mend + "\n"},
		"another build's":           {ours, Answer{Response: never, Lock: held(theirs, "shop-deploy")}, ""},
		"no links":                  {"", Answer{Response: never, Lock: held("", "shop-deploy")}, ""},
		"free":                      {ours, Answer{Response: never, Lock: held(ours)}, ""},
		"a later run":               {ours, Answer{Response: LaterRun + "myLock, and this release was sent before it", Lock: held(ours, "me")}, ""},
		"one of two names":          {ours, Answer{Response: released, Lock: held(ours, "b")}, still + "b\n"},
		"one that was ended before": {ours, Answer{Response: NothingDone + "this claim of a was released", Ended: "released", Lock: held(ours, "b")}, still + "b\n"},
	} {
		var said strings.Builder
		c := &claim{program: &program{say: &speaker{w: &said}}, name: "myLock", link: test.link}
		if c.sayStillHeld(test.answer); said.String() != test.want {
			t.Errorf("%s: %q, want %q", name, said.String(), test.want)
		}
	}
}

// An unlock that finds its claim ended says how, and whether that matters.
func TestUnlockSaysHowTheClaimEnded(t *testing.T) {
	at := time.Date(2026, 11, 23, 10, 9, 51, 0, time.UTC)
	const nothing = NothingDone + "this claim of me ended"
	for ended, want := range map[string]string{
		"expired":   red + "lost: " + plain + "the hold ended at 10:09:51 UTC by its ttl, 6s before this unlock: this build went on without the lock\n",
		"forced":    red + "lost: " + plain + "the hold ended at 10:09:51 UTC by force, 6s before this unlock: this build went on without the lock\n",
		"withdrawn": nothing + "\n",
		"released":  yellow + "warning: " + plain + nothing + "\n",
		"":          yellow + "warning: " + plain + nothing + "\n",
	} {
		var said strings.Builder
		(&speaker{w: &said}).unlocked(Answer{Response: nothing, Ended: ended, EndedAt: at}, at.Add(6*time.Second))
		if said.String() != want {
			t.Errorf("%s: %q, want %q", ended, said.String(), want)
		}
	}
}
