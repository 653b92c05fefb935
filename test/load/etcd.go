package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// This file is the bare transaction, which a locker with its state in etcd cannot
// beat.

// txn has an etcd at that URL write that many locks in each transaction, one
// after the other and guarded as a locker's are, and returns how many it did a
// second, or would have if all took as long as the one in the middle.
func txn(url string, locks int, length time.Duration, middle bool) (float64, error) {
	text := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	last := "0"
	var took []time.Duration
	for start := time.Now(); time.Since(start) < length; {
		puts := []string{fmt.Sprintf(`{"request_put":{"key":%q,"value":%q}}`, text("/bare/state"), text(`{"version":2,"revision":123456}`))}
		for i := range locks {
			value := fmt.Sprintf(`{"key":"k","revision":%d,"holders":[{"locked_by":"job","since":"2026-11-23T12:00:00.123Z","token":123456,"slot":1}]}`, i)
			puts = append(puts, fmt.Sprintf(`{"request_put":{"key":%q,"value":%q}}`, text(fmt.Sprint("/bare/lock/", i)), text(value)))
		}
		body := fmt.Sprintf(`{"compare":[{"key":%q,"target":"CREATE","create_revision":"0"},{"key":%q,"target":"MOD","mod_revision":%q}],"success":[%s]}`,
			text("/bare/leader"), text("/bare/state"), last, strings.Join(puts, ","))
		begun := time.Now()
		revision, succeeded, err := post(url+"/v3/kv/txn", body)
		if err != nil {
			return 0, err
		}
		if last = revision; !succeeded {
			last, err = found(url, text("/bare/state"))
			if err != nil {
				return 0, err
			}
			continue
		}
		took = append(took, time.Since(begun))
	}
	if !middle {
		return float64(len(took)) / length.Seconds(), nil
	}
	slices.Sort(took)
	return 1 / took[len(took)/2].Seconds(), nil
}

func post(url, body string) (revision string, succeeded bool, err error) {
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		return "", false, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	var answer struct {
		Header    struct{ Revision string }
		Succeeded bool
	}
	if err == nil {
		err = json.Unmarshal(data, &answer)
	}
	return answer.Header.Revision, answer.Succeeded, err
}

// found returns at which revision a key was written last.
func found(url, key string) (string, error) {
	resp, err := http.Post(url+"/v3/kv/range", "application/json", bytes.NewBufferString(`{"key":"`+key+`"}`))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer struct {
		KVs []struct {
			Mod string `json:"mod_revision"`
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || len(answer.KVs) == 0 {
		return "0", err
	}
	return answer.KVs[0].Mod, nil
}
