package resource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// In writes DIR/lock, the names of the holders, and DIR/lock.json, the
// lock as the server shows it, and answers with the version it was given.
func In(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args []string, getenv func(string) string) error {
	return newProgram(stdin, stdout, stderr, args, getenv).in(ctx)
}

func (p *program) in(ctx context.Context) error {
	r, err := p.read(ctx, map[string]any{}, func() error { return nil })
	if r != nil {
		err = errors.Join(err, checkIn(r.version, p.args))
	}
	if err != nil {
		return err
	}
	l, data, err := p.look(ctx, r)
	if err != nil {
		return err
	}
	if err := writeLock(p.args[0], r.version, l, data); err != nil {
		return err
	}
	name := r.source.lockName
	p.say.info("%s", HeldBy(name, l, time.Now()))
	return p.answer(result{r.version, rows("lock", name, "key", clean(l.Key), "locked_by", strings.Join(names(l), ", "),
		"since", oldest(l), "build", links(l), "waiting", strconv.Itoa(max(l.Waiting, len(l.Waiters))))})
}

// checkIn reports that the version to answer with, or the folder to write to, is
// missing.
func checkIn(given json.RawMessage, args []string) error {
	var problems []error
	var members map[string]string
	if json.Unmarshal(given, &members) != nil || members["ref"] == "" {
		problems = append(problems, errors.New("version: ref is missing, or not text: give a version that check answered"))
	}
	if len(args) != 1 {
		problems = append(problems, fmt.Errorf("%d arguments are given: give one, the folder to write to", len(args)))
	}
	return errors.Join(problems...)
}

// writeLock writes the lock, and the token and the slot of the hold that the
// version names, if it is still there: for a task that fences or chooses.
func writeLock(dir string, of json.RawMessage, l Lock, data []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var owners strings.Builder
	for _, name := range names(l) {
		owners.WriteString(name + "\n")
	}
	os.Remove(filepath.Join(dir, "token"))
	os.Remove(filepath.Join(dir, "slot"))
	err := errors.Join(replaceFile(dir, "lock", []byte(owners.String())), replaceFile(dir, "lock.json", data))
	var v version
	json.Unmarshal(of, &v)
	for _, h := range l.Holders {
		if number(h.Token) == v.Ref {
			err = errors.Join(err, replaceFile(dir, "token", []byte(number(h.Token))), replaceFile(dir, "slot", []byte(strconv.Itoa(max(h.Slot, 1)))))
		}
	}
	return err
}

// replaceFile writes a file beside and renames it: a link of that name, which
// somebody left in the folder, is replaced and not followed.
func replaceFile(dir, name string, data []byte) error {
	f, err := os.CreateTemp(dir, name+".tmp-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// names returns the names of the holders, in the order in which they were granted.
func names(l Lock) []string {
	var names []string
	for _, h := range l.Holders {
		names = append(names, clean(h.LockedBy))
	}
	return names
}

// oldest returns when the first of the present holds was granted, "" if there is
// none.
func oldest(l Lock) string {
	if len(l.Holders) == 0 {
		return ""
	}
	return l.Holders[0].Since.Format(time.RFC3339)
}

// links returns the links of the holders, each once.
func links(l Lock) string {
	var links []string
	for _, h := range l.Holders {
		if link := clean(h.Link); link != "" && !slices.Contains(links, link) {
			links = append(links, link)
		}
	}
	return strings.Join(links, " ")
}
