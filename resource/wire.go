// Package resource is Concourse's resource for a locker, and what the server
// shares with its clients: the JSON of the HTTP API, how it is read, and the
// rules for what may stand in it.
package resource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"
)

// This file is the JSON of the HTTP API: what the client writes and the server
// reads, and the reverse.

const minTTL = time.Second // of a hold that expires

// Lock is a lock as the API shows it. A free lock has no key and no holders;
// its lists are empty, never null.
type Lock struct {
	Key      string         `json:"key"`
	LockedBy map[string]int `json:"locked_by"` // what the original locker answered: each holder's name, and 1
	Holders  []Holder       `json:"holders"`
	Waiters  []Waiter       `json:"waiters"` // first in line first; the first 20 when it is about one lock
	Waiting  int            `json:"waiting"` // how many wait
	Revision uint64         `json:"revision"`
}

// Holder is a granted claim. Times are UTC, in whole seconds.
type Holder struct {
	LockedBy string    `json:"locked_by"`
	Since    time.Time `json:"since"`
	Token    uint64    `json:"token"` // the fencing token: it grows with every grant
	Link     string    `json:"link,omitempty"`
	Expires  time.Time `json:"expires,omitzero"`
	Slot     int       `json:"slot"`            // the smallest number from 1 that no other holder has
	Slots    int       `json:"slots,omitempty"` // at most so many holders at once; 0 is no limit
	Reason   string    `json:"reason,omitempty"`
}

// Waiter is a queued claim.
type Waiter struct {
	Key      string    `json:"key"`
	LockedBy string    `json:"locked_by"`
	Since    time.Time `json:"since"`
	Link     string    `json:"link,omitempty"`
}

// Take is the body of PUT /lock/NAME.
type Take struct {
	Key      string   `json:"key"`
	LockedBy string   `json:"locked_by,omitempty"`
	ID       string   `json:"id,omitempty"`
	Wait     Duration `json:"wait,omitzero"`
	TTL      Duration `json:"ttl,omitzero"`
	Link     string   `json:"link,omitempty"`
	Slots    int      `json:"slots,omitempty"`
	Reason   string   `json:"reason,omitempty"`
	Ticket   string   `json:"ticket,omitempty"`
}

// Release is the body of DELETE /lock/NAME.
type Release struct {
	Key      string `json:"key"`
	LockedBy string `json:"locked_by,omitempty"`
	ID       string `json:"id,omitempty"`
	Own      bool   `json:"own,omitempty"`
	Ticket   string `json:"ticket,omitempty"`
}

// Force is the body of DELETE /lock/NAME?force=true. Without LockedBy every
// holder is meant.
type Force struct {
	LockedBy string `json:"locked_by,omitempty"`
	Reason   string `json:"reason,omitempty"`
	By       string `json:"by,omitempty"` // who does it, as they say
}

// Events is what happened since the locker began to decide, newest first.
type Events struct {
	Since  time.Time `json:"since"`
	Events []Event   `json:"events"`
}

// Event is one change of a lock: grant, queue, release, withdraw, expire or force.
type Event struct {
	Time     time.Time `json:"time"`
	Event    string    `json:"event"`
	Lock     string    `json:"lock"`
	Key      string    `json:"key"`
	LockedBy string    `json:"locked_by"`
	Link     string    `json:"link,omitempty"`
	Token    uint64    `json:"token,omitempty"`
	Lasted   Duration  `json:"lasted,omitzero"` // how long it was held or waited for
	By       string    `json:"by,omitempty"`    // who forced it
	Reason   string    `json:"reason,omitempty"`
}

// Answer is the body of a PUT or DELETE that succeeded.
type Answer struct {
	Response string `json:"response"`
	Lock     Lock   `json:"lock,omitzero"`
	Token    uint64 `json:"token,omitempty"`
	Slot     int    `json:"slot,omitempty"`
	Repeat   bool   `json:"repeat,omitempty"` // the claim held the lock before this request

	// How and when the claim of a release ended before it: "released",
	// "withdrawn", "expired" or "forced".
	Ended   string    `json:"ended,omitempty"`
	EndedAt time.Time `json:"ended_at,omitzero"`
}

// Error is the body of every answer that is an error.
type Error struct {
	Error    string `json:"error"`
	Lock     *Lock  `json:"lock,omitempty"`
	Position int    `json:"position,omitempty"` // 1 is next in line; 0 is not queued
	Ended    bool   `json:"ended,omitempty"`    // a release ended the claim before this take of it arrived
}

// NothingDone begins the response of a release that found nothing to release.
const NothingDone = "nothing to do: "

// LaterRun begins the response of a release that was sent before a later run took
// what it names.
const LaterRun = NothingDone + "a later run has lock "

// DecodeTake reads a Take strictly, see Decode. The error has every problem.
func DecodeTake(data []byte) (Take, error) {
	b := &takeBody{}
	if err := Decode(data, b.members()); err != nil {
		return Take{}, withExample(data, err, keyExample)
	}
	err := b.check()
	return b.Take, err
}

// takeBody is a Take as it is sent. It is not on the stack, which decoding makes
// deep: a waiter keeps as much of it as it once needed.
type takeBody struct {
	Take
	asker asker
	ttl   *Duration
	slots *int
}

func (b *takeBody) members() map[string]any {
	members := b.asker.members()
	maps.Copy(members, map[string]any{"wait": &b.Wait, "ttl": &b.ttl, "link": &b.Link, "slots": &b.slots, "reason": &b.Reason})
	return members
}

func (b *takeBody) check() error {
	problems := []error{b.asker.settle(&b.Key, &b.LockedBy, &b.ID, &b.Ticket), checkNewName("key", b.Key), checkNewName("locked_by", b.LockedBy)}
	if b.ttl != nil {
		if b.TTL = *b.ttl; time.Duration(b.TTL) < minTTL {
			problems = append(problems, errors.New("ttl is less than 1s: leave it out for a hold that does not expire"))
		}
	}
	if b.slots != nil {
		b.Slots = *b.slots
		problems = append(problems, CheckSlots(b.Slots))
	}
	return errors.Join(append(problems, CheckLink(b.Link), CheckReason(b.Reason))...)
}

// withExample adds a body that would do to what is wrong with one that is not a
// JSON object at all.
func withExample(data []byte, err error, example string) error {
	if json.Valid(data) && bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return err
	}
	return fmt.Errorf("%w: send a body such as %s", err, example)
}

const keyExample = `{"key": "deploy"}`

// DecodeRelease reads a Release strictly, see Decode. The error has every
// problem.
func DecodeRelease(data []byte) (Release, error) {
	var r Release
	var a asker
	members := a.members()
	members["own"] = &r.Own
	if err := Decode(data, members); err != nil {
		return Release{}, withExample(data, err, keyExample)
	}
	err := a.settle(&r.Key, &r.LockedBy, &r.ID, &r.Ticket)
	if r.Own && a.id == nil {
		err = errors.Join(err, errors.New("own goes with an id: that says what this build took"))
	}
	return r, err
}

// DecodeForce reads a Force strictly, see Decode; no body at all is one too.
func DecodeForce(data []byte) (Force, error) {
	var f Force
	if len(bytes.TrimSpace(data)) == 0 {
		return f, nil
	}
	var a asker
	members := a.names()
	members["reason"], members["by"] = &f.Reason, &f.By
	err := Decode(data, members)
	if err == nil {
		f.LockedBy, err = a.name()
	} else {
		err = withExample(data, err, `{"reason": "it hangs"}, or none`)
	}
	if len(f.Reason) > MaxName {
		err = errors.Join(err, fmt.Errorf("reason has %d bytes: at most %d are allowed", len(f.Reason), MaxName))
	}
	if f.By != "" {
		err = errors.Join(err, CheckName("by", f.By))
	}
	return f, err
}

// asker is who sends a body. A member that is not there is nil; one that is
// there and empty is a mistake, such as a script's variable that was not set.
type asker struct {
	key, id, ticket             *string
	lockedBy, lockBy, requestor *string
}

// members returns where Decode stores what a take or a release says of its asker.
func (a *asker) members() map[string]any {
	members := a.names()
	members["key"], members["id"], members["ticket"] = &a.key, &a.id, &a.ticket
	return members
}

func (a *asker) names() map[string]any {
	return map[string]any{"locked_by": &a.lockedBy, "lock_by": &a.lockBy, "requestor": &a.requestor}
}

// name returns what the aliases agree on, "" when none is there.
func (a *asker) name() (string, error) {
	return agreed(alias{"locked_by", a.lockedBy}, alias{"lock_by", a.lockBy}, alias{"requestor", a.requestor})
}

// settle stores who the asker is, and returns every problem of it.
func (a *asker) settle(key, lockedBy, id, ticket *string) error {
	var problems []error
	if a.key == nil {
		problems = append(problems, errors.New("key is missing: say what the lock is locked with"))
	} else {
		*key = *a.key
		problems = append(problems, CheckName("key", *key))
	}
	name, err := a.name()
	*lockedBy = name
	problems = append(problems, err)
	if a.id != nil {
		*id = *a.id
		problems = append(problems, CheckName("id", *id))
	}
	if a.ticket != nil {
		*ticket = *a.ticket
		if *ticket == "" {
			problems = append(problems, errors.New("ticket is empty: leave it out, or send what the locker gave"))
		} else if a.id == nil {
			problems = append(problems, errors.New("ticket goes with an id: it puts the runs of that claim in order"))
		}
	}
	return errors.Join(problems...)
}
