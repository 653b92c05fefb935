package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file measures the locker beside what it cannot beat, in one run and by
// turns, so that all see the same machine: the bare durable write, and a bare
// net/http server that reads and answers the same JSON. The clients, too, are a
// process of their own.

const turn = 300 * time.Millisecond // of each side; a benchmark takes as many turns as it has iterations

// bench starts what is measured.
type bench struct {
	b    *testing.B
	load string // the program
	bare string // the address of the bare server
}

func newBench(b *testing.B) *bench {
	b.Helper()
	r := &bench{b: b, load: filepath.Join(b.TempDir(), "load")}
	if out, err := exec.Command("go", "build", "-o", r.load, "./test/load").CombinedOutput(); err != nil {
		b.Fatalf("build: %v: %s", err, out)
	}
	server := exec.Command(r.load, "serve")
	stdout, err := server.StdoutPipe()
	if err == nil {
		err = server.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		server.Process.Kill()
		server.Wait()
	})
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	r.bare = strings.TrimSpace(address)
	return r
}

// side is one of the things that are measured by turns.
type side struct {
	args   []string // of the load
	beside []string // of a load that runs at the same time; nil: none
	total  float64
	turns  int
}

// rate is what a side did a second.
func (s *side) rate() float64 { return max(s.total/float64(max(s.turns, 1)), 1) }

func ask(address, kind string, clients int) *side {
	return &side{args: []string{"ask", address, kind, strconv.Itoa(clients), turn.String()}}
}

// disk is the bare durable write of a file of a locker's size.
func disk(b *testing.B, size int) *side {
	return &side{args: []string{"write", b.TempDir(), strconv.Itoa(size), turn.String()}}
}

// measure has the sides do what they do by turns.
func (r *bench) measure(b *testing.B, sides ...*side) {
	b.Helper()
	for b.Loop() {
		for _, s := range sides {
			s.total += r.turn(b, s)
			s.turns++
		}
	}
	b.ReportMetric(0, "ns/op") // of all sides together: of no use
}

func (r *bench) turn(b *testing.B, s *side) (rate float64) {
	b.Helper()
	if s.beside != nil {
		beside := exec.Command(r.load, s.beside...)
		if err := beside.Start(); err != nil {
			b.Fatal(err)
		}
		defer beside.Wait()
		defer beside.Process.Kill()
	}
	out, err := exec.Command(r.load, s.args...).Output()
	if failed, ok := err.(*exec.ExitError); ok {
		b.Fatalf("%v: %s", s.args, failed.Stderr)
	}
	if rate, err = strconv.ParseFloat(strings.TrimSpace(string(out)), 64); err != nil {
		b.Fatal(err)
	}
	return rate
}

// withHeld writes a state file with that many locks held, and returns its path.
func withHeld(b testing.TB, held int) (path string) {
	b.Helper()
	locks := map[string]any{}
	for i := range held {
		locks[fmt.Sprintf("environment-%05d", i)] = map[string]any{
			"key": fmt.Sprintf("deploy-%05d", i), "revision": i + 1, "holders": []any{map[string]any{
				"locked_by": fmt.Sprintf("job-%05d", i), "link": fmt.Sprintf("https://ci.example/builds/%d", i), "since": "2026-11-23T12:00:00Z", "token": i + 1,
			}},
		}
	}
	path = filepath.Join(b.TempDir(), "locker.json")
	lockertest.WriteFile(b, path, encode(map[string]any{"version": 2, "revision": held + 1, "locks": locks}))
	return path
}

// holding starts a locker of which that many locks are held, and returns how many
// bytes its state has.
func holding(b *testing.B, held int) (address string, size int) {
	b.Helper()
	path := withHeld(b, held)
	p := lockertest.Start(b, "LOCKER_CONFIG="+path)
	return p.Address, max(len(lockertest.Read(b, path)), 400) // 400: with what the clients take
}

// ofOne is how many requests one client can make a second that wait for the disk
// and for a bare answer, one after the other.
func ofOne(disk, bare *side) float64 { return 1 / (1/disk.rate() + 1/bare.rate()) }

func report(b *testing.B, locker, disk, bare *side, ratio float64) {
	b.ReportMetric(locker.rate(), "locker/s")
	b.ReportMetric(disk.rate(), "disk/s")
	if bare != nil {
		b.ReportMetric(bare.rate(), "bare/s")
	}
	b.ReportMetric(ratio, "ratio")
}

// BenchmarkRate: clients that take and release, each a lock of its own. Ratios:
// with one client, requests over those that wait for the disk and a bare answer
// (at least 0.85); with 8, over the lesser of bare ones and 0.6 of 8 in each write
// (0.8); with 64, over bare ones (0.5).
func BenchmarkRate(b *testing.B) {
	r := newBench(b)
	for _, clients := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			address, size := holding(b, 0)
			locker, disk, bare := ask(address, "own", clients), disk(b, size), ask(r.bare, "own", clients)
			r.measure(b, disk, bare, locker)
			most := map[int]float64{1: ofOne(disk, bare), 8: min(bare.rate(), 8*0.6*disk.rate()), 64: bare.rate()}
			report(b, locker, disk, bare, locker.rate()/most[clients])
		})
	}
}

// BenchmarkRateWithIDs: the same with a new id for each claim, and a ticket for a
// thousand. Ratio: over clients without (at least 0.9).
func BenchmarkRateWithIDs(b *testing.B) {
	r := newBench(b)
	for _, clients := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			with, size := holding(b, 0)
			without, _ := holding(b, 0)
			locker, plain, disk := ask(with, "ids", clients), ask(without, "own", clients), disk(b, size)
			r.measure(b, disk, plain, locker)
			report(b, locker, disk, nil, locker.rate()/plain.rate())
			b.ReportMetric(plain.rate(), "without/s")
		})
	}
}

// BenchmarkRateHeld: the same with other locks held. Ratios: with one client, over
// the bare writes of that size (at least 0.85); with 64, over the lesser of none
// held and 64 in each write (0.6).
func BenchmarkRateHeld(b *testing.B) {
	r := newBench(b)
	for _, held := range []int{1_000, 10_000, 19_000} {
		for _, clients := range []int{1, 64} {
			b.Run(fmt.Sprintf("held=%d/clients=%d", held, clients), func(b *testing.B) {
				full, size := holding(b, held)
				empty, _ := holding(b, 0)
				locker, disk, none := ask(full, "own", clients), disk(b, size), ask(empty, "own", clients)
				r.measure(b, disk, none, locker)
				most := disk.rate()
				if clients > 1 {
					most = min(none.rate(), float64(clients)*disk.rate())
				}
				report(b, locker, disk, nil, locker.rate()/most)
				b.ReportMetric(none.rate(), "none-held/s")
			})
		}
	}
}

// BenchmarkRateEtcd: a locker over an etcd of one member on this machine. Ratio:
// over a locker with a file.
func BenchmarkRateEtcd(b *testing.B) {
	r := newBench(b)
	for _, held := range []int{0, 1_000, 10_000} {
		for _, clients := range []int{1, 64} {
			b.Run(fmt.Sprintf("held=%d/clients=%d", held, clients), func(b *testing.B) {
				single, _ := holding(b, held)
				etcd, file := ask(leading(b, held), "own", clients), ask(single, "own", clients)
				r.measure(b, file, etcd)
				b.ReportMetric(etcd.rate(), "etcd/s")
				b.ReportMetric(file.rate(), "file/s")
				b.ReportMetric(etcd.rate()/file.rate(), "ratio")
			})
		}
	}
}

// leading starts a locker over etcd with that many locks held.
func leading(b *testing.B, held int) (address string) {
	b.Helper()
	ls := &lockers{etcd: lockertest.StartEtcd(b, 1)}
	ls.env = []string{"LOCKER_ETCD=" + ls.etcd.URLs[0]}
	transfer(b, ls.env, 0, "import", withHeld(b, held))
	address = freeAddress(b)
	ls.all = append(ls.all, lockertest.Start(b, append(ls.env, "LISTEN="+address, "LOCKER_ADVERTISE=http://"+address, "LOCKER_CONFIG=/nowhere/locker.json")...))
	ls.leader(b)
	return address
}

// BenchmarkHandOffs: 64 clients take one lock, release it and queue again. Ratio:
// hand-offs over the requests of one client that wait for the disk and a bare
// answer (at least 0.8).
func BenchmarkHandOffs(b *testing.B) {
	r := newBench(b)
	address, size := holding(b, 0)
	locker, disk, bare := ask(address, "contended", 64), disk(b, size), ask(r.bare, "own", 1)
	r.measure(b, disk, bare, locker)
	report(b, locker, disk, bare, locker.rate()/ofOne(disk, bare))
}

// BenchmarkCrowd: 5,050 clients do so with 50 locks. Ratio: hand-offs over bare
// writes of a file with their claims (at least 1, since a commit hands several
// over).
func BenchmarkCrowd(b *testing.B) {
	const clients, bytesEach = 5_050, 160
	lockertest.AllowFiles(b, 2*clients)
	r := newBench(b)
	address, _ := holding(b, 0)
	locker, disk := ask(address, "crowd", clients), disk(b, clients*bytesEach)
	locker.args[len(locker.args)-1] = (10 * turn).String() // until all have queued
	r.measure(b, disk, locker)
	report(b, locker, disk, nil, locker.rate()/disk.rate())
}

// BenchmarkWatched: 64 clients, with the page open in 20 browsers. Ratio: over
// the same when nobody looks (at least 0.8).
func BenchmarkWatched(b *testing.B) {
	r := newBench(b)
	address, size := holding(b, 0)
	alone, watched, disk := ask(address, "own", 64), ask(address, "own", 64), disk(b, size)
	watched.beside = []string{"ask", address, "follow", "20", "1h"}
	r.measure(b, disk, alone, watched)
	report(b, watched, disk, nil, watched.rate()/alone.rate())
	b.ReportMetric(alone.rate(), "alone/s")
}

// BenchmarkStart: from the start of the process until it serves, with 10,000
// locks held. Ratio: over the time in which the file is found to be JSON.
func BenchmarkStart(b *testing.B) {
	path := withHeld(b, 10_000)
	lockertest.Start(b, "LOCKER_CONFIG="+path).Kill() // it writes the file as it does
	data := []byte(lockertest.Read(b, path))
	var valid, locker time.Duration
	for b.Loop() {
		begun := time.Now()
		if !json.Valid(data) {
			b.Fatal("not JSON")
		}
		valid += time.Since(begun)
		begun = time.Now()
		p := lockertest.Start(b, "LOCKER_CONFIG="+path)
		locker += time.Since(begun)
		p.Kill()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(valid.Microseconds())/1000/float64(b.N), "valid-ms")
	b.ReportMetric(float64(locker.Microseconds())/1000/float64(b.N), "locker-ms")
	b.ReportMetric(float64(locker)/float64(valid), "ratio")
}
