package lockertest

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Pipeline runs steps with one resource, by the built programs and in the way
// Concourse runs them.
type Pipeline struct{ Source map[string]any }

// NewPipeline returns a pipeline with the lock myLock of the locker at that
// address, which may be a proxy's.
func NewPipeline(address string) *Pipeline {
	return &Pipeline{map[string]any{"locker_uri": "http://" + address, "lock_name": "myLock"}}
}

// Step is one run of a program.
type Step struct {
	Stdout, Stderr *Log
	At             time.Time // when it ended
	cmd            *exec.Cmd
	ended          chan struct{}
}

// Begin starts a program of a build.
func (p *Pipeline) Begin(t testing.TB, program, build string, request map[string]any, args ...string) *Step {
	t.Helper()
	request["source"] = p.Source
	data, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	cmd := Command(t, program, "ATC_EXTERNAL_URL=https://ci.example", "BUILD_ID="+build, "BUILD_URL=https://ci.example/builds/"+build)
	cmd.Args = append(cmd.Args, args...)
	s := &Step{Stdout: NewLog(), Stderr: NewLog(), cmd: cmd, ended: make(chan struct{})}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(data), s.Stdout, s.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		s.At = time.Now()
		close(s.ended)
	}()
	t.Cleanup(func() {
		s.End(os.Kill)
		if strings.Contains(s.Stderr.String(), "DATA RACE") {
			t.Errorf("%s races:\n%s", program, s.Stderr)
		}
	})
	return s
}

// Out starts a put of a build.
func (p *Pipeline) Out(t testing.TB, build string, params map[string]any) *Step {
	t.Helper()
	return p.Begin(t, "out", build, map[string]any{"params": params}, t.TempDir())
}

// Abort does what Concourse does first to a step that is aborted.
func (s *Step) Abort() { s.cmd.Process.Signal(syscall.SIGTERM) }

// End signals the step and waits for its end.
func (s *Step) End(signal os.Signal) {
	s.cmd.Process.Signal(signal)
	<-s.ended
}

// Code returns the exit status once the step ended; killed is -1.
func (s *Step) Code() int {
	<-s.ended
	return s.cmd.ProcessState.ExitCode()
}

// Said waits until the step's log has the words.
func (s *Step) Said(t testing.TB, words string) {
	t.Helper()
	s.Stderr.Await(t, regexp.QuoteMeta(words))
}

// Failed waits for the step, which must fail and answer nothing.
func (s *Step) Failed(t testing.TB, words string) {
	t.Helper()
	if s.Code() != 1 || s.Stdout.String() != "" || !strings.Contains(s.Stderr.String(), words) {
		t.Errorf("exit status %d, answered %q, said %q: it should fail with %q", s.Code(), s.Stdout, s.Stderr, words)
	}
}

// OK waits for the step, which must succeed, and returns its answer.
func (s *Step) OK(t testing.TB) (answer struct {
	Version  map[string]string
	Metadata []struct{ Name, Value string }
}) {
	t.Helper()
	if code := s.Code(); code != 0 {
		t.Fatalf("exit status %d: %s", code, s.Stderr)
	}
	if err := json.Unmarshal([]byte(s.Stdout.String()), &answer); err != nil {
		t.Fatalf("answer %q: %v", s.Stdout, err)
	}
	return answer
}

// Put runs a put and its implicit get, and returns the owners that get wrote.
func (p *Pipeline) Put(t testing.TB, build string, params map[string]any) []string {
	t.Helper()
	return p.Get(t, build, p.Out(t, build, params).OK(t).Version)
}

// Get runs a get, and returns the owners that it wrote.
func (p *Pipeline) Get(t testing.TB, build string, version map[string]string) []string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "get")
	if got := p.Begin(t, "in", build, map[string]any{"version": version}, dir).OK(t); got.Version["ref"] != version["ref"] {
		t.Errorf("in answered version %v, given %v", got.Version, version)
	}
	return strings.Fields(Read(t, filepath.Join(dir, "lock")))
}

// Check runs a check, and returns the refs of its versions.
func (p *Pipeline) Check(t testing.TB, version map[string]string) (refs []string) {
	t.Helper()
	s := p.Begin(t, "check", "", map[string]any{"version": version})
	var versions []map[string]string
	if code := s.Code(); code != 0 || json.Unmarshal([]byte(s.Stdout.String()), &versions) != nil {
		t.Fatalf("exit status %d: %s%s", code, s.Stdout, s.Stderr)
	}
	for _, v := range versions {
		refs = append(refs, v["ref"])
	}
	return refs
}

// LockParams are those of a put that locks; lockedBy may be empty.
func LockParams(key, lockedBy string) map[string]any { return params("lock", key, lockedBy) }

// UnlockParams are those of a put that unlocks; lockedBy may be empty.
func UnlockParams(key, lockedBy string) map[string]any { return params("unlock", key, lockedBy) }

func params(op, key, lockedBy string) map[string]any {
	params := map[string]any{"lock_op": op, "key": key}
	if lockedBy != "" {
		params["locked_by"] = lockedBy
	}
	return params
}

// OwnUnlock are the parameters of a put that unlocks what its build locked.
func OwnUnlock(key string) map[string]any {
	return map[string]any{"lock_op": "unlock", "key": key, "own": true}
}
