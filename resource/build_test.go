package resource

import (
	"strings"
	"testing"
)

func TestBuildID(t *testing.T) {
	id := func(env map[string]string) string {
		id, _ := buildID(func(name string) string { return env[name] })
		return id
	}
	build := map[string]string{"ATC_EXTERNAL_URL": "https://ci.example/", "BUILD_ID": "12"}
	if got := id(build); got != "https://ci.example/builds/12" {
		t.Error(got)
	}
	build["ATC_EXTERNAL_URL"] = "https://u:p@ci.example/"
	if got := id(build); got != "https://ci.example/builds/12" {
		t.Errorf("with credentials: %s", got)
	}
	long := map[string]string{"ATC_EXTERNAL_URL": "https://" + strings.Repeat("x", 300), "BUILD_ID": "12"}
	if a, b := id(long), id(long); a != b || len(a) != 64 {
		t.Errorf("%s, then %s", a, b)
	}
	for _, env := range []map[string]string{nil, {"BUILD_ID": "12"}, {"ATC_EXTERNAL_URL": "https://ci.example"}} {
		if a, b := id(env), id(env); a == b || a == "" {
			t.Errorf("%v: %s, then %s", env, a, b)
		}
	}
}

// Two Concourses with the same address and build number are told apart by
// whatever else says which build it is.
func TestBuildIDIsNotShared(t *testing.T) {
	build := map[string]string{
		"ATC_EXTERNAL_URL": "http://127.0.0.1:8080", "BUILD_ID": "77", "BUILD_TEAM_NAME": "main", "BUILD_PIPELINE_NAME": "shop",
		"BUILD_PIPELINE_INSTANCE_VARS": `{"branch":"a"}`, "BUILD_JOB_NAME": "deploy", "BUILD_NAME": "3",
	}
	id := func() string {
		id, known := buildID(func(name string) string { return build[name] })
		if !known || CheckName("id", id) != nil {
			t.Errorf("id %q, known %t", id, known)
		}
		return id
	}
	first := id()
	if again := id(); again != first {
		t.Errorf("%s, then %s", first, again)
	}
	for name, value := range build {
		for _, other := range []string{value + "&x", value + "/x", value + strings.Repeat("y", 300)} {
			build[name] = other
			if got := id(); got == first {
				t.Errorf("%s %q counts as %q", name, other, value)
			}
		}
		build[name] = value
	}
}

func TestBuildLink(t *testing.T) {
	job := func(more ...string) map[string]string {
		env := map[string]string{
			"ATC_EXTERNAL_URL": "https://ci.example/", "BUILD_ID": "12", "BUILD_TEAM_NAME": "main", "BUILD_PIPELINE_NAME": "deploy it",
			"BUILD_JOB_NAME": "a/b", "BUILD_NAME": "3.1",
		}
		for i := 0; i < len(more); i += 2 {
			env[more[i]] = more[i+1]
		}
		return env
	}
	const link = "https://ci.example/teams/main/pipelines/deploy%20it/jobs/a%2Fb/builds/3.1"
	for _, test := range []struct {
		env  map[string]string
		want string
	}{
		{nil, ""},
		{job("BUILD_URL", "https://ci.example/b/1"), "https://ci.example/b/1"},
		{job("BUILD_URL", "https://u:p@ci.example/b/1"), "https://ci.example/b/1"},
		{job("BUILD_URL", "javascript:alert(1)"), link},
		{job(), link},
		{job("BUILD_PIPELINE_INSTANCE_VARS", `{"branch":"feat/x","n":{"a":1}}`), link + "?vars.branch=%22feat%2Fx%22&vars.n=%7B%22a%22%3A1%7D"},
		{job("BUILD_PIPELINE_INSTANCE_VARS", `{"a.b":1}`), link + "?vars.%22a.b%22=1"},
		{job("BUILD_PIPELINE_INSTANCE_VARS", `{`), "https://ci.example/builds/12"},
		{job("BUILD_JOB_NAME", ""), "https://ci.example/builds/12"},
		{job("ATC_EXTERNAL_URL", ""), ""},
		{job("BUILD_URL", "https://ci.example/"+strings.Repeat("x", 2_048)), link},
	} {
		if got := buildLink(func(name string) string { return test.env[name] }); got != test.want {
			t.Errorf("%v: %s, want %s", test.env, got, test.want)
		}
	}
}
