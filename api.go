package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file is the HTTP API. A request's way: ServeHTTP reads it to its end, a
// handler makes it a request to the committer (decode.go reads what it says),
// answer.go puts the outcome into words, ServeHTTP writes them.

const (
	maxBody     = 64 << 10
	maxWait     = 60 * time.Second
	listPause   = 100 * time.Millisecond // between answers to who follows the list: at once, for people
	refusedTime = time.Second            // for a body, when the credentials are wrong
	bodyTime    = 10 * time.Second       // for a body to arrive, after its header
	sendTime    = 30 * time.Second       // for an answer to be taken, so that a list of 20,000 claims gets through slow links
)

// api serves every path of the locker.
type api struct {
	committer   *committer
	log         *slog.Logger
	credentials *credentials // nil: everyone may
	crossOrigin http.CrossOriginProtection
	build       string
	policy      string       // of the page
	crowded     atomic.Bool  // a client waits until another connection is closed
	serving     sync.RWMutex // held for reading by each request, so that the end can wait for all
	routes      map[string]map[string]handler
}

func newAPI(c *committer, who *credentials, log *slog.Logger) *api {
	a := &api{committer: c, log: log, credentials: who, build: buildVersion(), policy: pagePolicy()}
	a.routes = map[string]map[string]handler{
		"/":        {"GET": a.page},
		"/health":  {"GET": a.health},
		"/metrics": {"GET": a.measures},
		"/locks":   {"GET": a.list},
		"/lock/":   {"GET": a.show, "PUT": a.take, "DELETE": a.release}, // and a name
	}
	return a
}

// handler answers a request whose body has been read to its end: only then is
// a lost connection noticed while it waits.
type handler func(r *http.Request, body []byte) (reply, error)

type reply struct {
	status      int
	body        [][]byte // in pieces, without the newline at the end; nil is none
	contentType string   // JSON when empty
	policy      string   // Content-Security-Policy
	etag        string
	verdict     verdict // what the rules decided; empty when they were not asked
	granted     hold    // to be given back if the answer does not reach the asker; zero: nothing
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.serving.RLock()
	defer a.serving.RUnlock()
	rep, err := a.serve(w, r)
	if rep.granted != (hold{}) && r.Context().Err() != nil {
		a.committer.giveBack(rep.granted)
		rep, err = reply{}, errGone
	}
	verdict := rep.verdict
	if err != nil {
		rep = errorReply(w.Header(), err)
	}
	if ambiguous(r) || a.crowded.Load() {
		w.Header().Set("Connection", "close")
	}
	a.committer.metrics.request(operation(r), cmp.Or(string(verdict), strconv.Itoa(rep.status)))
	if err := write(w, rep); err != nil && rep.granted != (hold{}) {
		a.committer.giveBack(rep.granted)
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

func (a *api) serve(w http.ResponseWriter, r *http.Request) (reply, error) {
	stream := http.NewResponseController(w)
	stream.SetReadDeadline(time.Now().Add(bodyTime))
	if pathOf(r) != "/health" && !a.credentials.allow(r) {
		stream.SetReadDeadline(time.Now().Add(refusedTime)) // for what net/http still reads of the body
		a.log.Warn("credentials refused", "address", r.RemoteAddr, "method", r.Method, "path", r.URL.Path)
		return reply{}, &failure{status: http.StatusUnauthorized, message: "credentials are missing or wrong: send the locker's AUTH_USER and AUTH_PASS by basic authentication"}
	}
	if err := a.crossOrigin.Check(r); err != nil {
		return reply{}, &failure{status: http.StatusForbidden, message: "a page of another site must not change locks: " + err.Error()}
	}
	handle, err := a.route(r)
	if err != nil {
		return reply{}, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return reply{}, bodyFailure(err)
	}
	stream.SetReadDeadline(time.Time{})
	return handle(r, body)
}

func (a *api) route(r *http.Request) (handler, error) {
	methods, ok := a.routes[resourceOf(r)]
	if !ok {
		return nil, &failure{status: http.StatusNotFound, message: "there is nothing at this path: locks are at /locks and /lock/NAME, a slash in a name is %2F"}
	}
	method := r.Method
	if method == "HEAD" {
		method = "GET"
	}
	handle, ok := methods[method]
	if !ok {
		allow := slices.Sorted(maps.Keys(methods))
		return nil, &failure{status: http.StatusMethodNotAllowed, message: "this path takes " + strings.Join(allow, ", "), allow: strings.Join(append(allow, "HEAD"), ", ")}
	}
	return handle, nil
}

// resourceOf returns the path, or "/lock/" if it is that of any lock.
func resourceOf(r *http.Request) string {
	path := pathOf(r)
	if name, ok := strings.CutPrefix(path, "/lock/"); ok && !strings.Contains(name, "/") {
		return "/lock/"
	}
	return path
}

// pathOf returns the path as it was sent. EscapedPath is not: of /lock/a%2Fgrün
// it makes /lock/a/gr%C3%BCn, which is another one.
func pathOf(r *http.Request) string { return cmp.Or(r.URL.RawPath, r.URL.EscapedPath()) }

func bodyFailure(err error) error {
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return &failure{status: http.StatusRequestEntityTooLarge, message: "the body has more than 64 KiB"}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &failure{status: http.StatusRequestTimeout, message: "the body did not arrive within 10 s"}
	}
	return badRequest(fmt.Errorf("read body: %w", err))
}

// write sends a reply. An error says that it did not get as far as the kernel.
func write(w http.ResponseWriter, rep reply) error {
	stream := http.NewResponseController(w)
	stream.SetWriteDeadline(time.Now().Add(sendTime))
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	if rep.etag != "" {
		header.Set("ETag", rep.etag)
	}
	if rep.policy != "" {
		header.Set("Content-Security-Policy", rep.policy)
	}
	if rep.body != nil {
		length := 1
		for _, piece := range rep.body {
			length += len(piece)
		}
		header.Set("Content-Type", cmp.Or(rep.contentType, "application/json"))
		header.Set("Content-Length", strconv.Itoa(length))
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

func (a *api) health(*http.Request, []byte) (reply, error) {
	status, health := http.StatusOK, map[string]any{"status": "ok", "version": a.build, "revision": a.committer.state().revision}
	select {
	case <-a.committer.stopping:
		status, health["status"] = http.StatusServiceUnavailable, "stopping"
	default:
		if t := a.committer.failing.Load(); t != nil {
			status, health["status"] = http.StatusServiceUnavailable, "failing"
			health["since"], health["error"] = inSeconds(t.since), cause(t.err)
		}
	}
	return reply{status: status, body: [][]byte{encode(health)}}, nil
}

// cause returns what the system said, without the names of files.
func cause(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return "commits fail: " + errno.Error()
	}
	return "commits fail: see the locker's log"
}

// list answers with all locks. When the client has them as they are
// (If-None-Match, RFC 9110 section 13.1.2) it waits for a change if asked to,
// and until the next tenth of a second for what else may change.
func (a *api) list(r *http.Request, _ []byte) (reply, error) {
	query, err := parseQuery(r, "wait")
	if err != nil {
		return reply{}, badRequest(err)
	}
	var wait resource.Duration
	if query.Has("wait") {
		if err := wait.UnmarshalText([]byte(query.Get("wait"))); err != nil {
			return reply{}, badRequest(fmt.Errorf("wait: %w", err))
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), min(time.Duration(wait), maxWait))
	defer cancel()
	s := a.committer.state()
	has := r.Header.Values("If-None-Match")
	for hasRevision(has, s.revision) {
		select {
		case <-s.replaced:
			s = a.committer.state()
			continue
		case <-a.committer.stopping:
			return reply{}, errStopping
		case <-ctx.Done():
			return reply{status: http.StatusNotModified, etag: etag(s.revision)}, nil
		}
	}
	if wait > 0 && len(has) > 0 {
		a.pause(ctx)
		s = a.committer.state()
	}
	return reply{status: http.StatusOK, etag: etag(s.revision), body: s.shown()}, nil
}

// pause waits for the next whole tenth of a second, so that all who follow the
// list are told of the same state, at most ten times a second.
func (a *api) pause(ctx context.Context) {
	now := time.Now()
	timer := time.NewTimer(now.Truncate(listPause).Add(listPause).Sub(now))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-a.committer.stopping:
	case <-ctx.Done():
	}
}

func (a *api) show(r *http.Request, _ []byte) (reply, error) {
	name, err := lockName(r)
	if err != nil {
		return reply{}, badRequest(err)
	}
	if _, err := parseQuery(r); err != nil {
		return reply{}, badRequest(err)
	}
	l := a.committer.state().look(name)
	return reply{status: http.StatusOK, etag: etag(l.Revision), body: [][]byte{l.shown()}}, nil
}

func (a *api) take(r *http.Request, body []byte) (reply, error) {
	name, err := lockName(r)
	if err != nil {
		return reply{}, badRequest(err)
	}
	if _, err := parseQuery(r); err != nil {
		return reply{}, badRequest(err)
	}
	c, wait, err := decodeTake(body)
	if err := errors.Join(err, noIfMatch(r)); err != nil {
		return reply{}, badRequest(err)
	}
	req := &request{lock: name, ctx: r.Context(), apply: func(d *draft) outcome { return d.take(name, c, wait > 0) }}
	if wait > 0 {
		req.until = time.Now().Add(wait)
	}
	return a.ask(req, c.identity)
}

func (a *api) release(r *http.Request, body []byte) (reply, error) {
	name, err := lockName(r)
	if err != nil {
		return reply{}, badRequest(err)
	}
	query, err := parseQuery(r, "force")
	if err != nil {
		return reply{}, badRequest(err)
	}
	switch force := query.Get("force"); {
	case force == "true":
		return a.force(r, name, body)
	case query.Has("force") && force != "false":
		return reply{}, badRequest(fmt.Errorf("force is %q: it must be true or false", force))
	}
	who, own, err := decodeRelease(body)
	if err := errors.Join(err, noIfMatch(r)); err != nil {
		return reply{}, badRequest(err)
	}
	return a.ask(&request{lock: name, frees: true, ctx: context.WithoutCancel(r.Context()), apply: func(d *draft) outcome {
		return d.release(name, who, own)
	}}, who)
}

func (a *api) force(r *http.Request, name string, body []byte) (reply, error) {
	f, err := resource.DecodeForce(body)
	if err != nil {
		return reply{}, badRequest(err)
	}
	ifMatch, err := revisionOf(r.Header.Values("If-Match"))
	if err != nil {
		return reply{}, badRequest(err)
	}
	by, _, ok := r.BasicAuth()
	if !ok || a.credentials == nil {
		by = r.RemoteAddr
	}
	return a.ask(&request{lock: name, frees: true, ctx: context.WithoutCancel(r.Context()), apply: func(d *draft) outcome {
		return d.force(name, f.LockedBy, ifMatch, by, f.Reason)
	}}, identity{LockedBy: f.LockedBy})
}

// ask has a request done and puts the outcome into words.
func (a *api) ask(req *request, who identity) (reply, error) {
	got := a.committer.do(req)
	if got.err != nil {
		return reply{}, got.err
	}
	rep, err := got.reply(who)
	rep.verdict = got.verdict
	if got.verdict == granted && who.ID == "" {
		rep.granted = hold{req.lock, got.token}
	}
	return rep, err
}
