package test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// This file puts the locker where the original one was, on its VM, and its unit
// before systemd.

const (
	vcap     = 1000 // whom BOSH runs jobs as
	jobUser  = "locker"
	jobPass  = "cAnArY-of-the-job"
	original = `{
    "free": {
        "locked_by": {"jane": 0},
        "key": ""
    },
    "myLock": {
        "locked_by": {"george": 2, "jane": 0},
        "key": "k"
    },
    "pair": {
        "locked_by": {"coexisting-1": 1, "coexisting-2": 1},
        "key": "can-coexist"
    }
}`
)

// vm is a machine on which BOSH runs the locker in place of the original.
type vm struct {
	*testing.T
	program string
	env     []string
	state   string
	log     string
	url     string
	client  *http.Client
	cmd     *exec.Cmd
}

// newVM makes the folders as the original's release does, /var/vcap being a
// temporary one, with a state file that the original wrote.
func newVM(t *testing.T) *vm {
	root := t.TempDir()
	v := &vm{T: t, program: filepath.Join(root, "packages/locker/bin/locker"), state: filepath.Join(root, "store/locker/locker.yml"), log: filepath.Join(root, "sys/log/locker/locker.log")}
	config := filepath.Join(root, "jobs/locker/config")
	for _, dir := range []string{filepath.Dir(v.program), filepath.Dir(v.state), filepath.Dir(v.log), config} {
		v.must(os.MkdirAll(dir, 0o755))
	}
	v.must(os.Chmod(filepath.Dir(root), 0o711)) // others may pass
	v.must(os.Link(lockertest.Program(t, "locker"), v.program))
	v.must(os.WriteFile(v.state, []byte(original), 0o644))
	certFile, keyFile := lockertest.NewCertificate(t, config, "locker")
	for _, name := range []string{filepath.Dir(v.state), v.state} {
		v.must(os.Chown(name, vcap, vcap))
	}
	for _, name := range []string{certFile, keyFile} {
		v.must(os.Chown(name, 0, vcap))
		v.must(os.Chmod(name, 0o640))
	}
	port := lockertest.FreePort(t)
	v.env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=en_US.UTF-8", "AUTH_USER=" + jobUser, "AUTH_PASS=" + jobPass,
		"SSL_CERT=" + certFile, "SSL_KEY=" + keyFile, "PORT=" + port, "LOCKER_CONFIG=" + v.state}
	v.reach("127.0.0.1:"+port, certFile)
	return v
}

// reach sets how the locker is asked: with the job's credentials, over TLS.
func (v *vm) reach(address, certFile string) {
	v.Helper()
	v.url = "https://" + jobUser + ":" + jobPass + "@" + address
	v.client = &http.Client{Transport: &http.Transport{TLSClientConfig: trusting(v, certFile)}}
}

func (v *vm) must(err error) {
	v.Helper()
	if err != nil {
		v.Fatal(err)
	}
}

// job returns the command that the job's script becomes: no arguments, another
// user, both outputs appended to one file that root opened.
func (v *vm) job() *exec.Cmd {
	v.Helper()
	log, err := os.OpenFile(v.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	v.must(err)
	v.Cleanup(func() { log.Close() })
	cmd := exec.Command(v.program)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = v.env, "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: vcap, Gid: vcap}}
	return cmd
}

func (v *vm) start() {
	v.Helper()
	v.cmd = v.job()
	v.must(v.cmd.Start())
	v.Cleanup(v.kill)
	lockertest.Eventually(v, "an answer", func() bool { return v.ask(v.Context(), "GET", "/health", "") == http.StatusOK })
}

func (v *vm) kill() {
	v.cmd.Process.Kill()
	v.cmd.Wait()
}

// stop ends the locker as the job's script does, which would send KILL after
// 25 s.
func (v *vm) stop() {
	v.Helper()
	start := time.Now()
	v.cmd.Process.Signal(syscall.SIGTERM)
	if err := v.cmd.Wait(); err != nil || time.Since(start) > 5*time.Second {
		v.Errorf("it ended after %v: %v\n%s", time.Since(start), err, lockertest.Read(v, v.log))
	}
}

func (v *vm) ask(ctx context.Context, method, path, body string) int {
	status, _ := lockertest.SendBy(ctx, v.client, method, v.url+path, body)
	return status
}

func (v *vm) lock(name string) (l resource.Lock, text string) {
	v.Helper()
	_, body := lockertest.SendBy(v.Context(), v.client, "GET", v.url+"/lock/"+name, "")
	v.must(json.Unmarshal(body, &l))
	return l, string(body)
}

func (v *vm) want(method, path, body string, status int) {
	v.Helper()
	if got := v.ask(v.Context(), method, path, body); got != status {
		v.Errorf("%s %s %s: %d, want %d", method, path, body, got, status)
	}
}

// wait waits for myLock, over restarts, says when it is granted and gives it back.
func (v *vm) wait(ctx context.Context, name string, granted chan<- string) {
	who := fmt.Sprintf(`{"key": %q, "id": %q`, name, name)
	until := func(method, body string) {
		for ctx.Err() == nil {
			switch status := v.ask(ctx, method, "/lock/myLock", body); status {
			case http.StatusOK:
				return
			case 0, http.StatusServiceUnavailable: // it restarts
				time.Sleep(5 * time.Millisecond)
			default:
				v.Errorf("%s %s: %d", method, body, status)
				return
			}
		}
	}
	until("PUT", who+`, "wait": "60s"}`)
	granted <- name
	until("DELETE", who+`}`)
}

// TestBOSHJob takes over from the original with its file, and is restarted
// under load while clients wait: who holds a lock holds it, and who waits keeps
// the place.
func TestBOSHJob(t *testing.T) {
	t.Parallel()
	lockertest.NeedRoot(t)
	v := newVM(t)
	v.start()
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop()
	contention := lockertest.Contention{Ask: func(method, path, body string) int { return v.ask(ctx, method, path, body) }}
	for i := range 3 {
		clients.Go(func() { contention.Contend(ctx, t, i) })
	}
	granted := make(chan string, 5)
	var names []string
	for i := range cap(granted) {
		names = append(names, fmt.Sprint("waiter-", i))
		clients.Go(func() { v.wait(ctx, names[i], granted) })
		lockertest.Eventually(t, "a waiter", func() bool { l, _ := v.lock("myLock"); return len(l.Waiters) == i+1 })
	}
	v.wantImported()
	for _, end := range []func(){v.stop, v.stop, v.kill, v.stop} {
		before := contention.HandOffs.Load()
		lockertest.Eventually(t, "load", func() bool { return contention.HandOffs.Load() > before+5 })
		v.keeps(func() {
			end()
			v.start()
		})
	}
	v.keeps(v.startTwice)
	v.want("DELETE", "/lock/myLock", `{"key": "k", "requestor": "george"}`, http.StatusOK)
	for i, name := range names {
		select {
		case got := <-granted:
			if got != name {
				t.Errorf("grant %d went to %s, want %s", i+1, got, name)
			}
		case <-time.After(lockertest.Patience):
			t.Fatalf("grant %d went to nobody", i+1)
		}
	}
	for _, name := range []string{"coexisting-1", "coexisting-2"} {
		v.want("PUT", "/lock/pair", `{"key": "k"}`, http.StatusLocked)
		v.want("DELETE", "/lock/pair", `{"key": "can-coexist", "requestor": "`+name+`"}`, http.StatusOK)
	}
	v.want("PUT", "/lock/pair", `{"key": "k"}`, http.StatusOK)
	stop()
	clients.Wait()
	v.stop()
	v.wantLog(5, 4)
	v.startRestoredByRoot()
}

// wantImported checks that what the original had is there, and the files.
func (v *vm) wantImported() {
	v.Helper()
	for name, want := range map[string]string{"free": `{"key":"","locked_by":{},`, "myLock": `{"key":"k","locked_by":{"george":1},`, "pair": `{"key":"can-coexist","locked_by":{"coexisting-1":1,"coexisting-2":1},`} {
		if _, got := v.lock(name); !strings.HasPrefix(got, want) {
			v.Errorf("lock %s is %s", name, got)
		}
	}
	if kept := lockertest.Read(v, v.state+".v1"); kept != original {
		v.Errorf("kept as .v1: %s", kept)
	}
	for _, name := range []string{v.state, v.state + ".v1", v.state + ".lock"} {
		info, err := os.Stat(name)
		v.must(err)
		if owner := info.Sys().(*syscall.Stat_t); info.Mode() != 0o600 || owner.Uid != vcap || owner.Gid != vcap {
			v.Errorf("%s is of mode %v and belongs to %d:%d", name, info.Mode(), owner.Uid, owner.Gid)
		}
	}
}

// keeps checks that what happens changes neither who holds a lock nor who waits
// for it, in which order.
func (v *vm) keeps(happens func()) {
	v.Helper()
	before := map[string]string{"myLock": "", "pair": ""}
	for name := range before {
		_, before[name] = v.lock(name)
	}
	happens()
	for name, was := range before {
		if _, is := v.lock(name); is != was {
			v.Errorf("lock %s was\n%sand is\n%s", name, was, is)
		}
	}
}

// startTwice starts the locker while it runs, as monit does that does not wait
// for the end of what it restarts.
func (v *vm) startTwice() {
	v.Helper()
	second := v.job()
	second.Run()
	if status := second.ProcessState.ExitCode(); status != 1 {
		v.Errorf("the second one's exit status is %d", status)
	}
	if log := lockertest.Read(v, v.log); !strings.Contains(log, " has the state file, it holds "+v.state+".lock: stop it") || !strings.Contains(log, "locker: another locker, process ") {
		v.Errorf("the second one does not say what is wrong:\n%s", log)
	}
}

// startRestoredByRoot starts the locker on a file that root has put back, and
// that it may not read.
func (v *vm) startRestoredByRoot() {
	v.Helper()
	v.must(os.Chown(v.state, 0, 0))
	job := v.job()
	job.Run()
	if status := job.ProcessState.ExitCode(); status != 2 {
		v.Errorf("the exit status is %d", status)
	}
	if log := lockertest.Read(v, v.log); !strings.Contains(log, "permission denied: give the file to the user that the locker runs as (chown)") {
		v.Errorf("it does not say what is wrong:\n%s", log)
	}
}

// wantLog checks that the log is of that many starts and stops and has no
// credential.
func (v *vm) wantLog(starts, stops int) {
	v.Helper()
	log := lockertest.Read(v, v.log)
	for words, want := range map[string]int{
		"msg=start version=": starts,
		"msg=stop\n":         stops,
		`msg="the original locker's state is imported" kept=` + v.state + ".v1": 1,
		jobPass: 0,
		base64.StdEncoding.EncodeToString([]byte(jobUser + ":" + jobPass)): 0,
	} {
		if got := strings.Count(log, words); got != want {
			v.Errorf("%q is in the log %d times, want %d:\n%s", words, got, want, log)
		}
	}
}
