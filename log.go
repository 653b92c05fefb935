package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"
)

// This file is the log: one line an event, and nobody waits for who reads it.

const (
	logLines = 8192        // kept for a reader that does not read; a busy minute
	logFlush = time.Second // for the last lines to be read at the end
)

// lineWriter passes lines on to a writer that may block, such as a pipe that
// nobody reads. Write never blocks: lines that do not fit are counted, and the
// count is a line of its own when there is room again. Safe for concurrent use.
type lineWriter struct {
	lines   chan []byte
	lost    atomic.Int64
	closing chan struct{}
	written chan struct{} // closed when the last line is
}

func newLineWriter(w io.Writer) *lineWriter {
	l := &lineWriter{lines: make(chan []byte, logLines), closing: make(chan struct{}), written: make(chan struct{})}
	go l.run(w)
	return l
}

// Write takes one line. It never fails.
func (l *lineWriter) Write(line []byte) (int, error) {
	select {
	case l.lines <- bytes.Clone(line):
	default:
		l.lost.Add(1)
	}
	return len(line), nil
}

func (l *lineWriter) run(w io.Writer) {
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

func (l *lineWriter) pass(w io.Writer, line []byte) {
	w.Write(line)
	if lost := l.lost.Swap(0); lost > 0 {
		fmt.Fprintf(w, "time=%s level=WARN msg=\"log lines lost, nobody read them\" lines=%d\n", time.Now().UTC().Format(time.RFC3339Nano), lost)
	}
}

// close passes on what is left, for as long as logFlush.
func (l *lineWriter) close() {
	close(l.closing)
	select {
	case <-l.written:
	case <-time.After(logFlush):
	}
}

// logEvents logs what a commit changed.
func logEvents(log *slog.Logger, events []event) {
	for _, e := range events {
		attrs := []slog.Attr{slog.String("lock", e.lock), slog.String("key", e.identity.Key), slog.String("locked_by", e.identity.LockedBy)}
		if e.link != "" {
			attrs = append(attrs, slog.String("link", e.link))
		}
		if e.token != 0 {
			attrs = append(attrs, slog.Uint64("token", e.token))
		}
		switch e.what {
		case "grant":
			attrs = append(attrs, slog.Duration("waited", e.lasted))
		case "withdraw":
			attrs = append(attrs, slog.Duration("waited", e.lasted), slog.String("reason", e.why))
		case "release", "expire":
			attrs = append(attrs, slog.Duration("held", e.lasted))
		case "force":
			attrs = append(attrs, slog.Duration("held", e.lasted), slog.String("by", e.by), slog.String("reason", e.why))
		}
		log.LogAttrs(context.Background(), slog.LevelInfo, e.what, attrs...)
	}
}
