package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cloudfoundry-community/locker/resource"
)

// badBody is a body that is refused, and words of the sentence that says why.
type badBody struct{ name, body, problem string }

// malformed are bodies that are not strict JSON, whatever they are meant to say.
var malformed = []badBody{
	{"nothing", "", "JSON"},
	{"white space", " \n", "JSON"},
	{"null", "null", "JSON"},
	{"list", `[{"key": "k"}]`, "JSON"},
	{"string", `"key"`, "JSON"},
	{"form", "key=k&locked_by=jane", "JSON"},
	{"cut short", `{"key": "k"`, "JSON"},
	{"cut in a string", `{"key": "k`, "JSON"},
	{"cut after a name", `{"key"`, "JSON"},
	{"no colon", `{"key" "k"}`, "JSON"},
	{"no quotes", `{key: "k"}`, "JSON"},
	{"single quotes", `{'key': 'k'}`, "JSON"},
	{"comma at the end", `{"key": "k",}`, "JSON"},
	{"comment", `{"key": "k" /* k */}`, "JSON"},
	{"wrong end", `{"key": "k"]`, "JSON"},
	{"byte order mark", "\ufeff" + `{"key": "k"}`, "JSON"},
	{"line feed in a string", "{\"key\": \"a\nb\"}", "JSON"},
	{"unknown escape", `{"key": "\x41"}`, "JSON"},
	{"deep", `{"key": ` + strings.Repeat("[", 60_000), "exceeded max depth"},
	{"deep and closed", `{"key": ` + strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000) + "}", "exceeded max depth"},
	{"deep objects", strings.Repeat(`{"key":`, 7_000) + `"k"` + strings.Repeat("}", 7_000), "key: a JSON object is not what belongs here"},
	{"deeper objects", strings.Repeat(`{"":`, 12_000) + `"k"` + strings.Repeat("}", 12_000), "exceeded max depth"},
	{"trailing object", `{"key": "k"} {}`, "JSON"},
	{"trailing word", `{"key": "k"} x`, "JSON"},
	{"trailing NUL", `{"key": "k"}` + "\x00", "JSON"},
	{"invalid UTF-8 in a value", `{"key": "` + "\xff" + `"}`, "not valid UTF-8"},
	{"invalid UTF-8 in a name", `{"key": "k", "` + "\xc3" + `": "x"}`, "not valid UTF-8"},
	{"surrogate in UTF-8", `{"key": "` + "\xed\xa0\x80" + `"}`, "not valid UTF-8"},
	{"high surrogate alone", `{"key": "\ud83d"}`, `"key" has half of an escaped surrogate pair`},
	{"low surrogate alone", `{"key": "\uDE00"}`, `"key" has half of an escaped surrogate pair`},
	{"two high surrogates", `{"key": "\ud83d\ud83d"}`, `"key" has half of an escaped surrogate pair`},
	{"surrogates swapped", `{"key": "\ude00\ud83d"}`, `"key" has half of an escaped surrogate pair`},
	{"surrogate after a backslash", `{"key": "\\\ud83d"}`, `"key" has half of an escaped surrogate pair`},
	{"pair, then half", `{"key": "\ud83d\ude00\ud83d"}`, `"key" has half of an escaped surrogate pair`},
	{"half at the end of a pair's length", `{"key": "\ud83dude00"}`, `"key" has half of an escaped surrogate pair`},
	{"member twice", `{"key": "k", "key": "k"}`, `"key" is given twice`},
	{"member twice, once in capitals", `{"key": "k", "KEY": "k"}`, `unknown member "KEY"`},
	{"member twice, once escaped", `{"key": "a", "k\u0065y": "b"}`, `"key" is given twice`},
	{"half a surrogate pair for a name", `{"key": "k", "\ud800": "x"}`, "unknown member \"\ufffd\""},
	{"7,000 unknown members", `{"key": "k"` + manyMembers(7_000) + "}", `unknown member "1"`},
	{"unknown member of 60 KB", `{"` + strings.Repeat("k", 60_000) + `": "k"}`, `unknown member "kkk`},
	{"unknown member", `{"key": "k", "kee": "k"}`, `unknown member "kee": known are `},
	{"member in capitals", `{"Key": "k"}`, `unknown member "Key"`},
	{"member without a name", `{"key": "k", "": "x"}`, `unknown member ""`},
	{"no key", `{"locked_by": "jane"}`, "key is missing"},
	{"empty object", `{}`, "key is missing"},
	{"empty key", `{"key": ""}`, "key is empty"},
	{"empty locked_by", `{"key": "k", "locked_by": ""}`, "locked_by is empty"},
	{"empty alias", `{"key": "k", "locked_by": "jane", "requestor": ""}`, "locked_by and requestor are one thing, and disagree: give one of them"},
	{"empty id", `{"key": "k", "id": ""}`, "id is empty"},
	{"null key", `{"key": null}`, "key: null is not a value"},
	{"number for a key", `{"key": 1}`, "key: a JSON number is not what belongs here"},
	{"number out of range for a key", `{"key": 1e999}`, "key: a JSON number is not what belongs here"},
	{"number of 60,000 digits for a key", `{"key": ` + strings.Repeat("9", 60_000) + "}", "key: a JSON number is not what belongs here"},
	{"number that is not one", `{"key": -}`, "JSON"},
	{"not a number", `{"key": NaN}`, "JSON"},
	{"list for a key", `{"key": ["k"]}`, "key: a JSON array is not what belongs here"},
	{"object for a key", `{"key": {"k": 1}}`, "key: a JSON object is not what belongs here"},
	{"truth for a name", `{"key": "k", "locked_by": true}`, "locked_by: a JSON bool is not what belongs here"},
	{"null id", `{"key": "k", "id": null}`, "id: null is not a value"},
	{"long key", `{"key": "` + strings.Repeat("k", resource.MaxName+1) + `"}`, "key has 256 bytes: at most 255 are allowed"},
	{"key of 10 KB", `{"key": "` + strings.Repeat("k", 10_000) + `"}`, "key has 10000 bytes: at most 255 are allowed"},
	{"long name", `{"key": "k", "lock_by": "` + strings.Repeat("ü", 128) + `"}`, "locked_by has 256 bytes: at most 255 are allowed"},
	{"long id", `{"key": "k", "id": "` + strings.Repeat("i", resource.MaxName+1) + `"}`, "id has 256 bytes: at most 255 are allowed"},
	{"NUL in a key", `{"key": "a\u0000"}`, "has a control character"},
	{"line feed in a name", `{"key": "k", "locked_by": "a\nb"}`, "has a control character"},
	{"DEL in an id", `{"key": "k", "id": "\u007f"}`, "has a control character"},
	{"C1 control in a key", `{"key": "\u0085"}`, "has a control character"},
	{"aliases disagree", `{"key": "k", "locked_by": "jane", "lock_by": "george"}`, "locked_by and lock_by are one thing, and disagree: give one of them"},
	{"two others disagree", `{"key": "k", "lock_by": "jane", "requestor": "george"}`, "lock_by and requestor are one thing, and disagree: give one of them"},
}

// manyMembers are members with short names, each after a comma.
func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"%x":1`, i)
	}
	return b.String()
}

// taking are malformed bodies of PUT only, releasing those of DELETE.
var taking = []badBody{
	{"own", `{"key": "k", "own": true}`, `unknown member "own"`},
	{"wait a number", `{"key": "k", "wait": 30}`, "wait: a JSON number is not what belongs here"},
	{"wait without a unit", `{"key": "k", "wait": "30"}`, `wait: "30" is not a duration such as "90s"`},
	{"wait empty", `{"key": "k", "wait": ""}`, `wait: "" is not a duration`},
	{"wait negative", `{"key": "k", "wait": "-1s"}`, `wait: "-1s" is negative`},
	{"wait beyond all", `{"key": "k", "wait": "9999999h"}`, `wait: "9999999h" is not a duration`},
	{"wait out of range", `{"key": "k", "wait": 1e999}`, "wait: a JSON number is not what belongs here"},
	{"wait of 2^63 ns", `{"key": "k", "wait": "9223372036854775808ns"}`, `wait: "9223372036854775808ns" is not a duration`},
	{"wait with an exponent", `{"key": "k", "wait": "1e3s"}`, `wait: "1e3s" is not a duration`},
	{"wait of NaN", `{"key": "k", "wait": "NaNs"}`, `wait: "NaNs" is not a duration`},
	{"wait of 60 KB", `{"key": "k", "wait": "` + strings.Repeat("9", 60_000) + `s"}`, `wait: "999`},
	{"wait null", `{"key": "k", "wait": null}`, "wait: null is not a value"},
	{"ttl null", `{"key": "k", "ttl": null}`, "ttl: null is not a value"},
	{"ttl zero", `{"key": "k", "ttl": "0s"}`, "ttl is less than 1s"},
	{"ttl short", `{"key": "k", "ttl": "999ms"}`, "ttl is less than 1s"},
	{"ttl negative", `{"key": "k", "ttl": "-1h"}`, `ttl: "-1h" is negative`},
	{"ttl beyond all", `{"key": "k", "ttl": "2562047h47m16.854775808s"}`, `ttl: "2562047h47m16.854775808s" is not a duration`},
	{"ttl out of range", `{"key": "k", "ttl": -1e999}`, "ttl: a JSON number is not what belongs here"},
	{"ttl a list", `{"key": "k", "ttl": []}`, "ttl: a JSON array is not what belongs here"},
	{"link of another scheme", `{"key": "k", "link": "javascript:alert(1)"}`, "link is not an http or https URL"},
	{"link to a file", `{"key": "k", "link": "file:///etc/passwd"}`, "link is not an http or https URL"},
	{"link without a scheme", `{"key": "k", "link": "//ci.example"}`, "link is not an http or https URL"},
	{"link without a host", `{"key": "k", "link": "https:///builds"}`, "link is not an http or https URL"},
	{"link with a line feed", `{"key": "k", "link": "https://ci.example/\n"}`, "link is not an http or https URL"},
	{"link without a host", `{"key": "k", "link": "https://:8080/x"}`, "is not an http or https URL"},
	{"link with credentials", `{"key": "k", "link": "https://u:p@ci.example/"}`, "without credentials"},
	{"long link", `{"key": "k", "link": "https://ci.example/` + strings.Repeat("a", resource.MaxLink) + `"}`, "of at most 2048 bytes"},
	{"two problems", `{"key": "k", "ttl": "x", "wiat": "1s"}`, `unknown member "wiat"`},
	{"two problems, the other", `{"key": "k", "ttl": "x", "wiat": "1s"}`, `ttl: "x" is not a duration`},
}

var releasing = []badBody{
	{"wait", `{"key": "k", "wait": "1s"}`, `unknown member "wait"`},
	{"own a string", `{"key": "k", "own": "true"}`, "own: a JSON string is not what belongs here"},
	{"own a number", `{"key": "k", "own": 1e999}`, "own: a JSON number is not what belongs here"},
	{"own null", `{"key": "k", "own": null}`, "own: null is not a value"},
	{"reason", `{"key": "k", "reason": "x"}`, `unknown member "reason"`},
}

func TestDecodeTake(t *testing.T) {
	long := strings.Repeat("n", resource.MaxName)
	link := "https://ci.example/" + strings.Repeat("a", resource.MaxLink-len("https://ci.example/"))
	for _, test := range []struct {
		name, body string
		claim      claim
		wait       time.Duration
	}{
		{"key alone", `{"key": "k"}`, claim{identity: identity{"k", "k", ""}}, 0},
		{"name", `{"key": "k", "locked_by": "jane"}`, claim{identity: identity{"k", "jane", ""}}, 0},
		{"first alias", `{"key": "k", "lock_by": "jane"}`, claim{identity: identity{"k", "jane", ""}}, 0},
		{"second alias", `{"key": "k", "requestor": "jane"}`, claim{identity: identity{"k", "jane", ""}}, 0},
		{"aliases agree", `{"key": "k", "requestor": "jane", "lock_by": "jane", "locked_by": "jane"}`, claim{identity: identity{"k", "jane", ""}}, 0},
		{"everything", `{"key": "k", "locked_by": "jane", "id": "7", "wait": "30s", "ttl": "1h30m", "link": "HTTPS://ci.example", "slots": 3, "reason": "a release", "ticket": "18.3"}`,
			claim{identity{"k", "jane", "7"}, resource.Duration(90 * time.Minute), "HTTPS://ci.example", 3, "a release", ticket{18, 3}}, 30 * time.Second},
		{"empty link", `{"key": "k", "link": ""}`, claim{identity: identity{"k", "k", ""}}, 0},
		{"shortest ttl", `{"key": "k", "ttl": "1s"}`, claim{identity: identity{"k", "k", ""}, TTL: resource.Duration(time.Second)}, 0},
		{"no wait", `{"key": "k", "wait": "0s"}`, claim{identity: identity{"k", "k", ""}}, 0},
		{"wait too long", `{"key": "k", "wait": "1h"}`, claim{identity: identity{"k", "k", ""}}, 55 * time.Second},
		{"escapes", `{"key": "\ud83d\ude00\u00fc\\ud83d\"\ud7ff"}`, claim{identity: identity{"😀ü\\ud83d\"\ud7ff", "😀ü\\ud83d\"\ud7ff", ""}}, 0},
		{"longest", `{"key": "` + long + `", "id": "` + long + `", "link": "` + link + `"}`, claim{identity: identity{long, long, long}, Link: link}, 0},
		{"white space", "\r\n\t {\"key\" :\n\"k\"} \n", claim{identity: identity{"k", "k", ""}}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, wait, err := decodeTake([]byte(test.body))
			if err != nil || c != test.claim || wait != test.wait {
				t.Errorf("got %+v, %v, %v", c, wait, err)
			}
		})
	}
}

// FuzzRequestBody checks that nothing makes the decoders panic, and that what
// they accept is in the limits and no other JSON than a common parser reads.
func FuzzRequestBody(f *testing.F) {
	for _, rows := range [][]badBody{malformed, taking, releasing} {
		for _, row := range rows {
			f.Add([]byte(row.body))
		}
	}
	f.Add([]byte(`{"key": "k", "requestor": "jane", "id": "7", "wait": "30s", "ttl": "1h", "link": "https://ci.example", "ticket": "18.3"}`))
	f.Add([]byte(`{"key": "\ud83d\ude00", "lock_by": "\u00fc", "own": true}`))
	f.Add([]byte(`{"locked_by": "jane", "reason": "it hangs"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, wait, err := decodeTake(body)
		if err == nil {
			wantLawful(t, c.identity, body)
			if wait < 0 || wait > maxWait || c.TTL != 0 && c.TTL < resource.Duration(time.Second) || len(c.Link) > resource.MaxLink {
				t.Errorf("accepted %+v, %v", c, wait)
			}
		}
		if r, err := decodeRelease(body); err == nil {
			r.LockedBy = cmp.Or(r.LockedBy, r.Key)
			wantLawful(t, r.identity, body)
		}
		if f, err := resource.DecodeForce(body); err == nil && f.LockedBy != "" {
			wantLawfulName(t, f.LockedBy)
		}
	})
}

func wantLawful(t *testing.T, who identity, body []byte) {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal(body, &members); err != nil || members["key"] != who.Key {
		t.Errorf("accepted %q, which reads %v, %v", body, members, err)
	}
	wantLawfulName(t, who.Key)
	wantLawfulName(t, who.LockedBy)
}

func wantLawfulName(t *testing.T, s string) {
	t.Helper()
	if s == "" || len(s) > resource.MaxName || !utf8.ValidString(s) {
		t.Errorf("accepted %q", s)
	}
}
