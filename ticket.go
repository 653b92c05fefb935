package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// This file is tickets: what puts the runs of a claim in order, so that what an
// earlier run sent cannot undo what a later one did, however late it arrives.

// ticket is the state's revision when it was given out and a count since the
// start. The zero ticket is none.
type ticket struct{ Revision, Count uint64 }

func (t ticket) IsZero() bool { return t == ticket{} }

// compare orders tickets as they were given out; none is before all.
func (t ticket) compare(u ticket) int {
	return cmp.Or(cmp.Compare(t.Revision, u.Revision), cmp.Compare(t.Count, u.Count))
}

// newest returns the later one.
func (t ticket) newest(u ticket) ticket {
	if t.compare(u) < 0 {
		return u
	}
	return t
}

// beyond returns the first ticket after t.
func (t ticket) beyond() ticket { return ticket{t.Revision, t.Count + 1} }

func (t ticket) String() string { return string(t.appendTo(nil)) }

func (t ticket) appendTo(text []byte) []byte {
	text = append(strconv.AppendUint(text, t.Revision, 10), '.')
	return strconv.AppendUint(text, t.Count, 10)
}

// MarshalText writes t as String does.
func (t ticket) MarshalText() ([]byte, error) { return t.appendTo(nil), nil }

// UnmarshalText reads what MarshalText writes, and nothing else.
func (t *ticket) UnmarshalText(text []byte) error {
	revision, count, _ := strings.Cut(string(text), ".")
	read := ticket{}
	read.Revision, _ = strconv.ParseUint(revision, 10, 64)
	read.Count, _ = strconv.ParseUint(count, 10, 64)
	if read.IsZero() || read.String() != string(text) {
		return fmt.Errorf("ticket is %.50q: send what the header Locker-Ticket of GET /lock/NAME?ticket=true had", text)
	}
	*t = read
	return nil
}

// tickets gives tickets out. It is safe for concurrent use.
type tickets struct {
	mu    sync.Mutex
	count uint64
	last  ticket
}

// next returns a ticket after all that were given out. The revision is that of
// the committed state.
func (ts *tickets) next(revision func() uint64) ticket {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.count++
	ts.last = ticket{revision(), ts.count}
	return ts.last
}

// given returns the last one that was given out.
func (ts *tickets) given() ticket {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.last
}
