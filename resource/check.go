package resource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// This file is the two programs that look at a lock and change nothing.

const lookBudget = 30 * time.Second // how long check and in go on trying

// Check answers with the lock's version and, when an older one is given, with
// that before it. It reads none of the build's variables: they are stale there.
func Check(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args []string, getenv func(string) string) error {
	return newProgram(stdin, stdout, stderr, args, getenv).check(ctx)
}

func (p *program) check(ctx context.Context) error {
	r, err := p.read(ctx, map[string]any{}, func() error { return nil })
	if err != nil {
		return err
	}
	l, _, err := p.look(ctx, r)
	if err != nil {
		return err
	}
	var given version
	if json.Unmarshal(r.version, &given) != nil {
		given = version{} // another resource type's, from before this one
	}
	return p.answer(versions(l.Revision, given.Ref))
}

// versions returns what is new since the given version. A lock of revision 0
// was never used, or is forgotten: then the given version still stands.
func versions(current uint64, given string) []version {
	known, err := strconv.ParseUint(given, 10, 64)
	latest := version{strconv.FormatUint(current, 10)}
	switch {
	case err != nil || known == current:
		return []version{latest}
	case current == 0:
		return []version{{given}}
	case known < current:
		return []version{{given}, latest}
	}
	return []version{latest}
}

// In writes DIR/lock, the names of who holds the lock, and DIR/lock.json, the
// lock as the server shows it, and answers with the version it was given.
func In(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args []string, getenv func(string) string) error {
	return newProgram(stdin, stdout, stderr, args, getenv).in(ctx)
}

func (p *program) in(ctx context.Context) error {
	r, err := p.read(ctx, map[string]any{}, func() error { return nil })
	if r != nil {
		err = errors.Join(err, checkIn(r.version, p.args))
	}
	if err != nil {
		return err
	}
	l, data, err := p.look(ctx, r)
	if err != nil {
		return err
	}
	if err := writeLock(p.args[0], l, data); err != nil {
		return err
	}
	name := string(r.source.lockName)
	p.say.info("%s", held(name, l, time.Now()))
	return p.answer(result{r.version, rows("lock", name, "key", l.Key, "locked_by", strings.Join(names(l), ", "),
		"since", oldest(l), "build", links(l), "waiting", strconv.Itoa(len(l.Waiters)))})
}

// checkIn wants a version to answer with, and a folder to write to.
func checkIn(given json.RawMessage, args []string) error {
	var problems []error
	var members map[string]string
	if json.Unmarshal(given, &members) != nil || members["ref"] == "" {
		problems = append(problems, errors.New("version: ref is missing, or no text: give a version that check answered"))
	}
	if len(args) != 1 {
		problems = append(problems, fmt.Errorf("%d arguments are given: give one, the folder to write to", len(args)))
	}
	return errors.Join(problems...)
}

// look returns the lock as it is now.
func (p *program) look(ctx context.Context, r *request) (Lock, []byte, error) {
	type seen struct {
		lock Lock
		data []byte
	}
	c := newClient(&r.source, p.dial)
	s, err := retry(ctx, &patience{budget: lookBudget, say: p.say}, func() (seen, error) {
		l, data, err := c.show(ctx)
		return seen{l, data}, err
	})
	if ctx.Err() != nil {
		err = errors.New("aborted")
	}
	if err != nil {
		return Lock{}, nil, fmt.Errorf("look at lock %s: %w", r.source.lockName, err)
	}
	return s.lock, s.data, nil
}

func writeLock(dir string, l Lock, data []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var owners strings.Builder
	for _, name := range names(l) {
		owners.WriteString(name + "\n")
	}
	if err := os.WriteFile(filepath.Join(dir, "lock"), []byte(owners.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "lock.json"), data, 0o644)
}
