package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// This file is GET /metrics, in Prometheus' text format 0.0.4
// (prometheus.io/docs/instrumenting/exposition_formats). What has happened is
// counted when it happens; how things stand is looked up in the committed
// state when somebody asks. No label has a value that a client chooses.

const metricsType = "text/plain; version=0.0.4; charset=utf-8"

// metrics counts what has happened since the start. It is safe for concurrent
// use.
type metrics struct {
	requests   sync.Map // requestKind to *atomic.Uint64
	committed  atomic.Uint64
	failed     atomic.Uint64
	stateBytes atomic.Int64 // of the file as committed last
	commitTime *histogram
	grantWait  *histogram

	several   bool             // there are other lockers
	takeovers atomic.Uint64    // of the locks, by this locker
	forwards  [3]atomic.Uint64 // by forwardResults
}

// requestKind is the labels of one counter of requests. Both come from closed
// sets: the table of routes, verdict and the statuses of the API.
type requestKind struct{ op, result string }

// newMetrics returns counters at zero. The buckets of a commit go from a fast
// disk to one that hangs, those of a wait from "was free" to a day.
func newMetrics() *metrics {
	return &metrics{
		commitTime: newHistogram(.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10),
		grantWait:  newHistogram(.1, 1, 5, 15, 60, 300, 900, 1800, 3600, 3*3600, 12*3600, 24*3600),
	}
}

// request counts one that is about to be answered.
func (m *metrics) request(op, result string) {
	kind := requestKind{op, result}
	n, ok := m.requests.Load(kind)
	if !ok {
		n, _ = m.requests.LoadOrStore(kind, new(atomic.Uint64))
	}
	n.(*atomic.Uint64).Add(1)
}

// requestKinds returns those that were counted, in a fixed order.
func (m *metrics) requestKinds() []requestKind {
	var kinds []requestKind
	m.requests.Range(func(kind, _ any) bool {
		kinds = append(kinds, kind.(requestKind))
		return true
	})
	slices.SortFunc(kinds, func(a, b requestKind) int {
		return cmp.Or(cmp.Compare(a.op, b.op), cmp.Compare(a.result, b.result))
	})
	return kinds
}

// commit counts one that took that long and wrote that many bytes.
func (m *metrics) commit(took time.Duration, size int, err error) {
	m.commitTime.observe(took)
	if err != nil {
		m.failed.Add(1)
		return
	}
	m.committed.Add(1)
	m.stateBytes.Store(int64(size))
}

// grants observes how long the claims that were granted had waited.
func (m *metrics) grants(events []event) {
	for _, e := range events {
		if e.what == "grant" {
			m.grantWait.observe(e.lasted)
		}
	}
}

// forwardResults are what becomes of requests that are passed on to the leader.
var forwardResults = [...]string{"answered", "not_done", "unknown"}

// forward counts a request that was to be passed on.
func (m *metrics) forward(err error) {
	switch {
	case err == nil:
		m.forwards[0].Add(1)
	case errors.Is(err, errNotDone):
		m.forwards[1].Add(1)
	default:
		m.forwards[2].Add(1)
	}
}

// histogram counts durations by upper bounds in seconds.
type histogram struct {
	bounds []float64
	counts []atomic.Uint64 // not cumulative; one more than bounds, for what is beyond the last
	sum    atomic.Int64    // nanoseconds
}

func newHistogram(bounds ...float64) *histogram {
	return &histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

func (h *histogram) observe(d time.Duration) {
	d = max(d, 0) // the wall clock may have been set back
	i := 0
	for i < len(h.bounds) && d.Seconds() > h.bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// exposed returns all metrics at that time of the wall clock. Without a state
// another locker leads.
func exposed(build string, s *state, m *metrics, cert *certificate, now time.Time) []byte {
	var e exposition
	e.family("locker_build_info", "gauge", "The version that runs; always 1.")
	e.sample("locker_build_info", 1, "version", build)
	if s != nil {
		e.state(s, now)
	}
	if m.several {
		e.several(s != nil, m)
	}
	e.counters(m)
	if cert != nil {
		e.gauge("locker_certificate_expiry_timestamp_seconds", "When the certificate expires, in seconds since 1970.", float64(cert.end().Unix()))
	}
	return e.Bytes()
}

// exposition is metrics in the text format. Every family is written once, its
// samples behind it.
type exposition struct{ bytes.Buffer }

var (
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

func (e *exposition) family(name, kind, help string) {
	fmt.Fprintf(e, "# HELP %s %s\n# TYPE %s %s\n", name, escapeHelp.Replace(help), name, kind)
}

// sample writes one value; labels are names and values in turn.
func (e *exposition) sample(name string, value float64, labels ...string) {
	e.WriteString(name)
	for i := 0; i < len(labels); i += 2 {
		separator := byte(',')
		if i == 0 {
			separator = '{'
		}
		e.WriteByte(separator)
		fmt.Fprintf(e, `%s="%s"`, labels[i], escapeLabel.Replace(labels[i+1]))
	}
	if len(labels) > 0 {
		e.WriteByte('}')
	}
	fmt.Fprintf(e, " %s\n", number(value))
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// gauge writes a family of one sample.
func (e *exposition) gauge(name, help string, value float64) {
	e.family(name, "gauge", help)
	e.sample(name, value)
}

// state writes how the locks stand at that time of the wall clock.
func (e *exposition) state(s *state, now time.Time) {
	var held, waiters int
	var longestHold, oldestWaiter time.Duration
	for l := range s.all() {
		if !l.free() {
			held++
		}
		for _, h := range l.Holders {
			longestHold = max(longestHold, now.Sub(h.Since))
		}
		waiters += len(l.Waiters)
		for _, w := range l.Waiters {
			oldestWaiter = max(oldestWaiter, now.Sub(w.Since))
		}
	}
	e.family("locker_locks", "gauge", "Locks, by whether somebody holds them. Free ones are remembered for a while.")
	e.sample("locker_locks", float64(held), "state", "held")
	e.sample("locker_locks", float64(s.size()-held), "state", "free")
	e.gauge("locker_waiters", "Claims that wait, of all locks.", float64(waiters))
	e.gauge("locker_oldest_waiter_seconds", "How long the claim has waited that has waited longest; 0 when none waits.", oldestWaiter.Seconds())
	e.gauge("locker_longest_hold_seconds", "How long the claim has held its lock that has held longest; 0 when none is held.", longestHold.Seconds())
}

// counters writes what has happened.
func (e *exposition) counters(m *metrics) {
	e.family("locker_requests_total", "counter", "Requests answered. The result is what the rules decided or, where they were not asked, the status.")
	for _, k := range m.requestKinds() {
		n, _ := m.requests.Load(k)
		e.sample("locker_requests_total", float64(n.(*atomic.Uint64).Load()), "op", k.op, "result", k.result)
	}
	e.family("locker_commits_total", "counter", "Replacements of the state file.")
	e.sample("locker_commits_total", float64(m.committed.Load()), "result", "ok")
	e.sample("locker_commits_total", float64(m.failed.Load()), "result", "failed")
	e.histogram("locker_commit_duration_seconds", "How long commits took, failed ones too.", m.commitTime)
	e.histogram("locker_grant_wait_seconds", "How long claims had waited when they were granted.", m.grantWait)
	e.gauge("locker_state_bytes", "Size of the state file.", float64(m.stateBytes.Load()))
}

// several writes what there is only with several lockers.
func (e *exposition) several(leads bool, m *metrics) {
	value := 0.0
	if leads {
		value = 1
	}
	e.gauge("locker_leader", "Whether this locker leads: the sum over all lockers is 1.", value)
	e.family("locker_takeovers_total", "counter", "How often this locker began to lead.")
	e.sample("locker_takeovers_total", float64(m.takeovers.Load()))
	e.family("locker_forwarded_total", "counter", "Requests passed on to the leader. not_done: it was not found; unknown: it was lost before it answered.")
	for i, result := range forwardResults {
		e.sample("locker_forwarded_total", float64(m.forwards[i].Load()), "result", result)
	}
}

func (e *exposition) histogram(name, help string, h *histogram) {
	e.family(name, "histogram", help)
	var count uint64
	for i := range h.counts {
		count += h.counts[i].Load()
		bound := "+Inf"
		if i < len(h.bounds) {
			bound = number(h.bounds[i])
		}
		e.sample(name+"_bucket", float64(count), "le", bound)
	}
	e.sample(name+"_sum", time.Duration(h.sum.Load()).Seconds())
	e.sample(name+"_count", float64(count))
}
