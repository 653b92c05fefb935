package resource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// Check answers with the lock's version and, when an older one is given, with
// that before it. It reads no variable of a build: in a check they are stale.
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
		given = version{} // another resource type's, used before this one
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

const lookBudget = 30 * time.Second // how long check and in go on trying

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
