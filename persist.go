package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

// stateVersion is the version of the state file's format.
const stateVersion = 2

// maxRevision is the last one that every reader of JSON reads exactly: a
// million changes a second do not get there in 285 years.
const maxRevision = 1 << 53

// store is the state file. Once it is loaded it is owned by the writer.
type store struct {
	path     string
	guard    *os.File // FILE.lock, locked as long as the process lives
	imported bool     // it was the original locker's
	steps    steps
	buf      []byte // reused from save to save
}

// steps are what a durable write is made of, so that a test can fail each.
type steps struct {
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
// touched before load.
func openStore(path string, steps steps) (*store, error) {
	path, err := filepath.Abs(path) // so that errors and the log name it in full
	if err != nil {
		return nil, fmt.Errorf("find state file: %w", err)
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // a rename would replace the link, not the file
	}
	guard, err := flock(path)
	if err != nil {
		return nil, err
	}
	return &store{path: path, guard: guard, steps: steps}, nil
}

// close lets another process have the state file.
func (st *store) close() error { return st.guard.Close() }

// flock takes FILE.lock for this process (flock(2)). The file stays: whoever
// removed it could let two processes lock two files of that name.
func flock(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keep other lockers off the state file: %w: set LOCKER_CONFIG to a file that this user may write", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another locker has the state file, it holds %s: stop it, or set LOCKER_CONFIG to another file: %w", path+".lock", err)
	}
	return f, nil
}

// load reads the state file; one that does not exist is no lock held. A file of
// the original locker is kept as FILE.v1, and who has a lock there has it since
// now. What was read is on disk when load returns, even if the process that
// wrote it died between its rename and its fsync.
func (st *store) load(now time.Time) (*state, error) {
	if err := st.removeStale(); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(st.path)
	if errors.Is(err, os.ErrNotExist) {
		return &state{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state file: %w", err)
	}
	s, original, err := decodeState(data, now)
	if err != nil {
		return nil, fmt.Errorf("state file %s: %w: use the locker that wrote it, restore it from a backup, or move it away to start with no lock held", st.path, err)
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
func (st *store) removeStale() error {
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

func (st *store) syncWhatIsThere() error {
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
func (st *store) keepOriginal(data []byte) error {
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

// save makes s the content of the state file, durably. An error that wraps
// errUnknown leaves it open whether the file is the old or the new one; after
// any other it is the old one.
func (st *store) save(s *state) error {
	if err := st.guarded(); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	st.buf = s.appendTo(st.buf[:0])
	return st.replace(st.path, st.buf)
}

// guarded reports an error when FILE.lock is not the file that this process
// locked: its folder was replaced or its disk unmounted, and another locker may
// be at work there.
func (st *store) guarded() error {
	mine, err := st.guard.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(st.path + ".lock")
	if err == nil && !os.SameFile(mine, there) {
		err = errors.New("it is not the file that this locker locked")
	}
	if err != nil {
		return fmt.Errorf("look at %s.lock: %w: bring its folder back, or restart the locker", st.path, err)
	}
	return nil
}

// replace replaces the file of that name by data: after a crash or a power cut
// at any time the name has all of the old content or all of the new, and once
// replace has returned nil, the new (fsync(2), rename(2)). It trusts fsync: a
// disk that answers before it has written can lose the last saves. The calls,
// for `strace -f -e trace=openat,write,fsync,renameat,close`:
//
//	openat(AT_FDCWD, "/var/locker", O_RDONLY|O_CLOEXEC) = 7
//	openat(AT_FDCWD, "/var/locker/locker.json.tmp-1234", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 8
//	write(8, "{\"version\": 2, …", 345) = 345
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
func (st *store) replace(name string, data []byte) error {
	dir, err := st.steps.open(filepath.Dir(name))
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	defer dir.Close()
	temp, err := st.writeTemp(name, data)
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if err := st.steps.rename(temp, name); err != nil {
		return fmt.Errorf("save state: %w: %w", errUnknown, err)
	}
	if err := st.steps.syncDir(dir); err != nil {
		return fmt.Errorf("save state: %w: %w", errUnknown, err)
	}
	return nil
}

// writeTemp writes data to a new file beside name, with mode 0600, and returns
// its name. When it fails, it leaves no file.
func (st *store) writeTemp(name string, data []byte) (temp string, err error) {
	f, err := st.steps.create(filepath.Dir(name), filepath.Base(name)+".tmp-*")
	if err != nil {
		return "", err
	}
	_, err = st.steps.write(f, data)
	if err == nil {
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

// appendTo appends the state file's content: one line a lock, so that a person
// can read it, and encoded anew only for locks that changed.
func (s *state) appendTo(buf []byte) []byte {
	buf = fmt.Appendf(buf, "{\"version\": %d, \"revision\": %d, \"locks\": {", stateVersion, s.revision)
	var line bytes.Buffer
	enc := newEncoder(&line)
	for i, l := range s.locks {
		if i > 0 {
			buf = append(buf, ',')
		}
		if l.saved == nil {
			line.Reset()
			mustEncode(enc, l.name)
			line.Truncate(line.Len() - 1) // the newline that every Encode adds
			line.WriteString(": ")
			mustEncode(enc, l)
			l.saved = bytes.Clone(line.Bytes()[:line.Len()-1])
		}
		buf = append(append(buf, '\n'), l.saved...)
	}
	return append(buf, "\n}}\n"...)
}

// encode returns v as JSON.
func encode(v any) []byte {
	var b bytes.Buffer
	mustEncode(newEncoder(&b), v)
	return b.Bytes()[:b.Len()-1]
}

// newEncoder leaves <, > and & as they are: they occur in links.
func newEncoder(b *bytes.Buffer) *json.Encoder {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	return enc
}

func mustEncode(enc *json.Encoder, v any) {
	if err := enc.Encode(v); err != nil {
		panic(err) // strings, numbers and times of four-digit years always encode
	}
}

// decodeState reads a state file. The original locker's, which has no version,
// is read as well, its holders held since now; original tells.
func decodeState(data []byte, now time.Time) (s *state, original bool, err error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, false, errors.New("it is empty")
	}
	members := map[string]member{}
	err = resource.Object(data, func(name string, value json.RawMessage, offset int) error {
		members[name] = member{value, offset}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("it does not parse: %w", err)
	}
	if v, ok := members["version"]; !ok || v.value[0] == '{' {
		s, err = decodeOriginal(members, now)
		return s, true, err
	}
	s, err = decodeMembers(members)
	return s, false, err
}

// member is a member of the state file's outermost object.
type member struct {
	value  json.RawMessage
	offset int
}

func decodeMembers(members map[string]member) (*state, error) {
	var number int
	if err := json.Unmarshal(members["version"].value, &number); err != nil || number != stateVersion {
		return nil, fmt.Errorf("it is of version %s, and this locker reads %d (at byte %d)", members["version"].value, stateVersion, members["version"].offset)
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if !slices.Contains([]string{"version", "revision", "locks"}, name) {
			return nil, fmt.Errorf("%q at byte %d: it must have version, revision and locks, and nothing else", name, members[name].offset)
		}
	}
	if len(members) < 3 {
		return nil, errors.New("it must have version, revision and locks")
	}
	s := &state{}
	revision, locks := members["revision"], members["locks"]
	if err := json.Unmarshal(revision.value, &s.revision); err != nil || string(revision.value) == "null" || s.revision > maxRevision {
		return nil, fmt.Errorf("\"revision\" at byte %d: %s is no number up to %d", revision.offset, revision.value, uint64(maxRevision))
	}
	if err := s.decodeLocks(locks); err != nil {
		return nil, fmt.Errorf("\"locks\" at byte %d: %w", locks.offset, err)
	}
	slices.SortFunc(s.locks, func(a, b *lock) int { return strings.Compare(a.name, b.name) })
	return s, nil
}

func (s *state) decodeLocks(m member) error {
	return resource.Object(m.value, func(name string, value json.RawMessage, offset int) error {
		l := newLock(name)
		dec := json.NewDecoder(bytes.NewReader(value))
		dec.DisallowUnknownFields()
		err := dec.Decode(l)
		if err == nil {
			err = l.check(s.revision)
		}
		if err != nil {
			return fmt.Errorf("lock %q at byte %d: %w", name, m.offset+offset, err)
		}
		s.claims += len(l.Holders) + len(l.Waiters)
		s.locks = append(s.locks, l)
		return nil
	})
}

// decodeOriginal reads the state of the original locker: a key and counts for
// each lock. Who has a count above 0 holds the lock.
func decodeOriginal(members map[string]member, now time.Time) (*state, error) {
	s := &state{}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		var saved struct {
			Key      string         `json:"key"`
			LockedBy map[string]int `json:"locked_by"`
		}
		m := members[name]
		if err := json.Unmarshal(m.value, &saved); err != nil {
			return nil, fmt.Errorf("it has no version, and %q at byte %d is no lock of the original locker: %w", name, m.offset, err)
		}
		l := newLock(name)
		l.Key = saved.Key
		for _, lockedBy := range slices.Sorted(maps.Keys(saved.LockedBy)) {
			if saved.LockedBy[lockedBy] > 0 {
				s.revision++
				l.Holders = append(l.Holders, holder{LockedBy: lockedBy, Since: now, Token: s.revision})
			}
		}
		if l.free() {
			continue
		}
		l.Revision = s.revision
		if err := l.check(s.revision); err != nil {
			return nil, fmt.Errorf("lock %q at byte %d: %w", name, m.offset, err)
		}
		s.claims += len(l.Holders)
		s.locks = append(s.locks, l)
	}
	return s, nil
}

// check refuses what the rules could not have made.
func (l *lock) check(revision uint64) error {
	if err := checkLockName(l.name); err != nil {
		return err
	}
	if l.free() != (l.Key == "") {
		return fmt.Errorf("it has the key %q and %d holders", l.Key, len(l.Holders))
	}
	if l.Revision > revision {
		return fmt.Errorf("its revision %d is beyond the file's %d", l.Revision, revision)
	}
	var last uint64
	var claims []identity
	tokens := map[uint64]bool{}
	for i, h := range l.Holders {
		if h.Token == 0 || h.Token > l.Revision || tokens[h.Token] || l.named(h.LockedBy) != i {
			return fmt.Errorf("holder %q: it is there twice, or its token %d is not one of this lock", h.LockedBy, h.Token)
		}
		tokens[h.Token] = true
		claims = append(claims, identity{l.Key, h.LockedBy, h.ID})
	}
	for _, w := range l.Waiters {
		if w.Revision <= last || w.Revision > revision {
			return fmt.Errorf("waiter %q: its revision %d is not in order", w.LockedBy, w.Revision)
		}
		last = w.Revision
		claims = append(claims, w.identity)
	}
	present := map[identity]bool{}
	for _, c := range claims {
		if c.ID != "" && present[c] {
			return fmt.Errorf("the claim of %q is there twice", c.LockedBy)
		}
		present[c] = true
	}
	for _, e := range l.Left {
		claims = append(claims, e.identity)
	}
	for _, c := range claims {
		if err := c.check(); err != nil {
			return err
		}
	}
	return nil
}
