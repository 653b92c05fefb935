package test

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// TestRelease builds the release of one commit in two folders and wants the
// same bytes.
func TestRelease(t *testing.T) {
	one, two := releaseOnce(t), filepath.Join(t.TempDir(), "another, deeper/two")
	commit := commitTree(t, two)
	sums := lockertest.Read(t, filepath.Join(one, "SHA256SUMS"))
	if again := command(t, two, "bash", append([]string{"-c", otherBuilder, "bash"}, platforms()...)...); again != sums {
		t.Fatalf("in one folder\n%sand in another, by somebody else,\n%s", sums, again)
	}
	released := filepath.Join(two, "release")
	command(t, released, "sha256sum", "--check", "SHA256SUMS")
	for line := range strings.Lines(sums) {
		name := strings.Fields(line)[1]
		if platform := strings.Split(name, "-"); !strings.HasSuffix(name, ".tgz") {
			wantBuilt(t, filepath.Join(released, name), platform[1], platform[2], commit)
		}
	}
	want := "locker v1.2.3, commit " + commit + ", " + runtime.Version() + "\n"
	if got := command(t, released, "./locker-linux-"+runtime.GOARCH, "-version"); got != want {
		t.Errorf("-version prints %q, want %q", got, want)
	}
	t.Run("image", func(t *testing.T) {
		testReleasedImage(t, two)
	})
}

// platforms are those that tests build the release for: all in CI, this one
// elsewhere.
func platforms() []string {
	if os.Getenv("CI") != "" {
		return nil
	}
	return slices.Compact([]string{"linux/amd64", "linux/" + runtime.GOARCH})
}

var firstRelease struct {
	once   sync.Once
	folder string
}

// releaseOnce returns the folder of the release of this tree, which is built
// once.
func releaseOnce(t *testing.T) string {
	t.Helper()
	for _, program := range []string{"bash", "git", "sha256sum"} {
		if _, err := exec.LookPath(program); err != nil {
			lockertest.Skip(t, err.Error())
		}
	}
	firstRelease.once.Do(func() {
		folder, err := lockertest.Folder()
		if err != nil {
			t.Fatal(err)
		}
		folder = filepath.Join(folder, "one")
		commitTree(t, folder)
		command(t, folder, ".ci/release", platforms()...)
		firstRelease.folder = filepath.Join(folder, "release")
	})
	if firstRelease.folder == "" {
		t.Fatal("another test could not build the release")
	}
	return firstRelease.folder
}

// otherBuilder releases with settings that leave no trace.
const otherBuilder = `umask 077
mkdir ../tmp && chmod 2770 ../tmp
export TMPDIR=$PWD/../tmp GOAMD64=v3 GOFLAGS=-tags=x GOFIPS140=latest TAR_OPTIONS=--mtime=now LC_ALL=C.UTF-8
git config status.showUntrackedFiles no
git config core.autocrlf true
echo 'package main; func init() { println("not in the commit") }' > zz.go
exec .ci/release "$@"`

// commitTree makes dir a repository that has this tree as its only commit, with
// the tag v1.2.3, and returns the commit.
func commitTree(t *testing.T, dir string) string {
	t.Helper()
	if err := os.CopyFS(dir, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
		t.Fatal(err)
	}
	command(t, dir, "git", "init", "--quiet")
	command(t, dir, "git", "add", "--all")
	command(t, dir, "git", "commit", "--quiet", "--message", "everything")
	command(t, dir, "git", "tag", "v1.2.3")
	return strings.TrimSpace(command(t, dir, "git", "rev-parse", "HEAD"))
}

// command runs a program in dir and returns what it prints. Git does there what
// it does for everybody, whatever this user's settings and the repository
// that this runs for.
func command(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GIT_") })
	cmd.Env = append(cmd.Env, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	for _, who := range []string{"AUTHOR", "COMMITTER"} {
		cmd.Env = append(cmd.Env, "GIT_"+who+"_NAME=locker", "GIT_"+who+"_EMAIL=locker@example.com", "GIT_"+who+"_DATE=2026-11-23T10:00:00Z")
	}
	var said strings.Builder
	cmd.Dir, cmd.Stderr = dir, &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v: %s%s", program, strings.Join(args, " "), err, out, said.String())
	}
	return string(out)
}

// wantBuilt looks at what the build recorded in a program.
func wantBuilt(t *testing.T, file, system, arch, commit string) {
	t.Helper()
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range info.Settings {
		got[s.Key] = s.Value
	}
	for name, want := range map[string]string{"GOOS": system, "GOARCH": arch, "CGO_ENABLED": "0", "-trimpath": "true", "vcs.revision": commit, "vcs.modified": "false"} {
		if got[name] != want {
			t.Errorf("%s: %s is %q, want %q", file, name, got[name], want)
		}
	}
	if stat, err := os.Stat(file); err != nil || stat.Size() > maxProgram {
		t.Errorf("%s: %v, %d bytes", file, err, stat.Size())
	}
}

// testReleasedImage does with the image what the README says, which lets a
// container engine compare its checksums, and runs a program of it.
func testReleasedImage(t *testing.T, folder string) {
	needDocker(t)
	if runtime.GOARCH != "amd64" {
		lockertest.Skip(t, "the README's image is for amd64")
	}
	const image = "locker-resource:latest"
	for _, tag := range []string{image, "locker-resource:1.2.3", "registry.example/locker-resource:latest"} {
		keepTag(t, tag)
	}
	for _, b := range readmeBlocks(t, "release/locker-resource") {
		pasted := regexp.MustCompile("(?m)^docker push .*$").ReplaceAllString(b.text, "")
		command(t, folder, "bash", "-euo", "pipefail", "-c", pasted)
	}
	files := command(t, folder, "tar", "-tzf", "resource-types/locker/rootfs.tgz")
	for _, file := range imageFiles {
		if !strings.Contains(files, "."+file+"\n") {
			t.Errorf("the worker's own resource type has no %s, but\n%s", file, files)
		}
	}
	if got := filesIn(t, image); !slices.Equal(got, imageFiles) {
		t.Errorf("the image has %q, want %q", got, imageFiles)
	}
	request := strings.NewReader(`{"source": {"locker_uri": "http://127.0.0.1:1"}}`)
	cmd := exec.CommandContext(t.Context(), "docker", "run", "--rm", "-i", "--network", "none", image, "/opt/resource/check")
	cmd.Stdin = request
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "lock_name") {
		t.Errorf("check of the image: %v, %s", err, out)
	}
}

// keepTag gives a tag back to the image that has it now, or to none, in the end.
func keepTag(t *testing.T, tag string) {
	old, err := docker(t, nil, "image", "inspect", "--format", "{{.Id}}", tag)
	t.Cleanup(func() {
		exec.Command("docker", "rmi", "-f", tag).Run()
		if err == nil {
			exec.Command("docker", "tag", strings.TrimSpace(old), tag).Run()
		}
	})
}
