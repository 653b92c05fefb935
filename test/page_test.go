package test

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
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

// hasNot waits until a person reads this nowhere in the page.
func (w *visit) hasNot(word string) {
	w.t.Helper()
	w.await(fmt.Sprintf("!document.body.innerText.replace(/\\s+/g, ' ').includes(%s)", encode(word)))
}

// titled waits until the tab's title is that of a page that shows this.
func (w *visit) titled(words string) {
	w.t.Helper()
	w.await(fmt.Sprintf("document.title === %s", encode(words+" – Locker "+w.Address)))
}

func TestPageEmpty(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil)
	w.has("No lock has been taken yet", `curl -X PUT -d '{"key": "me"}' http://`+w.Address+"/lock/my-lock", w.Address)
	start := time.Now()
	if w.has("Locker " + w.Log.Await(t, `msg=start version=(\S+)`)[1]); time.Since(start) > soon {
		t.Error("the version comes late")
	}
	w.titled("nothing waits")
	if lines := strings.Split(w.text("#lines"), "\n"); len(lines) != 3 {
		t.Errorf("%d lines of curl", len(lines))
	}
	w.screenshot("empty")
}

// A lock that is taken, queued for and released appears without a reload.
func TestPageLive(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil)
	w.do("PUT", "/lock/a", `{"key": "k", "locked_by": "jane", "ttl": "2h", "reason": "schema change", "link": "https://ci.example/teams/main/pipelines/site/jobs/deploy/builds/12"}`)
	w.has("Held, and nobody waits", "jane", "site / deploy #12", "“schema change”", "expires in 1 h 59 min")
	w.titled("nothing waits")
	var link map[string]string
	w.run("const a = document.querySelector('.row .about a'); return {href: a.href, rel: a.rel}", &link)
	if link["href"] != "https://ci.example/teams/main/pipelines/site/jobs/deploy/builds/12" || link["rel"] != "noopener noreferrer" {
		t.Errorf("link %v", link)
	}
	george := make(chan int, 1)
	go func() {
		status, _ := w.do("PUT", "/lock/a", `{"key": "other", "locked_by": "george", "wait": "50s"}`)
		george <- status
	}()
	w.has("Somebody waits", "key k", "1 waiting, oldest", "1. george key other for", "1 lock blocked, oldest wait")
	w.await("/^1 lock blocked, oldest wait \\d+ s – Locker /.test(document.title)")
	w.do("DELETE", "/lock/a", `{"key": "k", "locked_by": "jane"}`)
	if status := <-george; status != http.StatusOK {
		t.Fatalf("george got %d", status)
	}
	w.has("Held, and nobody waits a george")
	w.hasNot("jane")
	w.titled("nothing waits")
	const age = "Number(document.querySelector('.row .age').textContent.match(/^(\\d+) s$/)[1])"
	w.run("window.age0 = "+age, nil)
	w.await(age + " > age0") // ages go on by themselves
	w.do("DELETE", "/lock/a", `{"key": "other", "locked_by": "george"}`)
	w.has("Free (1)")
	w.click("#freePart summary")
	w.await("document.getElementById('freeNames').textContent === 'a'")
}

// Whatever clients call things is text, and none of it runs.
func TestPageMarkup(t *testing.T) {
	t.Parallel()
	const markup = `<img src=x onerror="window.ran=1">'"&amp;</script><script>window.ran=1</script>`
	const turned = "\u202e" + `evil<b>` // right-to-left override, which a state file may have from before
	name := markup[:60] + turned
	link := `https://ci.example/"><img src=x onerror=window.ran=1>/teams/a/pipelines/<b>/jobs/%3Cimg%20src=x%20onerror=window.ran=1%3E/builds/1`
	older := newSaved()
	older.take(0, name, markup, savedClaim{LockedBy: turned, Link: link})
	w := visitPage(t, older.write(t))
	w.do("PUT", "/lock/__proto__", jane)
	w.do("PUT", "/lock/constructor", jane)
	w.await("document.querySelectorAll('.row').length === 3")
	w.run(`const lock = {...locks.get(arguments[0])}, since = lock.holders[0].since;
		lock.waiters = [{key: arguments[1], locked_by: arguments[2], since, link: arguments[3]}, {key: '__proto__', locked_by: 'constructor', since}];
		show({...Object.fromEntries(locks), [arguments[0]]: lock})`, nil, name, turned, markup, link)
	w.await("document.querySelectorAll('.row').length === 2 && document.querySelectorAll('.line li').length === 2")
	var seen struct {
		Name, Key, Holder, Waiter string
		Isolated                  bool
		Foreign                   int
		Schemes                   []string
	}
	const look = `const card = document.querySelector('.card'), text = s => card.querySelector(s).textContent;
		return {name: text('h3'), key: text('header .key bdi'), holder: text('.holders .who > bdi'), waiter: text('.line .who > bdi'),
			isolated: [...document.querySelectorAll('bdi')].every(e => getComputedStyle(e).unicodeBidi.includes('isolate')),
			foreign: document.querySelectorAll('main img, bdi *, main script').length,
			schemes: [...document.querySelectorAll('main a[target]')].map(a => a.protocol)}`
	w.run(look, &seen)
	if seen.Name != name || seen.Key != markup || seen.Holder != turned || seen.Waiter != markup {
		t.Errorf("seen %+v", seen)
	}
	if seen.Foreign > 0 || !seen.Isolated || strings.Join(seen.Schemes, "") != strings.Repeat("https:", len(seen.Schemes)) || len(seen.Schemes) < 2 {
		t.Errorf("seen %+v", seen)
	}
	w.screenshot("markup")
	w.run("place(arguments[0]).querySelector('.release').click()", nil, name)
	w.has("Force-release " + name)
	w.keys(markup + keyTab + markup + keyEnter)
	w.has("Force-released " + turned)
	w.run("location.hash = encodeURIComponent(arguments[0])", nil, name)
	w.has("forced by "+markup, "“"+markup+"”")
	w.screenshot("markup of one")
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

// icon is an expression of the tab's icon.
const icon = "document.getElementById('icon').href"

// The page says in all ways that it lost the server, stops its clocks and its
// buttons, and is back by itself.
func TestPageRestart(t *testing.T) {
	w := visitPage(t, nil, "ERR_", "503")
	w.do("PUT", "/lock/a", jane)
	wait := func() { w.do("PUT", "/lock/a", `{"key": "w", "id": "8", "wait": "1ms"}`) } // for 15 s
	wait()
	w.has("jane")
	w.run("window.icon0 = "+icon, nil)
	wait()
	time.Sleep(2500 * time.Millisecond) // by now the page waits for a change
	w.run("window.said = []; new MutationObserver(() => said.push(document.title + ' ' + document.getElementById('trouble').textContent)).observe(document.getElementById('trouble'), {childList: true, subtree: true, characterData: true, attributes: true})", nil)
	w.Stop()
	w.await("said.some(s => s.startsWith('not served: ') && s.includes('The locker does not serve: the locker is shutting down'))")
	w.has("Connection lost: ", "This is the state of 20", ": 1 lock blocked, oldest wait ", "jane")
	w.await("document.title.startsWith('connection lost: 1 lock blocked') && " + icon + " !== icon0 && getComputedStyle(document.getElementById('main')).opacity < 1")
	const ages = "[document.title, document.querySelector('h1').textContent, document.querySelector('.wait').textContent, document.querySelector('.holders time').textContent].join('; ')"
	var before, after string
	w.run("document.querySelector('.release').click(); return "+ages, &before)
	time.Sleep(1500 * time.Millisecond) // in which an age would go on
	w.run("return "+ages, &after)
	w.await("document.querySelector('.release').getAttribute('aria-disabled') === 'true' && !document.querySelector('dialog[open]')")
	if before != after {
		t.Errorf("the ages went on from %s to %s", before, after)
	}
	w.hasNot("Failed to fetch")
	w.screenshot("connection lost")
	w.Restart()
	wait()
	start := time.Now()
	w.await("document.getElementById('status').textContent === 'live' && document.getElementById('trouble').hidden && " + icon + " === icon0")
	w.await("document.title.startsWith('1 lock blocked')")
	if took := time.Since(start); took > soon {
		t.Errorf("it was back after %v", took)
	}
	w.do("PUT", "/lock/b", jane)
	w.await("document.querySelectorAll('.release[aria-disabled=false]').length === 2")
}

// After a restart on another state, whose tokens and revisions are the same
// again, the page shows who holds the lock there.
func TestPageAnotherState(t *testing.T) {
	t.Parallel()
	w := visitStopped(t)
	w.has("Connection lost")
	w.Restart("LOCKER_CONFIG=" + filepath.Join(t.TempDir(), "locker.json"))
	w.do("PUT", "/lock/a", `{"key": "k", "locked_by": "george"}`)
	w.has("george")
	w.hasNot("jane")
}

// While nothing can be saved the whole page and its tab say so, also a question
// that is open; it can be answered when that is over.
func TestPageTrouble(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	folder(t, state, 0o700)
	w := visitPage(t, []string{"LOCKER_CONFIG=" + filepath.Join(state, "locker.json")}, "503")
	w.do("PUT", "/lock/a", jane)
	w.await("document.querySelector('.row .release')")
	w.run("window.icon0 = "+icon, nil)
	lockertest.Rename(t, state, state+"-away")
	w.click(".row .release")
	w.keys("it hangs" + keyTab + "ann" + keyEnter)
	w.has("The locker answered: nothing was changed, the locker cannot save its state")
	w.run("health()", nil) // not to wait until it is looked at anyway
	w.has("The locker cannot save: nothing can be taken or released since 20", "no such file or directory")
	w.await("document.title.startsWith('cannot save: ') && " + icon + " !== icon0 && document.getElementById('releaseSure').getAttribute('aria-disabled') === 'true'")
	w.screenshot("trouble")
	lockertest.Rename(t, state+"-away", state)
	w.Log.Await(t, "commits succeed again")
	w.run("health()", nil)
	w.await("document.getElementById('trouble').hidden && " + icon + " === icon0")
	w.click("#releaseSure")
	w.has("Force-released jane from a.")
	w.run(`window.fetch = () => Promise.resolve(new Response('{"error": "nobody leads"}', {status: 503})); wake()`, nil)
	w.do("PUT", "/lock/b", jane) // so that the request in flight is answered
	w.has("The locker does not serve: nobody leads. This is the state of 20")
	w.await("document.title.startsWith('not served: ')")
}

// A page that is opened while nothing can be saved does not look fine first.
func TestPageOpenedInTrouble(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	folder(t, state, 0o700)
	l := lockertest.Start(t, "LOCKER_CONFIG="+filepath.Join(state, "locker.json"))
	lockertest.Rename(t, state, state+"-away")
	l.Want("PUT", "/lock/a", jane, http.StatusServiceUnavailable)
	b := startBrowser(t)
	b.devtools("Page.addScriptToEvaluateOnNewDocument", map[string]any{"source": `document.addEventListener('DOMContentLoaded', () => {
		window.said = [];
		new MutationObserver(() => said.push(document.getElementById('status').textContent)).observe(document.getElementById('status'), {childList: true, characterData: true, subtree: true});
	})`}, nil)
	b.open(l.URL)
	b.await("said.length > 0 && document.title.startsWith('cannot save: ')")
	var said []string
	if b.run("return said", &said); slices.Contains(said, "live") {
		t.Errorf("it says %q", said)
	}
}

// The page of one of several lockers says who leads, and it when nobody does.
func TestPageOfSeveral(t *testing.T) {
	t.Parallel()
	ls := startLockers(t, 1, 2, credentials...)
	leader := ls.leader(t)
	standby := ls.all[1-leader]
	w := visitAt(t, standby, standby.URL+"/", "503", "423")
	w.has("a standby of " + ls.all[leader].URL)
	w.do("PUT", "/lock/a", jane)
	w.hold("a", "ann", "incident 4711")
	w.has("You wait for a as ann, 1 of 1 in line.")
	w.do("DELETE", "/lock/a", `{"key": "k", "locked_by": "jane", "id": "7"}`)
	w.has("You hold a now")
	ls.etcd.KillNode(0)
	w.has("The locker does not serve: ")
	w.await("document.title.startsWith('not served: ') && document.querySelector('.act').getAttribute('aria-disabled') === 'true'")
	w.screenshot("nobody leads")
}

// A page in the background leaves the browser's connections to others; it is up
// to date as soon as somebody looks.
func TestPageBackground(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil)
	const hide = "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true}); document.dispatchEvent(new Event('visibilitychange'))"
	w.run(hide, nil, true)
	w.do("PUT", "/lock/a", jane)
	w.has("1 held")
	w.do("PUT", "/lock/b", jane)
	time.Sleep(500 * time.Millisecond)
	if text := w.text("[data-show=held]"); text != "1 held" {
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

// Without JavaScript there is a sentence and a link, and nothing that waits for
// ever.
func TestPageWithoutScript(t *testing.T) {
	t.Parallel()
	b := startBrowser(t)
	l := lockertest.Start(t)
	b.devtools("Emulation.setScriptExecutionDisabled", map[string]any{"value": true}, nil)
	b.open(l.URL)
	b.devtools("Emulation.setScriptExecutionDisabled", map[string]any{"value": false}, nil)
	if text := b.text("body"); !strings.Contains(text, "This page shows the locks by JavaScript, which is off here. Without it: all locks, as JSON.") || regexp.MustCompile("connect|Hold|waits|Free").MatchString(text) {
		t.Errorf("it says:\n%s", text)
	}
	b.screenshot("without script")
	b.click("noscript a")
	b.await("location.pathname === '/locks'")
}

// soon is half of what the page waits for changes, or in the background.
const soon = 5 * time.Second
