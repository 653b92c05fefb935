package history

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// This file is what one of a crowd does, and what it writes down.

// visitor is one of a crowd.
type visitor struct {
	*Crowd
	n       int
	random  *rand.Rand
	rounds  int
	told    []asked
	doubts  []asked // last releases of claims that a request without an answer may make again
	settled int     // of them
	cuts    int     // requests it gave up
	away    int     // times it left its place for longer than that is kept
}

// in100 reports true that many times of a hundred.
func (v *visitor) in100(times int) bool { return v.random.IntN(100) < times }

func (v *visitor) between(least, most time.Duration) time.Duration {
	return least + time.Duration(v.random.Int64N(int64(most-least)))
}

func (v *visitor) pause(least, most time.Duration) { time.Sleep(v.between(least, most)) }

// round is one claim, from its first request to its last.
func (v *visitor) round() {
	v.settle()
	v.rounds++
	claim := v.claim()
	from := len(v.told)
	holds := v.take(&claim)
	if holds {
		v.hold(claim)
	}
	claim.what, claim.own = "release", claim.ID != "" && (!holds || v.in100(40))
	v.release(claim)
	claim.sent = time.Since(v.start)
	if slices.ContainsFunc(v.told[from:], func(a asked) bool { return a.what == "take" && a.verdict == "" }) {
		v.doubts = append(v.doubts, claim)
	}
}

// settle releases once more what a request that was given up may have taken
// after it was released: the others would wait for it for ever.
func (v *visitor) settle() {
	for v.settled < len(v.doubts) && time.Since(v.start)-v.doubts[v.settled].sent > time.Second {
		v.release(v.doubts[v.settled])
		v.settled++
	}
}

// claim returns a new one. Some are exclusive and some share a key; a name that
// others have as well goes with an id, and with a ticket, which protects them
// when the locker has forgotten the id. Without an id, the key or the name is
// used by nobody else, so that it is safe to release it until there is an answer.
func (v *visitor) claim() asked {
	unique := fmt.Sprintf("%d-%d", v.n, v.rounds)
	a := asked{what: "take", lock: fmt.Sprintf("l%d", v.random.IntN(v.locks))}
	switch kind := v.random.IntN(10); {
	case kind < 5:
		a.identity = identity{"k" + unique, "job", unique}
		if v.in100(50) {
			a.ticket = v.ticket(a.lock)
		}
	case kind < 8:
		a.identity = identity{"shared", fmt.Sprintf("s%d", v.random.IntN(4)), unique}
		a.ticket = v.ticket(a.lock)
	case kind < 9:
		a.identity = identity{Key: "k" + unique, LockedBy: "job"}
	default:
		a.identity = identity{Key: "shared", LockedBy: "n" + unique}
	}
	if v.in100(3) {
		a.ttl = time.Second
	}
	return a
}

// url returns where the visitor asks next.
func (v *visitor) url() string {
	urls := *v.urls.Load()
	return urls[v.random.IntN(len(urls))]
}

// ticket fetches one.
func (v *visitor) ticket(lock string) string {
	for v.t.Context().Err() == nil {
		req, err := http.NewRequestWithContext(v.t.Context(), "GET", v.url()+"/lock/"+lock+"?ticket=true", nil)
		if err != nil {
			panic(err)
		}
		if resp, err := v.http.Do(req); err == nil {
			resp.Body.Close()
			if ticket := resp.Header.Get("Locker-Ticket"); ticket != "" {
				return ticket
			}
		}
		v.pause(time.Millisecond, 40*time.Millisecond)
	}
	return ""
}

// take asks for the lock until it is granted or the visitor has had enough. When
// the claim's ticket is too old, it gets another.
func (v *visitor) take(claim *asked) bool {
	tries := 1 + v.random.IntN(12)
	if claim.ID == "" {
		tries = 1 // each would be a claim of its own
	}
	for range tries {
		wait := time.Duration(0)
		if v.in100(85) {
			wait = v.between(10*time.Millisecond, 600*time.Millisecond)
		}
		got := v.askOrCut(*claim, wait, 20)
		switch {
		case got.verdict == granted, got.verdict == repeated:
			return true
		case got.verdict == queued && claim.ID != "" && (v.n == 0 && v.away == 0 || v.random.IntN(3000) == 0):
			v.goAway()
		case got.verdict == queued:
			v.lookAtTimes(claim.lock)
			v.forceAtTimes(got)
		case got.tooOld:
			claim.ticket = v.ticket(claim.lock)
		}
		v.pause(time.Millisecond, 40*time.Millisecond)
	}
	return false
}

// goAway leaves a place in the queue for longer than it is kept.
func (v *visitor) goAway() {
	v.away++
	select {
	case <-time.After(placePromised + time.Second):
	case <-v.leaving:
	}
}

// forceAtTimes ends holds of the lock that an answer shows, half the times only if
// it is still as it was shown.
func (v *visitor) forceAtTimes(seen asked) {
	if !v.in100(3) || seen.shown == nil {
		return
	}
	f := asked{what: "force", lock: seen.lock}
	if v.in100(50) {
		f.ifMatch = seen.shown.revision
		v.pause(0, 50*time.Millisecond) // in which it may change hands
	}
	if holders := seen.shown.holders; v.in100(50) && len(holders) > 0 {
		f.LockedBy = holders[0].lockedBy
	}
	v.askOrCut(f, 0, 10)
}

// hold keeps the lock for a moment, sometimes a long one, and for longer than its
// ttl if it has one, but for renewals.
func (v *visitor) hold(claim asked) {
	v.pause(0, 5*time.Millisecond)
	for claim.ttl > 0 && v.in100(70) {
		v.pause(claim.ttl/4, claim.ttl*5/4)
		if claim.ID != "" {
			v.askOrCut(claim, 0, 10)
		}
	}
	if v.in100(5) {
		v.pause(100*time.Millisecond, 600*time.Millisecond)
	}
	if claim.ID != "" && v.in100(40) {
		v.askOrCut(claim, 0, 10)
	}
	v.lookAtTimes(claim.lock)
}

func (v *visitor) lookAtTimes(lock string) {
	if v.in100(15) {
		v.ask(v.t.Context(), asked{what: "look", lock: lock}, 0)
	}
}

// release asks until there is an answer, and sometimes again.
func (v *visitor) release(claim asked) {
	for v.askOrCut(claim, 0, 10).verdict == "" && v.t.Context().Err() == nil {
		v.pause(time.Millisecond, 40*time.Millisecond)
	}
	if claim.ID != "" && v.in100(20) {
		v.askOrCut(claim, 0, 10)
	}
}

// askOrCut is ask, but that many times of a hundred the connection is dropped
// when it took too long.
func (v *visitor) askOrCut(a asked, wait time.Duration, cuts int) asked {
	ctx := v.t.Context()
	if v.in100(cuts) {
		cut, cancel := context.WithTimeout(ctx, v.between(0, 50*time.Millisecond))
		defer cancel()
		a := v.ask(cut, a, wait)
		if a.verdict == "" && cut.Err() != nil {
			v.cuts++
		}
		return a
	}
	return v.ask(ctx, a, wait)
}

// ask sends a request and writes down what came of it.
func (v *visitor) ask(ctx context.Context, a asked, wait time.Duration) asked {
	method, body := "GET", []byte(nil)
	switch a.what {
	case "take":
		method = "PUT"
		body = encode(resource.Take{Key: a.Key, LockedBy: a.LockedBy, ID: a.ID, Ticket: a.ticket, Wait: resource.Duration(wait), TTL: resource.Duration(a.ttl)})
	case "release":
		method = "DELETE"
		body = encode(resource.Release{Key: a.Key, LockedBy: a.LockedBy, ID: a.ID, Ticket: a.ticket, Own: a.own})
	case "force":
		method = "DELETE"
		body = encode(resource.Force{LockedBy: a.LockedBy, Reason: "soak"})
	}
	url := v.url() + "/lock/" + a.lock
	if a.what == "force" {
		url += "?force=true"
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		panic(err)
	}
	if a.ifMatch > 0 {
		req.Header.Set("If-Match", fmt.Sprintf("%q", fmt.Sprint(a.ifMatch)))
	}
	a.sent = time.Since(v.start)
	status, data := lockertest.SendRequest(v.http, req)
	a.ended = time.Since(v.start)
	if err := a.read(status, data); err != nil {
		v.t.Errorf("%s %s %s: %d %s: %v", method, url, body, status, data, err)
	}
	v.told = append(v.told, a)
	return a
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	return data
}

// list shows all locks, as many answers.
func (v *visitor) list() map[string]resource.Lock {
	var sent, ended time.Duration
	status, data := 0, []byte(nil)
	for late := time.Now().Add(lockertest.Patience); status != http.StatusOK && time.Now().Before(late); {
		sent = time.Since(v.start)
		status, data = lockertest.SendBy(v.t.Context(), v.http, "GET", v.url()+"/locks", "")
		ended = time.Since(v.start)
	}
	locks := map[string]resource.Lock{}
	if err := json.Unmarshal(data, &locks); err != nil || status != http.StatusOK {
		v.t.Fatalf("list: %d %s %v", status, data, err)
	}
	for name, l := range locks {
		v.told = append(v.told, asked{lock: name, what: "look", sent: sent, ended: ended, verdict: looked, shown: viewOf(&l, true)})
	}
	return locks
}

// read reads an answer. An error says that it is none that a locker should give
// here.
func (a *asked) read(status int, data []byte) error {
	var answer struct {
		resource.Answer
		Position int    `json:"position"`
		Error    string `json:"error"`
	}
	into := any(&answer)
	if a.what == "look" {
		into = &answer.Lock
	}
	switch status {
	case 0, http.StatusServiceUnavailable:
		return nil
	case http.StatusConflict:
		a.tooOld = a.what == "take" && a.ticket != ""
		a.verdict = refused
		if !a.tooOld {
			return fmt.Errorf("unexpected")
		}
		return nil
	case http.StatusOK, http.StatusLocked:
	case http.StatusPreconditionFailed:
		if a.ifMatch == 0 {
			return fmt.Errorf("unexpected")
		}
	default:
		return fmt.Errorf("unexpected")
	}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(into); err != nil {
		return err
	}
	a.token, a.position, a.expired = answer.Token, answer.Position, answer.Ended == "expired"
	a.shown = viewOf(&answer.Lock, a.what == "look")
	a.verdict = a.judge(status, &answer.Answer)
	return nil
}

func (a *asked) judge(status int, answer *resource.Answer) verdict {
	switch {
	case a.what == "look":
		return looked
	case a.position > 0:
		return queued
	case status == http.StatusLocked, status == http.StatusPreconditionFailed:
		return refused
	case a.what == "take" && answer.Repeat:
		return repeated
	case a.what == "take":
		return granted
	case strings.HasPrefix(answer.Response, resource.NothingDone):
		return nothing
	case strings.Contains(answer.Response, "is withdrawn"):
		return withdrew
	}
	return released
}

// viewOf keeps of a lock what the checker looks at; the queue, which is long,
// only when asked to.
func viewOf(l *resource.Lock, queue bool) *view {
	v := &view{key: l.Key, revision: l.Revision}
	for _, h := range l.Holders {
		v.holders = append(v.holders, held{h.LockedBy, h.Token})
	}
	for _, w := range l.Waiters {
		if queue {
			v.waiters = append(v.waiters, identity{Key: w.Key, LockedBy: w.LockedBy})
		}
	}
	return v
}
