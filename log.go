package main

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
)

// This file is the log of what happens to locks: one line an event, in the
// order of the commits, so that one lock's lines tell its story.

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
			if e.why != "" {
				attrs = append(attrs, slog.String("reason", e.why))
			}
		case "withdraw":
			attrs = append(attrs, slog.Duration("waited", e.lasted), slog.String("reason", e.why))
		case "release", "expire":
			attrs = append(attrs, slog.Duration("held", e.lasted))
			if e.why != "" {
				attrs = append(attrs, slog.String("reason", e.why))
			}
		case "force":
			attrs = append(attrs, slog.Duration("held", e.lasted), slog.String("by", e.by))
			if e.person != "" {
				attrs = append(attrs, slog.String("person", e.person))
			}
			attrs = append(attrs, slog.String("reason", e.why))
		}
		log.LogAttrs(context.Background(), slog.LevelInfo, e.what, attrs...)
	}
}

const (
	mostLines                       = 60          // a minute, of those that clients without credentials cause
	mostMethod, mostPath, mostError = 20, 60, 200 // bytes of each, as quoted, in such a line, which then has fewer than 300
)

// outsiders logs what clients without credentials cause, which must not fill the
// disk: 60 lines a minute, then how many more there were. It is safe for
// concurrent use.
type outsiders struct {
	log   *slog.Logger
	mu    sync.Mutex
	lines int // in this minute
}

// refused logs a request whose credentials are wrong or, as with a browser's first,
// missing.
func (o *outsiders) refused(sent bool, address, method, path string) {
	level := slog.LevelInfo
	if sent {
		level = slog.LevelWarn
	}
	o.say(level, "credentials refused", "address", address, "method", shortQuoted(method, mostMethod), "path", shortQuoted(path, mostPath))
}

// Write logs a line of net/http. Everybody can cause a failed handshake.
func (o *outsiders) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if strings.Contains(text, "TLS handshake error") {
		o.say(slog.LevelWarn, shortQuoted(text, mostError))
	} else {
		o.log.Warn(text)
	}
	return len(line), nil
}

func (o *outsiders) say(level slog.Level, message string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lines == 0 {
		time.AfterFunc(time.Minute, o.next)
	}
	if o.lines++; o.lines <= mostLines {
		o.log.Log(context.Background(), level, message, args...)
	}
}

// next begins another minute.
func (o *outsiders) next() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if more := o.lines - mostLines; more > 0 {
		o.log.Warn("more refused credentials or failed handshakes in this minute", "more", more)
	}
	o.lines = 0
}

// shortQuoted is short for text that is quoted in the log, where a byte may become
// four: as quoted, it has that many bytes at most, beside the quotes and the mark.
func shortQuoted(text string, most int) string {
	kept := most
	for len(strconv.Quote(short(text, kept))) > most+len(`"…"`) {
		kept = kept * 3 / 4
	}
	return short(text, kept)
}

// short returns text, or its first bytes, at most that many, with a mark.
func short(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
