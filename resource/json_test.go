package resource

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestObject(t *testing.T) {
	for _, row := range []struct{ name, data, want string }{
		{"empty", `{}`, ""},
		{"values of every kind", ` { "a" : 1.5e3 , "b":"x\"},{\\" ,"c":[{"d":[]},"]"],"e":{"f":{}} , "g":true,"h":null}` + "\n", `a=1.5e3 b="x\"},{\\" c=[{"d":[]},"]"] e={"f":{}} g=true h=null`},
		{"an escaped name", `{"\u0061":1}`, "a=1"},
		{"a pair of surrogates", `{"a":"\ud83d\ude00 \\ud800"}`, `a="\ud83d\ude00 \\ud800"`},
		{"twice", `{"a":1,"a":2}`, `"a" is given twice`},
		{"twice, once escaped", `{"a":1,"\u0061":2}`, `"a" is given twice`},
		{"half a pair", `{"a":"\ud83d"}`, "half of an escaped surrogate"},
		{"the other half", `{"a":"\\\udE00"}`, "half of an escaped surrogate"},
		{"halves in the wrong order", `{"a":"\ude00\ud83d"}`, "half of an escaped surrogate"},
		{"no object", `[1]`, "not a JSON object"},
		{"nothing", ``, "is missing"},
		{"cut off", `{"a":`, "at byte 5"},
		{"more behind it", `{"a":1} {}`, "at byte 9"},
		{"not UTF-8", "{\"a\":\"\xff\"}", "not valid UTF-8"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var got []string
			err := Object([]byte(row.data), func(name string, value json.RawMessage, offset int) error {
				if !strings.HasPrefix(row.data[offset:], string(value)) {
					t.Errorf("%s is not at byte %d", value, offset)
				}
				got = append(got, name+"="+string(value))
				return nil
			})
			if err != nil && (row.want == "" || !strings.Contains(err.Error(), row.want)) {
				t.Fatal(err)
			}
			if err == nil && strings.Join(got, " ") != row.want {
				t.Errorf("got %s, want %s", strings.Join(got, " "), row.want)
			}
		})
	}
}

func TestDecode(t *testing.T) {
	var text string
	var flag bool
	var wait Duration
	fields := map[string]any{"text": &text, "flag": &flag, "wait": &wait}
	if err := Decode([]byte(`{"text":"x","flag":true,"wait":"1m30s"}`), fields); err != nil {
		t.Fatal(err)
	}
	if text != "x" || !flag || time.Duration(wait) != 90*time.Second {
		t.Errorf("read %q %t %v", text, flag, time.Duration(wait))
	}
	err := Decode([]byte(`{"text":1,"flag":null,"wait":"-1s","Text":"x"}`), fields)
	for _, want := range []string{"text: a JSON number", "flag: null", `wait: "-1s" is negative`, `unknown member "Text": known are flag, text, wait`} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

// A value in the wrong place may be a secret: the errors of plain members do
// not repeat it.
func TestDecodeRepeatsNoValue(t *testing.T) {
	for _, value := range []string{`4711`, `-4711.5`, `1e4711`, `"4711"`, `[4711]`, `["4711"]`, `{"4711":"4711"}`, `"\ud8004711"`, `"4711`, `4711x`, `x4711`} {
		for _, field := range []any{new(string), new(*string), new(bool), new(int)} {
			err := Decode([]byte(`{"a":`+value+`}`), map[string]any{"a": field})
			if err != nil && strings.Contains(err.Error(), "4711") {
				t.Errorf("%s for a %T: %v", value, field, err)
			}
		}
		if err := Decode([]byte(`{"b":`+value+`}`), map[string]any{}); err == nil || strings.Contains(err.Error(), "4711") {
			t.Errorf("%s for nothing: %v", value, err)
		}
	}
}

// FuzzObject: what encoding/json takes for one object, Object splits into the
// same members.
func FuzzObject(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":[1,{"b":"}"}],"c":"\\\"","d":-0.1}`, ` {"a" : null } `, `{"a":"\ud83d\ude00"}`, `{"":{}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := map[string]string{}
		err := Object(data, func(name string, value json.RawMessage, _ int) error {
			got[name] = string(value)
			return nil
		})
		var want map[string]json.RawMessage
		if jsonErr := json.Unmarshal(data, &want); jsonErr != nil && err == nil {
			t.Fatalf("accepted %q: %v", data, jsonErr)
		}
		if err != nil {
			return
		}
		if len(got) != len(want) {
			t.Fatalf("%q: members %v, want %v", data, got, want)
		}
		for name, value := range want {
			if got[name] != string(value) {
				t.Fatalf("%q: %s is %s, want %s", data, name, got[name], value)
			}
		}
	})
}
