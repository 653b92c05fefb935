package resource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// This file reads JSON more strictly than encoding/json: what would otherwise
// silently not count is refused.

// Decode reads one JSON object and stores each member where fields points for
// its name. It is stricter than encoding/json: besides what Object refuses, an
// unknown or differently cased member and null are errors. Every error names
// its member, and all of them are reported. None repeats a value, but those that
// a field's own UnmarshalText or UnmarshalJSON makes.
func Decode(data []byte, fields map[string]any) error { return decode(data, fields, false) }

// decode is Decode; with nullIsUnset, a member that is null counts as not given.
func decode(data []byte, fields map[string]any, nullIsUnset bool) error {
	var problems []error
	err := Object(data, func(name string, value json.RawMessage, _ int) error {
		field, ok := fields[name]
		if ok && nullIsUnset && string(value) == "null" {
			return nil
		}
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
	if err := wellFormed(data); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if first, err := dec.Token(); err != nil || first != json.Delim('{') {
		return errors.New("this is not a JSON object")
	}
	seen := map[string]bool{}
	var raw json.RawMessage
	for dec.More() {
		token, err := dec.Token()
		if err := errors.Join(err, dec.Decode(&raw)); err != nil {
			return err
		}
		end := int(dec.InputOffset())
		name, value := token.(string), data[end-len(raw):end]
		switch {
		case seen[name]:
			return fmt.Errorf("%q is given twice", name)
		case loneSurrogate(value):
			return fmt.Errorf("%q has half of an escaped surrogate pair, which is not a character", name)
		}
		seen[name] = true
		if err := each(name, value, end-len(raw)); err != nil {
			return err
		}
	}
	return nil
}

// wellFormed reports where data stops being JSON.
func wellFormed(data []byte) error {
	switch {
	case !utf8.Valid(data):
		return errors.New("the JSON is not valid UTF-8")
	case len(bytes.TrimSpace(data)) == 0:
		return errors.New("a JSON object is missing: there is nothing")
	case json.Valid(data):
		return nil
	}
	err := json.Unmarshal(data, new(any))
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("malformed JSON at byte %d: %w", syntax.Offset, err)
	}
	return err
}

func store(value json.RawMessage, field any) error {
	if string(value) == "null" {
		return errors.New("null is not a value")
	}
	err := json.Unmarshal(value, field)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		kind, _, _ := strings.Cut(wrong.Value, " ") // behind it stands the number
		return fmt.Errorf("a JSON %s is not what belongs here: %s", kind, wanted(wrong.Type))
	}
	return err
}

const writeText = `write text, in quotes: "…"`

func wanted(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Int64: // durations alone
		return `write a duration in quotes, such as "60s"`
	case reflect.Bool:
		return "write true or false"
	case reflect.Int:
		return "write a whole number, such as 3"
	}
	return writeText
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
