package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"unicode"
)

// This file is the settings of several lockers that keep their state in etcd.

const defaultPrefix = "/locker/"

// etcdConfig is how this locker takes part.
type etcdConfig struct {
	endpoints  []string // URLs without a path
	advertise  string   // the URL at which the others reach this locker
	keys       keys
	user, pass string
	tls        etcdTLS
}

// etcdSettings are the flags and variables, as given.
type etcdSettings struct {
	endpoints, advertise, prefix, ca, cert, key *string
	user, pass                                  string
}

func newEtcdSettings(flags *flag.FlagSet, getenv func(string) string) *etcdSettings {
	return &etcdSettings{
		endpoints: setting(flags, getenv, "etcd", "LOCKER_ETCD", "", "comma-separated `URLs` of etcd, where several lockers keep one set of locks; without it they are in the state file"),
		advertise: setting(flags, getenv, "advertise", "LOCKER_ADVERTISE", "", "`URL` at which the other lockers reach this one; needed with -etcd"),
		prefix:    setting(flags, getenv, "etcd-prefix", "LOCKER_ETCD_PREFIX", defaultPrefix, "`prefix` of the keys in etcd"),
		ca:        setting(flags, getenv, "etcd-ca", "LOCKER_ETCD_CA", "", "PEM `file` with the authorities of etcd's certificates; without one, the system's"),
		cert:      setting(flags, getenv, "etcd-cert", "LOCKER_ETCD_CERT", "", "PEM `file` of the certificate that etcd is shown"),
		key:       setting(flags, getenv, "etcd-key", "LOCKER_ETCD_KEY", "", "PEM `file` of that certificate's key"),
		user:      getenv("LOCKER_ETCD_USER"), pass: getenv("LOCKER_ETCD_PASS"),
	}
}

// parse checks the settings; nil without an error: the state is in a file.
func (s *etcdSettings) parse() (*etcdConfig, error) {
	if *s.endpoints == "" {
		return nil, s.unused()
	}
	cfg := &etcdConfig{keys: keys(*s.prefix), user: s.user, pass: s.pass, tls: etcdTLS{*s.ca, *s.cert, *s.key}}
	var problems []error
	for text := range strings.SplitSeq(*s.endpoints, ",") {
		endpoint, err := parseBase(strings.TrimSpace(text))
		if err != nil {
			problems = append(problems, fmt.Errorf("LOCKER_ETCD: %w, such as http://10.0.0.1:2379", err))
		}
		cfg.endpoints = append(cfg.endpoints, endpoint)
	}
	if !strings.HasSuffix(*s.prefix, "/") || strings.ContainsFunc(*s.prefix, unicode.IsControl) {
		problems = append(problems, fmt.Errorf("LOCKER_ETCD_PREFIX is %q: it must end in a slash", *s.prefix))
	}
	problems = append(problems, both("LOCKER_ETCD_USER", s.user, "LOCKER_ETCD_PASS", s.pass), both("LOCKER_ETCD_CERT", *s.cert, "LOCKER_ETCD_KEY", *s.key))
	if _, err := cfg.tls.config(); err != nil {
		problems = append(problems, err)
	}
	return cfg, errors.Join(problems...)
}

// unused refuses settings that would silently not count.
func (s *etcdSettings) unused() error {
	for _, v := range [][2]string{{"LOCKER_ADVERTISE", *s.advertise}, {"LOCKER_ETCD_CA", *s.ca}, {"LOCKER_ETCD_CERT", *s.cert}, {"LOCKER_ETCD_KEY", *s.key}, {"LOCKER_ETCD_USER", s.user}, {"LOCKER_ETCD_PASS", s.pass}} {
		if v[1] != "" {
			return fmt.Errorf("%s is set but LOCKER_ETCD is not: set it to etcd's URLs, or take %[1]s out", v[0])
		}
	}
	return nil
}

// announce checks and sets the URL at which the others reach this locker.
func (cfg *etcdConfig) announce(advertise string, secured bool) error {
	const such = "such as http://10.0.0.1:8910"
	if advertise == "" {
		return fmt.Errorf("LOCKER_ADVERTISE is not set, and LOCKER_ETCD is: set it to the URL at which the other lockers reach this one, %s", such)
	}
	base, err := parseBase(advertise)
	if err != nil {
		return fmt.Errorf("LOCKER_ADVERTISE: %w, %s", err, such)
	}
	if cfg.advertise = base; strings.HasPrefix(base, "https:") != secured {
		return fmt.Errorf("LOCKER_ADVERTISE is %q: it must begin with https:// exactly when SSL_CERT and SSL_KEY are set", advertise)
	}
	return nil
}

// parseBase returns a URL of scheme and host alone.
func parseBase(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || !slices.Contains([]string{"http", "https"}, u.Scheme) || u.Hostname() == "" || u.Port() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return "", fmt.Errorf("%q is not a URL of http or https, a host and a port alone", text)
	}
	return u.Scheme + "://" + u.Host, nil
}

// both wants both of two settings, or neither.
func both(one, oneValue, other, otherValue string) error {
	switch {
	case oneValue != "" && otherValue == "":
		return fmt.Errorf("%s is set but %s is not: set both, or neither", one, other)
	case oneValue == "" && otherValue != "":
		return fmt.Errorf("%s is set but %s is not: set both, or neither", other, one)
	}
	return nil
}

// etcdTLS is the PEM files of connections to etcd; empty names are none.
type etcdTLS struct{ ca, cert, key string }

// config reads the files.
func (t etcdTLS) config() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.ca != "" {
		pem, err := os.ReadFile(t.ca)
		if err != nil {
			return nil, fmt.Errorf("LOCKER_ETCD_CA: %w: name a PEM file that the locker can read", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("LOCKER_ETCD_CA %s has no certificate: name a PEM file of the authorities that sign etcd's", t.ca)
		}
	}
	if t.cert != "" && t.key != "" {
		pair, err := tls.LoadX509KeyPair(t.cert, t.key)
		if err != nil {
			return nil, fmt.Errorf("LOCKER_ETCD_CERT %s and LOCKER_ETCD_KEY %s do not make a pair: %w: name a certificate and its own key", t.cert, t.key, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// dial opens a connection to etcd with the files as they are now.
func (t etcdTLS) dial(ctx context.Context, dialer *net.Dialer, network, address string) (net.Conn, error) {
	cfg, err := t.config()
	if err != nil {
		return nil, err
	}
	cfg.ServerName, _, _ = net.SplitHostPort(address)
	return (&tls.Dialer{NetDialer: dialer, Config: cfg}).DialContext(ctx, network, address)
}
