package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	osuser "os/user"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// This file is `locker run`: a command that runs while a lock is held.

const (
	defaultTTL   = 2 * time.Minute
	defaultGrace = 10 * time.Second // between TERM and KILL
	spareTime    = 3 * time.Second  // between KILL and the end of the ttl
	releaseTime  = 8 * time.Second  // how long a release is tried
)

// Exit statuses beside the command's; those from 69 are sysexits.h's.
const (
	statusMistake     = 2
	statusUnavailable = 69
	statusLost        = 70
	statusNotFree     = 75
	statusNoStart     = 126
	statusNoCommand   = 127
	statusSignal      = 128 // and the signal's number
)

const runHelp = `Takes a lock, runs a command, releases the lock, exits with its status.

  locker run [flags] LOCK -- COMMAND [ARGUMENT...]
  locker run staging -- ./deploy.sh
  locker run -slots 3 -wait 10m runners -- sh -c 'echo runner $LOCKER_SLOT'
  locker run a -- locker run b -- ./both.sh    # several: in the order of names

  -uri URL        LOCKER_URI       the locker (http://127.0.0.1:8910)
                  LOCKER_USERNAME, LOCKER_PASSWORD
  -ca-cert FILE   LOCKER_CA_CERT   its authority, PEM (in the variable too)
  -insecure       LOCKER_SKIP_SSL_VALIDATION=true
  -wait D         how long to wait for the lock (for ever); 0s: try once
  -key, -as NAME  key and locked_by; without them, nobody else holds the lock
  -slots N        at most N at a time; the key is the lock's name then
  -reason, -link  text and URL for those who wait
  -ttl D          the hold's, renewed every quarter of it (2m)
  -grace D        between TERM and KILL when the lock is lost (10s)
  -keep-going     only warn then
  -quiet          say nothing but errors; nothing for status 75

The command has LOCKER_LOCK, LOCKER_TOKEN and LOCKER_SLOT. Exit status: its own;
128 + the signal that ended it, or this program while it waited; 75 the lock was
not free in time; 70 it was lost and the command stopped; 69 the locker did not
answer, or refused; 2 wrong flags; 126 the command cannot run; 127 not found.
`

// job is what `locker run` is asked for.
type job struct {
	wish             resource.Wish
	command          []string
	grace            time.Duration
	keepGoing, quiet bool
	group            bool // the command has a process group of its own
}

// wrap does what the arguments say and returns the exit status. It must be called on
// the main goroutine: the command gets TERM when the thread ends that started it.
func wrap(args []string, getenv func(string) string) int {
	stderr := resource.NewLines(os.Stderr)
	defer stderr.Close()
	say := func(err error) {
		fmt.Fprintln(stderr, "locker run:", strings.ReplaceAll(err.Error(), "\n", "\nlocker run: "))
	}
	j, err := parseRun(args, getenv)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(runHelp)
		return 0
	}
	if j == nil {
		say(err)
		return statusMistake
	}
	told := io.Writer(stderr)
	if j.quiet {
		told = io.Discard
	}
	take, wrong := resource.NewTake(j.wish, getenv, told, isTerminal(os.Stderr) && getenv("NO_COLOR") == "")
	if err := errors.Join(err, wrong); err != nil {
		say(err)
		return statusMistake
	}
	cmd, status, err := j.find(getenv)
	if err != nil {
		say(err)
		return status
	}
	signals := catch()
	hold, status, err := await(take, signals)
	if err != nil && j.quiet && status == statusNotFree {
		return status
	}
	if err != nil {
		say(err)
		return status
	}
	cmd.Env = append(os.Environ(), "LOCKER_LOCK="+j.wish.Lock, fmt.Sprint("LOCKER_TOKEN=", hold.Token), fmt.Sprint("LOCKER_SLOT=", hold.Slot))
	status, lost := j.under(hold, cmd, signals, say)
	switch err := giveBack(hold); {
	case !errors.Is(err, resource.ErrLost) && err != nil:
		say(err)
	case err != nil && !lost:
		say(fmt.Errorf("%w: the command ended later, with status %d", err, status))
	}
	return status
}

var errStopped = errors.New("stopped by a signal, the lock is given back")

func giveBack(hold *resource.Hold) error {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	return hold.Release(ctx)
}

// parseRun reads flags and variables. Its error lists every mistake; there is no job
// when the flags cannot be read.
func parseRun(args []string, getenv func(string) string) (*job, error) {
	j := &job{wish: resource.Wish{TTL: defaultTTL, Username: getenv("LOCKER_USERNAME"), Password: getenv("LOCKER_PASSWORD")}, grace: defaultGrace}
	w := &j.wish
	skips := j.skips(getenv("LOCKER_SKIP_SSL_VALIDATION"))
	flags := flag.NewFlagSet("locker run", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&w.URI, "uri", cmp.Or(getenv("LOCKER_URI"), "http://127.0.0.1:"+defaultPort), "")
	caFile := flags.String("ca-cert", "", "")
	flags.BoolVar(&w.SkipValidation, "insecure", w.SkipValidation, "")
	flags.StringVar(&w.Key, "key", "", "")
	flags.StringVar(&w.LockedBy, "as", "", "")
	flags.StringVar(&w.Reason, "reason", "", "")
	flags.StringVar(&w.Link, "link", "", "")
	flags.Func("slots", "", func(text string) (err error) {
		if w.Slots, err = strconv.Atoi(text); err != nil {
			return errors.New("it must be a whole number")
		}
		return resource.CheckSlots(w.Slots)
	})
	flags.Func("wait", "", func(text string) error {
		w.Wait = new(time.Duration)
		return (*resource.Duration)(w.Wait).UnmarshalText([]byte(text))
	})
	flags.TextVar((*resource.Duration)(&w.TTL), "ttl", resource.Duration(w.TTL), "")
	flags.TextVar((*resource.Duration)(&j.grace), "grace", resource.Duration(j.grace), "")
	flags.BoolVar(&j.keepGoing, "keep-going", false, "")
	flags.BoolVar(&j.quiet, "quiet", false, "")
	if err := flags.Parse(args); err != nil {
		return nil, fmt.Errorf("%w: see locker run -help", err)
	}
	if err := j.split(flags.Args()); err != nil {
		return nil, err
	}
	problems := []error{j.trust(*caFile, getenv), skips}
	if least := 2 * (j.grace + spareTime); w.TTL < least {
		problems = append(problems, fmt.Errorf("-ttl is %s: it must be at least %s, twice the sum of -grace and %s, so that the command can be ended before the hold", w.TTL, least, spareTime))
	}
	if !j.keepGoing {
		w.Spare = j.grace + spareTime
	}
	me := whoAmI(getenv)
	w.LockedBy = cmp.Or(w.LockedBy, me)
	if w.Slots > 0 {
		w.Key = cmp.Or(w.Key, w.Lock)
	}
	w.Key = cmp.Or(w.Key, me)
	return j, errors.Join(problems...)
}

// split finds the lock and the command.
func (j *job) split(args []string) error {
	if len(args) < 3 || args[1] != "--" {
		return errors.New("write locker run [flags] LOCK -- COMMAND [ARGUMENT...]: see locker run -help")
	}
	j.wish.Lock, j.command = args[0], args[2:]
	return nil
}

// trust sets how the locker's certificate is looked at.
func (j *job) trust(caFile string, getenv func(string) string) error {
	ca := getenv("LOCKER_CA_CERT")
	if caFile == "" && ca != "" && !strings.Contains(ca, "-----BEGIN") {
		caFile = ca
	}
	j.wish.CACert = ca
	if caFile != "" {
		data, err := os.ReadFile(caFile)
		if err != nil {
			return fmt.Errorf("-ca-cert or LOCKER_CA_CERT: %w", err)
		}
		j.wish.CACert = string(data)
	}
	return nil
}

// skips sets the default of -insecure from its variable.
func (j *job) skips(text string) error {
	switch text {
	case "true":
		j.wish.SkipValidation = true
	case "", "false":
	default:
		return fmt.Errorf("LOCKER_SKIP_SSL_VALIDATION is %q: it must be true or false", text)
	}
	return nil
}

// whoAmI is a name for people that no other process has.
func whoAmI(getenv func(string) string) string {
	name := cmp.Or(getenv("USER"), getenv("LOGNAME"))
	if name == "" { // as cron may have it
		uid := strconv.Itoa(os.Getuid())
		name = "uid-" + uid
		if u, err := osuser.LookupId(uid); err == nil {
			name = u.Username
		}
	}
	host, _ := os.Hostname()
	tail := fmt.Sprintf("%d-%s", os.Getpid(), strings.ToLower(rand.Text()[:6]))
	me := name + "@" + host + "/" + tail
	if errors.Join(resource.CheckName("locked_by", me), resource.CheckNewLockName("locked_by", me)) == nil {
		return me
	}
	return "process " + tail
}

// find looks for the command before anybody waits for a lock in vain.
func (j *job) find(getenv func(string) string) (cmd *exec.Cmd, status int, err error) {
	_, err = exec.LookPath(j.command[0])
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EISDIR):
		return nil, statusNoStart, err
	case err != nil && !errors.Is(err, exec.ErrDot): // PATH has the folder that this is in
		return nil, statusNoCommand, err
	}
	cmd = exec.Command(j.command[0], j.command[1:]...)
	cmd.Err = nil
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	j.group = getenv("LOCKER_LOCK") == "" && !hasTerminal()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: j.group}
	if death := reflect.ValueOf(cmd.SysProcAttr).Elem().FieldByName("Pdeathsig"); death.IsValid() { // on Linux
		death.Set(reflect.ValueOf(syscall.SIGTERM))
	}
	return cmd, 0, nil
}

// catch returns the signals that this process gets, but for INT and HUP when it was
// started to ignore them, which the command ignores then too.
func catch() <-chan os.Signal {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // nobody reads stderr: no reason to leave the command
	signals := make(chan os.Signal, 16)
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGHUP, os.Interrupt, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	return signals
}

// await takes the lock, until a signal.
func await(take func(context.Context) (*resource.Hold, error), signals <-chan os.Signal) (*resource.Hold, int, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var hold *resource.Hold
	var err error
	ended, stopped := make(chan struct{}), 0
	go func() {
		hold, err = take(ctx)
		close(ended)
	}()
	select {
	case <-ended:
		settle()
		if len(signals) > 0 { // which came first is not known
			stopped = statusSignal + int((<-signals).(syscall.Signal))
		}
	case s := <-signals:
		stopped = statusSignal + int(s.(syscall.Signal))
		cancel()
		<-ended
	}
	switch {
	case err == nil && stopped == 0:
		return hold, 0, nil
	case err == nil: // the signal came just after
		return nil, stopped, cmp.Or(giveBack(hold), errStopped)
	case stopped > 0:
		return nil, stopped, err
	case resource.NotFree(err):
		return nil, statusNotFree, err
	}
	return nil, statusUnavailable, err
}

// settle returns when what this process was sent before is in the channels of catch:
// signals are handed out by one goroutine, the lower number first.
func settle() {
	last := make(chan os.Signal, 1)
	signal.Notify(last, syscall.SIGWINCH)
	defer signal.Stop(last)
	if syscall.Kill(os.Getpid(), syscall.SIGWINCH) == nil {
		<-last
	}
}

// under runs the command while the lock is held, and returns the exit status and
// whether the lock was lost. When it is, it says so and ends the command before the
// hold's ttl does. What a command leaves behind that a signal has ended is waited for too,
// but not for longer than the grace.
func (j *job) under(hold *resource.Hold, cmd *exec.Cmd, signals <-chan os.Signal, say func(error)) (status int, wasLost bool) {
	runtime.LockOSThread() // Pdeathsig is of the thread
	if err := cmd.Start(); err != nil {
		say(err)
		return statusNoStart, false
	}
	toEnd := false
	pass := func(s os.Signal) {
		j.signal(cmd, s, say)
		toEnd = toEnd || s != syscall.SIGUSR1 && s != syscall.SIGUSR2
	}
	settle()
	for len(signals) > 0 { // those of the terminal, too: what came before the command was there did not reach it
		pass(<-signals)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	lost, ended := make(chan error, 1), make(chan struct{})
	go func() { lost <- hold.Keep(ctx) }()
	go func() { cmd.Wait(); close(ended) }()
	var kill, look <-chan time.Time
	result := func() (int, bool) { return cmp.Or(status, statusOf(cmd.ProcessState)), wasLost }
	for {
		select {
		case s := <-signals:
			if !fromTerminal(s) {
				pass(s)
			}
		case err := <-lost:
			wasLost = err != nil
			if j.keepGoing {
				say(fmt.Errorf("%w: the command goes on", err))
				continue
			}
			say(fmt.Errorf("%w: the command gets TERM, and KILL %s later", err, j.grace))
			status = statusLost
			pass(syscall.SIGTERM)
			kill = time.After(j.grace)
		case <-kill:
			j.signal(cmd, syscall.SIGKILL, say)
			if look != nil {
				return result()
			}
			kill, toEnd = nil, false // nothing that it has started outlives that
		case <-ended:
			if !j.group || !toEnd && len(signals) == 0 && !signalled(cmd.ProcessState) {
				return result()
			}
			if kill == nil {
				kill = time.After(j.grace)
			}
			ended, look = nil, time.Tick(20*time.Millisecond)
		case <-look:
			if !hasLeft(cmd) {
				return result()
			}
		}
	}
}

// hasLeft reports whether there are processes in the group of a command that ended.
func hasLeft(cmd *exec.Cmd) bool {
	syscall.Wait4(-cmd.Process.Pid, nil, syscall.WNOHANG, nil) // the first process of a container is the parent of all that are left
	return !errors.Is(syscall.Kill(-cmd.Process.Pid, 0), syscall.ESRCH)
}

// signal sends a signal to the command, and to what it has started if they have a
// process group of their own.
func (j *job) signal(cmd *exec.Cmd, s os.Signal, say func(error)) {
	var err error
	if j.group {
		err = syscall.Kill(-cmd.Process.Pid, s.(syscall.Signal))
	} else {
		err = cmd.Process.Signal(s)
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH) {
		say(fmt.Errorf("the command does not get %s: %w: it goes on", s, err))
	}
}

func statusOf(p *os.ProcessState) int {
	if signalled(p) {
		return statusSignal + int(p.Sys().(syscall.WaitStatus).Signal())
	}
	return p.ExitCode()
}

func signalled(p *os.ProcessState) bool { return p.Sys().(syscall.WaitStatus).Signaled() }

// fromTerminal reports whether the terminal, which this process and the command are
// in the foreground of, has sent the signal to both.
func fromTerminal(s os.Signal) bool {
	if s != os.Interrupt && s != syscall.SIGQUIT {
		return false
	}
	stat, err := os.ReadFile("/proc/self/stat") // see proc_pid_stat(5)
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	var state string
	var parent, group, session, terminal, foreground int
	fmt.Sscan(after, &state, &parent, &group, &session, &terminal, &foreground)
	return group == foreground
}

// hasTerminal reports whether a terminal controls this process: then the command
// must stay in its process group, to read from it.
func hasTerminal() bool {
	f, err := os.Open("/dev/tty")
	f.Close()
	return err == nil
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
