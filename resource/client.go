package resource

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// This file is the HTTP client: one attempt at one request, and what its
// failure means.

const (
	dialTime   = 3 * time.Second  // for a connection to be made
	answerTime = 10 * time.Second // for an answer, beyond the wait that was asked for: a commit on a slow disk fits
	probeTime  = 5 * time.Second  // between keep-alive probes
	probes     = 3                // unanswered, before a connection is given up
	maxAnswer  = 8 << 20          // bytes; 20,000 claims without links fit, 3,000 with the longest
	maxCommas  = 500_000          // since a value of 2 bytes may take 400 of memory; 20,000 claims have 9 each, and those in their text
)

// dialer makes connections.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func realDialer() dialer {
	d := net.Dialer{Timeout: dialTime, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeTime, Interval: probeTime, Count: probes}}
	return d.DialContext
}

// client speaks to the server about one lock. It is safe for concurrent use.
type client struct {
	names              sourceNames
	address            string // the locker's, for messages: it carries no credentials
	through            string // the proxy, for messages; "" is none
	lock               string // the lock's URL
	username, password string
	ownAuthority       bool // it has an authority of its own
	http               http.Client
}

// newClient returns a client for a source that was checked.
func newClient(s *source, dial dialer) *client {
	address := strings.TrimRight(s.lockerURI, "/")
	return &client{
		names: s.names, address: address, through: throughProxy(address),
		lock:     address + "/lock/" + url.PathEscape(s.lockName),
		username: s.username, password: s.password, ownAuthority: s.authorities != nil,
		http: http.Client{
			Transport: &http.Transport{
				Proxy:                  proxy,
				OnProxyConnectResponse: connected,
				DialContext:            dial,
				TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: s.authorities, InsecureSkipVerify: bool(s.skipValidation)},
				TLSHandshakeTimeout:    dialTime,
			},
			// A redirect would be followed with GET: what comes back is not a grant.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// proxy is http.ProxyFromEnvironment, which reads the process's environment
// and whose errors may carry a proxy's password.
func proxy(r *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(r)
	if err != nil {
		return nil, errors.New("HTTP_PROXY or HTTPS_PROXY is not a URL")
	}
	return u, nil
}

// throughProxy names the proxy by which a URL is reached, "" for none.
func throughProxy(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	via, err := proxy(&http.Request{URL: u})
	if err != nil || via == nil {
		return ""
	}
	return " (through the proxy " + via.Host + ")"
}

// connected is asked what to make of a proxy's answer to CONNECT.
func connected(_ context.Context, via *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	message := fmt.Sprintf("the proxy %s answers %d %s", via.Host, resp.StatusCode, http.StatusText(resp.StatusCode))
	if resp.StatusCode >= 500 {
		return &failure{message: message, unheard: true}
	}
	words := "have it allow this host and port, or set no_proxy"
	if resp.StatusCode == http.StatusProxyAuthRequired {
		words = resourceNames.mend(resp)
	}
	return &failure{message: message + ": " + words, final: true, unheard: true}
}

// failure is an attempt that the locker did not answer, or answered with an error.
type failure struct {
	message string
	final   bool          // trying again cannot help
	stale   bool          // trying again with another ticket can
	unheard bool          // the server did nothing
	status  int           // of the answer; 0 is none
	worded  bool          // the answer was a locker's
	noHost  bool          // there is no host of that name
	pause   time.Duration // what the server asks for before the next attempt
}

func (f *failure) Error() string { return f.message }

// refusal is a 423: the lock is held, or the claim waits for it.
type refusal struct {
	sentence string
	lock     Lock
	position int  // in the queue; 0 is not queued
	ended    bool // by a release
}

func (r *refusal) Error() string { return r.sentence }

// take asks for the lock. Its error is a *refusal or a *failure.
func (c *client) take(ctx context.Context, t Take) (Answer, error) {
	a, err := c.change(ctx, http.MethodPut, t, time.Duration(t.Wait))
	if err == nil && a.Token == 0 {
		return Answer{}, c.strange()
	}
	return a, err
}

// release gives the lock back. Its error is a *refusal or a *failure.
func (c *client) release(ctx context.Context, r Release) (Answer, error) {
	return c.change(ctx, http.MethodDelete, r, 0)
}

func (c *client) change(ctx context.Context, method string, body any, wait time.Duration) (Answer, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return Answer{}, err
	}
	data, _, err = c.do(ctx, method, "", data, wait)
	if err != nil {
		return Answer{}, err
	}
	var a Answer
	if json.Unmarshal(data, &a) != nil || a.Lock.Holders == nil {
		return Answer{}, c.strange()
	}
	a.Response = clean(a.Response)
	return a, nil
}

// show returns the lock, and its JSON as the server wrote it. Its error is a
// *failure.
func (c *client) show(ctx context.Context) (Lock, []byte, error) {
	data, _, err := c.do(ctx, http.MethodGet, "", nil, 0)
	if err != nil {
		return Lock{}, nil, err
	}
	l, err := c.lockIn(data)
	return l, data, err
}

func (c *client) lockIn(data []byte) (Lock, error) {
	var l Lock
	if json.Unmarshal(data, &l) != nil || l.Holders == nil {
		return Lock{}, c.strange()
	}
	return l, nil
}

// ticket returns the lock and a ticket, which is empty when the server has none
// to give. Its error is a *failure.
func (c *client) ticket(ctx context.Context) (Lock, string, error) {
	data, header, err := c.do(ctx, http.MethodGet, "?ticket=true", nil, 0)
	if f, ok := errors.AsType[*failure](err); ok && f.status == http.StatusBadRequest && f.worded {
		l, _, err := c.show(ctx) // a locker from before tickets does not know the query
		return l, "", err
	}
	if err != nil {
		return Lock{}, "", err
	}
	l, err := c.lockIn(data)
	return l, header.Get("Locker-Ticket"), err
}

// strange is an answer that says 200 and is not a locker's.
func (c *client) strange() error {
	return &failure{message: fmt.Sprintf("%s: the answer is not a locker's: check %s, and that the locker there is of this version", c.address, c.names.uri), final: true}
}

// do makes one attempt and returns the body and the header of a 200.
func (c *client) do(ctx context.Context, method, query string, body []byte, wait time.Duration) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+answerTime)
	defer cancel()
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, method, c.lock+query, bytes.NewReader(body))
	if err != nil {
		return nil, nil, &failure{message: c.names.uri + " and " + c.names.lock + " do not make a URL: check both", final: true, unheard: true}
	}
	if c.username != "" {
		req.SetBasicAuth(c.username, c.password)
	}
	req.Header.Set("Cache-Control", "no-cache") // an old ticket from a cache would make an unlock a late one
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, c.unanswered(err, time.Since(start))
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, c.unanswered(err, time.Since(start))
	}
	if len(data) > maxAnswer {
		return nil, nil, &failure{message: c.address + ": the answer has more than 8 MiB: check that " + c.names.uri + " leads to a locker", final: true}
	}
	if bytes.Count(data, []byte(",")) > maxCommas {
		return nil, nil, c.strange()
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, c.refused(resp, data)
	}
	return data, resp.Header, nil
}

// unanswered says why there was no answer.
func (c *client) unanswered(err error, waited time.Duration) error {
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err // the outer one repeats method and URL
	}
	f := &failure{}
	if refused, ok := errors.AsType[*failure](err); ok { // by a proxy
		refused.message = clean(c.address + ": " + refused.message)
		return refused
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == "dial" || op.Op == "proxyconnect") {
		f.unheard = true
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		f.noHost = dns.IsNotFound
	}
	cause := err.Error()
	if mended := c.certificateCause(err); mended != "" {
		cause, f.final, f.unheard = mended, true, true
	} else if errors.Is(err, context.DeadlineExceeded) && !f.unheard {
		cause = fmt.Sprintf("no answer within %s", waited.Round(100*time.Millisecond))
	} else if errors.Is(err, context.Canceled) {
		cause = "no answer before the time was up"
	} else if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		cause = "the connection was closed before the answer"
	}
	f.message = clean(c.address + c.through + ": " + cause)
	return f
}

// certificateCause returns what is wrong with the server's certificate, or
// with the scheme, and what to do; "" for any other error.
func (c *client) certificateCause(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok && c.ownAuthority {
		return "the server's certificate is not signed by the authority in " + c.names.ca + ": check that it is the right one, and that the locker's SSL_CERT has the certificates between the two"
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok && len(e.Certificate.DNSNames)+len(e.Certificate.IPAddresses) == 0 {
		return "the server's certificate has no names in it (subject alternative names): have it made with the name or the address that " + c.names.uri + " has"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the server's certificate is not signed by a known authority: set " + c.names.ca + " to that authority's certificate"
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the server's certificate is for another host: use a name in " + c.names.uri + " that it is made for: " + e.Error()
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the server's certificate is not valid: have it renewed: " + e.Err.Error()
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		return "the server speaks plain HTTP: write http:// in " + c.names.uri
	}
	return ""
}

// refused reads an answer that is not a 200.
func (c *client) refused(resp *http.Response, data []byte) error {
	var body Error
	if json.Unmarshal(data, &body) != nil {
		body = Error{}
	}
	sentence := clean(body.Error)
	if resp.StatusCode == http.StatusLocked && body.Lock != nil && body.Lock.Holders != nil {
		return &refusal{sentence: sentence, lock: *body.Lock, position: body.Position, ended: body.Ended}
	}
	stale := resp.StatusCode == http.StatusConflict && sentence != ""
	final := (resp.StatusCode < 500 || resp.StatusCode == http.StatusNotImplemented) && !stale && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestTimeout
	message := fmt.Sprintf("%s%s: %d %s", c.address, c.through, resp.StatusCode, http.StatusText(resp.StatusCode))
	unauthorized := resp.StatusCode == http.StatusUnauthorized // its mend is in the client's words
	if sentence != "" && !unauthorized {
		message += ": " + sentence
	}
	if final && (sentence == "" || unauthorized) {
		message += ": " + c.names.mend(resp)
	}
	f := &failure{message: message, final: final, stale: stale, unheard: final || stale, status: resp.StatusCode, worded: sentence != ""}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		f.pause = time.Duration(seconds) * time.Second
	}
	return f
}

// mend says what to do about an answer that trying again cannot change.
func (n sourceNames) mend(resp *http.Response) string {
	switch status := resp.StatusCode; {
	case status == http.StatusUnauthorized:
		return "set " + n.username + " and " + n.password + " to the locker's AUTH_USER and AUTH_PASS"
	case status == http.StatusForbidden:
		return "check that no proxy stands between, and that " + n.uri + " leads to a locker"
	case status == http.StatusProxyAuthRequired:
		return "the proxy wants credentials: put them into http_proxy or https_proxy, or set no_proxy"
	case status == http.StatusNotFound:
		return "there is no locker at this path of " + n.uri + ", or it is the locker of 2017: upgrade it first"
	case status >= 300 && status < 400:
		to := "elsewhere"
		if u, err := resp.Location(); err == nil {
			to = clean("to " + u.Scheme + "://" + u.Host)
		}
		return "it redirects " + to + ": set " + n.uri + " to where it leads"
	}
	return "check " + n.uri + ": it must be a locker's, with https:// if it speaks TLS"
}
