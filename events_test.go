package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/resource"
)

func TestEventsTellWhoHadALock(t *testing.T) {
	s := startServer(t, withAuth())
	auth := []string{"Authorization", basic(user, password)}
	for _, c := range []apiCall{
		{put, "/lock/a", strings.Replace(jane, `"7"`, `"secret-id"`, 1), nil},
		{put, "/lock/other", `{"key": "k"}`, nil},
		{put, "/lock/a", georgeWaits, nil},
		{del, "/lock/a?force=true", `{"locked_by": "jane", "reason": "it hangs", "by": "ann"}`, nil},
	} {
		s.do(t, c.method, c.path, c.body, auth...)
	}
	got := s.do(t, get, "/events?lock=a", "", auth...)
	var events resource.Events
	if err := json.Unmarshal([]byte(got.body), &events); err != nil || got.status != "200 OK" {
		t.Fatalf("%s %s: %v", got.status, got.body, err)
	}
	var story []string
	for _, e := range events.Events {
		story = append(story, fmt.Sprint(e.Event, " ", e.Lock, " ", e.Key, " ", e.LockedBy, " ", e.By, " ", e.Reason))
	}
	if want := "force a k jane ann it hangs, queue a other george  , grant a k jane  "; strings.Join(story, ", ") != want {
		t.Errorf("got %q, want %q", strings.Join(story, ", "), want)
	}
	if events.Since.IsZero() || strings.Contains(got.body, "secret-id") || !strings.Contains(got.body, `"lasted":"`) {
		t.Errorf("got %s", got.body)
	}
	if all := s.do(t, get, "/events", "", auth...); !strings.Contains(all.body, `"lock":"other"`) {
		t.Errorf("all: %s", all.body)
	}
	if got := s.do(t, get, "/events?lock=", "", auth...); got.status != "400 Bad Request" {
		t.Errorf("no name: %s", got.status)
	}
	s.log.Await(t, `msg=force .* by=george person=ann reason="it hangs"`)
}

func TestEventsAreBounded(t *testing.T) {
	r := newRecent(noon)
	for i := range mostEvents + 10 {
		r.add(noon, []event{{what: "grant", lock: fmt.Sprint(i)}})
	}
	if got := r.shown("").Events; len(got) != mostEvents || got[0].Lock != fmt.Sprint(mostEvents+9) || got[mostEvents-1].Lock != "10" {
		t.Errorf("%d events, from %s to %s", len(got), got[len(got)-1].Lock, got[0].Lock)
	}
	long := strings.Repeat("x", 2_000)
	for range mostEvents {
		r.add(noon, []event{{what: "grant", lock: "l", link: long}})
	}
	if n := len(r.shown("").Events); r.bytes > mostEventBytes || n < mostEventBytes/2_300 {
		t.Errorf("%d events of %d bytes", n, r.bytes)
	}
	r.add(noon, nil)
	for range 2 * mostEvents {
		r.add(noon, []event{{what: "grant", lock: "l"}})
	}
	if len(r.list) != mostEvents || r.bytes != mostEvents*(eventBytes+1) {
		t.Errorf("%d events of %d bytes", len(r.list), r.bytes)
	}
}
