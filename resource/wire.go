// Package resource holds what the server and its clients share: the JSON of
// the HTTP API and how it is read.
package resource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	MaxName = 255   // bytes of a lock's name, a key, a locked_by and an id
	MaxLink = 2_048 // bytes
)

// Lock is a lock as the API shows it. A free lock has no key and no holders;
// its lists are empty, never null.
type Lock struct {
	Key      string         `json:"key"`
	LockedBy map[string]int `json:"locked_by"` // what the original locker answered: each holder's name, and 1
	Holders  []Holder       `json:"holders"`
	Waiters  []Waiter       `json:"waiters"` // first in line first
	Revision uint64         `json:"revision"`
}

// Holder is a granted claim. Times are UTC, in whole seconds.
type Holder struct {
	LockedBy string    `json:"locked_by"`
	Since    time.Time `json:"since"`
	Token    uint64    `json:"token"` // the fencing token: it grows with every grant
	Link     string    `json:"link,omitempty"`
	Expires  time.Time `json:"expires,omitzero"`
}

// Waiter is a queued claim.
type Waiter struct {
	Key      string    `json:"key"`
	LockedBy string    `json:"locked_by"`
	Since    time.Time `json:"since"`
	Link     string    `json:"link,omitempty"`
}

// Take is the body of PUT /lock/NAME.
type Take struct {
	Key      string   `json:"key"`
	LockedBy string   `json:"locked_by,omitempty"`
	ID       string   `json:"id,omitempty"`
	Wait     Duration `json:"wait,omitzero"`
	TTL      Duration `json:"ttl,omitzero"`
	Link     string   `json:"link,omitempty"`
}

// Release is the body of DELETE /lock/NAME.
type Release struct {
	Key      string `json:"key"`
	LockedBy string `json:"locked_by,omitempty"`
	ID       string `json:"id,omitempty"`
	Own      bool   `json:"own,omitempty"`
}

// Answer is the body of a PUT or DELETE that succeeded.
type Answer struct {
	Response string `json:"response"`
	Lock     Lock   `json:"lock,omitzero"`
	Token    uint64 `json:"token,omitempty"`
	Repeat   bool   `json:"repeat,omitempty"` // the claim held the lock before this request
}

// Error is the body of every answer that is an error.
type Error struct {
	Error    string `json:"error"`
	Lock     *Lock  `json:"lock,omitempty"`
	Position int    `json:"position,omitempty"` // 1 is next in line; 0 is not queued
}

// NothingDone begins the response of a release that found nothing to release.
const NothingDone = "nothing to do: "

// Duration is a time.Duration that is a string such as "90s" in JSON.
type Duration time.Duration

// MarshalText writes d as time.Duration.String does.
func (d Duration) MarshalText() ([]byte, error) {
	return []byte(time.Duration(d).String()), nil
}

// UnmarshalText reads what time.ParseDuration reads, but nothing negative.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf(`%q is not a duration such as "90s" or "2h30m"`, text)
	}
	if v < 0 {
		return fmt.Errorf("%q is negative", text)
	}
	*d = Duration(v)
	return nil
}

// CheckLink reports why a link is not allowed; none is.
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

// Decode reads one JSON object and stores each member where fields points for
// its name. It is stricter than encoding/json: besides what Object refuses, an
// unknown or differently cased member and null are errors. Every error names
// its member, and all of them are reported.
func Decode(data []byte, fields map[string]any) error {
	var problems []error
	err := Object(data, func(name string, value json.RawMessage, _ int) error {
		field, ok := fields[name]
		if !ok {
			problems = append(problems, fmt.Errorf("unknown member %q: %s", name, known(fields)))
		} else if err := store(value, field); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
		}
		return nil
	})
	return errors.Join(append(problems, err)...)
}

func known(fields map[string]any) string {
	if len(fields) == 0 {
		return "there are none here"
	}
	return "known are " + strings.Join(slices.Sorted(maps.Keys(fields)), ", ")
}

// Object reads one JSON object (RFC 8259) and hands over each member, with the
// offset at which its value begins, in bytes. It stops at each's first error.
// A repeated member, trailing data and text that is not valid Unicode are
// errors too.
func Object(data []byte, each func(name string, value json.RawMessage, offset int) error) error {
	if !utf8.Valid(data) {
		return errors.New("the JSON is not valid UTF-8")
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return errors.New("a JSON object is missing: there is nothing")
	}
	if !json.Valid(data) {
		return malformed(data)
	}
	i := skipSpace(data, 0)
	if data[i] != '{' {
		return errors.New("this is no JSON object")
	}
	seen := map[string]bool{}
	for i = skipSpace(data, i+1); data[i] != '}'; i = skipSpace(data, i) {
		if data[i] == ',' {
			i = skipSpace(data, i+1)
		}
		var name string
		nameEnd := valueEnd(data, i)
		if err := json.Unmarshal(data[i:nameEnd], &name); err != nil {
			return err
		}
		i = skipSpace(data, skipSpace(data, nameEnd)+1) // behind the colon
		value := data[i:valueEnd(data, i)]
		switch {
		case seen[name]:
			return fmt.Errorf("%q is given twice", name)
		case loneSurrogate(value):
			return fmt.Errorf("%q has half of an escaped surrogate pair, which is no character", name)
		}
		seen[name] = true
		if err := each(name, value, i); err != nil {
			return err
		}
		i += len(value)
	}
	return nil
}

// malformed says where data stops being JSON.
func malformed(data []byte) error {
	err := json.Unmarshal(data, new(any))
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("malformed JSON at byte %d: %w", syntax.Offset, err)
	}
	return err
}

// skipSpace returns the offset of the first byte from i on that is not white
// space.
func skipSpace(data []byte, i int) int {
	for i < len(data) && strings.IndexByte(" \t\r\n", data[i]) >= 0 {
		i++
	}
	return i
}

// valueEnd returns the offset behind the value that begins at i. The JSON must
// be valid.
func valueEnd(data []byte, i int) int {
	depth := 0
	for ; i < len(data); i++ {
		switch data[i] {
		case '"':
			for i++; data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		}
		if depth == 0 && (i+1 == len(data) || strings.IndexByte("\"}]", data[i]) >= 0 || strings.IndexByte(",}] \t\r\n:", data[i+1]) >= 0) {
			return i + 1
		}
	}
	return i
}

func store(value json.RawMessage, field any) error {
	if string(value) == "null" {
		return errors.New("null is not a value")
	}
	err := json.Unmarshal(value, field)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("a JSON %s is not what belongs here: %s", wrong.Value, wanted(wrong.Type))
	}
	return err
}

func wanted(t reflect.Type) string {
	if t.Kind() == reflect.Bool {
		return "write true or false"
	}
	return `write text, in quotes: "…"`
}

// loneSurrogate reports whether a JSON value escapes half of a surrogate pair
// (\ud800 to \udfff), which encoding/json would silently read as U+FFFD.
func loneSurrogate(value []byte) bool {
	if !bytes.Contains(value, []byte(`\u`)) {
		return false
	}
	s := strings.ReplaceAll(strings.ToLower(string(value)), `\\`, "")
	for {
		i := strings.Index(s, `\ud`)
		if i < 0 {
			return false
		}
		s = s[i+3:]
		if s[0] < '8' { // \ud000 to \ud7ff are characters
			continue
		}
		paired := s[0] <= 'b' && strings.HasPrefix(s[3:], `\ud`) && s[6] >= 'c'
		if !paired {
			return true
		}
		s = s[9:]
	}
}
