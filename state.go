package main

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file is what is saved and shown: the locks, and how one is looked up.

// state is every lock. Once published it is never changed: a draft copies what
// it changes.
type state struct {
	revision uint64
	locks    []*lock // in the order of their names
	claims   int     // holders and waiters of all locks
}

// lock is one lock as the state file holds it. A free lock has no Key.
type lock struct {
	name     string
	Key      string   `json:"key"`
	Revision uint64   `json:"revision"` // of the last change of its holders
	Holders  []holder `json:"holders,omitempty"`
	Waiters  []waiter `json:"waiters,omitempty"` // first in line first
	Left     []end    `json:"left,omitempty"`    // claims that ended last, oldest first

	*encodings
}

// encodings of a lock that no longer changes.
type encodings struct {
	saved    []byte // its line in the state file, once written there; the writer's alone
	once     sync.Once
	json     []byte // as the API shows it, once it was asked for; see shown
	held     string // who holds it, in words
	listOnce sync.Once
	list     []byte // as the API's list shows it; see listed
}

// identity is what makes two claims the same one. Without an ID a claim is
// like no other.
type identity struct {
	Key      string `json:"key"`
	LockedBy string `json:"locked_by"`
	ID       string `json:"id,omitempty"`
}

// claim is one asker's wish to hold a lock.
type claim struct {
	identity
	TTL    resource.Duration `json:"ttl,omitzero"` // zero never expires
	Link   string            `json:"link,omitempty"`
	Slots  int               `json:"slots,omitempty"` // at most so many holders at once; 0 is no limit
	Reason string            `json:"reason,omitempty"`
	Ticket ticket            `json:"ticket,omitzero"` // the newest that a take brought
}

// holder is a granted claim; its key is the lock's.
type holder struct {
	LockedBy string    `json:"locked_by"`
	ID       string    `json:"id,omitempty"`
	Link     string    `json:"link,omitempty"`
	Since    time.Time `json:"since"`
	Expires  time.Time `json:"expires,omitzero"` // by the wall clock; zero is never
	Token    uint64    `json:"token"`            // the revision at which it was granted
	Slot     int       `json:"slot"`             // its number among the holders, from 1
	Slots    int       `json:"slots,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Ticket   ticket    `json:"ticket,omitzero"` // the newest that a take brought
}

// waiter is a queued claim. The revision at which it was queued names it as
// long as it waits.
type waiter struct {
	claim
	Since    time.Time `json:"since"`
	Revision uint64    `json:"revision"`
}

// find returns the lock of that name, nil when it is not known, and its place.
func (s *state) find(name string) (*lock, int) {
	i, found := slices.BinarySearchFunc(s.locks, name, func(l *lock, name string) int { return cmp.Compare(l.name, name) })
	if !found {
		return nil, i
	}
	return s.locks[i], i
}

// look returns the lock of that name for reading; a name never used is free.
func (s *state) look(name string) *lock {
	if l, _ := s.find(name); l != nil {
		return l
	}
	return newLock(name)
}

func newLock(name string) *lock {
	return &lock{name: name, encodings: &encodings{}}
}

func (l *lock) free() bool { return len(l.Holders) == 0 }

// fits reports whether a claim can join the holders.
func (l *lock) fits(c claim) bool {
	return l.free() || l.Key == c.Key && l.named(c.LockedBy) < 0 && len(l.Holders) < l.slots(c)
}

// slots returns how many holders there may be with c: the fewest that one of them
// wants.
func (l *lock) slots(c claim) int {
	fewest := math.MaxInt
	if c.Slots > 0 {
		fewest = c.Slots
	}
	for _, h := range l.Holders {
		if h.Slots > 0 {
			fewest = min(fewest, h.Slots)
		}
	}
	return fewest
}

// slot returns the smallest number that no holder has.
func (l *lock) slot() int {
	for slot := 1; ; slot++ {
		if !slices.ContainsFunc(l.Holders, func(h holder) bool { return h.Slot == slot }) {
			return slot
		}
	}
}

func (l *lock) named(lockedBy string) int {
	return slices.IndexFunc(l.Holders, func(h holder) bool { return h.LockedBy == lockedBy })
}

func (l *lock) holding(c identity) int {
	i := l.named(c.LockedBy)
	if i < 0 || c.ID == "" || l.Key != c.Key || l.Holders[i].ID != c.ID {
		return -1
	}
	return i
}

func (l *lock) waiting(c identity) int {
	return slices.IndexFunc(l.Waiters, func(w waiter) bool { return c.ID != "" && w.identity == c })
}

// whose returns the claim that a release means: when it does not name one, that
// which its id has under the key, or else the one of the key's value.
func (l *lock) whose(r identity) identity {
	if r.LockedBy != "" {
		return r
	}
	for _, h := range l.Holders {
		if r.ID != "" && l.Key == r.Key && h.ID == r.ID {
			return identity{r.Key, h.LockedBy, r.ID}
		}
	}
	for _, w := range l.Waiters {
		if r.ID != "" && w.Key == r.Key && w.ID == r.ID {
			return w.identity
		}
	}
	return identity{r.Key, r.Key, r.ID}
}

// position returns the place in the queue of the waiter with that revision; 1
// is next, 0 is not queued.
func (l *lock) position(revision uint64) int {
	return 1 + slices.IndexFunc(l.Waiters, func(w waiter) bool { return w.Revision == revision })
}

// nextExpiry returns when the first hold expires; zero is never.
func (s *state) nextExpiry() time.Time {
	var next time.Time
	for _, l := range s.locks {
		for _, h := range l.Holders {
			if !h.Expires.IsZero() && (next.IsZero() || h.Expires.Before(next)) {
				next = h.Expires
			}
		}
	}
	return next
}

// check reports what is wrong with a claim's key, name and id.
func (c identity) check() error {
	err := errors.Join(resource.CheckName("key", c.Key), resource.CheckName("locked_by", c.LockedBy))
	if c.ID != "" {
		err = errors.Join(err, resource.CheckName("id", c.ID))
	}
	return err
}
