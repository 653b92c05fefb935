package resource

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestOwnNeedsABuild(t *testing.T) {
	request := theSource + `,"params":{"key":"k","lock_op":"unlock","own":true}}`
	err := Out(t.Context(), strings.NewReader(request), io.Discard, io.Discard, nil, func(string) string { return "" })
	if err == nil || !strings.HasPrefix(err.Error(), "params: own needs ATC_EXTERNAL_URL and BUILD_ID") {
		t.Errorf("error %v", err)
	}
}

// The version of a lock is its grant's token, whatever happened to the lock since,
// and that of an unlock the lock's revision.
func TestOutAnswers(t *testing.T) {
	const told = `{"name":"lock","value":"myLock"},{"name":"lock_op","value":"%s"},{"name":"key","value":"k"},{"name":"locked_by","value":"me"},`
	grant := strings.NewReplacer(`"revision":9`, `"revision":11`, `"token":9}`, `"token":9,"slot":2}`).Replace(grantJSON)
	for _, test := range []struct{ request, answer, want string }{
		{askLock, grant, `{"version":{"ref":"9"},"metadata":[` + fmt.Sprintf(told, "lock") + `{"name":"token","value":"9"},{"name":"slot","value":"2"},{"name":"waited","value":"5s"},{"name":"build","value":"https://ci.example/builds/7"}]}`},
		{askUnlock, freedJSON, `{"version":{"ref":"10"},"metadata":[` + fmt.Sprintf(told, "unlock") + `{"name":"build","value":"https://ci.example/builds/7"}]}`},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				hold(r, 5*time.Second)
				answerWith(w, http.StatusOK, test.answer)
			})
			if r := s.run(t.Context(), (*program).out, test.request); r.err != nil || r.stdout.String() != test.want+"\n" {
				t.Errorf("error %v, answered %s", r.err, r.stdout.String())
			}
		})
	}
}

// The version of an unlock of a lock that was never used is one that in takes.
func TestUnlockOfALockNeverUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				answerWith(w, http.StatusOK, strings.Replace(freeLock, `"revision":9`, `"revision":0`, 1))
				return
			}
			answerWith(w, http.StatusOK, strings.Replace(freedJSON, `"revision":10`, `"revision":0`, 1))
		})
		put := s.run(t.Context(), (*program).out, askUnlock)
		const want = `{"version":{"ref":"0"},`
		if put.err != nil || !strings.HasPrefix(put.stdout.String(), want) {
			t.Errorf("put: error %v, answered %s", put.err, put.stdout.String())
		}
		answered, _, _ := strings.Cut(strings.TrimPrefix(put.stdout.String(), "{"), `,"metadata"`)
		if get := s.run(t.Context(), (*program).in, theSource+","+answered+"}", t.TempDir()); get.err != nil || !strings.HasPrefix(get.stdout.String(), want) {
			t.Errorf("get: error %v, answered %s", get.err, get.stdout.String())
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

// lock refuses names that the server would refuse, all at once; unlock, check
// and in leave them to the server, which may have them from before.
func TestLookalikesInARequest(t *testing.T) {
	request := func(op string) string {
		request := strings.Replace(askLock, `"lock_name":"myLock"`, `"lock_name":"zz/../prod"`, 1)
		return strings.NewReplacer(`"k"`, `"k "`, `"me"`, `"\u202eme"`, `"lock_op":"lock"`, `"lock_op":"`+op+`"`).Replace(request)
	}
	synctest.Test(t, func(t *testing.T) {
		var asked record
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if asked.note(r); r.Method == http.MethodGet {
				answerWith(w, http.StatusOK, freeLock)
				return
			}
			answerWith(w, http.StatusOK, freedJSON)
		})
		const want = `params: key has white space at an end: leave it out
params: locked_by has a character that cannot be seen, such as U+200B: leave it out
source: lock_name has . or .. between slashes, which proxies resolve to another name: leave it out`
		if r := s.run(t.Context(), (*program).out, request("lock")); r.err == nil || r.err.Error() != want || len(asked.all()) > 0 {
			t.Errorf("lock: %v", r.err)
		}
		if r := s.run(t.Context(), (*program).out, request("unlock")); r.err != nil {
			t.Errorf("unlock: %v", r.err)
		}
		older := strings.Replace(askIn, "myLock", "zz/../prod ", 1)
		if r := s.run(t.Context(), (*program).in, older, t.TempDir()); r.err != nil {
			t.Errorf("in: %v", r.err)
		}
		if r := s.run(t.Context(), (*program).check, older); r.err != nil {
			t.Errorf("check: %v", r.err)
		}
	})
}
