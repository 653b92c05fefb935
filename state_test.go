package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestChunks changes the list of locks at random, and compares it with a map and
// with what it was.
func TestChunks(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	s, want := &state{}, map[string]*lock{}
	for step := range 20_000 {
		growing := step/4_000%2 == 0
		name := fmt.Sprint("l", r.IntN(3_000))
		before, locks := *s, 0
		if step%500 == 0 {
			locks = s.size()
		}
		_, _, found := s.find(name)
		if found != (want[name] != nil) || found && s.look(name) != want[name] {
			t.Fatalf("step %d: %s is found: %v", step, name, found)
		}
		switch {
		case growing || found && r.IntN(4) == 0:
			want[name] = newLock(name)
			s.put(want[name])
		case found:
			delete(want, name)
			s.remove(name)
		}
		if step%500 == 0 {
			compareChunks(t, s, want)
			if before.size() != locks {
				t.Fatalf("step %d changed the list before it", step)
			}
		}
	}
}

func compareChunks(t *testing.T, s *state, want map[string]*lock) {
	t.Helper()
	names := slices.Sorted(maps.Keys(want))
	if s.size() != len(names) {
		t.Fatalf("%d locks, want %d", s.size(), len(names))
	}
	i := 0
	for l := range s.all() {
		if l != want[names[i]] {
			t.Fatalf("lock %d is %s, want %s", i, l.name, names[i])
		}
		i++
	}
	for i, c := range s.chunks {
		if n := len(c.locks); n == 0 || n > 2*chunkSize {
			t.Errorf("a chunk of %d locks", n)
		}
		if i > 0 && len(c.locks)+len(s.chunks[i-1].locks) <= chunkSize {
			t.Errorf("two chunks of %d and %d locks", len(s.chunks[i-1].locks), len(c.locks))
		}
	}
}

// TestManyLocks has holds expire, waiters move up and free locks be forgotten in
// every chunk, as they are in one.
func TestManyLocks(t *testing.T) {
	b := newBench(t)
	const locks = 5 * chunkSize
	name := func(i int) string { return fmt.Sprintf("l%04d", i*7%locks) }
	for i := range locks {
		b.batch(func(d *draft) outcome {
			return d.take(name(i), ttl(of("k a"), time.Duration(1+i%3)*time.Minute), false)
		})
		if i%5 == 0 {
			b.batch(func(d *draft) outcome { return d.take(name(i), of("other b 1"), true) })
		}
	}
	if next := b.s.nextExpiry(); !next.Equal(noon.Add(time.Minute)) {
		t.Errorf("next expiry %v", next)
	}
	b.now = noon.Add(2 * time.Minute)
	b.batch()
	for i := range locks {
		l := b.s.look(name(i))
		if left := i%3 == 2; left != (l.named("a") >= 0) || (i%5 == 0 && !left) != (l.named("b") >= 0) {
			t.Fatalf("lock %d is held by %+v", i, l.Holders)
		}
	}
	if next := b.s.nextExpiry(); !next.Equal(noon.Add(3 * time.Minute)) {
		t.Errorf("next expiry %v", next)
	}
}
