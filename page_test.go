package main

import (
	"bufio"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPageIsServedAsItIs(t *testing.T) {
	s := startServer(t, withAuth())
	if got := s.do(t, get, "/", ""); got.status != "401 Unauthorized" || strings.Contains(got.body, "html") {
		t.Errorf("without credentials: %s %s", got.status, got.body)
	}
	got := s.do(t, get, "/", "", "Authorization", basic(user, password))
	if got.status != "200 OK" || got.body != read(t, "page.html") {
		t.Errorf("got %s and %d bytes", got.status, len(got.body))
	}
	if got.header.Get("Content-Type") != "text/html; charset=utf-8" || got.header.Get("X-Content-Type-Options") != "nosniff" || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("header %v", got.header)
	}
	policy := got.header.Get("Content-Security-Policy")
	for _, part := range []string{"default-src 'none'; ", "connect-src 'self';", "script-src 'sha256-", "style-src 'sha256-", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, part) {
			t.Errorf("the policy has no %s: %s", part, policy)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") || !strings.HasPrefix(policy, "default-src") {
		t.Errorf("policy %s", policy)
	}
	if strings.Count(read(t, "page.html"), "<script") != 1 || strings.Count(read(t, "page.html"), "<style") != 1 {
		t.Error("the policy allows one script and one style")
	}
	if got := s.do(t, get, "/?x=1", "", "Authorization", basic(user, password)); got.status != "400 Bad Request" {
		t.Errorf("with a query: %s", got.status)
	}
}

// TestListTellsOfChangesTogether: whoever follows the list hears of a change
// within a tenth of a second, but of many at once not of each.
func TestListTellsOfChangesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := serveMemory(t, &config{})
		const changes = 400
		go func() {
			conn := m.dial(t)
			answers := bufio.NewReader(conn)
			for i := range changes {
				fmt.Fprintf(conn, "PUT /lock/l%d HTTP/1.1\r\nHost: locker\r\nContent-Length: 12\r\n\r\n{\"key\": \"k\"}", i)
				nextAnswer(t, answers)
				time.Sleep(5 * time.Millisecond)
			}
		}()
		conn := m.dial(t)
		answers, tag, told := bufio.NewReader(conn), `"0"`, 0
		start := time.Now()
		for tag != fmt.Sprintf(`"%d"`, changes) {
			asked := time.Now()
			fmt.Fprintf(conn, "GET /locks?wait=60s HTTP/1.1\r\nHost: locker\r\nIf-None-Match: %s\r\n\r\n", tag)
			got := nextAnswer(t, answers)
			if took := time.Since(asked); got.status != "200 OK" || took > listPause+5*time.Millisecond {
				t.Fatalf("got %s after %v", got.status, took)
			}
			tag = got.header.Get("ETag")
			told++
		}
		if took := time.Since(start); told < 15 || told > int(took/listPause)+2 {
			t.Errorf("told %d times in %v", told, took)
		}
	})
}

// visit is the page of a server of its own, open in a browser.
type visit struct {
	*browser
	*server
	t testing.TB
}

// visitPage starts a server and opens its page. An error in a script, a request
// that the policy stops or one to another host fails the test.
func visitPage(t testing.TB, b *browser, env map[string]string, but ...string) *visit {
	t.Helper()
	s := startServer(b.t, env) // stopped at the end: a connection that a browser opened in advance delays that
	in := &browser{t, b.session}
	in.wantNoComplaints(".")
	in.device(1280, "light")
	address := url.URL{Scheme: "http", Host: s.address, Path: "/", User: url.UserPassword(user, password)}
	in.open(address.String())
	in.await("document.getElementById('status').textContent === 'live'")
	in.run("window.stayed = true", nil)
	t.Cleanup(func() {
		var elsewhere []string
		in.run("return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin + '/') && !n.startsWith('data:'))", &elsewhere)
		if len(elsewhere) > 0 {
			t.Errorf("requests to %q", elsewhere)
		}
		var stayed bool
		if in.run("return window.stayed === true", &stayed); !stayed {
			t.Error("the page was loaded again")
		}
		in.wantNoComplaints(but...)
		in.open("about:blank")
	})
	return &visit{in, s, t}
}

// do sends a request with credentials.
func (w *visit) do(method, path, body string) exchange {
	w.t.Helper()
	return w.server.do(w.t, method, path, body, "Authorization", basic(user, password))
}

// has waits until a person reads all of these words in the page.
func (w *visit) has(words ...string) {
	w.t.Helper()
	for _, word := range words {
		w.await(fmt.Sprintf("document.body.innerText.replace(/\\s+/g, ' ').includes(%s)", encode(word)))
	}
}

// TestPage looks at the page as people do: in a browser.
func TestPage(t *testing.T) {
	b := startBrowser(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *browser)
	}{
		{"empty", testPageEmpty},
		{"live", testPageLive},
		{"release", testPageRelease},
		{"release of one of two", testPageReleaseOne},
		{"release after it changed hands", testPageChangedHands},
		{"release that fails", testPageReleaseFails},
		{"markup", testPageMarkup},
		{"restart", testPageRestart},
		{"another state", testPageAnotherState},
		{"late answer", testPageLateAnswer},
		{"disk in trouble", testPageTrouble},
		{"in the background", testPageBackground},
		{"filter", testPageFilter},
		{"updates leave things where they are", testPageKeeps},
		{"many", testPageMany},
		{"looks", testPageLooks},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, b) })
	}
}

func testPageEmpty(t *testing.T, b *browser) {
	w := visitPage(t, b, withAuth())
	w.has("No lock has been taken yet", `curl -X PUT -d '{"key": "me"}' http://`+w.address+"/lock/my-lock")
	start := time.Now()
	if w.has("Locker " + buildVersion()); time.Since(start) > soon {
		t.Error("the version comes late")
	}
	w.await("document.title === '0 held, 0 waiting, 0 free – Locker'")
	if lines := strings.Split(w.text("#lines"), "\n"); len(lines) != 3 {
		t.Errorf("%d lines of curl", len(lines))
	}
	w.screenshot("empty")
}

// A lock that is taken, queued for and released appears without a reload.
func testPageLive(t *testing.T, b *browser) {
	w := visitPage(t, b, withAuth())
	w.do(put, "/lock/a", `{"key": "k", "locked_by": "jane", "ttl": "2h", "link": "https://ci.example/teams/main/pipelines/site/jobs/deploy/builds/12"}`)
	w.has("key k", "jane", "site / deploy #12", "expires in 1 h 59 min")
	w.await("document.title === '1 held, 0 waiting, 0 free – Locker'")
	var link map[string]string
	w.run("const a = document.querySelector('.holders a'); return {href: a.href, rel: a.rel}", &link)
	if link["href"] != "https://ci.example/teams/main/pipelines/site/jobs/deploy/builds/12" || link["rel"] != "noopener noreferrer" {
		t.Errorf("link %v", link)
	}
	george := make(chan exchange, 1)
	go func() {
		george <- w.do(put, "/lock/a", `{"key": "other", "locked_by": "george", "wait": "60s"}`)
	}()
	w.has("1 waiting", "1. george key other for")
	w.await("document.title === '1 held, 1 waiting, 0 free – Locker'")
	w.do(del, "/lock/a", `{"key": "k", "locked_by": "jane"}`)
	if got := <-george; got.status != "200 OK" {
		t.Fatalf("george got %s", got.status)
	}
	w.has("key other", "george held")
	w.await("!document.body.innerText.includes('jane') && document.title === '1 held, 0 waiting, 0 free – Locker'")
	const age = "Number(document.querySelector('.holders .age').textContent.match(/^held (\\d+) s$/)[1])"
	w.run("window.age0 = "+age, nil)
	w.await(age + " > age0") // ages go on by themselves
	w.do(del, "/lock/a", `{"key": "other", "locked_by": "george"}`)
	w.has("Nothing is held", "Free (1)")
	w.click("#free summary")
	w.await("document.getElementById('freeNames').textContent === 'a'")
}

// Somebody frees a lock with the keyboard alone, and is asked why.
func testPageRelease(t *testing.T, b *browser) {
	w := visitPage(t, b, withAuth())
	w.do(put, "/lock/a%2Fb", jane)
	w.await("document.querySelector('.lock .release')")
	w.tabTo("document.activeElement.matches('.holders .release')")
	w.keys(keyEnter)
	w.has("Release jane from a/b?", "has held it for", "since 20")
	w.keys(keyEnter) // no reason yet
	w.await("document.getElementById('reason').matches(':invalid') && document.getElementById('dialog').open")
	if got := w.do(get, "/lock/a%2Fb", ""); !strings.Contains(got.body, "jane") {
		t.Fatal("released without a reason")
	}
	w.keys(keyEscape)
	w.await("!document.getElementById('dialog').open && document.activeElement.matches('.holders .release')")
	w.keys(keyEnter)
	w.await("document.getElementById('dialog').open && document.activeElement.id === 'reason'")
	w.screenshot("dialog")
	var done any
	b.run("document.getElementById('dialog').dispatchEvent(new Event('close'))", &done) // of the first one, come late
	w.keys("build 12 hangs" + keyEnter)
	w.has("Released jane from a/b.", "Nothing is held")
	w.await("!document.getElementById('dialog').open && document.activeElement !== document.body")
	w.log.await(t, `msg=force lock=a/b key=k locked_by=jane link=\S+ token=1 held=\S+ by=`+user+` reason="build 12 hangs"\n`)
}

// tabTo presses Tab until an expression is true.
func (w *visit) tabTo(expression string) {
	w.t.Helper()
	var is bool
	for range 30 {
		w.keys(keyTab)
		if w.run("return "+expression, &is); is {
			return
		}
	}
	w.t.Fatalf("no Tab leads to where %s", expression)
}

// A hold that is shared is ended for one holder or for all.
func testPageReleaseOne(t *testing.T, b *browser) {
	w := visitPage(t, b, withAuth())
	for _, name := range []string{"jane", "george", "ann"} {
		w.do(put, "/lock/a", fmt.Sprintf(`{"key": "k", "locked_by": %q}`, name))
	}
	w.await("document.querySelectorAll('.holders li').length === 3")
	w.click(".holders li:nth-child(2) .release")
	w.has("Release george from a?")
	w.keys("one" + keyEnter)
	w.has("Released george from a.")
	w.await("document.querySelector('.holders').innerText.match(/jane|george|ann/g).join() === 'jane,ann'")
	w.click(".lock > header .release")
	w.has("Release everyone from a?", "jane has held it", "ann has held it")
	w.keys("all" + keyEnter)
	w.has("Released everyone from a.", "Nothing is held")
	w.log.await(t, `msg=force .* locked_by=george .* reason=one\n(?s:.*)msg=force .* locked_by=jane .* reason=all\n.*msg=force .* locked_by=ann .* reason=all\n`)
}

// Only what the person saw is released.
func testPageChangedHands(t *testing.T, b *browser) {
	w := visitPage(t, b, withAuth(), "412")
	w.do(put, "/lock/a", jane)
	w.await("document.querySelector('.holders .release')")
	w.click(".holders .release")
	w.do(del, "/lock/a", `{"key": "k", "locked_by": "jane"}`)
	w.do(put, "/lock/a", `{"key": "k2", "locked_by": "george"}`)
	w.await("document.querySelector('.lock').innerText.includes('george')")
	w.keys("it hangs" + keyEnter)
	w.has("It changed hands meanwhile: nothing was released.", "george has held it for")
	w.screenshot("changed hands")
	w.await("document.getElementById('sure').hidden && document.activeElement.id === 'cancel'")
	w.keys(keyEnter)
	w.await("!document.getElementById('dialog').open")
	if got := w.do(get, "/lock/a", ""); !strings.Contains(got.body, `"locked_by":{"george":1}`) {
		t.Errorf("released what nobody saw: %s", got.body)
	}
	if strings.Contains(w.log.String(), "msg=force") {
		t.Error("something was forced")
	}
}

// A release that was not answered says so, and can be asked for again.
func testPageReleaseFails(t *testing.T, b *browser) {
	w := visitPage(t, b, withAuth(), "ERR_", "Failed to load resource")
	w.do(put, "/lock/a", jane)
	w.await("document.querySelector('.holders .release')")
	w.click(".holders .release")
	w.stop()
	w.keys("it hangs" + keyEnter)
	w.has("It is not known whether it was released:")
	w.await("document.getElementById('dialog').open && !document.getElementById('sure').disabled && document.getElementById('reason').value === 'it hangs'")
}

// Whatever clients call things is text, and none of it runs.
func testPageMarkup(t *testing.T, b *browser) {
	w := visitPage(t, b, withAuth())
	const markup = `<img src=x onerror="window.ran=1">'"&amp;</script><script>window.ran=1</script>`
	const turned = "\u202e" + `evil<b>` // right-to-left override
	name := markup[:60] + turned
	claim := func(m map[string]string) string { return string(encode(m)) }
	link := `https://ci.example/"><img src=x onerror=window.ran=1>/teams/a/pipelines/<b>/jobs/%3Cimg%20src=x%20onerror=window.ran=1%3E/builds/1`
	for _, c := range []map[string]string{
		{"key": markup, "locked_by": turned, "link": link, "id": "1"},
		{"key": turned, "locked_by": markup, "link": link, "id": "2", "wait": "1ms"},
		{"key": "__proto__", "locked_by": "constructor", "id": "3", "wait": "1ms"},
	} {
		if got := w.do(put, "/lock/"+url.PathEscape(name), claim(c)); got.status > "423 Locked" || got.status == "400 Bad Request" {
			t.Fatalf("%s %s", got.status, got.body)
		}
	}
	w.do(put, "/lock/__proto__", jane)
	w.do(put, "/lock/constructor", jane)
	w.await("document.querySelectorAll('.lock').length === 3 && document.querySelectorAll('.queue:first-of-type li').length === 2")
	var seen struct {
		Name, Key, Holder, Waiter string
		Isolated                  bool
		Foreign                   int
		Schemes                   []string
	}
	const look = `const card = [...document.querySelectorAll('.lock')].find(c => c.querySelector('.queue li')), text = s => card.querySelector(s).textContent;
		return {name: text('h2'), key: text('.key bdi'), holder: text('.holders .who > bdi'), waiter: text('.queue .who > bdi'),
			isolated: [...card.querySelectorAll('bdi')].every(e => getComputedStyle(e).unicodeBidi.includes('isolate')),
			foreign: document.querySelectorAll('main img, main b, main script').length,
			schemes: [...document.querySelectorAll('main a')].map(a => a.protocol)}`
	w.run(look, &seen)
	if seen.Name != name || seen.Key != markup || seen.Holder != turned || seen.Waiter != markup {
		t.Errorf("seen %+v", seen)
	}
	if seen.Foreign > 0 || !seen.Isolated || strings.Join(seen.Schemes, "") != strings.Repeat("https:", len(seen.Schemes)) || len(seen.Schemes) < 2 {
		t.Errorf("seen %+v", seen)
	}
	w.screenshot("markup")
	w.run("for (const b of document.querySelectorAll('.release')) if (!b.hidden && b.closest('.lock').querySelector('.queue li')) b.click()", nil)
	w.has("Release " + turned)
	w.keys(markup + keyEnter)
	w.has("Released " + turned)
	var ran any
	if w.run("return window.ran", &ran); ran != nil {
		t.Error("markup ran")
	}
	var href string
	w.run("const a = link('javascript:window.ran=1'); return String(a && a.href) + String(link('data:text/html,x')) + String(link('//x'))", &href)
	if href != "" {
		t.Errorf("links to %s", href)
	}
}

// visitStopped opens the page while jane holds lock a, and stops the server.
func visitStopped(t *testing.T, b *browser) (env map[string]string, w *visit) {
	t.Helper()
	env = withAuth()
	env["LOCKER_CONFIG"] = filepath.Join(t.TempDir(), "locker.json")
	w = visitPage(t, b, env, "ERR_", "503")
	w.do(put, "/lock/a", jane)
	w.has("jane")
	w.stop()
	return env, w
}

// The page says that it lost the server, and is back by itself.
func testPageRestart(t *testing.T, b *browser) {
	env, w := visitStopped(t, b)
	w.has("connection lost, showing the state of ")
	w.await("/^connection lost: 1 held, 0 waiting, 0 free/.test(document.title) && document.body.innerText.includes('jane')")
	w.screenshot("connection lost")
	env["LISTEN"] = w.address
	w.server = startServer(b.t, env)
	start := time.Now()
	w.await("document.getElementById('status').textContent === 'live' && document.title === '1 held, 0 waiting, 0 free – Locker'")
	if took := time.Since(start); took > soon {
		t.Errorf("it was back after %v", took)
	}
	w.do(put, "/lock/b", jane)
	w.await("document.querySelectorAll('.lock').length === 2")
}

// After a restart on another state, whose tokens and revisions are the same
// again, the page shows who holds the lock there.
func testPageAnotherState(t *testing.T, b *browser) {
	env, w := visitStopped(t, b)
	w.has("connection lost")
	env["LISTEN"], env["LOCKER_CONFIG"] = w.address, filepath.Join(t.TempDir(), "locker.json")
	w.server = startServer(b.t, env)
	w.do(put, "/lock/a", `{"key": "k", "locked_by": "george"}`)
	w.has("george")
	w.await("!document.body.innerText.includes('jane')")
}

// The answer to a release whose dialog was closed touches no other dialog.
func testPageLateAnswer(t *testing.T, b *browser) {
	w := visitPage(t, b, withAuth())
	w.do(put, "/lock/a", jane)
	w.do(put, "/lock/b", `{"key": "k", "locked_by": "george"}`)
	w.await("document.querySelectorAll('.lock').length === 2")
	var done any
	b.run(`const real = window.fetch;
		window.fetch = (url, options) => options && options.method === 'DELETE'
			? new Promise((_, fail) => { window.failNow = () => fail(new Error('lost')); }) : real(url, options);`, &done)
	w.click(".lock:nth-of-type(1) .holders .release")
	w.keys("it hangs" + keyEnter)
	w.await("!!window.failNow")
	b.run("document.getElementById('dialog').close()", &done)
	w.click(".lock:nth-of-type(2) .holders .release")
	w.keys("build")
	b.run("window.failNow()", &done)
	w.await("document.getElementById('news').textContent.includes('It is not known whether it was released')")
	w.await("document.activeElement.id === 'reason' && document.getElementById('warning').hidden && document.getElementById('dialog').open")
	w.keys(" 77 ")
	w.await("document.getElementById('reason').value === 'build 77 '")
	if strings.Contains(w.log.String(), "msg=force") {
		t.Error("something was forced")
	}
}

// While nothing can be saved the page says so, and a release that fails can be
// tried again where it is.
func testPageTrouble(t *testing.T, b *browser) {
	folder := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	env := withAuth()
	env["LOCKER_CONFIG"] = filepath.Join(folder, "locker.json")
	w := visitPage(t, b, env, "503")
	w.do(put, "/lock/a", jane)
	w.await("document.querySelector('.holders .release')")
	rename(t, folder, folder+"-away")
	w.click(".holders .release")
	w.keys("it hangs" + keyEnter)
	w.has("The locker answered: nothing was changed, the locker cannot save its state")
	w.run("health()", nil) // not to wait until it is looked at anyway
	w.has("Nothing can be taken or released since 20", "no such file or directory")
	w.screenshot("trouble")
	rename(t, folder+"-away", folder)
	w.log.await(t, "commits succeed again")
	w.click("#sure")
	w.has("Released jane from a.")
	w.run("health()", nil)
	w.await("document.getElementById('trouble').hidden")
}

// A page in the background leaves the browser's connections to others; it is up
// to date as soon as somebody looks.
func testPageBackground(t *testing.T, b *browser) {
	w := visitPage(t, b, withAuth())
	const hide = "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true}); document.dispatchEvent(new Event('visibilitychange'))"
	w.run(hide, nil, true)
	w.do(put, "/lock/a", jane)
	w.has("1 held")
	w.do(put, "/lock/b", jane)
	time.Sleep(500 * time.Millisecond)
	if text := w.text(".counts"); !strings.HasPrefix(text, "1 held") {
		t.Errorf("in the background it follows: %s", text)
	}
	w.run("performance.clearResourceTimings(); wake()", nil) // as when its time has come
	w.has("2 held")
	w.run("wake()", nil)
	w.await("performance.getEntriesByType('resource').filter(e => /locks$/.test(e.name)).length === 2")
	w.do(put, "/lock/c", jane)
	start := time.Now()
	w.run(hide, nil, false)
	w.has("3 held")
	if took := time.Since(start); took > soon {
		t.Errorf("it took %v", took)
	}
}

// soon is half of what the page waits for changes, or in the background.
const soon = 5 * time.Second
