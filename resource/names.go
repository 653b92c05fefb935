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
	MaxName = 255   // bytes of a lock's name, a key, a locked_by and an id
	MaxLink = 2_048 // bytes
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
