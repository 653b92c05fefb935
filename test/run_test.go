package test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// This file is `locker run`, by the built program.

// runs are the runs of commands under the locks of a locker.
type runs struct {
	*lockertest.Locker
	t   *testing.T
	env []string
}

func newRuns(t *testing.T, env ...string) *runs {
	t.Helper()
	t.Parallel()
	s := lockertest.Start(t, env...)
	return &runs{s, t, []string{"LOCKER_URI=" + s.URL, "PATH=" + os.Getenv("PATH"), "USER=george"}}
}

// under is one `locker run`.
type under struct {
	*exec.Cmd
	t      *testing.T
	stdout *lockertest.Log
	stderr *lockertest.Log
	ended  chan time.Time
}

// start starts `locker run` with these arguments.
func (r *runs) start(args ...string) *under { return r.startWith(nil, args...) }

// startWith is start of a command that is changed before.
func (r *runs) startWith(change func(*exec.Cmd), args ...string) *under {
	r.t.Helper()
	u := &under{lockertest.Command(r.t, "locker", r.env...), r.t, lockertest.NewLog(), lockertest.NewLog(), make(chan time.Time, 1)}
	u.Args = append(u.Args, append([]string{"run"}, args...)...)
	u.Stdout, u.Stderr = u.stdout, u.stderr
	u.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal, wherever the tests run
	if change != nil {
		change(u.Cmd)
	}
	if err := u.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		u.Cmd.Wait()
		u.ended <- time.Now()
	}()
	r.t.Cleanup(func() { u.Process.Kill() })
	return u
}

// wait waits for the end and wants that status.
func (u *under) wait(status int) time.Time {
	u.t.Helper()
	var at time.Time
	select {
	case at = <-u.ended:
	case <-time.After(3 * lockertest.Patience):
		u.t.Fatalf("%q does not end; printed %q, said %q", u.Args, u.stdout, u.stderr)
	}
	if got := u.ProcessState.ExitCode(); got != status {
		u.t.Errorf("%q: exit status %d, want %d; printed %q, said %q", u.Args, got, status, u.stdout, u.stderr)
	}
	return at
}

func TestRunStatus(t *testing.T) {
	r := newRuns(t)
	r.Want("PUT", "/lock/held", jane, http.StatusOK)
	notProgram := filepath.Join(t.TempDir(), "notes")
	lockertest.WriteFile(t, notProgram, []byte("no program"))
	notStarted := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(notStarted, []byte("#!/no/such/shell\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		status int
		said   string
		args   []string
	}{
		{0, "lock a acquired by george@", []string{"a", "--", "true"}},
		{3, "", []string{"a", "--", "sh", "-c", "exit 3"}},
		{128 + 9, "", []string{"a", "--", "sh", "-c", "kill -9 $$"}},
		{75, "not free within 0s: lock held is held with the key k by jane since", []string{"-wait", "0s", "held", "--", "true"}},
		{75, "is next in line; it is held by the locker run around it: it waits for itself", []string{"a", "--", lockertest.Program(t, "locker"), "run", "-wait", "1s", "a", "--", "true"}},
		{75, "not free within 1s: lock held is held", []string{"-wait", "1s", "held", "--", "true"}},
		{69, "connection refused: gave up after 1s: check that this is the locker's address", []string{"-uri", "http://127.0.0.1:1", "-wait", "1s", "a", "--", "true"}},
		{69, "404 Not Found", []string{"-uri", r.URL + "/elsewhere", "a", "--", "true"}},
		{127, "executable file not found", []string{"held", "--", "no-such-program"}},
		{127, "no such file", []string{"held", "--", "./no-such-program"}},
		{126, "is a directory", []string{"held", "--", "/tmp"}},
		{126, "permission denied", []string{"held", "--", notProgram}},
		{126, "no such file", []string{"a", "--", notStarted}},
		{2, "-slots: it must be a whole number: see locker run -help", []string{"-slots", "x", "a", "--", "true"}},
		{2, "-slots: slots is 0", []string{"-slots", "0", "a", "--", "true"}},
		{2, "-ttl is 25s: it must be at least 26s, twice the sum of -grace and 3s", []string{"-ttl", "25s", "a", "--", "true"}},
		{2, `for flag -ttl: "1d" is not a duration such as "90s" or "2h30m": the largest unit is h`, []string{"-ttl", "1d", "a", "--", "true"}},
		{2, `for flag -grace: "-1s" is negative`, []string{"-grace", "-1s", "a", "--", "true"}},
		{2, `for flag -wait: "5" is not a duration such as "90s" or "2h30m": it has no unit, such as the s of "60s"`, []string{"-wait", "5", "a", "--", "true"}},
		{2, "write locker run [flags] LOCK -- COMMAND", []string{"a", "true"}},
		{2, "has credentials in it: use LOCKER_USERNAME and LOCKER_PASSWORD", []string{"-uri", "http://u:CANARY@h", "a", "--", "true"}},
		{2, "the lock's name", []string{"a ", "--", "true"}},
	} {
		u := r.start(row.args...)
		u.wait(row.status)
		if said := u.stderr.String(); !strings.Contains(said, row.said) || strings.Contains(said, "CANARY") || strings.Contains(said, "\x1b") {
			t.Errorf("%q said %q, want %q", row.args, said, row.said)
		}
	}
	for lock, status := range map[string]int{"held": 75, "a": 0} {
		quiet := r.start("-wait", "0s", "-quiet", lock, "--", "true")
		quiet.wait(status)
		if said := quiet.stderr.String(); said != "" {
			t.Errorf("quietly: %s", said)
		}
	}
	help := r.start("-help")
	help.wait(0)
	if !strings.Contains(help.stdout.String(), "locker run [flags] LOCK -- COMMAND") {
		t.Errorf("the help is %s", help.stdout)
	}
	locks, _ := r.Poll("")
	for name, l := range locks {
		if name != "held" && !lockertest.Nobodys(l) {
			t.Errorf("left behind in %s: %+v", name, l)
		}
	}
}

// The command has the lock's token and slot, and what it reads and prints passes by.
func TestRunPassesOn(t *testing.T) {
	r := newRuns(t)
	u := r.startWith(func(c *exec.Cmd) { c.Stdin = strings.NewReader("from a pipe") },
		"-slots", "3", "-reason", "a test", "-link", "https://ci.example/1", "-as", "me", "a", "--", "sh", "-c", `cat; echo " $LOCKER_LOCK $LOCKER_TOKEN $LOCKER_SLOT"; echo aside >&2; cat "$0"`, "/dev/null")
	u.wait(0)
	if got := u.stdout.String(); got != "from a pipe a 2 1\n" || !strings.Contains(u.stderr.String(), "aside\n") {
		t.Errorf("printed %q, said %q", got, u.stderr)
	}
	r.Log.Await(t, `msg=grant lock=a key=a locked_by=me link=https://ci.example/1 token=2 .*reason="a test"`)
	r.Log.Await(t, `msg=release lock=a key=a locked_by=me`)
}

// In a task of Concourse that has the build's variables, who waits sees the build.
func TestRunLinksItsBuild(t *testing.T) {
	r := newRuns(t)
	r.env = append(r.env, "BUILD_URL=https://ci.example/builds/7")
	r.start("a", "--", "true").wait(0)
	r.start("-link", "https://ci.example/1", "b", "--", "true").wait(0)
	r.Log.Await(t, `msg=grant lock=a .* link=https://ci.example/builds/7 `)
	r.Log.Await(t, `msg=grant lock=b .* link=https://ci.example/1 `)
}

// Where the variables do not say who runs it, as under cron, the machine does.
func TestRunNamesItsUser(t *testing.T) {
	r := newRuns(t)
	r.env = r.env[:2]
	r.start("a", "--", "true").wait(0)
	who, err := exec.Command("id", "-un").Output()
	if err != nil {
		who = []byte("uid-" + fmt.Sprint(os.Getuid()))
	}
	r.Log.Await(t, "msg=grant lock=a key="+strings.TrimSpace(string(who))+"@")
}

// Several run at once under slots, and no more; nested ones hold two locks.
func TestRunSlotsAndNested(t *testing.T) {
	r := newRuns(t)
	r.Want("PUT", "/lock/b", jane, http.StatusOK)
	var all []*under
	for range 6 {
		all = append(all, r.start("-slots", "2", "a", "--", lockertest.Program(t, "locker"), "run", "-quiet", "b", "--", "true"))
	}
	r.Await("a", lockertest.WithWaiters(4))
	r.Await("b", lockertest.WithWaiters(2))
	if a := r.Lock("a"); len(a.Holders) != 2 {
		t.Errorf("%d at once of 2 slots: %+v", len(a.Holders), a)
	}
	r.Want("DELETE", "/lock/b?force=true", "", http.StatusOK)
	for _, u := range all {
		u.wait(0)
	}
	if a, b := r.Lock("a"), r.Lock("b"); !lockertest.Nobodys(a) || !lockertest.Nobodys(b) {
		t.Errorf("left behind: %+v, %+v", a, b)
	}
}

// Every signal reaches the command, and the lock is released when that has ended.
func TestRunSignals(t *testing.T) {
	r := newRuns(t)
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2} {
		u := r.start("a", "--", "sh", "-c", fmt.Sprintf(`trap "echo got; sleep 0.2; exit 7" %d; echo ready; while :; do sleep 0.1; done`, int(s)))
		u.stdout.Await(t, "ready")
		u.Process.Signal(s)
		u.wait(7)
		if l := r.Lock("a"); !strings.Contains(u.stdout.String(), "got\n") || !lockertest.Nobodys(l) {
			t.Errorf("%s: printed %q, left %+v", s, u.stdout, l)
		}
	}
	u := r.start("a", "--", "sleep", "100")
	u.stderr.Await(t, "lock a acquired")
	u.Process.Signal(syscall.SIGTERM)
	u.wait(128 + int(syscall.SIGTERM))
}

// A signal while it waits gives the place back.
func TestRunSignalWhileWaiting(t *testing.T) {
	r := newRuns(t)
	r.Want("PUT", "/lock/a", jane, http.StatusOK)
	u := r.start("a", "--", "echo", "ran")
	u.stderr.Await(t, `waiting: lock a is held with the key k by jane .*; george@\S+ is next in line`)
	u.Process.Signal(syscall.SIGTERM)
	u.wait(128 + int(syscall.SIGTERM))
	if l := r.Lock("a"); len(l.Waiters) != 0 || u.stdout.String() != "" {
		t.Errorf("left %+v, printed %q", l, u.stdout)
	}
}

// A hang-up that was ignored stays ignored, as nohup(1) has it.
func TestRunUnderNohup(t *testing.T) {
	r := newRuns(t)
	u := r.startWith(func(c *exec.Cmd) {
		c.Args = append([]string{"sh", "-c", `trap "" HUP; exec "$@"`, "sh", c.Path}, c.Args[1:]...)
		c.Path = "/bin/sh"
	}, "a", "--", "sh", "-c", "echo ready; sleep 1; echo done")
	u.stdout.Await(t, "ready")
	u.Process.Signal(syscall.SIGHUP)
	u.wait(0)
	if !strings.Contains(u.stdout.String(), "done") {
		t.Errorf("printed %q", u.stdout)
	}
}

// Ctrl-C at a terminal reaches the command once, and it reads what is typed there.
func TestRunAtATerminal(t *testing.T) {
	r := newRuns(t)
	terminal, keyboard := openTerminal(t)
	end := filepath.Join(t.TempDir(), "end")
	u := r.startWith(at(terminal), "a", "--", "sh", "-c", `n=0; trap 'n=$((n+1)); echo got' INT; trap 'echo passed' USR1; read line; echo "read $line"; until test -e "$0"; do sleep 0.05; done; echo "INT $n"`, end)
	io.WriteString(keyboard, "hello\n")
	u.stdout.Await(t, "read hello")
	u.Process.Signal(syscall.SIGUSR1)
	u.stdout.Await(t, "passed")       // it knows that the command is there
	u.Process.Signal(syscall.SIGSTOP) // two that come at once would count as one
	io.WriteString(keyboard, "\x03")
	u.stdout.Await(t, "got")
	u.Process.Signal(syscall.SIGCONT)
	time.Sleep(500 * time.Millisecond)
	lockertest.WriteFile(t, end, nil)
	u.wait(0)
	u.stdout.Await(t, `INT 1\n`)
}

// at has a command run at a terminal, in its foreground.
func at(terminal *os.File) func(*exec.Cmd) {
	return func(c *exec.Cmd) {
		c.Stdin, c.Stderr = terminal, terminal
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	}
}

// inShell has a command, as "$@", run by a shell with job control at a terminal.
func inShell(terminal *os.File, script string) func(*exec.Cmd) {
	return func(c *exec.Cmd) {
		at(terminal)(c)
		c.Args = append([]string{"bash", "-c", "set -m; " + script, "bash", c.Path}, c.Args[1:]...)
		c.Path = "/bin/bash"
	}
}

// An INT that is sent to a run in the terminal's background is passed on: its command
// does not get what is typed.
func TestRunInTheBackground(t *testing.T) {
	r := newRuns(t)
	terminal, keyboard := openTerminal(t)
	u := r.startWith(inShell(terminal, `"$@" & read line; kill -INT $!; wait $!; exit $?`),
		"a", "--", "sh", "-c", `trap "echo got; exit 7" INT; echo ready; while :; do sleep 0.1; done`)
	u.stdout.Await(t, "ready")
	io.WriteString(keyboard, "\n")
	u.wait(7)
}

// Ctrl-C in the moment of the grant is not lost, whichever is noticed first.
func TestRunInterruptedAtTheGrant(t *testing.T) {
	r := newRuns(t)
	for range 12 {
		r.Want("PUT", "/lock/a", jane, http.StatusOK)
		terminal, keyboard := openTerminal(t)
		u := r.startWith(at(terminal), "a", "--", "sleep", "100")
		r.Await("a", lockertest.WithWaiters(1))
		u.Process.Signal(syscall.SIGSTOP) // so that both come at once
		r.Want("DELETE", "/lock/a?force=true", "", http.StatusOK)
		io.WriteString(keyboard, "\x03")
		u.Process.Signal(syscall.SIGCONT)
		u.wait(128 + int(syscall.SIGINT))
		r.Await("a", lockertest.Nobodys)
	}
}

// short are the flags of a hold that ends soon: it is renewed every 2 s, and lost
// when that has failed for 4 s.
var short = []string{"-ttl", "8s", "-grace", "1s"}

const shortTTL = 8 * time.Second

// stubborn does not end by TERM, and writes down when it got that and when it lives.
const stubborn = `trap 'echo TERM; touch "$0.term"' TERM; echo ready; while :; do sleep 0.05; touch "$0"; done`

// lastSeen returns when a stubborn command last was alive.
func lastSeen(t *testing.T, path string) time.Time {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}

// However a hold is lost, the command gets TERM, then KILL, and has ended before
// anybody else can have the lock by the ttl; the status is 70.
func TestRunLost(t *testing.T) {
	for name, row := range map[string]struct {
		lose   func(r *runs)
		within time.Duration // of its end; a renewal every 2 s, and the grace
	}{
		"forced": {func(r *runs) {
			r.Want("DELETE", "/lock/a?force=true", "", http.StatusOK)
		}, 4500 * time.Millisecond},
		"forced, and another's": {func(r *runs) {
			r.Want("DELETE", "/lock/a?force=true", "", http.StatusOK)
			r.Want("PUT", "/lock/a", jane, http.StatusOK)
		}, 4500 * time.Millisecond},
		"the locker gone": {(*runs).Kill, shortTTL - time.Second},
		"the locker hangs": {func(r *runs) {
			r.Process.Signal(syscall.SIGSTOP)
			r.t.Cleanup(func() { r.Process.Signal(syscall.SIGCONT) })
		}, shortTTL - time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuns(t)
			alive := filepath.Join(t.TempDir(), "alive")
			u := r.start(append(short, "a", "--", "bash", "-c", stubborn, alive)...)
			u.stdout.Await(t, "ready")
			row.lose(r)
			lost := time.Now()
			u.wait(70)
			ended := lastSeen(t, alive)
			if grace := ended.Sub(lastSeen(t, alive+".term")); ended.Sub(lost) > row.within || grace < 200*time.Millisecond {
				t.Errorf("the command lived for %s, and for %s after TERM", ended.Sub(lost), grace)
			}
			if !strings.Contains(u.stdout.String(), "TERM\n") || !regexp.MustCompile(`locker run: lock a is lost: .*: the command gets TERM, and KILL 1s later\n`).MatchString(u.stderr.String()) {
				t.Errorf("printed %q, said %q", u.stdout, u.stderr)
			}
		})
	}
}

// A lock that was lost so late that the command ended first is not lost in silence.
func TestRunLostUnnoticed(t *testing.T) {
	for name, lose := range map[string]func(r *runs){
		"forced": func(r *runs) {
			r.Want("DELETE", "/lock/a?force=true", "", http.StatusOK)
		},
		"forced, and another's": func(r *runs) {
			r.Want("DELETE", "/lock/a?force=true", "", http.StatusOK)
			r.Want("PUT", "/lock/a", jane, http.StatusOK)
		},
		"released by somebody else": func(r *runs) {
			r.Want("DELETE", "/lock/a", `{"key": "mine", "locked_by": "me"}`, http.StatusOK)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuns(t)
			end := filepath.Join(t.TempDir(), "end")
			u := r.start("-quiet", "-key", "mine", "-as", "me", "a", "--", "sh", "-c", `echo ready; until test -e "$0"; do sleep 0.05; done; exit 3`, end)
			u.stdout.Await(t, "ready")
			lose(r)
			lockertest.WriteFile(t, end, nil)
			u.wait(3)
			u.stderr.Await(t, `locker run: lock a is lost: this claim of me on lock a was (ended by force|released by somebody else) at \S+: the command ended later, with status 3\n`)
		})
	}
}

// What the command has started gets its signals too, and does not outlive a loss.
func TestRunGroup(t *testing.T) {
	r := newRuns(t)
	alive := filepath.Join(t.TempDir(), "alive")
	const script = `bash -c 'trap "" TERM; echo ready; while :; do sleep 0.05; touch "$0"; done' "$0"`
	u := r.start(append(short, "a", "--", "bash", "-c", script+"; true", alive)...)
	u.stdout.Await(t, "ready")
	r.Want("DELETE", "/lock/a?force=true", "", http.StatusOK)
	ended := u.wait(70)
	time.Sleep(200 * time.Millisecond)
	if last := lastSeen(t, alive); last.Sub(ended) > 100*time.Millisecond {
		t.Errorf("a grandchild lives %s longer", last.Sub(ended))
	}
	u = r.start("a", "--", "sh", "-c", `echo ready; sleep 60; true`)
	u.stdout.Await(t, "ready")
	start := time.Now()
	u.Process.Signal(syscall.SIGTERM)
	u.wait(128 + int(syscall.SIGTERM))
	if time.Since(start) > 10*time.Second {
		t.Error("a foreground child was not ended")
	}
}

// A tool that needs a moment after TERM gets it, although the script that runs it ends
// at once, and the lock is held until then; one that does not end at all gets KILL. What
// is left behind by a script that ends by itself goes on.
func TestRunGroupEnds(t *testing.T) {
	const tool = `bash -c 'trap "sleep 0.5; touch $0.saved; exit" TERM; echo ready; exec >/dev/null 2>&1; while :; do sleep 0.05; done' "$0"; true`
	const deaf = `bash -c 'trap "" TERM; echo ready; exec >/dev/null 2>&1; while :; do sleep 0.05; touch "$0"; done' "$0"; true`
	term := func(r *runs, u *under) { u.Process.Signal(syscall.SIGTERM) }
	for name, row := range map[string]struct {
		script string
		end    func(r *runs, u *under)
		status int
		saves  bool
	}{
		"TERM":                 {tool, term, 128 + int(syscall.SIGTERM), true},
		"the script killed":    {`{ ` + deaf + `; } >/dev/null 2>&1 & until test -e "$0"; do sleep 0.05; done; echo ready; kill -9 $$`, func(*runs, *under) {}, 128 + int(syscall.SIGKILL), false},
		"TERM, and it is deaf": {deaf, term, 128 + int(syscall.SIGTERM), false},
		"force":                {tool, func(r *runs, u *under) { r.Want("DELETE", "/lock/a?force=true", "", http.StatusOK) }, 70, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuns(t)
			file := filepath.Join(t.TempDir(), "tool")
			u := r.start(append(short, "a", "--", "bash", "-c", row.script, file)...)
			u.stdout.Await(t, "ready")
			row.end(r, u)
			ended := u.wait(row.status)
			_, err := os.Stat(file + ".saved")
			if (err == nil) != row.saves {
				t.Errorf("at its end: %v", err)
			}
			if time.Sleep(200 * time.Millisecond); !row.saves && lastSeen(t, file).Sub(ended) > 100*time.Millisecond {
				t.Error("it lives longer than the hold")
			}
		})
	}
	r := newRuns(t)
	file := filepath.Join(t.TempDir(), "tool")
	u := r.start(append(short, "a", "--", "bash", "-c", `{ `+deaf+`; } >/dev/null 2>&1 & until test -e "$0"; do sleep 0.05; done; echo $$; exit 255`, file)...)
	ended := u.wait(255)
	group, err := strconv.Atoi(strings.TrimSpace(u.stdout.String()))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if !lastSeen(t, file).After(ended) {
		t.Error("what a command left behind that ended by itself is gone")
	}
	syscall.Kill(-group, syscall.SIGKILL)
}

// As the first process of a container it becomes the parent of what the command leaves
// behind: what has ended is not waited for.
func TestRunAsFirstProcess(t *testing.T) {
	if err := exec.Command("unshare", "--pid", "--fork", "true").Run(); err != nil {
		lockertest.Skip(t, "a namespace of processes cannot be had: "+err.Error())
	}
	r := newRuns(t)
	const script = `bash -c 'trap exit TERM; touch "$0"; while :; do sleep 0.05; done' "$0" & until test -e "$0"; do sleep 0.05; done; kill -TERM 0; sleep 60`
	u := r.startWith(func(c *exec.Cmd) {
		c.Args = append([]string{"unshare", "--pid", "--fork", "--kill-child", c.Path}, c.Args[1:]...)
		c.Path = "/usr/bin/unshare"
	}, "-grace", "20s", "a", "--", "bash", "-c", script, filepath.Join(t.TempDir(), "tool"))
	start := time.Now()
	u.wait(128 + int(syscall.SIGTERM))
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

// A command under two locks ends when the outer one is lost.
func TestRunNestedLost(t *testing.T) {
	r := newRuns(t)
	alive := filepath.Join(t.TempDir(), "alive")
	u := r.start(append(short, "a", "--", lockertest.Program(t, "locker"), "run", "b", "--", "bash", "-c", stubborn, alive)...)
	u.stdout.Await(t, "ready")
	r.Want("DELETE", "/lock/a?force=true", "", http.StatusOK)
	lost := time.Now()
	ended := u.wait(70)
	if ended.Sub(lost) > 4500*time.Millisecond {
		t.Errorf("it ended %s after the force", ended.Sub(lost))
	}
	time.Sleep(200 * time.Millisecond)
	if last := lastSeen(t, alive); last.Sub(ended) > 100*time.Millisecond {
		t.Errorf("the command lives %s longer", last.Sub(ended))
	}
}

// A locker that hangs keeps nobody for much longer than -wait.
func TestRunHangingLocker(t *testing.T) {
	r := newRuns(t)
	r.Process.Signal(syscall.SIGSTOP)
	t.Cleanup(func() { r.Process.Signal(syscall.SIGCONT) })
	start := time.Now()
	r.start("-wait", "1s", "a", "--", "true").wait(69)
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("it took %s", took)
	}
}

// A hold whose ttl began while its request waited is not lost at its start.
func TestRunAfterAWait(t *testing.T) {
	r := newRuns(t)
	r.Want("PUT", "/lock/a", jane, http.StatusOK)
	u := r.start(append(short, "a", "--", "sleep", "3")...)
	u.stderr.Await(t, "waiting: ")
	time.Sleep(9 * time.Second)
	r.Want("DELETE", "/lock/a", `{"key": "k", "locked_by": "jane"}`, http.StatusOK)
	u.wait(0)
}

// An outage that is shorter than the ttl, but long enough for renewals to fail, loses
// nothing.
func TestRunOverARestart(t *testing.T) {
	r := newRuns(t)
	const ttl = 12 * time.Second
	end := filepath.Join(t.TempDir(), "end")
	u := r.start("-ttl", ttl.String(), "-grace", "1s", "a", "--", "sh", "-c", `until test -e "$0"; do sleep 0.05; done`, end)
	u.stderr.Await(t, "lock a acquired")
	token := r.Lock("a").Holders[0].Token
	r.Kill()
	u.stderr.Await(t, `lock a was not renewed: .*: trying again in 1s\n`)
	r.Restart()
	time.Sleep(ttl)
	if l := r.Lock("a"); len(l.Holders) != 1 || l.Holders[0].Token != token {
		t.Errorf("it does not hold token %d any more: %+v", token, l)
	}
	lockertest.WriteFile(t, end, nil)
	u.wait(0)
	if l := r.Lock("a"); !lockertest.Nobodys(l) {
		t.Errorf("left %+v", l)
	}
}

// A locker that comes back without the hold is not asked for it again: others may
// have had it meanwhile.
func TestRunIsNotTakenAgain(t *testing.T) {
	path, alive := filepath.Join(t.TempDir(), "locker.json"), filepath.Join(t.TempDir(), "alive")
	r := newRuns(t, "LOCKER_CONFIG="+path)
	u := r.start(append(short, "a", "--", "bash", "-c", stubborn, alive)...)
	u.stdout.Await(t, "ready")
	lost := time.Now()
	r.Kill()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.Restart()
	u.wait(70)
	if ended := lastSeen(t, alive); ended.Sub(lost) > shortTTL-time.Second {
		t.Errorf("the command lived for %s", ended.Sub(lost))
	}
	if said := u.stderr.String(); !strings.Contains(said, "it was forced, or expired, or the locker's state is another one") || strings.Contains(r.Log.String(), "msg=grant") {
		t.Errorf("said %s, log %s", said, r.Log)
	}
}

// One that stood still for longer than its ttl does not trust its hold.
func TestRunStopped(t *testing.T) {
	r := newRuns(t)
	u := r.start(append(short, "a", "--", "bash", "-c", "trap 'echo passed' USR1; echo ready; while :; do sleep 0.05; done")...)
	u.stdout.Await(t, "ready")
	u.Process.Signal(syscall.SIGUSR1)
	u.stdout.Await(t, "passed") // it knows that the command is there
	u.Process.Signal(syscall.SIGSTOP)
	r.Await("a", lockertest.Nobodys)
	u.Process.Signal(syscall.SIGCONT)
	u.wait(70)
	if said := u.stderr.String(); !strings.Contains(said, ": this process stood still: the command gets TERM") {
		t.Errorf("said %s", said)
	}
}

// Ctrl-Z stops the command too. When they go on within the ttl nothing is lost.
func TestRunStoppedAtATerminal(t *testing.T) {
	for _, status := range []int{0, 70} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			r := newRuns(t)
			terminal, keyboard := openTerminal(t)
			u := r.startWith(inShell(terminal, `"$@"; echo "stopped $?"; read line; fg; exit $?`), append(short, "a", "--", "bash", "-c", `echo ready; for n in {1..30}; do sleep 0.1; echo "n $n"; done`)...)
			u.stdout.Await(t, "ready")
			io.WriteString(keyboard, "\x1a")
			u.stdout.Await(t, fmt.Sprint("stopped ", 128+int(syscall.SIGTSTP)))
			if status == 70 {
				r.Await("a", lockertest.Nobodys)
			}
			before := u.stdout.String()
			time.Sleep(time.Second)
			if after := u.stdout.String(); after != before {
				t.Errorf("the command goes on: %s", after)
			}
			io.WriteString(keyboard, "\n")
			u.wait(status)
			if done := strings.Contains(u.stdout.String(), "n 30"); done != (status == 0) {
				t.Errorf("printed %s", u.stdout)
			}
		})
	}
}

// With -keep-going a loss is a warning.
func TestRunKeepsGoing(t *testing.T) {
	r := newRuns(t)
	u := r.start(append(short, "-keep-going", "a", "--", "sleep", "3")...)
	u.stderr.Await(t, "lock a acquired")
	r.Want("DELETE", "/lock/a?force=true", "", http.StatusOK)
	u.wait(0)
	if !strings.Contains(u.stderr.String(), "lock a is lost: ") || !strings.Contains(u.stderr.String(), ": the command goes on\n") {
		t.Errorf("said %s", u.stderr)
	}
}

// When `locker run` itself is killed, its command gets TERM, and the lock is free
// after the ttl.
func TestRunKilled(t *testing.T) {
	r := newRuns(t)
	u := r.start(append(short, "a", "--", "sh", "-c", `trap "echo TERM; exit" TERM; echo ready; while :; do sleep 0.05; done`)...)
	u.stdout.Await(t, "ready")
	u.Process.Kill()
	start := time.Now()
	u.stdout.Await(t, "TERM")
	if lockertest.Nobodys(r.Lock("a")) {
		t.Error("the lock is free before its command has ended")
	}
	r.Await("a", lockertest.Nobodys)
	if took := time.Since(start); took > shortTTL+2*time.Second {
		t.Errorf("free after %s", took)
	}
}

// Credentials reach the locker, and nobody else.
func TestRunCredentials(t *testing.T) {
	r := newRuns(t, "AUTH_USER=george", "AUTH_PASS=CANARY")
	u := r.start("-quiet", "a", "--", "true")
	u.wait(69)
	if said := u.stderr.String(); !strings.Contains(said, "set LOCKER_USERNAME and LOCKER_PASSWORD to the locker's AUTH_USER and AUTH_PASS") {
		t.Errorf("said %s", said)
	}
	r.env = append(r.env, "LOCKER_USERNAME=george", "LOCKER_PASSWORD=CANARY")
	u = r.start("a", "--", "sh", "-c", "echo ready; sleep 1")
	u.stdout.Await(t, "ready")
	line := lockertest.Read(t, fmt.Sprintf("/proc/%d/cmdline", u.Process.Pid))
	u.wait(0)
	if strings.Contains(line+u.stderr.String()+r.Log.String(), "CANARY") {
		t.Errorf("the password is in %q, %s or %s", line, u.stderr, r.Log)
	}
}

// The locker's authority can be a file or a variable's PEM.
func TestRunTLS(t *testing.T) {
	certFile, keyFile := lockertest.NewCertificate(t, t.TempDir(), "locker")
	r := newRuns(t, "SSL_CERT="+certFile, "SSL_KEY="+keyFile)
	env := r.env
	for _, row := range []struct {
		status int
		env    string
		args   []string
	}{
		{69, "", nil}, {0, "", []string{"-ca-cert", certFile}}, {0, "", []string{"-insecure"}}, {2, "", []string{"-ca-cert", "/missing"}},
		{0, "LOCKER_CA_CERT=" + certFile, nil}, {0, "LOCKER_CA_CERT=" + lockertest.Read(t, certFile), nil},
		{0, "LOCKER_SKIP_SSL_VALIDATION=true", nil}, {2, "LOCKER_SKIP_SSL_VALIDATION=yes", nil},
	} {
		r.env = append(env, row.env)
		r.start(append(row.args, "a", "--", "true")...).wait(row.status)
	}
	another, _ := lockertest.NewCertificate(t, t.TempDir(), "another")
	r.env = env
	u := r.start("-ca-cert", another, "a", "--", "true")
	u.wait(69)
	if said := u.stderr.String(); !strings.Contains(said, "the server's certificate is not signed by the authority in -ca-cert (LOCKER_CA_CERT): check that it is the right one") {
		t.Errorf("said %s", said)
	}
}

// `locker run` costs little beside its command.
func TestRunCost(t *testing.T) {
	s := lockertest.Start(t, "LOCKER_CONFIG="+inMemory(t)+"/locker.json") // where a commit costs nothing
	program := lockertest.Released(t, "locker")
	time1 := func(name string, args ...string) time.Duration {
		cmd := exec.Command(name, args...)
		cmd.Env = []string{"LOCKER_URI=" + s.URL, "PATH=" + os.Getenv("PATH")}
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return time.Since(start)
	}
	floor, run := time.Hour, time.Hour
	for range 20 {
		floor, run = min(floor, time1("true")), min(run, time1(program, "run", "-quiet", "a", "--", "true"))
	}
	t.Logf("%s beside %s", run, floor)
	if most := max(maxCost, 12*floor); run-floor > most { // on a slow machine the start of a program of 8 MB takes most of it
		t.Errorf("locker run takes %s, true %s: the difference should be at most %s", run, floor, most)
	}
}

// inMemory returns a folder whose files are in memory.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "locker-")
	if err != nil {
		lockertest.Skip(t, err.Error())
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// What docs/run.md and the README paste works.
func TestRunAsDocumented(t *testing.T) {
	r := newRuns(t, "AUTH_USER=test", "AUTH_PASS=test")
	dir := t.TempDir()
	for _, name := range []string{"deploy.sh", "migrate.sh"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho "+name+" under $LOCKER_LOCK\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script := ""
	for _, b := range readmeBlocks(t, "locker run ") {
		if b.language == "sh" {
			script += strings.Replace(b.text, "http://10.10.10.10:8910", r.URL, 1)
		}
	}
	script = `locker() { "$LOCKER" "$@"; }; set -e` + "\n" + strings.ReplaceAll(script, "-- locker run", `-- "$LOCKER" run`)
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir, cmd.Env = dir, append(r.env, "LOCKER="+lockertest.Program(t, "locker"), "LOCKER_USERNAME=test", "LOCKER_PASSWORD=test")
	out, err := cmd.Output()
	if want := "deploy.sh under staging\n"; err != nil || strings.Count(string(out), want) != 2 || !strings.Contains(string(out), "runner 1\nmigrate.sh under staging\n") {
		t.Errorf("%v, printed %s", err, out)
	}
}

// Nobody holds a lock with a run at the same time.
func TestRunExcludes(t *testing.T) {
	r := newRuns(t)
	counter := filepath.Join(t.TempDir(), "n")
	lockertest.WriteFile(t, counter, []byte("0"))
	var all []*under
	for range 8 {
		all = append(all, r.start("-quiet", "a", "--", "sh", "-c", `n=$(cat "$0"); sleep 0.05; echo $((n+1)) > "$0"`, counter))
	}
	for _, u := range all {
		u.wait(0)
	}
	if got := strings.TrimSpace(lockertest.Read(t, counter)); got != "8" {
		t.Errorf("counted %s", got)
	}
	r.Await("a", func(l resource.Lock) bool { return lockertest.Nobodys(l) })
	if !bytes.Contains([]byte(r.Log.String()), []byte("locked_by=george@")) {
		t.Errorf("who holds is not named:\n%s", r.Log)
	}
}
