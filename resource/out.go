package resource

import (
	"context"
	"errors"
	"io"
	"time"
)

// This file is the program that takes and releases a lock. Concourse ends it
// with TERM, and KILL 10 s later; a version that it answers after TERM is
// thrown away.

const readTime = time.Second // how long the request may take to arrive after TERM

// Out takes or releases the lock and answers with its version.
//
// When ctx is done, lock gives back what it has, within 5 s, and fails; unlock
// goes on trying for up to 8 s.
func Out(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args []string, getenv func(string) string) error {
	return newProgram(stdin, stdout, stderr, args, getenv).out(ctx)
}

func (p *program) out(ctx context.Context) error {
	var params outParams
	id, known := buildID(p.getenv)
	reading, stop := outlive(ctx, readTime) // the request of an aborted unlock may still be on its way
	defer stop()
	r, err := p.read(reading, params.fields(), func() error {
		err := params.check(p.getenv)
		if !known && params.lockOp == "unlock" && params.onlyOwn() {
			err = errors.Join(err, errors.New("own needs ATC_EXTERNAL_URL and BUILD_ID, which say what this build took: set both, or leave own out"))
		}
		return err
	})
	if r != nil && params.lockOp == "lock" {
		err = errors.Join(err, CheckNewLockName("source: lock_name", r.source.lockName))
	}
	if err != nil {
		return err
	}
	c := &claim{
		program: p, words: buildWords, client: newClient(&r.source, p.dial), name: r.source.lockName, params: params,
		id: id, link: buildLink(p.getenv), started: time.Now(), budget: outBudget,
	}
	if params.lockOp == "unlock" {
		return c.unlock(ctx)
	}
	return c.lock(ctx, func(t taken) error { return c.report(t.answer, c.waited()) })
}
