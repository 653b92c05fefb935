package resource

import (
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// This file is the rules for names and links, which the server and its clients
// share. No sentence repeats what it is about: it may be a secret in the wrong
// place.

const (
	MaxName  = 255   // bytes of a lock's name, a key, a locked_by and an id
	MaxSlots = 1_000 // of one lock
	MaxLink  = 2_048 // bytes
)

// CheckName reports why a key, a locked_by or an id is not allowed. The member
// is what the sentence calls it.
func CheckName(member, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s is empty: it must have 1 to %d bytes", member, MaxName)
	case len(name) > MaxName:
		return fmt.Errorf("%s has %d bytes: at most %d are allowed", member, len(name), MaxName)
	case !utf8.ValidString(name):
		return fmt.Errorf("%s is not valid UTF-8: correct it", member)
	case strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("%s has a control character, such as a line break: leave it out", member)
	}
	return nil
}

// CheckLockName is CheckName for the name of a lock, which is a segment of a
// path.
func CheckLockName(member, name string) error {
	if name == "." || name == ".." {
		return fmt.Errorf("%s is . or ..: choose another name", member)
	}
	return CheckName(member, name)
}

// CheckNewLockName reports why a lock's name that CheckLockName allows is refused
// to a take: it looks like another one, or proxies make another one of it
// (RFC 3986 section 5.2.4).
func CheckNewLockName(member, name string) error {
	if strings.Contains(name, "/") {
		for segment := range strings.SplitSeq(name, "/") {
			if segment == "." || segment == ".." {
				return fmt.Errorf("%s has . or .. between slashes, which proxies resolve to another name: leave it out", member)
			}
		}
	}
	return checkNewName(member, name)
}

// checkNewName reports why a key or a locked_by that CheckName allows is refused
// to a take: it looks like another one. Other requests accept it, so that what
// has such a name can be released.
func checkNewName(member, name string) error {
	switch {
	case strings.ContainsFunc(name, isFormat):
		return fmt.Errorf("%s has a character that cannot be seen, such as U+200B: leave it out", member)
	case strings.TrimFunc(name, isSpace) != name:
		return fmt.Errorf("%s has white space at an end: leave it out", member)
	}
	return nil
}

// isFormat reports whether r changes how text looks, and has no look of its own.
func isFormat(r rune) bool { return unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) }

// isSpace reports whether r is white space that is neither a control nor a format
// character.
func isSpace(r rune) bool { return unicode.Is(unicode.Zs, r) }

// checkGiven is check, but calls what is empty missing.
func checkGiven(member, name string, check func(member, name string) error) error {
	if name == "" {
		return fmt.Errorf("%s is missing: give it a name", member)
	}
	return check(member, name)
}

// CheckLink reports why a link is not allowed. An empty one is.
func CheckLink(link string) error {
	if link == "" {
		return nil
	}
	u, err := url.Parse(link)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || len(link) > MaxLink {
		return fmt.Errorf("link is not an http or https URL of at most %d bytes, without credentials", MaxLink)
	}
	return nil
}

// alias is one of the members that name the item that asks, and what it says;
// nil is not given.
type alias struct {
	member string
	name   *string
}

// agreed returns the name that all the aliases which are given agree on, ""
// when none is.
func agreed(aliases ...alias) (string, error) {
	var first alias
	for _, a := range aliases {
		switch {
		case a.name == nil:
		case first.name == nil:
			first = a
		case *a.name != *first.name:
			return "", fmt.Errorf("%s and %s are one thing, and disagree: give one of them", first.member, a.member)
		}
	}
	if first.name == nil {
		return "", nil
	}
	return *first.name, CheckName("locked_by", *first.name)
}

// CheckSlots reports why n holders at most is not a limit.
func CheckSlots(n int) error {
	if n < 1 || n > MaxSlots {
		return fmt.Errorf("slots is %d: it must be a whole number from 1 to %d", n, MaxSlots)
	}
	return nil
}

// CheckReason reports why a text cannot say why a lock is held; it may be empty.
func CheckReason(reason string) error {
	if reason == "" {
		return nil
	}
	return CheckName("reason", reason)
}
