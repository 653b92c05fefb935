package main

import (
	"slices"
	"sync"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file is what happened lately, for the status page: who had a lock, how
// long, and how that ended. It is in memory only; the log keeps it.

const (
	mostEvents     = 1_000
	mostEventBytes = 1 << 20
	eventBytes     = 200 // about what an event takes beside its texts
)

// recent is the last events, bounded in number and bytes. It is safe for
// concurrent use.
type recent struct {
	since time.Time // when it began
	mu    sync.Mutex
	list  []resource.Event // oldest first
	bytes int
}

func newRecent(now time.Time) *recent { return &recent{since: now} }

// add keeps what a commit changed at that time.
func (r *recent) add(now time.Time, events []event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		shown := resource.Event{
			Time: inSeconds(now), Event: e.what, Lock: e.lock, Key: e.identity.Key, LockedBy: e.identity.LockedBy,
			Link: e.link, Token: e.token, Lasted: resource.Duration(e.lasted), By: e.by, Reason: e.why,
		}
		if e.person != "" {
			shown.By = e.person
		}
		r.list = append(r.list, shown)
		r.bytes += sizeOf(shown)
	}
	drop := 0
	for ; len(r.list)-drop > mostEvents || r.bytes > mostEventBytes; drop++ {
		r.bytes -= sizeOf(r.list[drop])
	}
	clear(r.list[:drop])
	r.list = r.list[drop:] // append moves the rest now and then, not with each commit
}

func sizeOf(e resource.Event) int {
	return eventBytes + len(e.Lock) + len(e.Key) + len(e.LockedBy) + len(e.Link) + len(e.By) + len(e.Reason)
}

// shown returns the events of one lock, or of all when lock is empty, newest
// first.
func (r *recent) shown(lock string) resource.Events {
	r.mu.Lock()
	defer r.mu.Unlock()
	shown := resource.Events{Since: inSeconds(r.since), Events: []resource.Event{}}
	for _, e := range slices.Backward(r.list) {
		if lock == "" || e.Lock == lock {
			shown.Events = append(shown.Events, e)
		}
	}
	return shown
}
