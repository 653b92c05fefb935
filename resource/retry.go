package resource

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// This file decides when a failed attempt is repeated, and how often.

const (
	firstPause   = 500 * time.Millisecond // before an attempt is repeated; each next one is twice as long
	hurriedPause = time.Second            // at most, when little time is left
	maxPause     = 10 * time.Second       // between attempts
	noHostBudget = time.Minute            // for a name that does not exist, which is most likely a typing error
)

// patience decides whether and when to try again after failures in a row.
type patience struct {
	budget   time.Duration   // how long failures may go on; 0 is for ever
	hurry    context.Context // when it is done, little time is left; nil is never
	say      *speaker
	failures int
	since    time.Time // when the first of them was
}

// after waits before the next attempt, and says so. It returns err when there
// should not be a next one: err is final, the budget is spent, or ctx is done. When
// hurry is done the next attempt comes at once, and from then on pauses are short.
func (p *patience) after(ctx context.Context, err error) error {
	f, ok := errors.AsType[*failure](err)
	if !ok || f.final || ctx.Err() != nil {
		return err
	}
	if p.failures == 0 {
		p.since = time.Now()
	}
	pause := max(pauseAfter(p.failures), min(f.pause, maxPause))
	if p.hurry != nil && p.hurry.Err() != nil {
		pause = min(pause, hurriedPause)
	}
	budget := p.budget
	if f.noHost && budget > noHostBudget { // once the locker has answered, its name is right
		budget = noHostBudget
	}
	until := ""
	if left := budget - time.Since(p.since); budget > 0 {
		if left <= 0 {
			return fmt.Errorf("%w: gave up after %s: %s", err, time.Since(p.since).Round(time.Second), f.afterAll())
		}
		pause = min(pause, left)
		until = ", until " + p.since.Add(budget).UTC().Format(time.TimeOnly) + " UTC"
	}
	p.failures++
	p.say.warn("%s: trying again in %s%s", err, pause.Round(100*time.Millisecond), until)
	return p.sleep(ctx, pause, err)
}

// afterAll says what to do about a failure that did not pass. A locker that answers in
// its own words has the right address, and runs.
func (f *failure) afterAll() string {
	if f.worded {
		return "the locker runs, but cannot do this now: see its /health and its log"
	}
	return "check that this is the locker's address, and that it runs"
}

func (p *patience) sleep(ctx context.Context, pause time.Duration, err error) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	var hurried <-chan struct{}
	if p.hurry != nil && p.hurry.Err() == nil {
		hurried = p.hurry.Done()
	}
	select {
	case <-timer.C:
	case <-hurried:
	case <-ctx.Done():
		return err
	}
	return nil
}

// reset forgets the failures: an attempt succeeded.
func (p *patience) reset() { p.failures = 0 }

// pauseAfter returns how long to wait after that many failures before this one.
// Chance shortens it by up to a quarter, so that many clients do not come back
// at once.
func pauseAfter(failures int) time.Duration {
	pause := maxPause
	if failures < 5 { // 0.5 s doubled five times is beyond the longest pause
		pause = firstPause << failures
	}
	return pause - time.Duration(rand.Int64N(int64(pause/4)))
}

// retry repeats attempt until it succeeds or p has had enough.
func retry[T any](ctx context.Context, p *patience, attempt func() (T, error)) (T, error) {
	for {
		v, err := attempt()
		if err == nil {
			return v, nil
		}
		if err := p.after(ctx, err); err != nil {
			return v, err
		}
	}
}
