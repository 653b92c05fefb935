package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// TestImportExport moves the locks of a file to etcd and back, and refuses what
// would lose some.
func TestImportExport(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "locker.json")
	single := lockertest.Start(t, "LOCKER_CONFIG="+path)
	single.Want("PUT", "/lock/a%2Fb", `{"key": "k", "id": "1", "reason": "<&>\u2028"}`, 200)
	single.Want("PUT", "/lock/gone", `{"key": "k", "id": "1"}`, 200)
	single.Want("DELETE", "/lock/gone", `{"key": "k", "id": "1"}`, 200)
	etcd := lockertest.StartEtcd(t, 1)
	env := []string{"LOCKER_ETCD=" + etcd.URLs[0]}

	if _, words := transfer(t, env, 1, "export"); !strings.Contains(words, "locker import FILE") {
		t.Errorf("export of nothing says %s", words)
	}
	if _, words := transfer(t, env, 1, "import", path); !strings.Contains(words, "another locker") {
		t.Errorf("import of a file that is served says %s", words)
	}
	single.Stop()
	saved := lockertest.Read(t, path)
	if out, _ := transfer(t, env, 0, "import", path); !strings.HasPrefix(out, "2 locks are in etcd, at revision ") {
		t.Errorf("import says %s", out)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) || lockertest.Read(t, path+".imported") != saved {
		t.Errorf("the file is still there, or not kept: %v", err)
	}
	first, _ := transfer(t, env, 0, "export")
	if first != saved {
		t.Errorf("exported\n%s\nof\n%s", first, saved)
	}
	lockertest.WriteFile(t, path, []byte(first))
	if _, words := transfer(t, env, 1, "import", path); !strings.Contains(words, "etcd has locks already") {
		t.Errorf("a second import says %s", words)
	}
	other := append(env, "LOCKER_ETCD_PREFIX=/other/")
	transfer(t, other, 0, "import", path)
	if second, _ := transfer(t, other, 0, "export"); second != first {
		t.Errorf("export, import, export: %s, then %s", first, second)
	}

	address := freeAddress(t)
	several := lockertest.Start(t, append(env, "LOCKER_CONFIG="+path, "LISTEN="+address, "LOCKER_ADVERTISE=http://"+address)...)
	lockertest.Eventually(t, "it leads", func() bool { return healthOf(several).Status == "ok" })
	if body := string(several.Want("PUT", "/lock/a%2Fb", `{"key": "k", "id": "1"}`, 200)); !strings.Contains(body, `"repeat":true`) {
		t.Errorf("the holder comes back and is answered %s", body)
	}
	if _, words := transfer(t, append(env, "LOCKER_ETCD_PREFIX=/third/"), 2, "import"); !strings.Contains(words, "name one state file") {
		t.Errorf("import of nothing says %s", words)
	}
	several.Stop()
	back, _ := transfer(t, env, 0, "export")
	lockertest.WriteFile(t, path, []byte(back))
	single.Restart()
	single.Want("DELETE", "/lock/a%2Fb", `{"key": "k", "id": "1"}`, 200)
}
