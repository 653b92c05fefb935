package test

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file measures several lockers beside what they cannot beat.

// txn is etcd's bare transaction of that many locks; txn50 the one in the middle of
// all by their times.
func txn(ls *lockers, name string, locks int) *side {
	return &side{args: []string{name, ls.etcd.URLs[0], strconv.Itoa(locks), turn.String()}}
}

// BenchmarkSeveralOne: one client on the leader, one etcd. Ratio: over a client that
// waits for a bare transaction and 1.5 bare answers, one after the other (at least
// 1).
func BenchmarkSeveralOne(b *testing.B) {
	r, ls := newBench(b), startLockers(b, 1, 1)
	locker, bare, one := ask(ls.all[0].Address, "own", 1), ask(r.bare, "own", 1), txn(ls, "txn", 1)
	r.measure(b, one, bare, locker)
	b.ReportMetric(locker.rate(), "locker/s")
	b.ReportMetric(one.rate(), "txn/s")
	b.ReportMetric(bare.rate(), "bare/s")
	b.ReportMetric(locker.rate()*(1/one.rate()+1.5/bare.rate()), "ratio")
}

// BenchmarkSeveral: 64 clients, three etcds. Ratios: on the leader, over 64 in each
// bare transaction of 64 locks (at least 0.6); through another locker, over the
// leader (0.6); with 10,000 and 19,000 held beside, over none (0.9).
func BenchmarkSeveral(b *testing.B) {
	r, ls := newBench(b), startLockers(b, 3, 2)
	leader := ls.leader(b)
	here, there, bare := ask(ls.all[leader].Address, "own", 64), ask(ls.all[1-leader].Address, "own", 64), txn(ls, "txn50", 64)
	some := ask(startWith(b, withHeld(b, 10_000), 3, 1).all[0].Address, "own", 64)
	most := ask(startWith(b, withHeld(b, 19_000), 3, 1).all[0].Address, "own", 64)
	r.measure(b, bare, here, there, some, most)
	b.ReportMetric(here.rate(), "leader/s")
	b.ReportMetric(bare.rate(), "txn/s")
	b.ReportMetric(here.rate()/(64*bare.rate()), "ratio")
	b.ReportMetric(there.rate()/here.rate(), "standby-ratio")
	b.ReportMetric(some.rate()/here.rate(), "held-10000-ratio")
	b.ReportMetric(most.rate()/here.rate(), "held-19000-ratio")
}

// BenchmarkSeveralIdle reports what a locker takes that nobody asks: at most 1 % of
// a processor and 16 MiB.
func BenchmarkSeveralIdle(b *testing.B) {
	ls := startLockers(b, 1, 2)
	const length = 10 * time.Second
	for b.Loop() {
		for i, who := range []string{"leader", "standby"} {
			l := ls.all[(ls.leader(b)+i)%2]
			before := processorTime(b, l)
			time.Sleep(length)
			b.ReportMetric(100*(processorTime(b, l)-before).Seconds()/length.Seconds(), who+"-%")
			b.ReportMetric(footprintOf(b, l.Process).mib, who+"-MiB")
		}
	}
}

// processorTime returns how long a process has used a processor.
func processorTime(t testing.TB, l *lockertest.Locker) time.Duration {
	t.Helper()
	var pid, ticks, more int
	var skip string
	stat := lockertest.Read(t, fmt.Sprintf("/proc/%d/stat", l.Process.Pid))
	fields := make([]any, 15)
	for i := range fields {
		fields[i] = &skip
	}
	fields[0], fields[13], fields[14] = &pid, &ticks, &more
	if _, err := fmt.Sscan(stat, fields...); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ticks+more) * 10 * time.Millisecond
}

// TestTakeover has 10,000 locks held, ends the leader and then kills it: another
// grants within a second, and within the lease and a second and a half.
func TestTakeover(t *testing.T) {
	ls := startWith(t, withHeld(t, 10_000), 1, 3)
	for i, end := range []func(l *lockertest.Locker){(*lockertest.Locker).Stop, (*lockertest.Locker).Kill} {
		leader := ls.all[ls.leader(t)]
		other := ls.all[(ls.leader(t)+1)%3]
		start := time.Now()
		end(leader)
		ended := time.Now()
		lockertest.Eventually(t, "a grant", func() bool {
			status, _ := lockertest.Send(t.Context(), "PUT", other.URL+"/lock/l", fmt.Sprintf(`{"key": "k%d", "id": "1"}`, i))
			return status == 200
		})
		lockertest.Eventually(t, "a release", func() bool {
			status, _ := lockertest.Send(t.Context(), "DELETE", other.URL+"/lock/l", fmt.Sprintf(`{"key": "k%d", "id": "1"}`, i))
			return status == 200
		})
		took := time.Since(start)
		most := []time.Duration{time.Second, leaseTime + 1500*time.Millisecond}[i]
		t.Logf("it took %v, of which the end took %v", took, ended.Sub(start))
		if took > most+slowMachine {
			t.Errorf("it took %v, want at most %v", took, most)
		}
		leader.Restart()
	}
}

const slowMachine = time.Second // that the race detector and other tests may take

// TestLateTakeOfTheLastTerm sends what a term's ticket goes with in the next.
func TestLateTakeOfTheLastTerm(t *testing.T) {
	t.Parallel()
	ls := startLockers(t, 1, 2)
	old := ticketOf(t, ls.all[0])
	ls.all[0].Want("PUT", "/lock/l", fmt.Sprintf(`{"key": "k", "id": "1", "ticket": %q}`, old), 200)
	ls.all[0].Want("DELETE", "/lock/l", fmt.Sprintf(`{"key": "k", "id": "1", "ticket": %q}`, old), 200)
	for i := range 20 { // what etcd keeps of ended claims is full
		ls.all[0].Want("DELETE", "/lock/l", fmt.Sprintf(`{"key": "k", "id": "more%d", "own": true}`, i), 200)
	}
	leader := ls.leader(t)
	ls.all[leader].Stop()
	other := ls.all[1-leader]
	lockertest.Eventually(t, "the other leads", func() bool { return healthOf(other).Status == "ok" })
	other.Want("PUT", "/lock/l", fmt.Sprintf(`{"key": "k", "id": "1", "ticket": %q}`, old), 409)
	now := ticketOf(t, other)
	other.Want("PUT", "/lock/l", fmt.Sprintf(`{"key": "k", "id": "2", "ticket": %q}`, now), 200)
}

func ticketOf(t testing.TB, l *lockertest.Locker) string {
	t.Helper()
	resp, err := http.Get(l.URL + "/lock/l?ticket=true")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.Header.Get("Locker-Ticket")
}
