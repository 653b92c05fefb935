package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"
)

// This file is how a locker that does not lead passes a request on to the one that
// does, and what it knows of the request when no answer comes back.

const (
	peerDial   = time.Second
	peerAnswer = maxWait + 20*time.Second // until the header of an answer
	peerIdle   = 90 * time.Second         // half of what a locker keeps idle connections
	leaveTime  = 5 * time.Second          // for the answer to a client that has gone
	watchPause = time.Second              // between looks at a client that waits
	peerConns  = 256                      // that are kept for the next requests
)

// undoHeader has a release that is passed on free the hold of a token and nothing
// else, so that it can be repeated: who holds the lock under that name by now may be
// somebody else.
const undoHeader = "Locker-Undo"

// forwarded are the headers of a request that count.
var forwarded = []string{"Authorization", "If-Match", "If-None-Match", undoHeader}

// answered are the headers of an answer that count; write makes the others.
var answered = []string{"ETag", "Retry-After", "Locker-Ticket", "Allow", "Www-Authenticate"}

// record is what a leader writes about itself.
type record struct {
	URL  string `json:"url"`
	Cert string `json:"cert,omitempty"` // the SHA-256 of the certificate that it serves
}

// peer is a locker that leads, as its record describes it. It is safe for
// concurrent use.
type peer struct {
	record
	since         time.Time // it was seen first
	term, written int64     // revisions of the record: its creation, and its last change
	ctx           context.Context
	over          func() // cuts what was sent, when the term has ended
	transport     *http.Transport
}

// newPeer returns the peer of a record that was found at that time. What was sent in the same term goes on.
func newPeer(found keyValue, old *peer, now time.Time) *peer {
	p := &peer{since: now, term: found.CreateRevision, written: found.ModRevision}
	json.Unmarshal(found.Value, &p.record) // what is not a record is a leader that nobody reaches
	if old != nil && old.term == p.term {
		p.ctx, p.over, p.since = old.ctx, old.over, old.since
	} else {
		p.ctx, p.over = context.WithCancel(context.Background())
	}
	var http1 http.Protocols
	http1.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: peerDial, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeTime, Interval: probeTime, Count: probes}}
	p.transport = &http.Transport{
		Protocols: &http1, DialContext: dialer.DialContext, TLSClientConfig: pinned(p.Cert), TLSHandshakeTimeout: 2 * peerDial,
		MaxIdleConnsPerHost: peerConns, IdleConnTimeout: peerIdle, ResponseHeaderTimeout: peerAnswer, DisableCompression: true,
	}
	return p
}

// pinned trusts one certificate, whatever its names: BOSH gives all instances of
// a job the same.
func pinned(cert string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection does
		VerifyConnection: func(cs tls.ConnectionState) error {
			if got := fingerprint(cs.PeerCertificates[0].Raw); got != cert {
				return fmt.Errorf("the leader shows a certificate with the SHA-256 %s, and its record has %s", got, cert)
			}
			return nil
		},
	}
}

// send passes on a request and returns the answer to it. An error that wraps
// errNotDone says that it was surely not done; after any other, nobody knows.
func (p *peer) send(r *http.Request, body []byte) (reply, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	l := &line{cancel: cancel}
	defer context.AfterFunc(r.Context(), l.leave)()
	if conn, _ := r.Context().Value(connKey{}).(net.Conn); conn != nil && r.Method == http.MethodPut {
		go watchClient(ctx, conn, l.leave)
	}
	req, err := p.request(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: l.got}), r, body)
	if err != nil {
		return reply{}, fmt.Errorf("%w: %w", errNotDone, err)
	}
	resp, err := p.transport.RoundTrip(req)
	if err != nil && l.conn.Load() == nil {
		return reply{}, fmt.Errorf("%w: %w", errNotDone, err)
	}
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if resp.Header.Get("Locker-Standby") != "" {
		return reply{}, fmt.Errorf("%w: %s does not lead", errNotDone, p.URL)
	}
	if err != nil {
		return reply{}, err
	}
	return replyOf(resp, data), nil
}

// line is the connection on which a request is passed on.
type line struct {
	conn   atomic.Pointer[net.Conn] // nil: nothing was sent
	left   atomic.Bool
	cancel func()
}

func (l *line) got(info httptrace.GotConnInfo) {
	l.conn.Store(&info.Conn)
	if l.left.Load() {
		l.hangUp()
	}
}

// leave lets the leader notice that the client has gone. Its answer is read all
// the same, if it comes: a grant in it must not be lost.
func (l *line) leave() {
	l.left.Store(true)
	time.AfterFunc(leaveTime, l.cancel)
	l.hangUp()
}

// hangUp closes the connection's one direction.
func (l *line) hangUp() {
	conn := l.conn.Load()
	if conn == nil {
		return
	}
	if half, ok := (*conn).(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

func (p *peer) request(ctx context.Context, r *http.Request, body []byte) (*http.Request, error) {
	target, err := url.Parse(p.URL)
	if err != nil {
		return nil, err
	}
	target.Opaque, target.RawQuery = pathOf(r), r.URL.RawQuery // as they came
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, p.URL, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.URL = target
	for _, name := range forwarded {
		if values := r.Header.Values(name); len(values) > 0 {
			req.Header[name] = values
		}
	}
	req.Header.Set("Locker-Forwarded", r.RemoteAddr)
	return req, nil
}

// replyOf makes a leader's answer one of this locker's.
func replyOf(resp *http.Response, data []byte) reply {
	rep := reply{status: resp.StatusCode, header: map[string]string{}, contentType: resp.Header.Get("Content-Type"), verdict: passedOn}
	for _, name := range answered {
		if value := resp.Header.Get(name); value != "" {
			rep.header[name] = value
		}
	}
	if len(data) > 0 {
		rep.body = [][]byte{bytes.TrimSuffix(data, []byte("\n"))} // write adds it
	}
	return rep
}

// watchClient calls gone when a client has closed its connection, also when bytes that
// it sent ahead hide that from net/http.
func watchClient(ctx context.Context, conn net.Conn, gone func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPause):
		}
		if closedByPeer(conn) {
			gone()
			return
		}
	}
}
