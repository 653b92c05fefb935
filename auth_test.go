package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

const user, password = "george", "p:ä " + canary

func basic(user, pass string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+pass))
}

// withAuth is the environment of a server that asks for credentials.
func withAuth() map[string]string { return map[string]string{"AUTH_USER": user, "AUTH_PASS": password} }

func encoded(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// refusedHeaders are the values of Authorization headers that are not the
// credentials.
var refusedHeaders = []struct {
	name   string
	values []string
}{
	{"none", nil},
	{"empty", []string{""}},
	{"scheme alone", []string{"Basic"}},
	{"scheme and space", []string{"Basic "}},
	{"no scheme", []string{encoded(user + ":" + password)}},
	{"another scheme", []string{"Bearer " + encoded(user+":"+password)}},
	{"longer scheme", []string{"Basics " + encoded(user+":"+password)}},
	{"scheme without space", []string{"Basic" + encoded(user+":"+password)}},
	{"two spaces", []string{"Basic  " + encoded(user+":"+password)}},
	{"bad base64", []string{"Basic %%%%"}},
	{"base64 cut short", []string{basic(user, password)[:20]}},
	{"base64 without padding", []string{"Basic " + strings.TrimRight(encoded("george:12"), "=")}},
	{"more after it", []string{basic(user, password) + ", x=y"}},
	{"no colon", []string{"Basic " + encoded(user+password)}},
	{"only a colon", []string{"Basic " + encoded(":")}},
	{"wrong password", []string{basic(user, "wrong")}},
	{"wrong user", []string{basic("jane", password)}},
	{"empty password", []string{basic(user, "")}},
	{"empty user", []string{basic("", password)}},
	{"password cut short", []string{basic(user, password[:len(password)-1])}},
	{"password with more", []string{basic(user, password+"x")}},
	{"user in capitals", []string{basic("George", password)}},
	{"password in Latin-1", []string{basic(user, strings.ReplaceAll(password, "ä", "\xe4"))}},
	{"twice", []string{basic(user, password), basic(user, password)}},
	{"right, then wrong", []string{basic(user, password), "Bearer x"}},
	{"wrong, then right", []string{"Bearer x", basic(user, password)}},
	{"huge", []string{"Basic " + strings.Repeat("QUFB", 3_000)}},
	{"invalid UTF-8", []string{"Basic \xff\xfe\x80"}},
	{"invalid UTF-8 in base64", []string{basic("\xff", "\xfe")}},
	{"control characters in base64", []string{basic(user, password+"\x00")}},
}

func TestWrongCredentialsAreRefused(t *testing.T) {
	s := startServer(t, withAuth())
	for _, test := range refusedHeaders {
		t.Run(test.name, func(t *testing.T) {
			var header []string
			for _, value := range test.values {
				header = append(header, "Authorization", value)
			}
			wantUnauthorized(t, s.do(t, "PUT", "/lock/refused", `{"key": "k"}`, header...))
		})
	}
	if got := s.do(t, "GET", "/locks", "", "Authorization", basic(user, password)); got.body != "{}\n" {
		t.Errorf("something was locked: %s", got.body)
	}
	log := s.log.String()
	if n := strings.Count(log, `msg="credentials refused" address=127.0.0.1:`); n != len(refusedHeaders) {
		t.Errorf("%d refusals logged with their address, want %d:\n%s", n, len(refusedHeaders), log)
	}
	if n := strings.Count(log, `level=INFO msg="credentials refused"`); n != 2 {
		t.Errorf("%d refusals of who sent nothing, want 2:\n%s", n, log)
	}
	for _, secret := range []string{canary, encoded(user + ":" + password), encoded(user + ":" + password)[:12]} {
		if strings.Contains(log, secret) {
			t.Errorf("the log shows %s:\n%s", secret, log)
		}
	}
}

func wantUnauthorized(t testing.TB, got exchange) {
	t.Helper()
	if got.status != "401 Unauthorized" || got.header.Get("WWW-Authenticate") != `Basic realm="locker", charset="UTF-8"` {
		t.Errorf("got %s with %v", got.status, got.header)
	}
	if !strings.Contains(got.body, `{"error":"credentials are missing or wrong: `) || strings.Contains(got.body, canary) {
		t.Errorf("got %s", got.body)
	}
}

// Whatever net/http may let through, allow refuses.
func TestControlCharactersInHeaderAreRefused(t *testing.T) {
	for _, value := range []string{"Basic \x00", "\r\n", basic(user, password) + "\x00", "Basic\t" + encoded(user+":"+password)} {
		if newCredentials(user, password).allow(withAuthorization(value)) {
			t.Errorf("%q is allowed", value)
		}
	}
}

func withAuthorization(value string) *http.Request {
	r := httptest.NewRequest("GET", "/locks", nil)
	r.Header.Set("Authorization", value)
	return r
}

func TestRightCredentialsPass(t *testing.T) {
	s := startServer(t, withAuth())
	right := basic(user, password)
	for _, value := range []string{right, "basic" + right[5:], "BASIC" + right[5:], " " + right + " "} {
		if got := s.do(t, "GET", "/locks", "", "Authorization", value); got.status != "200 OK" {
			t.Errorf("%q: got %s", value, got.status)
		}
	}
}

func TestCredentialsAreCheckedFirst(t *testing.T) {
	s := startServer(t, withAuth())
	for _, target := range []string{
		"OPTIONS *", "OPTIONS /locks", "GET /nowhere", "GET /", "GET //health", "GET /health/", "GET /%68ealth", "GET /lock/%ff",
		"POST /locks", "TRACE /locks", "GET /locks?wait=x", "GET /health/../locks", "GET http://locker/locks", "CONNECT locker:80",
	} {
		got := talk(t, s.dial(t), target+" HTTP/1.1\r\nHost: locker\r\nConnection: close\r\n\r\n")
		t.Run(target, func(t *testing.T) { wantUnauthorized(t, got) })
	}
	t.Run("cross-origin", func(t *testing.T) {
		wantUnauthorized(t, s.do(t, "PUT", "/lock/a", "{", "Sec-Fetch-Site", "cross-site"))
	})
	t.Run("large body", func(t *testing.T) {
		wantUnauthorized(t, s.do(t, "PUT", "/lock/a", strings.Repeat("x", maxBody+1)))
	})
	if got := s.do(t, "GET", "/health", ""); got.status != "200 OK" {
		t.Errorf("/health without credentials: got %s", got.status)
	}
}

func TestNoCredentialsConfiguredAllowEveryone(t *testing.T) {
	s := startServer(t, nil)
	for _, header := range [][]string{nil, {"Authorization", "Bearer x"}} {
		if got := s.do(t, "GET", "/locks", "", header...); got.status != "200 OK" {
			t.Errorf("got %s", got.status)
		}
	}
}

// FuzzAuthorization checks that only the exact credentials pass, by a second
// reading of RFC 7617.
func FuzzAuthorization(f *testing.F) {
	f.Add(basic(user, password))
	f.Add("bAsIc" + basic(user, password)[5:])
	for _, test := range refusedHeaders {
		f.Add(strings.Join(test.values, ", "))
	}
	c := newCredentials(user, password)
	f.Fuzz(func(t *testing.T, value string) {
		scheme, data, _ := strings.Cut(value, " ")
		decoded, err := base64.StdEncoding.DecodeString(data)
		want := strings.EqualFold(scheme, "basic") && err == nil && string(decoded) == user+":"+password
		if got := c.allow(withAuthorization(value)); got != want {
			t.Errorf("%q: allowed is %v, want %v", value, got, want)
		}
	})
}

// watched is a certificate that is watched in a synctest bubble.
type watched struct {
	*certificate
	dir string
	log *lockertest.Log
}

func watchCertificate(t *testing.T) *watched {
	t.Helper()
	w := &watched{dir: t.TempDir(), log: lockertest.NewLog()}
	certFile, keyFile := lockertest.NewCertificate(t, w.dir, "first")
	var err error
	w.certificate, err = loadCertificate(option{"SSL_CERT", certFile}, option{"SSL_KEY", keyFile}, slog.New(slog.NewTextHandler(w.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	go w.watch(ctx)
	t.Cleanup(stop)
	return w
}

// wantSoon checks which certificate is served 5 s after a change.
func (w *watched) wantSoon(t *testing.T, name string) {
	t.Helper()
	time.Sleep(5 * time.Second)
	synctest.Wait()
	pair, err := w.config().GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := pair.Leaf.Subject.CommonName; got != name {
		t.Errorf("the certificate %q is served, want %q", got, name)
	}
}

// wantLogged checks how often it was logged that a pair was taken or kept out.
func (w *watched) wantLogged(t *testing.T, reloaded, kept int) {
	t.Helper()
	text := w.log.String()
	got, gotKept := strings.Count(text, `msg="certificate reloaded"`), strings.Count(text, `msg="certificate not reloaded, the old one stays in use"`)
	if got != reloaded || gotKept != kept {
		t.Errorf("logged reloaded %d times and not reloaded %d times, want %d and %d:\n%s", got, gotKept, reloaded, kept, text)
	}
}

func TestCertificateIsReloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchCertificate(t)
		w.wantSoon(t, "first")
		w.wantLogged(t, 0, 0)
		const changes = 10
		for i := range changes { // wherever between two looks one falls
			time.Sleep(300 * time.Millisecond)
			name := fmt.Sprint(i)
			lockertest.NewCertificate(t, w.dir, name)
			w.wantSoon(t, name)
		}
		time.Sleep(time.Minute)
		w.wantLogged(t, changes, 0)
	})
}

func TestBadPairKeepsTheOldOne(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, w *watched)
	}{
		{"garbage", func(t *testing.T, w *watched) { lockertest.WriteFile(t, w.cert.value, []byte("garbage")) }},
		{"empty", func(t *testing.T, w *watched) { lockertest.WriteFile(t, w.key.value, nil) }},
		{"another's key", func(t *testing.T, w *watched) {
			other := t.TempDir()
			_, keyFile := lockertest.NewCertificate(t, other, "other")
			lockertest.Rename(t, keyFile, w.key.value)
		}},
		{"missing", func(t *testing.T, w *watched) {
			lockertest.Rename(t, w.cert.value, filepath.Join(w.dir, "aside"))
			lockertest.Rename(t, w.key.value, filepath.Join(w.dir, "aside too"))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := watchCertificate(t)
				test.spoil(t, w)
				w.wantSoon(t, "first")
				time.Sleep(time.Minute)
				w.wantSoon(t, "first")
				w.wantLogged(t, 0, 1) // not at each look
				lockertest.NewCertificate(t, w.dir, "mended")
				w.wantSoon(t, "mended")
				w.wantLogged(t, 1, 1)
			})
		})
	}
}

// A key and its certificate are two files: between the two writes they do not
// fit each other.
func TestPairWrittenInTwoSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchCertificate(t)
		certFile, keyFile := lockertest.NewCertificate(t, t.TempDir(), "second")
		lockertest.Rename(t, certFile, w.cert.value)
		w.wantSoon(t, "first")
		lockertest.Rename(t, keyFile, w.key.value)
		w.wantSoon(t, "second")
	})
}

func TestTLSHandshakeStall(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		certFile, keyFile := lockertest.NewCertificate(t, dir, "locker")
		cert, err := loadCertificate(option{"SSL_CERT", certFile}, option{"SSL_KEY", keyFile}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		m, _ := serveMemory(t, &config{certificate: cert})
		hello := lockertest.ClientHello(t)
		for _, text := range []string{"", hello[:3], hello[:100], hello} {
			got, after := stall(t, m.dial(t), text)
			if answered := text == hello; (got != "") != answered || after != headerTime {
				t.Errorf("%d bytes: got %d bytes after %v", len(text), len(got), after)
			}
		}
	})
}

// TestOnlyLocalNames refuses, where nobody said where to listen, a request to a
// name that is not this machine's: a page of evil.example can make that name
// lead here, read the locks and force them.
func TestOnlyLocalNames(t *testing.T) {
	for _, test := range []struct {
		host   string
		status int
	}{
		{"localhost:8910", 200}, {"LOCALHOST.", 200}, {"127.0.0.1:8910", 200}, {"127.8.9.1", 200}, {"[::1]:8910", 200}, {"[::1]", 200}, {"", 200},
		{"evil.example:8910", 403}, {"evil.example", 403}, {"localhost.evil.example", 403}, {"127.0.0.1.evil.example", 403}, {"10.0.0.1:8910", 403}, {"0.0.0.0", 403},
	} {
		for _, only := range []bool{true, false} {
			a := apiOf(t, nil)
			a.localOnly = only
			r, w := httptest.NewRequest("DELETE", "/lock/a?force=true", nil), httptest.NewRecorder()
			r.Host = test.host
			r.Header.Set("Origin", "http://"+test.host)
			a.ServeHTTP(w, r)
			if want := map[bool]int{true: test.status, false: 200}[only]; w.Code != want {
				t.Errorf("%q, only local names %t: got %d %s, want %d", test.host, only, w.Code, w.Body, want)
			}
			if w.Code == 403 && !strings.Contains(w.Body.String(), "set LISTEN=127.0.0.1:8910 if this name is yours") {
				t.Errorf("%q: %s", test.host, w.Body)
			}
		}
	}
}

// An operator hears of a certificate's end two weeks before, once a day.
func TestCertificateThatExpires(t *testing.T) {
	certFile, keyFile := lockertest.NewCertificate(t, t.TempDir(), "locker")
	log := lockertest.NewLog()
	c, err := loadCertificate(option{"SSL_CERT", certFile}, option{"SSL_KEY", keyFile}, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	c.warned = time.Time{}
	for _, step := range []struct {
		before time.Duration // its end
		want   string
	}{
		{expiryNotice + time.Minute, ""},
		{expiryNotice, "the certificate expires soon: have it renewed"},
		{expiryNotice - 23*time.Hour, ""},
		{expiryNotice - 24*time.Hour, "the certificate expires soon: have it renewed"},
		{-time.Minute, "the certificate has expired, clients refuse it: have it renewed"},
	} {
		said := len(log.String())
		c.warn(c.end().Add(-step.before))
		if got := log.String()[said:]; (step.want == "") != (got == "") || !strings.Contains(got, step.want) {
			t.Errorf("%v before its end: %q, want %q", step.before, got, step.want)
		}
	}
	text := string(exposed("v", &state{}, newMetrics(), c, time.Now()))
	if want := fmt.Sprintf("locker_certificate_expiry_timestamp_seconds %v\n", float64(c.end().Unix())); !strings.Contains(text, want) {
		t.Errorf("no %s in the metrics", want)
	}
}

// That is said at the start, once a day, and when another one is read.
func TestWhenItIsSaidThatACertificateExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchCertificate(t) // of a day
		for i, step := range []struct {
			after time.Duration
			do    func()
			want  string
		}{
			{0, func() {}, "expires soon"},
			{25 * time.Hour, func() {}, "has expired"},
			{5 * time.Second, func() { lockertest.NewCertificate(t, w.dir, "next") }, "expires soon"},
		} {
			step.do()
			time.Sleep(step.after)
			synctest.Wait()
			said := regexp.MustCompile(`msg="the certificate (expires soon|has expired)`).FindAllStringSubmatch(w.log.String(), -1)
			if len(said) != i+1 || said[i][1] != step.want {
				t.Fatalf("said %q, want %d, the last one %q", said, i+1, step.want)
			}
		}
	})
}

func TestEncryptedKeyIsNamed(t *testing.T) {
	dir := t.TempDir()
	certFile, _ := lockertest.NewCertificate(t, dir, "locker")
	encrypted := filepath.Join(dir, "encrypted")
	lockertest.WriteFile(t, encrypted, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\neA==\n-----END ENCRYPTED PRIVATE KEY-----\n"))
	if _, err := loadCertificate(option{"SSL_CERT", certFile}, option{"SSL_KEY", encrypted}, quiet()); err == nil || !strings.HasPrefix(err.Error(), "SSL_KEY "+encrypted+" is encrypted") {
		t.Errorf("error %v", err)
	}
}

func TestPageURL(t *testing.T) {
	for address, want := range map[string]string{"127.0.0.1:8910": "http://127.0.0.1:8910/", "[::]:80": "http://localhost:80/", "[::1]:80": "http://[::1]:80/"} {
		tcp, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := pageURL(tcp, false); got != want || pageURL(tcp, true) != "https"+strings.TrimPrefix(want, "http") {
			t.Errorf("%s: %s", address, got)
		}
	}
}
