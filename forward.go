package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file decides where a request is answered when there are several lockers:
// here, when this one leads, or by the one that does.

const (
	forwardTime = 10 * time.Second // for a leader to be found
	readTime    = 2 * time.Second  // the same, for what changes nothing
	forwardNext = 50 * time.Millisecond
)

// answer has a request answered by the committer of this locker's term or by the
// leader. What was surely not done is tried again, since a leader may be about to
// be found; what may have been done never is.
func (n *node) answer(r *http.Request, body []byte, here func(c *committer) (reply, error)) (reply, error) {
	within := forwardTime
	if isRead(r) {
		within = readTime
	}
	for deadline := time.Now().Add(within); ; {
		if t := n.leading.Load(); t != nil {
			return n.answerHere(t, r, body, here)
		}
		if r.Header.Get("Locker-Forwarded") != "" {
			return reply{}, errStandby
		}
		rep, err := n.forward(r, body)
		if err == nil || !errors.Is(err, errNotDone) || time.Now().After(deadline) {
			n.metrics.forward(err)
			return rep, err
		}
		n.lookNow()
		select {
		case <-time.After(forwardNext):
		case <-r.Context().Done(): // what it wants by now is not known: a release of a moment ago may free what it holds then
			return reply{}, errGone
		case <-n.ctx.Done():
			return reply{}, errStopping
		}
	}
}

func isRead(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

// answerHere answers by this locker's own term. A read counts only if nobody else
// can have led yet when it was done.
func (n *node) answerHere(t *term, r *http.Request, body []byte, here func(c *committer) (reply, error)) (reply, error) {
	rep, err := here(t.committer)
	if err == nil && isRead(r) && !t.current() {
		return reply{}, errStale
	}
	if rep.giveBack != nil {
		rep.giveBack = n.undo(r, body, rep) // by a later term, should this one end before
	}
	return rep, err
}

// forward passes a request on. An error that wraps errNotDone says that it was
// surely not done.
func (n *node) forward(r *http.Request, body []byte) (reply, error) {
	p := n.leader.Load()
	if p == nil {
		return reply{}, noLeader{*n.vacancy.Load()}
	}
	rep, err := p.send(r, body)
	switch {
	case errors.Is(err, errNotDone):
		return reply{}, noLeader{err}
	case err != nil && r.Context().Err() != nil:
		return reply{}, errGone
	case err != nil:
		return reply{}, errLost
	}
	if rep.status == http.StatusOK && r.Method == http.MethodPut {
		rep.giveBack = n.undo(r, body, rep)
	}
	if conn, _ := r.Context().Value(connKey{}).(net.Conn); rep.giveBack != nil && conn != nil && closedByPeer(conn) {
		rep.giveBack()
		return reply{}, errGone
	}
	return rep, nil
}

// undo returns what gives a grant back that did not reach its asker, who has no id
// and so cannot ask for it again, whoever leads by then; nil: there is nothing to be
// given back. A locker that stops does it in what is left of its own term.
func (n *node) undo(r *http.Request, body []byte, rep reply) func() {
	asked, _, err := decodeTake(body)
	var granted resource.Answer
	if err != nil || asked.ID != "" || json.Unmarshal(bytes.Join(rep.body, nil), &granted) != nil || granted.Token == 0 {
		return nil
	}
	h := hold{token: granted.Token}
	h.lock, _ = lockName(r)
	req := r.Clone(context.WithoutCancel(r.Context()))
	req.Method = http.MethodDelete
	req.Header.Set(undoHeader, strconv.FormatUint(h.token, 10))
	release := encode(resource.Release{Key: asked.Key, LockedBy: asked.LockedBy})
	here := rep.giveBack
	return func() {
		for deadline := time.Now().Add(forwardTime); n.ctx.Err() == nil && time.Now().Before(deadline); time.Sleep(forwardNext) {
			rep, err := n.answer(req, release, func(c *committer) (reply, error) { return undo(c, h) })
			if err == nil && rep.status == http.StatusOK {
				return
			}
		}
		if here != nil {
			here()
		}
	}
}

// undone returns the hold that a request is to undo; zero: none.
func undone(r *http.Request, lock string) hold {
	token, err := strconv.ParseUint(r.Header.Get(undoHeader), 10, 64)
	if err != nil || r.Header.Get("Locker-Forwarded") == "" {
		return hold{}
	}
	return hold{lock, token}
}

// undo gives a hold back whose grant was not told to its asker.
func undo(c *committer, h hold) (reply, error) {
	got := c.do(&request{lock: h.lock, frees: true, ctx: context.Background(), apply: func(d *draft) outcome {
		d.giveBack(h.lock, h.token)
		return outcome{verdict: released}
	}})
	return reply{status: http.StatusOK, body: [][]byte{[]byte("{}")}}, got.err
}
