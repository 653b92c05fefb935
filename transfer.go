package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// This file is `locker import` and `locker export`: the way of the locks from a
// state file to etcd and back.

const importLease = 30 * time.Second

// parseTransfer reads the arguments of a command that works on the state in etcd.
// It returns how etcd is reached, and the arguments that are no flags; nil without
// an error: the help was all that was asked for.
func parseTransfer(flags *flag.FlagSet, args []string, getenv func(string) string, stdout io.Writer) (*etcdConfig, []string, error) {
	flags.SetOutput(io.Discard)
	given, err := parseOptions(flags, args[1:], getenv)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, help)
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, &configError{fmt.Errorf("%w: see -help", err)}
	}
	if given["etcd"].value == "" {
		return nil, nil, &configError{errors.New("LOCKER_ETCD is not set: set it to etcd's URLs, such as http://10.0.0.1:2379")}
	}
	cfg, err := parseEtcd(given, getenv)
	if err != nil {
		return nil, nil, &configError{err}
	}
	return cfg, flags.Args(), nil
}

// runExport writes all locks as they are at one moment, as a state file.
func runExport(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	cfg, rest, err := parseTransfer(flag.NewFlagSet("export", flag.ContinueOnError), args, getenv, stdout)
	if err != nil || cfg == nil {
		return err
	}
	if len(rest) > 0 {
		return &configError{fmt.Errorf("argument %q: locker export writes to the standard output", rest[0])}
	}
	answer, err := cfg.client().txn(ctx, transaction(nil, []etcdOp{readKey(cfg.keys.state()), {Range: under(cfg.keys.locks())}}, nil), etcdLoad)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	s, err := cfg.keys.decode(answer.kv(0), answer.kvs(1))
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	_, err = stdout.Write(bytes.Join(s.pieces(), nil))
	return err
}

// runImport moves the locks of a state file, or none, to an etcd that has none.
func runImport(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	flags := flag.NewFlagSet("import", flag.ContinueOnError)
	empty := flags.Bool("empty", false, "")
	cfg, rest, err := parseTransfer(flags, args, getenv, stdout)
	if err != nil || cfg == nil {
		return err
	}
	if *empty == (len(rest) == 1) || len(rest) > 1 {
		return &configError{errors.New("name one state file, or -empty for no locks")}
	}
	s, path := &state{}, ""
	if !*empty {
		var st *fileStore
		if st, s, err = openForImport(rest[0]); err != nil {
			return err
		}
		defer st.close()
		path = st.path
	}
	if err := importState(ctx, cfg.client(), cfg.keys, s); err != nil {
		return fmt.Errorf("import: %w", err)
	}
	fmt.Fprintf(stdout, "%d locks are in etcd, at revision %d\n", s.size(), s.revision)
	return setAside(path)
}

// openForImport reads a state file that no locker serves.
func openForImport(name string) (*fileStore, *state, error) {
	if _, err := os.Stat(name); err != nil {
		return nil, nil, fmt.Errorf("import: %w", err)
	}
	st, err := openStore(name, "the argument of import", realSteps())
	if err != nil {
		return nil, nil, err
	}
	s, err := st.load(time.Now().UTC().Truncate(time.Second))
	if err != nil {
		st.close()
		return nil, nil, err
	}
	return st, s, nil
}

// setAside renames a file whose locks are in etcd now, so that no locker serves
// them a second time.
func setAside(path string) error {
	if path == "" {
		return nil
	}
	aside := path + ".imported"
	err := os.Rename(path, aside)
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("the locks are in etcd, but the file keeps its name: %w: rename it to %s, so that no locker serves it", err, aside)
	}
	return nil
}

func syncFolder(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// importState writes a state into an etcd that has none. It leads meanwhile, and
// writes `state` last: as long as that is not there, nobody else leads. Each part
// writes the leader's record anew, so that none is applied late or twice.
func importState(ctx context.Context, e *etcd, k keys, s *state) error {
	locks := changes(k, &state{}, s)
	for _, o := range locks {
		if o.size() > mostBytes {
			return fmt.Errorf("%s has more holders and waiters than fit into etcd (%d bytes, at most %d): nothing was changed", o.Put.Key, o.size(), mostBytes)
		}
	}
	l, err := e.grant(ctx, importLease)
	if err != nil {
		return err
	}
	defer e.revoke(context.WithoutCancel(ctx), l.ID)
	claim := putKey(k.leader(), encode(record{URL: "an import"}))
	claim.Put.Lease = l.ID
	ask := transaction([]compare{created(k.leader(), 0), modified(k.state(), 0)}, []etcdOp{claim}, []etcdOp{readKey(k.leader()), readKey(k.state())})
	answer, err := e.txn(ctx, ask, etcdAttempt)
	switch {
	case err != nil:
		return err
	case !answer.Succeeded && answer.kv(1).ModRevision != 0:
		return fmt.Errorf("etcd has locks already, under %s, perhaps by an import before: nothing was changed: to replace them, stop the lockers, keep what `locker export` prints, and delete the keys (etcdctl del --prefix %[1]s)", k)
	case !answer.Succeeded:
		return fmt.Errorf("a locker or another import is at work, %s: nothing was changed: stop it", answer.kv(0).Value)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go stayLeader(ctx, e, l)
	st := newEtcdStore(ctx, e, k, answer.Header.Revision)
	st.guard, st.last = k.leader(), st.term // `state` is not there to be compared
	parts := slices.Concat([][]etcdOp{{{Delete: under(k.locks())}}}, divide(locks), [][]etcdOp{{putKey(k.state(), s.head())}})
	for _, part := range parts {
		if st.last, err = st.write(append(part, claim)); err != nil {
			return err
		}
	}
	return nil
}

// stayLeader renews a lease until ctx is done. Its errors are passed over: without the
// lease, the next transaction fails.
func stayLeader(ctx context.Context, e *etcd, l lease) {
	for ctx.Err() == nil {
		e.renew(ctx, l.ID, etcdAttempt)
		select {
		case <-ctx.Done():
		case <-time.After(importLease / 6):
		}
	}
}
