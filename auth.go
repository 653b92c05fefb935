package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// credentials are what every request must carry, as hashes: comparing those
// takes the same time whatever was sent, and whatever its length.
type credentials struct {
	user, pass [sha256.Size]byte
}

func newCredentials(user, pass string) *credentials {
	return &credentials{sha256.Sum256([]byte(user)), sha256.Sum256([]byte(pass))}
}

// allow reports whether r carries the credentials, by basic authentication
// (RFC 7617). A malformed or a second Authorization header is a wrong one.
// Nil credentials allow everyone.
func (c *credentials) allow(r *http.Request) bool {
	if c == nil {
		return true
	}
	user, pass, ok := r.BasicAuth()
	gotUser, gotPass := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(pass))
	same := subtle.ConstantTimeCompare(gotUser[:], c.user[:]) & subtle.ConstantTimeCompare(gotPass[:], c.pass[:])
	return ok && len(r.Header["Authorization"]) == 1 && same == 1
}

// isLocal reports whether a Host header names this machine, or nothing. Port,
// case and a final dot do not count.
func isLocal(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.Trim(host, "[]")
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	address, err := netip.ParseAddr(name)
	return name == "" || name == "localhost" || err == nil && address.IsLoopback()
}

// certPause is how often the certificate files are looked at: a change is
// served within 5 s.
const certPause = 2 * time.Second

const expiryNotice = 14 * 24 * time.Hour // before a certificate's end

// certificate is a TLS certificate that follows its two PEM files.
type certificate struct {
	cert, key       option
	log             *slog.Logger
	certPEM, keyPEM []byte    // as last read, good or bad; owned by watch
	warned          time.Time // when its end was last warned of
	current         atomic.Pointer[tls.Certificate]
	next            atomic.Pointer[string] // the fingerprint of the one that is served next, or already
	announce        func() error           // called before another one is served; nil: nobody needs to know
}

// loadCertificate reads the pair. Its errors name the options.
func loadCertificate(cert, key option, log *slog.Logger) (*certificate, error) {
	c := &certificate{cert: cert, key: key, log: log}
	if _, err := c.reload(); err != nil {
		return nil, err
	}
	c.warn(time.Now())
	return c, nil
}

// reload reads the files and reports whether they had changed. A pair that
// does not fit leaves the current one in use.
func (c *certificate) reload() (changed bool, err error) {
	certPEM, err1 := os.ReadFile(c.cert.value)
	keyPEM, err2 := os.ReadFile(c.key.value)
	if bytes.Equal(certPEM, c.certPEM) && bytes.Equal(keyPEM, c.keyPEM) && c.current.Load() != nil {
		return false, nil
	}
	c.certPEM, c.keyPEM = certPEM, keyPEM
	if err1 != nil {
		err1 = fmt.Errorf("%s: %w: name a PEM file that the locker can read", c.cert.name, err1)
	}
	if err2 != nil {
		err2 = fmt.Errorf("%s: %w: name a PEM file that the locker can read", c.key.name, err2)
	}
	if err := errors.Join(err1, err2); err != nil {
		return true, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if bytes.Contains(keyPEM, []byte("ENCRYPTED")) {
		return true, fmt.Errorf("%s %s is encrypted, and nobody is there to type its password: decrypt it (openssl pkey -in FILE -out NEW)", c.key.name, c.key.value)
	}
	if err != nil {
		return true, fmt.Errorf("%s %s and %s %s do not make a pair: %w: name a certificate and its own key", c.cert.name, c.cert.value, c.key.name, c.key.value, err)
	}
	print := fingerprint(pair.Leaf.Raw)
	c.next.Store(&print)
	if c.announce != nil {
		if err := c.announce(); err != nil {
			c.certPEM = nil // so that it is tried again
			return true, fmt.Errorf("tell the other lockers of it: %w", err)
		}
	}
	c.current.Store(&pair)
	return true, nil
}

// watch reloads the files when they change, until ctx is done.
func (c *certificate) watch(ctx context.Context) {
	tick := time.NewTicker(certPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch changed, err := c.reload(); {
		case err != nil:
			c.log.Error("certificate not reloaded, the old one stays in use", "err", err)
		case changed:
			c.log.Info("certificate reloaded", "cert", c.cert.value)
			c.warned = time.Time{}
		}
		c.warn(time.Now())
	}
}

// fingerprint returns the SHA-256 of the certificate that is served next, or
// already; empty: it is plain HTTP.
func (c *certificate) fingerprint() string {
	if c == nil {
		return ""
	}
	return *c.next.Load()
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// end returns when the current certificate expires.
func (c *certificate) end() time.Time { return c.current.Load().Leaf.NotAfter }

// warn says once a day that the current certificate expires soon.
func (c *certificate) warn(now time.Time) {
	left := c.end().Sub(now)
	if left > expiryNotice || now.Sub(c.warned) < 24*time.Hour {
		return
	}
	c.warned = now
	words := "the certificate expires soon: have it renewed"
	if left <= 0 {
		words = "the certificate has expired, clients refuse it: have it renewed"
	}
	c.log.Warn(words, "cert", c.cert.value, "expires", c.end().UTC())
}

// config returns a TLS configuration that always serves the current pair.
func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.current.Load(), nil
		},
	}
}
