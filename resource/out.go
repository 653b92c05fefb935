package resource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// This file is the program that takes and releases a lock. Concourse ends it
// with TERM, and KILL 10 s later; a version that it answers after TERM is
// thrown away.

const (
	outBudget  = 10 * time.Minute // how long out goes on trying, as long as its claim is not queued
	unlockTime = 8 * time.Second  // how long unlock goes on after TERM
	readTime   = time.Second      // how long the request may take to arrive after TERM

	// After TERM an attempt is given up sooner, so that one connection that
	// hangs does not use up the time. Repeating a release is safe: it has an id.
	unlockAttempt = 3500 * time.Millisecond
)

// outParams is what a put asks for, checked.
type outParams struct {
	key, lockOp, lockedBy, lockBy text
	ttl                           lease
	own                           *flag
}

func (o *outParams) fields() map[string]any {
	return map[string]any{
		"key": &o.key, "lock_op": &o.lockOp, "locked_by": &o.lockedBy, "lock_by": &o.lockBy,
		"ttl": &o.ttl, "own": &o.own,
	}
}

// check reports every problem, and settles on one name.
func (o *outParams) check() error {
	problems := []error{checkName("key", o.key)}
	switch {
	case o.lockOp != "lock" && o.lockOp != "unlock":
		problems = append(problems, errors.New("lock_op is missing or unknown: set it to lock or unlock"))
	case o.lockOp == "unlock" && o.ttl != 0:
		problems = append(problems, errors.New("ttl goes with lock_op: lock, not with unlock: leave it out"))
	case o.lockOp == "lock" && o.own != nil:
		problems = append(problems, errors.New("own goes with lock_op: unlock, not with lock: leave it out"))
	}
	if o.lockedBy != "" && o.lockBy != "" && o.lockedBy != o.lockBy {
		problems = append(problems, errors.New("locked_by and lock_by are one thing, and disagree: give one of them"))
	}
	if o.lockedBy == "" {
		o.lockedBy = o.lockBy
	}
	if o.lockedBy == "" {
		o.lockedBy = o.key
	} else {
		problems = append(problems, checkName("locked_by", o.lockedBy))
	}
	return errors.Join(problems...)
}

func (o *outParams) onlyOwn() bool { return o.own != nil && bool(*o.own) }

// claim is one lock or unlock of a build.
type claim struct {
	*program
	client   *client
	name     string // the lock's
	params   outParams
	id, link string
	started  time.Time
}

// Out takes or releases the lock and answers with its version.
//
// When ctx is done, lock gives back what it has, within 5 s, and fails; unlock
// goes on for up to 8 s.
func Out(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args []string, getenv func(string) string) error {
	return newProgram(stdin, stdout, stderr, args, getenv).out(ctx)
}

func (p *program) out(ctx context.Context) error {
	var params outParams
	id, known := buildID(p.getenv)
	reading, stop := outlive(ctx, readTime) // an aborted unlock has its request on the way
	defer stop()
	r, err := p.read(reading, params.fields(), func() error {
		err := params.check()
		if !known && params.lockOp == "unlock" && params.onlyOwn() {
			err = errors.Join(err, errors.New("own needs ATC_EXTERNAL_URL and BUILD_ID, which say what this build took: set both, or leave own out"))
		}
		return err
	})
	if err != nil {
		return err
	}
	c := &claim{
		program: p, client: newClient(&r.source, p.dial), name: string(r.source.lockName), params: params,
		id: id, link: buildLink(p.getenv), started: time.Now(),
	}
	if params.lockOp == "unlock" {
		return c.unlock(ctx)
	}
	return c.lock(ctx)
}

func (c *claim) releases(own bool) Release {
	return Release{Key: string(c.params.key), LockedBy: string(c.params.lockedBy), ID: c.id, Own: own}
}

// unlock releases the lock. An abort does not stop it at once: it may be the
// build's ensure that is aborted, and then nobody else would release.
func (c *claim) unlock(ctx context.Context) error {
	trying, cancel := outlive(ctx, unlockTime)
	defer cancel()
	a, err := retry(trying, &patience{budget: outBudget, hurry: ctx, say: c.say}, func() (Answer, error) {
		attempt, cancel := endAfter(trying, ctx, unlockAttempt)
		defer cancel()
		return c.client.release(attempt, c.releases(c.params.onlyOwn()))
	})
	if _, failed := errors.AsType[*failure](err); failed {
		return fmt.Errorf("unlock %s: %w: what it holds stays held: %s", c.name, err, releaseIt)
	}
	if err != nil {
		return fmt.Errorf("unlock %s: %w", c.name, err)
	}
	if strings.HasPrefix(a.Response, NothingDone) {
		c.say.warn("%s", a.Response)
	} else {
		c.say.info("%s", a.Response)
	}
	return c.report(a, "")
}

// releaseIt is what to do when a release did not succeed.
const releaseIt = "release it with an unlock step, or on the locker's page"

// outlive returns a context that is done that long after ctx is.
func outlive(ctx context.Context, more time.Duration) (context.Context, context.CancelFunc) {
	return endAfter(context.WithoutCancel(ctx), ctx, more)
}

// endAfter returns a context that is done when parent is, or that long after
// signal is and this call.
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

// report answers Concourse with the lock's version as a left it.
func (c *claim) report(a Answer, waited string) error {
	ref, err := json.Marshal(version{strconv.FormatUint(a.Lock.Revision, 10)})
	if err != nil {
		return err
	}
	token := ""
	if a.Token != 0 {
		token = strconv.FormatUint(a.Token, 10)
	}
	return c.answer(result{ref, rows("lock", c.name, "lock_op", string(c.params.lockOp), "key", string(c.params.key),
		"locked_by", string(c.params.lockedBy), "token", token, "waited", waited, "build", c.link)})
}
