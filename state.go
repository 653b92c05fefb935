package main

import (
	"cmp"
	"errors"
	"iter"
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
	chunks   []*chunk // in the order of their locks' names
	claims   int      // holders and waiters of all locks
}

// chunkSize is about how many locks a chunk has: as many chunks as locks in each
// when there are most of them.
const chunkSize = 128

// chunk is a run of neighbouring locks, at least one. To change a lock, its chunk
// is replaced by a new one; the others stay as they are.
type chunk struct {
	locks []*lock  // in the order of their names
	known *summary // nil: not looked at yet; the writer's alone
	saved []byte   // their lines in the state file, once written there; the writer's alone

	list shared[[]byte] // as the API's list shows them, see listed
}

// summary is what the writer looks for in all locks.
type summary struct {
	expires time.Time // when the first hold expires; zero is never
	waiting bool      // somebody waits for one of them
	idle    []*lock   // nobody has them or waits for them; longest idle first
}

// snapshot is a committed state and the signal that there is a newer one.
type snapshot struct {
	*state
	replaced chan struct{}
}

// lock is one lock as the state file holds it. A free lock has no Key.
type lock struct {
	name     string
	Key      string   `json:"key"`
	Revision uint64   `json:"revision"` // of the last change of its holders
	Holders  []holder `json:"holders,omitempty"`
	Waiters  []waiter `json:"waiters,omitempty"` // first in line first
	Left     []end    `json:"-"`                 // claims that ended last, oldest first

	*encodings
}

// encodings of a lock that no longer changes.
type encodings struct {
	saved []byte         // its line in the state file, a part of its chunk's; the writer's alone
	json  shared[[]byte] // as the API shows it, see shown
	list  shared[[]byte] // as the API's list shows it, see listed
	held  shared[string] // who holds it, in words
}

// shared is made once, for all who ask. It is safe for concurrent use.
type shared[T any] struct {
	once  sync.Once
	value T
}

func (s *shared[T]) get(make func() T) T {
	s.once.Do(func() { s.value = make() })
	return s.value
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

// all returns the locks in the order of their names.
func (s *state) all() iter.Seq[*lock] {
	return func(yield func(*lock) bool) {
		for _, c := range s.chunks {
			for _, l := range c.locks {
				if !yield(l) {
					return
				}
			}
		}
	}
}

// size returns how many locks there are.
func (s *state) size() (n int) {
	for _, c := range s.chunks {
		n += len(c.locks)
	}
	return n
}

// find returns where the lock of that name is, or belongs: the chunk and the
// place in it.
func (s *state) find(name string) (i, j int, found bool) {
	i, found = slices.BinarySearchFunc(s.chunks, name, func(c *chunk, name string) int { return cmp.Compare(c.locks[0].name, name) })
	if found || len(s.chunks) == 0 {
		return i, 0, found
	}
	i = max(i-1, 0)
	j, found = slices.BinarySearchFunc(s.chunks[i].locks, name, func(l *lock, name string) int { return cmp.Compare(l.name, name) })
	return i, j, found
}

// put makes l the lock of its name. Neither the list of chunks nor a chunk that
// others may have is changed.
func (s *state) put(l *lock) {
	i, j, found := s.find(l.name)
	switch {
	case len(s.chunks) == 0:
		s.replace(i, []*lock{l})
	case found:
		s.replace(i, slices.Concat(s.chunks[i].locks[:j], []*lock{l}, s.chunks[i].locks[j+1:]))
	default:
		s.replace(i, slices.Concat(s.chunks[i].locks[:j], []*lock{l}, s.chunks[i].locks[j:]))
	}
}

// remove forgets the lock of that name, in the way of put.
func (s *state) remove(name string) {
	i, j, _ := s.find(name)
	s.replace(i, slices.Concat(s.chunks[i].locks[:j], s.chunks[i].locks[j+1:]))
}

// replace puts locks in place of those of the chunk at i. It divides a chunk that
// is too large and joins two that are small.
func (s *state) replace(i int, locks []*lock) {
	from, to := i, min(i+1, len(s.chunks))
	if to < len(s.chunks) && len(locks)+len(s.chunks[to].locks) <= chunkSize {
		locks = slices.Concat(locks, s.chunks[to].locks)
		to++
	}
	if from > 0 && len(locks)+len(s.chunks[from-1].locks) <= chunkSize {
		from--
		locks = slices.Concat(s.chunks[from].locks, locks)
	}
	s.chunks = slices.Concat(s.chunks[:from], inChunks(locks), s.chunks[to:])
}

// inChunks divides locks.
func inChunks(locks []*lock) []*chunk {
	if len(locks) == 0 {
		return nil
	}
	if len(locks) <= 2*chunkSize {
		return []*chunk{{locks: locks}}
	}
	return append(inChunks(locks[:chunkSize]), inChunks(locks[chunkSize:])...)
}

// summary returns what there is to know of the chunk's locks, which no longer
// change.
func (c *chunk) summary() *summary {
	if c.known == nil {
		c.known = &summary{}
		for _, l := range c.locks {
			c.known.add(l)
		}
		slices.SortFunc(c.known.idle, func(a, b *lock) int { return cmp.Compare(a.Revision, b.Revision) })
	}
	return c.known
}

func (s *summary) add(l *lock) {
	for _, h := range l.Holders {
		if !h.Expires.IsZero() && (s.expires.IsZero() || h.Expires.Before(s.expires)) {
			s.expires = h.Expires
		}
	}
	if len(l.Waiters) > 0 {
		s.waiting = true
	} else if l.free() {
		s.idle = append(s.idle, l)
	}
}

// look returns the lock of that name for reading; a name never used is free.
func (s *state) look(name string) *lock {
	if i, j, found := s.find(name); found {
		return s.chunks[i].locks[j]
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
	for _, c := range s.chunks {
		if expires := c.summary().expires; !expires.IsZero() && (next.IsZero() || expires.Before(next)) {
			next = expires
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
