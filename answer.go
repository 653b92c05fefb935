package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file puts outcomes into words. The rules for a sentence: it names the
// lock and who is meant; a refusal says who holds the lock, since when, and
// their link; an error says what to do; no id and no credential is ever in it.

const maxProblem = 900 // bytes of what is wrong with a request; three of its mistakes fit, with the mend of each

// failure is an error that has a status of its own.
type failure struct {
	status   int
	message  string
	lock     *lock  // the lock as it is, for those whom it was refused
	position int    // in the queue; 0: not in it
	allow    string // the methods that would do
}

func (f *failure) Error() string { return f.message }

// badRequest refuses what a client sent. What is wrong with 64 KiB could fill a
// megabyte: it is cut.
func badRequest(err error) error {
	message := err.Error()
	if len(message) > maxProblem {
		message = strings.ToValidUTF8(message[:maxProblem], "") + "…"
	}
	return &failure{status: http.StatusBadRequest, message: message}
}

// errorReply turns an error into a reply: the one place that maps errors to statuses.
func errorReply(header http.Header, err error) reply {
	f, ok := errors.AsType[*failure](err)
	switch {
	case ok:
	case errors.Is(err, errStopping), errors.Is(err, errGone):
		f = &failure{status: http.StatusServiceUnavailable, message: err.Error()}
		header.Set("Retry-After", "1")
	case errors.Is(err, errUnknown):
		f = &failure{status: http.StatusServiceUnavailable, message: "it is not known whether this was saved, and the locker restarts: ask again, with the same id"}
	case outOfSpace(err):
		f = &failure{status: http.StatusInsufficientStorage, message: "nothing was changed, the locker's disk is full: make room, then try again"}
	default:
		f = &failure{status: http.StatusServiceUnavailable, message: "nothing was changed, the locker cannot save its state: see its log, then try again"}
	}
	switch f.status {
	case http.StatusUnauthorized:
		header.Set("WWW-Authenticate", `Basic realm="locker", charset="UTF-8"`)
	case http.StatusMethodNotAllowed:
		header.Set("Allow", f.allow)
	case http.StatusLocked:
		header.Set("Retry-After", "1")
	}
	words := resource.Error{Error: strings.ReplaceAll(f.message, "\n", "; "), Position: f.position}
	return reply{status: f.status, body: withLock(encode(words), f.lock)}
}

// withLock adds the lock to a JSON object. Its encoding is shared by all who
// are shown it, not copied: a queue of thousands is told the same.
func withLock(object []byte, l *lock) [][]byte {
	if l == nil {
		return [][]byte{object}
	}
	return [][]byte{object[:len(object)-1], []byte(`,"lock":`), l.shown(), []byte("}")}
}

// outOfSpace reports whether a write failed for want of space: a full disk, a
// quota or a file size limit.
func outOfSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// reply words an outcome for the asker.
func (a answer) reply(who identity) (reply, error) {
	name, by := a.lock.name, who.LockedBy
	say := func(format string, args ...any) (reply, error) {
		words := resource.Answer{Response: fmt.Sprintf(format, args...), Token: a.token, Repeat: a.verdict == repeated}
		return reply{status: http.StatusOK, body: withLock(encode(words), a.lock)}, nil
	}
	nothing := func(format string, args ...any) (reply, error) {
		return say(resource.NothingDone+format, args...)
	}
	deny := func(status int, format string, args ...any) (reply, error) {
		return reply{}, &failure{status: status, message: fmt.Sprintf(format, args...), lock: a.lock, position: a.lock.position(a.waiter)}
	}
	switch a.verdict {
	case granted:
		return say("lock %s acquired by %s with the key %s", name, by, who.Key)
	case repeated:
		return say("lock %s was acquired by %s with the key %s before, by this same claim", name, by, who.Key)
	case released:
		return say("lock %s released by %s", name, by)
	case withdrew:
		return say("lock %s: the claim of %s is withdrawn, it no longer waits", name, by)
	case withdrawn:
		return deny(http.StatusLocked, "the claim of %s on lock %s was withdrawn while it waited", by, name)
	case alreadyEnded:
		return nothing("this claim of %s on lock %s has ended before, it was released, withdrawn, expired or forced", by, name)
	case neverTaken:
		return nothing("this claim never got lock %s, and nobody else's hold was touched", name)
	case wasFree:
		return nothing("lock %s is free", name)
	case noSuchHolder:
		return nothing("%s is not among the holders; %s", by, a.lock.heldBy())
	case forced:
		return say("lock %s: the hold of %s is ended by force", name, cmp.Or(by, "everyone"))
	case changedHands:
		return deny(http.StatusPreconditionFailed, "lock %s changed hands meanwhile, nothing was freed; %s", name, a.lock.heldBy())
	case overLimit:
		return reply{}, &failure{status: http.StatusTooManyRequests, message: a.lock.overLimit()}
	case wrongKey:
		return deny(http.StatusLocked, "the key %s does not fit; %s", who.Key, a.lock.heldBy())
	}
	return deny(http.StatusLocked, "%s%s", a.lock.heldBy(), a.lock.whyNot(who))
}

func (l *lock) overLimit() string {
	if len(l.Waiters) >= maxWaiters {
		return fmt.Sprintf("lock %s has %d waiters, more are not allowed: try again when some are gone", l.name, maxWaiters)
	}
	return fmt.Sprintf("the locker has %d holders and waiters, more are not allowed: try again when some are gone", maxClaims)
}

// whyNot adds why the lock was refused to a claim whose key would fit.
func (l *lock) whyNot(who identity) string {
	switch {
	case l.Key != who.Key:
		return ""
	case l.named(who.LockedBy) >= 0:
		return "; that is the same name, which holds the lock once: it waits for itself, unless it sends the same id"
	case len(l.Waiters) > 0 && l.Waiters[0].identity != who:
		return fmt.Sprintf("; the key fits, but %s was first in line with the key %s", l.Waiters[0].LockedBy, l.Waiters[0].Key)
	}
	return ""
}

// heldBy says who holds the lock, since when, and their link. It is put
// together once, for all who are told; see shown.
func (l *lock) heldBy() string {
	l.listed()
	return l.held
}

// shown returns the lock as the API shows it. It is encoded once, for all who
// ask; safe for concurrent use when the lock is published.
func (l *lock) shown() []byte {
	entry := l.listed()
	return entry[len(entry)-l.size:]
}

// listed returns the lock with its name before it, as the list shows it; see
// shown.
func (l *lock) listed() []byte {
	l.once.Do(func() {
		shown := l.show()
		object := encode(shown)
		l.held = resource.HeldBy(l.name, shown, time.Time{})
		l.json, l.size = slices.Concat(encode(l.name), []byte(":"), object), len(object)
	})
	return l.json
}

func (l *lock) show() resource.Lock {
	shown := resource.Lock{
		Key:      l.Key,
		LockedBy: make(map[string]int, len(l.Holders)),
		Holders:  make([]resource.Holder, len(l.Holders)),
		Waiters:  make([]resource.Waiter, len(l.Waiters)),
		Revision: l.Revision,
	}
	for i, h := range l.Holders {
		shown.LockedBy[h.LockedBy] = 1
		shown.Holders[i] = resource.Holder{LockedBy: h.LockedBy, Since: inSeconds(h.Since), Token: h.Token, Link: h.Link, Expires: inSeconds(h.Expires)}
	}
	for i, w := range l.Waiters {
		shown.Waiters[i] = resource.Waiter{Key: w.Key, LockedBy: w.LockedBy, Since: inSeconds(w.Since), Link: w.Link}
	}
	return shown
}

// shown returns every lock as the API shows it, by name.
func (s *state) shown() [][]byte {
	pieces := [][]byte{[]byte("{")}
	for i, l := range s.locks {
		if i > 0 {
			pieces = append(pieces, []byte(","))
		}
		pieces = append(pieces, l.listed())
	}
	return append(pieces, []byte("}"))
}

func inSeconds(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
