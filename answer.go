package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file puts outcomes into words. The rules for a sentence: it names the
// lock and who is meant; a refusal says who holds the lock, since when, and
// their link; an error says what to do; no id and no credential is ever in it.

const (
	maxProblem  = 900 // bytes of what is wrong with a request; three of its mistakes fit, with the mend of each
	mostWaiters = 20  // shown in an answer about one lock, whose size must not grow with the queue
)

// reply is an answer in words.
type reply struct {
	status      int
	header      map[string]string // beside those that every answer has
	body        [][]byte          // in pieces, without the newline at the end; nil is none
	contentType string            // JSON when empty
	verdict     verdict           // what the rules decided; empty when they were not asked
	giveBack    func()            // called when the answer does not reach the asker; nil: nothing is to be given back
}

// Errors that have a status of their own.
var (
	errCredentials = errors.New("credentials are missing or wrong: send the locker's AUTH_USER and AUTH_PASS by basic authentication")
	errNoPath      = errors.New("there is nothing at this path: locks are at /locks and /lock/NAME, a slash in a name is %2F")
	errSlash       = fmt.Errorf("%w; if that is what you sent, a proxy on the way decoded it: have it pass on the path as it came", errNoPath)
)

// Errors of several lockers. What is errNotDone was surely not done.
var (
	errNotDone = errors.New("the leader was not reached")
	errStandby = fmt.Errorf("%w: this locker does not lead", errNotDone)
	errStale   = errors.New("this locker cannot reach etcd, and another may lead by now: try again")
	errLost    = errors.New("the leader was lost before it answered, and it is not known what it did: ask again, with the same id")
)

// noLeader refuses a request that was surely not done.
type noLeader struct{ why error }

func (e noLeader) Error() string {
	return "no locker leads at the moment, and nothing was changed: try again; " + e.why.Error()
}

func (e noLeader) Is(target error) bool { return target == errNotDone }

// foreignHost refuses a request that was sent to a name which is not known to be
// this machine's: a web page can make any name of its own lead here.
type foreignHost string

func (h foreignHost) Error() string {
	return fmt.Sprintf("%q is not a name of this machine, as far as the locker knows: set LISTEN=127.0.0.1:8910 if this name is yours", string(h))
}

// crossOrigin refuses a write that a page of another site has a browser send.
type crossOrigin struct{ error }

// badMethod refuses a method. Its text lists those that the path takes.
type badMethod string

func (m badMethod) Error() string {
	if strings.Contains(string(m), "PUT") {
		return "this path takes " + string(m) + ": PUT takes, DELETE releases, GET shows"
	}
	return "this path takes " + string(m)
}

// badRequest refuses what a client sent.
type badRequest struct{ error }

func (b badRequest) Unwrap() error { return b.error }

// errorReply turns an error into a reply: the one place that maps errors to
// statuses and headers.
func errorReply(err error) reply {
	again := map[string]string{"Retry-After": "1"}
	method, isMethod := errors.AsType[badMethod](err)
	_, isHost := errors.AsType[foreignHost](err)
	_, isOrigin := errors.AsType[crossOrigin](err)
	_, isRequest := errors.AsType[badRequest](err)
	_, isTooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case errors.Is(err, errCredentials):
		return problem(http.StatusUnauthorized, err.Error(), map[string]string{"WWW-Authenticate": `Basic realm="locker", charset="UTF-8"`})
	case isHost:
		return problem(http.StatusForbidden, short(err.Error(), maxProblem), nil)
	case isOrigin:
		return problem(http.StatusForbidden, "a page of another site must not change locks: "+err.Error()+": if this is the locker's own page behind a proxy, have the proxy pass Host on as it came (nginx: proxy_set_header Host $http_host)", nil)
	case errors.Is(err, errNoPath):
		return problem(http.StatusNotFound, err.Error(), nil)
	case isMethod:
		return problem(http.StatusMethodNotAllowed, err.Error(), map[string]string{"Allow": string(method) + ", HEAD"})
	case isTooLarge:
		return problem(http.StatusRequestEntityTooLarge, "the body has more than 64 KiB", nil)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return problem(http.StatusRequestTimeout, "the body did not arrive within 10 s", nil)
	case isRequest:
		return problem(http.StatusBadRequest, short(err.Error(), maxProblem), nil)
	case errors.Is(err, errStandby):
		return problem(http.StatusServiceUnavailable, err.Error(), map[string]string{"Retry-After": "1", "Locker-Standby": "1"})
	case errors.Is(err, errStopping), errors.Is(err, errNotLeading), errors.Is(err, errGone), errors.Is(err, errNotBegun),
		errors.Is(err, errNotDone), errors.Is(err, errStale), errors.Is(err, errLost):
		return problem(http.StatusServiceUnavailable, err.Error(), again)
	case errors.Is(err, errDeposed), errors.Is(err, errDoubt):
		return problem(http.StatusServiceUnavailable, "it is not known whether this was saved, and another locker may lead by now: ask again, with the same id", again)
	case errors.Is(err, errUnknown):
		return problem(http.StatusServiceUnavailable, "it is not known whether this was saved, and the locker restarts: ask again, with the same id", nil)
	case outOfSpace(err):
		return problem(http.StatusInsufficientStorage, "nothing was changed, the locker's disk is full: make room, then try again", nil)
	}
	return problem(http.StatusServiceUnavailable, "nothing was changed, the locker cannot save its state: see its log, then try again", nil)
}

// forPeople is errCredentials for a browser, whose user has just refused to give
// any.
func forPeople(rep reply) reply {
	rep.contentType = "text/html; charset=utf-8"
	rep.body = [][]byte{[]byte("<!doctype html><html lang=en><title>Locker</title><p>This locker wants a user and a password: reload the page to be asked for them again. They are its settings AUTH_USER and AUTH_PASS.")}
	return rep
}

func problem(status int, sentence string, header map[string]string) reply {
	return reply{status: status, header: header, body: [][]byte{encode(resource.Error{Error: oneLine(sentence)})}}
}

func oneLine(sentence string) string { return strings.ReplaceAll(sentence, "\n", "; ") }

// withLock adds the lock to a JSON object. Its encoding is shared by all who
// are shown it, not copied: a queue of thousands is told the same.
func withLock(object []byte, l *lock) [][]byte {
	return [][]byte{object[:len(object)-1], []byte(`,"lock":`), l.shown(), []byte("}")}
}

// reply words an outcome for the asker.
func (a answer) reply(asker identity) reply {
	name, by := a.lock.name, asker.LockedBy
	switch a.verdict {
	case granted:
		return a.success("lock %s acquired by %s with the key %s", name, by, asker.Key)
	case repeated:
		return a.success("lock %s was acquired by %s with the key %s before, by this same claim", name, by, asker.Key)
	case released:
		return a.success("lock %s released by %s", name, by)
	case withdrew:
		return a.success("lock %s: the claim of %s is withdrawn, it no longer waits", name, by)
	case withdrawn:
		return a.refusal(http.StatusLocked, "the claim of %s on lock %s was withdrawn while it waited", by, name)
	case alreadyEnded:
		return a.success(resource.NothingDone+"%s%s", a.endedWords(by), a.stillHeld())
	case laterRun:
		return a.success(resource.LaterRun+"%s, and this release was sent before it", name)
	case tooLate:
		return a.refusal(http.StatusLocked, "the claim of %s on lock %s was released or withdrawn after this request was sent: nothing was taken", by, name)
	case oldTicket:
		if a.how != "" {
			return a.refusal(http.StatusConflict, "%s, after this ticket was given out: fetch another, then ask again", a.endedWords(by))
		}
		return a.refusal(http.StatusConflict, "this ticket is from before the locker's start, or too old: fetch another, then ask again")
	case neverTaken:
		return a.success(resource.NothingDone+"this claim never got lock %s, and nobody else's hold was touched", name)
	case wasFree:
		return a.success(resource.NothingDone+"lock %s is free", name)
	case noSuchHolder:
		return a.success(resource.NothingDone+"%s is not among the holders; %s", by, a.lock.heldBy())
	case forced:
		return a.success("lock %s: the hold of %s is ended by force", name, a.name)
	case changedHands:
		return a.refusal(http.StatusPreconditionFailed, "lock %s changed hands meanwhile, nothing was freed; %s", name, a.lock.heldBy())
	case overLimit:
		return problem(http.StatusTooManyRequests, a.lock.overLimit(), nil)
	case wrongKey:
		return a.refusal(http.StatusLocked, "the key %s does not fit; %s", asker.Key, a.lock.heldBy())
	}
	return a.refusal(http.StatusLocked, "%s%s%s", a.lock.heldBy(), a.lock.whyNot(asker), a.waitedWords())
}

// endedWords says how the claim that a release names ended before.
func (a answer) endedWords(by string) string {
	claim := fmt.Sprintf("this claim of %s on lock %s", by, a.lock.name)
	words, ok := map[how]string{
		endReleased: "was released", endFreed: "was released by somebody else", endWithdrawn: "was withdrawn",
		endAway: "lost its place in the queue, because nobody came back for it", endExpired: "ended by its ttl", endForced: "was ended by force",
	}[a.how]
	if !ok {
		return claim + " was given back before, when it had nothing"
	}
	return fmt.Sprintf("%s %s at %s", claim, words, inSeconds(a.at).Format(time.RFC3339))
}

// stillHeld adds who holds the lock where a release found that its claim never had
// it: the asker may have meant that hold.
func (a answer) stillHeld() string {
	if a.how.ended() != "" || a.lock.free() {
		return ""
	}
	return "; " + a.lock.heldBy()
}

// ended is how a claim ended, as the API says it.
func (h how) ended() string {
	switch h {
	case endFreed:
		return string(endReleased)
	case endAway:
		return string(endWithdrawn)
	case leftNothing, leftRefused:
		return ""
	}
	return string(h)
}

// waitedWords says how long a request waited in vain: it may be less than it
// asked for.
func (a answer) waitedWords() string {
	if a.waited < time.Second {
		return ""
	}
	return fmt.Sprintf("; this request waited %s", a.waited.Truncate(time.Second))
}

func (a answer) success(format string, args ...any) reply {
	words := resource.Answer{Response: fmt.Sprintf(format, args...), Token: a.token, Slot: a.lock.slotOf(a.token), Repeat: a.verdict == repeated}
	if words.Ended = a.how.ended(); words.Ended != "" {
		words.EndedAt = inSeconds(a.at)
	}
	return reply{status: http.StatusOK, body: withLock(encode(words), a.lock)}
}

func (a answer) refusal(status int, format string, args ...any) reply {
	words := resource.Error{Error: oneLine(fmt.Sprintf(format, args...)), Position: a.lock.position(a.waiter), Ended: a.verdict == tooLate}
	rep := reply{status: status, body: withLock(encode(words), a.lock)}
	if status == http.StatusLocked {
		rep.header = map[string]string{"Retry-After": "1"}
	}
	return rep
}

// slotOf returns the slot of the hold with that token, 0 when there is none.
func (l *lock) slotOf(token uint64) int {
	for _, h := range l.Holders {
		if h.Token == token {
			return h.Slot
		}
	}
	return 0
}

func (l *lock) overLimit() string {
	if len(l.Waiters) >= maxWaiters {
		return fmt.Sprintf("lock %s has %d waiters, more are not allowed: try again when some are gone", l.name, maxWaiters)
	}
	if !hasRoom(l, claim{Reason: strings.Repeat(".", mostBytes/100)}) {
		return fmt.Sprintf("lock %s has %d holders and waiters, more do not fit into etcd: try again when some are gone", l.name, len(l.Holders)+len(l.Waiters))
	}
	return fmt.Sprintf("the locker has %d holders and waiters, more are not allowed: try again when some are gone", maxClaims)
}

// whyNot adds why the lock was refused to a claim whose key would fit.
func (l *lock) whyNot(who identity) string {
	switch {
	case l.Key != who.Key:
		return ""
	case l.named(who.LockedBy) >= 0:
		return "; the same name holds the lock already: a name gets it again only when that hold has ended"
	case len(l.Waiters) == 0:
		return "; the key fits, but as many hold the lock as their slots, or those of this claim, allow"
	case l.Waiters[0].identity != who:
		return fmt.Sprintf("; the key fits, but %s was first in line with the key %s", l.Waiters[0].LockedBy, l.Waiters[0].Key)
	}
	return ""
}

// heldBy says who holds the lock, since when, and their link. It is put
// together once, for all who are told; see shown.
func (l *lock) heldBy() string {
	return l.held.get(func() string { return resource.HeldBy(l.name, l.show(mostWaiters), time.Time{}) })
}

// shown returns the lock as answers about it alone show it: with the first
// waiters. It is encoded once, for all who ask; safe for concurrent use when the
// lock is published.
func (l *lock) shown() []byte {
	return l.json.get(func() []byte { return encode(l.show(mostWaiters)) })
}

// listed returns the lock with its name before it and all its waiters, as the
// list shows it; see shown.
func (l *lock) listed() []byte {
	return l.list.get(func() []byte {
		object := l.shown()
		if len(l.Waiters) > mostWaiters {
			object = encode(l.show(len(l.Waiters)))
		}
		return slices.Concat(encode(l.name), []byte(":"), object)
	})
}

func (l *lock) show(waiters int) resource.Lock {
	waiters = min(waiters, len(l.Waiters))
	shown := resource.Lock{
		Key:      l.Key,
		LockedBy: make(map[string]int, len(l.Holders)),
		Holders:  make([]resource.Holder, len(l.Holders)),
		Waiters:  make([]resource.Waiter, waiters),
		Waiting:  len(l.Waiters),
		Revision: l.Revision,
	}
	for i, h := range l.Holders {
		shown.LockedBy[h.LockedBy] = 1
		shown.Holders[i] = resource.Holder{LockedBy: h.LockedBy, Since: inSeconds(h.Since), Token: h.Token, Link: h.Link, Expires: inSeconds(h.Expires), Slot: h.Slot, Slots: h.Slots, Reason: h.Reason}
	}
	for i, w := range l.Waiters[:waiters] {
		shown.Waiters[i] = resource.Waiter{Key: w.Key, LockedBy: w.LockedBy, Since: inSeconds(w.Since), Link: w.Link}
	}
	return shown
}

// shown returns every lock as the API shows it, by name.
func (s *state) shown() [][]byte {
	pieces := [][]byte{[]byte("{")}
	for i, c := range s.chunks {
		if i > 0 {
			pieces = append(pieces, []byte(","))
		}
		pieces = append(pieces, c.listed())
	}
	return append(pieces, []byte("}"))
}

// listed returns the locks of a chunk as the list shows them. They are put
// together once, for all who ask; safe for concurrent use when the chunk is
// published.
func (c *chunk) listed() []byte {
	return c.list.get(func() []byte {
		locks := make([][]byte, len(c.locks))
		for i, l := range c.locks {
			locks[i] = l.listed()
		}
		return bytes.Join(locks, []byte(","))
	})
}

func inSeconds(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
