package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file reads what clients say: names, queries, bodies and conditions. It is
// strict: what would otherwise silently not count is refused.

const maxWait = 60 * time.Second // more is cut to that

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
		err = checkLockName(name)
	}
	if strings.Contains(segment, "#") { // others cut the path there, which is another lock
		err = errors.New("the lock's name has a #: in a path it is %23")
	}
	if err != nil {
		return "", err
	}
	return name, nil
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
	return c, min(time.Duration(asked), maxWait), errors.Join(err, resource.CheckLink(c.Link))
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

// isForce reports whether a release is to be one by force.
func isForce(r *http.Request) bool {
	return r.URL.RawQuery != "" && r.URL.Query().Get("force") == "true"
}

// notForced refuses a value of force that is neither true nor false.
func notForced(r *http.Request) error {
	query, err := parseQuery(r, "force")
	if force := query.Get("force"); err == nil && query.Has("force") && force != "false" {
		return fmt.Errorf("force is %q: it must be true or false", force)
	}
	return err
}
