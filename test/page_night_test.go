package test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file tests the page as somebody uses it at night: one lock's story, the
// keyboard alone, and what a screen reader is told.

// One lock's page says who had it when, and who took it away.
func TestPageOne(t *testing.T) {
	t.Parallel()
	const name = "it's a/b"
	w := visitPage(t, nil)
	w.do("PUT", "/lock/it's%20a%2Fb", jane)
	w.do("PUT", "/lock/it's%20a%2Fb", `{"key": "other", "locked_by": "george", "id": "8", "wait": "1ms"}`)
	w.do("DELETE", "/lock/it's%20a%2Fb?force=true", `{"locked_by": "jane", "reason": "it hangs", "by": "ann"}`)
	w.do("PUT", "/lock/it's%20a%2Fb", `{"key": "other", "locked_by": "george", "id": "8", "wait": "50s"}`)
	w.do("DELETE", "/lock/it's%20a%2Fb", `{"key": "other", "locked_by": "george", "id": "8"}`)
	w.do("PUT", "/lock/it's%20a%2Fb", `{"key": "third", "locked_by": "zoe", "ttl": "90m"}`)
	for i := range 7 {
		w.do("PUT", "/lock/it's%20a%2Fb", fmt.Sprintf(`{"key": "w%d", "id": "%d", "wait": "1ms"}`, i, i))
	}
	w.await("document.querySelector('.card a')")
	w.click(".card h3 a")
	w.has("zoe", "expires in 1 h 29 min", "7. w6 for")
	w.has("released: george held it for", "granted to george", "queued: george, key other", "granted to jane (ci.example/builds/12)", "granted to zoe")
	w.has("forced by ann: “it hangs”. jane (ci.example/builds/12) held it for", "is in the log")
	w.await("document.title.startsWith(\"" + name + ": 7 waiting, oldest \")")
	w.screenshot("one lock")
	w.do("DELETE", "/lock/it's%20a%2Fb", `{"key": "third", "locked_by": "zoe"}`)
	w.has("released: zoe held it for") // the story goes on
	w.click("#jsonPart summary")
	w.has(`"key": "w0"`, `"waiting": 7`)
	if line := w.text("#curl"); line != "curl 'http://"+w.Address+"/lock/it%27s%20a%2Fb'" {
		t.Errorf("the line is %s", line)
	}
	w.click("#copy")
	w.has("Copied.")
	w.click("#back")
	w.await("document.activeElement.matches('.card a') && document.getElementById('list').checkVisibility()")
	w.run("location.hash = '#' + arguments[0]", nil, "never%20used")
	w.has("never used", "free", "Nothing. What was before")
	w.run("history.back()", nil)
	w.await("document.getElementById('list').checkVisibility()")
}

// The whole night shift, by keys alone: find the blocked lock, read who holds
// it, open the build, release with a reason, see who has it now.
func TestPageNightShift(t *testing.T) {
	t.Parallel()
	w := visitPage(t, nil, "404")
	for i := range 30 {
		w.do("PUT", fmt.Sprintf("/lock/environment-%02d", i), fmt.Sprintf(`{"key": "k", "locked_by": "job-%d"}`, i))
	}
	w.do("PUT", "/lock/production", `{"key": "deploy", "locked_by": "deploy-api", "link": "http://`+w.Address+`/builds/77"}`)
	w.do("PUT", "/lock/production", `{"key": "web", "locked_by": "deploy-web", "id": "8", "wait": "1ms"}`)
	w.has("1 lock blocked", "30 held")
	w.tabTo("document.activeElement.id === 'filter'")
	w.keys("deploy-w") // who waits is found too
	w.await("document.querySelectorAll('.card, .row').length === 31 && ![...document.querySelectorAll('.row')].some(r => r.checkVisibility())")
	w.tabTo("document.activeElement.matches('.card h3 a')")
	w.keys(keyEnter)
	w.has("production", "deploy-api", "held", "1. deploy-web key web")
	w.await("document.activeElement.id === 'oneTitle'")
	w.tabTo("document.activeElement.matches('.holders a')")
	before := len(w.windows())
	w.keys(keyEnter)
	w.awaitWindows(before + 1)
	w.tabTo("document.activeElement.matches('.holders .release')")
	w.keys(keyEnter)
	w.await("document.getElementById('release').open")
	w.keys("build 77 hangs" + keyTab + "ann" + keyEnter)
	w.has("Force-released deploy-api from production.")
	w.do("PUT", "/lock/production", `{"key": "web", "locked_by": "deploy-web", "id": "8", "wait": "50s"}`)
	w.has("deploy-web held", "forced by ann: “build 77 hangs”. deploy-api")
	w.await("document.activeElement !== document.body && !document.getElementById('release').open")
	w.tabTo("document.activeElement.matches('.holders .release')") // and on
}

// tabTo presses Tab until an expression is true. Wherever it comes by, it is
// seen where the focus is.
func (w *visit) tabTo(expression string) {
	w.t.Helper()
	for range 60 {
		w.keys(keyTab)
		var at struct {
			Is, Seen bool
			What     string
		}
		w.run("const e = document.activeElement; return {is: Boolean("+expression+"), seen: e === document.body || getComputedStyle(e).outlineStyle !== 'none', what: e.outerHTML.slice(0, 200)}", &at)
		if !at.Seen {
			w.t.Errorf("the focus is not seen on %s", at.What)
		}
		if at.Is {
			return
		}
	}
	w.t.Fatalf("no Tab leads to where %s", expression)
}

// A screen reader is told the name of each control, and no two say the same but
// do something else.
func TestPageNamesControls(t *testing.T) {
	t.Parallel()
	w := visitSaved(t, savedLooks(), "423")
	w.has("10 waiting")
	w.wantNamed("Release deploy-api from lock production…", "Release all holders of lock production…", "Open lock browsers", "Filter by lock, key, name, link or reason", "Hold…", "Holders", "Queue")
	w.click(".card .holders .release")
	w.wantNamed("Force-release production?", "Reason", "Your name", "Cancel", "Force-release")
	w.keys(keyEscape)
	w.hold("production", "ann", "incident")
	w.has("You wait for production")
	w.wantNamed("Leave the queue of lock production", "Locks that this page waits for")
	w.click("#hold")
	w.wantNamed("Hold a lock by hand", "Lock", "Your name", "Reason", "For how long", "Hold")
	w.keys(keyEscape)
	w.run("location.hash = '#production'", nil)
	w.has("What happened")
	w.wantNamed("← All locks", "Copy", "JSON", "Release deploy-web from lock production…")
}

// wantNamed fails the test when a control has no name, two buttons have the same
// one, or one of these names is missing.
func (w *visit) wantNamed(names ...string) {
	w.t.Helper()
	seen := map[control]int{}
	said := map[string]bool{}
	for _, c := range w.controls() {
		if c.name == "" || c.name == "<nil>" {
			w.t.Errorf("a %s has no name", c.role)
		}
		if seen[c]++; c.role == "button" && seen[c] > 1 {
			w.t.Errorf("two buttons are named %q", c.name)
		}
		said[c.name] = true
	}
	for _, name := range names {
		if !said[name] {
			w.t.Errorf("nothing is named %q, but %q", name, strings.Join(slices.Sorted(maps.Keys(said)), ", "))
		}
	}
}

// awaitWindows waits until there are so many windows and tabs.
func (w *visit) awaitWindows(n int) {
	w.t.Helper()
	for deadline := time.Now().Add(lockertest.Patience); len(w.windows()) != n; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("there are %d windows, not %d", len(w.windows()), n)
		}
	}
}
