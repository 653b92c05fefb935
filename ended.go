package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
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

var hows = []how{endReleased, endFreed, endWithdrawn, endAway, endExpired, endForced, leftNothing, leftRefused}

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
}

// appendTo appends e as JSON. It is not left to encoding/json because ends are most
// of what is encoded: eight with each lock that changes.
func (e end) appendTo(text []byte) []byte {
	text = e.Claim.appendTo(append(text, `{"claim":"`...))
	if e.How != "" {
		text = append(append(text, `","how":"`...), e.How...)
	}
	text = e.At.AppendFormat(append(text, `","at":"`...), time.RFC3339Nano)
	if !e.Ticket.IsZero() {
		text = e.Ticket.appendTo(append(text, `","ticket":"`...))
	}
	return append(text, `"}`...)
}

// memo is an end and when it was last remembered.
type memo struct {
	end
	touched time.Time
}

// endID identifies a claim by two hashes: one of the lock's name, the key and the id,
// and one of locked_by. When the second is zero, every locked_by is meant.
type endID struct {
	claim [16]byte
	name  [8]byte
}

func newEndID(lock, key, lockedBy, id string) endID {
	var e endID
	var quoted []byte
	for _, part := range []string{lock, key, id} {
		quoted = strconv.AppendQuote(quoted, part)
	}
	sum := sha256.Sum256(quoted)
	copy(e.claim[:], sum[:])
	if lockedBy != "" {
		sum = sha256.Sum256([]byte(lockedBy))
		copy(e.name[:], sum[:])
	}
	return e
}

func (e endID) everyName() bool { return e.name == [8]byte{} }

// appendTo appends both hashes as one word.
func (e endID) appendTo(text []byte) []byte {
	var both [len(e.claim) + len(e.name)]byte
	copy(both[copy(both[:], e.claim[:]):], e.name[:])
	return base64.RawURLEncoding.AppendEncode(text, both[:])
}

// UnmarshalText reads what appendTo writes.
func (e *endID) UnmarshalText(text []byte) error {
	b, err := base64.RawURLEncoding.DecodeString(string(text))
	if err != nil || len(b) != len(e.claim)+len(e.name) {
		return fmt.Errorf("%q is not the hash of a claim", text)
	}
	copy(e.name[:], b[copy(e.claim[:], b):])
	return nil
}

// counts reports whether e is remembered of a claim of that name.
func (e end) counts(id endID) bool {
	return e.Claim.name == id.name || e.Claim.everyName() || id.everyName()
}

// endings are what is remembered, committed. The writer owns it; a draft reads it.
type endings struct {
	memos   map[[16]byte][]*memo // by the claim's hash; oldest first
	order   []*memo              // oldest first; with some that are no longer in memos
	size    int                  // of memos
	horizon ticket               // what was forgotten has older tickets
}

func newEndings() *endings { return &endings{memos: map[[16]byte][]*memo{}} }

// load remembers what the locks of a state have kept.
func (m *endings) load(left []end, now time.Time) {
	for _, e := range left {
		kept := &memo{e, e.At}
		m.memos[e.Claim.claim] = append(m.memos[e.Claim.claim], kept)
		m.order = append(m.order, kept)
		m.size++
	}
	slices.SortStableFunc(m.order, func(a, b *memo) int { return a.At.Compare(b.At) })
	m.trim(now)
}

// learn takes over what a draft remembers and has forgotten.
func (m *endings) learn(r *recollection) {
	for claim, list := range r.lists {
		m.set(claim, list)
	}
	m.order = append(m.order, r.added...)
	m.horizon = m.horizon.newest(r.horizon)
}

func (m *endings) set(claim [16]byte, list []*memo) {
	m.size += len(list) - len(m.memos[claim])
	m.memos[claim] = list
	if len(list) == 0 {
		delete(m.memos, claim)
	}
}

// trim forgets what is older than an hour or too much. A take whose ticket is
// not newer than what was forgotten is refused by the horizon from then on.
func (m *endings) trim(now time.Time) {
	for len(m.order) > 0 && (m.size > maxEnded || now.Sub(m.order[0].touched) >= endedKept || !m.has(m.order[0])) {
		m.drop(m.order[0])
		m.order = m.order[1:]
	}
	if len(m.order) > 2*maxEnded {
		m.order = slices.DeleteFunc(m.order, func(e *memo) bool { return !m.has(e) })
	}
}

func (m *endings) has(e *memo) bool { return slices.Contains(m.memos[e.Claim.claim], e) }

func (m *endings) drop(e *memo) {
	list := m.memos[e.Claim.claim]
	if i := slices.Index(list, e); i >= 0 {
		m.set(e.Claim.claim, slices.Concat(list[:i], list[i+1:]))
		m.horizon = m.horizon.newest(e.after())
	}
}

// after returns the horizon that makes forgetting e safe.
func (e end) after() ticket {
	if e.Ticket.IsZero() {
		return ticket{}
	}
	return e.Ticket.beyond()
}

// recollection is what a draft remembers: endings, and what the draft changes in
// them.
type recollection struct {
	past    *endings
	given   ticket               // the last one that was given out
	lists   map[[16]byte][]*memo // by claim, where they differ
	added   []*memo
	horizon ticket
}

func newRecollection(past *endings, given ticket) *recollection {
	return &recollection{past: past, given: given, lists: map[[16]byte][]*memo{}, horizon: past.horizon}
}

// notGiven reports whether a ticket is not this locker's: an old state was
// restored, and the ticket is from before that.
func (r *recollection) notGiven(t ticket) bool { return t.compare(r.given.newest(r.horizon)) > 0 }

// of returns what is remembered of a claim, whatever its name.
func (r *recollection) of(id endID) []*memo {
	if list, ok := r.lists[id.claim]; ok {
		return list
	}
	return r.past.memos[id.claim]
}

// notOlder returns an end of a claim whose ticket is not older than t; nil: there
// is none.
func (r *recollection) notOlder(id endID, t ticket) *memo {
	for _, e := range r.of(id) {
		if e.counts(id) && e.Ticket.compare(t) >= 0 {
			return e
		}
	}
	return nil
}

// pastOf returns how the claim that a release names ended before; nil: it did not.
func (r *recollection) pastOf(id endID) (past *memo) {
	for _, e := range r.of(id) {
		if e.counts(id) && e.How != leftRefused && (past == nil || past.How.trace() || !e.How.trace()) {
			past = e
		}
	}
	return past
}

// add remembers e, returns it as it is remembered, and reports whether that is
// news. A release that ended nothing does not change how the claim ended.
func (r *recollection) add(e end, now time.Time) (end, bool) {
	list := slices.Clone(r.of(e.Claim))
	if i := slices.IndexFunc(list, func(old *memo) bool { return old.Claim == e.Claim }); i >= 0 {
		was := list[i].end
		e.Ticket = e.Ticket.newest(was.Ticket)
		if e.How == leftRefused || e.How == leftNothing && was.How != leftRefused || e.How == endReleased && was.How == endReleased {
			e.How, e.At = was.How, was.At
		}
		if e == was {
			return e, false
		}
		list = slices.Delete(list, i, i+1)
	}
	kept := &memo{e, now}
	r.lists[e.Claim.claim] = append(list, kept)
	r.added = append(r.added, kept)
	return e, true
}

// forget forgets a claim's end, and reports whether there was one.
func (r *recollection) forget(id endID) bool {
	list := r.of(id)
	i := slices.IndexFunc(list, func(e *memo) bool { return e.Claim == id })
	if i < 0 {
		return false
	}
	r.horizon = r.horizon.newest(list[i].after())
	r.lists[id.claim] = slices.Concat(list[:i], list[i+1:])
	return true
}
