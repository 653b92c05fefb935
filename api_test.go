package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// apiCall is one request. Its header is names and values in turn.
type apiCall struct {
	method, path, body string
	header             []string
}

const (
	put, del, get = "PUT", "DELETE", "GET"
	jane          = `{"key": "k", "locked_by": "jane", "id": "7", "link": "https://ci.example/builds/12"}`
	georgeWaits   = `{"key": "other", "locked_by": "george", "id": "8", "wait": "1ms"}`
)

// TestAPI has a row for each row of the API's tables.
func TestAPI(t *testing.T) {
	s := startServer(t, nil)
	for _, test := range []struct {
		name   string
		before []apiCall
		apiCall
		status string
		want   string   // a header's name and its value
		parts  []string // of the answer
	}{
		{"list", []apiCall{{put, "/lock/listed", jane, nil}}, apiCall{get, "/locks", "", nil},
			"200 OK", `ETag "2"`, []string{`"listed":{"key":"k","locked_by":{"jane":1},"holders":[{"locked_by":"jane","since":"20`}},
		{"list as it is", nil, apiCall{get, "/locks", "", []string{"If-None-Match", `"2"`}}, "304 Not Modified", `ETag "2"`, nil},
		{"list as it was", nil, apiCall{get, "/locks", "", []string{"If-None-Match", `"1"`}}, "200 OK", `ETag "2"`, []string{`"listed"`}},
		{"list as it is, after a wait", nil, apiCall{get, "/locks?wait=10ms", "", []string{"If-None-Match", `"2"`}}, "304 Not Modified", `ETag "2"`, nil},
		{"lock never used", nil, apiCall{get, "/lock/unused", "", nil},
			"200 OK", `ETag "0"`, []string{`{"key":"","locked_by":{},"holders":[],"waiters":[],"waiting":0,"revision":0}` + "\n"}},
		{"lock", nil, apiCall{get, "/lock/listed", "", nil}, "200 OK", `ETag "2"`,
			[]string{`{"key":"k","locked_by":{"jane":1},"holders":[{"locked_by":"jane",`, `"token":2,"link":"https://ci.example/builds/12","slot":1}]`, `"revision":2}`}},
		{"take", nil, apiCall{put, "/lock/taken", jane, nil}, "200 OK", "Content-Type application/json",
			[]string{`"response":"lock taken acquired by jane with the key k"`, `"lock":{"key":"k"`, `"token":3`}},
		{"show with a ticket", nil, apiCall{get, "/lock/unused?ticket=true", "", nil}, "200 OK", "Locker-Ticket 3.1", []string{`"revision":0}`}},
		{"show with another ticket", nil, apiCall{get, "/lock/taken?ticket=true", "", nil}, "200 OK", "Locker-Ticket 3.2", nil},
		{"show without a ticket", nil, apiCall{get, "/lock/unused?ticket=false", "", nil}, "200 OK", "Locker-Ticket ", nil},
		{"ticket neither true nor false", nil, apiCall{get, "/lock/unused?ticket=1", "", nil}, "400 Bad Request", "", []string{`ticket is \"1\": it must be true or false`}},
		{"ticket of a take too old", nil, apiCall{put, "/lock/unused", `{"key": "k", "id": "7", "ticket": "0.1"}`, nil}, "409 Conflict", "", []string{"too old: fetch another, then ask again"}},
		{"ticket never given out", nil, apiCall{del, "/lock/unused", `{"key": "k", "id": "7", "ticket": "99.1"}`, nil}, "409 Conflict", "", []string{"too old: fetch another, then ask again"}},
		{"ticket malformed", nil, apiCall{put, "/lock/unused", `{"key": "k", "id": "7", "ticket": "x"}`, nil}, "400 Bad Request", "", []string{`ticket is \"x\": send what the header Locker-Ticket of GET /lock/NAME?ticket=true had`}},
		{"ticket empty", nil, apiCall{put, "/lock/unused", `{"key": "k", "id": "7", "ticket": ""}`, nil}, "400 Bad Request", "", []string{"ticket is empty"}},
		{"ticket without id", nil, apiCall{put, "/lock/unused", `{"key": "k", "ticket": "3.1"}`, nil}, "400 Bad Request", "", []string{"ticket goes with an id"}},
		{"release before the take arrives", nil, apiCall{del, "/lock/late", `{"key": "k", "id": "7", "own": true, "ticket": "3.2"}`, nil}, "200 OK", "", []string{"never got lock late"}},
		{"take after its release", nil, apiCall{put, "/lock/late", `{"key": "k", "id": "7", "ticket": "3.1", "wait": "30s"}`, nil}, "423 Locked", "Retry-After 1",
			[]string{`"error":"the claim of k on lock late was released or withdrawn after this request was sent: nothing was taken"`, `"ended":true`, `"lock":{`}},
		{"take a slot", []apiCall{{put, "/lock/slots", `{"key": "k", "locked_by": "a", "slots": 2, "reason": "a release"}`, nil}},
			apiCall{put, "/lock/slots", `{"key": "k", "locked_by": "b", "slots": 2}`, nil}, "200 OK", "", []string{`,"slot":2,"lock":`, `"slot":1,"slots":2,"reason":"a release"}`}},
		{"take a slot too many", nil, apiCall{put, "/lock/slots", `{"key": "k", "locked_by": "c"}`, nil}, "423 Locked", "",
			[]string{`by a since 20`, `Z: a release and b since`, `; the key fits, but as many hold the lock as their slots, or those of this claim, allow"`}},
		{"an empty body", nil, apiCall{put, "/lock/none", ``, nil}, "400 Bad Request", "", []string{`send a body such as {\"key\": \"deploy\"}`}},
		{"a form", nil, apiCall{put, "/lock/none", `key=deploy`, nil}, "400 Bad Request", "", []string{`send a body such as {\"key\": \"deploy\"}`}},
		{"an empty release", nil, apiCall{del, "/lock/none", ``, nil}, "400 Bad Request", "", []string{`send a body such as {\"key\": \"deploy\"}`}},
		{"a wait in days", nil, apiCall{put, "/lock/none", `{"key": "k", "wait": "1d"}`, nil}, "400 Bad Request", "", []string{"the largest unit is h"}},
		{"a ttl without a unit", nil, apiCall{put, "/lock/none", `{"key": "k", "ttl": 60}`, nil}, "400 Bad Request", "", []string{`ttl`, `write a duration in quotes, such as \"60s\"`}},
		{"POST", nil, apiCall{"POST", "/lock/none", `{"key": "k"}`, nil}, "405 Method Not Allowed", "", []string{"PUT takes, DELETE releases, GET shows"}},
		{"slots of none", nil, apiCall{put, "/lock/none", `{"key": "k", "slots": 0}`, nil}, "400 Bad Request", "", []string{"slots is 0: it must be a whole number from 1 to 1000"}},
		{"slots of text", nil, apiCall{put, "/lock/none", `{"key": "k", "slots": "3"}`, nil}, "400 Bad Request", "", []string{"write a whole number, such as 3"}},
		{"slots of a half", nil, apiCall{put, "/lock/none", `{"key": "k", "slots": 2.5}`, nil}, "400 Bad Request", "", []string{"write a whole number, such as 3"}},
		{"a reason of two lines", nil, apiCall{put, "/lock/none", `{"key": "k", "reason": "a\nb"}`, nil}, "400 Bad Request", "", []string{"reason has a control character"}},
		{"a long reason", nil, apiCall{put, "/lock/none", `{"key": "k", "reason": "` + strings.Repeat("r", 256) + `"}`, nil}, "400 Bad Request", "", []string{"reason has 256 bytes: at most 255 are allowed"}},
		{"a long reason of a force", nil, apiCall{del, "/lock/none?force=true", `{"reason": "` + strings.Repeat("r", 256) + `"}`, nil}, "400 Bad Request", "", []string{"reason has 256 bytes: at most 255 are allowed"}},
		{"take by key alone", nil, apiCall{put, "/lock/by-key", `{"key": "k"}`, nil}, "200 OK", "", []string{`"locked_by":{"k":1}`}},
		{"take twice", []apiCall{{put, "/lock/twice", jane, nil}}, apiCall{put, "/lock/twice", jane, nil}, "200 OK", "", []string{`"repeat":true`, `"slot":1`, `"token":8`}},
		{"take with the ttl", nil, apiCall{put, "/lock/ttl", `{"key": "k", "ttl": "1h"}`, nil}, "200 OK", "", []string{`"expires":"20`}},
		{"take what is held", []apiCall{{put, "/lock/held", jane, nil}}, apiCall{put, "/lock/held", `{"key": "other"}`, nil}, "423 Locked", "Retry-After 1",
			[]string{`"error":"lock held is held with the key k by jane since 20`, `Z https://ci.example/builds/12"`, `"lock":{"key":"k"`}},
		{"take after a wait", []apiCall{{put, "/lock/queue", jane, nil}}, apiCall{put, "/lock/queue", georgeWaits, nil}, "423 Locked", "Retry-After 1",
			[]string{`"error":"lock queue is held with the key k by jane since 20`, `"waiters":[{"key":"other","locked_by":"george","since":"20`, `"position":1`}},
		{"take as the second in line", []apiCall{{put, "/lock/line", jane, nil}, {put, "/lock/line", georgeWaits, nil}},
			apiCall{put, "/lock/line", `{"key": "third", "id": "9", "wait": "1ms"}`, nil}, "423 Locked", "Retry-After 1", []string{`"position":2`}},
		{"release", []apiCall{{put, "/lock/released", jane, nil}}, apiCall{del, "/lock/released", `{"key": "k", "locked_by": "jane"}`, nil},
			"200 OK", "Content-Type application/json", []string{`"response":"lock released released by jane"`, `"lock":{"key":"","locked_by":{},"holders":[],"waiters":[],`}},
		{"release what is free", nil, apiCall{del, "/lock/unused", `{"key": "k"}`, nil}, "200 OK", "", []string{`"response":"nothing to do: lock unused is free"`}},
		{"release by another key", []apiCall{{put, "/lock/theirs", jane, nil}}, apiCall{del, "/lock/theirs", `{"key": "other"}`, nil}, "423 Locked", "Retry-After 1",
			[]string{`"error":"the key other does not fit; lock theirs is held with the key k by jane since 20`, `"lock":{"key":"k"`}},
		{"release of another name", nil, apiCall{del, "/lock/theirs", `{"key": "k", "locked_by": "george"}`, nil}, "200 OK", "", []string{`nothing to do: george is not among the holders`}},
		{"release of its own", nil, apiCall{del, "/lock/theirs", `{"key": "k", "id": "9", "own": true}`, nil}, "200 OK", "", []string{`this claim never got lock theirs`}},
		{"release after one that found nothing", []apiCall{{del, "/lock/theirs", `{"key": "k", "locked_by": "jane", "id": "10", "own": true}`, nil}},
			apiCall{del, "/lock/theirs", `{"key": "k", "locked_by": "jane", "id": "10"}`, nil}, "200 OK", "",
			[]string{`this claim of jane on lock theirs was given back before, when it had nothing; lock theirs is held with the key k by jane since 20`}},
		{"release of a free lock after one that found nothing", []apiCall{{del, "/lock/unused", `{"key": "k", "id": "10", "own": true}`, nil}},
			apiCall{del, "/lock/unused", `{"key": "k", "id": "10"}`, nil}, "200 OK", "", []string{`was given back before, when it had nothing","lock"`}},
		{"release twice", []apiCall{{put, "/lock/gone", jane, nil}, {del, "/lock/gone", `{"key": "k", "locked_by": "jane", "id": "7"}`, nil}},
			apiCall{del, "/lock/gone", `{"key": "k", "locked_by": "jane", "id": "7"}`, nil}, "200 OK", "", []string{`nothing to do: this claim of jane on lock gone was released at `}},
		{"withdraw", []apiCall{{put, "/lock/withdrawn", jane, nil}, {put, "/lock/withdrawn", georgeWaits, nil}},
			apiCall{del, "/lock/withdrawn", `{"key": "other", "locked_by": "george", "id": "8"}`, nil}, "200 OK", "", []string{`the claim of george is withdrawn`, `"waiters":[]`}},
		{"force=false is a release", []apiCall{{put, "/lock/mild", jane, nil}}, apiCall{del, "/lock/mild?force=false", `{"key": "k", "locked_by": "jane"}`, nil}, "200 OK", "", []string{"released by jane"}},
		{"force", []apiCall{{put, "/lock/forced", jane, nil}}, apiCall{del, "/lock/forced?force=true", "", nil}, "200 OK", "", []string{`"response":"lock forced: the hold of jane is ended by force"`}},
		{"force of one", []apiCall{{put, "/lock/one", jane, nil}, {put, "/lock/one", `{"key": "k"}`, nil}},
			apiCall{del, "/lock/one?force=true", `{"locked_by": "jane", "reason": "her build hangs"}`, nil}, "200 OK", "", []string{`the hold of jane is ended`, `"locked_by":{"k":1}`}},
		{"force with a body of white space", nil, apiCall{del, "/lock/unused?force=true", " \n", nil}, "200 OK", "", []string{"nothing to do: lock unused is free"}},
		{"force of nobody there", []apiCall{{put, "/lock/else", jane, nil}}, apiCall{del, "/lock/else?force=true", `{"lock_by": "george"}`, nil}, "200 OK", "", []string{"george is not among the holders"}},
		{"force of another revision", []apiCall{{put, "/lock/moved", jane, nil}}, apiCall{del, "/lock/moved?force=true", "", []string{"If-Match", `"1"`}},
			"412 Precondition Failed", "", []string{`"error":"lock moved changed hands meanwhile, nothing was freed; lock moved is held`, `"lock":{"key":"k"`}},
		{"force of the revision seen", nil, apiCall{del, "/lock/unused?force=true", "", []string{"If-Match", `"0"`}}, "200 OK", "", []string{"lock unused is free"}},
		{"force of any revision", []apiCall{{put, "/lock/any", jane, nil}}, apiCall{del, "/lock/any?force=true", "", []string{"If-Match", "*"}}, "200 OK", "", []string{"ended by force"}},
		{"health", nil, apiCall{get, "/health", "", nil}, "200 OK", "Content-Type application/json", []string{`"status":"ok"`}},
		{"HEAD", nil, apiCall{"HEAD", "/lock/unused", "", nil}, "200 OK", `ETag "0"`, nil},
		{"unknown path", nil, apiCall{get, "/nowhere", "", nil}, "404 Not Found", "", []string{`"error":"there is nothing at this path: locks are at /locks and /lock/NAME`}},
		{"method for a lock", nil, apiCall{"POST", "/lock/a", "{}", nil}, "405 Method Not Allowed", "Allow DELETE, GET, PUT, HEAD", []string{`"error":"this path takes DELETE, GET, PUT: PUT takes, DELETE releases, GET shows"`}},
		{"a slash that a proxy decoded", nil, apiCall{get, "/lock/a/b", "", nil}, "404 Not Found", "", []string{"a slash in a name is %2F; if that is what you sent, a proxy on the way decoded it"}},
		{"method for the list", nil, apiCall{put, "/locks", "{}", nil}, "405 Method Not Allowed", "Allow GET, HEAD", []string{`"error":"this path takes GET"`}},
		{"method in lower case", nil, apiCall{"put", "/lock/a", "{}", nil}, "405 Method Not Allowed", "Allow DELETE, GET, PUT, HEAD", nil},
		{"OPTIONS", nil, apiCall{"OPTIONS", "/lock/a", "", nil}, "405 Method Not Allowed", "Allow DELETE, GET, PUT, HEAD", nil},
		{"another site's page", nil, apiCall{put, "/lock/a", jane, []string{"Sec-Fetch-Site", "cross-site"}}, "403 Forbidden", "", []string{`"error":"a page of another site must not change locks`, "(nginx: proxy_set_header Host $http_host)"}},
		{"a neighbouring site's page", nil, apiCall{del, "/lock/a", jane, []string{"Sec-Fetch-Site", "same-site"}}, "403 Forbidden", "", nil},
		{"another origin", nil, apiCall{put, "/lock/a", jane, []string{"Origin", "https://evil.example"}}, "403 Forbidden", "", nil},
		{"no origin at all", nil, apiCall{put, "/lock/a", jane, []string{"Origin", "null"}}, "403 Forbidden", "", nil},
		{"its own page", nil, apiCall{put, "/lock/page", jane, []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://" + s.address}}, "200 OK", "", nil},
		{"its own origin", nil, apiCall{put, "/lock/origin", jane, []string{"Origin", "http://" + s.address}}, "200 OK", "", nil},
		{"another site's page that reads", nil, apiCall{get, "/locks", "", []string{"Sec-Fetch-Site", "cross-site"}}, "200 OK", "", nil},
		{"body too large", nil, apiCall{put, "/lock/a", strings.Repeat(" ", maxBody+1), nil}, "413 Request Entity Too Large", "", []string{`"error":"the body has more than 64 KiB"`}},
		{"body just not too large", nil, apiCall{put, "/lock/large", strings.Repeat(" ", maxBody-len(jane)) + jane, nil}, "200 OK", "", nil},
		{"a form's content type", nil, apiCall{put, "/lock/form", jane, []string{"Content-Type", "application/x-www-form-urlencoded"}}, "200 OK", "", nil},
		{"wait empty", nil, apiCall{get, "/locks?wait=", "", nil}, "400 Bad Request", "", []string{`"error":"wait: `}},
		{"wait negative", nil, apiCall{get, "/locks?wait=-1s", "", nil}, "400 Bad Request", "", []string{`"error":"wait: `}},
		{"wait without a unit", nil, apiCall{get, "/locks?wait=30", "", nil}, "400 Bad Request", "", []string{`"error":"wait: `}},
		{"query of a take", nil, apiCall{put, "/lock/a?wait=1s", jane, nil}, "400 Bad Request", "", []string{`\"wait\" is unknown here`}},
		{"force neither true nor false", nil, apiCall{del, "/lock/a?force=1", "", nil}, "400 Bad Request", "", []string{`force is \"1\": it must be true or false`}},
		{"force empty", nil, apiCall{del, "/lock/a?force", "", nil}, "400 Bad Request", "", []string{`force is \"\": it must be true or false`}},
		{"force with a key", nil, apiCall{del, "/lock/a?force=true", `{"key": "k"}`, nil}, "400 Bad Request", "", []string{`unknown member \"key\"`}},
		{"If-Match without force", nil, apiCall{del, "/lock/a", jane, []string{"If-Match", `"1"`}}, "400 Bad Request", "", []string{"If-Match goes with force=true"}},
		{"If-Match on a take", nil, apiCall{put, "/lock/a", jane, []string{"If-Match", `"1"`}}, "400 Bad Request", "", []string{"If-Match goes with force=true"}},
		{"If-Match without quotes", nil, apiCall{del, "/lock/a?force=true", "", []string{"If-Match", "1"}}, "400 Bad Request", "", []string{"it must be one revision in quotes"}},
		{"If-Match weak", nil, apiCall{del, "/lock/a?force=true", "", []string{"If-Match", `W/"1"`}}, "400 Bad Request", "", []string{"it must be one revision in quotes"}},
		{"If-Match of two", nil, apiCall{del, "/lock/a?force=true", "", []string{"If-Match", `"1"`, "If-Match", `"2"`}}, "400 Bad Request", "", []string{"it must be one revision in quotes"}},
		{"If-Match of no number", nil, apiCall{del, "/lock/a?force=true", "", []string{"If-Match", `"x"`}}, "400 Bad Request", "", []string{"it must be one revision in quotes"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, c := range test.before {
				s.do(t, c.method, c.path, c.body, c.header...)
			}
			got := s.do(t, test.method, test.path, test.body, test.header...)
			if got.status != test.status {
				t.Errorf("got %s, want %s: %s", got.status, test.status, got.body)
			}
			if name, value, ok := strings.Cut(test.want, " "); ok && got.header.Get(name) != value {
				t.Errorf("%s is %q, want %q", name, got.header.Get(name), value)
			}
			for _, part := range test.parts {
				if !strings.Contains(got.body, part) {
					t.Errorf("the answer has no %s:\n%s", part, got.body)
				}
			}
			wantWellFormed(t, got)
		})
	}
}

// wantWellFormed checks what every answer has in common.
func wantWellFormed(t testing.TB, got exchange) {
	t.Helper()
	if got.header.Get("Cache-Control") != "no-store" || got.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("header %v", got.header)
	}
	if got.body == "" {
		return
	}
	var body map[string]any
	if err := json.Unmarshal([]byte(got.body), &body); err != nil {
		t.Errorf("%v: %s", err, got.body)
	}
	if got.header.Get("Content-Type") != "application/json" {
		t.Errorf("Content-Type is %q", got.header.Get("Content-Type"))
	}
	if sentence, isError := body["error"].(string); isError != (got.status >= "400") || isError && sentence == "" {
		t.Errorf("%s with error %q", got.status, sentence)
	}
}

// Some clients match the words "423 Locked".
func TestStatusLine(t *testing.T) {
	s := startServer(t, nil)
	s.do(t, put, "/lock/a", jane)
	conn := s.dial(t)
	fmt.Fprintf(conn, "PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", len(jane)-10, `{"key": "other"}`+strings.Repeat(" ", len(jane)-26))
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "HTTP/1.1 423 Locked\r\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestLockNames(t *testing.T) {
	s := startServer(t, nil)
	for _, test := range []struct{ segment, name, problem string }{
		{"plain", "plain", ""},
		{"a%2Fb", "a/b", ""},
		{"a%2fc", "a/c", ""},
		{"%2F", "/", ""},
		{"%61bc", "abc", ""},
		{"with%20space", "with space", ""},
		{"plus+sign", "plus+sign", ""},
		{"percent%25", "percent%", ""},
		{"question%3Fmark", "question?mark", ""},
		{"colon:semicolon;comma,", "colon:semicolon;comma,", ""},
		{"gr%C3%BCn", "grün", ""},
		{"blüh", "blüh", ""},
		{"team%2Fgrün", "team/grün", ""},
		{`a%2F"{b}"`, `a/"{b}"`, ""},
		{"...", "...", ""},
		{"locks", "locks", ""},
		{strings.Repeat("n", resource.MaxName), strings.Repeat("n", resource.MaxName), ""},
		{strings.Repeat("n", resource.MaxName+1), "", "the lock's name has 256 bytes: at most 255 are allowed"},
		{strings.Repeat("%C3%BC", 128), "", "the lock's name has 256 bytes"},
		{".", "", "is . or ..: choose another name"},
		{"..", "", "is . or ..: choose another name"},
		{"%2e", "", "is . or ..: choose another name"},
		{"%2E.", "", "is . or ..: choose another name"},
		{"%00", "", "has a control character"},
		{"a%0Ab", "", "has a control character"},
		{"%7f", "", "has a control character"},
		{"%C2%85", "", "has a control character"},
		{"%ff", "", "is not valid UTF-8"},
		{"a%C3", "", "is not valid UTF-8"},
		{"", "", "is empty"},
	} {
		t.Run(test.segment, func(t *testing.T) {
			text := fmt.Sprintf("PUT /lock/%s HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", test.segment, len(jane), jane)
			got := talk(t, s.dial(t), text)
			var body struct{ Response, Error string }
			if err := json.Unmarshal([]byte(got.body), &body); err != nil {
				t.Fatalf("%v: %s", err, got.body)
			}
			want := "lock " + test.name + " acquired by jane with the key k"
			if test.problem == "" && (got.status != "200 OK" || body.Response != want) {
				t.Errorf("got %s: %s", got.status, got.body)
			}
			if test.problem != "" && (got.status != "400 Bad Request" || !strings.Contains(body.Error, test.problem)) {
				t.Errorf("got %s: %s", got.status, got.body)
			}
		})
	}
}

func TestListIfNoneMatch(t *testing.T) {
	for _, test := range []struct {
		headers []string
		want    bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{`"17"`}, true},
		{[]string{`W/"17"`}, true},
		{[]string{`"16", "17"`}, true},
		{[]string{`"16",W/"17" ,"18"`}, true},
		{[]string{`"16"`, `"17"`}, true},
		{[]string{"*"}, true},
		{[]string{`17`}, false},
		{[]string{`"017"`}, false},
		{[]string{`"1"`, `"7"`}, false},
		{[]string{`"170"`}, false},
	} {
		if got := hasRevision(test.headers, 17); got != test.want {
			t.Errorf("%q: got %v", test.headers, got)
		}
	}
}

// A browser whose user gave no credentials gets words, not JSON.
func TestBrowserWithoutCredentials(t *testing.T) {
	s := startServer(t, withAuth())
	got := s.do(t, get, "/", "", "Accept", "text/html,*/*;q=0.8")
	if got.status != "401 Unauthorized" || got.header.Get("Content-Type") != "text/html; charset=utf-8" || got.header.Get("WWW-Authenticate") == "" || !strings.Contains(got.body, "<p>This locker wants a user and a password") {
		t.Errorf("got %s %v %s", got.status, got.header, got.body)
	}
	if got := s.do(t, get, "/locks", ""); !strings.HasPrefix(got.body, `{"error":`) {
		t.Errorf("a program got %s", got.body)
	}
}

// Answers about one lock do not grow with its queue.
func TestAnswersShowTheFirstWaiters(t *testing.T) {
	s := startServer(t, nil)
	s.do(t, put, "/lock/a", jane)
	const waiting = mostWaiters + 5
	for i := range waiting {
		got := s.do(t, put, "/lock/a", fmt.Sprintf(`{"key": "k%d", "id": "7", "wait": "1ms"}`, i))
		wantQueue(t, got, min(i+1, mostWaiters), i+1)
		if want := fmt.Sprintf(`"position":%d`, i+1); !strings.Contains(got.body, want) {
			t.Errorf("no %s in %s", want, got.body)
		}
	}
	wantQueue(t, s.do(t, get, "/lock/a", ""), mostWaiters, waiting)
	wantQueue(t, s.do(t, get, "/lock/a?waiters=all", ""), waiting, waiting)
	wantQueue(t, s.do(t, get, "/locks", ""), waiting, waiting)
	if got := s.do(t, get, "/lock/a?waiters=1", ""); got.status != "400 Bad Request" {
		t.Errorf("got %s", got.status)
	}
}

func wantQueue(t *testing.T, got exchange, shown, waiting int) {
	t.Helper()
	if n := strings.Count(got.body, `"key":"k`) - 1; n != shown || !strings.Contains(got.body, fmt.Sprintf(`"waiting":%d,`, waiting)) {
		t.Errorf("%d waiters shown, want %d of %d: %s", n, shown, waiting, got.body)
	}
}

// A list that waits is answered when something changes.
func TestListWaits(t *testing.T) {
	s := startServer(t, nil)
	conn := s.dial(t)
	io.WriteString(conn, "GET /locks?wait=60s HTTP/1.1\r\nHost: locker\r\nIf-None-Match: \"1\"\r\n\r\n")
	s.do(t, put, "/lock/a", jane)
	if got := nextAnswer(t, bufio.NewReader(conn)); got.status != "200 OK" || got.header.Get("ETag") != `"2"` || !strings.Contains(got.body, `"a":{"key":"k"`) {
		t.Errorf("got %s %v %s", got.status, got.header, got.body)
	}
}

// TestLimitsOfClaims fills a lock's queue and the whole locker up to what they
// take, and asks for one more.
func TestLimitsOfClaims(t *testing.T) {
	var waiters []string
	for i := range maxWaiters {
		waiters = append(waiters, fmt.Sprintf(`{"key": "other", "locked_by": "%d", "id": "x", "revision": %d}`, i, i+2))
	}
	saved := fmt.Sprintf(`{"version": 2, "revision": %d, "locks": {"full": {"key": "k", "revision": 1,
		"holders": [{"locked_by": "jane", "token": 1}], "waiters": [%s]}}}`, maxWaiters+1, strings.Join(waiters, ","))
	for _, test := range []struct {
		name   string
		claims int
		path   string
		want   int
	}{
		{"one lock's waiters", maxWaiters + 1, "/lock/full", http.StatusTooManyRequests},
		{"another lock has room", maxWaiters + 1, "/lock/free", http.StatusOK},
		{"the last claim of all", maxClaims - 1, "/lock/free", http.StatusOK},
		{"one claim too many", maxClaims, "/lock/free", http.StatusTooManyRequests},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _, err := decodeState([]byte(saved), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			s.claims = test.claims
			a := apiOf(t, s)
			w := httptest.NewRecorder()
			a.ServeHTTP(w, httptest.NewRequest(put, test.path, strings.NewReader(`{"key": "more", "id": "x", "wait": "1ms"}`)))
			if w.Code != test.want {
				t.Fatalf("got %d: %s", w.Code, w.Body)
			}
			var problem resource.Error
			if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil || w.Code != http.StatusOK && !strings.Contains(problem.Error, "more are not allowed") {
				t.Errorf("got %v: %.200s", err, w.Body)
			}
		})
	}
}

// apiOf serves that state, without a server around it.
func apiOf(t testing.TB, s *state) *api {
	t.Helper()
	return serveState(t, s, realSteps(), quiet())
}

// serveState is apiOf with these steps and that log. Nil is what the empty file
// has.
func serveState(t testing.TB, s *state, steps steps, log *slog.Logger) *api {
	t.Helper()
	st, loaded, err := openState(filepath.Join(t.TempDir(), "locker.json"), steps, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCommitter(st, cmp.Or(s, loaded), newMetrics(), log, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.run() }()
	t.Cleanup(func() {
		c.close()
		<-ended
		st.close()
	})
	return apiFor(c, log)
}

func apiFor(c *committer, log *slog.Logger) *api {
	a := newAPI(&config{}, c.metrics, log, time.Now)
	a.begin(c)
	return a
}

// TestPausingClient has one client come back every 30 s, as the original's
// does: it is not in the queue, so those who wait go before it, even one that is
// away for a moment when the lock is freed. When nobody waits, the lock is its at the
// next try.
func TestPausingClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := serveMemory(t, &config{})
		do := func(method, body string) exchange {
			return talk(t, m.dial(t), fmt.Sprintf("%s /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", method, len(body), body))
		}
		start := time.Now()
		at := func(second int) { time.Sleep(time.Until(start.Add(time.Duration(second) * time.Second))) }
		var tries []string
		var took time.Duration
		ended := make(chan struct{})
		do(put, jane)
		go func() {
			defer close(ended)
			for got := (exchange{}); got.status != "200 OK"; time.Sleep(30 * time.Second) {
				got = do(put, `{"key":"old","requestor":"old-job"}`)
				tries = append(tries, got.status)
				took = time.Since(start)
				if strings.Contains(got.body, `"position"`) {
					t.Errorf("it has a place: %s", got.body)
				}
			}
		}()
		at(10)
		go do(put, `{"key": "new", "id": "1", "wait": "12s"}`) // and keeps its place until 37
		at(20)
		if got := do(get, "").body; !strings.Contains(got, `"waiters":[{"key":"new",`) || strings.Contains(got, `"old`) {
			t.Errorf("who is refused waits: %s", got)
		}
		at(25)
		do(del, `{"key": "k", "locked_by": "jane"}`) // nobody is there to take it
		at(35)
		if got := do(put, `{"key": "new", "id": "1"}`); got.status != "200 OK" {
			t.Errorf("who waited got %s: %s", got.status, got.body)
		}
		at(70)
		do(del, `{"key": "new", "id": "1"}`)
		<-ended
		if want := []string{"423 Locked", "423 Locked", "423 Locked", "200 OK"}; !slices.Equal(tries, want) || took != 90*time.Second {
			t.Errorf("the client with pauses got %q, the last after %v", tries, took)
		}
	})
}

// A take refuses a lock's name that looks like another one or that proxies
// change, in one line; GET, DELETE and force take it, so that a hold of before
// can be seen and freed.
func TestLockNamesThatLookAlike(t *testing.T) {
	s := startServer(t, nil)
	for _, segment := range []string{
		"prod%20", "%20prod", "prod%C2%A0", "prod%E2%80%8B", "%E2%80%AEprod", "prod%EF%BB%BF", "prod%E2%80%A8",
		"zz%2F..%2Fprod", ".%2Fa", "a%2F.",
	} {
		path := "/lock/" + segment
		got := s.do(t, put, path, jane)
		if got.status != "400 Bad Request" || !strings.Contains(got.body, `"error":"the lock's name has `) || strings.Contains(got.body, `\n`) {
			t.Errorf("PUT %s: %s: %s", path, got.status, got.body)
		}
		for _, call := range []apiCall{{get, path, "", nil}, {del, path, jane[:strings.Index(jane, `, "link"`)] + "}", nil}, {del, path + "?force=true", "", nil}} {
			if got := s.do(t, call.method, call.path, call.body); got.status != "200 OK" {
				t.Errorf("%s %s: %s: %s", call.method, call.path, got.status, got.body)
			}
		}
	}
	if got := s.do(t, put, "/lock/prod", `{"key": "k", "id": "a\u200bb "}`); got.status != "200 OK" {
		t.Errorf("an id: %s", got.body)
	}
}

// A hold that a state file has under names which takes refuse is loaded, shown
// and released.
func TestHoldOfBeforeWithALookalike(t *testing.T) {
	const saved = `{"version": 2, "revision": 1, "locks": {"zz/../prod ": {"key": "k\u200b", "revision": 1,
		"holders": [{"locked_by": "\u202ejane", "id": "7", "since": "2026-11-23T10:00:00Z", "token": 1}]}}}`
	state := filepath.Join(t.TempDir(), "locker.json")
	if err := os.WriteFile(state, []byte(saved), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, map[string]string{"LOCKER_CONFIG": state})
	const path, body = "/lock/zz%2F..%2Fprod%20", `{"key": "k\u200b", "locked_by": "\u202ejane", "id": "7"}`
	if got := s.do(t, get, path, ""); !strings.Contains(got.body, "\u202ejane") {
		t.Errorf("GET: %s: %s", got.status, got.body)
	}
	if got := s.do(t, del, path, body); got.status != "200 OK" || !strings.Contains(got.body, "released by") {
		t.Errorf("DELETE: %s: %s", got.status, got.body)
	}
}

// A ticket that is refused because others ended the claim says so.
func TestTicketOfAForcedHold(t *testing.T) {
	s := startServer(t, nil)
	claim := fmt.Sprintf(`{"key": "k", "id": "7", "ticket": %q}`, s.do(t, get, "/lock/a?ticket=true", "").header.Get("Locker-Ticket"))
	s.do(t, put, "/lock/a", claim)
	s.do(t, del, "/lock/a?force=true", "")
	got := s.do(t, put, "/lock/a", claim)
	if want := `"error":"this claim of k on lock a was ended by force at 2`; got.status != "409 Conflict" || !strings.Contains(got.body, want) || !strings.Contains(got.body, "Z, after this ticket was given out: fetch another, then ask again") {
		t.Errorf("%s %s", got.status, got.body)
	}
}

// What a locker that passes requests on gives back is one hold, by its token: not
// another's under the same key and name.
func TestUndo(t *testing.T) {
	s := startServer(t, nil)
	const claim = `{"key": "k", "locked_by": "jane"}`
	s.do(t, put, "/lock/a", claim)
	for _, row := range []struct {
		token, by string
		held      bool
	}{{"1", "peer", true}, {"2", "", false}, {"2", "peer", false}} {
		header := []string{"Locker-Undo", row.token}
		if row.by != "" {
			header = append(header, "Locker-Forwarded", row.by)
		}
		got := s.do(t, del, "/lock/a", claim, header...)
		if held := strings.Contains(s.do(t, get, "/lock/a", "").body, `"jane":1`); got.status != "200 OK" || held != row.held {
			t.Errorf("%+v: %s %s, held %v", row, got.status, got.body, held)
		}
	}
	s.do(t, put, "/lock/a", claim)
	s.do(t, del, "/lock/a", claim, "Locker-Undo", "2", "Locker-Forwarded", "peer")
	if got := s.do(t, get, "/lock/a", ""); !strings.Contains(got.body, `"jane":1`) {
		t.Errorf("another's hold was freed: %s", got.body)
	}
}
