package test

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// This file tests the page with much on it, and how it looks.

// shown is an expression: the locks that a person sees.
const shown = "[...document.querySelectorAll('[data-lock], #freeNames li')].filter(e => e.checkVisibility()).map(e => e.dataset.lock || e.textContent).join()"

// The filter finds all that is shown and shows what it found, and is in the URL.
func TestPageFilter(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil)
	for i := range 5 {
		w.do("PUT", fmt.Sprintf("/lock/lock-%d", i), fmt.Sprintf(`{"key": "key-%d", "locked_by": "name-%d", "reason": "reason-%d", "link": "https://ci.example/teams/main/pipelines/shop/jobs/deploy/builds/10%d"}`, i, i, i, i))
	}
	for i := range 9 {
		w.do("PUT", "/lock/lock-0", fmt.Sprintf(`{"key": "w%d", "id": "%d", "wait": "1ms"}`, i, i))
	}
	w.do("PUT", "/lock/Sixth", jane)
	w.do("PUT", "/lock/seventh", jane)
	w.do("DELETE", "/lock/seventh", `{"key": "k", "locked_by": "jane", "id": "7"}`)
	w.has("1 blocked", "5 held", "1 free", "9 waiting", "4 more in line")
	find := func(text, want string) {
		t.Helper()
		w.run("document.getElementById('filter').select()", nil)
		w.keys(text)
		w.await(shown + " === '" + want + "'")
	}
	w.click("#filter")
	for _, f := range [][2]string{{"LOCK-2", "lock-2"}, {"key-3", "lock-3"}, {"name-4", "lock-4"}, {"reason-1", "lock-1"}, {"shop / deploy #102", "lock-2"}, {"sixth", "Sixth"}, {"seventh", "seventh"}, {"nowhere", ""}} {
		find(f[0], f[1])
	}
	w.has("Nothing here matches the filter.")
	w.do("PUT", "/lock/nowhere-else", jane) // what is new is filtered too
	w.await(shown + " === 'nowhere-else'")
	w.hasNot("Nothing here matches the filter.")
	find("w8", "lock-0")
	w.await("document.querySelector('.line > ol > .hit').innerText.startsWith('9.') && document.querySelectorAll('.line > ol > li').length === 6") // the one that is found is in sight
	w.screenshot("filter")
	w.reload("")
	w.await("document.getElementById('filter').value === 'w8' && " + shown + " === 'lock-0'")
	w.run("const f = document.getElementById('filter'); f.value = ''; f.oninput()", nil)
	w.await("location.search === '' && !document.getElementById('freePart').open")
	for _, chip := range [][2]string{{"blocked", "lock-0"}, {"free", "seventh"}} {
		w.click("[data-show=" + chip[0] + "]")
		w.await(shown + " === '" + chip[1] + "' && location.search === '?show=" + chip[0] + "'")
	}
	w.click("[data-show=free]")
	w.await("location.search === '' && " + shown + ".includes('Sixth')")
}

// A change leaves alone what the person is at: the focus, what is unfolded, how
// far it is scrolled.
func TestPageKeeps(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil)
	for i := range 40 {
		w.do("PUT", fmt.Sprintf("/lock/lock-%02d", i), jane)
	}
	for i := range 9 {
		w.do("PUT", "/lock/blocked", fmt.Sprintf(`{"key": "w%d", "id": "%d", "wait": "1ms"}`, i, i))
	}
	w.await("document.querySelectorAll('.row').length === 40 && document.body.textContent.includes('3 more in line')")
	const card, row = "document.querySelector('.card')", "document.querySelector('[data-lock=lock-20]')"
	w.run("window.card = "+card+"; window.row = "+row+"; card.querySelector('.line summary').click(); row.querySelector('.release').focus(); window.focused = document.activeElement", nil)
	w.await("card.querySelectorAll('.line li').length === 8")
	w.run("row.scrollIntoView(); window.top0 = row.getBoundingClientRect().top", nil)
	for _, path := range []string{"/lock/lock-03", "/lock/lock-04", "/lock/lock-25"} {
		w.do("DELETE", path, `{"key": "k", "locked_by": "jane", "id": "7"}`)
	}
	w.do("PUT", "/lock/blocked", `{"key": "w9", "id": "9", "wait": "1ms"}`)
	w.do("PUT", "/lock/lock-20", `{"key": "k", "locked_by": "jane", "id": "7", "ttl": "1h"}`) // renewed
	w.await("document.querySelectorAll('.row').length === 37 && card.querySelectorAll('.line li').length === 9 && row.textContent.includes('expires in 59 min')")
	for _, kept := range []string{"card.isConnected && card === " + card, "row === " + row, "document.activeElement === focused", "card.querySelector('.line details').open"} {
		var is bool
		if w.run("return "+kept, &is); !is {
			t.Errorf("not so: %s", kept)
		}
	}
	w.await("Math.abs(row.getBoundingClientRect().top - top0) < 40")
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
	Slot     int       `json:"slot,omitempty"`
	Slots    int       `json:"slots,omitempty"`
	Reason   string    `json:"reason,omitempty"`
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

// visitSaved is visitPage for a locker that starts with s. Those who wait ask
// again, as they do after a restart: their places are kept for 15 s.
func visitSaved(t *testing.T, s *saved, but ...string) *visit {
	t.Helper()
	l := lockertest.Start(t, append(s.write(t), credentials...)...)
	w := &visit{nil, l, t}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	for name, lock := range s.locks {
		for _, c := range lock.Waiters {
			body := string(encode(map[string]string{"key": c.Key, "locked_by": c.LockedBy, "id": c.ID, "link": c.Link, "wait": "50s"}))
			go func() {
				for ctx.Err() == nil {
					lockertest.Send(ctx, "PUT", w.with("/lock/"+url.PathEscape(name)), body)
				}
			}()
		}
	}
	return visitAt(t, l, l.URL+"/", but...)
}

// write writes the file, and returns an environment for a locker that starts
// with it.
func (s *saved) write(t *testing.T) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "locker.json")
	lockertest.WriteFile(t, path, encode(map[string]any{"version": 2, "revision": s.revision, "locks": s.locks}))
	return []string{"LOCKER_CONFIG=" + path}
}

// 500 locks with 20 waiters each are shown at once, followed and filtered.
func TestPageMany(t *testing.T) {
	w := visitPage(t, nil)
	w.holdBack()
	w.devtools("Performance.enable", map[string]any{"timeDomain": "threadTicks"}, nil) // what others do on this machine does not count
	w.run("window.next = arguments[0]", nil, manyLocks(500, 20))
	first := w.scripted(func() {
		w.run("show(next)", nil)
		w.await("document.querySelectorAll('.card').length === 500")
	})
	changes := make([]time.Duration, 5)
	for i := range changes {
		w.run("window.next = structuredClone(Object.fromEntries(locks)), next['environment-250'].waiters.shift()", nil)
		changes[i] = w.scripted(func() { w.run("show(next)", nil) })
	}
	w.await("[...document.querySelectorAll('.card')].filter(c => c.textContent.includes('15 waiting')).length === 1")
	slices.Sort(changes)
	change := changes[len(changes)/2]
	t.Logf("the first time in %v, a change in %v", first, change)
	if first > 300*time.Millisecond || change > 20*time.Millisecond {
		t.Errorf("the first time it took %v, a change %v", first, change)
	}
	w.click("#filter")
	w.keys("job-77-20")
	w.await(shown + " === 'environment-077' && [...document.querySelectorAll('.hit')].find(e => e.checkVisibility()).textContent.includes('job-77-20')")
	w.screenshot("many")
}

// manyLocks is what GET /locks answers when so many locks have so many waiters
// each.
func manyLocks(locks, waiters int) map[string]resource.Lock {
	answer := map[string]resource.Lock{}
	for i := range locks {
		since := time.Now().UTC().Truncate(time.Second)
		link := func(j int) string {
			return fmt.Sprintf("https://ci.example/teams/main/pipelines/shop/jobs/job-%d/builds/%d", i, j)
		}
		l := resource.Lock{Key: "key-0", Waiting: waiters, Revision: uint64(i + 1)}
		l.Holders = []resource.Holder{{LockedBy: fmt.Sprintf("job-%d-0", i), Since: since, Token: l.Revision, Slot: 1, Link: link(0)}}
		for j := 1; j <= waiters; j++ {
			l.Waiters = append(l.Waiters, resource.Waiter{Key: fmt.Sprint("key-", j), LockedBy: fmt.Sprintf("job-%d-%d", i, j), Since: since, Link: link(j)})
		}
		answer[fmt.Sprintf("environment-%03d", i)] = l
	}
	return answer
}

// scripted returns how much time of the processor the page's thread takes
// meanwhile, but for style and layout.
func (w *visit) scripted(meanwhile func()) time.Duration {
	w.t.Helper()
	before := w.scriptedSoFar()
	meanwhile()
	return w.scriptedSoFar() - before
}

func (w *visit) scriptedSoFar() (taken time.Duration) {
	w.t.Helper()
	var all struct {
		Metrics []struct {
			Name  string
			Value float64 // seconds
		}
	}
	w.devtools("Performance.getMetrics", map[string]any{}, &all)
	counts := map[string]float64{"ThreadTime": 1, "LayoutDuration": -1, "RecalcStyleDuration": -1}
	for _, m := range all.Metrics {
		taken += time.Duration(counts[m.Name] * m.Value * float64(time.Second))
	}
	return taken
}

// A screen has room for 18 locks that are held and fine.
func TestPageDense(t *testing.T) {
	s := newSaved()
	for i := range 40 {
		s.take(time.Duration(i)*time.Minute, fmt.Sprintf("environment-%02d", i), "k", savedClaim{LockedBy: "job", Link: "https://ci.example/builds/12", Reason: strings.Repeat("a long reason ", 18)})
	}
	w := visitPage(t, s.write(t))
	w.has("40 held")
	w.await("[...document.querySelectorAll('.row')].filter(r => r.getBoundingClientRect().bottom <= 900).length >= 18")
	w.await("document.querySelector('.row').dataset.lock === 'environment-39'") // longest held first
	w.screenshot("dense")
}

// The page at the widths of a small phone, a phone and a desk, by day, by night
// and in forced colours.
func TestPageLooks(t *testing.T) {
	w := visitSaved(t, savedLooks())
	w.has("10 waiting", "5 more in line")
	papers := map[string]string{}
	for _, colours := range []string{"light", "dark"} {
		w.wantFits(colours)
		var paper string
		w.run("return getComputedStyle(document.body).backgroundColor", &paper)
		papers[colours] = paper
		w.wantContrast()
		w.run("document.querySelector('.holders .release').click()", nil)
		w.wantContrast()
		w.screenshot(colours + " release")
		w.keys(keyEscape)
		w.run("location.hash = '#production'", nil)
		w.has("What happened")
		w.wantContrast()
		w.screenshot(colours + " one")
		w.run("location.hash = ''", nil)
		w.await("document.getElementById('list').checkVisibility()")
	}
	if papers["light"] == papers["dark"] {
		t.Errorf("the paper is %s by day and by night", papers["light"])
	}
	w.wantFits("forced")
	w.wantGrades()
}

// wantFits wants the page to be no wider than the screen is.
func (w *visit) wantFits(colours string) {
	w.t.Helper()
	for _, width := range []int{320, 360, 1280} {
		w.device(width, colours)
		var taken int
		if w.run("return document.documentElement.scrollWidth", &taken); taken > width {
			w.t.Errorf("at %d, %d are taken", width, taken)
		}
		w.screenshot(fmt.Sprintf("%d %s", width, colours))
	}
}

// contrast returns what is hard to read: text with a contrast under 4.5 to 1
// (WCAG 2.2 section 1.4.3).
const contrast = `
	const light = c => c.match(/[\d.]+/g).slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
	const paper = e => !e ? 'rgb(255, 255, 255)' : /, 0\)$/.test(getComputedStyle(e).backgroundColor) ? paper(e.parentElement) : getComputedStyle(e).backgroundColor;
	const ratio = e => { const [a, b] = [light(getComputedStyle(e).color), light(paper(e))].sort((a, b) => b - a); return (a + .05) / (b + .05); };
	return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && ratio(e) < 4.5)
		.map(e => e.outerHTML.slice(0, 120) + ' ' + ratio(e))`

func (w *visit) wantContrast() {
	w.t.Helper()
	var pale []string
	if w.run(contrast, &pale); len(pale) > 0 {
		w.t.Errorf("hard to read: %q", pale)
	}
}

// wantGrades wants waits of more than 10 and of more than 30 minutes to differ in
// words and shape, since the person's own colours are forced upon the page.
func (w *visit) wantGrades() {
	w.t.Helper()
	var grades [][2]string
	w.run("return [...document.querySelectorAll('#blocked .card')].map(c => [c.querySelector('.wait').innerText, getComputedStyle(c).borderLeftWidth + getComputedStyle(c).borderLeftStyle])", &grades)
	want := [][2]string{{"◆ 10 waiting, oldest 2 h 50 min: very long", "12pxdouble"}, {"▲ 1 waiting, oldest 12 min: long", "8pxsolid"}, {"1 waiting, oldest 2 min", "4pxsolid"}}
	if fmt.Sprint(grades) != fmt.Sprint(want) {
		w.t.Errorf("grades %q", grades)
	}
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
	s.take(15*time.Minute, "staging", "by hand: ann", savedClaim{LockedBy: "ann", Reason: "incident 4711, nothing is deployed before the database is back"})
	s.take(12*time.Minute+30*time.Second, "staging", "nightly", ci("nightly", 9))
	s.take(5*time.Minute, "perf", "a", ci("load-test", 31))
	s.take(150*time.Second, "perf", "b", ci("load-test", 32))
	for i := range 12 {
		e2e := ci("e2e", 100+i)
		e2e.LockedBy, e2e.Slots, e2e.Slot = fmt.Sprintf("e2e #%d", 100+i), 12, i+1
		s.take(time.Duration(40-i)*time.Minute, "browsers", "e2e", e2e)
	}
	s.take(150*time.Second, "production-eu-west-1-with-a-name-that-somebody-generated-and-nobody-reads", "a-rather-long-key/of/a/rather-long-job",
		savedClaim{LockedBy: "a-rather-long-job-name-0123456789-0123456789-0123456789", Link: "https://builds.example/some/other/system/with/a/long/path/to/its/builds?number=1"})
	s.take(150*time.Second, strings.Repeat("255-bytes/", 25)+"-more", "k", savedClaim{LockedBy: strings.Repeat("x", 255)})
	s.take(150*time.Second, "قفل الإنتاج", "k", savedClaim{LockedBy: "אבג <b>"})
	s.take(40*time.Second, "nightly", "nightly", savedClaim{LockedBy: "nightly", Expires: s.now.Add(2 * time.Hour)})
	s.free("free-one")
	s.free("free-two")
	return s
}
