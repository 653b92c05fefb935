package test

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file looks at the page as people do: in a browser.

// user and password are those of a locker whose page is open.
const user, password = "george", "p:ä secret"

// jane is a body that takes a lock for her.
const jane = `{"key": "k", "locked_by": "jane", "id": "7", "link": "https://ci.example/builds/12"}`

// visit is the page of a locker of its own, open in a browser.
type visit struct {
	*browser
	*lockertest.Locker
	t testing.TB
}

// visitPage starts a locker, with more environment, and opens its page. An
// error in a script, a request that the policy stops or one to another host
// fails the test, but for messages that match one of the patterns.
func visitPage(t testing.TB, env []string, but ...string) *visit {
	t.Helper()
	l := lockertest.Start(t, append(env, credentials...)...)
	return visitAt(t, l, l.URL+"/", but...)
}

// credentials are the settings of a locker that visitAt visits.
var credentials = []string{"AUTH_USER=" + user, "AUTH_PASS=" + password}

// visitAt is visitPage for a locker whose page is at that URL.
func visitAt(t testing.TB, l *lockertest.Locker, page string, but ...string) *visit {
	t.Helper()
	w := &visit{startBrowser(t), l, t}
	w.device(1280, "light")
	w.open(strings.Replace(page, "://", "://"+url.UserPassword(user, password).String()+"@", 1))
	w.await("document.getElementById('status').textContent === 'live'")
	w.run("window.stayed = true", nil)
	t.Cleanup(func() {
		var elsewhere []string
		w.run("return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin + '/') && !n.startsWith('data:'))", &elsewhere)
		if len(elsewhere) > 0 {
			t.Errorf("requests to %q", elsewhere)
		}
		var stayed bool
		if w.run("return window.stayed === true", &stayed); !stayed {
			t.Error("the page was loaded again")
		}
		w.wantNoComplaints(but...)
	})
	return w
}

// with returns the URL of a path, with credentials.
func (w *visit) with(path string) string {
	return "http://" + url.UserPassword(user, password).String() + "@" + w.Address + path
}

// do sends a request with credentials.
func (w *visit) do(method, path, body string) (status int, answer string) {
	w.t.Helper()
	status, data := lockertest.Send(w.t.Context(), method, w.with(path), body)
	return status, string(data)
}

// has waits until a person reads all of these words in the page.
func (w *visit) has(words ...string) {
	w.t.Helper()
	for _, word := range words {
		w.await(fmt.Sprintf("document.body.innerText.replace(/\\s+/g, ' ').includes(%s)", encode(word)))
	}
}

func TestPageEmpty(t *testing.T) {
	w := visitPage(t, nil)
	w.has("No lock has been taken yet", `curl -X PUT -d '{"key": "me"}' http://`+w.Address+"/lock/my-lock")
	start := time.Now()
	if w.has("Locker " + w.Log.Await(t, `msg=start version=(\S+)`)[1]); time.Since(start) > soon {
		t.Error("the version comes late")
	}
	w.await("document.title === '0 held, 0 waiting, 0 free – Locker'")
	if lines := strings.Split(w.text("#lines"), "\n"); len(lines) != 3 {
		t.Errorf("%d lines of curl", len(lines))
	}
	w.screenshot("empty")
}

// A lock that is taken, queued for and released appears without a reload.
func TestPageLive(t *testing.T) {
	w := visitPage(t, nil)
	w.do("PUT", "/lock/a", `{"key": "k", "locked_by": "jane", "ttl": "2h", "link": "https://ci.example/teams/main/pipelines/site/jobs/deploy/builds/12"}`)
	w.has("key k", "jane", "site / deploy #12", "expires in 1 h 59 min")
	w.await("document.title === '1 held, 0 waiting, 0 free – Locker'")
	var link map[string]string
	w.run("const a = document.querySelector('.holders a'); return {href: a.href, rel: a.rel}", &link)
	if link["href"] != "https://ci.example/teams/main/pipelines/site/jobs/deploy/builds/12" || link["rel"] != "noopener noreferrer" {
		t.Errorf("link %v", link)
	}
	george := make(chan int, 1)
	go func() {
		status, _ := w.do("PUT", "/lock/a", `{"key": "other", "locked_by": "george", "wait": "60s"}`)
		george <- status
	}()
	w.has("1 waiting", "1. george key other for")
	w.await("document.title === '1 held, 1 waiting, 0 free – Locker'")
	w.do("DELETE", "/lock/a", `{"key": "k", "locked_by": "jane"}`)
	if status := <-george; status != http.StatusOK {
		t.Fatalf("george got %d", status)
	}
	w.has("key other", "george held")
	w.await("!document.body.innerText.includes('jane') && document.title === '1 held, 0 waiting, 0 free – Locker'")
	const age = "Number(document.querySelector('.holders .age').textContent.match(/^held (\\d+) s$/)[1])"
	w.run("window.age0 = "+age, nil)
	w.await(age + " > age0") // ages go on by themselves
	w.do("DELETE", "/lock/a", `{"key": "other", "locked_by": "george"}`)
	w.has("Nothing is held", "Free (1)")
	w.click("#free summary")
	w.await("document.getElementById('freeNames').textContent === 'a'")
}

// Somebody frees a lock with the keyboard alone, and is asked why.
func TestPageRelease(t *testing.T) {
	w := visitPage(t, nil)
	w.do("PUT", "/lock/a%2Fb", jane)
	w.await("document.querySelector('.lock .release')")
	w.tabTo("document.activeElement.matches('.holders .release')")
	w.keys(keyEnter)
	w.has("Release jane from a/b?", "has held it for", "since 20")
	w.keys(keyEnter) // no reason yet
	w.await("document.getElementById('reason').matches(':invalid') && document.getElementById('dialog').open")
	if _, got := w.do("GET", "/lock/a%2Fb", ""); !strings.Contains(got, "jane") {
		t.Fatal("released without a reason")
	}
	w.keys(keyEscape)
	w.await("!document.getElementById('dialog').open && document.activeElement.matches('.holders .release')")
	w.keys(keyEnter)
	w.await("document.getElementById('dialog').open && document.activeElement.id === 'reason'")
	w.screenshot("dialog")
	var done any
	w.run("document.getElementById('dialog').dispatchEvent(new Event('close'))", &done) // of the first one, come late
	w.keys("build 12 hangs" + keyEnter)
	w.has("Released jane from a/b.", "Nothing is held")
	w.await("!document.getElementById('dialog').open && document.activeElement !== document.body")
	w.Log.Await(t, `msg=force lock=a/b key=k locked_by=jane link=\S+ token=2 held=\S+ by=`+user+` reason="build 12 hangs"\n`)
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
func TestPageReleaseOne(t *testing.T) {
	w := visitPage(t, nil)
	for _, name := range []string{"jane", "george", "ann"} {
		w.do("PUT", "/lock/a", fmt.Sprintf(`{"key": "k", "locked_by": %q}`, name))
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
	w.Log.Await(t, `msg=force .* locked_by=george .* reason=one\n(?s:.*)msg=force .* locked_by=jane .* reason=all\n.*msg=force .* locked_by=ann .* reason=all\n`)
}

// Only what the person saw is released.
func TestPageChangedHands(t *testing.T) {
	w := visitPage(t, nil, "412")
	w.do("PUT", "/lock/a", jane)
	w.await("document.querySelector('.holders .release')")
	w.click(".holders .release")
	w.do("DELETE", "/lock/a", `{"key": "k", "locked_by": "jane"}`)
	w.do("PUT", "/lock/a", `{"key": "k2", "locked_by": "george"}`)
	w.await("document.querySelector('.lock').innerText.includes('george')")
	w.keys("it hangs" + keyEnter)
	w.has("It changed hands meanwhile: nothing was released.", "george has held it for")
	w.screenshot("changed hands")
	w.await("document.getElementById('sure').hidden && document.activeElement.id === 'cancel'")
	w.keys(keyEnter)
	w.await("!document.getElementById('dialog').open")
	if _, got := w.do("GET", "/lock/a", ""); !strings.Contains(got, `"locked_by":{"george":1}`) {
		t.Errorf("released what nobody saw: %s", got)
	}
	if strings.Contains(w.Log.String(), "msg=force") {
		t.Error("something was forced")
	}
}

// A release that was not answered says so, and can be asked for again.
func TestPageReleaseFails(t *testing.T) {
	w := visitPage(t, nil, "ERR_", "Failed to load resource")
	w.do("PUT", "/lock/a", jane)
	w.await("document.querySelector('.holders .release')")
	w.click(".holders .release")
	w.Stop()
	w.keys("it hangs" + keyEnter)
	w.has("It is not known whether it was released:")
	w.await("document.getElementById('dialog').open && !document.getElementById('sure').disabled && document.getElementById('reason').value === 'it hangs'")
}

// Whatever clients call things is text, and none of it runs.
func TestPageMarkup(t *testing.T) {
	const markup = `<img src=x onerror="window.ran=1">'"&amp;</script><script>window.ran=1</script>`
	const turned = "\u202e" + `evil<b>` // right-to-left override, which a state file may have from before
	name := markup[:60] + turned
	link := `https://ci.example/"><img src=x onerror=window.ran=1>/teams/a/pipelines/<b>/jobs/%3Cimg%20src=x%20onerror=window.ran=1%3E/builds/1`
	older := newSaved()
	older.take(0, name, markup, savedClaim{LockedBy: turned, Link: link})
	older.take(0, name, turned, savedClaim{LockedBy: markup, Link: link})
	older.take(0, name, "__proto__", savedClaim{LockedBy: "constructor"})
	w := visitPage(t, older.write(t))
	w.do("PUT", "/lock/__proto__", jane)
	w.do("PUT", "/lock/constructor", jane)
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

// visitStopped opens the page while jane holds lock a, and stops the locker.
func visitStopped(t *testing.T) *visit {
	t.Helper()
	w := visitPage(t, nil, "ERR_", "503")
	w.do("PUT", "/lock/a", jane)
	w.has("jane")
	w.Stop()
	return w
}

// The page says that it lost the server, and is back by itself.
func TestPageRestart(t *testing.T) {
	w := visitStopped(t)
	w.has("connection lost, showing the state of ")
	w.await("/^connection lost: 1 held, 0 waiting, 0 free/.test(document.title) && document.body.innerText.includes('jane')")
	w.screenshot("connection lost")
	w.Restart()
	start := time.Now()
	w.await("document.getElementById('status').textContent === 'live' && document.title === '1 held, 0 waiting, 0 free – Locker'")
	if took := time.Since(start); took > soon {
		t.Errorf("it was back after %v", took)
	}
	w.do("PUT", "/lock/b", jane)
	w.await("document.querySelectorAll('.lock').length === 2")
}

// After a restart on another state, whose tokens and revisions are the same
// again, the page shows who holds the lock there.
func TestPageAnotherState(t *testing.T) {
	w := visitStopped(t)
	w.has("connection lost")
	w.Restart("LOCKER_CONFIG=" + filepath.Join(t.TempDir(), "locker.json"))
	w.do("PUT", "/lock/a", `{"key": "k", "locked_by": "george"}`)
	w.has("george")
	w.await("!document.body.innerText.includes('jane')")
}

// The answer to a release whose dialog was closed touches no other dialog.
func TestPageLateAnswer(t *testing.T) {
	w := visitPage(t, nil)
	w.do("PUT", "/lock/a", jane)
	w.do("PUT", "/lock/b", `{"key": "k", "locked_by": "george"}`)
	w.await("document.querySelectorAll('.lock').length === 2")
	var done any
	w.run(`const real = window.fetch;
		window.fetch = (url, options) => options && options.method === 'DELETE'
			? new Promise((_, fail) => { window.failNow = () => fail(new Error('lost')); }) : real(url, options);`, &done)
	w.click(".lock:nth-of-type(1) .holders .release")
	w.keys("it hangs" + keyEnter)
	w.await("!!window.failNow")
	w.run("document.getElementById('dialog').close()", &done)
	w.click(".lock:nth-of-type(2) .holders .release")
	w.keys("build")
	w.run("window.failNow()", &done)
	w.await("document.getElementById('news').textContent.includes('It is not known whether it was released')")
	w.await("document.activeElement.id === 'reason' && document.getElementById('warning').hidden && document.getElementById('dialog').open")
	w.keys(" 77 ")
	w.await("document.getElementById('reason').value === 'build 77 '")
	if strings.Contains(w.Log.String(), "msg=force") {
		t.Error("something was forced")
	}
}

// While nothing can be saved the page says so, and a release that fails can be
// tried again where it is.
func TestPageTrouble(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	folder(t, state, 0o700)
	w := visitPage(t, []string{"LOCKER_CONFIG=" + filepath.Join(state, "locker.json")}, "503")
	w.do("PUT", "/lock/a", jane)
	w.await("document.querySelector('.holders .release')")
	lockertest.Rename(t, state, state+"-away")
	w.click(".holders .release")
	w.keys("it hangs" + keyEnter)
	w.has("The locker answered: nothing was changed, the locker cannot save its state")
	w.run("health()", nil) // not to wait until it is looked at anyway
	w.has("Nothing can be taken or released since 20", "no such file or directory")
	w.screenshot("trouble")
	lockertest.Rename(t, state+"-away", state)
	w.Log.Await(t, "commits succeed again")
	w.click("#sure")
	w.has("Released jane from a.")
	w.run("health()", nil)
	w.await("document.getElementById('trouble').hidden")
}

// A page in the background leaves the browser's connections to others; it is up
// to date as soon as somebody looks.
func TestPageBackground(t *testing.T) {
	w := visitPage(t, nil)
	const hide = "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true}); document.dispatchEvent(new Event('visibilitychange'))"
	w.run(hide, nil, true)
	w.do("PUT", "/lock/a", jane)
	w.has("1 held")
	w.do("PUT", "/lock/b", jane)
	time.Sleep(500 * time.Millisecond)
	if text := w.text(".counts"); !strings.HasPrefix(text, "1 held") {
		t.Errorf("in the background it follows: %s", text)
	}
	w.run("performance.clearResourceTimings(); wake()", nil) // as when its time has come
	w.has("2 held")
	w.run("wake()", nil)
	w.await("performance.getEntriesByType('resource').filter(e => /locks$/.test(e.name)).length === 2")
	w.do("PUT", "/lock/c", jane)
	start := time.Now()
	w.run(hide, nil, false)
	w.has("3 held")
	if took := time.Since(start); took > soon {
		t.Errorf("it took %v", took)
	}
}

// soon is half of what the page waits for changes, or in the background.
const soon = 5 * time.Second
