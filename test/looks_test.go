package test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file tests the page with much on it, and how it looks.

func TestPageFilter(t *testing.T) {
	w := visitPage(t, nil)
	for i := range 10 {
		w.do("PUT", fmt.Sprintf("/lock/lock-%d", i), fmt.Sprintf(`{"key": "key-%d", "locked_by": "name-%d"}`, i, i))
	}
	w.await("document.querySelectorAll('.lock').length === 10")
	w.await("document.getElementById('search').hidden") // ten are few
	w.do("PUT", "/lock/Eleven", jane)
	w.await("!document.getElementById('search').hidden")
	const seen = "[...document.querySelectorAll('.lock')].filter(c => c.checkVisibility()).map(c => c.querySelector('h2').textContent).join()"
	w.click("#filter")
	for _, filter := range [][2]string{{"LOCK-7", "lock-7"}, {"key-3", "lock-3"}, {"name-4", "lock-4"}, {"eleven", "Eleven"}, {"nowhere", ""}} {
		w.run("document.getElementById('filter').select()", nil)
		w.keys(filter[0])
		w.await(seen + " === '" + filter[1] + "'")
	}
	w.has("Nothing matches the filter.")
	w.do("PUT", "/lock/nowhere-else", jane) // what is new is filtered too
	w.await(seen + " === 'nowhere-else'")
}

// A change leaves alone what the person is at: the focus, what is unfolded, how
// far it is scrolled.
func TestPageKeeps(t *testing.T) {
	w := visitPage(t, nil)
	for i := range 30 {
		w.do("PUT", fmt.Sprintf("/lock/lock-%02d", i), jane)
	}
	for i := range 9 {
		w.do("PUT", "/lock/lock-20", fmt.Sprintf(`{"key": "w%d", "id": "%d", "wait": "1ms"}`, i, i))
	}
	w.await("document.querySelectorAll('.lock').length === 30 && document.body.textContent.includes('4 more in line')")
	const card = "[...document.querySelectorAll('.lock')].find(c => c.querySelector('h2').textContent === 'lock-20')"
	w.run("window.card = "+card+"; card.querySelector('summary').click(); card.querySelector('.holders .release').focus(); window.focused = document.activeElement", nil)
	w.await("card.querySelectorAll('.queue li').length === 9")
	w.run("card.scrollIntoView(); window.top0 = card.getBoundingClientRect().top", nil)
	for _, path := range []string{"/lock/lock-03", "/lock/lock-04", "/lock/lock-25"} {
		w.do("DELETE", path, `{"key": "k", "locked_by": "jane"}`)
	}
	w.do("PUT", "/lock/lock-20", `{"key": "w9", "id": "9", "wait": "1ms"}`)
	w.await("document.querySelectorAll('.lock').length === 27 && card.querySelectorAll('.queue li').length === 10")
	for _, kept := range []string{"card.isConnected && card === " + card, "document.activeElement === focused", "card.querySelector('details').open"} {
		var is bool
		if w.run("return "+kept, &is); !is {
			t.Errorf("not so: %s", kept)
		}
	}
	w.await("Math.abs(card.getBoundingClientRect().top - top0) < 40")
}

// saved is a state file in the making. Who is the first to take a lock holds
// it, as does who comes with the same key; the others wait.
type saved struct {
	now      time.Time
	revision int
	locks    map[string]*savedLock
}

type savedLock struct {
	Key      string       `json:"key"`
	Revision int          `json:"revision"`
	Holders  []savedClaim `json:"holders,omitempty"`
	Waiters  []savedClaim `json:"waiters,omitempty"`
}

type savedClaim struct {
	Key      string    `json:"key,omitempty"`
	LockedBy string    `json:"locked_by"`
	ID       string    `json:"id"`
	Link     string    `json:"link,omitempty"`
	Since    time.Time `json:"since"`
	Expires  time.Time `json:"expires,omitzero"`
	Token    int       `json:"token,omitempty"`
	Revision int       `json:"revision,omitempty"`
}

func newSaved() *saved { return &saved{now: time.Now().UTC(), locks: map[string]*savedLock{}} }

// take has somebody take a lock so long ago, in the order of the calls.
func (s *saved) take(ago time.Duration, lock, key string, c savedClaim) {
	l := s.locks[lock]
	if l == nil {
		l = &savedLock{}
		s.locks[lock] = l
	}
	s.revision++
	c.ID, c.Since = fmt.Sprint(s.revision), s.now.Add(-ago)
	if l.Key != "" && l.Key != key {
		c.Key, c.Revision = key, s.revision
		l.Waiters = append(l.Waiters, c)
		return
	}
	c.Token, l.Key, l.Revision = s.revision, key, s.revision
	l.Holders = append(l.Holders, c)
}

// free makes a lock one that was held and is free.
func (s *saved) free(lock string) {
	s.revision++
	s.locks[lock] = &savedLock{Revision: s.revision}
}

// write writes the file, and returns an environment for a locker that starts
// with it.
func (s *saved) write(t *testing.T) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "locker.json")
	lockertest.WriteFile(t, path, encode(map[string]any{"version": 2, "revision": s.revision, "locks": s.locks}))
	return []string{"LOCKER_CONFIG=" + path}
}

// 500 locks with 20 waiters each are shown, filtered and followed.
func TestPageMany(t *testing.T) {
	s := newSaved()
	for i := range 500 {
		for j := range 21 {
			s.take(0, fmt.Sprintf("environment-%03d", i), fmt.Sprint("key-", j), savedClaim{LockedBy: fmt.Sprintf("job-%d-%d", i, j)})
		}
	}
	w := visitPage(t, s.write(t))
	w.await("document.querySelectorAll('.lock').length === 500 && document.getElementById('waits').textContent === '10000'")
	var took float64
	w.run("const t = performance.now(), l = structuredClone(locks); l['environment-250'].waiters.pop(); show(l); document.body.offsetHeight; return performance.now() - t", &took)
	if t.Logf("a change was shown in %.0f ms", took); took > 1500 {
		t.Errorf("a change is shown in %.0f ms", took)
	}
	w.click("#filter")
	w.keys("job-77-20")
	w.await("[...document.querySelectorAll('.lock')].filter(c => !c.hidden).length === 1")
	w.screenshot("many")
}

// The page at the widths of a phone and a desk, by day and by night.
func TestPageLooks(t *testing.T) {
	w := visitPage(t, savedLooks().write(t))
	w.has("10 waiting", "5 more in line")
	papers := map[string]string{}
	for _, width := range []int{360, 1280} {
		for _, colours := range []string{"light", "dark"} {
			w.device(width, colours)
			var seen struct {
				Paper       string
				Wide, Inner int
			}
			w.run("return {paper: getComputedStyle(document.body).backgroundColor, wide: document.documentElement.scrollWidth, inner: innerWidth}", &seen)
			if seen.Wide > seen.Inner || seen.Inner != width {
				t.Errorf("at %d, %d are taken", width, seen.Wide)
			}
			papers[colours] = seen.Paper
			w.screenshot(fmt.Sprintf("%d %s", width, colours))
		}
	}
	if papers["light"] == papers["dark"] {
		t.Errorf("the paper is %s by day and by night", papers["light"])
	}
	w.device(360, "dark")
	w.click(".holders .release")
	w.screenshot("360 dark dialog")
	w.keys(keyEscape)
}

func savedLooks() *saved {
	s := newSaved()
	ci := func(job string, build int) savedClaim {
		return savedClaim{LockedBy: job, Link: fmt.Sprintf("https://ci.example/teams/main/pipelines/shop/jobs/%s/builds/%d", job, build)}
	}
	s.take(51*time.Hour, "staging-database", "migrate", ci("migrate-orders", 118))
	s.take(192*time.Minute, "production", "deploy", ci("deploy-api", 77))
	s.take(190*time.Minute, "production", "deploy", ci("deploy-web", 1204))
	for i := range 10 {
		smoke := ci("smoke-test", 300+i)
		smoke.LockedBy = fmt.Sprint("smoke-test-", i+1)
		s.take(time.Duration(170-13*i)*time.Minute, "production", "smoke", smoke)
	}
	s.take(150*time.Second, "production-eu-west-1-with-a-name-that-somebody-generated-and-nobody-reads", "a-rather-long-key/of/a/rather-long-job",
		savedClaim{LockedBy: "a-rather-long-job-name-0123456789-0123456789-0123456789", Link: "https://builds.example/some/other/system/with/a/long/path/to/its/builds?number=1"})
	s.take(40*time.Second, "staging", "nightly", savedClaim{LockedBy: "nightly", Expires: s.now.Add(2 * time.Hour)})
	s.free("free-one")
	s.free("free-two")
	return s
}
