package resource

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// This file is what people read in a build's log. The rules for a line: one
// write each, since Concourse shows whole lines; the lock is named; nothing of
// the request is repeated but names; colour marks only what needs a look.

const (
	yellow = "\x1b[33m"
	red    = "\x1b[31m"
	plain  = "\x1b[0m"
)

// speaker writes lines for people. It is safe for concurrent use. That nobody
// can read them any more is not a reason to fail.
type speaker struct {
	mu    sync.Mutex
	w     io.Writer
	plain bool // without colours
}

var colours = strings.NewReplacer(yellow, "", red, "", plain, "")

func (s *speaker) write(line string) {
	if s.plain {
		line = colours.Replace(line)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	io.WriteString(s.w, line+"\n")
}

func (s *speaker) info(format string, args ...any) { s.write(fmt.Sprintf(format, args...)) }

func (s *speaker) warn(format string, args ...any) {
	s.write(yellow + "warning: " + plain + fmt.Sprintf(format, args...))
}

func (s *speaker) waiting(line string) { s.write(yellow + "waiting: " + plain + line) }

func (s *speaker) held(format string, args ...any) {
	s.write(red + "held: " + plain + fmt.Sprintf(format, args...))
}

// unlocked says what a release did. A hold that ended before it means that the
// build went on without the lock.
func (s *speaker) unlocked(a Answer, now time.Time) {
	by, lost := map[string]string{"expired": "its ttl", "forced": "force"}[a.Ended]
	switch {
	case lost:
		s.write(red + "lost: " + plain + fmt.Sprintf("the hold ended at %s UTC by %s, %s before this unlock: this build went on without the lock",
			a.EndedAt.UTC().Format(time.TimeOnly), by, age(now.Sub(a.EndedAt))))
	case strings.HasPrefix(a.Response, NothingDone) && a.Ended != "withdrawn":
		s.warn("%s", a.Response)
	default:
		s.info("%s", a.Response)
	}
}

// fail writes an error that ends a program, each of its problems on a line.
func fail(w io.Writer, err error) {
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(w, red+"error: "+plain+strings.TrimSuffix(line, "\n"))
	}
}
