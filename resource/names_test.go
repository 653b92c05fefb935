package resource

import (
	"strings"
	"testing"
)

// What is wrong with a name is said without the name.
func TestCheckName(t *testing.T) {
	for _, row := range []struct{ name, problem string }{
		{"a", ""},
		{"a/b c#ü😀", ""},
		{".", ""},
		{strings.Repeat("n", MaxName), ""},
		{"", "it is empty: it must have 1 to 255 bytes"},
		{strings.Repeat("n", MaxName+1), "it has 256 bytes: at most 255 are allowed"},
		{strings.Repeat("ü", 128), "it has 256 bytes: at most 255 are allowed"},
		{"a\xff", "it is not valid UTF-8: correct it"},
		{"CANARY\n", "it has a control character, such as a line break: leave it out"},
		{"\u0085", "it has a control character, such as a line break: leave it out"},
	} {
		wantProblem(t, CheckName("it", row.name), row.problem)
		if row.name != "." {
			wantProblem(t, CheckLockName("it", row.name), row.problem)
		}
	}
	for _, dots := range []string{".", ".."} {
		wantProblem(t, CheckLockName("it", dots), "it is . or ..: choose another name")
	}
	wantProblem(t, CheckLockName("it", "..."), "")
}

func TestCheckLink(t *testing.T) {
	const problem = "link is not an http or https URL of at most 2048 bytes, without credentials"
	long := "https://ci.example/" + strings.Repeat("a", MaxLink)
	for link, want := range map[string]string{
		"": "", "http://h": "", "HTTPS://ci.example/b?c#d": "", long[:MaxLink]: "",
		long[:MaxLink+1]: problem, "javascript:alert(1)": problem, "//ci.example": problem, "https:///x": problem,
		"https://:80/x": problem, "https://u@h": problem, "https://u:CANARY@h": problem, "https://h/\n": problem,
	} {
		wantProblem(t, CheckLink(link), want)
	}
}

func wantProblem(t *testing.T, err error, problem string) {
	t.Helper()
	if err == nil && problem != "" || err != nil && err.Error() != problem {
		t.Errorf("error %v, want %q", err, problem)
	}
}

// lookalikes are names that look like another one, each with what a take says
// of it.
var lookalikes = map[string]string{
	"prod ":       "white space at an end",
	" prod":       "white space at an end",
	"prod\u00a0":  "white space at an end",
	"\u3000prod":  "white space at an end",
	"pr\u200bod":  "a character that cannot be seen",
	"\u202eprod":  "a character that cannot be seen",
	"prod\ufeff":  "a character that cannot be seen",
	"prod\u2028x": "a character that cannot be seen",
	"prod\u2029":  "a character that cannot be seen",
}

// What looks like another name is refused to takes alone, and said in one line.
func TestNamesThatLookAlike(t *testing.T) {
	for name, problem := range lookalikes {
		for _, check := range []func(member, name string) error{checkNewName, CheckNewLockName} {
			if err := check("it", name); err == nil || !strings.HasPrefix(err.Error(), "it has "+problem) || strings.Contains(err.Error(), name) {
				t.Errorf("%q: error %v", name, err)
			}
		}
		for _, check := range []func(member, name string) error{CheckName, CheckLockName} {
			wantProblem(t, check("it", name), "")
		}
	}
	for _, name := range []string{"prod", "my lock", "a\u00a0b", "grün 😀", "..."} {
		wantProblem(t, checkNewName("it", name), "")
	}
}

// Proxies resolve such a name to that of another lock.
func TestDotsBetweenSlashes(t *testing.T) {
	for _, name := range []string{"zz/../prod", "./a", "a/.", "../a", "a/..", "/.", "a/./b"} {
		wantProblem(t, CheckNewLockName("it", name), "it has . or .. between slashes, which proxies resolve to another name: leave it out")
		wantProblem(t, CheckLockName("it", name), "")
		wantProblem(t, checkNewName("it", name), "")
	}
	for _, name := range []string{"a/b", "/", "a//b", "a.b/c", "a/...", "a/..b", ".a/b", "team/v1."} {
		wantProblem(t, CheckNewLockName("it", name), "")
	}
}

func TestCheckSlots(t *testing.T) {
	for n, want := range map[int]bool{-1: false, 0: false, 1: true, 1_000: true, 1_001: false} {
		if err := CheckSlots(n); (err == nil) != want {
			t.Errorf("%d: %v", n, err)
		}
	}
}
