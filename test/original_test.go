package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file plays the original's clients beside new ones, and the way back to
// the original.

// originalClient is what the original's resource does, with its options of
// curl. A pause is 30 s there. The curl of its image printed the reason phrase
// of a status that fails; newer ones leave it out, so -i shows it here.
const originalClient = `
request() { curl -fsS --cacert "$CA" -u "$AUTH" "$URI$@" 2>&1; }
body="{\"key\":\"$KEY\",\"requestor\":\"$KEY-job\"}"
for turn in 1 2 3; do
	until answer=$(request /lock/myLock -i -X PUT -d "$body"); do
		grep -q '423 Locked' <<<"$answer" || { echo "$answer"; exit 1; }
		echo locked
		sleep $PAUSE
	done
	mkdir held && echo $KEY >> order && sleep 0.01 && rmdir held || exit 1
	request /lock/myLock -X DELETE -d "$body" || exit 1
done
request /locks | grep -q '"myLock":{"key":"'`

// alone makes a folder for as long as its caller holds the lock, which fails
// when another one has it, and notes the turn.
func alone(t *testing.T, dir, who string) {
	held := filepath.Join(dir, "held")
	if err := os.Mkdir(held, 0o700); err != nil {
		t.Errorf("%s is not the only one: %v", who, err)
	}
	order, err := os.OpenFile(filepath.Join(dir, "order"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Error(err)
	}
	fmt.Fprintln(order, who)
	order.Close()
	os.Remove(held)
}

// TestOriginalClients has three of the original's clients, three new ones and a
// build want one lock, each with a key of its own.
func TestOriginalClients(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		lockertest.Skip(t, err.Error())
	}
	certFile, keyFile := lockertest.NewCertificate(t, t.TempDir(), "locker")
	s := lockertest.Start(t, "SSL_CERT="+certFile, "SSL_KEY="+keyFile, "AUTH_USER="+jobUser, "AUTH_PASS="+jobPass)
	v := &vm{T: t}
	v.reach(s.Address, certFile)
	v.want("PUT", "/lock/myLock", `{"key": "first"}`, http.StatusOK)
	dir := t.TempDir()
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() {
			for turn := range 3 {
				who := fmt.Sprintf(`{"key": "new-%d", "id": "%d"`, i, turn)
				v.want("PUT", "/lock/myLock", who+`, "wait": "60s"}`, http.StatusOK)
				alone(t, dir, "new")
				v.want("DELETE", "/lock/myLock", who+`}`, http.StatusOK)
			}
		})
		client, said := exec.CommandContext(t.Context(), "bash", "-c", originalClient), lockertest.NewLog()
		client.Env = append(os.Environ(), "CA="+certFile, "AUTH="+jobUser+":"+jobPass, "URI=https://"+s.Address, "PAUSE=0.05", fmt.Sprint("KEY=old-", i))
		client.Dir, client.Stdout, client.Stderr = dir, said, said
		v.must(client.Start())
		all.Go(func() {
			if err := client.Wait(); err != nil {
				t.Errorf("%v:\n%s", err, said)
			}
		})
		said.Await(t, "locked")
	}
	p := lockertest.NewPipeline(s.Address)
	maps.Copy(p.Source, map[string]any{"locker_uri": "https://" + s.Address, "ca_cert": lockertest.Read(t, certFile), "username": jobUser, "password": jobPass})
	build := p.Out(t, "1", lockertest.LockParams("build", ""))
	lockertest.Eventually(t, "four who wait", func() bool { l, _ := v.lock("myLock"); return len(l.Waiters) == 4 })
	v.want("DELETE", "/lock/myLock", `{"key": "first"}`, http.StatusOK)
	build.OK(t)
	alone(t, dir, "build")
	p.Out(t, "1", lockertest.UnlockParams("build", "")).OK(t)
	all.Wait()
	order := strings.Fields(lockertest.Read(t, filepath.Join(dir, "order")))
	if len(order) != 3*3+3*3+1 || strings.Contains(strings.Join(order[:4], " "), "old") {
		t.Errorf("the turns were %q; those who waited were to be first", order)
	}
	if l, _ := v.lock("myLock"); !lockertest.Nobodys(l) {
		t.Errorf("in the end the lock is %+v", l)
	}
}

// TestWayBack pastes the README's commands for going back to the original into
// a shell: what they make of the state is a file that the original reads, and
// of which a later upgrade makes the same holds.
func TestWayBack(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"bash", "curl", "flock"} {
		if _, err := exec.LookPath(program); err != nil {
			lockertest.Skip(t, err.Error())
		}
	}
	path := filepath.Join(t.TempDir(), "locker.yml")
	lockertest.WriteFile(t, path, []byte(original))
	s := lockertest.Start(t, "LOCKER_CONFIG="+path)
	for _, ask := range [][3]string{
		{"PUT", "done", `{"key": "k"}`},
		{"DELETE", "done", `{"key": "k"}`},
		{"PUT", "myLock", `{"key": "k", "locked_by": "ann", "id": "1", "ttl": "1h"}`},
		{"PUT", "version", `{"key": "2", "link": "https://ci.example/1"}`},
		{"PUT", "a%2Fb", `{"key": "\"ü\""}`},
	} {
		if status, body := lockertest.Send(t.Context(), ask[0], "http://"+s.Address+"/lock/"+ask[1], ask[2]); status != http.StatusOK {
			t.Fatalf("%q: %d %s", ask, status, body)
		}
	}
	go lockertest.Send(t.Context(), "PUT", "http://"+s.Address+"/lock/pair", `{"key": "waits", "id": "1", "wait": "60s"}`)
	s.Await("pair", lockertest.WithWaiters(1))
	s.Stop()
	script := strings.NewReplacer("/var/vcap/store/locker", filepath.Dir(path), "/var/vcap/packages/locker/bin/locker", lockertest.Program(t, "locker"), "127.0.0.1:8911", "127.0.0.1:"+lockertest.FreePort(t)).
		Replace(readmeBlock(t, "monit stop locker"))
	cmd := exec.CommandContext(t.Context(), "bash", "-c", "monit() { :; }; chown() { :; }\n"+script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	held := `a/b:{map["ü":1] "ü"} %smyLock:{map[ann:1 george:1] k} pair:{map[coexisting-1:1 coexisting-2:1] can-coexist} version:{map[2:1] 2}`
	wantOriginal(t, lockertest.Read(t, path), fmt.Sprintf(held, "done:{map[] } "))
	again := lockertest.Start(t, "LOCKER_CONFIG="+path)
	_, locks := lockertest.Send(t.Context(), "GET", "http://"+again.Address+"/locks", "")
	wantOriginal(t, string(locks), fmt.Sprintf(held, ""))
}

// wantOriginal checks what the original would read: it knew these two members
// and passed over others.
func wantOriginal(t *testing.T, text, want string) {
	t.Helper()
	var locks map[string]struct {
		LockedBy map[string]int `json:"locked_by"`
		Key      string         `json:"key"`
	}
	if err := json.Unmarshal([]byte(text), &locks); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	if got := fmt.Sprint(locks); got != "map["+want+"]" {
		t.Errorf("the original would read\n%s, want\nmap[%s]", got, want)
	}
}
