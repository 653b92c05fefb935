package main

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// This file is what is known of commits that fail.

var errRevision = fmt.Errorf("the state's revision is at %d, beyond which not every reader of JSON is exact: start with another state file", uint64(maxRevision))

// trouble says why commits fail, and since when.
type trouble struct {
	since time.Time
	err   error
}

// troubles holds the present trouble, if there is one. It is safe for concurrent use.
type troubles struct {
	now atomic.Pointer[trouble] // nil while commits succeed
}

// note records how a save ended, and logs when failures begin, end or change their
// cause.
func (t *troubles) note(err error, log *slog.Logger) {
	was := t.now.Load()
	switch {
	case err == nil && was != nil:
		log.Info("commits succeed again", "failed_for", time.Since(was.since).Round(time.Millisecond))
		t.now.Store(nil)
	case err != nil && was == nil:
		log.Error("commit failed", "err", err)
		t.now.Store(&trouble{time.Now(), err})
	case err != nil && cause(was.err) != cause(err):
		log.Error("commit failed", "err", err)
		t.now.Store(&trouble{was.since, err})
	}
}
