package resource

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// This file is a resource's configuration.

// source is a resource's configuration, checked.
type source struct {
	lockerURI, lockName string
	username, password  string
	caCert              string // PEM
	skipValidation      flag
	authorities         *x509.CertPool // nil: the system's
	names               sourceNames
}

// sourceNames are what people call the members of a source, which `locker run` has
// from flags and variables.
type sourceNames struct{ uri, lock, username, password, ca string }

var resourceNames = sourceNames{"locker_uri", "lock_name", "username", "password", "ca_cert"}

func (s *source) fields() map[string]any {
	return map[string]any{
		"locker_uri": &s.lockerURI, "lock_name": &s.lockName,
		"username": &s.username, "password": &s.password,
		"ca_cert": &s.caCert, "skip_ssl_validation": &s.skipValidation,
	}
}

func (s *source) check() error {
	n := s.names
	problems := []error{checkURI(n, s.lockerURI), checkGiven(n.lock, s.lockName, CheckLockName)}
	switch {
	case s.username != "" && s.password == "":
		problems = append(problems, fmt.Errorf("%s is set but %s is not: set both, or neither", n.username, n.password))
	case s.username == "" && s.password != "":
		problems = append(problems, fmt.Errorf("%s is set but %s is not: set both, or neither", n.password, n.username))
	case strings.Contains(s.username, ":"):
		problems = append(problems, fmt.Errorf("%s has a colon, which basic authentication cannot carry: choose one without", n.username))
	}
	for _, of := range [][2]string{{n.uri, s.lockerURI}, {n.username, s.username}, {n.password, s.password}} {
		if strings.TrimSpace(of[1]) != of[1] {
			problems = append(problems, fmt.Errorf("%s has white space or a line's end at an end: take it out where it is set", of[0]))
		}
	}
	if s.caCert != "" {
		var err error
		s.authorities, err = parseAuthorities(n.ca, []byte(s.caCert))
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// parseAuthorities reads PEM of one or more certificates, each of which must be one.
func parseAuthorities(name string, data []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		n++
		cert, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil, fmt.Errorf("%s: its block %d, of type %s, is not a certificate: take it out, or paste it again", name, n, block.Type)
		}
		pool.AddCert(cert)
	}
	if n == 0 {
		return nil, fmt.Errorf("%s has no certificate: set it to PEM, from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----", name)
	}
	return pool, nil
}

// checkURI never repeats the URI or a part of it: there may be a password in it.
func checkURI(n sourceNames, uri string) error {
	if uri == "" {
		return fmt.Errorf("%s is missing: set it to the locker's address, such as https://10.0.0.10:8910", n.uri)
	}
	u, err := url.Parse(strings.TrimSpace(uri))
	switch {
	case err == nil && u.User != nil:
		return fmt.Errorf("%s has credentials in it: use %s and %s", n.uri, n.username, n.password)
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return fmt.Errorf("%s is not an http or https URL: set it to the locker's address, such as https://10.0.0.10:8910", n.uri)
	case u.Port() != "" && !isPort(u.Port()):
		return fmt.Errorf("%s has no port from 1 to 65535: correct it", n.uri)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(uri, "#"):
		return fmt.Errorf("%s has a query or a fragment: leave out what follows ? or #", n.uri)
	}
	return nil
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// flag is a bool that may be given as text, as an interpolated variable is.
type flag bool

func (f *flag) UnmarshalJSON(data []byte) error {
	switch strings.Trim(string(data), `"`) {
	case "true":
		*f = true
	case "false":
		*f = false
	default:
		return errors.New("must be true or false")
	}
	return nil
}

// digits stores a whole number that may be given as text, as an interpolated variable
// is.
type digits struct{ to **int }

func (d *digits) UnmarshalJSON(data []byte) error {
	if text := strings.Trim(string(data), `"`); text != "" && strings.Trim(text, "0123456789") == "" {
		data = []byte(cmp.Or(strings.TrimLeft(text, "0"), "0")) // JSON has no leading zeros
	}
	return json.Unmarshal(data, d.to)
}

// span is a duration whose errors do not repeat it.
type span time.Duration

func (s *span) UnmarshalText(text []byte) (err error) {
	*s, err = readSpan(text, 0)
	return err
}

// lease is a span of at least 1s.
type lease time.Duration

func (l *lease) UnmarshalText(text []byte) error {
	s, err := readSpan(text, minTTL)
	*l = lease(s)
	return err
}

func readSpan(text []byte, least time.Duration) (span, error) {
	var d Duration
	if err := d.UnmarshalText(text); err != nil || time.Duration(d) < least {
		return 0, fmt.Errorf(`must be a duration of at least %s, such as "90s" or "2h30m"%s`, least, unitHint(string(text)))
	}
	return span(d), nil
}
