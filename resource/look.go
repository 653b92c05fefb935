package resource

import (
	"context"
	"errors"
	"fmt"
	"time"
)

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
