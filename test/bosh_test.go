package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file takes the BOSH release apart. That it is the same when it is made
// twice is TestRelease's.

// member is a file of an archive.
type member struct {
	name       string
	data       []byte
	executable bool
}

// untar returns the files of an archive in their order.
func untar(t *testing.T, archive []byte) (files []member) {
	t.Helper()
	unzipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(unzipped); ; {
		header, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag == tar.TypeDir {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil || header.Typeflag != tar.TypeReg || header.Uid != 0 || header.ModTime.Unix() != 0 {
			t.Fatalf("%s: %v, %+v", header.Name, err, header)
		}
		files = append(files, member{header.Name, data, header.Mode&0o111 != 0})
	}
}

// fingerprintOf is BOSH's fingerprint of the files of a job, a package or a
// license that depends on nothing.
func fingerprintOf(files []member) string {
	sorted := slices.SortedFunc(slices.Values(files), func(a, b member) int { return strings.Compare(a.name, b.name) })
	text := "v2"
	for _, file := range sorted {
		mode := "100644"
		if file.executable {
			mode = "100755"
		}
		if file.name == "packaging" || file.name == "LICENSE" {
			mode = ""
		}
		text += file.name + "sha256:" + digest(file.data) + mode
	}
	return digest([]byte(text))
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// part is what a release says of one of its parts.
type part struct {
	Name, Version, Fingerprint, Sha1 string
	Packages, Dependencies           []string
}

// manifest is release.MF.
type manifest struct {
	Name, Version      string
	CommitHash         string `json:"commit_hash"`
	UncommittedChanges bool   `json:"uncommitted_changes"`
	NoCompression      bool   `json:"no_compression"`
	Jobs, Packages     []part
	License            part
}

// names returns the names of files.
func names(files []member) (names []string) {
	for _, file := range files {
		names = append(names, file.name)
	}
	return names
}

// TestReleasedBosh looks for each thing that a director looks for in a release.
func TestReleasedBosh(t *testing.T) {
	need(t, "ruby")
	outer := untar(t, []byte(lockertest.Read(t, filepath.Join(releaseOnce(t), "locker-boshrelease.tgz"))))
	if got := names(outer); !slices.Equal(got, []string{"release.MF", "jobs/locker.tgz", "packages/locker.tgz", "license.tgz", "LICENSE"}) {
		t.Fatalf("the release has %q", got)
	}
	var said manifest
	unyaml(t, string(outer[0].data), &said)
	if said.Name != "locker" || said.Version != "1.2.3" || len(said.CommitHash) != 7 || said.UncommittedChanges || said.NoCompression || len(said.Jobs) != 1 || len(said.Packages) != 1 {
		t.Errorf("the release says %+v", said)
	}
	job := wantPart(t, said.Jobs[0], outer[1].data)
	wantPackage(t, wantPart(t, said.Packages[0], outer[2].data))
	wantPart(t, said.License, outer[3].data)
	if !slices.Equal(said.Jobs[0].Packages, []string{"locker"}) || said.Packages[0].Dependencies == nil || said.Packages[0].Name != "locker" {
		t.Errorf("the release says %+v", said)
	}
	wantJob(t, job)
}

// unyaml reads YAML as Ruby does, which a director is written in.
func unyaml(t *testing.T, text string, into any) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ruby", "-r", "yaml", "-r", "json", "-e", "print JSON.generate(YAML.safe_load($stdin.read, aliases: true))")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if err := json.Unmarshal(out, into); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// wantPart compares an archive with what the release says of it, and returns its
// files.
func wantPart(t *testing.T, said part, archive []byte) []member {
	t.Helper()
	files := untar(t, archive)
	if want := fingerprintOf(files); said.Version != want || said.Fingerprint != want || said.Sha1 != "sha256:"+digest(archive) {
		t.Errorf("the release says %+v of an archive with the fingerprint %s and the checksum %s", said, want, digest(archive))
	}
	return files
}

// wantPackage compiles a package as an agent does, and runs what is installed.
func wantPackage(t *testing.T, files []member) {
	t.Helper()
	if got := names(files); !slices.Equal(got, []string{"packaging", "locker/locker-linux-amd64"}) {
		t.Fatalf("the package has %q", got)
	}
	dir, target := t.TempDir(), filepath.Join(t.TempDir(), "locker")
	folder(t, target, 0o755)
	for _, file := range files {
		path := filepath.Join(dir, file.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		lockertest.WriteFile(t, path, file.data)
	}
	t.Setenv("BOSH_INSTALL_TARGET", target)
	command(t, dir, "bash", "packaging")
	program := filepath.Join(target, "bin/locker")
	if stat, err := os.Stat(program); err != nil || stat.Mode() != 0o755 {
		t.Fatalf("%v, %v", stat, err)
	}
	if !bytes.Contains(files[1].data, []byte("\x7fELF")) {
		t.Error("the program is not one for Linux")
	}
}

// jobSpec is what a job says of itself.
type jobSpec struct {
	Name       string
	Templates  map[string]string
	Packages   []string
	Provides   []struct{ Properties []string }
	Properties map[string]struct{ Description, Type string }
}

// wantJob compares a job's archive with the templates that its spec names.
func wantJob(t *testing.T, files []member) {
	t.Helper()
	var spec jobSpec
	unyaml(t, string(files[slices.Index(names(files), "job.MF")].data), &spec)
	want := []string{"job.MF", "monit"}
	for _, template := range slices.Sorted(maps.Keys(spec.Templates)) {
		want = append(want, "templates/"+template)
	}
	if got := names(files); !slices.Equal(got, want) {
		t.Errorf("the job has %q, its spec wants %q", got, want)
	}
	if spec.Name != "locker" || !slices.Equal(spec.Packages, []string{"locker"}) {
		t.Errorf("the spec says %+v", spec)
	}
}

// TestReleasedBoshFingerprints compares the release with that of the bosh
// command, where there is one.
func TestReleasedBoshFingerprints(t *testing.T) {
	if _, err := exec.LookPath("bosh"); err != nil {
		t.Skip("no bosh command: ", err) // also in CI
	}
	need(t, "ruby")
	dir := filepath.Join(t.TempDir(), "bosh")
	if err := os.CopyFS(dir, os.DirFS("bosh")); err != nil {
		t.Fatal(err)
	}
	command(t, ".", "cp", "LICENSE", dir)
	source := filepath.Join(dir, "src/locker")
	if err := os.MkdirAll(source, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, ".", "cp", filepath.Join(releaseOnce(t), "locker-linux-amd64"), source)
	theirs := filepath.Join(dir, "theirs.tgz")
	command(t, dir, "bosh", "--non-interactive", "create-release", "--force", "--tarball="+theirs)
	ours := filepath.Join(releaseOnce(t), "locker-boshrelease.tgz")
	command(t, dir, "bosh", "--non-interactive", "inspect-local-release", ours)
	if got, want := fingerprintsIn(t, ours), fingerprintsIn(t, theirs); got != want {
		t.Errorf("ours %s, theirs %s", got, want)
	}
}

func fingerprintsIn(t *testing.T, file string) string {
	t.Helper()
	var said manifest
	unyaml(t, command(t, ".", "tar", "-xzOf", file, "--wildcards", "*release.MF"), &said)
	return fmt.Sprint(said.Jobs[0].Fingerprint, said.Packages[0].Fingerprint, said.License.Fingerprint)
}
