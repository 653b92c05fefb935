package test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file runs the released image of the server as docs/operate.md says.

const serverImage = "locker:1.2.3" // the tag of commitTree

// hardened are the restrictions under which the image runs.
var hardened = []string{"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"}

// container is a running locker.
type container struct {
	t       testing.TB
	id, url string
}

// loadServerImage gives the container engine the released image.
func loadServerImage(t *testing.T) {
	t.Helper()
	needDocker(t)
	file := filepath.Join(releaseOnce(t), "locker-server-linux-"+engineArch(t)+".tgz")
	for _, tag := range []string{serverImage, "locker:latest"} {
		keepTag(t, tag)
	}
	if _, err := docker(t, nil, "load", "--quiet", "--input", file); err != nil {
		t.Fatal(err)
	}
}

func engineArch(t *testing.T) string {
	t.Helper()
	arch, err := docker(t, nil, "version", "--format", "{{.Server.Arch}}")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(arch)
}

// volume makes a volume that is gone in the end.
func volume(t *testing.T, options ...string) string {
	t.Helper()
	name, err := docker(t, nil, append([]string{"volume", "create"}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	name = strings.TrimSpace(name)
	t.Cleanup(func() { exec.Command("docker", "volume", "rm", "-f", name).Run() })
	return name
}

// runImage starts a locker with a volume, and returns once it answers.
func runImage(t *testing.T, volume string, options ...string) *container {
	t.Helper()
	args := slices.Concat([]string{"run", "--detach", "--publish=127.0.0.1::8910", "--env=LISTEN=:8910", "--volume=" + volume + ":/data"}, hardened, options, []string{serverImage})
	id, err := docker(t, nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	c := &container{t: t, id: strings.TrimSpace(id)}
	t.Cleanup(c.remove)
	c.await()
	return c
}

// await finds out where a container that was started answers.
func (c *container) await() {
	c.t.Helper()
	published, err := docker(c.t, nil, "port", c.id, "8910/tcp")
	if err != nil {
		c.t.Fatal(err)
	}
	c.url = "http://" + strings.TrimSpace(published)
	lockertest.Eventually(c.t, "the container answers", func() bool {
		status, _ := lockertest.Send(c.t.Context(), "GET", c.url+"/health", "")
		return status == http.StatusOK
	})
}

func (c *container) remove() { exec.Command("docker", "rm", "--force", c.id).Run() }

// inspect returns what the container engine knows, by a template.
func (c *container) inspect(template string) string {
	c.t.Helper()
	out, err := docker(c.t, nil, "inspect", "--format", template, c.id)
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (c *container) awaitHealth(want string) {
	c.t.Helper()
	for deadline := time.Now().Add(lockertest.Patience); c.inspect("{{.State.Health.Status}}") != want; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("the container is not %s: %s", want, c.inspect("{{json .State.Health}}"))
		}
	}
}

func (c *container) want(method, path, body string, want int) {
	c.t.Helper()
	if status, got := lockertest.Send(c.t.Context(), method, c.url+path, body); status != want {
		c.t.Errorf("%s %s: %d %s, want %d", method, path, status, got, want)
	}
}

// The image holds the program and the folder of its state, as the user that it
// runs as.
func TestReleasedServerImage(t *testing.T) {
	loadServerImage(t)
	files := filesIn(t, serverImage)
	if !slices.Equal(files, []string{"/locker"}) {
		t.Errorf("the image has %q", files)
	}
	out, err := docker(t, nil, "inspect", "--format", "{{json .Config}}", serverImage)
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		User         string
		Env          []string
		Entrypoint   []string
		ExposedPorts map[string]any
		Healthcheck  struct{ Test []string }
	}
	if err := json.Unmarshal([]byte(out), &config); err != nil {
		t.Fatal(err)
	}
	if config.User != "65532:65532" || !slices.Contains(config.Env, "LOCKER_CONFIG=/data/locker.json") ||
		!slices.Equal(config.Entrypoint, []string{"/locker"}) || config.ExposedPorts["8910/tcp"] == nil ||
		!slices.Equal(config.Healthcheck.Test, []string{"CMD", "/locker", "health"}) {
		t.Errorf("the image's configuration is %s", out)
	}
}

// A named volume keeps the locks over docker stop and a new container, and has
// one locker at a time.
func TestReleasedServerImageKeepsItsState(t *testing.T) {
	loadServerImage(t)
	kept := volume(t)
	first := runImage(t, kept)
	first.want("PUT", "/lock/a", `{"key": "k"}`, http.StatusOK)
	waiter := make(chan int, 1)
	go func() {
		status, _ := lockertest.Send(t.Context(), "PUT", first.url+"/lock/a", `{"key": "other", "id": "other", "wait": "50s"}`)
		waiter <- status
	}()
	lockertest.Eventually(t, "somebody waits", func() bool {
		_, lock := lockertest.Send(t.Context(), "GET", first.url+"/lock/a", "")
		return strings.Contains(string(lock), `"waiting":1`)
	})
	first.wantSecondRefused(kept)
	began := time.Now()
	if _, err := docker(t, nil, "stop", first.id); err != nil {
		t.Fatal(err)
	}
	if took, code := time.Since(began), first.inspect("{{.State.ExitCode}}"); code != "0" || took > lockertest.Patience/2 {
		t.Errorf("docker stop took %v, exit status %s", took, code)
	}
	if status := <-waiter; status != http.StatusServiceUnavailable {
		t.Errorf("who waited was answered %d", status)
	}
	second := runImage(t, kept)
	second.want("PUT", "/lock/a", `{"key": "other"}`, http.StatusLocked)
	second.want("DELETE", "/lock/a", `{"key": "k"}`, http.StatusOK)
}

func (c *container) wantSecondRefused(volume string) {
	c.t.Helper()
	out, code := runToEnd(c.t, "--volume="+volume+":/data")
	if code != 1 || !strings.Contains(out, "another locker") {
		c.t.Errorf("a second container: exit status %d, %s", code, out)
	}
}

// dockerSays returns all that the container engine's client prints.
func dockerSays(t testing.TB, args ...string) string {
	t.Helper()
	out, _ := exec.CommandContext(t.Context(), "docker", args...).CombinedOutput() // its status may be the container's
	return string(out)
}

// runToEnd runs the image until it ends, and returns what it said and its exit
// status.
func runToEnd(t testing.TB, options ...string) (said string, code int) {
	t.Helper()
	id, err := docker(t, nil, slices.Concat([]string{"create"}, hardened, options, []string{serverImage})...)
	if err != nil {
		t.Fatal(err)
	}
	c := &container{t: t, id: strings.TrimSpace(id)}
	defer c.remove()
	said = dockerSays(t, "start", "--attach", c.id)
	if _, err := fmt.Sscan(c.inspect("{{.State.ExitCode}}"), &code); err != nil {
		t.Fatal(err)
	}
	return said, code
}

// Another user than the image's needs a folder of its own.
func TestReleasedServerImageAsAnotherUser(t *testing.T) {
	loadServerImage(t)
	if out, code := runToEnd(t, "--user=4711:4712"); code != 2 || !strings.Contains(out, "folder /data: permission denied") {
		t.Errorf("exit status %d, %s", code, out)
	}
	folder := t.TempDir()
	if err := os.Chown(folder, 4711, 4712); err != nil {
		lockertest.Skip(t, err.Error())
	}
	c := runImage(t, folder, "--user=4711:4712")
	c.want("PUT", "/lock/a", `{"key": "k"}`, http.StatusOK)
	c.want("DELETE", "/lock/a", `{"key": "k"}`, http.StatusOK)
}

// Without credentials and without LISTEN nobody outside the container could
// reach the locker, and its log says so.
func TestReleasedServerImageSaysThatNobodyReachesIt(t *testing.T) {
	loadServerImage(t)
	id, err := docker(t, nil, "run", "--detach", serverImage)
	if err != nil {
		t.Fatal(err)
	}
	c := &container{t: t, id: strings.TrimSpace(id)}
	defer c.remove()
	lockertest.Eventually(t, "the log says it", func() bool {
		log := dockerSays(t, "logs", c.id)
		return strings.Contains(log, "inside the container only") && strings.Contains(log, "set AUTH_USER and AUTH_PASS, or LISTEN")
	})
}

// The image's health check follows the disk.
func TestReleasedServerImageHealth(t *testing.T) {
	loadServerImage(t)
	small := volume(t, "--opt=type=tmpfs", "--opt=device=tmpfs", "--opt=o=size=64k,mode=0700,uid=65532,gid=65532")
	c := runImage(t, small, "--health-interval=300ms", "--health-retries=1")
	c.awaitHealth("healthy")
	c.copyIn("fill", 1<<20)
	c.want("PUT", "/lock/a", `{"key": "`+strings.Repeat("k", 255)+`", "reason": "`+strings.Repeat("r", 255)+`"}`, http.StatusInsufficientStorage)
	c.awaitHealth("unhealthy")
	c.copyIn("fill", 0)
	c.awaitHealth("healthy")
	c.want("PUT", "/lock/a", `{"key": "k"}`, http.StatusOK)
}

// copyIn writes a file of that size, or as much of it as there is room for,
// beside the container's state.
func (c *container) copyIn(name string, size int) {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), name)
	lockertest.WriteFile(c.t, file, make([]byte, size))
	docker(c.t, nil, "cp", file, c.id+":/data/"+name)
}
