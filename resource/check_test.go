package resource

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
)

func TestVersions(t *testing.T) {
	for _, test := range []struct {
		current uint64
		given   string
		want    string
	}{
		{17, "", "17"},
		{17, "17", "17"},
		{17, "3", "3 17"},
		{17, "40", "17"}, // the state was restored from a backup
		{0, "", "0"},
		{0, "17", "17"}, // forgotten
		{0, "0", "0"},
		{17, "0", "0 17"},
		{17, "abc", "17"},
	} {
		var got []string
		for _, v := range versions(test.current, test.given) {
			got = append(got, v.Ref)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("current %d, given %q: %q, want %q", test.current, test.given, got, test.want)
		}
	}
}

// check answers JSON alone, whatever version an older resource type left.
func TestCheckTakesAnyVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) { answerWith(w, 200, freeLock) })
		for given, want := range map[string]string{
			``: `[{"ref":"9"}]`, `,"version":null`: `[{"ref":"9"}]`, `,"version":{"ref":"4"}`: `[{"ref":"4"},{"ref":"9"}]`,
			`,"version":{"sha":"x"}`: `[{"ref":"9"}]`, `,"version":{"ref":4}`: `[{"ref":"9"}]`,
		} {
			r := s.run(t.Context(), (*program).check, theSource+given+`}`)
			if r.err != nil || r.stdout.String() != want+"\n" || r.stderr.Len() > 0 {
				t.Errorf("%s: error %v, answered %s, said %s", given, r.err, r.stdout.String(), r.stderr.String())
			}
		}
	})
}
