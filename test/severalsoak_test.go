package test

import (
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/test/history"
)

// TestSoakSeveral lets a crowd loose on three lockers over three members of etcd,
// with a bad network between them, while leaders are killed, ended and stopped for
// longer than their lease, and the others and etcd's members are killed.
func TestSoakSeveral(t *testing.T) {
	length := 3 * soakLength(t)
	ls := startLockers(t, 3, 0)
	var urls, etcd []string
	for _, node := range ls.etcd.URLs {
		network := newEtcdNet(t, node)
		etcd = append(etcd, network.URL)
		network.set(randomly)
	}
	for range 3 {
		urls = append(urls, ls.add(t, strings.Join(etcd, ",")).URL)
	}
	ls.leader(t)
	c := history.NewCrowd(t, urls...)
	start, stop := time.Now(), c.Begin()
	var logs []*lockertest.Log
	for _, l := range ls.all {
		logs = append(logs, l.Log)
	}
	for kind := 0; time.Since(start) < length*3/4; kind = (kind + 1) % 5 {
		time.Sleep(time.Second + rand.N(time.Second))
		if l := ls.hurt(t, kind); l != nil {
			logs = append(logs, l.Log)
		}
		ls.leader(t)
	}
	time.Sleep(length - time.Since(start))
	stop()
	c.Clear()
	c.TookOver(termsOf(t, logs)[1:])
	n := c.Check()
	if tens := int(length / (10 * time.Second)); n.Restarts < tens/2 || n.Holds < 50*tens || n.Stays < 10*tens || n.Repeated < 10*tens {
		t.Errorf("the soak came to too little in %v: %+v", length, n)
	}
	saved, _ := transfer(t, ls.env, 0, "export")
	path := filepath.Join(t.TempDir(), "locker.json")
	lockertest.WriteFile(t, path, []byte(saved))
	if n := savedClaims(t, path); n != 0 {
		t.Errorf("%d claims are saved", n)
	}
}

// randomly is the rule of a bad network.
func randomly(string) fate {
	return []fate{passes, lost, cut, slow, twice}[max(0, rand.IntN(100)-95)]
}

// hurt does one kind of harm and mends it, and returns the locker that was started
// anew, if there was one.
func (ls *lockers) hurt(t *testing.T, kind int) *lockertest.Locker {
	t.Helper()
	leader := ls.leader(t)
	l := ls.all[leader]
	switch kind {
	case 0:
		l.Kill()
	case 1:
		l.Stop()
	case 2:
		l.Process.Signal(syscall.SIGSTOP)
		time.Sleep(leaseTime + rand.N(2*time.Second))
		l.Process.Signal(syscall.SIGCONT)
		return nil
	case 3:
		l = ls.all[(leader+1)%len(ls.all)]
		l.Kill()
	case 4:
		node := rand.IntN(len(ls.etcd.Nodes))
		ls.etcd.KillNode(node)
		time.Sleep(rand.N(2 * time.Second))
		ls.etcd.StartNode(node)
		return nil
	}
	time.Sleep(rand.N(time.Second))
	l.Restart()
	return l
}

// termsOf returns when each term began, by the lockers' logs.
func termsOf(t testing.TB, logs []*lockertest.Log) (terms []time.Time) {
	t.Helper()
	for _, log := range logs {
		for _, found := range regexp.MustCompile(`time=(\S+) \S+ msg=leading `).FindAllStringSubmatch(log.String(), -1) {
			at, err := time.Parse(time.RFC3339, found[1])
			if err != nil {
				t.Fatal(err)
			}
			terms = append(terms, at)
		}
	}
	slices.SortFunc(terms, time.Time.Compare)
	return terms
}
