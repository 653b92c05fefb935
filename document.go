package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file is the saved state as JSON: how it is written, how it and the
// original locker's are read, and what is refused because the rules could not
// have made it.

// stateVersion is the version of the state file's format.
const stateVersion = 2

const newLine = 512 // bytes of a lock's line, about: most have less

// maxRevision is the last one that every reader of JSON reads exactly: a
// million changes a second do not get there in 285 years.
const maxRevision = 1 << 53

// pieces returns the state file's content: one line a lock, so that a person can
// read it. Only chunks and locks that changed are encoded anew.
func (s *state) pieces() [][]byte {
	pieces := [][]byte{fmt.Appendf(nil, "{\"version\": %d, \"revision\": %d, \"locks\": {", stateVersion, s.revision)}
	for i, c := range s.chunks {
		if i > 0 {
			pieces = append(pieces, []byte(","))
		}
		pieces = append(pieces, c.encoded())
	}
	return append(pieces, []byte("\n}}\n"))
}

// encoded returns the lines of a chunk that no longer changes, each with a line
// break before it.
func (c *chunk) encoded() []byte {
	if c.saved != nil {
		return c.saved
	}
	var lines bytes.Buffer
	lines.Grow(c.size())
	enc := newEncoder(&lines)
	ends := make([]int, len(c.locks))
	for i, l := range c.locks {
		if i > 0 {
			lines.WriteByte(',')
		}
		if l.saved == nil {
			l.encodeTo(&lines, enc)
		} else {
			lines.Write(l.saved)
		}
		ends[i] = lines.Len()
	}
	c.saved = lines.Bytes()
	begin := 0
	for i, l := range c.locks {
		l.saved = c.saved[begin:ends[i]]
		begin = ends[i] + len(",")
	}
	return c.saved
}

// size returns about how many bytes the lines of a chunk have.
func (c *chunk) size() (n int) {
	for _, l := range c.locks {
		if n += len(l.saved) + 1; l.saved == nil {
			n += newLine
		}
	}
	return n
}

func (l *lock) encodeTo(line *bytes.Buffer, enc *json.Encoder) {
	line.WriteByte('\n')
	mustEncode(enc, l.name)
	line.Truncate(line.Len() - 1) // the newline that every Encode adds
	line.WriteString(": ")
	l.objectTo(line, enc)
}

// object returns a lock as it is saved, without its name.
func (l *lock) object() []byte {
	var line bytes.Buffer
	l.objectTo(&line, newEncoder(&line))
	return line.Bytes()
}

func (l *lock) objectTo(line *bytes.Buffer, enc *json.Encoder) {
	mustEncode(enc, l)
	line.Truncate(line.Len() - 1)
	if len(l.Left) == 0 {
		return
	}
	line.Truncate(line.Len() - 1) // the brace
	separator := `,"left":[`
	for _, e := range l.Left {
		line.WriteString(separator)
		line.Write(e.appendTo(line.AvailableBuffer()))
		separator = ","
	}
	line.WriteString("]}")
}

// encode returns v as JSON.
func encode(v any) []byte {
	var b bytes.Buffer
	mustEncode(newEncoder(&b), v)
	return b.Bytes()[:b.Len()-1]
}

// newEncoder leaves <, > and & as they are: they occur in links.
func newEncoder(b *bytes.Buffer) *json.Encoder {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	return enc
}

func mustEncode(enc *json.Encoder, v any) {
	if err := enc.Encode(v); err != nil {
		panic(err) // strings, numbers and times of four-digit years always encode
	}
}

// decodeState reads a state file. The original locker's, which has no version,
// is read as well, its holders held since now; original tells.
func decodeState(data []byte, now time.Time) (s *state, original bool, err error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, false, errors.New("it is empty")
	}
	members := map[string]member{}
	err = resource.Object(data, func(name string, value json.RawMessage, offset int) error {
		members[name] = member{value, offset}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("it does not parse: %w", err)
	}
	if v, ok := members["version"]; !ok || v.value[0] == '{' {
		s, err = decodeOriginal(members, now)
		return s, true, err
	}
	s, err = decodeMembers(members)
	return s, false, err
}

// member is a member of the state file's outermost object.
type member struct {
	value  json.RawMessage
	offset int
}

func decodeMembers(members map[string]member) (*state, error) {
	var number int
	if err := json.Unmarshal(members["version"].value, &number); err != nil || number != stateVersion {
		return nil, fmt.Errorf("it is of version %s, and this locker reads %d (at byte %d)", members["version"].value, stateVersion, members["version"].offset)
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if !slices.Contains([]string{"version", "revision", "locks"}, name) {
			return nil, fmt.Errorf("%q at byte %d: it must have version, revision and locks, and nothing else", name, members[name].offset)
		}
	}
	if len(members) < 3 {
		return nil, errors.New("it must have version, revision and locks")
	}
	var at uint64
	revision, locks := members["revision"], members["locks"]
	if err := json.Unmarshal(revision.value, &at); err != nil || string(revision.value) == "null" || at > maxRevision {
		return nil, fmt.Errorf("\"revision\" at byte %d: %s is not a number up to %d", revision.offset, revision.value, uint64(maxRevision))
	}
	all, err := decodeLocks(locks, at)
	if err != nil {
		return nil, fmt.Errorf("\"locks\" at byte %d: %w", locks.offset, err)
	}
	return newState(at, all), nil
}

// newState returns a state that has these locks.
func newState(revision uint64, locks []*lock) *state {
	s := &state{revision: revision}
	for _, l := range locks {
		s.claims += len(l.Holders) + len(l.Waiters)
	}
	slices.SortFunc(locks, func(a, b *lock) int { return strings.Compare(a.name, b.name) })
	s.replace(0, locks)
	return s
}

func decodeLocks(m member, revision uint64) (locks []*lock, err error) {
	err = resource.Object(m.value, func(name string, value json.RawMessage, offset int) error {
		l := newLock(name)
		saved := struct {
			*lock
			Left []savedEnd `json:"left"`
		}{lock: l}
		dec := json.NewDecoder(bytes.NewReader(value))
		dec.DisallowUnknownFields()
		err := dec.Decode(&saved)
		for _, e := range saved.Left {
			l.Left = append(l.Left, e.in(name))
		}
		l.giveSlots()
		if err == nil {
			err = l.check(revision)
		}
		if err != nil {
			return fmt.Errorf("lock %q at byte %d: %w", name, m.offset+offset, err)
		}
		locks = append(locks, l)
		return nil
	})
	return locks, err
}

// giveSlots gives the holders of an older file, which have none, slots in the order
// of their tokens.
func (l *lock) giveSlots() {
	if slices.ContainsFunc(l.Holders, func(h holder) bool { return h.Slot != 0 }) {
		return
	}
	order := make([]*holder, len(l.Holders))
	for i := range l.Holders {
		order[i] = &l.Holders[i]
	}
	slices.SortFunc(order, func(a, b *holder) int { return cmp.Compare(a.Token, b.Token) })
	for i, h := range order {
		h.Slot = i + 1
	}
}

// savedEnd is an end as it is saved, or as older files have it: with the claim
// itself.
type savedEnd struct {
	end
	identity
}

func (e savedEnd) in(lock string) end {
	if e.ID != "" {
		e.Claim = newEndID(lock, e.Key, e.LockedBy, e.ID)
	}
	return e.end
}

// decodeOriginal reads the state of the original locker: a key and counts for
// each lock. A name with a count above 0 holds the lock.
func decodeOriginal(members map[string]member, now time.Time) (*state, error) {
	var locks []*lock
	revision := uint64(0)
	for _, name := range slices.Sorted(maps.Keys(members)) {
		var saved struct {
			Key      string         `json:"key"`
			LockedBy map[string]int `json:"locked_by"`
		}
		m := members[name]
		if err := json.Unmarshal(m.value, &saved); err != nil {
			return nil, fmt.Errorf("it has no version, and %q at byte %d is not a lock of the original locker: %w", name, m.offset, err)
		}
		l := newLock(name)
		l.Key = saved.Key
		for _, lockedBy := range slices.Sorted(maps.Keys(saved.LockedBy)) {
			if saved.LockedBy[lockedBy] > 0 {
				revision++
				l.Holders = append(l.Holders, holder{LockedBy: lockedBy, Since: now, Token: revision, Slot: len(l.Holders) + 1})
			}
		}
		if l.free() {
			continue
		}
		l.Revision = revision
		if err := l.check(revision); err != nil {
			return nil, fmt.Errorf("lock %q at byte %d: %w", name, m.offset, err)
		}
		locks = append(locks, l)
	}
	return newState(revision, locks), nil
}

// check refuses what the rules could not have made.
func (l *lock) check(revision uint64) error {
	if err := resource.CheckLockName("the lock's name", l.name); err != nil {
		return err
	}
	if l.free() != (l.Key == "") {
		return fmt.Errorf("it has the key %q and %d holders", l.Key, len(l.Holders))
	}
	if l.Revision > revision {
		return fmt.Errorf("its revision %d is beyond the file's %d", l.Revision, revision)
	}
	var last uint64
	var claims []identity
	tokens, slots := map[uint64]bool{}, map[int]bool{}
	for i, h := range l.Holders {
		if h.Slot < 1 || slots[h.Slot] || h.Slots < 0 {
			return fmt.Errorf("holder %q: its slot %d is another's too, or is none", h.LockedBy, h.Slot)
		}
		slots[h.Slot] = true
		if h.Token == 0 || h.Token > l.Revision || tokens[h.Token] || l.named(h.LockedBy) != i {
			return fmt.Errorf("holder %q: it is there twice, or its token %d is not one of this lock", h.LockedBy, h.Token)
		}
		tokens[h.Token] = true
		if err := errors.Join(resource.CheckLink(h.Link), checkTime(h.Since), checkTime(h.Expires)); err != nil {
			return fmt.Errorf("holder %q: %w", h.LockedBy, err)
		}
		claims = append(claims, identity{l.Key, h.LockedBy, h.ID})
	}
	for _, w := range l.Waiters {
		if w.Revision <= last || w.Revision > revision {
			return fmt.Errorf("waiter %q: its revision %d is not in order", w.LockedBy, w.Revision)
		}
		last = w.Revision
		if err := errors.Join(resource.CheckLink(w.Link), checkTime(w.Since)); err != nil {
			return fmt.Errorf("waiter %q: %w", w.LockedBy, err)
		}
		claims = append(claims, w.identity)
	}
	present := map[identity]bool{}
	for _, c := range claims {
		if c.ID != "" && present[c] {
			return fmt.Errorf("the claim of %q is there twice", c.LockedBy)
		}
		present[c] = true
	}
	for _, e := range l.Left {
		if err := e.check(); err != nil {
			return fmt.Errorf("left: %w", err)
		}
	}
	for _, c := range claims {
		if err := c.check(); err != nil {
			return err
		}
	}
	return nil
}

// check refuses what cannot be written again.
func (e end) check() error {
	if e.How != "" && !slices.Contains(hows, e.How) {
		return fmt.Errorf("%q is not how a claim ends", e.How)
	}
	return checkTime(e.At)
}

// checkTime refuses what cannot be written again as JSON.
func checkTime(t time.Time) error {
	if year := t.UTC().Year(); year < 1 || year > 9999 {
		return fmt.Errorf("a time in the year %d: it must be from 1 to 9999", year)
	}
	return nil
}
