package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file tests the locker as a process: killed, limited and out of disk.

// process is a running locker.
type process struct {
	t   testing.TB
	cmd *exec.Cmd
	url string
	log *logBuffer
}

// logBuffer keeps what a process logs; safe for concurrent use.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

var addressInLog = regexp.MustCompile(`msg=start .*address=(\S+)`)

// startProcess starts the locker with its state at path and waits until it
// listens. The environment is what env adds to nothing.
func startProcess(t testing.TB, path string, env ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0]), log: &logBuffer{}}
	p.cmd.Env = append([]string{"LOCKER_TEST_MAIN=1", "LISTEN=127.0.0.1:0", "LOCKER_CONFIG=" + path}, env...)
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		fmt.Fprintln(p.log, lines.Text())
		if m := addressInLog.FindStringSubmatch(lines.Text()); m != nil {
			p.url = "http://" + m[1]
			break
		}
	}
	if p.url == "" {
		t.Fatalf("the locker did not start:\n%s", p.log)
	}
	go io.Copy(p.log, stderr)
	return p
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// footprint is what a process takes of the machine.
type footprint struct {
	files int     // that are open
	mib   float64 // of resident memory
}

func (p *process) footprint() footprint { return footprintOf(p.t, p.cmd) }

func footprintOf(t testing.TB, cmd *exec.Cmd) footprint {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
	files, err := os.ReadDir(dir + "fd")
	if err != nil {
		skip(t, err.Error())
	}
	var kib float64
	_, resident, _ := strings.Cut(read(t, dir+"status"), "VmRSS:")
	if _, err := fmt.Sscan(resident, &kib); err != nil {
		t.Fatal(err)
	}
	return footprint{len(files), kib / 1024}
}

// send sends a request and returns the status and the body; status 0 is no answer.
func send(ctx context.Context, method, url, body string) (int, []byte) {
	return sendBy(ctx, http.DefaultClient, method, url, body)
}

func sendBy(ctx context.Context, client *http.Client, method, url, body string) (int, []byte) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil
	}
	return resp.StatusCode, data
}

func (p *process) want(method, path, body string, status int) []byte {
	p.t.Helper()
	got, data := send(p.t.Context(), method, p.url+path, body)
	if got != status {
		p.t.Fatalf("%s %s %s: %d %s, want %d\n%s", method, path, body, got, data, status, p.log)
	}
	return data
}

// TestKill kills the locker again and again while clients take and release:
// what was acknowledged is there after the restart, the file always parses, and
// one lock that all of them want is never held twice.
func TestKill(t *testing.T) {
	const rounds, clients, contenders = 25, 8, 6
	path := filepath.Join(t.TempDir(), "locker.json")
	var url atomic.Value
	p := startProcess(t, path)
	url.Store(p.url)
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	var holding, handOffs atomic.Int64
	var all sync.WaitGroup
	for i := range contenders {
		all.Go(func() {
			contend(ctx, t, func(method, path, body string) int {
				status, _ := send(ctx, method, url.Load().(string)+path, body)
				return status
			}, i, &holding, &handOffs)
		})
	}
	journals := make([]journal, clients)
	for round := range rounds {
		loading, stopLoad := context.WithCancel(ctx)
		var load sync.WaitGroup
		for i := range clients {
			load.Go(func() { journals[i].work(loading, url.Load().(string), fmt.Sprintf("own-%d", i)) })
		}
		time.Sleep(time.Duration(20+round*4) * time.Millisecond)
		p.kill()
		stopLoad()
		load.Wait()
		if _, _, err := decodeState([]byte(read(t, path)), noon); err != nil {
			t.Fatalf("round %d: after the kill: %v", round, err)
		}
		p = startProcess(t, path)
		url.Store(p.url)
		for i := range clients {
			journals[i].compare(t, p, fmt.Sprintf("own-%d", i))
		}
	}
	stop()
	all.Wait()
	done := 0
	for _, j := range journals {
		done += j.acknowledged
	}
	if done < rounds*clients || handOffs.Load() < rounds {
		t.Errorf("only %d changes acknowledged and %d hand-offs in %d rounds", done, handOffs.Load(), rounds)
	}
	t.Logf("%d changes acknowledged, %d hand-offs, %d kills", done, handOffs.Load(), rounds)
}

// journal is what one client knows of its own lock.
type journal struct {
	held         bool   // by the last acknowledged answer
	token        uint64 // of the last grant
	inDoubt      bool   // a request had no answer
	acknowledged int
}

// work takes and releases a lock of its own until an answer is missing.
func (j *journal) work(ctx context.Context, url, lock string) {
	for ctx.Err() == nil {
		method := http.MethodPut
		if j.held {
			method = http.MethodDelete
		}
		status, body := send(ctx, method, url+"/lock/"+lock, `{"key": "k"}`)
		if status != http.StatusOK {
			j.inDoubt = true
			return
		}
		j.held = !j.held
		j.acknowledged++
		var a resource.Answer
		if json.Unmarshal(body, &a); j.held {
			j.token = a.Token
		}
	}
}

// compare looks at the lock after a restart. Only the request without an answer
// may have happened or not.
func (j *journal) compare(t *testing.T, p *process, lock string) {
	t.Helper()
	var l resource.Lock
	if err := json.Unmarshal(p.want("GET", "/lock/"+lock, "", http.StatusOK), &l); err != nil {
		t.Fatal(err)
	}
	held := len(l.Holders) == 1
	switch {
	case !j.inDoubt && held != j.held:
		t.Fatalf("%s: held is %t after the restart, acknowledged was %t", lock, held, j.held)
	case held && j.held && l.Holders[0].Token != j.token:
		t.Fatalf("%s: token %d after the restart, acknowledged was %d", lock, l.Holders[0].Token, j.token)
	case held && !j.held && l.Holders[0].Token <= j.token:
		t.Fatalf("%s: token %d after %d", lock, l.Holders[0].Token, j.token)
	}
	j.held, j.inDoubt = held, false
	if held {
		j.token = l.Holders[0].Token
	}
}

// contend takes and releases one lock that others want too, asking again with
// the same id until there is an answer, and counts who holds it.
func contend(ctx context.Context, t *testing.T, ask func(method, path, body string) (status int), i int, holding, handOffs *atomic.Int64) {
	until := func(method, body string) bool {
		for ctx.Err() == nil {
			if ask(method, "/lock/contended", body) == http.StatusOK {
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
		if now := holding.Add(1); now != 1 {
			t.Errorf("%d hold the lock", now)
		}
		handOffs.Add(1)
		holding.Add(-1)
		until(http.MethodDelete, `{`+who+`}`)
	}
}

// needRoot skips a test that only root can run, which CI does not accept.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		skip(t, "this needs root")
	}
}

// skip skips a test because of what the machine lacks; in CI, where everything
// has been installed, that is a failure.
func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("not to be skipped in CI: %s", why)
	}
	t.Skip(why)
}

// TestFullDisk fills the disk under a running locker and makes room again.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		skip(t, "mount tmpfs: "+err.Error())
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "locker.json")
	p := startProcess(t, path)
	p.want("PUT", "/lock/before", `{"key": "k"}`, http.StatusOK)
	file := read(t, path)

	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 64<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	full := p.want("PUT", "/lock/after", `{"key": "k"}`, http.StatusInsufficientStorage)
	if !bytes.Contains(full, []byte("disk is full")) {
		t.Errorf("answer %s", full)
	}
	p.want("DELETE", "/lock/before", `{"key": "k"}`, http.StatusInsufficientStorage)
	health := p.want("GET", "/health", "", http.StatusServiceUnavailable)
	if !bytes.Contains(health, []byte("no space left on device")) {
		t.Errorf("health %s", health)
	}
	if read(t, path) != file {
		t.Error("the file changed while the disk was full")
	}
	p.want("GET", "/lock/before", "", http.StatusOK)
	p.want("PUT", "/lock/before", `{"key": "other"}`, http.StatusLocked)

	os.Remove(filler)
	eventually(t, "health after room was made", func() bool {
		status, _ := send(t.Context(), "GET", p.url+"/health", "")
		return status == http.StatusOK
	})
	p.want("DELETE", "/lock/before", `{"key": "k"}`, http.StatusOK)
	p.want("PUT", "/lock/after", `{"key": "k"}`, http.StatusOK)
	onlyFiles(t, path)
}

// TestFileSizeLimit runs the locker under RLIMIT_FSIZE: it refuses what does
// not fit and goes on.
func TestFileSizeLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	p := startProcess(t, path, "LOCKER_TEST_FSIZE=2000")
	fitted := 0
	for ; ; fitted++ {
		status, body := send(t.Context(), "PUT", fmt.Sprintf("%s/lock/l%d", p.url, fitted), `{"key": "k"}`)
		if status == http.StatusInsufficientStorage {
			break
		}
		if status != http.StatusOK || fitted > 100 {
			t.Fatalf("lock %d: %d %s\n%s", fitted, status, body, p.log)
		}
	}
	p.want("DELETE", "/lock/l0", `{"key": "k"}`, http.StatusOK)
	p.want("GET", "/health", "", http.StatusOK)
	p.kill()
	s, _, err := decodeState([]byte(read(t, path)), noon)
	if err != nil || s.claims != fitted-1 {
		t.Errorf("%d claims saved, want %d; %v", s.claims, fitted-1, err)
	}
}

// TestLogThatNobodyReads fills the pipe behind the log: the locker works on,
// and stops when it is told to.
func TestLogThatNobodyReads(t *testing.T) {
	unread, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	probe.Close() // a free port, since the log that would tell is not read
	p := &process{t: t, cmd: exec.Command(os.Args[0]), url: "http://" + probe.Addr().String(), log: &logBuffer{}}
	p.cmd.Env = []string{"LOCKER_TEST_MAIN=1", "LISTEN=" + probe.Addr().String(), "LOCKER_CONFIG=" + filepath.Join(t.TempDir(), "locker.json")}
	p.cmd.Stderr = stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stderr.Close()
	t.Cleanup(p.kill)
	eventually(t, "an answer", func() bool {
		status, _ := send(t.Context(), "GET", p.url+"/health", "")
		return status == http.StatusOK
	})
	long := strings.Repeat("k", 250) // a pipe holds 64 KiB
	for range 100 {
		p.want("PUT", "/lock/l", `{"key": "`+long+`"}`, http.StatusOK)
		p.want("DELETE", "/lock/l", `{"key": "`+long+`"}`, http.StatusOK)
	}
	start := time.Now()
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("it ended after %v: %v", time.Since(start), err)
	}
}

// eventually waits, 10 s at most, for another process to get there.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// TestTerm stops the process as a BOSH VM does: the waiter is answered, the
// exit status is 0, and the next process has every place.
func TestTerm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	p := startProcess(t, path)
	p.want("PUT", "/lock/l", `{"key": "k"}`, http.StatusOK)
	waiting := make(chan int, 1)
	go func() {
		status, _ := send(t.Context(), "PUT", p.url+"/lock/l", `{"key": "other", "id": "1", "wait": "60s"}`)
		waiting <- status
	}()
	eventually(t, "a waiter", func() bool {
		return bytes.Contains(p.want("GET", "/lock/l", "", http.StatusOK), []byte("other"))
	})
	start := time.Now()
	p.cmd.Process.Signal(syscall.SIGTERM)
	if status := <-waiting; status != http.StatusServiceUnavailable {
		t.Errorf("the waiter got %d", status)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("exit: %v\n%s", err, p.log)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v to stop", took)
	}
	next := startProcess(t, path)
	body := next.want("PUT", "/lock/l", `{"key": "more"}`, http.StatusLocked)
	if !bytes.Contains(body, []byte(`"waiters":[{"key":"other"`)) {
		t.Errorf("after the restart: %s", body)
	}
}

// TestSeedPipelines plays the put steps of the two pipelines that the project
// was asked for with.
func TestSeedPipelines(t *testing.T) {
	p := startProcess(t, filepath.Join(t.TempDir(), "locker.json"))
	waitFor := func(body string) chan int {
		got := make(chan int, 1)
		go func() {
			status, _ := send(t.Context(), "PUT", p.url+"/lock/myLock", body)
			got <- status
		}()
		eventually(t, "a waiter", func() bool {
			return bytes.Contains(p.want("GET", "/lock/myLock", "", http.StatusOK), []byte(`"waiters":[{`))
		})
		return got
	}
	t.Run("exclusive", func(t *testing.T) {
		p.want("PUT", "/lock/myLock", `{"key": "exclusive-job-1"}`, http.StatusOK)
		second := waitFor(`{"key": "exclusive-job-2", "wait": "60s"}`)
		p.want("DELETE", "/lock/myLock", `{"key": "exclusive-job-1"}`, http.StatusOK)
		if status := <-second; status != http.StatusOK {
			t.Errorf("the second job got %d", status)
		}
		// To the letter, the second job unlocks with the first job's key.
		p.want("DELETE", "/lock/myLock", `{"key": "exclusive-job-1"}`, http.StatusLocked)
		p.want("DELETE", "/lock/myLock", `{"key": "exclusive-job-2"}`, http.StatusOK)
	})
	t.Run("shared", func(t *testing.T) {
		one, two := `{"key": "can-coexist", "locked_by": "coexisting-1"`, `{"key": "can-coexist", "lock_by": "coexisting-2"`
		p.want("PUT", "/lock/myLock", one+`}`, http.StatusOK)
		p.want("PUT", "/lock/myLock", two+`}`, http.StatusOK)
		exclusive := waitFor(`{"key": "cannot-coexist", "locked_by": "exclusive-job", "wait": "60s"}`)
		p.want("DELETE", "/lock/myLock", one+`}`, http.StatusOK)
		p.want("PUT", "/lock/myLock", one+`}`, http.StatusLocked) // the waiter is not passed
		p.want("DELETE", "/lock/myLock", two+`}`, http.StatusOK)
		if status := <-exclusive; status != http.StatusOK {
			t.Errorf("the exclusive job got %d", status)
		}
		p.want("PUT", "/lock/myLock", one+`}`, http.StatusLocked)
		p.want("DELETE", "/lock/myLock", `{"key": "cannot-coexist", "locked_by": "exclusive-job"}`, http.StatusOK)
		p.want("PUT", "/lock/myLock", one+`}`, http.StatusOK)
	})
}
