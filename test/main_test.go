// Package test has the tests that run the built programs. They run in the
// repository's own folder.
package test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

func TestMain(m *testing.M) {
	if err := os.Chdir(".."); err != nil {
		panic(err)
	}
	lockertest.Main(m)
}

// footprint is what a process takes of the machine.
type footprint struct {
	files int     // that are open
	mib   float64 // of resident memory
}

func footprintOf(t testing.TB, process *os.Process) footprint {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", process.Pid)
	files, err := os.ReadDir(dir + "fd")
	if err != nil {
		lockertest.Skip(t, err.Error())
	}
	var kib float64
	_, resident, _ := strings.Cut(lockertest.Read(t, dir+"status"), "VmRSS:")
	if _, err := fmt.Sscan(resident, &kib); err != nil {
		t.Fatal(err)
	}
	return footprint{len(files), kib / 1024}
}

func folder(t testing.TB, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Mkdir(name, mode); err != nil {
		t.Fatal(err)
	}
}

// encode returns v, which is made of what always encodes, as JSON.
func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// savedClaims returns how many holders and waiters a state file has.
func savedClaims(t testing.TB, path string) int {
	t.Helper()
	var saved struct {
		Locks map[string]struct{ Holders, Waiters []any }
	}
	if err := json.Unmarshal([]byte(lockertest.Read(t, path)), &saved); err != nil || saved.Locks == nil {
		t.Fatalf("%s: %d locks, %v", path, len(saved.Locks), err)
	}
	claims := 0
	for _, l := range saved.Locks {
		claims += len(l.Holders) + len(l.Waiters)
	}
	return claims
}

// trusting returns the settings of a client that trusts a certificate.
func trusting(t testing.TB, certFile string) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(lockertest.Read(t, certFile)))
	return &tls.Config{RootCAs: roots}
}
