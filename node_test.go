package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// runNode has a node lead on a gateway that has a state without locks.
func runNode(t *testing.T, g *gateway) (n *node, ended <-chan error) {
	t.Helper()
	g.set(prefix.state(), `{"version":2,"revision":1}`, 0)
	n = newNode(&etcdConfig{endpoints: []string{g.url}, keys: prefix, advertise: "http://locker.example"}, nil, newMetrics(), quiet(), time.Now)
	done := make(chan error, 1)
	go func() { done <- n.run() }()
	t.Cleanup(n.close)
	return n, done
}

func (n *node) awaitTerm(t *testing.T, after *term) *term {
	t.Helper()
	lockertest.Eventually(t, "it leads", func() bool { now := n.leading.Load(); return now != nil && now != after })
	return n.leading.Load()
}

// takeL takes the lock l for a claim without an id.
func takeL(c *committer) (reply, error) {
	who := claim{identity: identity{Key: "k", LockedBy: "a"}}
	return ask(c, &request{lock: "l", ctx: context.Background(), apply: func(d *draft) outcome { return d.take("l", who, false) }}, who.identity)
}

// TestUndeliveredOverATerm ends the term in which a grant that did not arrive is given
// back: the next term does it.
func TestUndeliveredOverATerm(t *testing.T) {
	g := newGateway(t)
	n, _ := runNode(t, g)
	first := n.awaitTerm(t, nil)
	rep, err := n.answer(httptest.NewRequest("PUT", "/lock/l", nil), []byte(`{"key": "k", "locked_by": "a"}`), takeL)
	if err != nil || rep.giveBack == nil {
		t.Fatalf("%+v, %v", rep, err)
	}
	g.plan("cut", "code 3 etcdserver: request is too large")
	rep.giveBack()
	if l := n.awaitTerm(t, first).state().look("l"); len(l.Holders) > 0 {
		t.Errorf("the hold stays: %+v", l.Holders)
	}
}

// TestStopWithASaveInFlight stops a leader while etcd takes its time: the client is
// told what became of its request.
func TestStopWithASaveInFlight(t *testing.T) {
	g := newGateway(t)
	n, ended := runNode(t, g)
	c := n.awaitTerm(t, nil).committer
	g.plan("slow")
	answered := make(chan error, 1)
	go func() {
		rep, err := takeL(c)
		if err == nil && rep.status != http.StatusOK {
			err = errors.New(http.StatusText(rep.status))
		}
		answered <- err
	}()
	lockertest.Eventually(t, "the save is sent", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.played) == 1 })
	n.drain()
	if err := <-answered; err != nil {
		t.Error(err)
	}
	n.close()
	if err := <-ended; err != nil || !strings.Contains(g.get(prefix.lock("l")), `"locked_by":"a"`) {
		t.Errorf("%v; etcd has %s", err, g.get(prefix.lock("l")))
	}
}

// TestStopWhileTakingOver stops a locker before anyone is served, while etcd answers
// nothing: it does not try for as long as a leader would.
func TestStopWhileTakingOver(t *testing.T) {
	g := newGateway(t)
	g.plan(slices.Repeat([]string{"cut"}, 1000)...)
	n, ended := runNode(t, g)
	lockertest.Eventually(t, "the first save is tried", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.played) > 3 })
	start := time.Now()
	n.close()
	<-ended
	if took := time.Since(start); took > saveTime/2 {
		t.Errorf("it took %v to stop", took)
	}
}
