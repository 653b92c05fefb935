package resource

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// This file takes a lock, for out and for `locker run`. It waits in the server's
// queue, tells people what it waits for, and leaves nothing behind when it is
// aborted.
//
// It waits by requests that the server holds open. Each answer shows the queue
// as it is, and the next request takes up the same place: the server keeps it
// for 15 s, longer than any pause between two requests.

const (
	firstWait = time.Second      // of the first request, so that the log soon names the holders
	nextWait  = 10 * time.Second // of the others: how long a change may go unnoticed
	sayAgain  = time.Minute      // after which a line is repeated when nothing has changed

	// An abort is over in giveBackTime, less than the promised 5 s. During the
	// first answerGrace of it the server may still answer the request that takes;
	// then its connection is given up.
	giveBackTime = 4300 * time.Millisecond
	answerGrace  = 1500 * time.Millisecond
)

// taken is how an attempt to take the lock ended.
type taken struct {
	answer Answer
	asked  time.Time // when the request that it answers was sent, or before
	err    error
	left   bool // the server may have a hold or a place of this claim
	onWay  bool // the request's connection was given up: it may still arrive
}

// lock takes the lock, for as long as it takes, and has acquired told. When it
// fails, or ctx is done before acquired has returned, it gives back what the server
// may have.
func (c *claim) lock(ctx context.Context, acquired func(taken) error) error {
	leaving, cancel := outlive(ctx, giveBackTime)
	defer cancel()
	requests, giveUp := context.WithCancel(leaving)
	defer giveUp()
	ended := make(chan taken, 1)
	go func() { ended <- c.take(ctx, requests) }()
	var t taken
	select {
	case t = <-ended:
	case <-ctx.Done():
		t = c.interrupt(leaving, ended, giveUp)
	}
	if t.err == nil && ctx.Err() == nil {
		c.sayAcquired(t.answer)
		t.err = acquired(t)
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("lock %s: stopped by %s: %w", c.name, c.words.stop, c.aborted(leaving, t))
	case t.err != nil:
		return errors.Join(fmt.Errorf("lock %s: %w", c.name, t.err), c.failed(leaving, t))
	}
	return nil
}

// aborted gives back what an abort has left, and says how that went.
func (c *claim) aborted(leaving context.Context, t taken) error {
	a, err := c.giveBack(leaving)
	if err != nil {
		return err
	}
	if strings.HasPrefix(a.Response, LaterRun) {
		return fmt.Errorf("the claim of %s stays: a later run of %s keeps it", c.params.lockedBy, c.words.self)
	}
	if ticket := c.ticket.Load(); t.onWay && ticket != nil && *ticket == "" {
		return fmt.Errorf("the locker has nothing of %s now, but a request that it had not answered may reach it yet%s", c.params.lockedBy, c.words.late)
	}
	return fmt.Errorf("the claim of %s is given back", c.params.lockedBy)
}

// failed gives back what a failure may have left.
func (c *claim) failed(leaving context.Context, t taken) error {
	if !t.left {
		return nil
	}
	leaving, cancel := context.WithTimeout(leaving, giveBackTime)
	defer cancel()
	_, err := c.giveBack(leaving)
	return err
}

// interrupt ends the request that takes. When it returns, the outcome is known or
// the connection is given up, so a release sent after that finds what there is to
// release. The release sent here makes the server answer a request that waits.
func (c *claim) interrupt(leaving context.Context, ended <-chan taken, giveUp func()) taken {
	go c.release(leaving, true)
	timer := time.NewTimer(answerGrace)
	defer timer.Stop()
	select {
	case t := <-ended:
		return t
	case <-timer.C:
		giveUp()
		t := <-ended
		t.onWay = t.err != nil
		return t
	}
}

// take asks for the lock until it is granted or ctx is done. Its requests run
// under the context requests, which outlasts ctx.
func (c *claim) take(ctx, requests context.Context) (t taken) {
	ask := c.wanted()
	limit := &limit{wait: c.params.wait, most: nextWait}
	if c.leased {
		limit.most = min(nextWait, time.Duration(c.params.ttl)/4) // the ttl may have begun when the request was sent
	}
	trying := &patience{budget: c.budget, say: c.say}
	queue := &queueLog{claim: c}
	asked := false // for the lock, not only for a ticket
	for t.err = ctx.Err(); t.err == nil; t.err = ctx.Err() {
		t.asked = time.Now()
		var ticket *string
		attempt, cancel := c.attempt(requests, limit)
		if ticket, t.err = c.fetch(attempt); t.err == nil {
			ask.Ticket, ask.Wait = *ticket, Duration(limit.next())
			t.answer, t.err = c.client.take(attempt, ask)
			c.drop(ticket, t.err)
			asked = true
		}
		cancel()
		refused, isRefusal := errors.AsType[*refusal](t.err)
		switch {
		case t.err == nil:
			t.left = true
			return t
		case isRefusal && refused.position == 0 && (refused.ended || ask.Wait > 0):
			t.err, t.left = fmt.Errorf("%w: a release by %s, or by a later run of it, ended the claim", refused, c.words.self), false
			return t
		case isRefusal:
			t.left = t.left || refused.position > 0
			trying.reset()
			trying.budget = 0 // it is queued: no outage is too long
			if limit.begin(); limit.over() {
				t.err = fmt.Errorf("not free within %s: %w", time.Duration(*c.params.wait), refused)
				return t
			}
			queue.show(refused)
			early(ctx, t.asked, time.Duration(ask.Wait))
		default:
			queue.shown = "" // after an outage people want to know that it is over
			if f, ok := errors.AsType[*failure](t.err); asked && (!ok || !f.unheard) {
				t.left = true
			}
			waiting, cancel := limit.bound(ctx)
			err := trying.after(waiting, t.err)
			cancel()
			if limit.over() && ctx.Err() == nil {
				err = fmt.Errorf("not taken when the wait of %s was over: %w", time.Duration(*c.params.wait), t.err)
			}
			if err != nil {
				t.err = err
				return t
			}
		}
	}
	return t
}

// attempt bounds one attempt of a `locker run` that does not wait for ever: a locker
// that hangs keeps it for 2 s longer at most.
func (c *claim) attempt(ctx context.Context, l *limit) (context.Context, context.CancelFunc) {
	if !c.leased || c.params.wait == nil {
		return context.WithCancel(ctx)
	}
	end := c.started.Add(time.Duration(*c.params.wait))
	if !l.since.IsZero() {
		end = l.end()
	}
	return context.WithTimeout(ctx, max(time.Until(end), 0)+2*time.Second)
}

// wanted is a request that takes, without its ticket and how long it may wait.
func (c *claim) wanted() Take {
	ask := Take{
		Key: c.params.key, LockedBy: c.params.lockedBy, ID: c.id, Link: c.link,
		TTL: Duration(c.params.ttl), Reason: c.params.reason,
	}
	if c.params.slots != nil {
		ask.Slots = *c.params.slots
	}
	return ask
}

// limit is how long a claim may wait. It counts from the first answer: an outage
// before that has its own time.
type limit struct {
	wait  *span         // nil: for ever
	most  time.Duration // that one request waits
	since time.Time     // zero: there was no answer yet
}

// begin says that there was an answer.
func (l *limit) begin() {
	if l.since.IsZero() {
		l.since = time.Now()
	}
}

// next returns how long the next request may wait.
func (l *limit) next() time.Duration {
	wait := l.most
	if l.since.IsZero() {
		wait = min(wait, firstWait)
	}
	if l.wait != nil && l.since.IsZero() {
		return min(wait, time.Duration(*l.wait))
	}
	if l.wait != nil {
		return min(wait, max(time.Until(l.end()), time.Millisecond))
	}
	return wait
}

func (l *limit) end() time.Time { return l.since.Add(time.Duration(*l.wait)) }

// over reports whether the claim has waited long enough.
func (l *limit) over() bool {
	return l.wait != nil && !l.since.IsZero() && !time.Now().Before(l.end())
}

// bound returns a context that is done when the time is over.
func (l *limit) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if l.wait == nil || l.since.IsZero() {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, l.end())
}

// early pauses when an answer came long before the end of the wait that was asked
// for, so that a server which answers like that is not asked without a break.
func early(ctx context.Context, asked time.Time, wait time.Duration) {
	if time.Since(asked) > wait/2 {
		return
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
}

// sayAcquired tells people that the lock was granted.
func (c *claim) sayAcquired(a Answer) {
	line := fmt.Sprintf("%s (waited %s, token %d)", a.Response, c.waited(), a.Token)
	if c.params.slots != nil {
		line = fmt.Sprintf("%s (waited %s, token %d, slot %d)", a.Response, c.waited(), a.Token, a.Slot)
	}
	if a.Repeat {
		c.say.warn("%s", line)
	} else {
		c.say.info("%s", line)
	}
}

// waited is how long ago the claim began.
func (c *claim) waited() string { return age(time.Since(c.started)).String() }

// giveBack releases what this build holds or waits for, and nothing else.
func (c *claim) giveBack(ctx context.Context) (Answer, error) {
	a, _, err := c.released(ctx, answerTime)
	return a, err
}

// released is giveBack with attempts of at most that time each. It returns the answer,
// and whether an attempt before that may have done what was asked.
func (c *claim) released(ctx context.Context, within time.Duration) (a Answer, before bool, err error) {
	hurry, now := context.WithCancel(ctx)
	now()
	a, err = retry(ctx, &patience{hurry: hurry, say: c.say}, func() (Answer, error) {
		attempt, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		a, err := c.release(attempt, true)
		if f, ok := errors.AsType[*failure](err); err != nil && (!ok || !f.unheard) {
			before = true
		}
		return a, err
	})
	if err == nil {
		return a, before, nil
	}
	stays := "but a hold stays: " + releaseIt
	if c.params.ttl > 0 {
		stays = fmt.Sprintf("a hold by its ttl of %s", time.Duration(c.params.ttl))
	}
	return Answer{}, before, fmt.Errorf("lock %s could not be given back: %w: a place in the queue ends by itself, %s", c.name, err, stays)
}

// queueLog shows people what a claim waits for.
type queueLog struct {
	*claim
	shown string // what was said last, without what changes by itself
	at    time.Time
}

// show says who holds the lock and where in line the claim is, whenever that has
// changed and at least once a minute.
func (q *queueLog) show(r *refusal) {
	now := time.Now()
	place := inLine(r.lock, r.position)
	fresh := HeldBy(q.name, r.lock, time.Time{}) + place
	if fresh == q.shown && now.Add(nextWait+time.Second).Sub(q.at) < sayAgain {
		return
	}
	q.shown, q.at = fresh, now
	line := fmt.Sprintf("%s; %s is %s", HeldBy(q.name, r.lock, now), q.params.lockedBy, place)
	if slices.ContainsFunc(r.lock.Holders, q.own) {
		line += "; it is held by " + q.words.outer + ": it waits for itself"
	}
	if now.Sub(q.started) > sayAgain {
		line += "; see " + q.client.address + "/#" + url.PathEscape(q.name)
	}
	q.say.waiting(line)
}

// own reports whether a hold is that of this same build, or of the `locker run`
// whose command asks.
func (q *queueLog) own(h Holder) bool {
	if q.leased {
		return q.getenv("LOCKER_LOCK") == q.name && q.getenv("LOCKER_TOKEN") == number(h.Token)
	}
	return q.link != "" && h.Link == q.link
}
