package resource

import (
	"strings"
	"testing"
	"time"
)

func TestOrdinals(t *testing.T) {
	for n, want := range map[int]string{2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 22: "22nd", 101: "101st", 111: "111th", 113: "113th"} {
		if got := ordinal(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

// One sentence says who holds a lock, on both sides of the wire. It names three.
func TestHeldBy(t *testing.T) {
	since := time.Date(2026, 11, 23, 10, 3, 22, 0, time.UTC)
	hold := func(names ...string) Lock {
		l := Lock{Key: "k"}
		for _, name := range names {
			l.Holders = append(l.Holders, Holder{LockedBy: name, Since: since})
		}
		return l
	}
	linked := hold("a", "b")
	linked.Holders[0].Link = "https://ci.example/builds/12"
	for _, row := range []struct {
		lock Lock
		now  time.Time
		want string
	}{
		{hold(), since, "lock l is free"},
		{Lock{Waiters: []Waiter{{LockedBy: "w"}}}, since, "lock l is free, and kept for w, who is first in line"},
		{hold("a"), time.Time{}, "lock l is held with the key k by a since 2026-11-23T10:03:22Z"},
		{hold("a"), since.Add(90*time.Second + 1), "lock l is held with the key k by a since 2026-11-23T10:03:22Z (for 1m30s)"},
		{hold("a"), since.Add(-time.Hour), "lock l is held with the key k by a since 2026-11-23T10:03:22Z (for 0s)"},
		{linked, since, "lock l is held with the key k by a since 2026-11-23T10:03:22Z (for 0s) https://ci.example/builds/12 and b since 2026-11-23T10:03:22Z (for 0s)"},
		{hold("a", "b", "c"), time.Time{}, "lock l is held with the key k by a since T, b since T and c since T"},
		{hold("a", "b", "c", "d"), time.Time{}, "lock l is held with the key k by a since T, b since T, c since T and 1 more"},
		{hold("a\nb\x1b[31m"), time.Time{}, "lock l is held with the key k by a?b?[31m since T"},
	} {
		want := strings.ReplaceAll(row.want, "since T", "since 2026-11-23T10:03:22Z")
		if got := HeldBy("l", row.lock, row.now); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestInLine(t *testing.T) {
	l := Lock{}
	for _, name := range []string{"a", "b", "c", "d", "me"} {
		l.Waiters = append(l.Waiters, Waiter{LockedBy: name})
	}
	for position, want := range map[int]string{
		1: "next in line", 2: "2nd in line behind a", 3: "3rd in line behind a and b",
		4: "4th in line behind a, b and c", 5: "5th in line behind a, b, c and 1 more", 1_000: "1000th in line behind a, b, c and 996 more", -1: "next in line",
	} {
		if got := inLine(l, position); got != want {
			t.Errorf("%d: %q, want %q", position, got, want)
		}
	}
}
