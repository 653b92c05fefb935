package test

import (
	"encoding/json"
	"fmt"
	"image"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file uses the files of examples as their readers would.

// TestUnit has systemd look at the unit, which must be sound and hardened.
func TestUnit(t *testing.T) {
	need(t, "systemd-analyze")
	unit := lockertest.Read(t, "examples/locker.service")
	program := lockertest.Program(t, "locker")
	path := filepath.Join(t.TempDir(), "locker.service")
	lockertest.WriteFile(t, path, []byte(strings.ReplaceAll(unit, "/usr/local/bin/locker", program)))
	for _, args := range [][]string{{"verify", "--man=no"}, {"security", "--offline=true", "--no-pager", "--threshold=15"}} { // 15 is 1.5 of 10
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", append(args, path)...).CombinedOutput()
		if err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("%s: %v\n%s", args[0], err, out)
		}
	}
}

// need skips a test without one of these programs.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			lockertest.Skip(t, err.Error())
		}
	}
}

// TestAlerts has Prometheus' own tool check the scrape job and the rules, and
// play the rules' tests.
func TestAlerts(t *testing.T) {
	need(t, "promtool")
	const dir = "examples/prometheus"
	command(t, dir, "promtool", "check", "config", "prometheus.yml")
	command(t, dir, "promtool", "check", "rules", "--lint=all", "--lint-fatal", "locker.rules.yml")
	command(t, dir, "promtool", "test", "rules", "locker.rules.test.yml")
	tested := lockertest.Read(t, dir+"/locker.rules.test.yml")
	for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(lockertest.Read(t, dir+"/locker.rules.yml"), -1) {
		if !strings.Contains(tested, "    alertname: "+alert[1]+"\n    exp_alerts:\n    - ") {
			t.Errorf("no test raises %s", alert[1])
		}
	}
}

// TestMetricsAreSound wants Prometheus' own tool to find no fault in what a
// locker with a certificate shows, and every metric in the dashboard or the
// alerts, and the other way round.
func TestMetricsAreSound(t *testing.T) {
	need(t, "promtool")
	s, trust := startTLS(t)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust}}
	defer client.CloseIdleConnections()
	lockertest.SendBy(t.Context(), client, "PUT", s.URL+"/lock/a", `{"key": "k"}`)
	several := onlySeveral(startLockers(t, 1, 1).all[0].Want("GET", "/metrics", "", 200))
	_, metrics := lockertest.SendBy(t.Context(), client, "GET", s.URL+"/metrics", "")
	metrics = append(metrics, several...)
	cmd := exec.CommandContext(t.Context(), "promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(string(metrics))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
	shown := map[string]bool{}
	for _, family := range regexp.MustCompile(`(?m)^# TYPE (\w+) `).FindAllStringSubmatch(string(metrics), -1) {
		shown[family[1]] = true
	}
	used := map[string]bool{}
	text := lockertest.Read(t, "examples/prometheus/grafana.json") + lockertest.Read(t, "examples/prometheus/locker.rules.yml")
	for name := range strings.FieldsFuncSeq(text, func(r rune) bool { return !isWord(r) }) {
		if strings.HasPrefix(name, "locker_") {
			used[strings.TrimSuffix(name, "_bucket")] = true
		}
	}
	if !maps.Equal(shown, used) {
		t.Errorf("the locker shows %q, dashboard and alerts use %q", slices.Sorted(maps.Keys(shown)), slices.Sorted(maps.Keys(used)))
	}
}

// onlySeveral returns the metrics that there are with several lockers only.
func onlySeveral(metrics []byte) []byte {
	return slices.Concat(regexp.MustCompile(`(?m)^(# \w+ )?locker_(leader|takeovers_total|forwarded_total)\b.*\n`).FindAll(metrics, -1)...)
}

func isWord(r rune) bool { return r == '_' || r >= 'a' && r <= 'z' }

// TestDashboard has Prometheus parse the dashboard's queries, and wants panels
// that do not lie on each other.
func TestDashboard(t *testing.T) {
	need(t, "promtool")
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(lockertest.Read(t, "examples/prometheus/grafana.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	rules, ids, taken := "groups:\n- name: dashboard\n  rules:\n", map[int]bool{}, []image.Rectangle{}
	for _, p := range dashboard.Panels {
		at := image.Rect(p.GridPos.X, p.GridPos.Y, p.GridPos.X+p.GridPos.W, p.GridPos.Y+p.GridPos.H)
		if ids[p.ID] || at.Max.X > 24 || slices.ContainsFunc(taken, at.Overlaps) || len(p.Targets) == 0 {
			t.Errorf("panel %d, %s, at %v", p.ID, p.Title, at)
		}
		ids[p.ID], taken = true, append(taken, at)
		for i, target := range p.Targets {
			expr := strings.NewReplacer("$job", "locker", "$__rate_interval", "1m").Replace(target.Expr)
			rules += fmt.Sprintf("  - {record: 'panel:%d:%d', expr: %q}\n", p.ID, i, expr)
		}
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	lockertest.WriteFile(t, file, []byte(rules))
	command(t, ".", "promtool", "check", "rules", file)
	if len(ids) < 10 {
		t.Errorf("only %d panels", len(ids))
	}
}
