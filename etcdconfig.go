package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
)

// This file is the settings of several lockers that keep their state in etcd.

// etcdConfig is how this locker takes part.
type etcdConfig struct {
	endpoints  []string // URLs without a path
	advertise  string   // the URL at which the others reach this locker
	keys       keys
	user, pass string
	tls        etcdTLS
}

// client returns a client of this cluster. HTTP/2 is off: a connection that died would be used
// again.
func (cfg *etcdConfig) client() *etcd {
	var http1 http.Protocols
	http1.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: etcdDial}
	transport := &http.Transport{Protocols: &http1, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute, DialContext: dialer.DialContext}
	transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return cfg.tls.dial(ctx, dialer, network, address)
	}
	return &etcd{endpoints: cfg.endpoints, user: cfg.user, pass: cfg.pass, transport: transport}
}

// parseEtcd checks the settings; nil without an error: the state is in a file.
func parseEtcd(given map[string]*option, getenv func(string) string) (*etcdConfig, error) {
	user, pass := option{"LOCKER_ETCD_USER", getenv("LOCKER_ETCD_USER")}, option{"LOCKER_ETCD_PASS", getenv("LOCKER_ETCD_PASS")}
	endpoints, prefix, ca, cert, key := *given["etcd"], *given["etcd-prefix"], *given["etcd-ca"], *given["etcd-cert"], *given["etcd-key"]
	if endpoints.value == "" {
		return nil, unused(*given["advertise"], ca, cert, key, user, pass)
	}
	cfg := &etcdConfig{keys: keys(prefix.value), user: user.value, pass: pass.value, tls: etcdTLS{ca, cert, key}}
	var problems []error
	for text := range strings.SplitSeq(endpoints.value, ",") {
		endpoint, err := parseBase(strings.TrimSpace(text))
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w, such as http://10.0.0.1:2379", endpoints.name, err))
		}
		cfg.endpoints = append(cfg.endpoints, endpoint)
	}
	if !strings.HasSuffix(prefix.value, "/") || strings.ContainsFunc(prefix.value, unicode.IsControl) {
		problems = append(problems, fmt.Errorf("%s is %q: it must end in a slash", prefix.name, prefix.value))
	}
	problems = append(problems, bothOrNeither(user, pass), bothOrNeither(cert, key))
	_, err := cfg.tls.config()
	return cfg, errors.Join(append(problems, err)...)
}

// unused refuses settings that would silently not count.
func unused(all ...option) error {
	for _, o := range all {
		if o.value != "" {
			return fmt.Errorf("%s is set but LOCKER_ETCD is not: set it to etcd's URLs, or take %[1]s out", o.name)
		}
	}
	return nil
}

// announce checks and sets the URL at which the others reach this locker.
func (cfg *etcdConfig) announce(advertise option, secured bool) error {
	const such = "such as http://10.0.0.1:8910"
	if advertise.value == "" {
		return fmt.Errorf("%s is not set, and LOCKER_ETCD is: set it to the URL at which the other lockers reach this one, %s", advertise.name, such)
	}
	base, err := parseBase(advertise.value)
	if err != nil {
		return fmt.Errorf("%s: %w, %s", advertise.name, err, such)
	}
	if cfg.advertise = base; strings.HasPrefix(base, "https:") != secured {
		return fmt.Errorf("%s is %q: it must begin with https:// exactly when there is a certificate (SSL_CERT)", advertise.name, advertise.value)
	}
	return nil
}

// parseBase returns a URL of scheme and host alone.
func parseBase(text string) (string, error) {
	if strings.Contains(text, "@") { // what is before it may be a password
		return "", errors.New("a URL with credentials in it: leave them out")
	}
	u, err := url.Parse(text)
	if err != nil || !slices.Contains([]string{"http", "https"}, u.Scheme) || u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return "", fmt.Errorf("%q is not a URL of http or https, a host and a port alone", text)
	}
	return u.Scheme + "://" + u.Host, nil
}

// etcdTLS is the PEM files of connections to etcd; empty names are none.
type etcdTLS struct{ ca, cert, key option }

// config reads the files.
func (t etcdTLS) config() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.ca.value != "" {
		pem, err := os.ReadFile(t.ca.value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: name a PEM file that the locker can read", t.ca.name, err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s %s has no certificate: name a PEM file of the authorities that sign etcd's", t.ca.name, t.ca.value)
		}
	}
	if t.cert.value != "" && t.key.value != "" {
		pair, err := tls.LoadX509KeyPair(t.cert.value, t.key.value)
		if err != nil {
			return nil, fmt.Errorf("%s %s and %s %s do not make a pair: %w: name a certificate and its own key", t.cert.name, t.cert.value, t.key.name, t.key.value, err)
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
