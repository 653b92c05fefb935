package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const writeSize = 64 << 10 // bytes of one write: what is gathered for it stays in the processor's cache

// fileStore is a store in a file. Once it is loaded it is owned by the writer.
type fileStore struct {
	path     string
	guard    *os.File // FILE.lock, locked as long as the process lives
	imported bool     // it was the original locker's
	missing  bool     // it was not there
	steps    steps
	out      *bufio.Writer // used again for each save
}

// steps are what a durable write is made of, so that a test can fail each.
type steps struct {
	lock    func(f *os.File) error
	open    func(name string) (*os.File, error)
	create  func(dir, pattern string) (*os.File, error)
	write   func(f *os.File, data []byte) (int, error)
	sync    func(f *os.File) error
	close   func(f *os.File) error
	rename  func(from, to string) error
	syncDir func(f *os.File) error
}

func realSteps() steps {
	return steps{
		lock:    func(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) },
		open:    os.Open,
		create:  os.CreateTemp,
		write:   (*os.File).Write,
		sync:    (*os.File).Sync,
		close:   (*os.File).Close,
		rename:  os.Rename,
		syncDir: (*os.File).Sync,
	}
}

// errUnknown is wrapped by the errors of a save of which nobody can say
// whether it happened.
var errUnknown = errors.New("it is not known whether this was saved, the next start reads what is there")

// openStore makes the state file at path this process's alone. Nothing else is
// touched before load. Its errors say by what the file was named.
func openStore(path, by string, steps steps) (*fileStore, error) {
	path, err := filepath.Abs(path) // so that errors and the log name it in full
	if err != nil {
		return nil, fmt.Errorf("find state file: %w", err)
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // a rename would replace the link, not the file
	}
	guard, err := flock(path, by, steps.lock)
	if err != nil {
		return nil, err
	}
	return &fileStore{path: path, guard: guard, steps: steps, out: bufio.NewWriterSize(nil, writeSize)}, nil
}

// close lets another process have the state file.
func (st *fileStore) close() error { return st.guard.Close() }

// flock takes FILE.lock for this process (flock(2)). The file stays: whoever
// removed it could let two processes lock two files of that name.
func flock(path, by string, lock func(f *os.File) error) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keep other lockers off the state file: %w: set %s to a file that this user may write", err, by)
	}
	if err := lock(f); errors.Is(err, syscall.EWOULDBLOCK) {
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		f.Close()
		return nil, fmt.Errorf("another locker%s has the state file, it holds %s: stop it, or set %s to another file: %w", process(pid), path+".lock", by, err)
	} else if err != nil {
		f.Close()
		return nil, fmt.Errorf("the file system of %s cannot lock files: %w: set %s to a file on a local disk", path+".lock", err, by)
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprintln(f, os.Getpid()) // for people; the next locker names it
	}
	return f, nil
}

// process returns words for the process that wrote its number into FILE.lock.
func process(written []byte) string {
	if pid, err := strconv.Atoi(strings.TrimSpace(string(written))); err == nil {
		return fmt.Sprintf(", process %d,", pid)
	}
	return ""
}

// shared reports whether the state file has a second name (a hard link), by which
// another locker may serve it.
func (st *fileStore) shared() bool {
	info, err := os.Stat(st.path)
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink > 1
}

// load reads the state file; one that does not exist holds no lock. A file of
// the original locker is kept as FILE.v1, and who has a lock there has it since
// now. What was read is on disk when load returns, even if the process that
// wrote it died between its rename and its fsync.
func (st *fileStore) load(now time.Time) (*state, error) {
	if err := st.removeStale(); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(st.path)
	if st.missing = errors.Is(err, os.ErrNotExist); st.missing {
		return &state{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state file: %w", err)
	}
	s, original, err := decodeState(data, now)
	if err != nil {
		mend := "restore it from a backup, use the locker that wrote it, or move it away"
		if len(bytes.TrimSpace(data)) == 0 { // no locker wrote that
			mend = "restore it from a backup, or move it away"
		}
		return nil, fmt.Errorf("state file %s: %w: %s to start with no lock held", st.path, err, mend)
	}
	if st.imported = original; original {
		if err := st.keepOriginal(data); err != nil {
			return nil, err
		}
	}
	return s, st.syncWhatIsThere()
}

// removeStale removes the temporary files of a process that died while it
// saved: those with os.CreateTemp's number, not somebody's copies.
func (st *fileStore) removeStale() error {
	dir, base := filepath.Split(st.path)
	entries, err := os.ReadDir(filepath.Clean(dir))
	if err != nil {
		return fmt.Errorf("read state folder: %w", err)
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), base)
		number, temp := strings.CutPrefix(strings.TrimPrefix(rest, ".v1"), ".tmp-")
		if _, err := strconv.ParseUint(number, 10, 32); ours && temp && err == nil && e.Type().IsRegular() {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove stale file: %w", err)
			}
		}
	}
	return nil
}

func (st *fileStore) syncWhatIsThere() error {
	for _, name := range []string{st.path, filepath.Dir(st.path)} {
		f, err := st.steps.open(name)
		if err != nil {
			return fmt.Errorf("sync state file: %w", err)
		}
		err = st.steps.sync(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("sync state file: %w", err)
		}
	}
	return nil
}

// keepOriginal writes the original locker's file beside the new one. One that
// is there already is not overwritten; the same one is from an upgrade that
// was cut short.
func (st *fileStore) keepOriginal(data []byte) error {
	name := st.path + ".v1"
	there, err := os.ReadFile(name)
	switch {
	case err == nil && bytes.Equal(there, data):
		return nil
	case err == nil:
		return fmt.Errorf("state file %s is the original locker's, and %s of an earlier upgrade is in the way: move that away", st.path, name)
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("read %s: %w", name, err)
	}
	return st.replace(name, data)
}

// save makes s the content of the state file, durably, and returns its size in
// bytes. An error that wraps errUnknown leaves it open whether the file is the
// old or the new one; after any other it is the old one.
func (st *fileStore) save(s *state) (size int, err error) {
	if err := st.guarded(); err != nil {
		return 0, fmt.Errorf("save state: %w", err)
	}
	pieces := s.pieces()
	for _, piece := range pieces {
		size += len(piece)
	}
	return size, st.replace(st.path, pieces...)
}

// outOfSpace reports whether a write failed for want of space: a full disk, a
// quota or a file size limit.
func outOfSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// cause returns what the system said, without the names of files.
func cause(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return "commits fail: " + errno.Error()
	}
	return "commits fail: see the locker's log"
}

// guarded reports an error when FILE.lock is not the file that this process
// locked: its folder was replaced or its disk unmounted, and another locker may
// be at work there.
func (st *fileStore) guarded() error {
	mine, err := st.guard.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(st.path + ".lock")
	if err == nil && !os.SameFile(mine, there) {
		err = errors.New("it is not the file that this locker locked")
	}
	if err != nil {
		return fmt.Errorf("look at %s.lock: %w: %s", st.path, err, st.wayBack())
	}
	return nil
}

// wayBack returns what to do without the FILE.lock that this process locked. A
// state file that is there can be another one; its revision tells.
func (st *fileStore) wayBack() string {
	if info, err := os.Stat(st.path); err != nil || info.Size() == 0 {
		return "there is no state file beside it: put the folder back as it was, a start without that file begins with no locks"
	}
	return "the state file is there: if its revision is the one that /health shows, restart the locker, no lock is lost; otherwise put the folder back as it was"
}

// writer is a function that writes.
type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// replace replaces the file of that name by data: after a crash or a power cut
// at any time the name has all of the old content or all of the new, and once
// replace has returned nil, the new (fsync(2), rename(2)). It trusts fsync: a
// disk that answers before it has written can lose the last saves. The calls,
// for `strace -f -e trace=openat,write,fsync,renameat,close`:
//
//	openat(AT_FDCWD, "/var/locker", O_RDONLY|O_CLOEXEC) = 7
//	openat(AT_FDCWD, "/var/locker/locker.json.tmp-1234", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 8
//	write(8, "{\"version\": 2, …", 345) = 345, one for each 64 KiB
//	fsync(8) = 0
//	close(8) = 0
//	renameat(AT_FDCWD, "/var/locker/locker.json.tmp-1234", AT_FDCWD, "/var/locker/locker.json") = 0
//	fsync(7) = 0
//	close(7) = 0
//
// The folder is opened first, so that a lack of file descriptors fails the
// save while it can still be refused. An fsync that failed is never repeated:
// the pages it was to write may be gone (fsync(2), NOTES). The next save
// writes a new file.
func (st *fileStore) replace(name string, data ...[]byte) error {
	dir, err := st.steps.open(filepath.Dir(name))
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	defer dir.Close()
	temp, err := st.writeTemp(name, data)
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if err := st.steps.rename(temp, name); errors.Is(err, syscall.EBUSY) {
		os.Remove(temp)
		return fmt.Errorf("save state: %w: %s is a mount point, which cannot be replaced: mount its folder instead", err, name)
	} else if err != nil {
		return fmt.Errorf("save state: %w: %w", errUnknown, err)
	}
	if err := st.steps.syncDir(dir); err != nil {
		return fmt.Errorf("save state: %w: %w", errUnknown, err)
	}
	return nil
}

// writeTemp writes data to a new file beside name, with mode 0600, and returns
// its name. When it fails, it leaves no file.
func (st *fileStore) writeTemp(name string, data [][]byte) (temp string, err error) {
	f, err := st.steps.create(filepath.Dir(name), filepath.Base(name)+".tmp-*")
	if err != nil {
		return "", err
	}
	st.out.Reset(writer(func(p []byte) (int, error) { return st.steps.write(f, p) }))
	for _, piece := range data {
		st.out.Write(piece)
	}
	if err = st.out.Flush(); err == nil {
		err = st.steps.sync(f)
	}
	if closeErr := st.steps.close(f); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return f.Name(), err
}
