package resource

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

func TestInWritesTheLock(t *testing.T) {
	const hostile = `{"key":"k\u202e","locked_by":{"a\n":1},"holders":[{"locked_by":"a\n","since":"2026-11-23T10:00:00Z","token":4,"link":"https://ci.example/\u200b\u001b[31m"}],"waiters":[],"revision":4}`
	const held = `{"key":"k","locked_by":{"a":1,"b":1},"holders":[{"locked_by":"a","since":"2026-11-23T10:00:00Z","token":3,"link":"https://ci.example/builds/1"},{"locked_by":"b","since":"2026-11-23T10:05:00Z","token":4}],"waiters":[{"key":"x","locked_by":"c","since":"2026-11-23T10:06:00Z"}],"revision":4}`
	for _, test := range []struct{ lock, owners, metadata string }{
		{freeLock, "", `[{"name":"lock","value":"myLock"},{"name":"waiting","value":"0"}]`},
		{hostile, "a?\n", `[{"name":"lock","value":"myLock"},{"name":"key","value":"k?"},{"name":"locked_by","value":"a?"},{"name":"since","value":"2026-11-23T10:00:00Z"},{"name":"build","value":"https://ci.example/??[31m"},{"name":"waiting","value":"0"}]`},
		{held, "a\nb\n", `[{"name":"lock","value":"myLock"},{"name":"key","value":"k"},{"name":"locked_by","value":"a, b"},{"name":"since","value":"2026-11-23T10:00:00Z"},{"name":"build","value":"https://ci.example/builds/1"},{"name":"waiting","value":"1"}]`},
	} {
		dir := filepath.Join(t.TempDir(), "not", "there")
		synctest.Test(t, func(t *testing.T) {
			s := serve(t, func(w http.ResponseWriter, r *http.Request) { answerWith(w, 200, test.lock) })
			r := s.run(t.Context(), (*program).in, askIn, dir)
			if want := `{"version":{"ref":"3"},"metadata":` + test.metadata + "}\n"; r.err != nil || r.stdout.String() != want {
				t.Errorf("error %v, answered %s", r.err, r.stdout.String())
			}
		})
		for name, want := range map[string]string{"lock": test.owners, "lock.json": test.lock} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	}
}

func TestInWantsVersionAndFolder(t *testing.T) {
	err := In(t.Context(), strings.NewReader(theSource+`,"params":{"x":1}}`), io.Discard, io.Discard, nil, func(string) string { return "" })
	want := []string{`params: unknown member "x": there are none here`, "version: ref is missing", "0 arguments are given: give one"}
	if err == nil || !slices.EqualFunc(strings.Split(err.Error(), "\n"), want, strings.HasPrefix) {
		t.Errorf("error %v", err)
	}
}

// The builds that hold a lock are named in the order of their grants, each once.
func TestLinksStandInTheOrderOfTheHolders(t *testing.T) {
	l := Lock{Holders: []Holder{{Link: "https://ci.example/9"}, {}, {Link: "https://ci.example/10"}, {Link: "https://ci.example/9"}}}
	if got := links(l); got != "https://ci.example/9 https://ci.example/10" {
		t.Error(got)
	}
}

// A link in the folder is replaced, not followed, and no other file is left.
func TestInFollowsNoLink(t *testing.T) {
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "precious")
	if err := errors.Join(os.WriteFile(elsewhere, []byte("precious"), 0o600), os.Symlink(elsewhere, filepath.Join(dir, "lock"))); err != nil {
		t.Fatal(err)
	}
	if err := writeLock(dir, json.RawMessage(`{"ref":"3"}`), Lock{Holders: []Holder{{LockedBy: "a"}}}, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "lock"))
	if kept, keptErr := os.ReadFile(elsewhere); string(got) != "a\n" || string(kept) != "precious" || errors.Join(err, keptErr) != nil {
		t.Errorf("lock %q, what the link led to %q, %v", got, kept, errors.Join(err, keptErr))
	}
	entries, err := os.ReadDir(dir)
	if info, infoErr := os.Lstat(filepath.Join(dir, "lock")); len(entries) != 2 || errors.Join(err, infoErr) != nil || info.Mode() != 0o644 {
		t.Errorf("%v, mode %v", entries, info.Mode())
	}
}

// A version without a ref, or with an empty one, is none that check answered.
func TestInWantsARef(t *testing.T) {
	for version, right := range map[string]bool{`{}`: false, `{"ref":""}`: false, `{"sha":"x"}`: false, `null`: false, `{"ref":"3"}`: true} {
		if err := checkIn([]byte(version), []string{"dir"}); (err == nil) != right {
			t.Errorf("%s: error %v", version, err)
		}
	}
}

// The token and the slot are those of the hold that the version names.
func TestInWritesTokenAndSlot(t *testing.T) {
	l := Lock{Holders: []Holder{{LockedBy: "a", Token: 3, Slot: 2}, {LockedBy: "b", Token: 5, Slot: 1}}}
	for ref, want := range map[string][2]string{"3": {"3", "2"}, "5": {"5", "1"}, "4": {}} {
		dir := t.TempDir()
		if err := writeLock(dir, encodeVersion(ref), l, []byte("{}")); err != nil {
			t.Fatal(err)
		}
		token, _ := os.ReadFile(filepath.Join(dir, "token"))
		slot, _ := os.ReadFile(filepath.Join(dir, "slot"))
		if got := [2]string{string(token), string(slot)}; got != want {
			t.Errorf("version %s: %q, want %q", ref, got, want)
		}
	}
}

func encodeVersion(ref string) json.RawMessage {
	data, _ := json.Marshal(version{ref})
	return data
}
