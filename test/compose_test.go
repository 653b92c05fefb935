package test

import (
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// The document's commands bring a locker up whose locks outlive its container.
func TestReleasedCompose(t *testing.T) {
	loadServerImage(t)
	dir := t.TempDir()
	folder(t, filepath.Join(dir, "examples"), 0o755)
	const name = "examples/docker-compose.yml"
	file := strings.Replace(lockertest.Read(t, name), `"8910:8910"`, `"127.0.0.1::8910"`, 1)
	lockertest.WriteFile(t, filepath.Join(dir, name), []byte(file))
	if err := os.Symlink(releaseOnce(t), filepath.Join(dir, "release")); err != nil {
		t.Fatal(err)
	}
	compose := composer(t, dir)
	t.Cleanup(func() { compose("docker compose --file " + name + " down --volumes") })
	up := func(commands string) *container {
		t.Helper()
		compose(commands)
		c := &container{t: t, id: strings.TrimSpace(compose("docker compose --file " + name + " ps --quiet locker"))}
		c.await()
		_, password, _ := strings.Cut(lockertest.Read(t, filepath.Join(dir, "examples/locker.env")), "AUTH_PASS=")
		c.url = strings.Replace(c.url, "://", "://test:"+url.PathEscape(strings.TrimSpace(password))+"@", 1)
		return c
	}
	first := up(readmeBlock(t, "docker compose"))
	first.awaitHealth("healthy")
	first.want("PUT", "/lock/a", `{"key": "k"}`, http.StatusOK)
	second := up("docker compose --file " + name + " down && docker compose --file " + name + " up --detach")
	second.want("PUT", "/lock/a", `{"key": "other"}`, http.StatusLocked)
}

// composer returns what runs commands in a folder, for a project of their own;
// where Compose is not Docker's plugin but a program, by that.
func composer(t *testing.T, dir string) func(commands string) string {
	t.Helper()
	plugin := exec.Command("docker", "compose", "version").Run() == nil
	if _, err := exec.LookPath("docker-compose"); err != nil && !plugin {
		lockertest.Skip(t, err.Error())
	}
	project := strings.ToLower(filepath.Base(filepath.Dir(dir)))
	return func(commands string) string {
		t.Helper()
		if !plugin {
			commands = strings.ReplaceAll(commands, "docker compose", "docker-compose")
		}
		cmd := exec.Command("bash", "-euc", commands) // also when the test is over
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "COMPOSE_PROJECT_NAME="+project)
		var said strings.Builder
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s%s", commands, err, out, said.String())
		}
		return string(out)
	}
}
