package test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// etcdNet is a bad network between a locker and an etcd.
type etcdNet struct {
	URL string

	mu   sync.Mutex
	rule func(path string) fate // nil: all passes
	open chan struct{}          // closed when what is held may go
}

// fate is what becomes of a request to etcd.
type fate string

const (
	passes fate = ""
	hangs  fate = "hangs" // until open, and then lost
	lost   fate = "lost"  // done, without an answer
	cut    fate = "cut"   // not done, without an answer
	slow   fate = "slow"
	twice  fate = "twice" // done, and done again half a second later
)

func newEtcdNet(t testing.TB, to string) *etcdNet {
	n := &etcdNet{open: make(chan struct{})}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.serve(w, r, to) }))
	n.URL = server.URL
	t.Cleanup(func() {
		n.set(nil)
		server.CloseClientConnections()
		server.Close()
	})
	return n
}

// set has the rule count from now on. What was held is lost.
func (n *etcdNet) set(rule func(path string) fate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rule = rule
	close(n.open)
	n.open = make(chan struct{})
}

func (n *etcdNet) serve(w http.ResponseWriter, r *http.Request, to string) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	n.mu.Lock()
	rule, open := n.rule, n.open
	n.mu.Unlock()
	f := passes
	if rule != nil {
		f = rule(r.URL.Path)
	}
	switch f {
	case hangs:
		select {
		case <-open:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case cut:
		panic(http.ErrAbortHandler)
	case slow:
		time.Sleep(300 * time.Millisecond)
	case twice:
		time.AfterFunc(500*time.Millisecond, func() { pass(to+r.URL.Path, r.Header, body) })
	}
	resp, answer, err := pass(to+r.URL.Path, r.Header, body)
	if err != nil || f == lost {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	w.Write(answer)
}

func pass(url string, header http.Header, body []byte) (*http.Response, []byte, error) {
	req, err := http.NewRequest("POST", url, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header = header.Clone()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp, answer, err
}

func isKeepalive(path string) bool { return strings.HasSuffix(path, "/lease/keepalive") }
