package test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// startTLS starts a locker with a new certificate; the configuration that
// comes with it trusts that one.
func startTLS(t testing.TB) (*lockertest.Locker, *tls.Config) {
	t.Helper()
	certFile, keyFile := lockertest.NewCertificate(t, t.TempDir(), "locker")
	return startTLSOf(t, certFile, keyFile)
}

func startTLSOf(t testing.TB, certFile, keyFile string) (*lockertest.Locker, *tls.Config) {
	t.Helper()
	return lockertest.Start(t, "SSL_CERT="+certFile, "SSL_KEY="+keyFile), trusting(t, certFile)
}

func dialTLS(s *lockertest.Locker, cfg *tls.Config) (tls.ConnectionState, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: lockertest.Patience}, "tcp", s.Address, cfg)
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
	certFile, keyFile := lockertest.NewCertificateOf(t, t.TempDir(), "locker", key)
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
	lockertest.AllowFiles(t, 2*1_000+500)
	s, trust := startTLS(t)
	half := lockertest.ClientHello(t)
	defer lockertest.Flood(t, s.Address, 1_000, []string{"", half[:3], half[:len(half)/2], half}).Close()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust}}
	defer client.CloseIdleConnections()
	start := time.Now()
	for _, method := range []string{"PUT", "GET", "DELETE"} {
		if status, body := lockertest.SendBy(t.Context(), client, method, s.URL+"/lock/a", `{"key": "k"}`); status != http.StatusOK {
			t.Errorf("%s: %d %s", method, status, body)
		}
		client.CloseIdleConnections() // the next one needs a handshake too
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("three requests took %v", took)
	}
}

// What is not TLS gets an alert, or nothing.
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
			conn := lockertest.Flood(t, s.Address, 1, []string{text})[0]
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(lockertest.Patience))
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
	answer, err := (&http.Client{Transport: transport, Timeout: lockertest.Patience}).Get(s.URL + "/health")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.Proto != "HTTP/1.1" || answer.StatusCode != http.StatusOK {
		t.Errorf("got %s %s", answer.Proto, answer.Status)
	}
}

func TestTLSRefusesPlainHTTP(t *testing.T) {
	s, _ := startTLS(t)
	if status, body := lockertest.Send(t.Context(), "GET", "http://"+s.Address+"/locks", ""); status != http.StatusBadRequest {
		t.Errorf("got %d %s", status, body)
	}
}
