package lockertest

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// Contention is clients who want one lock, of which only one at a time must
// hold it.
type Contention struct {
	Ask      func(method, path, body string) (status int)
	HandOffs atomic.Int64
	holding  atomic.Int64
}

// Contend takes and releases the lock as the i-th of the clients, asking again
// with the same id until there is an answer, until ctx is done.
func (c *Contention) Contend(ctx context.Context, t testing.TB, i int) {
	until := func(method, body string) bool {
		for ctx.Err() == nil {
			if c.Ask(method, "/lock/contended", body) == http.StatusOK {
				return true
			}
			time.Sleep(5 * time.Millisecond)
		}
		return false
	}
	for n := 0; ctx.Err() == nil; n++ {
		who := fmt.Sprintf(`"key": "k%d", "locked_by": "job", "id": "%d-%d"`, i, i, n)
		if !until(http.MethodPut, `{`+who+`, "wait": "30s"}`) {
			return
		}
		if now := c.holding.Add(1); now != 1 {
			t.Errorf("%d hold the lock", now)
		}
		c.HandOffs.Add(1)
		c.holding.Add(-1)
		until(http.MethodDelete, `{`+who+`}`)
	}
}
