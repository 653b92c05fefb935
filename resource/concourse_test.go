package resource

import (
	"context"
	"encoding/json"
	"net/http"
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
		{`[]`, []string{"read request: this is not a JSON object"}},
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
			`params: unknown member "lock_opp": known are key, lock_by, lock_op, locked_by, own, reason, slots, ttl, wait`,
			"params: lock_op is missing or unknown",
		}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"lock","locked_by":"a","lock_by":"b"}}`, []string{"params: locked_by and lock_by are one thing, and disagree: give one of them"}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"lock","own":true}}`, []string{"params: own goes with lock_op: unlock"}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"unlock","ttl":"5s"}}`, []string{"params: ttl goes with lock_op: lock"}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"lock","ttl":"5 minutes"}}`, []string{`params: ttl: must be a duration of at least 1s, such as "90s" or "2h30m"`}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"lock","ttl":"999ms"}}`, []string{"params: ttl: must be a duration of at least 1s"}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"lock","ttl":60}}`, []string{`params: ttl: a JSON number is not what belongs here: write a duration in quotes, such as "60s"`}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"lock","ttl":"1d","wait":"60"}}`, []string{
			`params: ttl: must be a duration of at least 1s, such as "90s" or "2h30m": the largest unit is h`,
			`params: wait: must be a duration of at least 0s, such as "90s" or "2h30m": it has no unit, such as the s of "60s"`,
		}},
		{`{` + goodSource + `,"params":{"key":"a\nb","lock_op":"lock"}}`, []string{"params: key has a control character"}},
		{`{` + goodSource + `,"params":{"key":"` + strings.Repeat("k", 256) + `","lock_op":"lock"}}`, []string{"params: key has 256 bytes: at most 255 are allowed"}},
		{`{` + goodSource + `,"params":{"key":"k","lock_op":"unlock","own":"maybe"}}`, []string{"params: own: must be true or false"}},
		{`{"source":{"locker_uri":"ftp://h","lock_name":"..","username":"u"},` + goodParams + `}`, []string{
			"source: locker_uri is not an http or https URL: set it to", "source: lock_name is . or ..: choose another name",
			"source: username is set but password is not: set both, or neither",
		}},
		{`{"source":{"locker_uri":"http://h?x=1","lock_name":"l","password":"p"},` + goodParams + `}`, []string{
			"source: locker_uri has a query or a fragment", "source: password is set but username is not: set both, or neither",
		}},
		{`{"source":{"locker_uri":"http://u:p@h","lock_name":"l","username":"a:b","password":"p"},` + goodParams + `}`, []string{
			"source: locker_uri has credentials in it: use username and password", "source: username has a colon",
		}},
		{`{"source":{"locker_uri":"h:8910","lock_name":"l","ca_cert":"no PEM","skip_ssl_validation":1},` + goodParams + `}`, []string{
			"source: skip_ssl_validation: must be true or false", "source: locker_uri is not an http or https URL", "source: ca_cert has no certificate: set it to PEM",
		}},
		{`{"source":{"locker_uri":"http://h","lock_name":7},` + goodParams + `}`, []string{"source: lock_name: a JSON number is not what belongs here: write text, in quotes: \"…\", or quote it where the variable is set"}},
		{`{"source":{"locker_uri":"http://h","lock_name":"l","username":null,"ca_cert":null,"bosh_lock":"x"},"params":{"key":"k","lock_op":"lock","ttl":null,"slots":"three","wait":60,"own":null}}`, []string{
			"source: bosh_lock is the resource's of 2017: set lock_name to the lock's name instead",
			"params: slots: a JSON string is not what belongs here: write a whole number, such as 3",
			`params: wait: a JSON number is not what belongs here: write a duration in quotes, such as "60s"`,
		}},
		{`{"source":{"locker_uri":"http://h","lock_name":"l","lock_name":"m"},` + goodParams + `}`, []string{`source: "lock_name" is given twice`}},
	} {
		var stderr strings.Builder
		var stdout strings.Builder
		err := Out(abortAfter(t, 0), strings.NewReader(test.request), &stdout, &stderr, nil, func(string) string { return "" }) // a request that is accepted ends soon
		if err == nil || stdout.Len() > 0 {
			t.Fatalf("%s: error %v, answered %s", test.request, err, stdout.String())
		}
		lines := strings.Split(err.Error(), "\n")
		if !slices.EqualFunc(lines, test.want, strings.HasPrefix) {
			t.Errorf("%s:\ngot\n%s\nwant\n%s", test.request, err, strings.Join(test.want, "\n"))
		}
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
		`{"source":{` + good + `},"params":{"key":"k","lock_op":"CANARY","ttl":"CANARY","wait":"CANARY","own":"CANARY","x":"CANARY"}}`,
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
