package lockertest

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Etcd is a cluster of etcd's own processes on this machine. It is killed when its
// test ends.
type Etcd struct {
	URLs  []string // where clients reach each member
	Nodes []*os.Process

	t       testing.TB
	program string
	args    [][]string
	ended   []chan struct{}
}

// StartEtcd starts a cluster of that many members and waits until it serves. The
// program is etcd, or what LOCKER_TEST_ETCD names.
func StartEtcd(t testing.TB, members int) *Etcd {
	t.Helper()
	program, err := exec.LookPath(cmp.Or(os.Getenv("LOCKER_TEST_ETCD"), "etcd"))
	if err != nil {
		Skip(t, "etcd is not installed (Debian: etcd-server)")
	}
	e := &Etcd{t: t, program: program, Nodes: make([]*os.Process, members), ended: make([]chan struct{}, members)}
	var cluster []string
	dir := t.TempDir()
	for i := range members {
		name, client, peer := fmt.Sprint("n", i), freeURL(t), freeURL(t)
		e.URLs, cluster = append(e.URLs, client), append(cluster, name+"="+peer)
		e.args = append(e.args, []string{"--name", name, "--data-dir", filepath.Join(dir, name), "--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer})
	}
	for i := range members {
		e.args[i] = append(e.args[i], "--initial-cluster", strings.Join(cluster, ","))
		e.StartNode(i)
	}
	t.Cleanup(func() {
		for i := range members {
			e.KillNode(i)
		}
	})
	Eventually(t, "etcd serves", e.serves)
	return e
}

func (e *Etcd) serves() bool {
	for _, url := range e.URLs {
		resp, err := http.Post(url+"/v3/kv/range", "application/json", strings.NewReader(`{"key":"YQ=="}`))
		if err != nil {
			return false
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return false
		}
	}
	return true
}

// StartNode starts a member, again if it was killed.
func (e *Etcd) StartNode(i int) {
	e.t.Helper()
	cmd := exec.Command(e.program, e.args[i]...)
	if err := cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	ended := make(chan struct{})
	e.Nodes[i], e.ended[i] = cmd.Process, ended
	go func() { cmd.Wait(); close(ended) }()
}

// KillNode ends a member without a warning, if it runs.
func (e *Etcd) KillNode(i int) {
	e.Nodes[i].Signal(syscall.SIGCONT)
	e.Nodes[i].Kill()
	<-e.ended[i]
}

// Signal sends a signal to members.
func (e *Etcd) Signal(s syscall.Signal, nodes ...int) {
	for _, i := range nodes {
		e.Nodes[i].Signal(s)
	}
}

func freeURL(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}
