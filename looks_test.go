package main

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// This file tests the page with much on it, and how it looks.

func testPageFilter(t *testing.T, b *browser) {
	w := visitPage(t, b, withAuth())
	for i := range 10 {
		w.do(put, fmt.Sprintf("/lock/lock-%d", i), fmt.Sprintf(`{"key": "key-%d", "locked_by": "name-%d"}`, i, i))
	}
	w.await("document.querySelectorAll('.lock').length === 10")
	w.await("document.getElementById('search').hidden") // ten are few
	w.do(put, "/lock/Eleven", jane)
	w.await("!document.getElementById('search').hidden")
	const seen = "[...document.querySelectorAll('.lock')].filter(c => c.checkVisibility()).map(c => c.querySelector('h2').textContent).join()"
	w.click("#filter")
	for _, filter := range [][2]string{{"LOCK-7", "lock-7"}, {"key-3", "lock-3"}, {"name-4", "lock-4"}, {"eleven", "Eleven"}, {"nowhere", ""}} {
		w.run("document.getElementById('filter').select()", nil)
		w.keys(filter[0])
		w.await(seen + " === '" + filter[1] + "'")
	}
	w.has("Nothing matches the filter.")
	w.do(put, "/lock/nowhere-else", jane) // what is new is filtered too
	w.await(seen + " === 'nowhere-else'")
}

// A change leaves alone what the person is at: the focus, what is unfolded, how
// far it is scrolled.
func testPageKeeps(t *testing.T, b *browser) {
	w := visitPage(t, b, withAuth())
	for i := range 30 {
		w.do(put, fmt.Sprintf("/lock/lock-%02d", i), jane)
	}
	for i := range 9 {
		w.do(put, "/lock/lock-20", fmt.Sprintf(`{"key": "w%d", "id": "%d", "wait": "1ms"}`, i, i))
	}
	w.await("document.querySelectorAll('.lock').length === 30 && document.body.textContent.includes('4 more in line')")
	const card = "[...document.querySelectorAll('.lock')].find(c => c.querySelector('h2').textContent === 'lock-20')"
	w.run("window.card = "+card+"; card.querySelector('summary').click(); card.querySelector('.holders .release').focus(); window.focused = document.activeElement", nil)
	w.await("card.querySelectorAll('.queue li').length === 9")
	w.run("card.scrollIntoView(); window.top0 = card.getBoundingClientRect().top", nil)
	for _, path := range []string{"/lock/lock-03", "/lock/lock-04", "/lock/lock-25"} {
		w.do(del, path, `{"key": "k", "locked_by": "jane"}`)
	}
	w.do(put, "/lock/lock-20", `{"key": "w9", "id": "9", "wait": "1ms"}`)
	w.await("document.querySelectorAll('.lock').length === 27 && card.querySelectorAll('.queue li').length === 10")
	for _, kept := range []string{"card.isConnected && card === " + card, "document.activeElement === focused", "card.querySelector('details').open"} {
		var is bool
		if w.run("return "+kept, &is); !is {
			t.Errorf("not so: %s", kept)
		}
	}
	w.await("Math.abs(card.getBoundingClientRect().top - top0) < 40")
}

// stateFile writes the state that fill makes, and returns an environment for a
// server that starts with it.
func stateFile(t testing.TB, fill func(d *draft)) map[string]string {
	t.Helper()
	d := newDraft(&state{}, time.Now().UTC(), func(uint64) (bool, time.Duration) { return true, 0 })
	fill(d)
	env := withAuth()
	env["LOCKER_CONFIG"] = filepath.Join(t.TempDir(), "locker.json")
	overwrite(t, env["LOCKER_CONFIG"], d.state.appendTo(nil))
	return env
}

// 500 locks with 20 waiters each are shown, filtered and followed.
func testPageMany(t *testing.T, b *browser) {
	w := visitPage(t, b, stateFile(t, func(d *draft) {
		for i := range 500 {
			for j := range 21 {
				d.take(fmt.Sprintf("environment-%03d", i), of(fmt.Sprintf("key-%d job-%d-%d id", j, i, j)), true)
			}
		}
	}))
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
func testPageLooks(t *testing.T, b *browser) {
	w := visitPage(t, b, stateFile(t, fillLooks))
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

func fillLooks(d *draft) {
	start := d.now
	take := func(ago time.Duration, lock, words, link string) {
		d.now = start.Add(-ago)
		c := of(words)
		c.Link = link
		d.take(lock, c, true)
	}
	ci := func(job string, build int) string {
		return fmt.Sprintf("https://ci.example/teams/main/pipelines/shop/jobs/%s/builds/%d", job, build)
	}
	take(51*time.Hour, "staging-database", "migrate migrate-orders 1", ci("migrate-orders", 118))
	take(192*time.Minute, "production", "deploy deploy-api 1", ci("deploy-api", 77))
	take(190*time.Minute, "production", "deploy deploy-web 2", ci("deploy-web", 1204))
	for i := range 10 {
		take(time.Duration(170-13*i)*time.Minute, "production", fmt.Sprintf("smoke smoke-test-%d 3", i+1), ci("smoke-test", 300+i))
	}
	take(150*time.Second, "production-eu-west-1-with-a-name-that-somebody-generated-and-nobody-reads", "a-rather-long-key/of/a/rather-long-job a-rather-long-job-name-0123456789-0123456789-0123456789 1", "https://builds.example/some/other/system/with/a/long/path/to/its/builds?number=1")
	d.now = start.Add(-40 * time.Second)
	d.take("staging", ttl(of("nightly nightly 1"), 2*time.Hour), true)
	for _, name := range []string{"free-one", "free-two"} {
		take(9*time.Hour, name, "k k 1", "")
		d.release(name, of("k k 1").identity, false)
	}
	d.now = start
}
