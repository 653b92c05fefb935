package main

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestRelease builds the release of one commit in two folders and wants the
// same bytes: for every platform in CI, for this one elsewhere.
func TestRelease(t *testing.T) {
	for _, program := range []string{"bash", "git", "sha256sum"} {
		if _, err := exec.LookPath(program); err != nil {
			skip(t, err.Error())
		}
	}
	var platforms []string
	if os.Getenv("CI") == "" {
		platforms = slices.Compact([]string{"linux/amd64", "linux/" + runtime.GOARCH})
	}
	var sums, commits []string
	var folder string
	for _, name := range []string{"one", "another, deeper/two"} {
		folder = filepath.Join(t.TempDir(), name)
		commits = append(commits, commitTree(t, folder))
		sums = append(sums, command(t, folder, ".ci/release", platforms...))
	}
	if commits[0] != commits[1] || sums[0] != sums[1] {
		t.Fatalf("commit %s in one folder:\n%s\ncommit %s in another:\n%s", commits[0], sums[0], commits[1], sums[1])
	}
	released := filepath.Join(folder, "release")
	command(t, released, "sha256sum", "--check", "SHA256SUMS")
	for line := range strings.Lines(sums[0]) {
		name := strings.Fields(line)[1]
		if platform := strings.Split(strings.TrimPrefix(name, "locker-"), "-"); platform[0] != "resource" {
			wantBuilt(t, filepath.Join(released, name), platform[0], platform[1], commits[0])
		}
	}
	want := "locker v1.2.3, commit " + commits[0] + ", " + runtime.Version() + "\n"
	if got := command(t, released, "./locker-linux-"+runtime.GOARCH, "-version"); got != want {
		t.Errorf("-version prints %q, want %q", got, want)
	}
	t.Run("image", func(t *testing.T) {
		testReleasedImage(t, folder)
	})
}

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
	for _, name := range []string{"AUTHOR", "COMMITTER"} {
		t.Setenv("GIT_"+name+"_NAME", "locker")
		t.Setenv("GIT_"+name+"_EMAIL", "locker@example.com")
		t.Setenv("GIT_"+name+"_DATE", "2026-11-23T10:00:00Z")
	}
	command(t, dir, "git", "init", "--quiet")
	command(t, dir, "git", "add", "--all")
	command(t, dir, "git", "commit", "--quiet", "--message", "everything")
	command(t, dir, "git", "tag", "v1.2.3")
	return strings.TrimSpace(command(t, dir, "git", "rev-parse", "HEAD"))
}

// command runs a program in dir and returns what it prints.
func command(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
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
		skip(t, "the README's image is for amd64")
	}
	const image = "locker-resource:latest"
	if _, err := docker(t, nil, "image", "inspect", image); err != nil {
		t.Cleanup(func() { exec.Command("docker", "rmi", "-f", image).Run() })
	}
	for _, b := range readmeBlocks(t, "release/locker-resource") {
		pasted := regexp.MustCompile("(?m)^docker push .*$").ReplaceAllString(b.text, "")
		command(t, folder, "bash", "-euo", "pipefail", "-c", pasted)
	}
	t.Cleanup(func() { exec.Command("docker", "rmi", "registry.example/locker-resource").Run() })
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
