package main

import (
	"strings"
	"testing"
	"time"
)

// What is left out has its default, and a flag beats its variable.
func TestParseRun(t *testing.T) {
	for _, row := range []struct {
		flags, uri, wantURI, key, lockedBy string // of LOCKER_URI; "" is a name that nobody else has
		ttl, spare                         time.Duration
	}{
		{"", "", "http://127.0.0.1:8910", "", "", 2 * time.Minute, 13 * time.Second},
		{"", "http://a.example", "http://a.example", "", "", 2 * time.Minute, 13 * time.Second},
		{"-uri http://b.example -as me", "http://a.example", "http://b.example", "", "me", 2 * time.Minute, 13 * time.Second},
		{"-slots 3", "", "http://127.0.0.1:8910", "l", "", 2 * time.Minute, 13 * time.Second},
		{"-slots 3 -key k -ttl 1h -grace 0s", "", "http://127.0.0.1:8910", "k", "", time.Hour, 3 * time.Second},
		{"-key k -keep-going", "", "http://127.0.0.1:8910", "k", "", 2 * time.Minute, 0},
	} {
		getenv := func(name string) string { return map[string]string{"USER": "george", "LOCKER_URI": row.uri}[name] }
		j, err := parseRun(strings.Fields(row.flags+" l -- cmd -x"), getenv)
		if err != nil {
			t.Errorf("%s: %v", row.flags, err)
			continue
		}
		is := func(got, want string) bool { return got == want || want == "" && strings.HasPrefix(got, "george@") }
		w := j.wish
		if w.URI != row.wantURI || !is(w.Key, row.key) || !is(w.LockedBy, row.lockedBy) || w.TTL != row.ttl || w.Spare != row.spare || w.Wait != nil || strings.Join(j.command, " ") != "cmd -x" {
			t.Errorf("%s: %+v, %q", row.flags, w, j.command)
		}
	}
}
