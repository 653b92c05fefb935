package test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// This file runs the proxies of examples/ in front of a locker.

// front is a locker behind a proxy.
type front struct {
	*lockertest.Locker
	url string // of the proxy
}

// proxies start a proxy of the examples, with its settings as the replacer changes
// them.
var proxies = map[string]func(testing.TB, *strings.Replacer){"nginx": startNginx, "haproxy": startHaproxy}

// places are where the examples put the locker, under names that need no name
// server.
var places = []string{"localhost", "127.0.0.1/locker"}

// behind starts a locker, with more environment, and that proxy before it. What is
// changed in the example are pairs of texts.
func behind(t testing.TB, proxy, place string, env []string, changes ...string) *front {
	t.Helper()
	port := lockertest.FreePort(t)
	host, path, _ := strings.Cut(place, "/")
	f := &front{lockertest.Start(t, env...), strings.TrimSuffix("http://"+host+":"+port+"/"+path, "/")}
	proxies[proxy](t, strings.NewReplacer(append(changes, "10.10.10.10:8910", f.Address,
		"listen 80;", "listen 127.0.0.1:"+port+";", "bind :80", "bind 127.0.0.1:"+port,
		"server_name locker.example", "server_name locker.example localhost", "server_name shared.example", "server_name shared.example 127.0.0.1",
		"-i locker.example", "-i locker.example localhost")...))
	lockertest.Eventually(t, proxy+" answers", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return f
}

// send sends a request through the proxy.
func (f *front) send(ctx context.Context, method, path, body string) (int, string) {
	status, data := lockertest.Send(ctx, method, f.url+path, body)
	return status, string(data)
}

func startNginx(t testing.TB, change *strings.Replacer) {
	dir := t.TempDir()
	example := change.Replace(lockertest.Read(t, "examples/nginx.conf"))
	lockertest.WriteFile(t, filepath.Join(dir, "nginx.conf"), fmt.Appendf(nil, `
		daemon off; pid %[1]s/pid; error_log stderr; worker_processes 1; user root;
		events {}
		http { access_log off; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
		%[2]s }`, dir, example))
	startProxy(t, "nginx", "-p", dir, "-e", "stderr", "-c", filepath.Join(dir, "nginx.conf"))
}

func startHaproxy(t testing.TB, change *strings.Replacer) {
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	lockertest.WriteFile(t, path, []byte(change.Replace(lockertest.Read(t, "examples/haproxy.cfg"))))
	startProxy(t, "haproxy", "-db", "-f", path)
}

func startProxy(t testing.TB, program string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + program)
	}
	if err != nil {
		lockertest.Skip(t, err.Error())
	}
	log := lockertest.NewLog()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = log, log, time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // nginx's worker too
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", program, log)
		}
	})
}

// everyFront runs a test behind each proxy, at each place.
func everyFront(t *testing.T, test func(t *testing.T, f *front)) {
	t.Parallel()
	for proxy := range proxies {
		for _, place := range places {
			t.Run(proxy+" "+place, func(t *testing.T) {
				t.Parallel()
				test(t, behind(t, proxy, place, nil))
			})
		}
	}
}

// A lock has the same name on both sides of a proxy, and answers come as they
// are.
func TestNamesBehindProxies(t *testing.T) {
	everyFront(t, func(t *testing.T, f *front) {
		for _, name := range []string{"a", "a/b", "a//b", "/a", "a b", "ü", "%", "a%2Fb", "a?b", "a#b", "a+b", "a;b&c=d", `a\b`, `"a"`, "...", "locker/locker"} {
			path := "/lock/" + url.PathEscape(name)
			if status, body := f.send(t.Context(), "PUT", path, jane); status != http.StatusOK {
				t.Errorf("%q: %d %s", name, status, body)
			}
			if l := f.Lock(name); len(l.Holders) != 1 {
				t.Errorf("%q is not what is locked: %s", name, f.Want("GET", "/locks", "", http.StatusOK))
			}
			if status, body := f.send(t.Context(), "DELETE", path, jane6); status != http.StatusLocked {
				t.Errorf("%q: another key: %d %s", name, status, body)
			}
			if status, body := f.send(t.Context(), "DELETE", path+"?force=true", ""); status != http.StatusOK || len(f.Lock(name).Holders) != 0 {
				t.Errorf("%q: %d %s", name, status, body)
			}
		}
		f.Want("PUT", "/lock/a", jane, http.StatusOK)
		req, err := http.NewRequest("PUT", f.url+"/lock/a", strings.NewReader(jane6))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.Status != "423 Locked" || resp.Header.Get("Retry-After") != "1" {
			t.Errorf("%s, headers %v", resp.Status, resp.Header)
		}
	})
}

// jane6 asks under another key than jane.
const jane6 = `{"key": "other", "locked_by": "jane", "id": "6"}`

// A build behind a proxy waits, and takes, and releases.
func TestBuildsBehindProxies(t *testing.T) {
	everyFront(t, func(t *testing.T, f *front) {
		p := &lockertest.Pipeline{Source: map[string]any{"locker_uri": f.url, "lock_name": "a/b"}}
		p.Out(t, "1", lockertest.LockParams("one", "")).OK(t)
		waiting := p.Out(t, "2", lockertest.LockParams("two", ""))
		f.Await("a/b", lockertest.WithWaiters(1))
		p.Out(t, "1", lockertest.UnlockParams("one", "")).OK(t)
		waiting.OK(t)
		if names := f.Lock("a/b").LockedBy; names["two"] != 1 {
			t.Errorf("holders %v", names)
		}
	})
}

// A client without an id that gave up is not granted the lock.
func TestDisconnectsBehindProxies(t *testing.T) {
	everyFront(t, func(t *testing.T, f *front) {
		f.Want("PUT", "/lock/a", jane, http.StatusOK)
		giveUp(t, f)
		f.Await("a", lockertest.WithWaiters(0))
		f.Want("DELETE", "/lock/a?force=true", "", http.StatusOK)
		if l := f.Lock("a"); len(l.Holders) != 0 {
			t.Errorf("nobody holds it: %+v", l)
		}
	})
}

// What the example for haproxy says of abortonclose is so.
func TestHaproxyWithoutAbortonclose(t *testing.T) {
	t.Parallel()
	f := behind(t, "haproxy", places[0], nil, "option abortonclose", "no option abortonclose")
	f.Want("PUT", "/lock/a", jane, http.StatusOK)
	giveUp(t, f)
	time.Sleep(time.Second)
	f.Want("DELETE", "/lock/a?force=true", "", http.StatusOK)
	f.Await("a", func(l resource.Lock) bool { return l.LockedBy["gone"] == 1 })
}

// giveUp waits in the queue of lock a, and goes.
func giveUp(t *testing.T, f *front) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan int)
	go func() {
		status, _ := f.send(ctx, "PUT", "/lock/a", `{"key": "gone", "wait": "50s"}`)
		gone <- status
	}()
	f.Await("a", lockertest.WithWaiters(1))
	cancel()
	if status := <-gone; status != 0 {
		t.Errorf("it was answered %d", status)
	}
}

// The longest wait is answered by the locker, not by the proxy.
func TestLongestWaitBehindProxies(t *testing.T) {
	if os.Getenv("LOCKER_SOAK") == "" {
		t.Skip("it takes a minute: set LOCKER_SOAK")
	}
	everyFront(t, func(t *testing.T, f *front) {
		f.Want("PUT", "/lock/a", jane, http.StatusOK)
		status, body := f.send(t.Context(), "PUT", "/lock/a", `{"key": "other", "wait": "5m"}`)
		if status != http.StatusLocked || !strings.Contains(body, "; this request waited 55s") {
			t.Errorf("%d %s", status, body)
		}
	})
}

// The page behind a proxy releases. Over plain HTTP and under a name that is not
// this machine's, a browser does not say itself whose page it is.
func TestPageBehindProxies(t *testing.T) {
	t.Parallel()
	release := func(t *testing.T, proxy, place, says string, changes ...string) {
		t.Helper()
		f := behind(t, proxy, place, credentials, changes...)
		w := visitAt(t, f.Locker, f.url+"/", "403")
		w.do("PUT", "/lock/a%2Fb", jane)
		w.await("document.querySelector('.row .release')")
		w.click(".row .release")
		w.keys("it hangs" + keyTab + "ann" + keyEnter)
		w.has(says)
		if len(changes) == 0 { // the log says who it was, not the proxy's address
			f.Log.Await(t, `msg=force lock=a/b .* by=`+user+` person=ann reason="it hangs"`)
		}
	}
	for proxy := range proxies {
		t.Run(proxy, func(t *testing.T) {
			release(t, proxy, "locker.example", "Force-released jane from a/b. Nobody holds it now.")
		})
		t.Run(proxy+" path", func(t *testing.T) {
			release(t, proxy, "shared.example/locker", "Force-released jane from a/b. Nobody holds it now.")
		})
	}
	t.Run("nginx without Host", func(t *testing.T) {
		release(t, "nginx", "locker.example", "have the proxy pass Host on as it came (nginx: proxy_set_header Host $http_host)", "proxy_set_header Host $http_host;", "")
	})
}

// What fails between a build and a locker because of a proxy names the proxy, and
// never its password.
func TestClientsProxyIsNamed(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		uri    string
		status int
		says   string
	}{
		{"https://locker.example", 403, "https://locker.example: the proxy PROXY answers 403 Forbidden: have it allow this host and port, or set no_proxy"},
		{"https://locker.example", 407, "https://locker.example: the proxy PROXY answers 407 Proxy Authentication Required: the proxy wants credentials: put them into http_proxy or https_proxy"},
		{"http://locker.example", 407, "http://locker.example (through the proxy PROXY): 407 Proxy Authentication Required: the proxy wants credentials"},
		{"http://locker.example", 404, "http://locker.example (through the proxy PROXY): 404 Not Found: there is no locker at this path of locker_uri, or it is the locker of 2017: upgrade it first"},
	} {
		t.Run(fmt.Sprint(row.uri, row.status), func(t *testing.T) {
			address := serveQuietly(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(row.status) }))
			proxy := "http://user:CANARY@" + address
			stderr := lockertest.NewLog()
			cmd := lockertest.Command(t, "check", "http_proxy="+proxy, "https_proxy="+proxy)
			cmd.Stdin, cmd.Stderr = strings.NewReader(fmt.Sprintf(`{"source": {"locker_uri": %q, "lock_name": "a"}}`, row.uri)), stderr
			cmd.Run()
			says := strings.Replace(row.says, "PROXY", address, 1)
			if got := stderr.String(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(got, says) || strings.Contains(got, "CANARY") {
				t.Errorf("status %d, said %s", cmd.ProcessState.ExitCode(), got)
			}
		})
	}
}
