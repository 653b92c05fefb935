package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// scrape returns the values of /metrics by their series, having checked that
// they are in the text format.
func scrape(t testing.TB, s *server) map[string]float64 {
	t.Helper()
	got := s.do(t, get, "/metrics", "", "Authorization", basic(user, password))
	if got.status != "200 OK" || got.header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
		t.Fatalf("got %s %v", got.status, got.header)
	}
	return parseExposition(t, got.body)
}

const label = `[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\n"])*"`

var (
	headLine   = regexp.MustCompile(`^# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$`)
	sampleLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{` + label + `(?:,` + label + `)*\})? (\S+)$`)
)

// parseExposition reads text format 0.0.4 strictly: help, type and samples of a
// family together and in this order, no series twice, cumulative buckets.
func parseExposition(t testing.TB, text string) map[string]float64 {
	t.Helper()
	values, seen := map[string]float64{}, map[string]bool{}
	var family, kind string
	var buckets []float64
	for line := range strings.Lines(text) {
		line, ended := strings.CutSuffix(line, "\n")
		if head := headLine.FindStringSubmatch(line); head != nil {
			if head[1] == "HELP" && !seen[head[2]] {
				family, kind = head[2], ""
				seen[family] = true
			} else if head[1] == "TYPE" && head[2] == family && kind == "" {
				kind = head[3]
			} else {
				t.Errorf("out of order: %s", line)
			}
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil || !ended {
			t.Fatalf("not in the format: %q", line)
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if _, twice := values[m[1]+m[2]]; twice || err != nil {
			t.Errorf("twice, or no number: %s", line)
		}
		values[m[1]+m[2]] = value
		switch suffix := strings.TrimPrefix(m[1], family); {
		case kind == "histogram" && suffix == "_bucket":
			buckets = append(buckets, value)
		case kind == "histogram" && suffix == "_count":
			if !slices.IsSorted(buckets) || values[family+`_bucket{le="+Inf"}`] != value || len(buckets) < 2 || buckets[len(buckets)-1] != value {
				t.Errorf("%s: buckets %v, count %v", family, buckets, value)
			}
			buckets = nil
		case kind == "histogram" && suffix == "_sum", (kind == "gauge" || kind == "counter") && suffix == "":
		default:
			t.Errorf("no sample of %s, a %s: %s", family, kind, line)
		}
		if kind == "counter" != strings.HasSuffix(family, "_total") {
			t.Errorf("%s is a %s", family, kind)
		}
	}
	return values
}

// Known operations are counted as what they were.
func TestMetricsCountOperations(t *testing.T) {
	env := withAuth()
	env["LOCKER_CONFIG"] = filepath.Join(t.TempDir(), "locker.json")
	s := startServer(t, env)
	right := basic(user, password)
	for _, c := range []apiCall{
		{put, "/lock/a", jane, nil},
		{put, "/lock/a", jane, nil},                                                       // repeat
		{put, "/lock/a", `{"key": "other"}`, nil},                                         // refused
		{put, "/lock/a", georgeWaits, nil},                                                // queued
		{put, "/lock/a", georgeWaits, nil},                                                // queued
		{put, "/lock/a", `{"key": ""}`, nil},                                              // 400
		{put, "/lock/b", `{"key": "k"}`, nil},                                             // granted
		{put, "/lock/c", `{"key": "k"}`, nil},                                             // granted
		{del, "/lock/a", `{"key": "none"}`, nil},                                          // wrong key
		{del, "/lock/b", `{"key": "k"}`, nil},                                             // released
		{del, "/lock/b?force=false", `{"key": "k"}`, nil},                                 // free
		{del, "/lock/c?force=true", "", []string{"If-Match", `"1"`}},                      // changed
		{del, "/lock/c?force=true", "", nil},                                              // forced
		{get, "/lock/a", "", nil},                                                         // 200
		{get, "/locks", "", nil},                                                          // 200
		{"HEAD", "/locks", "", nil},                                                       // 200
		{get, "/locks", "", []string{"If-None-Match", "*"}},                               // 304
		{get, "/", "", nil},                                                               // 200
		{get, "/health", "", nil},                                                         // 200
		{"BREW", "/lock/pot", "", nil},                                                    // 405
		{get, "/nowhere/\"\\", "", nil},                                                   // 404
		{put, "/lock/a/b", jane, nil},                                                     // 404
		{put, "/lock/d", jane, []string{"Authorization", "Basic x"}},                      // 401
		{put, "/lock/d", jane, []string{"Sec-Fetch-Site", "cross-site"}},                  // 403
		{del, "/lock/a", `{"key": "other", "locked_by": "george", "id": "8"}`, nil},       // withdrew
		{del, "/lock/a", `{"key": "k", "locked_by": "x", "id": "9", "own": true}`, nil},   // own
		{del, "/lock/a", `{"key": "k", "locked_by": "nobody"}`, nil},                      // no holder
		{del, "/lock/a?force=true", `{"locked_by": "nobody"}`, nil},                       // no holder
		{del, "/lock/a", `{"key": "other", "locked_by": "george", "id": "8"}`, nil},       // ended
		{put, "/lock/a", strings.Repeat(" ", maxBody+1), []string{"Content-Type", "x/y"}}, // 413
	} {
		s.do(t, c.method, c.path, c.body, append([]string{"Authorization", right}, c.header...)...)
	}
	scrape(t, s)
	got := scrape(t, s)
	want := map[string]float64{}
	for kind, n := range map[string]float64{
		"take granted": 3, "take repeat": 1, "take refused": 1, "take queued": 2, "take 400": 1, "take 401": 1, "take 403": 1, "take 413": 1,
		"release wrong_key": 1, "release released": 1, "release free": 1, "release withdrew": 1, "release own": 1, "release no_holder": 1, "release ended": 1,
		"force changed": 1, "force forced": 1, "force no_holder": 1, "show 200": 1, "list 200": 2, "list 304": 1,
		"page 200": 1, "health 200": 1, "metrics 200": 1, "other 404": 2, "other 405": 1,
	} {
		op, result, _ := strings.Cut(kind, " ")
		want[fmt.Sprintf(`locker_requests_total{op=%q,result=%q}`, op, result)] = n
	}
	counted := maps.Clone(got)
	maps.DeleteFunc(counted, func(series string, _ float64) bool { return !strings.HasPrefix(series, "locker_requests_total") })
	if !maps.Equal(counted, want) {
		t.Errorf("counted %v,\nwant %v", counted, want)
	}
	for series, n := range map[string]float64{
		"locker_grant_wait_seconds_count":                            3,
		`locker_grant_wait_seconds_bucket{le="0.1"}`:                 3,
		`locker_locks{state="held"}`:                                 1,
		`locker_locks{state="free"}`:                                 2,
		"locker_waiters":                                             0,
		"locker_oldest_waiter_seconds":                               0,
		`locker_commits_total{result="failed"}`:                      0,
		"locker_state_bytes":                                         float64(len(read(t, env["LOCKER_CONFIG"]))),
		fmt.Sprintf(`locker_build_info{version=%q}`, buildVersion()): 1,
		"locker_commit_duration_seconds_count":                       got[`locker_commits_total{result="ok"}`],
	} {
		if value, ok := got[series]; !ok || value != n {
			t.Errorf("%s is %v, want %v", series, value, n)
		}
	}
	// The start, three grants, one in the queue, one that leaves it, a release,
	// a force and one remembered: each is a commit of its own.
	if n := got[`locker_commits_total{result="ok"}`]; n != 9 {
		t.Errorf("%v commits", n)
	}
	if sum := got["locker_commit_duration_seconds_sum"]; sum <= 0 || sum > 60 {
		t.Errorf("commits took %v s", sum)
	}
}

// The documents list the metrics that there are.
func TestDocumentsListTheMetrics(t *testing.T) {
	certFile, keyFile := lockertest.NewCertificate(t, t.TempDir(), "locker")
	cert, err := loadCertificate(option{"SSL_CERT", certFile}, option{"SSL_KEY", keyFile}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	names := func(pattern, text string) []string {
		var found []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			found = append(found, m[1])
		}
		slices.Sort(found)
		return slices.Compact(found)
	}
	m := newMetrics()
	m.several = true
	served := names(`(?m)^# TYPE (\S+)`, string(exposed("v", &state{}, m, cert, time.Now())))
	if listed := names("(locker_[a-z_]+)[`{ ]", strings.ReplaceAll(read(t, "docs/operate.md"), "locker_uri", "")); !slices.Equal(listed, served) || len(listed) < 10 {
		t.Errorf("the documents have %v,\nserved are %v", listed, served)
	}
}

// The longest wait and hold go by the wall clock, not by who came first.
func TestMetricsAges(t *testing.T) {
	s := startServer(t, stateFile(t, func(d *draft) {
		start := d.now
		for i, ago := range []time.Duration{time.Hour, 3 * time.Hour, 2 * time.Hour} {
			d.now = start.Add(-ago)
			d.take(fmt.Sprint("lock", i), of("k jane 1"), false)
			d.now = start.Add(-ago / 2)
			d.take(fmt.Sprint("lock", i), of("other george 2"), true)
			d.take(fmt.Sprint("lock", i), of("other ann 3"), true)
		}
	}))
	got := scrape(t, s)
	if n := got["locker_waiters"]; n != 6 {
		t.Errorf("%v waiters", n)
	}
	if hold := got["locker_longest_hold_seconds"]; hold < 3*3600 || hold > 3*3600+60 {
		t.Errorf("the longest hold has %v s", hold)
	}
	if wait := got["locker_oldest_waiter_seconds"]; wait < 1.5*3600 || wait > 1.5*3600+60 {
		t.Errorf("the oldest waiter has %v s", wait)
	}
	s.do(t, del, "/lock/lock1?force=true", "", "Authorization", basic(user, password))
	if hold := scrape(t, s)["locker_longest_hold_seconds"]; hold < 2*3600 || hold > 2*3600+60 {
		t.Errorf("then the longest hold has %v s", hold)
	}
}

// Commits that fail are counted, and those that are tried again by themselves.
func TestMetricsOfFailingCommits(t *testing.T) {
	var full atomic.Bool
	steps := realSteps()
	write := steps.write
	steps.write = func(f *os.File, data []byte) (int, error) {
		if full.Load() {
			return 0, syscall.ENOSPC
		}
		return write(f, data)
	}
	log := lockertest.NewLog()
	a := apiWith(t, steps, log)
	ask := func(method, path, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		a.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		return w
	}
	ask(put, "/lock/a", jane)
	size := parseExposition(t, ask(get, "/metrics", "").Body.String())["locker_state_bytes"]
	full.Store(true)
	for range 3 {
		if w := ask(put, "/lock/b", jane); w.Code != http.StatusInsufficientStorage {
			t.Fatalf("got %d", w.Code)
		}
	}
	got := parseExposition(t, ask(get, "/metrics", "").Body.String())
	failed, ok := got[`locker_commits_total{result="failed"}`], got[`locker_commits_total{result="ok"}`]
	if failed < 3 || ok != 2 || got["locker_commit_duration_seconds_count"] != failed+ok || got[`locker_requests_total{op="take",result="507"}`] != 3 {
		t.Errorf("got %v", got)
	}
	if got["locker_grant_wait_seconds_count"] != 1 || got["locker_state_bytes"] != size {
		t.Errorf("what was not committed is counted: %v", got)
	}
	full.Store(false)
	log.Await(t, `level=INFO msg="commits succeed again" failed_for=\S+\n`)
	if n := strings.Count(log.String(), `level=ERROR msg="commit failed" err="save state: no space left on device"`); n != 1 {
		t.Errorf("the failure is logged %d times:\n%s", n, log)
	}
}

// apiWith serves an empty state with these steps and that log, without a server
// around it.
func apiWith(t testing.TB, steps steps, log *lockertest.Log) *api {
	t.Helper()
	return serveState(t, nil, steps, slog.New(slog.NewTextHandler(log, nil)))
}

// What is escaped reads back as it was.
func TestMetricsEscape(t *testing.T) {
	var e exposition
	value := "a\\n\"b\"\nc\\"
	e.family("locker_x", "gauge", "one\ntwo \\ three")
	e.sample("locker_x", 0.1, "version", value, "other", "")
	const want = "# HELP locker_x one\\ntwo \\\\ three\n# TYPE locker_x gauge\n" + `locker_x{version="a\\n\"b\"\nc\\",other=""} 0.1` + "\n"
	if e.String() != want {
		t.Errorf("got\n%s, want\n%s", e.String(), want)
	}
	parseExposition(t, e.String())
}

func TestHistogram(t *testing.T) {
	h := newHistogram(0.5, 1, 2)
	for _, d := range []time.Duration{-time.Second, 0, 500 * time.Millisecond, 501 * time.Millisecond, 2 * time.Second, time.Hour} {
		h.observe(d)
	}
	var e exposition
	e.histogram("locker_h", "A test's.", h)
	got := parseExposition(t, e.String())
	for series, want := range map[string]float64{
		`locker_h_bucket{le="0.5"}`: 3, `locker_h_bucket{le="1"}`: 4, `locker_h_bucket{le="2"}`: 5, `locker_h_bucket{le="+Inf"}`: 6,
		"locker_h_count": 6, "locker_h_sum": 3603.001,
	} {
		if math.Abs(got[series]-want) > 1e-9 {
			t.Errorf("%s is %v, want %v", series, got[series], want)
		}
	}
}

// The parser of these tests sees what is wrong.
func TestParseExposition(t *testing.T) {
	for _, text := range []string{
		"locker_x 1\n",
		"# TYPE locker_x gauge\nlocker_x 1\n",
		"# HELP locker_x x\n# TYPE locker_x gauge\nlocker_x 1",
		"# HELP locker_x x\n# TYPE locker_x gauge\nlocker_x 1\nlocker_x 1\n",
		"# HELP locker_x x\n# TYPE locker_x gauge\nlocker_x one\n",
		"# HELP locker_x x\n# TYPE locker_x gauge\nlocker_x{a=\"\\x\"} 1\n",
		"# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
		"# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 1\nh_count 1\n",
	} {
		if f := failureOf(func(t testing.TB) { parseExposition(t, text) }); !f {
			t.Errorf("accepted:\n%s", text)
		}
	}
}

// failureOf reports whether a test with that body fails.
func failureOf(body func(testing.TB)) bool {
	r := &recorder{}
	func() {
		defer func() {
			if p := recover(); p != nil && p != any(errFatal) {
				panic(p)
			}
		}()
		body(r)
	}()
	return r.failed
}

var errFatal = errors.New("fatal")

// recorder is a test of a test: it only notes that it failed.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.failed = true }
func (r *recorder) Fatalf(string, ...any) { r.failed = true; panic(errFatal) }

// stateFile writes the state that fill makes, and returns an environment for a
// server that starts with it.
func stateFile(t testing.TB, fill func(d *draft)) map[string]string {
	t.Helper()
	d := newDraft(&state{}, newEndings(), ticket{}, time.Now().UTC(), func(uint64) (bool, time.Duration) { return true, 0 })
	fill(d)
	env := withAuth()
	env["LOCKER_CONFIG"] = filepath.Join(t.TempDir(), "locker.json")
	lockertest.WriteFile(t, env["LOCKER_CONFIG"], fileOf(&d.state))
	return env
}
