package resource

import (
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
}

func (s *source) fields() map[string]any {
	return map[string]any{
		"locker_uri": &s.lockerURI, "lock_name": &s.lockName,
		"username": &s.username, "password": &s.password,
		"ca_cert": &s.caCert, "skip_ssl_validation": &s.skipValidation,
	}
}

func (s *source) check() error {
	problems := []error{checkURI(s.lockerURI), checkGiven("lock_name", s.lockName, CheckLockName)}
	switch {
	case s.username != "" && s.password == "":
		problems = append(problems, errors.New("username is set but password is not: set both, or neither"))
	case s.username == "" && s.password != "":
		problems = append(problems, errors.New("password is set but username is not: set both, or neither"))
	case strings.Contains(s.username, ":"):
		problems = append(problems, errors.New("username has a colon, which basic authentication cannot carry: choose one without"))
	}
	for _, of := range [][2]string{{"locker_uri", s.lockerURI}, {"username", s.username}, {"password", s.password}} {
		if strings.TrimSpace(of[1]) != of[1] {
			problems = append(problems, fmt.Errorf("%s has white space or a line's end at an end: take it out where it is set", of[0]))
		}
	}
	if s.caCert != "" {
		var err error
		s.authorities, err = parseAuthorities([]byte(s.caCert))
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// parseAuthorities reads PEM of one or more certificates, each of which must be one.
func parseAuthorities(data []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		n++
		cert, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil, fmt.Errorf("ca_cert: its block %d, of type %s, is not a certificate: take it out, or paste it again", n, block.Type)
		}
		pool.AddCert(cert)
	}
	if n == 0 {
		return nil, errors.New("ca_cert has no certificate: set it to PEM, from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----")
	}
	return pool, nil
}

// checkURI never repeats the URI or a part of it: there may be a password in it.
func checkURI(uri string) error {
	if uri == "" {
		return errors.New("locker_uri is missing: set it to the locker's address, such as https://10.0.0.10:8910")
	}
	u, err := url.Parse(strings.TrimSpace(uri))
	switch {
	case err == nil && u.User != nil:
		return errors.New("locker_uri has credentials in it: use username and password")
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return errors.New("locker_uri is not an http or https URL: set it to the locker's address, such as https://10.0.0.10:8910")
	case u.Port() != "" && !isPort(u.Port()):
		return errors.New("locker_uri has no port from 1 to 65535: correct it")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(uri, "#"):
		return errors.New("locker_uri has a query or a fragment: leave out what follows ? or #")
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

// lease is a duration of at least 1s whose errors do not repeat it.
type lease time.Duration

func (l *lease) UnmarshalJSON(data []byte) error {
	var s string
	if json.Unmarshal(data, &s) != nil {
		return errors.New(`must be a duration in quotes, such as "90s" or "2h30m"`)
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < minTTL {
		return errors.New(`must be a duration of at least 1s, such as "90s" or "2h30m"`)
	}
	*l = lease(d)
	return nil
}
