package resource

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"
)

// This file is what a put asks for, and what it answers.

const outBudget = 10 * time.Minute // how long out goes on trying, until its claim is queued

// outParams is what a put asks for, checked.
type outParams struct {
	key, lockOp, lockedBy, lockBy string
	ttl                           lease
	wait                          *span
	slots                         *int
	reason                        string
	own                           *flag
}

func (o *outParams) fields() map[string]any {
	return map[string]any{
		"key": &o.key, "lock_op": &o.lockOp, "locked_by": &o.lockedBy, "lock_by": &o.lockBy,
		"ttl": &o.ttl, "wait": &o.wait, "slots": &digits{&o.slots}, "reason": &o.reason, "own": &o.own,
	}
}

// check reports every problem, and settles on one name. An unlock that names
// nobody means what the build itself has.
func (o *outParams) check(getenv func(string) string) error {
	problems := []error{checkGiven("key", o.key, CheckName)}
	switch {
	case o.lockOp != "lock" && o.lockOp != "unlock":
		problems = append(problems, errors.New("lock_op is missing or unknown: set it to lock or unlock"))
	case o.lockOp == "unlock":
		for _, of := range []struct {
			name  string
			there bool
		}{{"ttl", o.ttl != 0}, {"wait", o.wait != nil}, {"slots", o.slots != nil}, {"reason", o.reason != ""}} {
			if of.there {
				problems = append(problems, fmt.Errorf("%s goes with lock_op: lock, not with unlock: leave it out", of.name))
			}
		}
	case o.lockOp == "lock" && o.own != nil:
		problems = append(problems, errors.New("own goes with lock_op: unlock, not with lock: leave it out"))
	}
	name, err := agreed(alias{"locked_by", given(o.lockedBy)}, alias{"lock_by", given(o.lockBy)})
	if o.lockOp == "lock" {
		problems = append(problems, checkNewName("key", o.key), checkNewName("locked_by", name), CheckReason(o.reason))
		if o.slots != nil {
			problems = append(problems, CheckSlots(*o.slots))
			name = cmp.Or(name, buildName(getenv))
		}
		name = cmp.Or(name, o.key)
	}
	o.lockedBy = name
	return errors.Join(append(problems, err)...)
}

// given returns nil for an empty name, as a variable may be: it counts as unset.
func given(name string) *string {
	if name == "" {
		return nil
	}
	return &name
}

func (o *outParams) onlyOwn() bool { return o.own != nil && bool(*o.own) }

// claim is one lock or unlock of a build, or the lock of a `locker run`.
type claim struct {
	*program
	words    claimWords
	leased   bool // it is kept by renewing its ttl
	client   *client
	name     string // the lock's
	params   outParams
	id, link string
	started  time.Time
	budget   time.Duration          // how long failures may go on, until it is queued
	ticket   atomic.Pointer[string] // of this run; nil: not fetched yet
}

// claimWords are those of sentences that differ for a build and for `locker run`.
type claimWords struct {
	self  string // who asks
	outer string // who has a hold for which it would wait for ever
	stop  string // what ends it while it waits
	late  string // what to do about what arrives late
}

var buildWords = claimWords{"this same build", "this same build", "an abort or a timeout", ": let the job ensure the unlock"}

// fetch returns the run's ticket, after it has got one. All that is sent goes with
// it: what an earlier run of this build sent, or what the network holds back of
// this one, cannot undo what a later one does.
func (c *claim) fetch(ctx context.Context) (*string, error) {
	if ticket := c.ticket.Load(); ticket != nil {
		return ticket, nil
	}
	l, ticket, err := c.client.ticket(ctx)
	if err != nil {
		return nil, err
	}
	c.ticket.Store(&ticket)
	c.seen(l)
	return &ticket, nil
}

// release gives back what the claim has; with own, only what this build took.
// Its error is a *refusal or a *failure.
func (c *claim) release(ctx context.Context, own bool) (Answer, error) {
	ticket, err := c.fetch(ctx)
	if err != nil {
		return Answer{}, err
	}
	a, err := c.client.release(ctx, Release{Key: c.params.key, LockedBy: c.params.lockedBy, ID: c.id, Own: own, Ticket: *ticket})
	c.drop(ticket, err)
	return a, err
}

// drop has another ticket fetched when the locker says that this one is too old.
func (c *claim) drop(ticket *string, err error) {
	if f, ok := errors.AsType[*failure](err); ok && f.stale {
		c.ticket.CompareAndSwap(ticket, nil)
	}
}

// seen tells people at once who holds the lock that they will wait for.
func (c *claim) seen(l Lock) {
	if c.params.lockOp == "lock" && len(l.Holders) > 0 && (l.Key != c.params.key || len(l.Waiters) > 0) {
		c.say.info("%s", HeldBy(c.name, l, time.Now()))
	}
}

// report answers Concourse with a version: the token of a grant, which is that
// grant's alone, or the revision that the lock has after a release: "0" when the
// locker has never heard of the lock, or has forgotten it, as check says.
func (c *claim) report(a Answer, waited string) error {
	ref, err := json.Marshal(version{strconv.FormatUint(cmp.Or(a.Token, a.Lock.Revision), 10)})
	if err != nil {
		return err
	}
	return c.answer(result{ref, rows("lock", c.name, "lock_op", c.params.lockOp, "key", c.params.key,
		"locked_by", c.params.lockedBy, "token", number(a.Token), "slot", number(uint64(a.Slot)), "waited", waited, "build", c.link)})
}

// number returns n as text, "" for none.
func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

// releaseIt is what to do when a release did not succeed.
const releaseIt = "release it with an unlock step, or on the locker's page"

// outlive returns a context that is done when ctx has been done for that long.
func outlive(ctx context.Context, more time.Duration) (context.Context, context.CancelFunc) {
	return endAfter(context.WithoutCancel(ctx), ctx, more)
}

// endAfter returns a context that is done when parent is, or when signal has been
// done for that long since this call.
func endAfter(parent, signal context.Context, more time.Duration) (context.Context, context.CancelFunc) {
	outliving, cancel := context.WithCancel(parent)
	stop := context.AfterFunc(signal, func() {
		timer := time.AfterFunc(more, cancel)
		context.AfterFunc(outliving, func() { timer.Stop() })
	})
	return outliving, func() {
		stop()
		cancel()
	}
}
