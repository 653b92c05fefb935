package resource

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// This file is what people read in a build's log. The rules for a line: one
// write each, since Concourse shows whole lines; the lock is named; nothing of
// the request is repeated but names; colour marks only what needs a look.

const (
	yellow = "\x1b[33m"
	red    = "\x1b[31m"
	plain  = "\x1b[0m"
)

// speaker writes lines for people. It is safe for concurrent use. That nobody
// can read them any more is no reason to fail.
type speaker struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *speaker) write(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	io.WriteString(s.w, line+"\n")
}

func (s *speaker) info(format string, args ...any) { s.write(fmt.Sprintf(format, args...)) }

func (s *speaker) warn(format string, args ...any) {
	s.write(yellow + "warning: " + plain + fmt.Sprintf(format, args...))
}

func (s *speaker) waiting(line string) { s.write(yellow + "waiting: " + plain + line) }

// fail writes an error that ends a program, each of its problems on a line.
func fail(w io.Writer, err error) {
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(w, red+"error: "+plain+strings.TrimSuffix(line, "\n"))
	}
}

const mostNames = 3 // named before "and 4 more"

// held says who holds the lock, since when, for how long, and where to look.
// Without now it leaves out for how long.
func held(name string, l Lock, now time.Time) string {
	if len(l.Holders) == 0 && len(l.Waiters) > 0 {
		return clean(fmt.Sprintf("lock %s is free, and kept for %s, who is first in line", name, l.Waiters[0].LockedBy))
	}
	if len(l.Holders) == 0 {
		return clean(fmt.Sprintf("lock %s is free", name))
	}
	holders := make([]string, len(l.Holders))
	for i, h := range l.Holders {
		holders[i] = fmt.Sprintf("%s since %s", h.LockedBy, h.Since.Format(time.RFC3339))
		if !now.IsZero() {
			holders[i] += fmt.Sprintf(" (for %s)", age(now.Sub(h.Since)))
		}
		if h.Link != "" {
			holders[i] += " " + h.Link
		}
	}
	return clean(fmt.Sprintf("lock %s is held with the key %s by %s", name, l.Key, list(holders)))
}

// inLine says which place in the queue a position is, and behind whom.
func inLine(l Lock, position int) string {
	if position <= 1 || position > len(l.Waiters) {
		return "next in line"
	}
	ahead := make([]string, position-1)
	for i := range ahead {
		ahead[i] = l.Waiters[i].LockedBy
	}
	return clean(fmt.Sprintf("%s in line behind %s", ordinal(position), list(ahead)))
}

func list(names []string) string {
	if more := len(names) - mostNames; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:mostNames], ", "), more)
	}
	if last := len(names) - 1; last > 0 {
		return strings.Join(names[:last], ", ") + " and " + names[last]
	}
	return names[0]
}

func ordinal(n int) string {
	suffix := "th"
	if tens := n / 10 % 10; tens != 1 {
		switch n % 10 {
		case 1:
			suffix = "st"
		case 2:
			suffix = "nd"
		case 3:
			suffix = "rd"
		}
	}
	return fmt.Sprint(n, suffix)
}

// age rounds to whole seconds; clocks that differ make no negative one.
func age(d time.Duration) time.Duration { return max(d, 0).Truncate(time.Second) }
