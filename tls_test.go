package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// startTLS starts a server with a new certificate; the configuration that
// comes with it trusts that one.
func startTLS(t testing.TB) (*server, *tls.Config) {
	t.Helper()
	certFile, keyFile := newCertificate(t, t.TempDir(), "locker")
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
