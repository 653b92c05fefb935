package resource

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
)

// The lock's address is right with and without a slash at its end and a path.
func TestLockerURI(t *testing.T) {
	for uri, want := range map[string]string{
		"http://h:8910":          "http://h:8910/lock/a%2Fb%20c",
		"http://h:8910/":         "http://h:8910/lock/a%2Fb%20c",
		"https://h/ci/locker":    "https://h/ci/locker/lock/a%2Fb%20c",
		"https://h/ci/locker//":  "https://h/ci/locker/lock/a%2Fb%20c",
		"http://[::1]:8910":      "http://[::1]:8910/lock/a%2Fb%20c",
		"https://h/with%20space": "https://h/with%20space/lock/a%2Fb%20c",
	} {
		s := &source{names: resourceNames, lockerURI: uri, lockName: "a/b c"}
		if err := s.check(); err != nil {
			t.Errorf("%s: %v", uri, err)
		}
		if got := newClient(s, nil).lock; got != want {
			t.Errorf("%s: %s, want %s", uri, got, want)
		}
	}
}

func TestSourceSentences(t *testing.T) {
	good := httptest.NewTLSServer(nil)
	good.Close()
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.Certificate().Raw})
	broken := append(block[:len(block):len(block)], pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})...)
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	for _, row := range []struct {
		source source
		want   string
	}{
		{source{names: resourceNames, lockerURI: "http://h\n"}, "locker_uri has white space or a line's end at an end: take it out where it is set"},
		{source{names: resourceNames, lockerURI: "http://h", username: "u ", password: "p"}, "username has white space or a line's end at an end: take it out where it is set"},
		{source{names: resourceNames, lockerURI: "http://h", username: "u", password: "p\n"}, "password has white space or a line's end at an end: take it out where it is set"},
		{source{names: resourceNames, lockerURI: "http://h", caCert: string(broken)}, "ca_cert: its block 2, of type CERTIFICATE, is not a certificate: take it out, or paste it again"},
		{source{names: resourceNames, lockerURI: "http://h", caCert: string(key)}, "ca_cert: its block 1, of type PRIVATE KEY, is not a certificate: take it out, or paste it again"},
		{source{names: resourceNames, lockerURI: "http://h", caCert: "x"}, "ca_cert has no certificate: set it to PEM, from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----"},
		{source{names: resourceNames, lockerURI: "http://h", caCert: string(block) + string(block)}, ""},
	} {
		row.source.lockName = "l"
		err := row.source.check()
		if got := strings.TrimSpace(errorText(err)); got != row.want {
			t.Errorf("got %q, want %q", got, row.want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// What is wrong with a connection is said with its mend.
func TestConnectionSentences(t *testing.T) {
	unknown := &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}
	nameless := &tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}}
	elsewhere := &tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"other"}}, Host: "h"}}
	expired := &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Cert: &x509.Certificate{}, Reason: x509.Expired}}
	for _, row := range []struct {
		err  error
		own  bool
		want string
	}{
		{unknown, false, "the server's certificate is not signed by a known authority: set ca_cert to that authority's certificate"},
		{unknown, true, "the server's certificate is not signed by the authority in ca_cert: check that it is the right one, and that the locker's SSL_CERT has the certificates between the two"},
		{nameless, false, "the server's certificate has no names in it (subject alternative names): have it made with the name or the address that locker_uri has"},
		{elsewhere, true, "the server's certificate is for another host: use a name in locker_uri that it is made for: x509: certificate is valid for other, not h"},
		{expired, false, "the server's certificate is not valid: have it renewed: x509: certificate has expired or is not yet valid: "},
	} {
		c := &client{names: resourceNames, address: "https://h", ownAuthority: row.own}
		f, ok := c.unanswered(row.err, 0).(*failure)
		if !ok || !f.final || f.message != "https://h: "+row.want {
			t.Errorf("%v: got %v, want %s", row.err, f, row.want)
		}
	}
	c := &client{names: resourceNames, address: "https://h", through: " (through the proxy p:3128)"}
	f := c.unanswered(&net.OpError{Op: "proxyconnect", Net: "tcp", Err: errors.New("refused")}, 0).(*failure)
	if want := "https://h (through the proxy p:3128): proxyconnect tcp: refused"; f.message != want || !f.unheard || f.final {
		t.Errorf("got %+v, want %s", f, want)
	}
	if f := c.unanswered(&net.DNSError{Err: "no such host", Name: "h", IsNotFound: true}, 0).(*failure); !f.noHost || f.final {
		t.Errorf("got %+v", f)
	}
}
