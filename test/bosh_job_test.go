package test

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file renders the BOSH job's templates as a director does, and starts the
// locker with what they say.

// director renders a job's templates with properties, of which a template sees
// those that the job's spec declares.
const director = `
require 'erb'
require 'json'
require 'yaml'

class Context
  def initialize(properties) = @properties = properties

  def p(name, *default)
    value = @properties.dig(*name.split('.'))
    return value unless value.nil?
    raise "Can't find property '#{name}'" if default.empty?
    default[0]
  end

  def spec = Struct.new(:ip).new(ENV.fetch('INSTANCE_IP'))

  def render(template) = ERB.new(template, trim_mode: '-').result(binding)
end

spec = YAML.safe_load(File.read('spec'))
given = JSON.parse($stdin.read)
seen = {}
spec['properties'].each do |name, about|
  *path, last = name.split('.')
  inner = path.reduce(seen) { |at, part| at[part] ||= {} }
  value = given.dig(*path, last)
  inner[last] = value.nil? ? about['default'] : value
end
begin
  files = spec['templates'].to_h { |from, to| [to, Context.new(seen).render(File.read("templates/#{from}", encoding: 'utf-8'))] }
  print JSON.generate('files' => files)
rescue RuntimeError => e
  print JSON.generate('error' => e.message)
end
`

// properties are those of a manifest under locker.
type properties map[string]any

// render returns the files of a job by their paths, or why a director would not
// deploy it.
func render(t *testing.T, given properties) (files map[string]string, refused string) {
	t.Helper()
	need(t, "ruby")
	cmd := exec.CommandContext(t.Context(), "ruby", "-e", director)
	cmd.Dir, cmd.Env = "bosh/jobs/locker", append(os.Environ(), "INSTANCE_IP=127.0.0.1")
	cmd.Stdin = strings.NewReader(string(encode(map[string]any{"locker": given})))
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	var answer struct {
		Files map[string]string
		Error string
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return answer.Files, answer.Error
}

// process is what bpm is told of a process.
type process struct {
	Name, Executable string
	Env              map[string]string
	PersistentDisk   bool `json:"persistent_disk"`
	Limits           struct {
		OpenFiles int `json:"open_files"`
	}
}

func bpmProcess(t *testing.T, files map[string]string) process {
	t.Helper()
	var bpm struct{ Processes []process }
	if err := json.Unmarshal([]byte(files["config/bpm.yml"]), &bpm); err != nil || len(bpm.Processes) != 1 {
		t.Fatalf("bpm.yml: %v: %s", err, files["config/bpm.yml"])
	}
	return bpm.Processes[0]
}

const oddPassword = "p\"a$HOME`id`\\'x'c%d €😀"

func TestBoshProperties(t *testing.T) {
	t.Parallel()
	const state = "LOCKER_CONFIG=/var/vcap/store/locker/locker.yml"
	const secured = " SSL_CERT=/var/vcap/jobs/locker/config/ssl.crt SSL_KEY=/var/vcap/jobs/locker/config/ssl.key"
	pair := properties{"certificate": "CERT", "private_key": "KEY", "ca": "CA"}
	for name, test := range map[string]struct {
		given        properties
		env, refused string
	}{
		"an address":             {given: properties{"address": "0.0.0.0"}, env: "LISTEN=0.0.0.0:8910 " + state + " PORT=8910"},
		"an address of IPv6":     {given: properties{"address": "::"}, env: "LISTEN=[::]:8910 " + state + " PORT=8910"},
		"credentials":            {given: properties{"user": "u", "password": "p"}, env: "AUTH_PASS=p AUTH_USER=u " + state + " PORT=8910"},
		"credentials of numbers": {given: properties{"user": 1, "password": 234, "port": 80}, env: "AUTH_PASS=234 AUTH_USER=1 " + state + " PORT=80"},
		"a hard password":        {given: properties{"user": "u", "password": oddPassword}, env: "AUTH_PASS=" + oddPassword + " AUTH_USER=u " + state + " PORT=8910"},
		"TLS":                    {given: properties{"address": "a", "tls": pair}, env: "LISTEN=a:8910 " + state + " PORT=8910" + secured},
		"TLS as in 2017":         {given: properties{"address": "a", "ssl_cert": "CERT", "ssl_key": "KEY"}, env: "LISTEN=a:8910 " + state + " PORT=8910" + secured},
		"empty ones of 2017":     {given: properties{"address": "a", "user": "", "password": "", "ssl_cert": "", "ssl_key": ""}, env: "LISTEN=a:8910 " + state + " PORT=8910"},
		"etcd": {given: properties{"user": "u", "password": "p", "etcd": properties{"urls": "http://10.0.0.1:2379,http://10.0.0.2:2379"}},
			env: "AUTH_PASS=p AUTH_USER=u LOCKER_ADVERTISE=http://127.0.0.1:8910 " + state + " LOCKER_ETCD=http://10.0.0.1:2379,http://10.0.0.2:2379 LOCKER_ETCD_PREFIX=/locker/ PORT=8910"},
		"all of etcd": {given: properties{"address": "a", "tls": pair, "etcd": properties{"urls": []string{"https://x:2379", "https://y:2379"}, "prefix": "/l/", "user": "eu", "password": "$ep", "ca": "CA", "tls": pair}},
			env: "LISTEN=a:8910 LOCKER_ADVERTISE=https://127.0.0.1:8910 " + state + " LOCKER_ETCD=https://x:2379,https://y:2379 LOCKER_ETCD_CA=/var/vcap/jobs/locker/config/etcd_ca.crt LOCKER_ETCD_CERT=/var/vcap/jobs/locker/config/etcd.crt LOCKER_ETCD_KEY=/var/vcap/jobs/locker/config/etcd.key LOCKER_ETCD_PASS=$ep LOCKER_ETCD_PREFIX=/l/ LOCKER_ETCD_USER=eu PORT=8910" + secured},

		"nothing":                         {refused: "nobody could reach the locker"},
		"misspelt":                        {given: properties{"user": "u", "pasword": "p"}, refused: "locker.user is set but locker.password is not"},
		"a password only":                 {given: properties{"password": "p"}, refused: "locker.password is set but locker.user is not"},
		"a user only, at an address":      {given: properties{"user": "u", "address": "a"}, refused: "locker.user is set but locker.password is not"},
		"a line's end in a password":      {given: properties{"user": "u", "password": "p\n"}, refused: "locker.password has a control character"},
		"a control character in user":     {given: properties{"user": "u\u0085", "password": "p"}, refused: "locker.user has a control character"},
		"a colon in user":                 {given: properties{"user": "a:b", "password": "p"}, refused: "locker.user has a colon"},
		"a certificate only":              {given: properties{"address": "a", "ssl_cert": "CERT"}, refused: "locker.ssl_cert is set but locker.ssl_key is not"},
		"a key only":                      {given: properties{"address": "a", "ssl_key": "KEY"}, refused: "locker.ssl_key is set but locker.ssl_cert is not"},
		"half of TLS":                     {given: properties{"address": "a", "tls": properties{"certificate": "CERT"}}, refused: "locker.tls has no private_key"},
		"the other half":                  {given: properties{"address": "a", "tls": properties{"private_key": "KEY"}}, refused: "locker.tls has no certificate"},
		"etcd's user without password":    {given: properties{"address": "a", "etcd": properties{"urls": "u", "user": "u"}}, refused: "locker.etcd.user is set but locker.etcd.password is not"},
		"a line's end in etcd's password": {given: properties{"address": "a", "etcd": properties{"urls": "u", "user": "u", "password": "p\n"}}, refused: "locker.etcd.password has a control character"},
		"half of etcd's TLS":              {given: properties{"address": "a", "etcd": properties{"urls": "u", "tls": properties{"certificate": "CERT"}}}, refused: "locker.etcd.tls has no private_key"},
		"etcd misspelt":                   {given: properties{"address": "a", "etcd": properties{"url": "u", "user": "u", "password": "p"}}, refused: "locker.etcd.user is set but locker.etcd.urls is not"},
		"TLS twice":                       {given: properties{"address": "a", "tls": pair, "ssl_cert": "CERT", "ssl_key": "KEY"}, refused: "locker.tls and locker.ssl_cert are both set"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files, refused := render(t, test.given)
			if refused != "" || test.refused != "" {
				if test.refused == "" || !strings.Contains(refused, test.refused) {
					t.Errorf("refused with %q, want %q", refused, test.refused)
				}
				return
			}
			p := bpmProcess(t, files)
			var env []string
			for _, name := range slices.Sorted(maps.Keys(p.Env)) {
				env = append(env, name+"="+p.Env[name])
			}
			if got := strings.Join(env, " "); got != test.env {
				t.Errorf("the environment is %q, want %q", got, test.env)
			}
			if p.Name != "locker" || p.Executable != "/var/vcap/packages/locker/bin/locker" || !p.PersistentDisk || p.Limits.OpenFiles != 16384 {
				t.Errorf("%+v", p)
			}
			for setting, file := range map[string][2]string{"SSL_CERT": {"ssl.crt", "CERT"}, "SSL_KEY": {"ssl.key", "KEY"}, "LOCKER_ETCD_CA": {"etcd_ca.crt", "CA"}, "LOCKER_ETCD_CERT": {"etcd.crt", "CERT"}, "LOCKER_ETCD_KEY": {"etcd.key", "KEY"}} {
				if got := strings.TrimSpace(files["config/"+file[0]]); p.Env[setting] != "" && got != file[1] || p.Env[setting] == "" && got != "" {
					t.Errorf("%s is %q", file[0], got)
				}
			}
		})
	}
}

// What the templates ask for, the spec declares; the link's properties too.
func TestBoshPropertiesAreDeclared(t *testing.T) {
	need(t, "ruby")
	var spec jobSpec
	unyaml(t, lockertest.Read(t, "bosh/jobs/locker/spec"), &spec)
	used := map[string]bool{}
	for template := range spec.Templates {
		for _, name := range regexp.MustCompile(`locker\.(?:etcd\.)?[a-z]+(?:_[a-z]+)*`).FindAllString(lockertest.Read(t, "bosh/jobs/locker/templates/"+template), -1) {
			used[name] = true
		}
	}
	for _, link := range spec.Provides {
		for _, name := range link.Properties {
			if _, ok := spec.Properties[name]; !ok {
				t.Errorf("the link has %s, which the spec does not declare", name)
			}
		}
	}
	for name, about := range spec.Properties {
		if !used[name] || about.Description == "" {
			t.Errorf("%s is never used, or not described", name)
		}
	}
}

// instance is a machine with the job, in a folder.
type instance struct {
	t   *testing.T
	dir string
	*lockertest.Locker
}

// deploy renders the job and starts the locker with the environment that bpm
// gives it, and no other.
func deploy(t *testing.T, given properties) *instance {
	t.Helper()
	given["port"] = lockertest.FreePort(t)
	files, refused := render(t, given)
	if refused != "" {
		t.Fatal(refused)
	}
	v := &instance{t: t, dir: t.TempDir()}
	here := strings.NewReplacer("/var/vcap", v.dir, "+ 60))", "+ 4))")
	for name, text := range files {
		v.write("jobs/locker/"+name, here.Replace(text))
	}
	v.write("store/locker/.keep", "")
	program := filepath.Join(v.dir, "packages/locker/bin/locker")
	if err := errors.Join(os.MkdirAll(filepath.Dir(program), 0o755), os.Symlink(lockertest.Program(t, "locker"), program)); err != nil {
		t.Fatal(err)
	}
	env := []string{"LISTEN="}
	for name, value := range bpmProcess(t, files).Env {
		env = append(env, name+"="+here.Replace(value))
	}
	v.fillable()
	v.Locker = lockertest.Start(t, env...)
	return v
}

func (v *instance) write(name, text string) {
	v.t.Helper()
	path := filepath.Join(v.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
		v.t.Fatal(err)
	}
}

// fillable gives the machine a small persistent disk, where that can be done.
func (v *instance) fillable() {
	store := filepath.Join(v.dir, "store/locker")
	if syscall.Mount("tmpfs", store, "tmpfs", 0, "size=64k") == nil {
		v.t.Cleanup(func() { syscall.Unmount(store, syscall.MNT_DETACH) })
	}
}

// wantStatus runs one of the job's programs.
func (v *instance) wantStatus(program string, well bool) {
	v.t.Helper()
	cmd := exec.CommandContext(v.t.Context(), filepath.Join(v.dir, "jobs/locker", program))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	if (err == nil) != well {
		v.t.Errorf("%s: %v: %s", program, err, out)
	}
	if program == "bin/post-start" && !well && !strings.Contains(string(out), "sys/log/locker/locker.stderr.log") {
		v.t.Errorf("%s does not name the log: %s", program, out)
	}
}

func (v *instance) wantAll(well bool) {
	v.t.Helper()
	for _, program := range []string{"bin/health", "bin/dns/healthy", "bin/post-start"} {
		v.wantStatus(program, well)
	}
}

// A password is what the manifest says, whatever a shell would make of it.
func TestBoshPassword(t *testing.T) {
	t.Parallel()
	v := deploy(t, properties{"user": "jane", "password": oddPassword})
	for password, want := range map[string]int{oddPassword: http.StatusOK, "another": http.StatusUnauthorized, "": http.StatusUnauthorized} {
		req, err := http.NewRequestWithContext(t.Context(), "PUT", v.URL+"/lock/a", strings.NewReader(`{"key": "k", "id": "1"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("jane", password)
		answer, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("with the password %q: %s, want %d", password, answer.Status, want)
		}
	}
	v.wantAll(true)
}

// The job's health follows the locker: up, on a full disk, and stopped.
func TestBoshHealth(t *testing.T) {
	t.Parallel()
	lockertest.NeedRoot(t)
	v := deploy(t, properties{"address": "127.0.0.1"})
	v.wantAll(true)
	filler := filepath.Join(v.dir, "store/locker/filler")
	if err := os.WriteFile(filler, make([]byte, 64<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	v.Want("PUT", "/lock/a", `{"key": "k"}`, http.StatusInsufficientStorage)
	v.wantAll(false)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	v.wantStatus("bin/post-start", true) // it tries until there is room
	v.Stop()
	v.wantAll(false)
}

// The certificate of a manifest is served, by either property.
func TestBoshTLS(t *testing.T) {
	t.Parallel()
	certFile, keyFile := lockertest.NewCertificate(t, t.TempDir(), "locker")
	cert, key := lockertest.Read(t, certFile), lockertest.Read(t, keyFile)
	for name, given := range map[string]properties{
		"tls":  {"address": "127.0.0.1", "tls": properties{"certificate": cert, "private_key": key, "ca": cert}},
		"2017": {"address": "127.0.0.1", "ssl_cert": cert, "ssl_key": key},
	} {
		t.Run(name, func(t *testing.T) {
			v := deploy(t, given)
			if _, err := dialTLS(v.Locker, trusting(t, certFile)); err != nil {
				t.Error(err)
			}
			v.wantAll(true)
		})
	}
}

// Two instances serve one set of locks, once it was begun; the one that does not
// lead is well too.
func TestBoshSeveral(t *testing.T) {
	t.Parallel()
	etcd := lockertest.StartEtcd(t, 1)
	given := properties{"address": "127.0.0.1", "etcd": properties{"urls": etcd.URLs}}
	one := deploy(t, given)
	one.wantAll(false)
	transfer(t, []string{"LOCKER_ETCD=" + etcd.URLs[0]}, 0, "import", "-empty")
	one.wantStatus("bin/post-start", true)
	two := deploy(t, given)
	two.wantStatus("bin/post-start", true)
	one.Want("PUT", "/lock/a", `{"key": "k"}`, http.StatusOK)
	two.Want("PUT", "/lock/a", `{"key": "other"}`, http.StatusLocked)
	leads := []string{healthOf(one.Locker).Status, healthOf(two.Locker).Status}
	if slices.Sort(leads); !slices.Equal(leads, []string{"ok", "standby"}) {
		t.Errorf("%q", leads)
	}
	one.wantAll(true)
	two.wantAll(true)
}
