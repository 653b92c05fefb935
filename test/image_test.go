package test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

const maxProgram = 9 << 20 // bytes of a stripped program; net/http's client, by which etcd is reached, is one of them

// The programs are small and need no other file.
func TestSize(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"check", "in", "out"} {
		data, err := os.ReadFile(lockertest.Released(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > maxProgram {
			t.Errorf("%s has %d bytes, more than %d", name, len(data), maxProgram)
		}
		if bytes.Contains(data, []byte("ld-linux")) || bytes.Contains(data, []byte("ld-musl")) {
			t.Errorf("%s is not static", name)
		}
	}
}

// docker runs the container engine's client.
func docker(t testing.TB, stdin io.Reader, args ...string) (stdout string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "docker", args...)
	var out, said strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &said
	if err = cmd.Run(); err != nil {
		t.Logf("docker %s: %v: %s", strings.Join(args, " "), err, said.String())
	}
	return out.String(), err
}

func needDocker(t *testing.T) {
	t.Helper()
	if _, err := docker(t, nil, "version", "--format", "{{.Server.Version}}"); err != nil {
		lockertest.Skip(t, "needs a container engine: none answers")
	}
}

// imageFiles are all that the image has.
var imageFiles = []string{"/etc/ssl/certs/ca-certificates.crt", "/opt/resource/check", "/opt/resource/in", "/opt/resource/out"}

// The image holds the programs and the certificate authorities, and the seed's
// steps run in it, as root and as any other user.
func TestImage(t *testing.T) {
	t.Parallel()
	needDocker(t)
	image := buildImage(t)
	s := lockertest.Start(t)
	for _, user := range []string{"0:0", "4711:4712"} {
		run := func(program, request string, args ...string) string {
			t.Helper()
			request = `{"source":{"locker_uri":"http://` + s.Address + `","lock_name":"myLock"},` + request + `}`
			args = append([]string{"run", "--rm", "-i", "--network", "host", "--user", user, "-e", "ATC_EXTERNAL_URL=http://ci", "-e", "BUILD_ID=1"}, args...)
			out, err := docker(t, strings.NewReader(request), append(args, image, "/opt/resource/"+program, "/tmp/build")...)
			if err != nil || !json.Valid([]byte(out)) {
				t.Fatalf("%s as %s: %v, answered %s", program, user, err, out)
			}
			return out
		}
		run("out", `"params":{"key":"exclusive-job-1","lock_op":"lock"}`)
		volume := t.TempDir()
		if err := os.Chmod(volume, 0o777); err != nil {
			t.Fatal(err)
		}
		run("in", `"version":{"ref":"1"}`, "-v", volume+":/tmp/build")
		if owners, err := os.ReadFile(filepath.Join(volume, "lock")); err != nil || string(owners) != "exclusive-job-1\n" {
			t.Errorf("in as %s wrote %q, %v", user, owners, err)
		}
		run("out", `"params":{"key":"exclusive-job-1","lock_op":"unlock"}`)
		if out := run("check", `"version":null`); !strings.HasPrefix(out, `[{"ref":"`) {
			t.Errorf("check as %s answered %s", user, out)
		}
	}
}

// buildImage builds the image as its Dockerfile says, and returns its name.
func buildImage(t *testing.T) string {
	t.Helper()
	context := t.TempDir()
	for _, name := range []string{"check", "in", "out"} {
		if err := os.Link(lockertest.Released(t, name), filepath.Join(context, name)); err != nil {
			t.Fatal(err)
		}
	}
	bundle, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		t.Fatalf("%v: install the ca-certificates of this machine", err)
	}
	if err := os.WriteFile(filepath.Join(context, "ca-certificates.crt"), bundle, 0o644); err != nil {
		t.Fatal(err)
	}
	image := "locker-resource-test:" + strings.ToLower(filepath.Base(filepath.Dir(context)))
	if _, err := docker(t, nil, "build", "--network=none", "-f", "resource/Dockerfile", "-t", image, context); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("docker", "rmi", "-f", image).Run() })
	if got := filesIn(t, image); !slices.Equal(got, imageFiles) {
		t.Errorf("the image has %q, want %q", got, imageFiles)
	}
	return image
}

// filesIn returns the regular files of an image that have something in them:
// the engine puts empty ones where it mounts its own.
func filesIn(t testing.TB, image string) (files []string) {
	t.Helper()
	id, err := docker(t, nil, "create", image, "/opt/resource/check")
	if err != nil {
		t.Fatal(err)
	}
	id = strings.TrimSpace(id)
	defer exec.Command("docker", "rm", "-f", id).Run()
	layers, err := docker(t, nil, "export", id)
	if err != nil {
		t.Fatal(err)
	}
	for archive := tar.NewReader(strings.NewReader(layers)); ; {
		file, err := archive.Next()
		if err == io.EOF {
			slices.Sort(files)
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		if file.Typeflag == tar.TypeReg && file.Size > 0 {
			files = append(files, "/"+file.Name)
		}
	}
}
