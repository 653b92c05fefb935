package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file is the HTTP API. A request's way: ServeHTTP finds its route and
// reads it to its end, the route's handler makes it a request to the committer
// (decode.go reads what it says), answer.go puts the outcome into words,
// ServeHTTP writes them.

const (
	maxBody     = 64 << 10
	listPause   = 100 * time.Millisecond // between answers to those who follow the list: at once, for people
	refusedTime = time.Second            // for a body, when the credentials are wrong
	bodyTime    = 10 * time.Second       // for a body to arrive, after its header
	sendTime    = 30 * time.Second       // for an answer to be taken, so that a list of 20,000 claims gets through slow links
)

// api serves every path of the locker. It is safe for concurrent use.
type api struct {
	credentials *credentials // nil: everyone may
	localOnly   bool         // only this machine's names are answered
	certificate *certificate // nil: plain HTTP
	metrics     *metrics
	outsiders   *outsiders
	wall        func() time.Time
	crossOrigin http.CrossOriginProtection
	build       string
	policy      string                    // of the page
	crowded     atomic.Bool               // a client waits until another connection is closed
	serving     sync.RWMutex              // held for reading by each request, so that the end can wait for all
	committer   atomic.Pointer[committer] // that decides, when this is the only locker
	node        *node                     // nil: this is the only locker
	routes      []route
}

// route is what one kind of request is for.
type route struct {
	method, path string
	operation    string // in the metrics
	local        bool   // answered by each of several lockers itself
	handle       handler
}

// handler answers a request whose body has been read to its end: only then is
// a lost connection noticed while it waits.
// c is the committer of the term in which it is answered.
type handler func(c *committer, r *http.Request, body []byte) (reply, error)

const lockPath = "/lock/NAME"

func newAPI(cfg *config, m *metrics, log *slog.Logger, wall func() time.Time) *api {
	a := &api{credentials: cfg.credentials, localOnly: cfg.localOnly, certificate: cfg.certificate, metrics: m, outsiders: &outsiders{log: log}, wall: wall, build: buildVersion(), policy: pagePolicy()}
	// Not http.ServeMux: it redirects //x, and takes the name out of
	// /lock/a%2Fgrün wrongly.
	a.routes = []route{
		{"GET", "/", "page", true, a.page},
		{"GET", "/health", "health", true, a.health},
		{"GET", "/metrics", "metrics", true, a.scrape},
		{"GET", "/locks", "list", false, a.list},
		{"GET", "/events", "events", false, a.events},
		{"GET", lockPath, "show", false, a.show},
		{"PUT", lockPath, "take", false, a.take},
		{"DELETE", lockPath, "release", false, a.release},
		{"DELETE", lockPath + "?force=true", "force", false, a.force},
	}
	return a
}

// begin has c decide from now on.
func (a *api) begin(c *committer) { a.committer.Store(c) }

// decider returns the committer that decides here; nil: another locker leads.
func (a *api) decider() *committer {
	if a.node != nil {
		return a.node.committer()
	}
	return a.committer.Load()
}

// decide has a request answered, here or by the locker that leads.
func (a *api) decide(rt route, r *http.Request, body []byte) (reply, error) {
	if a.node == nil || rt.local {
		return rt.handle(a.decider(), r, body)
	}
	return a.node.answer(r, body, func(c *committer) (reply, error) { return rt.handle(c, r, body) })
}

// find returns the route of a request. An error comes with the operation
// "other".
func (a *api) find(r *http.Request) (route, error) {
	method, path, allowed := r.Method, pathOf(r), []string(nil)
	if method == "HEAD" {
		method = "GET"
	}
	if name, ok := strings.CutPrefix(path, "/lock/"); ok && !strings.Contains(name, "/") {
		path = lockPath
	}
	if method == "DELETE" && path == lockPath && isForce(r) {
		path += "?force=true"
	}
	for _, rt := range a.routes {
		if rt.path == path && rt.method == method {
			return rt, nil
		}
		if rt.path == path {
			allowed = append(allowed, rt.method)
		}
	}
	if allowed != nil {
		return route{operation: "other"}, badMethod(strings.Join(slices.Sorted(slices.Values(allowed)), ", "))
	}
	if strings.HasPrefix(path, "/lock/") {
		return route{operation: "other"}, errSlash
	}
	return route{operation: "other"}, errNoPath
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.serving.RLock()
	defer a.serving.RUnlock()
	rt, err := a.find(r)
	rep, err := a.serve(w, r, rt, err)
	if err == nil && rep.giveBack != nil && r.Context().Err() != nil {
		err = errGone
	}
	verdict, giveBack := rep.verdict, rep.giveBack
	if err != nil {
		rep = errorReply(err)
	}
	if errors.Is(err, errCredentials) && strings.Contains(r.Header.Get("Accept"), "text/html") {
		rep = forPeople(rep)
	}
	if ambiguous(r) || a.crowded.Load() {
		w.Header().Set("Connection", "close")
	}
	a.metrics.request(rt.operation, cmp.Or(string(verdict), strconv.Itoa(rep.status)))
	if err := errors.Join(err, write(w, r, rep)); err != nil && giveBack != nil {
		giveBack()
	}
}

// ambiguous reports whether a proxy may see the end of r elsewhere: its body was
// in chunks and it may have had a length too, or it is of HTTP/1.0 and may have
// had chunks. net/http does not say. What follows on the connection must not be
// taken for a request of its own (RFC 9112 sections 6.1 and 11.2).
func ambiguous(r *http.Request) bool {
	return len(r.TransferEncoding) > 0 || !r.ProtoAtLeast(1, 1)
}

// wait returns when the requests that are being served have ended.
func (a *api) wait() {
	a.serving.Lock()
	defer a.serving.Unlock()
}

// serve checks the credentials and the origin, reads the body and has it handled, if
// its route was found.
func (a *api) serve(w http.ResponseWriter, r *http.Request, rt route, notFound error) (reply, error) {
	stream := http.NewResponseController(w)
	stream.SetReadDeadline(time.Now().Add(bodyTime))
	if pathOf(r) != "/health" && !a.credentials.allow(r) {
		stream.SetReadDeadline(time.Now().Add(refusedTime)) // for what net/http still reads of the body
		a.outsiders.refused(r.Header.Get("Authorization") != "", r.RemoteAddr, r.Method, pathOf(r))
		return reply{}, errCredentials
	}
	if a.localOnly && !isLocal(r.Host) {
		return reply{}, foreignHost(r.Host)
	}
	if err := a.crossOrigin.Check(r); err != nil {
		return reply{}, crossOrigin{err}
	}
	if notFound != nil {
		return reply{}, notFound
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return reply{}, badRequest{fmt.Errorf("read body: %w", err)}
	}
	stream.SetReadDeadline(time.Time{})
	return a.decide(rt, r, body)
}

// Values of headers that every answer has.
var noStore, noSniff = []string{"no-store"}, []string{"nosniff"}

// write sends a reply. An error says that it did not get as far as the kernel.
func write(w http.ResponseWriter, r *http.Request, rep reply) error {
	stream := http.NewResponseController(w)
	stream.SetWriteDeadline(time.Now().Add(sendTime))
	header := w.Header()
	header["Cache-Control"], header["X-Content-Type-Options"] = noStore, noSniff
	for name, value := range rep.header {
		header.Set(name, value)
	}
	if rep.body != nil {
		length := 1
		for _, piece := range rep.body {
			length += len(piece)
		}
		header.Set("Content-Type", cmp.Or(rep.contentType, "application/json"))
		header.Set("Content-Length", strconv.Itoa(length))
		if conn := limitedOf(connOf(r.Context())); conn != nil && r.Method != http.MethodHead {
			conn.owe(length)
		}
	}
	w.WriteHeader(rep.status)
	for _, piece := range rep.body {
		if _, err := w.Write(piece); err != nil {
			return err
		}
	}
	if rep.body != nil {
		io.WriteString(w, "\n")
	}
	return stream.Flush()
}

func (a *api) page(_ *committer, r *http.Request, _ []byte) (reply, error) {
	if _, err := parseQuery(r, "q", "show"); err != nil { // its script reads them
		return reply{}, badRequest{err}
	}
	return reply{
		status: http.StatusOK, contentType: "text/html; charset=utf-8", header: map[string]string{"Content-Security-Policy": a.policy},
		body: [][]byte{bytes.TrimSuffix(page, []byte("\n"))}, // write adds it
	}, nil
}

func (a *api) health(c *committer, _ *http.Request, _ []byte) (reply, error) {
	status, health := http.StatusOK, map[string]any{"status": "ok", "version": a.build}
	if a.node != nil {
		leader, since, problem := a.node.health()
		if problem != nil {
			health["status"], health["error"] = "no leader", problem.Error()
			return reply{status: http.StatusServiceUnavailable, body: [][]byte{encode(health)}}, nil
		}
		health["leader"], health["leader_since"] = leader, inSeconds(since)
	}
	if c == nil {
		health["status"] = "standby"
		return reply{status: status, body: [][]byte{encode(health)}}, nil
	}
	health["revision"] = c.state().revision
	select {
	case <-c.stopping():
		status, health["status"] = http.StatusServiceUnavailable, "stopping"
	default:
		if t := c.failing(); t != nil {
			status, health["status"] = http.StatusServiceUnavailable, "failing"
			health["since"], health["error"] = inSeconds(t.since), cause(t.err)
		}
	}
	return reply{status: status, body: [][]byte{encode(health)}}, nil
}

// scrape answers with the metrics.
func (a *api) scrape(c *committer, r *http.Request, _ []byte) (reply, error) {
	if _, err := parseQuery(r); err != nil {
		return reply{}, badRequest{err}
	}
	var s *state
	if c != nil {
		s = c.state().state
	}
	text := exposed(a.build, s, a.metrics, a.certificate, a.wall())
	return reply{status: http.StatusOK, contentType: metricsType, body: [][]byte{bytes.TrimSuffix(text, []byte("\n"))}}, nil
}

// events answers with what happened lately.
func (a *api) events(c *committer, r *http.Request, _ []byte) (reply, error) {
	query, err := parseQuery(r, "lock")
	if err == nil && query.Has("lock") {
		err = resource.CheckLockName("lock", query.Get("lock"))
	}
	if err != nil {
		return reply{}, badRequest{err}
	}
	return reply{status: http.StatusOK, body: [][]byte{encode(c.recent.shown(query.Get("lock")))}}, nil
}

// list answers with all locks. When the client has them as they are
// (If-None-Match, RFC 9110 section 13.1.2) it waits for a change if asked to,
// and until the next tenth of a second for what else may change.
func (a *api) list(c *committer, r *http.Request, _ []byte) (reply, error) {
	wait, err := listWait(r)
	if err != nil {
		return reply{}, badRequest{err}
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	s := c.state()
	has := r.Header.Values("If-None-Match")
	for hasRevision(has, s.revision) {
		select {
		case <-s.replaced:
			s = c.state()
			continue
		case <-c.stopping():
			return reply{}, errStopping
		case <-ctx.Done():
			return reply{status: http.StatusNotModified, header: etagged(s.revision)}, nil
		}
	}
	if wait > 0 && len(has) > 0 {
		pause(ctx, c)
		s = c.state()
	}
	return reply{status: http.StatusOK, header: etagged(s.revision), body: s.shown()}, nil
}

// pause waits for the next whole tenth of a second, so that all who follow the
// list are told of the same state, at most ten times a second.
func pause(ctx context.Context, c *committer) {
	now := time.Now()
	timer := time.NewTimer(now.Truncate(listPause).Add(listPause).Sub(now))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.stopping():
	case <-ctx.Done():
	}
}

func etagged(revision uint64) map[string]string { return map[string]string{"ETag": etag(revision)} }

func (a *api) show(c *committer, r *http.Request, _ []byte) (reply, error) {
	name, nameErr := lockName(r)
	withTicket, allWaiters, queryErr := showQuery(r)
	if err := errors.Join(nameErr, queryErr); err != nil {
		return reply{}, badRequest{err}
	}
	l := c.state().look(name)
	rep := reply{status: http.StatusOK, header: etagged(l.Revision), body: [][]byte{l.shown()}}
	if allWaiters {
		rep.body = [][]byte{l.listed()[len(encode(name))+1:]}
	}
	if withTicket {
		t, err := c.ticket(r.Context())
		if err != nil {
			return reply{}, err
		}
		rep.header["Locker-Ticket"] = t.String()
	}
	return rep, nil
}

func (a *api) take(c *committer, r *http.Request, body []byte) (reply, error) {
	name, nameErr := lockName(r)
	_, queryErr := parseQuery(r)
	newErr := resource.CheckNewLockName("the lock's name", name)
	asked, wait, bodyErr := decodeTake(body)
	if err := errors.Join(nameErr, newErr, queryErr, bodyErr, noIfMatch(r)); err != nil {
		return reply{}, badRequest{err}
	}
	req := &request{lock: name, asker: asked.identity, ctx: r.Context(), apply: func(d *draft) outcome { return d.take(name, asked, wait > 0) }}
	if wait > 0 {
		req.until = time.Now().Add(wait)
		req.conn = connOf(r.Context())
	}
	return ask(c, req, asked.identity)
}

func (a *api) release(c *committer, r *http.Request, body []byte) (reply, error) {
	name, nameErr := lockName(r)
	back, bodyErr := decodeRelease(body)
	if err := errors.Join(nameErr, notForced(r), bodyErr, noIfMatch(r)); err != nil {
		return reply{}, badRequest{err}
	}
	if h := undone(r, name); h != (hold{}) {
		return undo(c, h)
	}
	return ask(c, &request{lock: name, frees: true, ctx: context.WithoutCancel(r.Context()), apply: func(d *draft) outcome {
		return d.release(name, back)
	}}, back.identity)
}

func (a *api) force(c *committer, r *http.Request, body []byte) (reply, error) {
	name, nameErr := lockName(r)
	_, queryErr := parseQuery(r, "force")
	f, bodyErr := resource.DecodeForce(body)
	ifMatch, matchErr := revisionOf(r.Header.Values("If-Match"))
	if err := errors.Join(nameErr, queryErr, bodyErr, matchErr); err != nil {
		return reply{}, badRequest{err}
	}
	by, _, ok := r.BasicAuth()
	if !ok || a.credentials == nil {
		by = r.RemoteAddr
		if from := r.Header.Get("Locker-Forwarded"); from != "" {
			by = short(from, 50) + " by way of " + by
		}
	}
	return ask(c, &request{lock: name, frees: true, ctx: context.WithoutCancel(r.Context()), apply: func(d *draft) outcome {
		return d.force(name, force{f.LockedBy, ifMatch, by, f.By, f.Reason})
	}}, identity{LockedBy: f.LockedBy})
}

// ask has a request done and puts the outcome into words.
func ask(c *committer, req *request, asker identity) (reply, error) {
	start := time.Now()
	got := c.do(req)
	if got.err != nil {
		return reply{}, got.err
	}
	if !req.until.IsZero() {
		got.waited = time.Since(start)
	}
	asker.LockedBy = cmp.Or(asker.LockedBy, got.name, asker.Key)
	rep := got.reply(asker)
	rep.verdict = got.verdict
	if got.verdict == granted && asker.ID == "" {
		rep.giveBack = func() { c.giveBack(hold{req.lock, got.token}) }
	}
	return rep, nil
}
