package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file plays pipelines through the built programs against the built
// server, the way Concourse runs them.

// programs is the folder of the built programs: locker, check, in and out.
type programs string

func buildPrograms(t testing.TB) programs {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s", "-o", dir+"/", ".", "./resource/check", "./resource/in", "./resource/out")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return programs(dir)
}

func (p programs) file(name string) string { return filepath.Join(string(p), name) }

// TestResource runs everything that needs the built programs, which are built
// once.
func TestResource(t *testing.T) {
	built := buildPrograms(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, programs)
	}{ // the long ones first: two run at a time on two processors
		{"aborts and lost answers", testAbortsAndLostAnswers},
		{"order", testOrder},
		{"abort of a slow server", testAbortOfASlowServer},
		{"exclusive jobs", testExclusiveJobs},
		{"shared jobs", testSharedJobs},
		{"check", testCheck},
		{"run twice", testRunTwice},
		{"abort while waiting", testAbortWhileWaiting},
		{"unlock outlives abort", testUnlockOutlivesAbort},
		{"own unlock of what never arrived", testOwnUnlockOfWhatNeverArrived},
		{"server down at first", testServerDownAtFirst},
		{"server restarted", testServerRestarted},
		{"answers lost", testAnswersLost},
		{"TLS, credentials and a prefix", testTLSCredentialsAndPrefix},
		{"size", testSize},
		{"cost", testCost},
		{"image", testImage},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, built)
		})
	}
}

// lockerServer is the built server as a process.
type lockerServer struct {
	program string
	env     []string
	address string
	cmd     *exec.Cmd
}

// startLocker starts the built server on a state file of its own. More
// environment can be given.
func (p programs) startLocker(t testing.TB, env ...string) *lockerServer {
	t.Helper()
	s := &lockerServer{program: p.file("locker"), env: append([]string{"LISTEN=127.0.0.1:0", "LOCKER_CONFIG=" + filepath.Join(t.TempDir(), "state.json")}, env...)}
	s.start(t)
	t.Cleanup(s.stop)
	return s
}

func (s *lockerServer) start(t testing.TB) {
	t.Helper()
	s.cmd = exec.Command(s.program)
	s.cmd.Env = s.env
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for log := bufio.NewScanner(stderr); log.Scan(); {
		if _, rest, ok := strings.Cut(log.Text(), "msg=start"); ok {
			_, rest, _ = strings.Cut(rest, "address=")
			s.address, _, _ = strings.Cut(rest, " ")
			go io.Copy(io.Discard, stderr)
			return
		}
		t.Log(log.Text())
	}
	t.Fatal("the server did not start")
}

func (s *lockerServer) stop() { s.end(syscall.SIGTERM) }

func (s *lockerServer) end(signal os.Signal) {
	s.cmd.Process.Signal(signal)
	s.cmd.Wait()
}

// restart starts the server again, where it was.
func (s *lockerServer) restart(t testing.TB) {
	t.Helper()
	s.env = append(s.env, "LISTEN="+s.address)
	s.start(t)
}

// lock returns the lock as the server shows it.
func (s *lockerServer) lock(t testing.TB, name string) resource.Lock {
	t.Helper()
	locks, _ := s.poll(t, "")
	return locks[name]
}

// poll returns all locks and the state's revision, once it is not the given
// one; after 5 s without a change, no locks.
func (s *lockerServer) poll(t testing.TB, revision string) (map[string]resource.Lock, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.address+"/locks?wait=5s", nil)
	if err != nil {
		t.Fatal(err)
	}
	if revision != "" {
		req.Header.Set("If-None-Match", revision)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	locks := map[string]resource.Lock{}
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(&locks); err != nil {
			t.Fatal(err)
		}
	}
	return locks, resp.Header.Get("ETag")
}

// await returns once the lock is as wanted.
func (s *lockerServer) await(t testing.TB, name string, wanted func(resource.Lock) bool) {
	t.Helper()
	revision := ""
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); {
		var locks map[string]resource.Lock
		if locks, revision = s.poll(t, revision); len(locks) > 0 && wanted(locks[name]) {
			return
		}
	}
	t.Fatalf("lock %s did not become what is waited for: %+v", name, s.lock(t, name))
}

func nobodys(l resource.Lock) bool { return len(l.Holders) == 0 && len(l.Waiters) == 0 }

func withWaiters(n int) func(resource.Lock) bool {
	return func(l resource.Lock) bool { return len(l.Waiters) == n && len(l.Holders) > 0 }
}

// pipeline runs steps with one resource. Its address may be a proxy's.
type pipeline struct {
	programs
	source map[string]any
}

func (p programs) pipeline(address string) *pipeline {
	return &pipeline{p, map[string]any{"locker_uri": "http://" + address, "lock_name": "myLock"}}
}

// step is one run of a program, as Concourse's.
type step struct {
	cmd            *exec.Cmd
	stdout, stderr lockedBuffer
	ended          chan struct{}
	at             time.Time // when it ended
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// begin starts a program of a build.
func (p *pipeline) begin(t testing.TB, program, build string, request map[string]any, args ...string) *step {
	t.Helper()
	request["source"] = p.source
	data, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	s := &step{cmd: exec.Command(p.file(program), args...), ended: make(chan struct{})}
	s.cmd.Env = []string{"ATC_EXTERNAL_URL=https://ci.example", "BUILD_ID=" + build, "BUILD_URL=https://ci.example/builds/" + build}
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = bytes.NewReader(data), &s.stdout, &s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.cmd.Wait()
		s.at = time.Now()
		close(s.ended)
	}()
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		<-s.ended
	})
	return s
}

func (p *pipeline) out(t testing.TB, build string, params map[string]any) *step {
	t.Helper()
	return p.begin(t, "out", build, map[string]any{"params": params}, t.TempDir())
}

func (s *step) abort() { s.cmd.Process.Signal(syscall.SIGTERM) }

// code returns the exit status once the step ended; killed is -1.
func (s *step) code() int {
	<-s.ended
	return s.cmd.ProcessState.ExitCode()
}

// said waits until the step's log has the words.
func (s *step) said(t testing.TB, words string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if strings.Contains(s.stderr.String(), words) {
			return
		}
	}
	t.Fatalf("the log does not say %q:\n%s", words, s.stderr.String())
}

// failed waits for the step, which must fail and answer nothing.
func (s *step) failed(t testing.TB, words string) {
	t.Helper()
	if s.code() != 1 || s.stdout.String() != "" || !strings.Contains(s.stderr.String(), words) {
		t.Errorf("exit status %d, answered %q, said %q: it should fail with %q", s.code(), s.stdout.String(), s.stderr.String(), words)
	}
}

// ok waits for the step, which must succeed, and returns its answer.
func (s *step) ok(t testing.TB) (answer struct {
	Version  map[string]string
	Metadata []struct{ Name, Value string }
}) {
	t.Helper()
	if code := s.code(); code != 0 {
		t.Fatalf("exit status %d: %s", code, s.stderr.String())
	}
	if err := json.Unmarshal([]byte(s.stdout.String()), &answer); err != nil {
		t.Fatalf("answer %q: %v", s.stdout.String(), err)
	}
	return answer
}

// put runs a put and its implicit get, and returns the owners that get wrote.
func (p *pipeline) put(t testing.TB, build string, params map[string]any) []string {
	t.Helper()
	return p.get(t, build, p.out(t, build, params).ok(t).Version)
}

func (p *pipeline) get(t testing.TB, build string, version map[string]string) []string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "get")
	if got := p.begin(t, "in", build, map[string]any{"version": version}, dir).ok(t); got.Version["ref"] != version["ref"] {
		t.Errorf("in answered version %v, given %v", got.Version, version)
	}
	owners, err := os.ReadFile(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(owners))
}

func (p *pipeline) check(t testing.TB, version map[string]string) (refs []string) {
	t.Helper()
	s := p.begin(t, "check", "", map[string]any{"version": version})
	var versions []map[string]string
	if code := s.code(); code != 0 || json.Unmarshal([]byte(s.stdout.String()), &versions) != nil {
		t.Fatalf("exit status %d: %s%s", code, s.stdout.String(), s.stderr.String())
	}
	for _, v := range versions {
		refs = append(refs, v["ref"])
	}
	return refs
}

func lockParams(key, lockedBy string) map[string]any {
	return paramsOf("lock", key, lockedBy)
}

func unlockParams(key, lockedBy string) map[string]any {
	return paramsOf("unlock", key, lockedBy)
}

func paramsOf(op, key, lockedBy string) map[string]any {
	params := map[string]any{"lock_op": op, "key": key}
	if lockedBy != "" {
		params["locked_by"] = lockedBy
	}
	return params
}

func ownUnlock(key string) map[string]any {
	return map[string]any{"lock_op": "unlock", "key": key, "own": true}
}

// The seed's first example: two jobs exclude each other.
func testExclusiveJobs(t *testing.T, built programs) {
	s := built.startLocker(t)
	p := built.pipeline(s.address)
	owners := p.put(t, "1", lockParams("exclusive-job-1", ""))
	if !slices.Equal(owners, []string{"exclusive-job-1"}) {
		t.Errorf("owners %q", owners)
	}
	second := p.out(t, "2", lockParams("exclusive-job-2", ""))
	second.said(t, "lock myLock is held with the key exclusive-job-1 by exclusive-job-1 since ")
	second.said(t, " https://ci.example/builds/1; exclusive-job-2 is next in line\n")
	p.out(t, "3", unlockParams("exclusive-job-3", "")).failed(t, "unlock myLock: the key exclusive-job-3 does not fit; lock myLock is held with the key exclusive-job-1 by exclusive-job-1 since")
	p.put(t, "1", unlockParams("exclusive-job-1", ""))
	owners = p.get(t, "2", second.ok(t).Version)
	if !slices.Equal(owners, []string{"exclusive-job-2"}) {
		t.Errorf("owners %q", owners)
	}
	if owners := p.put(t, "2", unlockParams("exclusive-job-2", "")); len(owners) != 0 {
		t.Errorf("owners %q of a free lock", owners)
	}
}

// The seed's second example: two jobs share the lock and exclude a third.
func testSharedJobs(t *testing.T, built programs) {
	s := built.startLocker(t)
	p := built.pipeline(s.address)
	p.put(t, "1", lockParams("can-coexist", "coexisting-1"))
	by := map[string]any{"lock_op": "lock", "key": "can-coexist", "lock_by": "coexisting-2"}
	if owners := p.put(t, "2", by); !slices.Equal(owners, []string{"coexisting-1", "coexisting-2"}) {
		t.Errorf("owners %q", owners)
	}
	exclusive := p.out(t, "3", lockParams("cannot-coexist", "exclusive-job"))
	s.await(t, "myLock", withWaiters(1))
	again := p.out(t, "4", lockParams("can-coexist", "coexisting-1"))
	again.said(t, "coexisting-1 is 2nd in line behind exclusive-job\n")
	p.put(t, "1", unlockParams("can-coexist", "coexisting-1"))
	if l := s.lock(t, "myLock"); len(l.Holders) != 1 || len(l.Waiters) != 2 {
		t.Errorf("lock %+v", l)
	}
	p.put(t, "2", unlockParams("can-coexist", "coexisting-2"))
	if owners := p.get(t, "3", exclusive.ok(t).Version); !slices.Equal(owners, []string{"exclusive-job"}) {
		t.Errorf("owners %q", owners)
	}
	p.put(t, "3", unlockParams("cannot-coexist", "exclusive-job"))
	again.ok(t)
	p.put(t, "4", unlockParams("can-coexist", "coexisting-1"))
	if l := s.lock(t, "myLock"); !nobodys(l) {
		t.Errorf("lock %+v", l)
	}
}

// check answers the lock's own changes and nothing else.
func testCheck(t *testing.T, built programs) {
	s := built.startLocker(t)
	p := built.pipeline(s.address)
	if refs := p.check(t, nil); !slices.Equal(refs, []string{"0"}) {
		t.Errorf("a lock never used: %q", refs)
	}
	first := p.out(t, "1", lockParams("k", "")).ok(t).Version
	other := built.pipeline(s.address)
	other.source["lock_name"] = "another/lock"
	other.out(t, "1", lockParams("k", "")).ok(t)
	for _, given := range []map[string]string{nil, first} {
		if refs := p.check(t, given); !slices.Equal(refs, []string{first["ref"]}) {
			t.Errorf("after another lock's change, given %v: %q", given, refs)
		}
	}
	second := p.out(t, "1", unlockParams("k", "")).ok(t).Version
	if refs := p.check(t, first); !slices.Equal(refs, []string{first["ref"], second["ref"]}) {
		t.Errorf("after a change: %q", refs)
	}
	neverUsed := built.pipeline(s.address)
	neverUsed.source["lock_name"] = "forgotten"
	if refs := neverUsed.check(t, second); !slices.Equal(refs, []string{second["ref"]}) {
		t.Errorf("a forgotten lock: %q", refs)
	}
}

// A step that Concourse runs a second time gets the lock it has.
func testRunTwice(t *testing.T, built programs) {
	s := built.startLocker(t)
	p := built.pipeline(s.address)
	first := p.out(t, "1", lockParams("k", "")).ok(t)
	again := p.out(t, "1", lockParams("k", ""))
	again.said(t, "before, by this same claim")
	if got := again.ok(t); fmt.Sprint(got) != fmt.Sprint(first) {
		t.Errorf("first %v, then %v", first, got)
	}
	waiter := p.out(t, "2", lockParams("k", ""))
	s.await(t, "myLock", withWaiters(1))
	waiter.cmd.Process.Kill()
	<-waiter.ended
	waiter = p.out(t, "2", lockParams("k", ""))
	waiter.said(t, "k is next in line")
	p.out(t, "1", unlockParams("k", "")).ok(t)
	waiter.ok(t)
}
