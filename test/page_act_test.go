package test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file tests what people do on the page: release a lock, and hold one.

// Somebody frees a lock, and is asked why.
func TestPageRelease(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil)
	w.do("PUT", "/lock/a%2Fb", jane)
	w.do("PUT", "/lock/a%2Fb", `{"key": "w", "locked_by": "george", "id": "8", "wait": "1ms"}`)
	w.do("PUT", "/lock/below", `{"key": "k"}`)
	w.await("document.querySelector('.card .holders .release') && document.querySelector('.row')")
	w.click(".card .holders .release")
	w.has("Force-release a/b?", "jane (ci.example/builds/12) is not told and keeps running; stop it first.", "Next: george (1 of 1).")
	w.keys(keyEnter) // no reason yet
	w.await("document.getElementById('reason').matches(':invalid') && document.getElementById('release').open")
	w.keys("it hangs" + keyEnter) // no name yet
	w.await("document.getElementById('by').matches(':invalid') && document.getElementById('release').open")
	if _, got := w.do("GET", "/lock/a%2Fb", ""); !strings.Contains(got, "jane") {
		t.Fatal("released without a reason or a name")
	}
	w.keys(keyEscape)
	w.await("!document.getElementById('release').open && document.activeElement.matches('.release')")
	w.keys(keyEnter)
	w.await("document.getElementById('release').open && document.activeElement.id === 'reason'")
	w.screenshot("release")
	w.run("document.getElementById('release').dispatchEvent(new Event('close'))", nil) // of the first one, come late
	w.do("DELETE", "/lock/a%2Fb", `{"key": "w", "locked_by": "george", "id": "8"}`)
	w.has("Nobody waits: it will be free.") // the question follows the queue
	w.keys("build 12 hangs" + keyTab + "ann" + keyEnter)
	w.has("Force-released jane from a/b. Nobody holds it now.")
	w.await(inSight("#messages p"))
	w.await("!document.getElementById('release').open && document.activeElement.closest('[data-lock]').dataset.lock === 'below'") // where it was is gone
	w.screenshot("released")
	w.Log.Await(t, `msg=force lock=a/b key=k locked_by=jane link=\S+ token=2 held=\S+ by=`+user+` person=ann reason="build 12 hangs"\n`)
	w.click(".row .release")
	w.await("document.getElementById('by').value === 'ann' && document.getElementById('reason').value === ''") // the browser remembers who
	w.keys(keyEscape)
	for i := range 40 {
		w.do("PUT", fmt.Sprintf("/lock/more-%02d", i), jane)
	}
	w.await("document.querySelectorAll('.row').length === 41")
	w.click(".row:nth-last-child(2) .release") // far down
	w.run("window.top0 = scrollY", nil)
	w.keys("it hangs" + keyEnter)
	w.has("Force-released jane from more-38.")
	w.await("document.querySelectorAll('.row').length === 40 && document.activeElement.closest('[data-lock]').dataset.lock === 'more-39' && scrollY > top0 - 60 && " + inSight("#messages p"))
	w.await("!document.getElementById('messages').textContent") // it goes away by itself
}

// inSight is an expression: the whole element is on the screen.
func inSight(selector string) string {
	return fmt.Sprintf("(r => r.height > 0 && r.top >= 0 && r.bottom <= innerHeight)(document.querySelector('%s').getBoundingClientRect())", selector)
}

// A hold that is shared is ended for one holder or for all.
func TestPageReleaseOne(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil)
	for i, name := range []string{"jane", "george", "ann"} {
		w.do("PUT", "/lock/a", fmt.Sprintf(`{"key": "k", "locked_by": %q, "slots": %d}`, name, 5-i))
	}
	w.has("and 2 more", "3 of 3 slots")
	w.click(".row .button") // leads to the lock
	w.has("slot 1 of 5", "slot 2 of 4", "slot 3 of 3")
	w.await("document.querySelector('#one .key').innerText === 'key k 3 of 3 slots'")
	w.click("#one .holders li:nth-child(2) .release")
	w.has("george is not told", "2 other holders keep it.")
	w.keys("one" + keyTab + "zoe" + keyEnter)
	w.has("Force-released george from a. jane, ann hold it now.")
	w.await("document.querySelector('#one .holders').innerText.match(/jane|george|ann/g).join() === 'jane,ann' && document.activeElement !== document.body")
	w.click("#one header .release")
	w.has("jane, ann are not told and keep running; stop them first.", "Nobody waits: it will be free.")
	w.keys("all" + keyEnter)
	w.has("Force-released everyone from a. Nobody holds it now.")
	w.Log.Await(t, `msg=force .* locked_by=george .* person=zoe reason=one\n(?s:.*)msg=force .* locked_by=jane .* reason=all\n.*msg=force .* locked_by=ann .* reason=all\n`)
}

// holdBack has the page learn of no change until goOn is called in it.
func (w *visit) holdBack() {
	w.t.Helper()
	w.run(`const real = window.fetch;
		window.fetch = (url, options) => /locks/.test(url) ? new Promise(done => { window.goOn = () => { window.fetch = real; done(real(url, options)); }; }) : real(url, options);`, nil)
	w.do("PUT", "/lock/other", jane) // for the request in flight
	w.await("window.goOn")
}

// handOver has george hold lock a, which jane held.
func (w *visit) handOver() {
	w.do("DELETE", "/lock/a", `{"key": "k", "locked_by": "jane", "id": "7"}`)
	w.do("PUT", "/lock/a", `{"key": "k2", "locked_by": "george"}`)
}

// Only what the person saw is released: the locker refuses what the page did not
// know yet, and afterwards the focus is where the person was.
func TestPageChangedHands(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil, "412")
	w.do("PUT", "/lock/a", jane)
	w.await("document.querySelector('.row .release')")
	w.holdBack()
	w.click("[data-lock=a] .release")
	w.handOver()
	w.keys("it hangs" + keyTab + "ann" + keyEnter)
	w.has("It changed hands meanwhile: nothing was released.", "george holds it now.")
	w.await("document.getElementById('releaseSure').hidden && document.activeElement.matches('.cancel')")
	w.screenshot("changed hands")
	w.run("goOn()", nil)
	w.await("document.querySelector('[data-lock=a]').textContent.includes('george')")
	w.keys(keyEnter)
	w.await("!document.getElementById('release').open && document.activeElement.closest('[data-lock]').dataset.lock === 'a'")
	if _, got := w.do("GET", "/lock/a", ""); !strings.Contains(got, `"locked_by":{"george":1}`) {
		t.Errorf("released what nobody saw: %s", got)
	}
	if strings.Contains(w.Log.String(), "msg=force") {
		t.Error("something was forced")
	}
}

// A question that is open notices that the lock changes hands, and is not to be
// answered by a key that was meant for the old one.
func TestPageQuestionFollows(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil)
	w.do("PUT", "/lock/a", jane)
	w.await("document.querySelector('.row .release')")
	w.click(".row .release")
	w.keys("it hangs" + keyTab + "ann")
	w.handOver()
	w.has("It changed hands while you looked: nothing was released. This is how it is now.", "george holds it now.")
	w.await("document.getElementById('releaseSure').hidden && document.activeElement.matches('.cancel')")
	w.keys(keyEnter)
	w.await("!document.getElementById('release').open && document.activeElement.closest('[data-lock]').dataset.lock === 'a'")
	w.do("PUT", "/lock/a", `{"key": "k2", "locked_by": "jane"}`)
	w.has("and 1 more")
	w.click(".row .button")
	w.click("#one header .release")
	w.has("george, jane are not told")
	w.do("DELETE", "/lock/a", `{"key": "k2", "locked_by": "george"}`)
	w.has("It changed hands while you looked", "jane is not told")
	if strings.Contains(w.Log.String(), "msg=force") {
		t.Error("something was forced")
	}
}

// failRelease has each release fail when failNow is called.
const failRelease = `const real = window.fetch;
	window.fetch = (url, options) => options && options.method === 'DELETE'
		? new Promise((_, fail) => { window.failNow = () => { window.fetch = real; fail(new TypeError('Failed to fetch')); }; }) : real(url, options);`

// A release that was not answered says so, and can be asked for again.
func TestPageReleaseFails(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil)
	w.do("PUT", "/lock/a", jane)
	w.await("document.querySelector('.row .release')")
	w.run(failRelease, nil)
	w.click(".row .release")
	w.keys("it hangs" + keyTab + "ann" + keyEnter)
	w.await("window.failNow")
	w.run("failNow()", nil)
	w.has("It is not known whether it was released: the locker cannot be reached")
	w.await("document.getElementById('release').open && document.activeElement.matches('.cancel') && document.getElementById('reason').value === 'it hangs'")
	w.click("#releaseSure")
	w.has("Force-released jane from a.")
}

// The answer to a release whose dialog was closed touches no other dialog.
func TestPageLateAnswer(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil)
	w.do("PUT", "/lock/a", jane)
	w.do("PUT", "/lock/b", `{"key": "k", "locked_by": "george"}`)
	w.await("document.querySelectorAll('.row').length === 2")
	w.run(failRelease, nil)
	w.click(".row:nth-of-type(1) .release")
	w.keys("it hangs" + keyTab + "ann" + keyEnter)
	w.await("!!window.failNow")
	w.keys(keyEscape)
	w.await("!document.getElementById('release').open")
	w.click(".row:nth-of-type(2) .release")
	w.keys("build")
	w.run("failNow()", nil)
	w.await("document.getElementById('messages').textContent.includes('It is not known whether it was released')")
	w.await("document.activeElement.id === 'reason' && document.getElementById('releaseWarning').hidden && document.getElementById('release').open")
	w.keys(" 77 ")
	w.await("document.getElementById('reason').value === 'build 77 '")
	if strings.Contains(w.Log.String(), "msg=force") {
		t.Error("something was forced")
	}
}

// hold fills in the form for a hold by hand; the name is remembered.
func (w *visit) hold(lock, name, reason string) {
	w.t.Helper()
	w.click("#hold")
	w.keys(lock + keyTab + name + keyTab + reason + keyEnter)
}

// A person holds a free lock, and gives it back without force.
func TestPageHold(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil, "400")
	w.hold("a/../b", "ann", "release freeze")
	w.has("The locker answered: the lock's name has . or .. between slashes")
	w.run("document.getElementById('holdLock').value = 'prod/eu'", nil)
	w.keys(keyEnter)
	w.has("You hold prod/eu now, for 1 h.", "“release freeze”", "expires in 59 min")
	got := w.lock("prod/eu")
	if got.Key != "by hand: ann" || got.Holders[0].LockedBy != "ann" || got.Holders[0].Reason != "release freeze" || got.Holders[0].Expires.IsZero() {
		t.Errorf("got %+v", got)
	}
	w.click(".row .act")
	w.has("Give back prod/eu?", "Nobody waits: it will be free.")
	w.keys(keyEnter)
	w.has("Given back: prod/eu. Nobody holds it now.")
	w.Log.Await(t, `msg=release lock=prod/eu key="by hand: ann" locked_by=ann`)
	if strings.Contains(w.Log.String(), "msg=force") {
		t.Error("it was forced")
	}
}

// While another holds the lock the page waits in the queue, also over a reload.
func TestPageHoldWaits(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil, "423")
	w.do("PUT", "/lock/a", jane)
	w.has("jane")
	w.hold("a", "ann", "incident 4711")
	w.has("You wait for a as ann, 1 of 1 in line. jane (ci.example/builds/12) holds it now. Closing this page leaves the queue.")
	w.screenshot("waits")
	w.reload("")
	w.has("You wait for a as ann, 1 of 1 in line.")
	w.await("sessionStorage.getItem('locker claims /')")
	w.do("DELETE", "/lock/a", `{"key": "k", "locked_by": "jane", "id": "7"}`)
	w.has("You hold a now, for 1 h.")
	w.hasNot("You wait for a")
	if n := strings.Count(w.Log.String(), "msg=queue"); n != 1 {
		t.Errorf("queued %d times", n)
	}
	w.hold("a", "", "again")
	w.keys(keyEscape)
	w.do("PUT", "/lock/b", jane)
	w.has("Held, and nobody waits")
	w.await("!document.getElementById('holding').open")
	w.click("#hold")
	w.keys("b" + keyTab + keyTab + "freeze" + keyEnter)
	w.has("You wait for b as ann")
	w.click("#mine button")
	w.has("You no longer wait for b.")
	w.await("document.activeElement !== document.body")
	if got := w.lock("b"); got.Waiting != 0 || got.Holders[0].LockedBy != "jane" {
		t.Errorf("got %+v", got)
	}
}

// A tab that is restored long after it was closed takes nothing.
func TestPageHoldIsOver(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil, "423")
	w.do("PUT", "/lock/a", jane)
	w.has("jane")
	w.hold("a", "ann", "incident 4711")
	w.has("You wait for a as ann")
	w.reload("addEventListener('pagehide', () => sessionStorage.setItem('locker left', Date.now() - 16_000))")
	w.has("1. ann key by hand: ann")
	w.hasNot("You wait for a")
	var asks int
	if w.run("return claims.length", &asks); asks > 0 {
		t.Errorf("it asks for %d locks", asks)
	}
}

// reload loads the page again, after a script.
func (w *visit) reload(script string) {
	w.t.Helper()
	w.run(script+"; location.reload()", nil)
	w.await("window.stayed !== true && document.getElementById('status').textContent === 'live'")
	w.run("window.stayed = true", nil)
}

// lock returns a lock as the locker shows it.
func (w *visit) lock(name string) (l resource.Lock) {
	w.t.Helper()
	_, answer := w.do("GET", "/lock/"+url.PathEscape(name), "")
	if err := json.Unmarshal([]byte(answer), &l); err != nil {
		w.t.Fatalf("%s: %v", answer, err)
	}
	return l
}
