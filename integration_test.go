package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
	"github.com/cloudfoundry-community/locker/resource"
)

// This file has the built programs do what the locker is for.

// The seed's first example: two jobs exclude each other.
func TestExclusiveJobs(t *testing.T) {
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	owners := p.Put(t, "1", lockertest.LockParams("exclusive-job-1", ""))
	if !slices.Equal(owners, []string{"exclusive-job-1"}) {
		t.Errorf("owners %q", owners)
	}
	second := p.Out(t, "2", lockertest.LockParams("exclusive-job-2", ""))
	second.Said(t, "lock myLock is held with the key exclusive-job-1 by exclusive-job-1 since ")
	second.Said(t, " https://ci.example/builds/1; exclusive-job-2 is next in line\n")
	p.Out(t, "3", lockertest.UnlockParams("exclusive-job-3", "")).Failed(t, "unlock myLock: the key exclusive-job-3 does not fit; lock myLock is held with the key exclusive-job-1 by exclusive-job-1 since")
	p.Put(t, "1", lockertest.UnlockParams("exclusive-job-1", ""))
	owners = p.Get(t, "2", second.OK(t).Version)
	if !slices.Equal(owners, []string{"exclusive-job-2"}) {
		t.Errorf("owners %q", owners)
	}
	if owners := p.Put(t, "2", lockertest.UnlockParams("exclusive-job-2", "")); len(owners) != 0 {
		t.Errorf("owners %q of a free lock", owners)
	}
}

// The seed's second example: two jobs share the lock and exclude a third.
func TestSharedJobs(t *testing.T) {
	s := lockertest.Start(t)
	p := lockertest.NewPipeline(s.Address)
	p.Put(t, "1", lockertest.LockParams("can-coexist", "coexisting-1"))
	by := map[string]any{"lock_op": "lock", "key": "can-coexist", "lock_by": "coexisting-2"}
	if owners := p.Put(t, "2", by); !slices.Equal(owners, []string{"coexisting-1", "coexisting-2"}) {
		t.Errorf("owners %q", owners)
	}
	exclusive := p.Out(t, "3", lockertest.LockParams("cannot-coexist", "exclusive-job"))
	s.Await("myLock", lockertest.WithWaiters(1))
	again := p.Out(t, "4", lockertest.LockParams("can-coexist", "coexisting-1"))
	again.Said(t, "coexisting-1 is 2nd in line behind exclusive-job\n")
	p.Put(t, "1", lockertest.UnlockParams("can-coexist", "coexisting-1"))
	if l := s.Lock("myLock"); len(l.Holders) != 1 || len(l.Waiters) != 2 {
		t.Errorf("lock %+v", l)
	}
	p.Put(t, "2", lockertest.UnlockParams("can-coexist", "coexisting-2"))
	if owners := p.Get(t, "3", exclusive.OK(t).Version); !slices.Equal(owners, []string{"exclusive-job"}) {
		t.Errorf("owners %q", owners)
	}
	p.Put(t, "3", lockertest.UnlockParams("cannot-coexist", "exclusive-job"))
	again.OK(t)
	p.Put(t, "4", lockertest.UnlockParams("can-coexist", "coexisting-1"))
	if l := s.Lock("myLock"); !lockertest.Nobodys(l) {
		t.Errorf("lock %+v", l)
	}
}

// TestKill kills the locker again and again while clients take and release:
// what was acknowledged is there after the restart, the file always parses, and
// one lock that all of them want is never held twice.
func TestKill(t *testing.T) {
	const rounds, clients, contenders = 25, 8, 6
	path := filepath.Join(t.TempDir(), "locker.json")
	var url atomic.Value
	p := lockertest.Start(t, "LOCKER_CONFIG="+path)
	url.Store(p.URL)
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	contention := lockertest.Contention{Ask: func(method, path, body string) int {
		status, _ := lockertest.Send(ctx, method, url.Load().(string)+path, body)
		return status
	}}
	var all sync.WaitGroup
	for i := range contenders {
		all.Go(func() { contention.Contend(ctx, t, i) })
	}
	journals := make([]journal, clients)
	for round := range rounds {
		loading, stopLoad := context.WithCancel(ctx)
		var load sync.WaitGroup
		for i := range clients {
			load.Go(func() { journals[i].work(loading, url.Load().(string), fmt.Sprintf("own-%d", i)) })
		}
		time.Sleep(time.Duration(20+round*4) * time.Millisecond)
		p.Kill()
		stopLoad()
		load.Wait()
		if _, _, err := decodeState([]byte(read(t, path)), noon); err != nil {
			t.Fatalf("round %d: after the kill: %v", round, err)
		}
		p = lockertest.Start(t, "LOCKER_CONFIG="+path)
		url.Store(p.URL)
		for i := range clients {
			journals[i].compare(t, p, fmt.Sprintf("own-%d", i))
		}
	}
	stop()
	all.Wait()
	done := 0
	for _, j := range journals {
		done += j.acknowledged
	}
	if done < rounds*clients || contention.HandOffs.Load() < rounds {
		t.Errorf("only %d changes acknowledged and %d hand-offs in %d rounds", done, contention.HandOffs.Load(), rounds)
	}
	t.Logf("%d changes acknowledged, %d hand-offs, %d kills", done, contention.HandOffs.Load(), rounds)
}

// journal is what one client knows of its own lock.
type journal struct {
	held         bool   // by the last acknowledged answer
	token        uint64 // of the last grant
	inDoubt      bool   // a request had no answer
	acknowledged int
}

// work takes and releases a lock of its own until an answer is missing.
func (j *journal) work(ctx context.Context, url, lock string) {
	for ctx.Err() == nil {
		method := http.MethodPut
		if j.held {
			method = http.MethodDelete
		}
		status, body := lockertest.Send(ctx, method, url+"/lock/"+lock, `{"key": "k"}`)
		if status != http.StatusOK {
			j.inDoubt = true
			return
		}
		j.held = !j.held
		j.acknowledged++
		var a resource.Answer
		if json.Unmarshal(body, &a); j.held {
			j.token = a.Token
		}
	}
}

// compare looks at the lock after a restart. Only the request without an answer
// may have happened or not.
func (j *journal) compare(t *testing.T, p *lockertest.Locker, lock string) {
	t.Helper()
	var l resource.Lock
	if err := json.Unmarshal(p.Want("GET", "/lock/"+lock, "", http.StatusOK), &l); err != nil {
		t.Fatal(err)
	}
	held := len(l.Holders) == 1
	switch {
	case !j.inDoubt && held != j.held:
		t.Fatalf("%s: held is %t after the restart, acknowledged was %t", lock, held, j.held)
	case held && j.held && l.Holders[0].Token != j.token:
		t.Fatalf("%s: token %d after the restart, acknowledged was %d", lock, l.Holders[0].Token, j.token)
	case held && !j.held && l.Holders[0].Token <= j.token:
		t.Fatalf("%s: token %d after %d", lock, l.Holders[0].Token, j.token)
	}
	j.held, j.inDoubt = held, false
	if held {
		j.token = l.Holders[0].Token
	}
}

// TestFullDisk fills the disk under a running locker and makes room again.
func TestFullDisk(t *testing.T) {
	lockertest.NeedRoot(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		lockertest.Skip(t, "mount tmpfs: "+err.Error())
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "locker.json")
	p := lockertest.Start(t, "LOCKER_CONFIG="+path)
	p.Want("PUT", "/lock/before", `{"key": "k"}`, http.StatusOK)
	file := read(t, path)

	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 64<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	full := p.Want("PUT", "/lock/after", `{"key": "k"}`, http.StatusInsufficientStorage)
	if !bytes.Contains(full, []byte("disk is full")) {
		t.Errorf("answer %s", full)
	}
	p.Want("DELETE", "/lock/before", `{"key": "k"}`, http.StatusInsufficientStorage)
	health := p.Want("GET", "/health", "", http.StatusServiceUnavailable)
	if !bytes.Contains(health, []byte("no space left on device")) {
		t.Errorf("health %s", health)
	}
	if read(t, path) != file {
		t.Error("the file changed while the disk was full")
	}
	p.Want("GET", "/lock/before", "", http.StatusOK)
	p.Want("PUT", "/lock/before", `{"key": "other"}`, http.StatusLocked)

	os.Remove(filler)
	lockertest.Eventually(t, "health after room was made", func() bool {
		status, _ := lockertest.Send(t.Context(), "GET", p.URL+"/health", "")
		return status == http.StatusOK
	})
	p.Want("DELETE", "/lock/before", `{"key": "k"}`, http.StatusOK)
	p.Want("PUT", "/lock/after", `{"key": "k"}`, http.StatusOK)
	onlyFiles(t, path)
}

// TestTerm stops the process as a BOSH VM does: the waiter is answered, the
// exit status is 0, and the next process has every place.
func TestTerm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	p := lockertest.Start(t, "LOCKER_CONFIG="+path)
	p.Want("PUT", "/lock/l", `{"key": "k"}`, http.StatusOK)
	waiting := make(chan int, 1)
	go func() {
		status, _ := lockertest.Send(t.Context(), "PUT", p.URL+"/lock/l", `{"key": "other", "id": "1", "wait": "60s"}`)
		waiting <- status
	}()
	lockertest.Eventually(t, "a waiter", func() bool {
		return bytes.Contains(p.Want("GET", "/lock/l", "", http.StatusOK), []byte("other"))
	})
	start := time.Now()
	p.Process.Signal(syscall.SIGTERM)
	if status := <-waiting; status != http.StatusServiceUnavailable {
		t.Errorf("the waiter got %d", status)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("exit: %v\n%s", err, p.Log)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v to stop", took)
	}
	next := lockertest.Start(t, "LOCKER_CONFIG="+path)
	body := next.Want("PUT", "/lock/l", `{"key": "more"}`, http.StatusLocked)
	if !bytes.Contains(body, []byte(`"waiters":[{"key":"other"`)) {
		t.Errorf("after the restart: %s", body)
	}
}
