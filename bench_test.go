package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// Each benchmark measures the locker beside its floor, the bare thing that it
// cannot beat, in one run, and reports their ratio. A time of its own says
// nothing.

// served is a locker on a real port, with its state on a real disk.
func served(b testing.TB) (url string, c *committer) {
	b.Helper()
	st, s, err := openState(filepath.Join(b.TempDir(), "locker.json"), realSteps(), time.Now())
	if err != nil {
		b.Fatal(err)
	}
	c, err = newCommitter(st, s, newMetrics(), quiet(), time.Now)
	if err != nil {
		b.Fatal(err)
	}
	listener, err := listen(b.Context(), "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, listener, &config{}, c, quiet()) }()
	b.Cleanup(func() {
		stop()
		<-done
		st.close()
	})
	return "http://" + listener.Addr().String(), c
}

// bare is a handler that reads and answers the JSON that the locker does, and
// does nothing else.
func bare(b testing.TB) string {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var take resource.Take
		if err := json.NewDecoder(r.Body).Decode(&take); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		now := time.Now().UTC().Truncate(time.Second)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(resource.Answer{Response: "lock acquired by " + take.Key, Token: 1, Lock: resource.Lock{
			Key: take.Key, LockedBy: map[string]int{take.Key: 1}, Revision: 1,
			Holders: []resource.Holder{{LockedBy: take.Key, Since: now, Token: 1}}, Waiters: []resource.Waiter{},
		}})
	}))
	b.Cleanup(srv.Close)
	return srv.URL
}

// client keeps a connection for each of 64 users.
func client() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
}

func call(b testing.TB, c *http.Client, method, url, body string) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		b.Error(err)
		return
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b.Errorf("%s %s %s: %s", method, url, body, resp.Status)
	}
}

// side is one of the things that a benchmark compares.
type side struct {
	name   string
	ops    int                  // in one run
	before func() (stop func()) // nil: nothing; not timed
	run    func()
	took   time.Duration // all runs
	runs   int
}

// perOp returns what an operation took.
func (s *side) perOp() time.Duration {
	return max(s.took/time.Duration(max(s.runs*s.ops, 1)), 1)
}

// inTurns runs the sides by turns, so that all of them see the same machine,
// and reports what an operation of each took.
func inTurns(b *testing.B, sides ...*side) {
	b.ReportAllocs()
	for b.Loop() {
		for _, s := range sides {
			stop := func() {}
			if s.before != nil {
				stop = s.before()
			}
			start := time.Now()
			s.run()
			s.took += time.Since(start)
			s.runs++
			stop()
		}
	}
	for _, s := range sides {
		b.ReportMetric(float64(s.perOp()), s.name+"-ns")
	}
	b.ReportMetric(0, "ns/op") // of all sides together: of no use
}

// bareCommit is the floor of a commit: the durable write alone, of that many bytes.
func bareCommit(b *testing.B, size, ops int) *side {
	st, _ := openAt(b, filepath.Join(b.TempDir(), "floor"))
	data := bytes.Repeat([]byte("x"), size)
	return &side{name: "commit", ops: ops, run: func() {
		for range ops {
			if err := st.replace(st.path, data); err != nil {
				b.Fatal(err)
			}
		}
	}}
}

// BenchmarkOneClient: a request takes at most one commit and 1.5 round trips.
// Ratio: what it takes over that; at most 1.
func BenchmarkOneClient(b *testing.B) {
	bareURL, c := bare(b), client()
	url, _ := served(b)
	n := 0
	commit := bareCommit(b, 160, 1)
	roundTrip := &side{name: "http", ops: 1, run: func() { call(b, c, "PUT", bareURL, `{"key": "k"}`) }}
	locker := &side{name: "locker", ops: 1, run: func() {
		call(b, c, []string{"PUT", "DELETE"}[n%2], url+"/lock/l", `{"key": "k"}`)
		n++
	}}
	inTurns(b, commit, roundTrip, locker)
	b.ReportMetric(float64(locker.perOp())/float64(commit.perOp()+roundTrip.perOp()*3/2), "ratio")
}

// of64 has each of 64 clients do something that often, at once.
func of64(times int, do func(client, n int)) func() {
	return func() {
		var all sync.WaitGroup
		for i := range 64 {
			all.Go(func() {
				for n := range times {
					do(i, n)
				}
			})
		}
		all.Wait()
	}
}

// Benchmark64Clients, each on its own lock. Ratio: requests per second over the
// lesser of the bare handler's and 64 times the bare commits'; at least 0.5.
func Benchmark64Clients(b *testing.B) {
	const each = 200
	bareURL, c := bare(b), client()
	url, _ := served(b)
	commit := bareCommit(b, 64*140, 50)
	answer := &side{name: "http", ops: 64 * each, run: of64(each, func(int, int) { call(b, c, "PUT", bareURL, `{"key": "k"}`) })}
	locker := &side{name: "locker", ops: 64 * each, run: of64(each, func(client, n int) {
		call(b, c, []string{"PUT", "DELETE"}[n%2], fmt.Sprintf("%s/lock/l%d", url, client), `{"key": "k"}`)
	})}
	inTurns(b, commit, answer, locker)
	b.ReportMetric(float64(max(answer.perOp(), commit.perOp()/64))/float64(locker.perOp()), "ratio")
}

// Benchmark64ClientsWatched, with the page open in 20 browsers and a scrape
// every second. Ratio: requests per second over those of the same clients when
// nobody looks; at least 0.8.
func Benchmark64ClientsWatched(b *testing.B) {
	const each = 200
	url, _ := served(b)
	c := client()
	load := of64(each, func(client, n int) {
		call(b, c, []string{"PUT", "DELETE"}[n%2], fmt.Sprintf("%s/lock/l%d", url, client), `{"key": "k"}`)
	})
	var lists atomic.Int64
	alone := &side{name: "alone", ops: 64 * each, run: load}
	watched := &side{name: "watched", ops: 64 * each, before: func() (stop func()) { return watch(b.Context(), url, &lists) }, run: load}
	inTurns(b, alone, watched)
	b.ReportMetric(float64(alone.perOp())/float64(watched.perOp()), "ratio")
	b.ReportMetric(float64(lists.Load())/watched.took.Seconds(), "lists/s")
}

// watch follows the list as 20 pages do, and scrapes, until stop.
func watch(ctx context.Context, url string, lists *atomic.Int64) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	for range 20 {
		watching.Go(func() { followList(ctx, url, lists) })
	}
	watching.Go(func() {
		for ctx.Err() == nil {
			lockertest.Send(ctx, "GET", url+"/metrics", "")
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	})
	return func() {
		cancel()
		watching.Wait()
	}
}

// followList reads the list of locks as the page does, on a connection of its
// own, but is back at once.
func followList(ctx context.Context, url string, lists *atomic.Int64) {
	c := &http.Client{Transport: &http.Transport{}}
	defer c.CloseIdleConnections()
	for tag := ""; ; lists.Add(1) {
		req, err := http.NewRequestWithContext(ctx, "GET", url+"/locks?wait=10s", nil)
		if err != nil {
			panic(err)
		}
		req.Header.Set("If-None-Match", tag)
		resp, err := c.Do(req)
		if err != nil {
			return
		}
		tag = resp.Header.Get("ETag")
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// BenchmarkContended: 64 clients take one lock, release it and queue again.
// Ratio: hand-offs per second over bare commits per second; at least 0.7.
func BenchmarkContended(b *testing.B) {
	const each = 30
	c := client()
	url, _ := served(b)
	url += "/lock/l"
	commit := bareCommit(b, 64*140, 100)
	locker := &side{name: "locker", ops: 64 * each, run: of64(each, func(client, _ int) {
		call(b, c, "PUT", url, fmt.Sprintf(`{"key": "k%d", "wait": "60s"}`, client))
		call(b, c, "DELETE", url, fmt.Sprintf(`{"key": "k%d"}`, client))
	})}
	inTurns(b, commit, locker)
	b.ReportMetric(float64(commit.perOp())/float64(locker.perOp()), "ratio")
}

// manyHeld returns a state with 10,000 locks held, of about 2 MB.
func manyHeld() *state {
	d := newDraft(&state{}, newEndings(), ticket{}, time.Now().UTC().Truncate(time.Millisecond), nil)
	for i := range 10_000 {
		c := of(fmt.Sprintf("deploy-%05d job-%05d https://ci.example#%05d", i, i, i))
		c.Link = fmt.Sprintf("https://ci.example/builds/%d", i)
		d.take(fmt.Sprintf("environment-%05d", i), c, false)
	}
	return &d.state
}

// Benchmark10000Held changes one lock while 10,000 are held. Ratio: commits per
// second over bare ones of that size; at least 0.5.
func Benchmark10000Held(b *testing.B) {
	s := manyHeld()
	commit := bareCommit(b, len(fileOf(s)), 1)
	st, _ := openAt(b, filepath.Join(b.TempDir(), "locker.json"))
	c, err := newCommitter(st, s, newMetrics(), quiet(), time.Now)
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.run() }()
	n := 0
	locker := &side{name: "locker", ops: 1, run: func() {
		apply := func(d *draft) outcome { return d.take("one", of("k a"), false) }
		if n++; n%2 == 0 {
			apply = func(d *draft) outcome { return d.release("one", release{identity: of("k a").identity}) }
		}
		if a := c.do(&request{lock: "one", ctx: b.Context(), apply: apply}); a.err != nil {
			b.Fatal(a.err)
		}
	}}
	inTurns(b, commit, locker)
	b.ReportMetric(float64(commit.perOp())/float64(locker.perOp()), "ratio")
	c.close()
	<-ended
}

// BenchmarkStart starts with 10,000 locks held, which takes less than 100 ms.
// The floor reads the file and checks that it is JSON.
func BenchmarkStart(b *testing.B) {
	path := filepath.Join(b.TempDir(), "locker.json")
	st, _ := openAt(b, path)
	if _, err := st.save(manyHeld()); err != nil {
		b.Fatal(err)
	}
	st.close()
	inTurns(b, &side{name: "valid", ops: 1, run: func() {
		data, err := os.ReadFile(path)
		if err != nil || !json.Valid(data) {
			b.Fatal("not valid", err)
		}
	}}, &side{name: "locker", ops: 1, run: func() {
		st, s, err := openState(path, realSteps(), time.Now())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := newCommitter(st, s, newMetrics(), quiet(), time.Now); err != nil {
			b.Fatal(err)
		}
		st.close()
	}})
}

// queue is clients that take a lock, release it and queue again, while the gate
// is open.
type queue struct {
	http     *http.Client
	url      string
	gate     sync.RWMutex
	handOffs atomic.Int64
}

// stand has one client stand in the queue until the context ends.
func (q *queue) stand(ctx context.Context, lock, n int) {
	url := fmt.Sprintf("%s/lock/l%02d", q.url, lock)
	who := fmt.Sprintf(`{"key": "k%04d", "id": "%d"`, n, n)
	for ctx.Err() == nil {
		if status, _ := lockertest.SendBy(ctx, q.http, http.MethodPut, url, who+`, "wait": "60s"}`); status != http.StatusOK {
			continue
		}
		q.gate.RLock()
		lockertest.SendBy(ctx, q.http, http.MethodDelete, url, who+`}`)
		q.gate.RUnlock()
		q.handOffs.Add(1)
	}
}

// BenchmarkManyWaiters: 5,000 clients wait for 50 locks, which are taken,
// released and queued for again. Ratio: hand-offs per second over bare commits
// per second of that file's size; at least 1, since a commit hands several over.
func BenchmarkManyWaiters(b *testing.B) {
	const locks, waiters, handOffs, files = 50, 5_000, 500, 11_000
	lockertest.AllowFiles(b, files)
	url, c := served(b)
	q := &queue{http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: waiters + locks}}, url: url}
	q.gate.Lock()
	ctx, stop := context.WithCancel(b.Context())
	var all sync.WaitGroup
	for i := range waiters + locks {
		all.Go(func() { q.stand(ctx, i%locks, i) })
	}
	lockertest.Eventually(b, "5,000 waiters", func() bool { return c.state().claims == waiters+locks })
	file, err := os.Stat(c.store.(*fileStore).path)
	if err != nil {
		b.Fatal(err)
	}
	commit := bareCommit(b, int(file.Size()), 20)
	locker := &side{name: "locker", ops: handOffs, run: func() {
		last := q.handOffs.Load() + handOffs
		q.gate.Unlock()
		for q.handOffs.Load() < last {
			time.Sleep(time.Millisecond)
		}
		q.gate.Lock()
	}}
	inTurns(b, commit, locker)
	b.ReportMetric(float64(commit.perOp())/float64(locker.perOp()), "ratio")
	b.ReportMetric(float64(time.Second)/float64(locker.perOp()), "hand-offs/s")
	stop()
	q.gate.Unlock()
	all.Wait()
	q.http.CloseIdleConnections()
}
