// Package lockertest builds the locker and the programs of its resource, runs
// them and talks to them. It is for tests only, and ends the test that calls it
// when something fails that is not what the test is about.
package lockertest

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience is how long a test waits for what must happen soon, on a machine
// that has much else to do.
const Patience = 20 * time.Second

const module = "github.com/cloudfoundry-community/locker"

// atEnd is done when the tests are done.
var (
	ending sync.Mutex
	atEnd  []func()
)

// The folders of the built programs, each built once.
var (
	tested   = sync.OnceValues(func() (string, error) { return build(race) })
	released = sync.OnceValues(func() (string, error) {
		if !race {
			return tested()
		}
		return build(false)
	})
)

// Main runs a package's tests, does what AtEnd was given, and exits with the tests'
// status.
func Main(m *testing.M) {
	flag.Parse()
	if signal.Ignored(syscall.SIGHUP) { // by nohup, and then by all that they start; what is caught is not inherited
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	if n := runtime.GOMAXPROCS(0); !race && flag.Lookup("test.parallel").Value.String() == fmt.Sprint(n) {
		flag.Set("test.parallel", fmt.Sprint(2*n)) // they wait more than they work
	}
	status := m.Run()
	for _, end := range slices.Backward(atEnd) {
		end()
	}
	os.Exit(status)
}

// Program returns the path of locker, check, in or out, which has the race
// detector when the tests have.
func Program(t testing.TB, name string) string {
	t.Helper()
	return programIn(t, tested, name)
}

// Released returns the path of locker, check, in or out, built as for a
// release.
func Released(t testing.TB, name string) string {
	t.Helper()
	return programIn(t, released, name)
}

func programIn(t testing.TB, folder func() (string, error), name string) string {
	t.Helper()
	dir, err := folder()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// AtEnd has Main call end when the tests are done, before what it was given earlier.
func AtEnd(end func()) {
	ending.Lock()
	defer ending.Unlock()
	atEnd = append(atEnd, end)
}

// Folder makes a folder that Main removes.
func Folder() (string, error) {
	folder, err := os.MkdirTemp("", "lockertest-")
	if err == nil {
		AtEnd(func() { os.RemoveAll(folder) })
	}
	return folder, err
}

func build(race bool) (string, error) {
	folder, err := Folder()
	if err != nil {
		return "", err
	}
	cgo := "CGO_ENABLED=0"
	args := []string{"build", "-trimpath", "-ldflags=-s", "-o", folder + "/"}
	if race {
		cgo = "CGO_ENABLED=1"
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, module, module+"/resource/check", module+"/resource/in", module+"/resource/out")...)
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return folder, lookAtSources()
}

// lookAtSources looks at each file that the programs are built from: the go
// command takes a test's result from its cache unless a file changed at which
// the test itself has looked.
func lookAtSources() error {
	const files = "{{$dir := .Dir}}{{range .GoFiles}}{{$dir}}/{{.}}\n{{end}}{{range .EmbedFiles}}{{$dir}}/{{.}}\n{{end}}"
	out, err := exec.Command("go", "list", "-f", files, module+"/...").Output()
	if err != nil {
		return fmt.Errorf("list sources: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
		if _, err := os.Stat(name); err != nil {
			return err
		}
	}
	return nil
}

// Command returns a run of a program that Program names, with that environment
// and no other.
func Command(t testing.TB, program string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(Program(t, program))
	cmd.Env = append([]string{}, env...)
	if race {
		cmd.Env = append(cmd.Env, "GORACE=atexit_sleep_ms=0")
	}
	return cmd
}
