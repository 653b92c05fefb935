package resource

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// This file is the sentences about a lock that the server and its clients
// share, and how a server's words are made harmless.

const (
	maxSentence = 8 << 10 // bytes of a server's words; three holders and their links fit
	mostNames   = 3       // named before "and 4 more"
)

// HeldBy says who holds the lock, since when, for how long, and where to look.
// A zero now leaves out for how long.
func HeldBy(name string, l Lock, now time.Time) string {
	if len(l.Holders) == 0 && len(l.Waiters) > 0 {
		return clean(fmt.Sprintf("lock %s is free, and kept for %s, who is first in line", name, l.Waiters[0].LockedBy))
	}
	if len(l.Holders) == 0 {
		return clean(fmt.Sprintf("lock %s is free", name))
	}
	var holders []string
	for _, h := range l.Holders[:min(len(l.Holders), mostNames)] {
		words := fmt.Sprintf("%s since %s", h.LockedBy, h.Since.Format(time.RFC3339))
		if !now.IsZero() {
			words += fmt.Sprintf(" (for %s)", age(now.Sub(h.Since)))
		}
		if h.Reason != "" {
			words += ": " + h.Reason
		}
		if h.Link != "" {
			words += " " + h.Link
		}
		holders = append(holders, words)
	}
	return clean(fmt.Sprintf("lock %s is held with the key %s by %s", name, l.Key, list(holders, len(l.Holders))))
}

// inLine says which place in the queue a position is, and behind whom.
func inLine(l Lock, position int) string {
	ahead := position - 1
	if ahead < 1 {
		return "next in line"
	}
	var names []string
	for _, w := range l.Waiters[:min(ahead, mostNames, len(l.Waiters))] {
		names = append(names, w.LockedBy)
	}
	if len(names) == 0 {
		return ordinal(position) + " in line"
	}
	return clean(fmt.Sprintf("%s in line behind %s", ordinal(position), list(names, ahead)))
}

// list joins names, the first of as many as count says.
func list(names []string, count int) string {
	if more := count - len(names); more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names, ", "), more)
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

// clean replaces control and format characters, so that a server's words can
// neither start a line of their own, nor colour or hide or reorder anything.
func clean(s string) string {
	if len(s) > maxSentence {
		s = strings.ToValidUTF8(s[:maxSentence], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || isFormat(r) {
			return '?'
		}
		return r
	}, s)
}
