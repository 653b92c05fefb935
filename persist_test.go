package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

const originalFile = `{
    "free": {"locked_by": {"x": 0}, "key": ""},
    "myLock": {"locked_by": {"george": 2, "jane": 0, "ann": 1}, "key": "k"}
}`

// openState opens and loads a state file.
func openState(path string, steps steps, now time.Time) (*fileStore, *state, error) {
	st, err := openStore(path, "-state", steps)
	if err != nil {
		return nil, nil, err
	}
	s, err := st.load(now)
	if err != nil {
		st.close()
		return nil, nil, err
	}
	return st, s, nil
}

func openAt(t testing.TB, path string) (*fileStore, *state) {
	t.Helper()
	st, s, err := openState(path, realSteps(), noon)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.close() })
	return st, s
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	st, _ := openAt(t, path)
	b := newBench(t)
	c := of("k a 1")
	c.Link = "https://ci.example/?a=1&b=<2>"
	b.take(ttl(c, 90*60*1e9), false)
	b.take(of("other b 2"), true)
	b.release(of("k x 3").identity, true)
	b.batch(func(d *draft) outcome { return d.take(`"quotes", a/slash and ünïcode`, of("k a"), false) })
	if _, err := st.save(b.s); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if content := read(t, path); !json.Valid([]byte(content)) || !strings.Contains(content, "?a=1&b=<2>") || strings.Count(content, "\n") != 4 {
		t.Errorf("not a readable line a lock:\n%s", content)
	}
	st.close()
	_, s := openAt(t, path)
	if !sameState(s, b.s) {
		t.Errorf("read back\n%s\nwant\n%s", fileOf(s), fileOf(b.s))
	}
}

func sameState(a, b *state) bool {
	fresh := func(s *state) (locks []lock) {
		for l := range s.all() {
			l := *l
			l.encodings = nil
			locks = append(locks, l)
		}
		return locks
	}
	return a.revision == b.revision && a.claims == b.claims && reflect.DeepEqual(fresh(a), fresh(b))
}

// fileOf returns the content of the state's file.
func fileOf(s *state) []byte { return bytes.Join(s.pieces(), nil) }

// What did not change is not encoded again, neither a lock beside one that did
// nor a chunk.
func TestUnchangedLocksAreNotEncodedAgain(t *testing.T) {
	b := newBench(t)
	take := func(lock, words string) {
		b.batch(func(d *draft) outcome { return d.take(lock, of(words), false) })
	}
	for i := range 3 * chunkSize {
		take(fmt.Sprintf("l%03d", i), "k a")
	}
	before, whole := b.s, fileOf(b.s)
	b.s.look("l001").saved = []byte("\nas it was")
	take("l000", "k b")
	after := fileOf(b.s)
	if !bytes.Contains(after, []byte("\nas it was,\n")) || bytes.Contains(fileOf(before), []byte("as it was")) {
		t.Error("a lock that did not change was encoded again")
	}
	if n := len(b.s.chunks) - 1; n < 1 || !slices.Equal(b.s.chunks[1:], before.chunks[1:]) {
		t.Errorf("a change of the first chunk made others anew, of %d", n)
	}
	if !bytes.Equal(fileOf(before), whole) {
		t.Error("the state that was published before has changed")
	}
	if s, _, err := decodeState(bytes.Replace(after, []byte("\nas it was,"), nil, 1), noon); err != nil || len(s.look("l000").Holders) != 2 {
		t.Errorf("a lock that changed kept its old encoding: %v", err)
	}
}

func TestImport(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "locker.yml")
	writeFile(t, path, originalFile)
	for range 2 { // the second start finds its own copy, as after an upgrade that was cut short
		st, s := openAt(t, path)
		b := &bench{s: s}
		if b.s.look("myLock").Key != "k" || s.claims != 2 || s.size() != 1 {
			t.Fatalf("imported %s", fileOf(s))
		}
		var names []string
		for _, h := range s.look("myLock").Holders {
			names = append(names, fmt.Sprint(h.LockedBy, " ", h.Token, h.Since.Equal(noon)))
		}
		if got := strings.Join(names, " "); got != "ann 1 true george 2 true" {
			t.Errorf("holders %s", got)
		}
		if kept := read(t, path+".v1"); kept != originalFile {
			t.Errorf("kept %s", kept)
		}
		st.close()
	}
	st, s := openAt(t, path)
	if _, err := st.save(s); err != nil {
		t.Fatal(err)
	}
	st.close()
	openAt(t, path)

	other := filepath.Join(dir, "other.yml")
	writeFile(t, other, originalFile)
	writeFile(t, other+".v1", "{}")
	if _, _, err := openState(other, realSteps(), noon); err == nil || !strings.Contains(err.Error(), other+".v1") {
		t.Errorf("error %v, want one that names %s.v1", err, other)
	}
	if kept := read(t, other+".v1"); kept != "{}" {
		t.Errorf("the older copy became %s", kept)
	}
}

func TestRefusedStateFiles(t *testing.T) {
	const head = `{"version": 2, "revision": 9, "locks": {`
	for _, row := range []struct{ name, content, want string }{
		{"empty", "", "empty"},
		{"blank", " \n", "empty"},
		{"cut off", head + `"a": {"key": "k"`, "byte 56"},
		{"two values", "{} {}", "byte 4"},
		{"no object", "[]", "does not parse"},
		{"a later version", `{"version": 3, "revision": 1, "locks": {}}`, "version 3"},
		{"version as a string", `{"version": "2"}`, `version "2"`},
		{"unknown member", `{"version": 2, "revision": 9, "extra": 1, "locks": {}}`, "nothing else"},
		{"no revision", `{"version": 2, "locks": {}}`, "must have version, revision and locks"},
		{"another member", `{"version": 2, "revision": 9, "lokcs": {}}`, `"lokcs" at byte 39`},
		{"a revision beyond all use", `{"version": 2, "revision": 18446744073709551615, "locks": {}}`, "is not a number up to 9007199254740992"},
		{"no number for a revision", `{"version": 2, "revision": null, "locks": {}}`, `"revision" at byte 27`},
		{"negative revision", `{"version": 2, "revision": -1, "locks": {}}`, `"revision" at byte 27`},
		{"unknown member of a lock", head + `"a": {"kye": "k"}}}`, `"a" at byte 45`},
		{"one lock twice", head + `"a": {"key": "", "revision": 1}, "a": {"key": "", "revision": 1}}}`, "twice"},
		{"not UTF-8", head + "\"\xff\": {}}}", "UTF-8"},
		{"a control character in a name", head + `"a\u0000": {"key": "", "revision": 1}}}`, "control"},
		{"a control character in an id", head + `"a": {"key": "k", "revision": 1, "holders": [{"locked_by": "h", "id": "\u0000", "since": "2026-11-23T10:00:00Z", "token": 1}]}}}`, "id has a control character"},
		{"a holder's link that is a script", head + `"a": {"key": "k", "revision": 1, "holders": [{"locked_by": "h", "since": "2026-11-23T10:00:00Z", "token": 1, "link": "javascript:alert(1)"}]}}}`, `holder "h": link is not an http or https URL`},
		{"a waiter's link that is a script", head + `"a": {"key": "", "revision": 1, "waiters": [{"key": "k", "locked_by": "w", "since": "2026-11-23T10:00:00Z", "revision": 2, "link": "javascript:alert(1)"}]}}}`, `waiter "w": link is not an http or https URL`},
		{"a hold since the year 10000", head + `"a": {"key": "k", "revision": 1, "holders": [{"locked_by": "h", "since": "9999-12-31T23:30:00-01:00", "token": 1}]}}}`, `holder "h": a time in the year 10000`},
		{"an expiry in the year 0", head + `"a": {"key": "k", "revision": 1, "holders": [{"locked_by": "h", "since": "2026-11-23T10:00:00Z", "expires": "0000-12-31T23:30:00Z", "token": 1}]}}}`, `holder "h": a time in the year 0`},
		{"a wait since the year 10000", head + `"a": {"key": "", "revision": 1, "waiters": [{"key": "k", "locked_by": "w", "since": "9999-12-31T23:30:00-01:00", "revision": 2}]}}}`, `waiter "w": a time in the year 10000`},
		{"an end in the year 10000", head + `"a": {"key": "", "revision": 1, "left": [{"claim": "E3yYlfb3U787n4QJ7MU01C1xFkK3JrBE", "at": "9999-12-31T23:30:00-01:00"}]}}}`, `left: a time in the year 10000`},
		{"an end of no known kind", head + `"a": {"key": "", "revision": 1, "left": [{"claim": "E3yYlfb3U787n4QJ7MU01C1xFkK3JrBE", "how": "lost", "at": "2026-11-23T10:00:00Z"}]}}}`, `left: "lost" is not how a claim ends`},
		{"an end that is no hash", head + `"a": {"key": "", "revision": 1, "left": [{"claim": "x", "at": "2026-11-23T10:00:00Z"}]}}}`, `"x" is not the hash of a claim`},
		{"a ticket that is none", head + `"a": {"key": "k", "revision": 1, "holders": [{"locked_by": "h", "since": "2026-11-23T10:00:00Z", "token": 1, "ticket": "x"}]}}}`, `ticket is "x"`},
		{"one slot twice", head + `"a": {"key": "k", "revision": 2, "holders": [{"locked_by": "x", "since": "2026-11-23T10:00:00Z", "token": 1, "slot": 1}, {"locked_by": "y", "since": "2026-11-23T10:00:00Z", "token": 2, "slot": 1}]}}}`, `holder "y": its slot 1 is another's too`},
		{"a slot alone", head + `"a": {"key": "k", "revision": 2, "holders": [{"locked_by": "x", "since": "2026-11-23T10:00:00Z", "token": 1, "slot": 1}, {"locked_by": "y", "since": "2026-11-23T10:00:00Z", "token": 2}]}}}`, `holder "y": its slot 0`},
		{"holders without a key", head + `"a": {"key": "", "revision": 1, "holders": [{"locked_by": "x", "since": "2026-11-23T10:00:00Z", "token": 1}]}}}`, "1 holders"},
		{"a key without holders", head + `"a": {"key": "k", "revision": 1}}}`, "0 holders"},
		{"one holder twice", head + `"a": {"key": "k", "revision": 2, "holders": [{"locked_by": "x", "since": "2026-11-23T10:00:00Z", "token": 1}, {"locked_by": "x", "since": "2026-11-23T10:00:00Z", "token": 2}]}}}`, "twice"},
		{"one waiter twice", head + `"a": {"key": "", "revision": 2, "waiters": [{"key": "k", "locked_by": "x", "id": "1", "since": "2026-11-23T10:00:00Z", "revision": 1}, {"key": "k", "locked_by": "x", "id": "1", "since": "2026-11-23T10:00:00Z", "revision": 2}]}}}`, "twice"},
		{"waiters out of order", head + `"a": {"key": "", "revision": 2, "waiters": [{"key": "k", "locked_by": "x", "since": "2026-11-23T10:00:00Z", "revision": 2}, {"key": "k", "locked_by": "x", "since": "2026-11-23T10:00:00Z", "revision": 1}]}}}`, "order"},
		{"token 0", head + `"a": {"key": "k", "revision": 1, "holders": [{"locked_by": "x", "since": "2026-11-23T10:00:00Z", "token": 0}]}}}`, `"a" at byte 45: holder "x"`},
		{"one token twice", head + `"a": {"key": "k", "revision": 2, "holders": [{"locked_by": "x", "since": "2026-11-23T10:00:00Z", "token": 2}, {"locked_by": "y", "since": "2026-11-23T10:00:00Z", "token": 2}]}}}`, `holder "y"`},
		{"a lock beyond the revision", head + `"a": {"key": "", "revision": 10}}}`, "beyond"},
		{"a token beyond the lock", head + `"a": {"key": "k", "revision": 1, "holders": [{"locked_by": "x", "since": "2026-11-23T10:00:00Z", "token": 5}]}}}`, "token"},
		{"the original's, with a word for a count", `{"a": {"key": "k", "locked_by": {"x": "one"}}}`, `"a" at byte 6`},
		{"the original's, held without a key", `{"a": {"key": "", "locked_by": {"x": 1}}}`, "1 holders"},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "locker.json")
			writeFile(t, path, row.content)
			_, _, err := openState(path, realSteps(), noon)
			if err == nil {
				t.Fatal("accepted")
			}
			said, ok := strings.CutPrefix(err.Error(), "state file "+path+": ")
			for _, want := range []string{row.want, "restore it from a backup", "move it away to start with no lock held"} {
				if !ok || !strings.Contains(said, want) {
					t.Errorf("error %q, want %q in it", err, want)
				}
			}
			if written := row.want != "empty"; strings.Contains(said, "use the locker that wrote it") != written {
				t.Errorf("error %q: a locker wrote it: %t", err, written)
			}
			if read(t, path) != row.content {
				t.Error("the file was changed")
			}
			onlyFiles(t, path)
		})
	}
}

// TestUnreadableStateStopsTheStart: only a file that is not there means that no lock is held.
func TestUnreadableStateStopsTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openState(path, realSteps(), noon); err == nil {
		t.Error("started with no lock held")
	}
}

// TestWhatWasReadIsSynced: it may be from a process that died before its last
// fsync, and what is told of it must not go back.
func TestWhatWasReadIsSynced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	writeFile(t, path, "{}")
	writeFile(t, path+".v1", "{}")
	var synced []string
	steps := realSteps()
	steps.sync = func(f *os.File) error {
		synced = append(synced, f.Name())
		return f.Sync()
	}
	st, _, err := openState(path, steps, noon)
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	if want := []string{path, filepath.Dir(path)}; !slices.Equal(synced, want) {
		t.Errorf("synced %v, want %v", synced, want)
	}
}

// TestGuardIsLookedAt: when the folder was replaced, another locker may be at
// work in the new one. The refusal says whether a restart loses the locks.
func TestGuardIsLookedAt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "locker.json")
	st, _ := openAt(t, path)
	b := newBench(t)
	b.take(of("k a 1"), false)
	save := func() error { _, err := st.save(b.s); return err }
	move := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(when, want, not string) {
		t.Helper()
		err := save()
		if err == nil || errors.Is(err, errUnknown) || !strings.Contains(err.Error(), path+".lock") {
			t.Fatalf("%s: %v, want a refusal that names the guard", when, err)
		}
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), not) {
			t.Errorf("%s: %v, want %q in it and not %q", when, err, want, not)
		}
	}
	const restart, putBack = "restart the locker, no lock is lost", "begins with no locks"
	if err := save(); err != nil {
		t.Fatal(err)
	}
	move(path+".lock", path+".moved")
	refused("without its guard", restart, putBack)
	writeFile(t, path+".lock", "")
	refused("with another guard", restart, putBack)
	move(path, path+".away")
	refused("with another guard alone", putBack, restart)
	writeFile(t, path, "")
	refused("with another guard and an empty state file", putBack, restart)
	move(path+".away", path)
	move(dir, dir+".away")
	refused("without its folder", putBack, restart)
	move(dir+".away", dir)
	move(path+".moved", path+".lock")
	if err := save(); err != nil {
		t.Errorf("with its guard back: %v", err)
	}

	if err := os.Remove(path + ".lock"); err != nil {
		t.Fatal(err)
	}
	refused("without its guard", restart, putBack)
	st.close()
	if _, s := openAt(t, path); !sameState(s, b.s) {
		t.Errorf("the restart reads\n%s\nwant\n%s", fileOf(s), fileOf(b.s))
	}
}

func TestOneProcessPerStateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	st, _ := openAt(t, path)
	stale := path + ".tmp-1"
	writeFile(t, stale, "")
	writeFile(t, path+".v1.tmp-1", "")
	copied, folder := path+".tmp-before-upgrade", path+".tmp-7"
	writeFile(t, copied, "somebody's")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openState(path, realSteps(), noon); err == nil || !strings.Contains(err.Error(), path+".lock") {
		t.Errorf("error %v, want one that names the file that is locked", err)
	}
	if _, err := os.Stat(stale); err != nil {
		t.Error("the second process touched a file before it had the lock")
	}
	st.close()
	openAt(t, path)
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stale file: %v, want it removed", err)
	}
	if err := errors.Join(os.Remove(copied), os.Remove(folder)); err != nil {
		t.Errorf("what is somebody's: %v", err)
	}
	onlyFiles(t, path)
	if _, err := os.Stat(path + ".lock"); err != nil {
		t.Error("the lock file was removed")
	}
}

func TestStateFileBehindALink(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real.json"), filepath.Join(dir, "link.json")
	writeFile(t, real, "{}")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	st, s := openAt(t, link)
	if _, err := st.save(s); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link became %v, %v", info.Mode(), err)
	}
	if content := read(t, real); !strings.HasPrefix(content, `{"version": 2`) {
		t.Errorf("the file behind the link has %s", content)
	}
}

// FuzzState: the decoder never panics, and what it accepts it writes back the
// same.
func FuzzState(f *testing.F) {
	b := newBench(f)
	b.take(ttl(of("k a 1"), 1e9), false)
	b.take(of("other b 2"), true)
	b.release(of("k x 3").identity, true)
	f.Add(fileOf(b.s))
	f.Add([]byte(originalFile))
	f.Add([]byte(`{"version": 2, "revision": 1, "locks": {}}`))
	f.Add([]byte(`{"version": {"key": "k", "locked_by": {"a": 1}}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, _, err := decodeState(data, noon)
		if err != nil {
			return
		}
		written := fileOf(s)
		again, original, err := decodeState(written, noon)
		if err != nil || original {
			t.Fatalf("accepted\n%s\nbut not what it wrote\n%s\n%v", data, written, err)
		}
		if got := fileOf(again); string(got) != string(written) || again.claims != s.claims {
			t.Fatalf("wrote\n%s\nthen\n%s", written, got)
		}
	})
}

// A file that is a mount point cannot be replaced: that is a refusal, and the
// start says what to do.
func TestMountPointIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	st, s := openAt(t, path)
	st.steps.rename = func(from, to string) error {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.EBUSY}
	}
	_, err := newCommitter(st, s, newMetrics(), quiet(), time.Now)
	if err == nil || errors.Is(err, errUnknown) || !strings.Contains(err.Error(), path+" is a mount point, which cannot be replaced: mount its folder instead") {
		t.Errorf("error %v", err)
	}
	if left, _ := filepath.Glob(path + ".tmp-*"); len(left) != 0 {
		t.Errorf("%v are left", left)
	}
}

func TestBoundFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "locker.json"), filepath.Join(dir, "other.json")
	writeFile(t, path, "{}")
	writeFile(t, other, "{}")
	if out, err := exec.Command("mount", "--bind", other, path).CombinedOutput(); err != nil {
		lockertest.Skip(t, fmt.Sprintf("mount: %v: %s", err, out))
	}
	t.Cleanup(func() { exec.Command("umount", path).Run() })
	if err := runAgainst(t, "127.0.0.1:0", path); err == nil || !strings.Contains(err.Error(), "mount its folder instead") {
		t.Errorf("error %v", err)
	}
}

func TestFileSystemWithoutLocks(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSYS, syscall.EOPNOTSUPP, syscall.ENOLCK} {
		steps := realSteps()
		steps.lock = func(*os.File) error { return errno }
		path := filepath.Join(t.TempDir(), "locker.json")
		_, err := openStore(path, "-state", steps)
		if want := "the file system of " + path + ".lock cannot lock files: "; err == nil || !strings.HasPrefix(err.Error(), want) || !errors.Is(err, errno) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

func TestSecondNameIsAWarning(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "locker.json")
	startServer(t, map[string]string{"LOCKER_CONFIG": path}).stop()
	if err := os.Link(path, filepath.Join(dir, "other.json")); err != nil {
		t.Fatal(err)
	}
	startServer(t, map[string]string{"LOCKER_CONFIG": path}).log.Await(t, `level=WARN msg="the state file has a second name`)
}

// The last revision that every reader of JSON reads exactly is not passed.
func TestRevisionsEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	writeFile(t, path, fmt.Sprintf(`{"version": 2, "revision": %d, "locks": {}}`, uint64(maxRevision)-2))
	s := startServer(t, map[string]string{"LOCKER_CONFIG": path})
	if got := s.do(t, put, "/lock/a", jane); got.status != "200 OK" {
		t.Fatalf("the last change: %s %s", got.status, got.body)
	}
	saved := read(t, path)
	if got := s.do(t, put, "/lock/b", jane); got.status != "503 Service Unavailable" || read(t, path) != saved {
		t.Errorf("a change beyond it: %s %s", got.status, got.body)
	}
	s.log.Await(t, "the state's revision is at 9007199254740992")
}

// Holders of a file from before there were slots get them in the order of their
// tokens.
func TestOlderHoldersGetSlots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locker.json")
	writeFile(t, path, `{"version": 2, "revision": 9, "locks": {"a": {"key": "k", "revision": 9, "holders": [
		{"locked_by": "late", "since": "2026-11-23T10:00:00Z", "token": 9}, {"locked_by": "early", "since": "2026-11-23T10:00:00Z", "token": 3}]}}}`)
	_, s := openAt(t, path)
	if h := s.look("a").Holders; h[0].Slot != 2 || h[1].Slot != 1 {
		t.Errorf("holders %+v", h)
	}
}
