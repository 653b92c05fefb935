package resource

import (
	"bytes"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

const (
	linesKept  = 8192                   // for a reader that does not read; a busy minute of the server
	bytesKept  = 8 << 20                // likewise: a line can have kilobytes
	linesFlush = 500 * time.Millisecond // for the last lines to be read at the end
)

// Lines passes lines on to a writer that may block, such as a pipe that nobody
// reads. Write never blocks: lines that do not fit are counted, and the count
// is a line of its own when there is room again. Safe for concurrent use.
type Lines struct {
	lines   chan []byte
	lost    atomic.Int64
	kept    atomic.Int64 // bytes
	closing chan struct{}
	written chan struct{} // closed when the last line is
}

// NewLines returns Lines for w. They must be closed.
func NewLines(w io.Writer) *Lines {
	l := &Lines{lines: make(chan []byte, linesKept), closing: make(chan struct{}), written: make(chan struct{})}
	go l.run(w)
	return l
}

// Write takes one line. It never fails.
func (l *Lines) Write(line []byte) (int, error) {
	if l.kept.Add(int64(len(line))) <= bytesKept {
		select {
		case l.lines <- bytes.Clone(line):
			return len(line), nil
		default:
		}
	}
	l.kept.Add(-int64(len(line)))
	l.lost.Add(1)
	return len(line), nil
}

func (l *Lines) run(w io.Writer) {
	defer close(l.written)
	for {
		select {
		case line := <-l.lines:
			l.pass(w, line)
		case <-l.closing:
			for len(l.lines) > 0 {
				l.pass(w, <-l.lines)
			}
			return
		}
	}
}

func (l *Lines) pass(w io.Writer, line []byte) {
	w.Write(line)
	l.kept.Add(-int64(len(line)))
	if lost := l.lost.Swap(0); lost > 0 {
		fmt.Fprintf(w, "time=%s level=WARN msg=\"lines lost, nobody read them\" lines=%d\n", time.Now().UTC().Format(time.RFC3339Nano), lost)
	}
}

// Close passes on what is left, for half a second at most.
func (l *Lines) Close() {
	close(l.closing)
	select {
	case <-l.written:
	case <-time.After(linesFlush):
	}
}
