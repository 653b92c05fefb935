package resource

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// This file is a lock that a process holds for as long as it lives, by a ttl that
// it renews: the client of `locker run`.

// Wish is a claim of a process that is not a build. Empty members are unset.
type Wish struct {
	URI                string // of the locker, http or https
	Username, Password string
	CACert             string // PEM
	SkipValidation     bool
	Lock, Key          string
	LockedBy           string // the key when empty
	Link, Reason       string
	Slots              int           // 0 is no limit
	TTL                time.Duration // of the hold
	Wait               *time.Duration
	Spare              time.Duration // before the end of its ttl, by when a hold that cannot be renewed is lost
}

// runNames are what the members of a wish are called in messages, for those that a
// resource's source has too.
var runNames = sourceNames{"the locker's address (-uri, LOCKER_URI)", "the lock's name", "LOCKER_USERNAME", "LOCKER_PASSWORD", "-ca-cert (LOCKER_CA_CERT)"}

var runWords = claimWords{"this same command", "the locker run around it", "a signal", ""}

// Hold is a lock that is held. It is for one goroutine at a time, but for Keep.
type Hold struct {
	Token uint64 // its fencing token
	Slot  int
	claim *claim
	spare time.Duration
	sent  time.Time // when the last request was sent that began the ttl anew
	wall  func() time.Time
	since time.Time // sent, by the wall clock
}

// ErrLost is why a hold is over: by force, by its ttl, with the locker's state, or as
// far as anybody can tell, since the locker has not answered for so long.
var ErrLost = errors.New("is lost")

// NewTake checks a wish and returns what takes the lock, waiting in the queue and
// saying on stderr what it waits for. In a task of Concourse the build is its link.
// Its error lists every mistake in the wish. When ctx is done, the take gives back
// what it has, within 5 s, and fails.
func NewTake(w Wish, getenv func(string) string, stderr io.Writer, colours bool) (func(ctx context.Context) (*Hold, error), error) {
	return w.take(&program{getenv: getenv, say: &speaker{w: stderr, plain: !colours}, dial: realDialer()})
}

func (w Wish) take(p *program) (func(ctx context.Context) (*Hold, error), error) {
	from := &source{
		lockerURI: w.URI, lockName: w.Lock, username: w.Username, password: w.Password,
		caCert: w.CACert, skipValidation: flag(w.SkipValidation), names: runNames,
	}
	params := outParams{key: w.Key, lockOp: "lock", lockedBy: w.LockedBy, ttl: lease(w.TTL), reason: w.Reason}
	if w.Slots != 0 {
		params.slots = &w.Slots
	}
	budget := outBudget
	if w.Wait != nil {
		params.wait = new(span(*w.Wait))
		budget = max(min(budget, *w.Wait), time.Nanosecond)
	}
	err := errors.Join(from.check(), CheckNewLockName("the lock's name", w.Lock), params.check(p.getenv), CheckLink(w.Link))
	if err != nil {
		return nil, err
	}
	c := &claim{program: p, words: runWords, leased: true, client: newClient(from, p.dial), name: w.Lock, params: params, id: rand.Text(), link: cmp.Or(w.Link, buildLink(p.getenv)), budget: budget}
	return func(ctx context.Context) (h *Hold, err error) {
		c.started = time.Now()
		err = c.lock(ctx, func(t taken) error {
			h = &Hold{Token: t.answer.Token, Slot: t.answer.Slot, claim: c, spare: w.Spare, sent: t.asked, wall: wallClock, since: t.asked.Round(0)}
			return nil
		})
		if err == nil && time.Since(h.sent) > w.TTL/4 { // the answer was long on its way
			if err = h.renew(ctx, w.TTL/4); err != nil {
				err = errors.Join(fmt.Errorf("lock %s: it was granted, but not renewed: %w", w.Lock, err), c.failed(context.WithoutCancel(ctx), taken{left: true}))
			}
		}
		return h, err
	}, nil
}

func wallClock() time.Time { return time.Now().Round(0) }

// NotFree reports whether a lock was not taken because another held it for as long
// as the wish waits.
func NotFree(err error) bool {
	_, ok := errors.AsType[*refusal](err)
	return ok
}

// Keep renews the hold every quarter of its ttl until ctx is done, and then returns
// nil. Otherwise the hold is lost: its error is ErrLost, with why.
func (h *Hold) Keep(ctx context.Context) error {
	ttl := time.Duration(h.claim.params.ttl)
	next, why, slept := h.sent.Add(ttl/4), error(nil), time.Duration(0)
	for {
		if !h.await(ctx, next, slept) {
			return nil
		}
		slept = h.slept()
		end := h.sent.Add(ttl - h.spare)
		left := time.Until(end)
		if left <= 0 && why == nil {
			why = errors.New("this process stood still")
		}
		if left <= 0 {
			return h.lost("it was not renewed for %s: %w", age(time.Since(h.sent)), why)
		}
		why = h.renew(ctx, min(left, answerTime))
		if ctx.Err() != nil {
			return nil
		}
		if why == nil {
			next, slept = h.sent.Add(ttl/4), 0
			continue
		}
		switch f, ok := errors.AsType[*failure](why); {
		case !ok:
			return h.lost("%w", why)
		case f.stale:
			h.claim.ticket.Store(nil) // for the release
			return h.lost("it was forced, or expired, or the locker's state is another one")
		}
		if slept >= time.Second && time.Until(end) < slept { // less is only how two clocks differ
			return h.lost("this machine slept for %s: %w", age(slept), why)
		}
		pause := min(max(ttl/32, time.Second), time.Until(end))
		if next = time.Now().Add(pause); pause <= 0 {
			continue
		}
		h.claim.say.warn("lock %s was not renewed: %s: trying again in %s", h.claim.name, why, pause.Round(100*time.Millisecond))
	}
}

func (h *Hold) lost(format string, args ...any) error {
	return fmt.Errorf("lock %s %w: %w", h.claim.name, ErrLost, fmt.Errorf(format, args...))
}

// slept returns for how long the machine has slept since the ttl began: the monotonic
// clock stands still then, and the wall clock does not.
func (h *Hold) slept() time.Duration { return h.wall().Sub(h.since) - time.Since(h.sent) }

// await waits until it is time to renew, or the machine has slept for a quarter of the
// ttl more than is known. It reports false when ctx is done.
func (h *Hold) await(ctx context.Context, next time.Time, known time.Duration) bool {
	for ctx.Err() == nil {
		left := time.Until(next)
		if left <= 0 || h.slept()-known > time.Duration(h.claim.params.ttl)/4 {
			return true
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(left, time.Second)):
		}
	}
	return false
}

// renew begins the ttl anew. Its error is a *failure when the locker has not said
// that the hold is over, but for one that is stale.
func (h *Hold) renew(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	ask, sent, since := h.claim.wanted(), time.Now(), h.wall()
	if ticket := h.claim.ticket.Load(); ticket != nil {
		ask.Ticket = *ticket
	}
	a, err := h.claim.client.take(ctx, ask)
	if err != nil {
		return err
	}
	if !a.Repeat || a.Token != h.Token {
		return fmt.Errorf("it was somebody else's meanwhile, or free: %s", a.Response)
	}
	h.sent, h.since = sent, since
	return nil
}

// Release gives the lock back. It goes on trying until ctx is done. Its error is
// ErrLost when the hold was over before, whether Keep has noticed it or not.
func (h *Hold) Release(ctx context.Context) error {
	a, before, err := h.claim.released(ctx, unlockAttempt)
	ours := before && (a.Ended == "released" || a.Ended == "") // by an attempt whose answer was lost
	switch {
	case err != nil:
		return err
	case ours, !strings.HasPrefix(a.Response, NothingDone):
		return nil
	}
	return h.lost("%s", strings.TrimPrefix(a.Response, NothingDone))
}
