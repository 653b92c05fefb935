package resource

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// What a client writes is what the server reads.
func TestBodiesAreReadAsWritten(t *testing.T) {
	for _, take := range []Take{
		{Key: "k"},
		{Key: "k", LockedBy: "jane", ID: "7", Wait: Duration(30 * time.Second), TTL: Duration(90 * time.Minute), Link: "https://ci.example/builds/7"},
	} {
		wantReadAs(t, take, DecodeTake)
	}
	for _, release := range []Release{{Key: "k"}, {Key: "k", LockedBy: "jane", ID: "7", Own: true}} {
		wantReadAs(t, release, DecodeRelease)
	}
	for _, force := range []Force{{}, {LockedBy: "jane", Reason: "it hangs"}} {
		wantReadAs(t, force, DecodeForce)
	}
}

func wantReadAs[T comparable](t *testing.T, body T, decode func([]byte) (T, error)) {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decode(data); err != nil || got != body {
		t.Errorf("%s: read %+v, %v", data, got, err)
	}
}

// The aliases of locked_by are one thing, in every body.
func TestAliases(t *testing.T) {
	names := map[string]func(data string) (string, error){
		"take": func(data string) (string, error) {
			t, err := DecodeTake([]byte(`{"key":"k"` + data + "}"))
			return t.LockedBy, err
		},
		"release": func(data string) (string, error) {
			r, err := DecodeRelease([]byte(`{"key":"k"` + data + "}"))
			return r.LockedBy, err
		},
		"force": func(data string) (string, error) {
			f, err := DecodeForce([]byte(`{"reason":"it hangs"` + data + "}"))
			return f.LockedBy, err
		},
	}
	for _, row := range []struct{ data, name, problem string }{
		{``, "", ""},
		{`,"locked_by":"jane"`, "jane", ""},
		{`,"lock_by":"jane"`, "jane", ""},
		{`,"requestor":"jane"`, "jane", ""},
		{`,"requestor":"jane","lock_by":"jane","locked_by":"jane"`, "jane", ""},
		{`,"locked_by":"jane","lock_by":"george"`, "", "locked_by and lock_by are one thing, and disagree: give one of them"},
		{`,"requestor":"jane","lock_by":"george"`, "", "lock_by and requestor are one thing, and disagree: give one of them"},
		{`,"locked_by":"jane","requestor":""`, "", "locked_by and requestor are one thing, and disagree: give one of them"},
		{`,"lock_by":""`, "", "locked_by is empty: it must have 1 to 255 bytes"},
	} {
		for body, name := range names {
			got, err := name(row.data)
			if row.problem == "" && (err != nil || got != row.name) || row.problem != "" && (err == nil || err.Error() != row.problem) {
				t.Errorf("%s%s: %q, %v", body, row.data, got, err)
			}
		}
	}
}

// Every problem of a body is reported, each on a line.
func TestProblemsOfABody(t *testing.T) {
	take := func(data string) error { _, err := DecodeTake([]byte(data)); return err }
	release := func(data string) error { _, err := DecodeRelease([]byte(data)); return err }
	force := func(data string) error { _, err := DecodeForce([]byte(data)); return err }
	for _, row := range []struct {
		decode   func(data string) error
		data     string
		problems string
	}{
		{take, `{"lock_by":"","id":"","ttl":"1ms","link":"x"}`, `key is missing: say what the lock is locked with
locked_by is empty: it must have 1 to 255 bytes
id is empty: it must have 1 to 255 bytes
ttl is less than 1s: leave it out for a hold that does not expire
link is not an http or https URL of at most 2048 bytes, without credentials`},
		{take, `{"key":1,"own":true}`, `key: a JSON number is not what belongs here: write text, in quotes: "…"
unknown member "own": known are id, key, link, lock_by, locked_by, reason, requestor, slots, ticket, ttl, wait`},
		{release, `{"key":"","own":true}`, `key is empty: it must have 1 to 255 bytes
own goes with an id: that says what this build took`},
		{release, `{"key":"k","wait":"1s"}`, `unknown member "wait": known are id, key, lock_by, locked_by, own, requestor, ticket`},
		{force, `{"key":"k"}`, `unknown member "key": known are by, lock_by, locked_by, reason, requestor`},
		{force, `x`, `malformed JSON at byte 1: invalid character 'x' looking for beginning of value: send a body such as {"reason": "it hangs"}, or none`},
		{take, `"deploy"`, `this is not a JSON object: send a body such as {"key": "deploy"}`},
		{release, `null`, `this is not a JSON object: send a body such as {"key": "deploy"}`},
	} {
		if err := row.decode(row.data); err == nil || err.Error() != row.problems {
			t.Errorf("%s: got\n%v\nwant\n%s", row.data, err, row.problems)
		}
	}
	if err := force(" \n"); err != nil {
		t.Errorf("a force without a body: %v", err)
	}
}

// A duration is text, not negative, and read as it is written.
func TestDuration(t *testing.T) {
	for _, text := range []string{"90s", "1h30m", "0s", "1.5s"} {
		var d, again Duration
		if err := d.UnmarshalText([]byte(text)); err != nil {
			t.Error(err)
		}
		written, err := d.MarshalText()
		if err := again.UnmarshalText(written); err != nil || again != d {
			t.Errorf("%s is written %s", text, written)
		}
		if err != nil {
			t.Error(err)
		}
	}
	for text, want := range map[string]string{"": "is not a duration", "30": `it has no unit, such as the s of "60s"`, "1.5d": "the largest unit is h", "1d12h": "the largest unit is h", "1d": "the largest unit is h", "2w": "the largest unit is h", "-1s": "is negative"} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A take refuses names that look alike, in one line each; a release and a force
// take them, so that what has them can be freed. Ids may have anything.
func TestTakesOfLookalikes(t *testing.T) {
	for name, problem := range lookalikes {
		for _, member := range []string{"key", "locked_by", "lock_by", "requestor", "id"} {
			body := map[string]string{"key": "k", member: name}
			data, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			_, err = DecodeTake(data)
			if member == "id" && err != nil || member != "id" && (err == nil || !strings.Contains(err.Error(), " has "+problem) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("take with %s %q: %v", member, name, err)
			}
			if _, err := DecodeRelease(data); err != nil {
				t.Errorf("release with %s %q: %v", member, name, err)
			}
		}
		data, _ := json.Marshal(Force{LockedBy: name})
		if _, err := DecodeForce(data); err != nil {
			t.Errorf("force of %q: %v", name, err)
		}
	}
}
