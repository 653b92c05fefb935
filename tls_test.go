package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// startTLS starts a server with a new certificate; the configuration that
// comes with it trusts that one.
func startTLS(t testing.TB) (*server, *tls.Config) {
	t.Helper()
	certFile, keyFile := newCertificate(t, t.TempDir(), "locker")
	return startTLSOf(t, certFile, keyFile)
}

func startTLSOf(t testing.TB, certFile, keyFile string) (*server, *tls.Config) {
	t.Helper()
	s := startServer(t, map[string]string{"SSL_CERT": certFile, "SSL_KEY": keyFile})
	data, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(data)
	return s, &tls.Config{RootCAs: roots}
}

func dialTLS(s *server, cfg *tls.Config) (tls.ConnectionState, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", s.address, cfg)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	return conn.ConnectionState(), nil
}

func TestTLSVersions(t *testing.T) {
	s, trust := startTLS(t)
	for version, want := range map[uint16]bool{
		tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true,
	} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			cfg := trust.Clone()
			cfg.MinVersion, cfg.MaxVersion = version, version
			state, err := dialTLS(s, cfg)
			if (err == nil) != want || err == nil && state.Version != version {
				t.Errorf("got %s, %v", tls.VersionName(state.Version), err)
			}
		})
	}
}

// TestTLSCiphers offers one cipher suite of TLS 1.2 at a time, to servers with
// a key of each kind: none is taken that Go's authors call insecure.
func TestTLSCiphers(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := newCertificateOf(t, t.TempDir(), "locker", key)
	withRSA, trustRSA := startTLSOf(t, certFile, keyFile)
	withECDSA, trustECDSA := startTLS(t)
	try := func(suite *tls.CipherSuite, want bool) {
		t.Run(suite.Name, func(t *testing.T) {
			s, cfg := withRSA, trustRSA.Clone()
			if strings.Contains(suite.Name, "_ECDSA_") {
				s, cfg = withECDSA, trustECDSA.Clone()
			}
			cfg.MaxVersion, cfg.CipherSuites = tls.VersionTLS12, []uint16{suite.ID}
			state, err := dialTLS(s, cfg)
			if (err == nil) != want || err == nil && state.CipherSuite != suite.ID {
				t.Errorf("got %s, %v", tls.CipherSuiteName(state.CipherSuite), err)
			}
		})
	}
	for _, suite := range tls.InsecureCipherSuites() {
		try(suite, false)
	}
	for _, suite := range tls.CipherSuites() {
		if slices.Contains(suite.SupportedVersions, tls.VersionTLS12) {
			try(suite, true)
		}
	}
}

// TestStalledHandshakes leaves 1,000 handshakes where they stall, and wants
// others to be served.
func TestStalledHandshakes(t *testing.T) {
	allowFiles(t, 2*1_000+500)
	s, trust := startTLS(t)
	half := clientHello(t)
	for i := range 1_000 {
		io.WriteString(s.dial(t), []string{"", half[:3], half[:len(half)/2], half}[i%4])
	}
	transport := &http.Transport{TLSClientConfig: trust}
	defer transport.CloseIdleConnections()
	start := time.Now()
	for _, method := range []string{put, get, del} {
		request, err := http.NewRequestWithContext(t.Context(), method, "https://"+s.address+"/lock/a", strings.NewReader(`{"key": "k"}`))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		if got := readAnswer(t, answer); got.status != "200 OK" {
			t.Errorf("%s: got %s", method, got.status)
		}
		transport.CloseIdleConnections() // the next one needs a handshake too
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("three requests took %v", took)
	}
}

// clientHello returns the first thing that a client sends.
func clientHello(t testing.TB) string {
	t.Helper()
	client, wire := net.Pipe()
	defer wire.Close()
	go tls.Client(client, &tls.Config{ServerName: "locker"}).Handshake()
	hello := make([]byte, 16<<10)
	n, err := wire.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	return string(hello[:n])
}

// What is no TLS gets an alert, or nothing.
func TestTLSRefusesGarbage(t *testing.T) {
	s, _ := startTLS(t)
	for name, text := range map[string]string{
		"zeros":                   strings.Repeat("\x00", 100),
		"words":                   "HELO locker\r\n",
		"the HTTP/2 preface":      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"a request":               "DELETE /lock/a?force=true HTTP/1.1\r\nHost: locker\r\n\r\n",
		"a record that is none":   "\x16\x03\x01\x00\x04junk",
		"a record too long":       "\x16\x03\x01\xff\xff" + strings.Repeat("x", 100),
		"an alert":                "\x15\x03\x03\x00\x02\x02\x28",
		"data before a handshake": "\x17\x03\x03\x00\x05hello",
		"SSL 2":                   "\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + strings.Repeat("x", 37),
	} {
		t.Run(name, func(t *testing.T) {
			conn := s.dial(t)
			io.WriteString(conn, text)
			got, err := io.ReadAll(conn)
			if err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection was not closed: %v", err)
			}
			alert := len(got) == 7 && got[0] == 0x15
			if len(got) > 0 && !alert {
				t.Errorf("got %q", got)
			}
		})
	}
}

// Over HTTP/2 there are no reason phrases.
func TestTLSSpeaksHTTP1Only(t *testing.T) {
	s, trust := startTLS(t)
	cfg := trust.Clone()
	cfg.NextProtos = []string{"h2", "http/1.1"}
	if state, err := dialTLS(s, cfg); err != nil || state.NegotiatedProtocol != "http/1.1" {
		t.Errorf("got %q, %v", state.NegotiatedProtocol, err)
	}
	cfg.NextProtos = []string{"h2"}
	if state, err := dialTLS(s, cfg); err == nil && state.NegotiatedProtocol != "" {
		t.Errorf("got %q", state.NegotiatedProtocol)
	}
	transport := &http.Transport{TLSClientConfig: trust, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	answer, err := client.Get("https://" + s.address + "/health")
	if err != nil {
		t.Fatal(err)
	}
	if got := readAnswer(t, answer); answer.Proto != "HTTP/1.1" || got.status != "200 OK" {
		t.Errorf("got %s %s", answer.Proto, got.status)
	}
}

func TestTLSRefusesPlainHTTP(t *testing.T) {
	s, _ := startTLS(t)
	if got := s.do(t, "GET", "/locks", ""); got.status != "400 Bad Request" {
		t.Errorf("got %s", got.status)
	}
}

// watched is a certificate that is watched in a synctest bubble.
type watched struct {
	*certificate
	dir string
	log *logs
}

func watchCertificate(t *testing.T) *watched {
	t.Helper()
	w := &watched{dir: t.TempDir(), log: newLogs()}
	certFile, keyFile := newCertificate(t, w.dir, "first")
	var err error
	w.certificate, err = loadCertificate(certFile, keyFile, slog.New(slog.NewTextHandler(w.log, nil)))
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
			newCertificate(t, w.dir, name)
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
		{"garbage", func(t *testing.T, w *watched) { overwrite(t, w.certFile, []byte("garbage")) }},
		{"empty", func(t *testing.T, w *watched) { overwrite(t, w.keyFile, nil) }},
		{"another's key", func(t *testing.T, w *watched) {
			other := t.TempDir()
			_, keyFile := newCertificate(t, other, "other")
			rename(t, keyFile, w.keyFile)
		}},
		{"missing", func(t *testing.T, w *watched) {
			rename(t, w.certFile, filepath.Join(w.dir, "aside"))
			rename(t, w.keyFile, filepath.Join(w.dir, "aside too"))
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
				newCertificate(t, w.dir, "mended")
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
		certFile, keyFile := newCertificate(t, t.TempDir(), "second")
		rename(t, certFile, w.certFile)
		w.wantSoon(t, "first")
		rename(t, keyFile, w.keyFile)
		w.wantSoon(t, "second")
	})
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}
