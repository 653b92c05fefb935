package test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file speaks the WebDriver protocol (w3.org/TR/webdriver2) to Debian's
// chromium-driver.

// browser is a session of a browser. Its methods end the test when the driver
// answers with an error.
type browser struct {
	t       testing.TB
	session string // URL
}

// idle are sessions of browsers that no test has: to start a browser costs more
// than most tests. There are never more than tests at once.
var idle = make(chan string, 100)

// startBrowser returns a browser that shows an empty page in its only window, and
// that no other test has.
func startBrowser(t testing.TB) *browser {
	t.Helper()
	b := &browser{t: t}
	select {
	case b.session = <-idle:
	default:
		b.session = newSession(t)
	}
	t.Cleanup(func() {
		b.freshWindow()
		idle <- b.session
	})
	return b
}

// newSession starts a browser with a new profile, which is ended with the tests.
func newSession(t testing.TB) string {
	t.Helper()
	profile, err := lockertest.Folder() // removed after the browser has ended
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, session: startDriver(t) + "/session"}
	args := []string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--user-data-dir=" + profile, "--window-size=1280,900",
		"--host-resolver-rules=MAP *.example 127.0.0.1",
	}
	var created struct{ SessionID string }
	b.send("POST", "", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"goog:chromeOptions": map[string]any{"args": args},
		"goog:loggingPrefs":  map[string]string{"browser": "ALL"},
	}}}, &created)
	b.session += "/" + created.SessionID
	lockertest.AtEnd(func() { b.try("DELETE", "", nil, nil) })
	return b.session
}

// startDriver starts chromium-driver on a free port and returns its URL.
func startDriver(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("chromedriver")
	if err != nil {
		lockertest.Skip(t, "no chromium-driver: "+err.Error())
	}
	log := lockertest.NewLog()
	cmd := exec.Command(path, "--port=0")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lockertest.AtEnd(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the browser too, should it still be there
		cmd.Wait()
	})
	return "http://127.0.0.1:" + log.Await(t, `started successfully on port (\d+)`)[1]
}

// freshWindow closes all windows, with what was emulated in them, and opens one.
func (b *browser) freshWindow() {
	b.t.Helper()
	old := b.windows()
	var fresh struct{ Handle string }
	b.send("POST", "/window/new", map[string]string{"type": "tab"}, &fresh)
	for _, handle := range old {
		b.send("POST", "/window", map[string]string{"handle": handle}, nil)
		b.send("DELETE", "/window", nil, nil)
	}
	b.send("POST", "/window", map[string]string{"handle": fresh.Handle}, nil)
	b.send("POST", "/se/log", map[string]string{"type": "browser"}, nil)
}

// send sends a command, and stores the answer's value where value points.
func (b *browser) send(method, path string, body, value any) {
	b.t.Helper()
	if err := b.try(method, path, body, value); err != nil {
		b.t.Fatalf("webdriver: %v", err)
	}
}

func (b *browser) try(method, path string, body, value any) error {
	var data []byte
	if method == "POST" {
		data = encode(body)
	}
	request, err := http.NewRequest(method, b.session+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Timeout: 2 * lockertest.Patience}).Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %.600s", method, path, text)
	}
	return json.Unmarshal(text, &struct{ Value any }{value})
}

// open goes to an address.
func (b *browser) open(url string) {
	b.t.Helper()
	b.send("POST", "/url", map[string]string{"url": url}, nil)
}

// run runs a script's statements in the page and stores what they return.
func (b *browser) run(script string, value any, args ...any) {
	b.t.Helper()
	if args == nil {
		args = []any{}
	}
	b.send("POST", "/execute/sync", map[string]any{"script": script, "args": args}, value)
}

// await waits until an expression is true in the page. One that throws, since
// what it looks for is not there yet, is not.
func (b *browser) await(expression string) {
	b.t.Helper()
	var is bool
	for deadline := time.Now().Add(lockertest.Patience); ; time.Sleep(50 * time.Millisecond) {
		if b.run("try { return Boolean("+expression+") } catch { return false }", &is); is {
			return
		}
		if time.Now().After(deadline) {
			var text string
			b.run("return document.title + '\\n' + document.body.innerText", &text)
			b.t.Fatalf("it never was that %s:\n%.2000s", expression, text)
		}
	}
}

// text returns what a person reads in the first element that a CSS selector
// finds.
func (b *browser) text(selector string) string {
	b.t.Helper()
	var text string
	b.run("return document.querySelector(arguments[0]).innerText", &text, selector)
	return text
}

// find returns the path of an element.
func (b *browser) find(selector string) string {
	b.t.Helper()
	var element map[string]string
	b.send("POST", "/element", map[string]string{"using": "css selector", "value": selector}, &element)
	for _, id := range element {
		return "/element/" + id
	}
	b.t.Fatalf("no %s", selector)
	return ""
}

// click clicks where the element is, as a person would: it must be in sight,
// and nothing over it.
func (b *browser) click(selector string) {
	b.t.Helper()
	b.send("POST", b.find(selector)+"/click", map[string]any{}, nil)
}

// keys types into what has the focus.
func (b *browser) keys(text string) {
	b.t.Helper()
	var strokes []map[string]string
	for _, r := range text {
		strokes = append(strokes, map[string]string{"type": "keyDown", "value": string(r)}, map[string]string{"type": "keyUp", "value": string(r)})
	}
	b.send("POST", "/actions", map[string]any{"actions": []any{map[string]any{"type": "key", "id": "keyboard", "actions": strokes}}}, nil)
}

// Keys that are not characters (WebDriver section 17.4.2).
const keyTab, keyEnter, keyEscape = "\ue004", "\ue007", "\ue00c"

// device makes the window that wide, and the colours light, dark or forced.
func (b *browser) device(width int, colours string) {
	b.t.Helper()
	b.devtools("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}, nil)
	features := []any{map[string]string{"name": "prefers-color-scheme", "value": colours}}
	if colours == "forced" {
		features = []any{map[string]string{"name": "forced-colors", "value": "active"}}
	}
	b.devtools("Emulation.setEmulatedMedia", map[string]any{"features": features}, nil)
}

// devtools runs a command of Chrome's DevTools protocol, and stores its result.
func (b *browser) devtools(command string, params map[string]any, value any) {
	b.t.Helper()
	b.send("POST", "/goog/cdp/execute", map[string]any{"cmd": command, "params": params}, value)
}

// control is something that a person acts on, as a screen reader is told.
type control struct{ role, name string }

// controls returns those of the page's accessibility tree.
func (b *browser) controls() (found []control) {
	b.t.Helper()
	var tree struct {
		Nodes []struct {
			Ignored    bool
			Role, Name struct{ Value any }
		}
	}
	b.devtools("Accessibility.getFullAXTree", map[string]any{}, &tree)
	for _, n := range tree.Nodes {
		role, name := fmt.Sprint(n.Role.Value), strings.TrimSpace(fmt.Sprint(n.Name.Value))
		if !n.Ignored && slices.Contains([]string{"button", "link", "textbox", "searchbox", "combobox", "DisclosureTriangle", "dialog", "list"}, role) {
			found = append(found, control{role, name})
		}
	}
	return found
}

// windows returns the handles of all windows and tabs.
func (b *browser) windows() (handles []string) {
	b.t.Helper()
	b.send("GET", "/window/handles", nil, &handles)
	return handles
}

// screenshot keeps what the window shows in the folder LOCKER_SCREENSHOTS.
func (b *browser) screenshot(name string) {
	b.t.Helper()
	folder := os.Getenv("LOCKER_SCREENSHOTS")
	if folder == "" {
		folder = b.t.TempDir()
	}
	var picture string
	b.send("GET", "/screenshot", nil, &picture)
	data, err := base64.StdEncoding.DecodeString(picture)
	if err != nil || len(data) == 0 {
		b.t.Fatalf("screenshot: %d bytes, %v", len(data), err)
	}
	lockertest.WriteFile(b.t, filepath.Join(folder, name+".png"), data)
}

// wantNoComplaints fails the test when the browser's console has a message,
// such as a script or a style that was refused, that matches none of the
// patterns. It forgets them all.
func (b *browser) wantNoComplaints(but ...string) {
	b.t.Helper()
	var entries []struct{ Level, Message string }
	b.send("POST", "/se/log", map[string]string{"type": "browser"}, &entries)
	for _, e := range entries {
		if len(but) == 0 || !regexp.MustCompile(strings.Join(but, "|")).MatchString(e.Message) {
			b.t.Errorf("the console says: %s %s", e.Level, e.Message)
		}
	}
}
