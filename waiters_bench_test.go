package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

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
		if status, _ := sendBy(ctx, q.http, http.MethodPut, url, who+`, "wait": "60s"}`); status != http.StatusOK {
			continue
		}
		q.gate.RLock()
		sendBy(ctx, q.http, http.MethodDelete, url, who+`}`)
		q.gate.RUnlock()
		q.handOffs.Add(1)
	}
}

// BenchmarkManyWaiters: 5,000 clients wait for 50 locks, which are taken,
// released and queued for again. Ratio: hand-offs per second over bare commits
// per second of that file's size; at least 1, since a commit hands several over.
func BenchmarkManyWaiters(b *testing.B) {
	const locks, waiters, handOffs, files = 50, 5_000, 500, 11_000
	allowFiles(b, files)
	url, c := served(b)
	q := &queue{http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: waiters + locks}}, url: url}
	q.gate.Lock()
	ctx, stop := context.WithCancel(b.Context())
	var all sync.WaitGroup
	for i := range waiters + locks {
		all.Go(func() { q.stand(ctx, i%locks, i) })
	}
	eventually(b, "5,000 waiters", func() bool { return c.state().claims == waiters+locks })
	file, err := os.Stat(c.store.path)
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
