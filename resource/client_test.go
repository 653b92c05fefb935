package resource

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
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

// What trying again cannot mend ends a program at once, and says the mend.
func TestFinalErrors(t *testing.T) {
	for _, test := range []struct {
		status int
		body   string
		says   string
	}{
		{400, `{"error":"key is missing"}`, "400 Bad Request: key is missing"},
		{400, "Client sent an HTTP request to an HTTPS server.\n", "with https:// if it speaks TLS"},
		{401, `{"error":"credentials are wrong"}`, "401 Unauthorized: credentials are wrong: set username and password"},
		{403, `{}`, "403 Forbidden: check that no proxy stands between"},
		{404, `404 page not found`, "404 Not Found: check the path in locker_uri"},
		{301, ``, "301 Moved Permanently: it redirects to https://other.example: set locker_uri"},
		{200, `<html>`, "the answer is not a locker's"},
		{200, `{}`, "the answer is not a locker's"},
		{200, `{"response":"ok"}`, "the answer is not a locker's"},
	} {
		for name, program := range map[string]struct {
			main    func(*program, context.Context) error
			request string
			args    []string
		}{
			"check": {(*program).check, askCheck, nil}, "in": {(*program).in, askIn, []string{"/nonexistent"}},
			"lock": {(*program).out, askLock, nil}, "unlock": {(*program).out, askUnlock, nil},
		} {
			t.Run(name+" "+test.says, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var asked record
					s := serve(t, func(w http.ResponseWriter, r *http.Request) {
						asked.note(r)
						w.Header().Set("Location", "https://other.example/secret")
						answerWith(w, test.status, test.body)
					})
					r := s.run(t.Context(), program.main, program.request, program.args...)
					if r.err == nil || !strings.Contains(r.err.Error(), test.says) {
						t.Errorf("error: %v", r.err)
					}
					if r.took > 0 || r.stdout.Len() > 0 {
						t.Errorf("took %s, answered %s", r.took, r.stdout.String())
					}
					if n := len(asked.all()); n != 1 && !(n == 2 && name == "lock" && test.status == 200) {
						t.Errorf("%d requests", n) // a lock that may have been granted is given back
					}
				})
			})
		}
	}
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

// What a server says can neither start a line nor colour one.
func TestServersWordsAreCleaned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			answerWith(w, 400, `{"error":"bad\nerror: \u001b[31mforged\u009b"}`)
		})
		r := s.run(t.Context(), (*program).out, askLock)
		if r.err == nil || strings.ContainsAny(r.err.Error(), "\n\x1b\u009b") {
			t.Errorf("error %q", r.err)
		}
	})
}

func TestCertificates(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answerWith(w, 200, freeLock) }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	plainSrv := httptest.NewServer(srv.Config.Handler)
	defer plainSrv.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	for _, test := range []struct {
		name, uri, ca string
		skip          any
		says          string // "" is success
	}{
		{"unknown authority", srv.URL, "", false, "the server's certificate is not signed by a known authority: set ca_cert"},
		{"known", srv.URL, ca, false, ""},
		{"not validated", srv.URL, "", true, ""},
		{"not validated, as text", srv.URL, "", "true", ""},
		{"validated, as text", srv.URL, "", "false", "not signed by a known authority"},
		{"plain at https", strings.Replace(plainSrv.URL, "http:", "https:", 1), "", false, "the server speaks plain HTTP: write http:// in locker_uri"},
		{"https at http", strings.Replace(srv.URL, "https:", "http:", 1), "", false, "with https:// if it speaks TLS"},
		{"another name", "", ca, false, "for another host"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "another name" {
				listenOn2(t, srv, &test.uri)
			}
			request, err := json.Marshal(map[string]any{"source": map[string]any{
				"locker_uri": test.uri, "lock_name": "l", "username": "u", "password": "CANARY", "ca_cert": test.ca, "skip_ssl_validation": test.skip,
			}})
			if err != nil {
				t.Fatal(err)
			}
			var stdout, stderr strings.Builder
			err = Check(t.Context(), strings.NewReader(string(request)), &stdout, &stderr, nil, func(string) string { return "" })
			if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("error %v", err)
			}
			if stderr.Len() > 0 || err != nil && strings.Contains(err.Error(), "CANARY") {
				t.Errorf("error %v, stderr %s", err, stderr.String())
			}
		})
	}
}

// listenOn2 serves srv's certificate at an address that it is not made for.
func listenOn2(t *testing.T, srv *httptest.Server, uri *string) {
	t.Helper()
	other := httptest.NewUnstartedServer(srv.Config.Handler)
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skip("needs 127.0.0.2:", err)
	}
	other.Config.ErrorLog = srv.Config.ErrorLog
	other.Listener.Close()
	other.Listener = l
	other.TLS = srv.TLS.Clone()
	other.StartTLS()
	t.Cleanup(other.Close)
	*uri = other.URL
}
