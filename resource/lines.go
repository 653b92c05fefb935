package resource

import (
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	bytesKept  = 8 << 20                // for a reader that does not read; a busy minute of the server
	linesFlush = 500 * time.Millisecond // for the last lines to be read at the end
	linesRoom  = 64 << 10               // bytes that are used again for further lines
)

// Lines passes lines on to a writer that may block, such as a pipe that nobody
// reads; many at once, if many come. Write never blocks: lines that do not fit are
// counted, and the count is a line of its own when there is room again. Safe for
// concurrent use.
type Lines struct {
	mu      sync.Mutex
	kept    []byte // not passed on yet
	passing int    // bytes that are being passed on
	lost    int

	wake    chan struct{} // capacity 1
	closing chan struct{}
	written chan struct{} // closed when the last line is
}

// NewLines returns Lines for w. They must be closed.
func NewLines(w io.Writer) *Lines {
	l := &Lines{wake: make(chan struct{}, 1), closing: make(chan struct{}), written: make(chan struct{})}
	go l.run(w)
	return l
}

// Write takes one line. It never fails.
func (l *Lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.kept)+l.passing+len(line) > bytesKept {
		l.lost++
		return len(line), nil
	}
	l.kept = append(l.kept, line...)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return len(line), nil
}

func (l *Lines) run(w io.Writer) {
	defer close(l.written)
	var room []byte
	for open := true; open; {
		select {
		case <-l.wake:
		case <-l.closing:
			open = false
		}
		lines, lost := l.take(room)
		if len(lines) > 0 {
			w.Write(lines)
			l.passed()
		}
		if lost > 0 {
			fmt.Fprintf(w, "time=%s level=WARN msg=\"lines lost, nobody read them\" lines=%d\n", time.Now().UTC().Format(time.RFC3339Nano), lost)
		}
		if room = lines; cap(room) > linesRoom {
			room = nil
		}
	}
}

// take returns the lines that are kept and how many were lost. Further ones are
// kept in room.
func (l *Lines) take(room []byte) (lines []byte, lost int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines, lost = l.kept, l.lost
	l.kept, l.passing, l.lost = room[:0], len(lines), 0
	return lines, lost
}

func (l *Lines) passed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.passing = 0
}

// Close passes on what is left, for half a second at most.
func (l *Lines) Close() {
	close(l.closing)
	select {
	case <-l.written:
	case <-time.After(linesFlush):
	}
}
