package main

import (
	"context"
	"log/slog"
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
		case "withdraw":
			attrs = append(attrs, slog.Duration("waited", e.lasted), slog.String("reason", e.why))
		case "release", "expire":
			attrs = append(attrs, slog.Duration("held", e.lasted))
			if e.why != "" {
				attrs = append(attrs, slog.String("reason", e.why))
			}
		case "force":
			attrs = append(attrs, slog.Duration("held", e.lasted), slog.String("by", e.by), slog.String("reason", e.why))
		}
		log.LogAttrs(context.Background(), slog.LevelInfo, e.what, attrs...)
	}
}
