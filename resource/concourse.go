package resource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// This file is Concourse's protocol: JSON in on stdin, JSON out on stdout. What
// is wrong with the request is said by the member's name and what to do, never
// with the value: it may be a secret in the wrong place.
//
// https://concourse-ci.org/implementing-resource-types.html

const maxRequest = 1 << 20 // bytes on stdin

// program is what one of the three programs is given.
type program struct {
	stdin  io.Reader
	stdout io.Writer
	say    *speaker
	args   []string
	getenv func(string) string
	dial   dialer
}

func newProgram(stdin io.Reader, stdout, stderr io.Writer, args []string, getenv func(string) string) *program {
	return &program{stdin, stdout, &speaker{w: stderr}, args, getenv, realDialer()}
}

// version is the revision of a lock.
type version struct {
	Ref string `json:"ref"`
}

// field is one row of metadata. Concourse wants strings.
type field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// result is what in and out answer.
type result struct {
	Version  json.RawMessage `json:"version"`
	Metadata []field         `json:"metadata"`
}

// rows returns the pairs of name and value as metadata, without the empty ones.
func rows(pairs ...string) []field {
	fields := []field{}
	for pair := range slices.Chunk(pairs, 2) {
		if pair[1] != "" {
			fields = append(fields, field{pair[0], pair[1]})
		}
	}
	return fields
}

// request is what Concourse sends.
type request struct {
	source  source
	version json.RawMessage // nil when there is none
}

// read reads the request. Params are stored where the fields point for their
// names, then checked. The error has all problems at once. When ctx is done
// first, read does not wait for the rest of stdin.
func (p *program) read(ctx context.Context, params map[string]any, check func() error) (*request, error) {
	data, err := readAll(ctx, p.stdin)
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	parts := map[string]json.RawMessage{}
	err = Object(data, func(name string, value json.RawMessage, _ int) error {
		if string(value) != "null" {
			parts[name] = value
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read request: %w: give Concourse's JSON on stdin", err)
	}
	r := &request{version: parts["version"], source: source{names: resourceNames}}
	problems := decodePart("source", parts["source"], r.source.fields(), r.source.check)
	problems = append(problems, decodePart("params", parts["params"], params, check)...)
	return r, errors.Join(problems...)
}

func readAll(ctx context.Context, r io.Reader) ([]byte, error) {
	type read struct {
		data []byte
		err  error
	}
	done := make(chan read, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(r, maxRequest+1))
		if len(data) > maxRequest {
			err = errors.New("it has more than 1 MiB")
		}
		done <- read{data, err}
	}()
	select {
	case got := <-done:
		return got.data, got.err
	case <-ctx.Done():
		return nil, errors.New("stopped by an abort or a timeout")
	}
}

// decodePart returns every problem of a member of the request, which names it.
func decodePart(part string, data json.RawMessage, fields map[string]any, check func() error) []error {
	if data == nil {
		data = json.RawMessage("{}")
	}
	var problems []error
	wrong := map[string]bool{} // members that are there, and cannot be read
	for i, err := range []error{decode(data, fields, true), check()} {
		if err == nil {
			continue
		}
		for line := range strings.Lines(err.Error()) {
			line = strings.TrimSuffix(line, "\n")
			if name, _, _ := strings.Cut(line, " "); i > 0 && wrong[name] {
				continue
			}
			if name, _, unreadable := strings.Cut(line, ": "); i == 0 && unreadable {
				wrong[name] = true
			}
			if strings.HasSuffix(line, writeText) {
				line += ", or quote it where the variable is set"
			}
			if strings.HasPrefix(line, `unknown member "bosh_lock"`) {
				line = "bosh_lock is the resource's of 2017: set lock_name to the lock's name instead"
			}
			problems = append(problems, fmt.Errorf("%s: %s", part, line))
		}
	}
	return problems
}

// answer writes v on stdout.
func (p *program) answer(v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		_, err = p.stdout.Write(append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return nil
}
