package test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file plays the pipeline of the examples, with its task files, against a
// locker with a certificate that examples/tls.sh made.

// step is one of a job's.
type step struct {
	Get, Put, Task, File string
	NoGet                bool `json:"no_get"`
	Params               map[string]any
}

// examplePipeline is what the example says.
type examplePipeline struct {
	Resources []struct {
		Name   string
		Source map[string]any
	}
	Jobs []struct {
		Name   string
		Plan   []step
		Ensure step
	}
}

// concourse runs the example's jobs.
type concourse struct {
	t       *testing.T
	pipe    examplePipeline
	sources map[string]*lockertest.Pipeline
	locker  *lockertest.Locker
}

// build is one run of a job.
type build struct {
	*concourse
	id, dir string
	plan    []step
	ensure  step
	waiting *lockertest.Step // its put, when it has begun
}

// makeCertificate runs the example's script in dir, for 127.0.0.1.
func makeCertificate(t *testing.T, dir string) {
	t.Helper()
	need(t, "openssl", "sh")
	script, err := filepath.Abs("examples/tls.sh")
	if err != nil {
		t.Fatal(err)
	}
	command(t, dir, script, "locker.example", "127.0.0.1")
}

// setPipeline starts a locker and reads the pipeline for it.
func setPipeline(t *testing.T) *concourse {
	t.Helper()
	need(t, "ruby")
	dir := t.TempDir()
	makeCertificate(t, dir)
	c := &concourse{t: t, sources: map[string]*lockertest.Pipeline{}}
	c.locker = lockertest.Start(t, "SSL_CERT="+dir+"/locker.pem", "SSL_KEY="+dir+"/locker-key.pem", "AUTH_USER=jane", "AUTH_PASS=secret")
	unyaml(t, lockertest.Read(t, "examples/pipeline/pipeline.yml"), &c.pipe)
	values := map[string]string{
		"((locker_uri))": c.locker.URL, "((locker_ca))": lockertest.Read(t, dir+"/ca.pem"),
		"((locker_username))": "jane", "((locker_password))": "secret", "((ci_uri))": "",
	}
	for _, r := range c.pipe.Resources {
		for name, value := range r.Source {
			if filled, ok := values[value.(string)]; ok {
				r.Source[name] = filled
			}
		}
		c.sources[r.Name] = &lockertest.Pipeline{Source: r.Source}
	}
	return c
}

// begin starts a job up to its put, which it does not wait for.
func (c *concourse) begin(job, id string) *build {
	c.t.Helper()
	b := &build{concourse: c, id: id, dir: c.t.TempDir()}
	for _, j := range c.pipe.Jobs {
		if j.Name == job {
			b.plan, b.ensure = j.Plan, j.Ensure
		}
	}
	if len(b.plan) != 3 || b.plan[0].Get != "ci" || b.plan[1].Put == "" || b.plan[2].Task == "" || b.ensure.Put != b.plan[1].Put {
		c.t.Fatalf("job %s: %+v, %+v", job, b.plan, b.ensure)
	}
	if err := os.CopyFS(filepath.Join(b.dir, "ci"), os.DirFS("examples/pipeline")); err != nil {
		c.t.Fatal(err)
	}
	b.waiting = b.out(b.plan[1])
	return b
}

func (b *build) out(s step) *lockertest.Step {
	return b.sources[s.Put].Out(b.t, b.id, maps.Clone(s.Params))
}

// work waits for the lock, does the put's get, runs the task and returns what it
// prints.
func (b *build) work() string {
	b.t.Helper()
	version := b.waiting.OK(b.t).Version
	if put := b.plan[1]; !put.NoGet {
		request := map[string]any{"version": version, "params": nil}
		b.sources[put.Put].Begin(b.t, "in", b.id, request, filepath.Join(b.dir, put.Put)).OK(b.t)
	}
	var task struct {
		Platform string
		Inputs   []struct{ Name string }
		Run      struct {
			Path string
			Args []string
		}
	}
	unyaml(b.t, lockertest.Read(b.t, filepath.Join(b.dir, b.plan[2].File)), &task)
	for _, input := range task.Inputs {
		if _, err := os.Stat(filepath.Join(b.dir, input.Name)); err != nil {
			b.t.Errorf("the task's input: %v", err)
		}
	}
	cmd := exec.CommandContext(b.t.Context(), task.Run.Path, task.Run.Args...)
	cmd.Dir = b.dir
	out, err := cmd.CombinedOutput()
	if err != nil || task.Platform != "linux" {
		b.t.Errorf("the task: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// end does what a job's end does.
func (b *build) end() { b.out(b.ensure).OK(b.t) }

// waits wants the build to wait for its lock.
func (b *build) waits() {
	b.t.Helper()
	b.waiting.Said(b.t, "is next in line")
}

func TestExamplePipelineExcludesAndShares(t *testing.T) {
	t.Parallel()
	c := setPipeline(t)
	deploy := c.begin("deploy-staging", "1")
	if said := deploy.work(); said != "deploying" {
		t.Errorf("the task says %q", said)
	}
	api := c.begin("test-api", "2")
	api.waits()
	deploy.end()
	api.work()
	web := c.begin("test-web", "3")
	if said := web.work(); said != "testing" {
		t.Errorf("the task says %q", said)
	}
	next := c.begin("deploy-staging", "4")
	next.waits()
	api.end()
	web.end()
	next.work()
	next.end()
}

func TestExamplePipelineSlots(t *testing.T) {
	t.Parallel()
	c := setPipeline(t)
	var builds []*build
	var said []string
	for _, id := range []string{"1", "2", "3"} {
		b := c.begin("acceptance", id)
		said = append(said, b.work())
		builds = append(builds, b)
	}
	if want := []string{"testing in environment-1", "testing in environment-2", "testing in environment-3"}; !slices.Equal(said, want) {
		t.Errorf("the tasks say %q", said)
	}
	fourth := c.begin("acceptance", "4")
	fourth.waits()
	builds[1].end()
	if got := fourth.work(); got != said[1] {
		t.Errorf("the fourth build says %q", got)
	}
}

func TestExamplePipelineFences(t *testing.T) {
	t.Parallel()
	c := setPipeline(t)
	var tokens []int
	for _, id := range []string{"1", "2"} {
		b := c.begin("deploy-production", id)
		number, ok := strings.CutPrefix(b.work(), "deploying with the token ")
		token, err := strconv.Atoi(number)
		if !ok || err != nil {
			t.Fatalf("the task says %q", number)
		}
		tokens = append(tokens, token)
		b.end()
	}
	if tokens[0] >= tokens[1] {
		t.Errorf("tokens %d", tokens)
	}
}

// A certificate that is renewed is served without a restart, and the pipelines'
// ca_cert stays.
func TestExampleCertificateIsRenewed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	makeCertificate(t, dir)
	s := lockertest.Start(t, "SSL_CERT="+dir+"/locker.pem", "SSL_KEY="+dir+"/locker-key.pem")
	trust := trusting(t, dir+"/ca.pem")
	first, err := dialTLS(s, trust)
	if err != nil {
		t.Fatal(err)
	}
	makeCertificate(t, dir)
	lockertest.Eventually(t, "another certificate", func() bool {
		now, err := dialTLS(s, trust)
		return err == nil && now.PeerCertificates[0].SerialNumber.Cmp(first.PeerCertificates[0].SerialNumber) != 0
	})
	for name, mode := range map[string]os.FileMode{"ca-key.pem": 0o600, "locker-key.pem": 0o600} {
		if stat, err := os.Stat(filepath.Join(dir, name)); err != nil || stat.Mode() != mode {
			t.Errorf("%s: %v, %v", name, stat.Mode(), err)
		}
	}
	if out, err := exec.Command("examples/tls.sh").CombinedOutput(); err == nil || !strings.Contains(string(out), "usage: tls.sh NAME") {
		t.Errorf("without a name: %v, %s", err, out)
	}
}
