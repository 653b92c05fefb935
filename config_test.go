package main

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// canary is every password here; no message may have it.
const canary = "canary-8fK2"

// parse is parseConfig with that environment, as NAME=value.
func parse(t testing.TB, args []string, env ...string) (cfg *config, stdout string, err error) {
	t.Helper()
	getenv := func(name string) string {
		for _, e := range env {
			if value, ok := strings.CutPrefix(e, name+"="); ok {
				return value
			}
		}
		return ""
	}
	var out bytes.Buffer
	cfg, err = parseConfig(args, getenv, &out, slog.New(slog.DiscardHandler))
	if err != nil && strings.Contains(err.Error(), canary) || strings.Contains(out.String(), canary) {
		t.Errorf("a password is shown: %v %s", err, out.String())
	}
	return cfg, out.String(), err
}

func TestConfigAccepted(t *testing.T) {
	t.Chdir(t.TempDir())
	certFile, keyFile := lockertest.NewCertificate(t, ".", "locker")
	for _, test := range []struct {
		name string
		args []string
		env  []string
		want config // credentials and certificate: any, when they are to be there
	}{
		{"nothing", nil, nil,
			config{state: "locker.json", listen: "127.0.0.1:8910", localOnly: true}},
		{"credentials listen everywhere", nil, []string{"AUTH_USER=george", "AUTH_PASS=" + canary},
			config{state: "locker.json", listen: ":8910", credentials: &credentials{}}},
		{"a password with a colon", nil, []string{"AUTH_USER=george", "AUTH_PASS=:" + canary + ":"},
			config{state: "locker.json", listen: ":8910", credentials: &credentials{}}},
		{"port", nil, []string{"PORT=9000"},
			config{state: "locker.json", listen: "127.0.0.1:9000", localOnly: true}},
		{"port and credentials", nil, []string{"PORT=65535", "AUTH_USER=george", "AUTH_PASS=" + canary},
			config{state: "locker.json", listen: ":65535", credentials: &credentials{}}},
		{"LISTEN is obeyed without credentials", nil, []string{"LISTEN=0.0.0.0:80"},
			config{state: "locker.json", listen: "0.0.0.0:80"}},
		{"LISTEN beats PORT", nil, []string{"LISTEN=127.0.0.2:1", "PORT=2"},
			config{state: "locker.json", listen: "127.0.0.2:1"}},
		{"LISTEN beats -port", []string{"-port", "2"}, []string{"LISTEN=127.0.0.2:1"},
			config{state: "locker.json", listen: "127.0.0.2:1"}},
		{"LISTEN without a host", nil, []string{"LISTEN=:0"},
			config{state: "locker.json", listen: ":0"}},
		{"LISTEN for IPv6", nil, []string{"LISTEN=[::1]:8910"},
			config{state: "locker.json", listen: "[::1]:8910"}},
		{"LISTEN for a name", nil, []string{"LISTEN=localhost:8910"},
			config{state: "locker.json", listen: "localhost:8910"}},
		{"state", nil, []string{"LOCKER_CONFIG=./other.json"},
			config{state: "./other.json", listen: "127.0.0.1:8910", localOnly: true}},
		{"certificate", nil, []string{"SSL_CERT=" + certFile, "SSL_KEY=" + keyFile},
			config{state: "locker.json", listen: "127.0.0.1:8910", localOnly: true, certificate: &certificate{}}},
		{"flags beat variables", []string{"-state=f.json", "-port=7", "-ssl-cert=" + certFile, "-ssl-key", keyFile},
			[]string{"LOCKER_CONFIG=/missing/v.json", "PORT=x", "SSL_CERT=/missing/c", "SSL_KEY=/missing/k"},
			config{state: "f.json", listen: "127.0.0.1:7", localOnly: true, certificate: &certificate{}}},
		{"-listen beats LISTEN", []string{"-listen", "127.0.0.1:5"}, []string{"LISTEN=nonsense"},
			config{state: "locker.json", listen: "127.0.0.1:5"}},
		{"empty variables are unset", nil,
			[]string{"LOCKER_CONFIG=", "LISTEN=", "PORT=", "AUTH_USER=", "AUTH_PASS=", "SSL_CERT=", "SSL_KEY="},
			config{state: "locker.json", listen: "127.0.0.1:8910", localOnly: true}},
		{"-help", []string{"-help"}, []string{"PORT=x"}, config{done: true}},
		{"-version", []string{"-version"}, []string{"PORT=x"}, config{done: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, _, err := parse(t, test.args, test.env...)
			if err != nil {
				t.Fatal(err)
			}
			if (got.credentials != nil) != (test.want.credentials != nil) || (got.certificate != nil) != (test.want.certificate != nil) {
				t.Errorf("credentials %v, certificate %v", got.credentials != nil, got.certificate != nil)
			}
			plain := *got
			plain.stateBy, plain.listenBy = "", "" // see TestTroubleNamesTheSetting
			plain.credentials, plain.certificate = test.want.credentials, test.want.certificate
			if plain != test.want {
				t.Errorf("got %+v, want %+v", plain, test.want)
			}
		})
	}
}

func TestConfigRefused(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	certFile, keyFile := lockertest.NewCertificate(t, dir, "locker")
	other := filepath.Join(dir, "other")
	folder(t, other, 0o700)
	_, otherKey := lockertest.NewCertificate(t, other, "other")
	lockertest.WriteFile(t, "empty", nil)
	lockertest.WriteFile(t, "garbage", []byte("no PEM at all"))
	if err := os.Symlink("missing.json", "dangling.json"); err != nil {
		t.Fatal(err)
	}
	const bothOrNeither, number, hostPort = "set both, or neither", "it must be a number from 1 to 65535", "it must be host:port"
	const readable, pair, writable = "that the locker can read", "name a certificate and its own key", "name a file in a folder that the locker can write"
	for _, test := range []struct {
		name string
		args []string
		env  []string
		want []string // what the one problem has: variable, value, mend
	}{
		{"a state file named as a lock", nil, []string{"LOCKER_CONFIG=locker.lock"}, []string{`LOCKER_CONFIG is "locker.lock"`, "names that end in .lock or .v1", "choose another name"}},
		{"a state file named as a copy", nil, []string{"LOCKER_CONFIG=locker.v1"}, []string{`LOCKER_CONFIG is "locker.v1"`, "names that end in .lock or .v1", "choose another name"}},
		{"a state file's name too long", nil, []string{"LOCKER_CONFIG=" + strings.Repeat("x", 238)}, []string{"its name has 238 bytes", "at most 237 are allowed", writable}},
		{"user alone", nil, []string{"AUTH_USER=george"}, []string{"AUTH_USER is set but AUTH_PASS is not", bothOrNeither}},
		{"password alone", nil, []string{"AUTH_PASS=" + canary}, []string{"AUTH_PASS is set but AUTH_USER is not", bothOrNeither}},
		{"password and empty user", nil, []string{"AUTH_USER=", "AUTH_PASS=" + canary}, []string{"AUTH_PASS is set but AUTH_USER is not", bothOrNeither}},
		{"certificate alone", nil, []string{"SSL_CERT=" + certFile}, []string{"SSL_CERT is set but SSL_KEY is not", bothOrNeither}},
		{"key alone", nil, []string{"SSL_KEY=" + keyFile}, []string{"SSL_KEY is set but SSL_CERT is not", bothOrNeither}},
		{"flag -ssl-cert alone", []string{"-ssl-cert", certFile}, nil, []string{"-ssl-cert is set but SSL_KEY is not", bothOrNeither}},
		{"flag -ssl-key alone", []string{"-ssl-key", keyFile}, nil, []string{"-ssl-key is set but SSL_CERT is not", bothOrNeither}},
		{"flag -ssl-cert missing", []string{"-ssl-cert=/missing.pem"}, []string{"SSL_KEY=" + keyFile}, []string{"-ssl-cert: open /missing.pem", readable}},
		{"flags not a pair", []string{"-ssl-cert", certFile, "-ssl-key", otherKey}, nil, []string{"-ssl-cert " + certFile, "-ssl-key " + otherKey, pair}},
		{"colon in the user", nil, []string{"AUTH_USER=george:" + canary, "AUTH_PASS=" + canary}, []string{"AUTH_USER", "george", "choose one without"}},
		{"password with a line's end", nil, []string{"AUTH_USER=george", "AUTH_PASS=" + canary + "\n"}, []string{"AUTH_PASS has a control character", "take it out"}},
		{"user with a tab", nil, []string{"AUTH_USER=geo\trge", "AUTH_PASS=" + canary}, []string{"AUTH_USER has a control character", "take it out"}},
		{"port 0", nil, []string{"PORT=0"}, []string{`PORT is "0"`, number}},
		{"port too large", nil, []string{"PORT=65536"}, []string{`PORT is "65536"`, number}},
		{"port negative", nil, []string{"PORT=-1"}, []string{`PORT is "-1"`, number}},
		{"port a name", nil, []string{"PORT=http"}, []string{`PORT is "http"`, number}},
		{"port with a space", nil, []string{"PORT=80 "}, []string{`PORT is "80 "`, number}},
		{"port with a colon", nil, []string{"PORT=:80"}, []string{`PORT is ":80"`, number}},
		{"flag -port empty", []string{"-port="}, nil, []string{`-port is ""`, number}},
		{"address without a port", nil, []string{"LISTEN=127.0.0.1"}, []string{`LISTEN is "127.0.0.1"`, hostPort}},
		{"address with an empty port", nil, []string{"LISTEN=127.0.0.1:"}, []string{`LISTEN is "127.0.0.1:"`, hostPort}},
		{"address with a large port", nil, []string{"LISTEN=127.0.0.1:65536"}, []string{`LISTEN is "127.0.0.1:65536"`, hostPort}},
		{"address with a named port", nil, []string{"LISTEN=127.0.0.1:http"}, []string{`LISTEN is "127.0.0.1:http"`, hostPort}},
		{"address that is a port", nil, []string{"LISTEN=8910"}, []string{`LISTEN is "8910"`, hostPort}},
		{"address that is a URL", nil, []string{"LISTEN=http://127.0.0.1:1"}, []string{`LISTEN is "http://127.0.0.1:1"`, hostPort}},
		{"IPv6 without brackets", nil, []string{"LISTEN=::1:8910"}, []string{`LISTEN is "::1:8910"`, hostPort}},
		{"certificate missing", nil, []string{"SSL_CERT=/missing.pem", "SSL_KEY=" + keyFile}, []string{"SSL_CERT: open /missing.pem", readable}},
		{"key missing", nil, []string{"SSL_CERT=" + certFile, "SSL_KEY=/missing.pem"}, []string{"SSL_KEY: open /missing.pem", readable}},
		{"certificate a folder", nil, []string{"SSL_CERT=" + dir, "SSL_KEY=" + keyFile}, []string{"SSL_CERT: read " + dir, readable}},
		{"certificate empty", nil, []string{"SSL_CERT=empty", "SSL_KEY=" + keyFile}, []string{"SSL_CERT empty", keyFile, pair}},
		{"certificate garbage", nil, []string{"SSL_CERT=garbage", "SSL_KEY=" + keyFile}, []string{"SSL_CERT garbage", keyFile, pair}},
		{"key garbage", nil, []string{"SSL_CERT=" + certFile, "SSL_KEY=garbage"}, []string{"SSL_KEY garbage", certFile, pair}},
		{"swapped", nil, []string{"SSL_CERT=" + keyFile, "SSL_KEY=" + certFile}, []string{"SSL_CERT " + keyFile, pair}},
		{"another's key", nil, []string{"SSL_CERT=" + certFile, "SSL_KEY=" + otherKey}, []string{certFile, "SSL_KEY " + otherKey, pair}},
		{"state folder missing", nil, []string{"LOCKER_CONFIG=/missing/locker.json"}, []string{`LOCKER_CONFIG is "/missing/locker.json"`, "/missing", writable}},
		{"state a link to nothing", nil, []string{"LOCKER_CONFIG=dangling.json"}, []string{`LOCKER_CONFIG is "dangling.json"`, "not there", writable}},
		{"state folder a file", nil, []string{"LOCKER_CONFIG=empty/locker.json"}, []string{`LOCKER_CONFIG is "empty/locker.json"`, "not a folder", writable}},
		{"state folder below a file", nil, []string{"LOCKER_CONFIG=empty/sub/locker.json"}, []string{`LOCKER_CONFIG is "empty/sub/locker.json"`, writable}},
		{"state a folder", nil, []string{"LOCKER_CONFIG=" + other}, []string{`LOCKER_CONFIG is "` + other + `"`, "not a file", writable}},
		{"state a device", nil, []string{"LOCKER_CONFIG=/dev/null"}, []string{`LOCKER_CONFIG is "/dev/null"`, "not a file", writable}},
		{"state with a slash", nil, []string{"LOCKER_CONFIG=other/"}, []string{`LOCKER_CONFIG is "other/"`, "not a file", writable}},
		{"flag -state empty", []string{"-state="}, nil, []string{`-state is ""`, writable}},
		{"flag -state", []string{"-state", "/missing/x"}, []string{"LOCKER_CONFIG=good.json"}, []string{`-state is "/missing/x"`, writable}},
		{"flag -listen", []string{"-listen", "x"}, []string{"LISTEN=:0"}, []string{`-listen is "x"`, hostPort}},
		{"unknown flag", []string{"-ports", "1"}, nil, []string{"-ports", "see -help"}},
		{"password as a flag", []string{"-auth-pass=" + canary}, nil, []string{"-auth-pass", "see -help"}},
		{"flag without a value", []string{"-port"}, nil, []string{"-port", "see -help"}},
		{"argument", []string{"serve"}, nil, []string{`argument "serve"`, "see -help"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := parse(t, test.args, test.env...)
			problems := problemsOf(t, err)
			if len(problems) != 1 {
				t.Fatalf("%d problems, want 1: %v", len(problems), err)
			}
			for _, want := range test.want {
				if !strings.Contains(problems[0], want) {
					t.Errorf("%q does not say %q", problems[0], want)
				}
			}
		})
	}
}

func folder(t testing.TB, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Mkdir(name, mode); err != nil {
		t.Fatal(err)
	}
}

// problemsOf returns the lines of a *configError, for which main exits with
// status 2.
func problemsOf(t testing.TB, err error) []string {
	t.Helper()
	if _, ok := errors.AsType[*configError](err); !ok {
		t.Fatalf("%v is not a configuration error", err)
	}
	return strings.Split(err.Error(), "\n")
}

func TestConfigReportsAllProblemsAtOnce(t *testing.T) {
	_, _, err := parse(t, []string{"surplus"}, "AUTH_PASS="+canary, "SSL_KEY=key.pem", "PORT=x", "LISTEN=y", "LOCKER_CONFIG=/missing/z.json")
	problems := problemsOf(t, err)
	if len(problems) != 6 {
		t.Errorf("%d problems, want 6", len(problems))
	}
	for _, name := range []string{"surplus", "AUTH_USER", "SSL_CERT", "PORT", "LISTEN", "LOCKER_CONFIG"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named in:\n%v", name, err)
		}
	}
	_, _, err = parse(t, nil, "SSL_CERT=/missing/cert.pem", "SSL_KEY=/missing/key.pem")
	if problems := problemsOf(t, err); len(problems) != 2 {
		t.Errorf("%d problems, want both files: %v", len(problems), err)
	}
}

func TestConfigRefusesFolderThatIsNotWritable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "read-only")
	folder(t, dir, 0o500)
	var err error
	withoutRoot(func() { err = option{"LOCKER_CONFIG", filepath.Join(dir, "locker.json")}.checkStateFile() })
	if err == nil || !strings.Contains(err.Error(), "permission denied: name a file in a folder") {
		t.Errorf("got %v", err)
	}
}

// withoutRoot calls f on a thread that has no rights of root. The thread ends
// with its goroutine, since that stays locked to it (setresuid(2) by a direct
// call is for one thread).
func withoutRoot(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if os.Getuid() == 0 {
			const nobody = 65534
			syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody)
		}
		f()
	}()
	<-done
}

func TestConfigErrorEndsRun(t *testing.T) {
	getenv := func(name string) string { return map[string]string{"PORT": "x"}[name] }
	err := run(t.Context(), nil, getenv, io.Discard, io.Discard)
	if len(problemsOf(t, err)) != 1 {
		t.Errorf("got %v", err)
	}
}

// The help has every setting, and each help fits a terminal of 80 by 30.
func TestHelp(t *testing.T) {
	_, help, err := parse(t, []string{"-help"}, "AUTH_USER=george", "AUTH_PASS="+canary)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"AUTH_USER", "AUTH_PASS", "-version", "-help", "locker health", defaultState, defaultPort}
	for _, o := range options {
		want = append(want, "-"+o.flag+" ", " "+o.variable+" ")
	}
	for _, words := range want {
		if !strings.Contains(help, words) {
			t.Errorf("the help does not name %s:\n%s", words, help)
		}
	}
	for _, words := range []string{"-uri", "-ca-cert", "-insecure", "-wait", "-key", "-as", "-slots", "-reason", "-link", "-ttl", "-grace", "-keep-going", "-quiet",
		"LOCKER_URI", "LOCKER_USERNAME", "LOCKER_PASSWORD", "LOCKER_CA_CERT", "LOCKER_SKIP_SSL_VALIDATION", "LOCKER_LOCK", "LOCKER_TOKEN", "LOCKER_SLOT",
		"128 + ", "75 ", "70 ", "69 ", "2 ", "126 ", "127 ", "a -- locker run b -- "} {
		if !strings.Contains(runHelp, words) {
			t.Errorf("the help of locker run does not name %s:\n%s", words, runHelp)
		}
	}
	for _, text := range []string{help, runHelp} {
		lines := strings.Split(text, "\n")
		if len(lines) > 30 || len(slices.MaxFunc(lines, func(a, b string) int { return len(a) - len(b) })) > 80 {
			t.Errorf("%d lines:\n%s", len(lines), text)
		}
	}
}

func TestVersion(t *testing.T) {
	_, version, err := parse(t, []string{"-version"})
	if err != nil || version != "locker "+buildVersion()+", commit "+buildCommit()+", "+runtime.Version()+"\n" {
		t.Errorf("got %q, %v", version, err)
	}
}
