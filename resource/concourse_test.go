package resource

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// Every problem of a request is reported, all at once, by the member's name.
func TestProblemsOfARequest(t *testing.T) {
	const goodSource = `"source":{"locker_uri":"https://h:1/prefix/","lock_name":"l"}`
	const goodParams = `"params":{"key":"k","lock_op":"lock"}`
	for _, test := range []struct {
		request string
		want    []string // how the lines begin
	}{
		{``, []string{"read request: a JSON object is missing: there is nothing: give Concourse's JSON on stdin"}},
		{`{`, []string{"read request: malformed JSON at byte 1: unexpected end of JSON input"}},
		{`[]`, []string{"read request: this is no JSON object"}},
		{`{} {}`, []string{"read request: malformed JSON at byte 4"}},
		{`{}`, []string{
			"source: locker_uri is missing: set it", "source: lock_name is missing",
			"params: key is missing", "params: lock_op is missing or unknown: set it to lock or unlock",
		}},
		{`{"source":null,"params":null}`, []string{
			"source: locker_uri is missing: set it", "source: lock_name is missing",
			"params: key is missing", "params: lock_op is missing or unknown: set it to lock or unlock",
		}},
		{`{"source":{"locker_url":"x","Lock_Name":"y"},` + goodParams + `}`, []string{
			`source: unknown member "locker_url": known are ca_cert, lock_name, locker_uri, password, skip_ssl_validation, username`,
			`source: unknown member "Lock_Name": known are`,
			"source: locker_uri is missing", "source: lock_name is missing",
		}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"steal","lock_opp":"lock"}}`, []string{
			`params: unknown member "lock_opp": known are key, lock_by, lock_op, locked_by, own, ttl`,
			"params: lock_op is missing or unknown",
		}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"lock","locked_by":"a","lock_by":"b"}}`, []string{"params: locked_by and lock_by are one thing, and disagree: give one of them"}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"lock","own":true}}`, []string{"params: own goes with lock_op: unlock"}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"unlock","ttl":"5s"}}`, []string{"params: ttl goes with lock_op: lock"}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"lock","ttl":"5 minutes"}}`, []string{`params: ttl: must be a duration of at least 1s, such as "90s" or "2h30m"`}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"lock","ttl":"999ms"}}`, []string{"params: ttl: must be a duration of at least 1s"}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"lock","ttl":60}}`, []string{"params: ttl: must be a duration in quotes"}},
		{`{` + goodSource + `,"params":{"key":"a\nb","lock_op":"lock"}}`, []string{"params: key has a control character"}},
		{`{` + goodSource + `,"params":{"key":"` + strings.Repeat("k", 256) + `","lock_op":"lock"}}`, []string{"params: key has 256 bytes: at most 255 are allowed"}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"unlock","own":"maybe"}}`, []string{"params: own: must be true or false"}},
		{`{"source":{"locker_uri":"ftp://h","lock_name":"..","username":"u"},` + goodParams + `}`, []string{
			"source: locker_uri is no http or https URL: set it to", "source: lock_name is . or ..: choose another name",
			"source: username is set but password is not: set both, or neither",
		}},
		{`{"source":{"locker_uri":"http://h?x=1","lock_name":"l","password":"p"},` + goodParams + `}`, []string{
			"source: locker_uri has a query or a fragment", "source: password is set but username is not: set both, or neither",
		}},
		{`{"source":{"locker_uri":"http://u:p@h","lock_name":"l","username":"a:b","password":"p"},` + goodParams + `}`, []string{
			"source: locker_uri has credentials in it: use username and password", "source: username has a colon",
		}},
		{`{"source":{"locker_uri":"h:8910","lock_name":"l","ca_cert":"no PEM","skip_ssl_validation":1},` + goodParams + `}`, []string{
			"source: skip_ssl_validation: must be true or false", "source: locker_uri is no http or https URL", "source: ca_cert has no certificate: set it to PEM",
		}},
		{`{"source":{"locker_uri":"http://h","lock_name":7},` + goodParams + `}`, []string{"source: lock_name: must be text: put it in quotes", "source: lock_name is missing"}},
		{`{"source":{"locker_uri":"http://h","lock_name":"l","lock_name":"m"},` + goodParams + `}`, []string{`source: "lock_name" is given twice`}},
	} {
		var stderr strings.Builder
		var stdout strings.Builder
		err := Out(t.Context(), strings.NewReader(test.request), &stdout, &stderr, nil, func(string) string { return "" })
		if err == nil || stdout.Len() > 0 {
			t.Fatalf("%s: error %v, answered %s", test.request, err, stdout.String())
		}
		lines := strings.Split(err.Error(), "\n")
		if !slices.EqualFunc(lines, test.want, strings.HasPrefix) {
			t.Errorf("%s:\ngot\n%s\nwant\n%s", test.request, err, strings.Join(test.want, "\n"))
		}
	}
}

func TestOwnNeedsABuild(t *testing.T) {
	request := theSource + `,"params":{"key":"k","lock_op":"unlock","own":true}}`
	err := Out(t.Context(), strings.NewReader(request), io.Discard, io.Discard, nil, func(string) string { return "" })
	if err == nil || !strings.HasPrefix(err.Error(), "params: own needs ATC_EXTERNAL_URL and BUILD_ID") {
		t.Errorf("error %v", err)
	}
}

// The lock's address is right with and without a slash at its end and a path.
func TestLockerURI(t *testing.T) {
	for uri, want := range map[string]string{
		"http://h:8910":          "http://h:8910/lock/a%2Fb%20c",
		"http://h:8910/":         "http://h:8910/lock/a%2Fb%20c",
		"https://h/ci/locker":    "https://h/ci/locker/lock/a%2Fb%20c",
		"https://h/ci/locker//":  "https://h/ci/locker/lock/a%2Fb%20c",
		"http://[::1]:8910":      "http://[::1]:8910/lock/a%2Fb%20c",
		"https://h/with%20space": "https://h/with%20space/lock/a%2Fb%20c",
	} {
		s := &source{lockerURI: text(uri), lockName: "a/b c"}
		if err := s.check(); err != nil {
			t.Errorf("%s: %v", uri, err)
		}
		if got := newClient(s, nil).lock; got != want {
			t.Errorf("%s: %s, want %s", uri, got, want)
		}
	}
}

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

func TestInWritesTheLock(t *testing.T) {
	const held = `{"key":"k","locked_by":{"a":1,"b":1},"holders":[{"locked_by":"a","since":"2026-11-23T10:00:00Z","token":3,"link":"https://ci.example/builds/1"},{"locked_by":"b","since":"2026-11-23T10:05:00Z","token":4}],"waiters":[{"key":"x","locked_by":"c","since":"2026-11-23T10:06:00Z"}],"revision":4}`
	for _, test := range []struct{ lock, owners, metadata string }{
		{freeLock, "", `[{"name":"lock","value":"myLock"},{"name":"waiting","value":"0"}]`},
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

// Neither the password nor another value of the request is ever printed.
func TestNothingSecretIsPrinted(t *testing.T) {
	const canary = "CANARY"
	pem := "-----BEGIN CERTIFICATE-----\n" + canary + "\n-----END CERTIFICATE-----"
	quoted, err := json.Marshal(pem)
	if err != nil {
		t.Fatal(err)
	}
	good := `"locker_uri":"http://h","lock_name":"l","username":"u","password":"CANARY"`
	params := `"params":{"key":"k","lock_op":"lock"},"version":{"ref":"1"}`
	requests := []string{
		`{"source":{` + good + `},` + params + `}`,
		`{"source":{` + good + `,"ca_cert":` + string(quoted) + `},` + params + `}`,
		`{"source":{` + good + `,"skip_ssl_validation":"CANARY"},` + params + `}`,
		`{"source":{` + good + `,"passwort":"CANARY"},` + params + `}`,
		`{"source":{` + good + `,"lock_name":"CANARY"},` + params + `}`,
		`{"source":{` + good + `},"params":{"key":"k","lock_op":"CANARY","ttl":"CANARY","own":"CANARY","x":"CANARY"}}`,
		`{"source":"CANARY",` + params + `}`, `{"source":{` + good, `CANARY`, `{"source":{` + good + `},CANARY`, `{"source":{"password":CANARY}}`,
		`{"source":{"locker_uri":"http://h","lock_name":"l","password":"CANARY"},` + params + `}`,
		`{"source":{"locker_uri":"http://h","lock_name":"l","username":"u","password":["CANARY"]},` + params + `}`,
		`{"source":{"locker_uri":"http://h","lock_name":"l","username":"u","password":{"CANARY":1}},` + params + `}`,
		`{"source":{"locker_uri":"http://h","lock_name":"l","username":"u","password":"\ud800CANARY"},` + params + `}`,
	}
	for _, uri := range []string{
		"http://u:CANARY@h", "http://CANARY@h", "http://u:CANARY%zz@h", "http://u:CANARY@h:port", "http://u:CANARY @h", "u:CANARY@h", "://u:CANARY@h",
		"http://h/?CANARY", "http://h/#CANARY", "http://h:CANARY", "http://h/%zzCANARY", "CANARY",
	} {
		requests = append(requests, `{"source":{"locker_uri":"`+uri+`","lock_name":"l"},`+params+`}`)
	}
	answers := []func(http.ResponseWriter, *http.Request){
		func(w http.ResponseWriter, _ *http.Request) { answerWith(w, 200, "") },
		func(w http.ResponseWriter, _ *http.Request) { answerWith(w, 200, freeLock) },
		func(w http.ResponseWriter, _ *http.Request) { answerWith(w, 400, "") },
		func(w http.ResponseWriter, _ *http.Request) { answerWith(w, 401, "") },
		func(w http.ResponseWriter, _ *http.Request) { answerWith(w, 404, "") },
		func(w http.ResponseWriter, _ *http.Request) { answerWith(w, 423, "") },
		func(w http.ResponseWriter, _ *http.Request) { answerWith(w, 423, queuedJSON) },
		func(w http.ResponseWriter, _ *http.Request) { answerWith(w, 500, "") },
		func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+strings.TrimPrefix(r.Header.Get("Authorization"), "Basic ")+":CANARY@h/CANARY", http.StatusFound)
		},
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		func(_ http.ResponseWriter, r *http.Request) { hold(r, nextWait*3) },
	}
	for _, request := range requests {
		for _, answer := range answers {
			for _, main := range []func(*program, context.Context) error{(*program).check, (*program).in, (*program).out} {
				synctest.Test(t, func(t *testing.T) {
					s := serve(t, answer)
					r := s.run(abortAfter(t, lookBudget*2), main, request, t.TempDir())
					var ending strings.Builder
					if r.err != nil {
						fail(&ending, r.err)
					}
					printed := r.stdout.String() + r.stderr.String() + ending.String()
					if strings.Contains(printed, canary) && !knownName(request) {
						t.Errorf("%s: %s", request, printed)
					}
				})
			}
		}
	}
}

// knownName reports whether the canary is a lock's name, which is printed.
func knownName(request string) bool { return strings.Contains(request, `"lock_name":"CANARY"`) }
