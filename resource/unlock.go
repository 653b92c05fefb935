package resource

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// This file is out's unlock, which goes on after an abort.

const (
	unlockTime = 8 * time.Second // how long unlock goes on trying after TERM

	// After TERM, and by `locker run`, an attempt is given up sooner, so that one
	// connection that hangs does not use up the time. Repeating a release is safe: it
	// has an id.
	unlockAttempt = 3500 * time.Millisecond
)

// unlock releases the lock. An abort does not stop it at once: it may be the
// build's ensure that is aborted, and then nobody else would release.
func (c *claim) unlock(ctx context.Context) error {
	trying, cancel := outlive(ctx, unlockTime)
	defer cancel()
	a, err := retry(trying, &patience{budget: c.budget, hurry: ctx, say: c.say}, func() (Answer, error) {
		attempt, cancel := endAfter(trying, ctx, unlockAttempt)
		defer cancel()
		return c.release(attempt, c.params.onlyOwn())
	})
	if _, failed := errors.AsType[*failure](err); failed {
		return fmt.Errorf("unlock %s: %w: what it holds stays held: %s", c.name, err, releaseIt)
	}
	if err != nil {
		return fmt.Errorf("unlock %s: %w", c.name, err)
	}
	c.say.unlocked(a, time.Now())
	c.sayStillHeld(a)
	return c.report(a, "")
}

// sayStillHeld tells people what this build holds of the lock after an unlock. When
// the unlock named a claim that never was, most likely its key or its name is
// misspelt, and what it was meant for stays held.
func (c *claim) sayStillHeld(a Answer) {
	var names []string
	for _, h := range a.Lock.Holders {
		if c.link != "" && h.Link == c.link {
			names = append(names, h.LockedBy)
		}
	}
	if len(names) == 0 || strings.HasPrefix(a.Response, LaterRun) {
		return
	}
	held := clean(fmt.Sprintf("this same build still holds lock %s with the key %s as %s", c.name, a.Lock.Key, list(names[:min(len(names), mostNames)], len(names))))
	if strings.HasPrefix(a.Response, NothingDone) && a.Ended == "" {
		c.say.held("%s: to release that, write its key (and its locked_by) into the unlock", held)
	} else {
		c.say.info("%s", held)
	}
}
