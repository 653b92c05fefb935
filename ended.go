package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"time"
)

// This file is the memory of claims that ended. What comes late of one (a
// release that is sent again, a take that a proxy held back) must not touch what
// others have. The memory is the process's: the state keeps the youngest of each
// lock, for the answers that a crash loses.

const (
	endedKept = time.Hour // how long a claim that ended is remembered
	maxEnded  = 20_000    // claims that ended, of all locks
	maxLeft   = 8         // of one lock, in the state
)

// how says how a claim ended, or what a release of it found.
type how string

const (
	endReleased  how = "released"
	endFreed     how = "freed" // by a release of another claim
	endWithdrawn how = "withdrawn"
	endAway      how = "away" // nobody came back for its place
	endExpired   how = "expired"
	endForced    how = "forced"
	leftNothing  how = "nothing" // a release of it found nothing to do
	leftRefused  how = "refused" // a release of it was refused: another key holds the lock
)

// unheard reports whether the run that had the claim may not know that it ended.
func (h how) unheard() bool { return h == endFreed || h == endExpired || h == endForced }

// trace reports whether h is of a release that ended no claim.
func (h how) trace() bool { return h == leftNothing || h == leftRefused }

// end remembers a claim that ended. It is not changed any more.
type end struct {
	Claim  endID     `json:"claim"`
	How    how       `json:"how,omitempty"` // empty in older files
	At     time.Time `json:"at"`
	Ticket ticket    `json:"ticket,omitzero"` // the newest of the claim's and of its releases'

	touched time.Time // when it was last remembered
}

// endID is a hash of a lock's name, a key and an id, and one of a name; a zero
// name is every name.
type endID struct {
	claim [16]byte
	name  [8]byte
}

func newEndID(lock, key, lockedBy, id string) endID {
	var e endID
	sum := sha256.Sum256(fmt.Appendf(nil, "%q%q%q", lock, key, id))
	copy(e.claim[:], sum[:])
	if lockedBy != "" {
		sum = sha256.Sum256([]byte(lockedBy))
		copy(e.name[:], sum[:])
	}
	return e
}

func (e endID) everyName() bool { return e.name == [8]byte{} }

// MarshalText writes both hashes as one word.
func (e endID) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, slices.Concat(e.claim[:], e.name[:])), nil
}

// UnmarshalText reads what MarshalText writes.
func (e *endID) UnmarshalText(text []byte) error {
	b, err := base64.RawURLEncoding.DecodeString(string(text))
	if err != nil || len(b) != len(e.claim)+len(e.name) {
		return fmt.Errorf("%q is not the hash of a claim", text)
	}
	copy(e.name[:], b[copy(e.claim[:], b):])
	return nil
}

// counts reports whether e is remembered of a claim of that name.
func (e *end) counts(id endID) bool {
	return e.Claim.name == id.name || e.Claim.everyName() || id.everyName()
}

// endings are what is remembered, committed. The writer owns it; a draft reads it.
type endings struct {
	ends    map[[16]byte][]*end // by the claim's hash; oldest first
	order   []*end              // oldest first; with some that are no longer in ends
	size    int                 // of ends
	horizon ticket              // all that is remembered or was forgotten has an older one, or is in ends
}

func newEndings() *endings { return &endings{ends: map[[16]byte][]*end{}} }

// load remembers what the locks of a state have kept.
func (m *endings) load(left []end, now time.Time) {
	for _, e := range left {
		e.touched = e.At
		m.ends[e.Claim.claim] = append(m.ends[e.Claim.claim], &e)
		m.order = append(m.order, &e)
		m.size++
	}
	slices.SortStableFunc(m.order, func(a, b *end) int { return a.At.Compare(b.At) })
	m.trim(now)
}

// learn takes over what a draft remembers and has forgotten.
func (m *endings) learn(ends map[[16]byte][]*end, added []*end, horizon ticket) {
	for claim, list := range ends {
		m.size += len(list) - len(m.ends[claim])
		m.ends[claim] = list
		if len(list) == 0 {
			delete(m.ends, claim)
		}
	}
	m.order = append(m.order, added...)
	m.horizon = m.horizon.newest(horizon)
}

// trim forgets what is older than an hour or too much. A take whose ticket is
// not newer than what was forgotten is refused by the horizon from then on.
func (m *endings) trim(now time.Time) {
	for len(m.order) > 0 && (m.size > maxEnded || now.Sub(m.order[0].touched) >= endedKept || !m.has(m.order[0])) {
		m.drop(m.order[0])
		m.order = m.order[1:]
	}
	if len(m.order) > 2*maxEnded {
		m.order = slices.DeleteFunc(m.order, func(e *end) bool { return !m.has(e) })
	}
}

func (m *endings) has(e *end) bool { return slices.Contains(m.ends[e.Claim.claim], e) }

func (m *endings) drop(e *end) {
	list := m.ends[e.Claim.claim]
	i := slices.Index(list, e)
	if i < 0 {
		return
	}
	m.size--
	if list = slices.Concat(list[:i], list[i+1:]); len(list) > 0 {
		m.ends[e.Claim.claim] = list
	} else {
		delete(m.ends, e.Claim.claim)
	}
	m.horizon = m.horizon.newest(horizonAfter(e))
}

// horizonAfter returns the horizon that makes forgetting e safe.
func horizonAfter(e *end) ticket {
	if e.Ticket.IsZero() {
		return ticket{}
	}
	return e.Ticket.beyond()
}
