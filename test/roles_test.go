package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// TestRoles has etcd give the locker the rights that the document names, and
// nothing else: it leads with them, under its prefix only. The document's command
// for a new etcd has flags that etcd knows.
func TestRoles(t *testing.T) {
	t.Parallel()
	need(t, "etcdctl")
	etcd := lockertest.StartEtcd(t, 1)
	script := readmeBlock(t, "etcdctl role add locker") + "etcdctl user add root:root\netcdctl role add root || true\netcdctl user grant-role root root\netcdctl auth enable\n"
	cmd := exec.CommandContext(t.Context(), "bash", "-ec", script)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3", "ETCDCTL_ENDPOINTS="+etcd.URLs[0])
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	env := []string{"LOCKER_ETCD=" + etcd.URLs[0], "LOCKER_CONFIG=/nowhere/locker.json"}
	user := append(env, "LOCKER_ETCD_USER=locker", "LOCKER_ETCD_PASS=secret")
	if _, words := transfer(t, env, 1, "import", "-empty"); !strings.Contains(words, "user name is empty") {
		t.Errorf("without a user: %s", words)
	}
	if _, words := transfer(t, append(env, "LOCKER_ETCD_USER=locker", "LOCKER_ETCD_PASS=wrong"), 1, "import", "-empty"); !strings.Contains(words, "invalid user ID or password") || strings.Contains(words, "wrong") {
		t.Errorf("with another password: %s", words)
	}
	if _, words := transfer(t, append(user, "LOCKER_ETCD_PREFIX=/other/"), 1, "import", "-empty"); !strings.Contains(words, "permission denied") {
		t.Errorf("under another prefix: %s", words)
	}
	transfer(t, user, 0, "import", "-empty")
	address := freeAddress(t)
	l := lockertest.Start(t, append(user, "LISTEN="+address, "LOCKER_ADVERTISE=http://"+address)...)
	lockertest.Eventually(t, "it leads", func() bool { return healthOf(l).Status == "ok" })
	l.Want("PUT", "/lock/a", `{"key": "k"}`, 200)

	start := exec.CommandContext(t.Context(), "bash", "-c", "exec "+strings.NewReplacer("10.0.0.", "127.0.0.", ":2379", ":23790", ":2380", ":23800", "/var/lib/etcd/locker", filepath.Join(t.TempDir(), "etcd")).Replace(readmeBlock(t, "etcd --name")))
	log := lockertest.NewLog()
	start.Stdout, start.Stderr = log, log
	if err := start.Start(); err != nil {
		t.Fatal(err)
	}
	defer start.Wait()
	defer start.Process.Kill()
	log.Await(t, `23800|flag provided|rror`)
	if strings.Contains(log.String(), "flag provided but not defined") {
		t.Errorf("etcd refuses the document's flags: %s", log)
	}
}
