package resource

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
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

// What trying again cannot mend ends a program at once, and says the mend.
func TestFinalErrors(t *testing.T) {
	for _, test := range []struct {
		status int
		body   string
		says   string
	}{
		{400, `{"error":"key is missing"}`, "400 Bad Request: key is missing"},
		{400, "Client sent an HTTP request to an HTTPS server.\n", "with https:// if it speaks TLS"},
		{401, `{"error":"credentials are wrong"}`, "401 Unauthorized: set username and password"},
		{403, `{}`, "403 Forbidden: check that no proxy stands between"},
		{407, ``, "407 Proxy Authentication Required: the proxy wants credentials: put them into http_proxy"},
		{501, ``, "501 Not Implemented"},
		{404, `404 page not found`, "404 Not Found: there is no locker at this path of locker_uri, or it is the locker of 2017: upgrade it first"},
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

// What a server says can neither start a line nor colour one.
func TestServersWordsAreCleaned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			answerWith(w, 400, `{"error":"bad\nerror: \u001b[31mforged\u009b \u202egnorw\u2028 \u200b\ufeff"}`)
		})
		r := s.run(t.Context(), (*program).out, askLock)
		if r.err == nil || strings.ContainsAny(r.err.Error(), "\n\x1b\u009b\u202e\u2028\u200b\ufeff") {
			t.Errorf("error %q", r.err)
		}
	})
}

// An answer without an end is refused while it is read.
func TestEndlessAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		written := 0
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			for written < 10*maxAnswer {
				n, err := w.Write(bytes.Repeat([]byte(" "), 1<<16))
				if written += n; err != nil {
					return
				}
			}
		})
		r := s.run(t.Context(), (*program).check, theSource+"}")
		if r.err == nil || !strings.Contains(r.err.Error(), "the answer has more than 8 MiB") {
			t.Errorf("error %v", r.err)
		}
		synctest.Wait()
		if written > maxAnswer+1<<20 {
			t.Errorf("%d bytes were sent", written)
		}
	})
}

// An answer of values that are small as text and large in memory is not read; one
// of as many holders as there can be is, with all members and commas in their text.
func TestAnswersOfManyValues(t *testing.T) {
	l := Lock{Key: "k", LockedBy: map[string]int{}, Waiters: []Waiter{}, Revision: 20_000}
	for i := range 20_000 {
		h := Holder{LockedBy: fmt.Sprintf(",,,,%d", i), Since: time.Now(), Token: uint64(i + 1), Slot: i + 1, Slots: 1, Reason: ",,,,", Link: "https://ci.example/", Expires: time.Now()}
		l.Holders, l.LockedBy[h.LockedBy] = append(l.Holders, h), 1
	}
	most, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ answer, says string }{
		"holders":                 {`{"holders":[` + strings.Repeat("{},", maxAnswer/3-100) + `{}],"revision":4}`, "the answer is not a locker's"},
		"as many as there can be": {string(most), ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := serve(t, func(w http.ResponseWriter, _ *http.Request) { answerWith(w, http.StatusOK, test.answer) })
			if r := s.run(t.Context(), (*program).check, theSource+"}"); test.says == "" && r.err != nil || test.says != "" && (r.err == nil || !strings.Contains(r.err.Error(), test.says)) {
				t.Errorf("%s: error %v", name, r.err)
			}
		})
	}
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
