package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file reads what a request says: the lock's name, the query, the body and
// conditions. It is strict: what would otherwise silently not count is refused.

const maxWait = 55 * time.Second // more is cut to that, so that proxies which cut at 60 s let the locker answer

// noIfMatch refuses a condition that would otherwise silently not be met.
func noIfMatch(r *http.Request) error {
	if len(r.Header.Values("If-Match")) > 0 {
		return errors.New("If-Match goes with force=true: other requests are matched by their key and id")
	}
	return nil
}

// pathOf returns the path as it was sent. EscapedPath is not: of /lock/a%2Fgrün
// it makes /lock/a/gr%C3%BCn, which is another one.
func pathOf(r *http.Request) string { return cmp.Or(r.URL.RawPath, r.URL.EscapedPath()) }

// lockName returns the path's lock. Its segment is percent-encoded (RFC 3986).
func lockName(r *http.Request) (string, error) {
	segment := strings.TrimPrefix(pathOf(r), "/lock/")
	name, err := url.PathUnescape(segment)
	if err == nil {
		err = resource.CheckLockName("the lock's name", name)
	}
	if strings.Contains(segment, "#") { // others cut the path there, which is another lock
		err = errors.New("the lock's name has a #: in a path it is %23")
	}
	return name, err
}

// parseQuery refuses what a typing error would otherwise silently leave out.
func parseQuery(r *http.Request, known ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	for name, values := range query {
		if !slices.Contains(known, name) || len(values) > 1 {
			return nil, fmt.Errorf("query: %q is unknown here, or given twice", name)
		}
	}
	return query, nil
}

// decodeTake returns the claim that a body makes, and how long it waits. The
// error has every problem.
func decodeTake(body []byte) (claim, time.Duration, error) {
	t, err := resource.DecodeTake(body)
	c := claim{identity: identity{t.Key, cmp.Or(t.LockedBy, t.Key), t.ID}, TTL: t.TTL, Link: t.Link, Slots: t.Slots, Reason: t.Reason}
	c.Ticket, err = decodeTicket(t.Ticket, err)
	return c, min(time.Duration(t.Wait), maxWait), err
}

// decodeRelease returns what a body gives back. The error has every problem.
func decodeRelease(body []byte) (release, error) {
	r, err := resource.DecodeRelease(body)
	back := release{identity: identity{r.Key, r.LockedBy, r.ID}, own: r.Own}
	back.ticket, err = decodeTicket(r.Ticket, err)
	return back, err
}

func decodeTicket(text string, problem error) (t ticket, err error) {
	if text != "" {
		err = t.UnmarshalText([]byte(text))
	}
	return t, errors.Join(problem, err)
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

// listWait returns how long a client that has the list wants to wait for a
// change.
func listWait(r *http.Request) (time.Duration, error) {
	query, err := parseQuery(r, "wait")
	if err != nil || !query.Has("wait") {
		return 0, err
	}
	var wait resource.Duration
	if err := wait.UnmarshalText([]byte(query.Get("wait"))); err != nil {
		return 0, fmt.Errorf("wait: %w", err)
	}
	return min(time.Duration(wait), maxWait), nil
}

// showQuery returns whether a request for a lock wants a ticket, and all waiters.
func showQuery(r *http.Request) (ticket, allWaiters bool, err error) {
	query, err := parseQuery(r, "ticket", "waiters")
	if err != nil {
		return false, false, err
	}
	if waiters := query.Get("waiters"); query.Has("waiters") && waiters != "all" {
		err = fmt.Errorf("waiters is %q: it can be all", waiters)
	}
	return query.Get("ticket") == "true", query.Has("waiters"), errors.Join(err, isFlag(query, "ticket"))
}

// isFlag refuses a value that is neither true nor false.
func isFlag(query url.Values, name string) error {
	if value := query.Get(name); query.Has(name) && value != "true" && value != "false" {
		return fmt.Errorf("%s is %q: it must be true or false", name, value)
	}
	return nil
}

// isForce reports whether a release is to be one by force.
func isForce(r *http.Request) bool {
	return r.URL.RawQuery != "" && r.URL.Query().Get("force") == "true"
}

// notForced refuses a value of force that is neither true nor false.
func notForced(r *http.Request) error {
	query, err := parseQuery(r, "force")
	if err != nil {
		return err
	}
	return isFlag(query, "force")
}
