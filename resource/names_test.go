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
