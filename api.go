package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file is the HTTP API. A request's way: ServeHTTP reads it to its end, a
// handler makes it a request to the committer, answer.go puts the outcome into
// words, ServeHTTP writes them.

const (
	maxBody  = 64 << 10
	maxLink  = 2_048
	maxWait  = 60 * time.Second
	bodyTime = 10 * time.Second // for a body to arrive, after its header
	sendTime = 30 * time.Second // for an answer to be taken, so that a list of 20,000 claims gets through slow links
)

// api serves every path of the locker.
type api struct {
	committer   *committer
	log         *slog.Logger
	credentials *credentials // nil: everyone may
	crossOrigin http.CrossOriginProtection
	build       string
	policy      string       // of the page
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
	if ambiguous(r) {
		w.Header().Set("Connection", "close")
	}
	rep, err := a.serve(w, r)
	if rep.granted != (hold{}) && r.Context().Err() != nil {
		a.committer.giveBack(rep.granted)
		rep, err = reply{}, errGone
	}
	verdict := rep.verdict
	if err != nil {
		rep = errorReply(w.Header(), err)
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
	path := pathOf(r)
	if name, ok := strings.CutPrefix(path, "/lock/"); ok && !strings.Contains(name, "/") {
		path = "/lock/"
	}
	methods, ok := a.routes[path]
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
		return reply{}, err
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

func (a *api) show(r *http.Request, _ []byte) (reply, error) {
	name, err := lockName(r)
	if err != nil {
		return reply{}, err
	}
	if _, err := parseQuery(r); err != nil {
		return reply{}, err
	}
	l := a.committer.state().look(name)
	return reply{status: http.StatusOK, etag: etag(l.Revision), body: [][]byte{l.shown()}}, nil
}

func (a *api) take(r *http.Request, body []byte) (reply, error) {
	name, err := lockName(r)
	if err != nil {
		return reply{}, err
	}
	if _, err := parseQuery(r); err != nil {
		return reply{}, err
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
		return reply{}, err
	}
	query, err := parseQuery(r, "force")
	if err != nil {
		return reply{}, err
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
	lockedBy, reason, err := decodeForce(body)
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
		return d.force(name, lockedBy, ifMatch, by, reason)
	}}, identity{LockedBy: lockedBy})
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

// noIfMatch refuses a condition that would otherwise silently not be met.
func noIfMatch(r *http.Request) error {
	if len(r.Header.Values("If-Match")) > 0 {
		return errors.New("If-Match goes with force=true: other requests are matched by their key and id")
	}
	return nil
}

// lockName returns the path's lock. Its segment is percent-encoded (RFC 3986).
func lockName(r *http.Request) (string, error) {
	segment := strings.TrimPrefix(pathOf(r), "/lock/")
	name, err := url.PathUnescape(segment)
	if err == nil {
		err = checkLockName(name)
	}
	if strings.Contains(segment, "#") { // others cut the path there, which is another lock
		err = errors.New("the lock's name has a #: in a path it is %23")
	}
	if err != nil {
		return "", badRequest(err)
	}
	return name, nil
}

// parseQuery refuses what a typing error would otherwise silently leave out.
func parseQuery(r *http.Request, known ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest(fmt.Errorf("query: %w", err))
	}
	for name, values := range query {
		if !slices.Contains(known, name) || len(values) > 1 {
			return nil, badRequest(fmt.Errorf("query: %q is unknown here, or given twice", name))
		}
	}
	return query, nil
}

func decodeTake(body []byte) (c claim, wait time.Duration, err error) {
	var who asker
	var asked resource.Duration
	var ttl *resource.Duration
	members := who.members()
	maps.Copy(members, map[string]any{"wait": &asked, "ttl": &ttl, "link": &c.Link})
	if err := resource.Decode(body, members); err != nil {
		return claim{}, 0, err
	}
	c.identity, err = who.identity()
	if ttl != nil {
		c.TTL = *ttl
		if c.TTL < resource.Duration(time.Second) {
			err = errors.Join(err, errors.New("ttl is less than 1s: leave it out for a hold that does not expire"))
		}
	}
	return c, min(time.Duration(asked), maxWait), errors.Join(err, checkLink(c.Link))
}

func decodeRelease(body []byte) (identity, bool, error) {
	var who asker
	var own bool
	members := who.members()
	members["own"] = &own
	if err := resource.Decode(body, members); err != nil {
		return identity{}, false, err
	}
	id, err := who.identity()
	if own && id.ID == "" {
		err = errors.Join(err, errors.New("own goes with an id: that says what this build took"))
	}
	return id, own, err
}

func decodeForce(body []byte) (lockedBy, reason string, err error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return "", "", nil
	}
	var who asker
	members := who.members()
	delete(members, "key")
	delete(members, "id")
	members["reason"] = &reason
	if err := resource.Decode(body, members); err != nil {
		return "", "", err
	}
	lockedBy, err = who.name()
	return lockedBy, reason, err
}

// asker is who a request is from, as its body says. What is not there is nil;
// a text that is there and empty is a mistake, such as a script's variable that
// was not set.
type asker struct {
	key, id                     *string
	lockedBy, lockBy, requestor *string // one thing
}

func (a *asker) members() map[string]any {
	return map[string]any{"key": &a.key, "id": &a.id, "locked_by": &a.lockedBy, "lock_by": &a.lockBy, "requestor": &a.requestor}
}

// identity returns who asks; without a name it is the key's value.
func (a *asker) identity() (identity, error) {
	if a.key == nil {
		return identity{}, errors.New("key is missing: say what the lock is locked with")
	}
	name, err := a.name()
	if a.id != nil {
		err = errors.Join(err, checkName("id", *a.id))
	} else {
		a.id = new(string)
	}
	if err := errors.Join(checkName("key", *a.key), err); err != nil {
		return identity{}, err
	}
	return identity{Key: *a.key, LockedBy: cmp.Or(name, *a.key), ID: *a.id}, nil
}

// name returns what the aliases agree on, "" when none is there.
func (a *asker) name() (string, error) {
	var name string
	for _, alias := range []*string{a.lockedBy, a.lockBy, a.requestor} {
		if alias == nil {
			continue
		}
		if name != "" && *alias != name {
			return "", errors.New("locked_by, lock_by and requestor are one thing, and disagree: give one of them")
		}
		if err := checkName("locked_by", *alias); err != nil {
			return "", err
		}
		name = *alias
	}
	return name, nil
}

func checkLink(link string) error {
	if link == "" {
		return nil
	}
	u, err := url.Parse(link)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || len(link) > maxLink {
		return fmt.Errorf("link is not an http or https URL of at most %d bytes, without credentials", maxLink)
	}
	return nil
}

func etag(revision uint64) string { return fmt.Sprintf(`"%d"`, revision) }

// hasRevision reports whether one of the entity tags of If-None-Match is the
// revision's. Weak ones count, as RFC 9110 section 13.1.2 has it.
func hasRevision(headers []string, revision uint64) bool {
	for tag := range strings.SplitSeq(strings.Join(headers, ","), ",") {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		if tag == "*" || tag == etag(revision) {
			return true
		}
	}
	return false
}

// revisionOf returns the revision that If-Match names; nil is any.
func revisionOf(headers []string) (*uint64, error) {
	tag := strings.TrimSpace(strings.Join(headers, ","))
	if len(headers) == 0 || tag == "*" {
		return nil, nil
	}
	digits, ok := strings.CutPrefix(tag, `"`)
	digits, ok2 := strings.CutSuffix(digits, `"`)
	revision, err := strconv.ParseUint(digits, 10, 64)
	if !ok || !ok2 || err != nil {
		return nil, fmt.Errorf(`If-Match is %q: it must be one revision in quotes, such as "17"`, tag)
	}
	return &revision, nil
}
