package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"unicode"
)

// This file checks the settings: what is wrong with them, all at once and before
// anything is started.

const longestSuffix = len(".v1.tmp-4294967295") // of the files beside the state file

// config is what section "Configure" of docs/operate.md describes, checked.
type config struct {
	state       string
	stateBy     string      // what set it
	etcd        *etcdConfig // nil: the state is in a file
	listen      string
	listenBy    string
	localOnly   bool         // nobody asked for it, but there are no credentials
	credentials *credentials // nil: everyone may
	certificate *certificate // nil: plain HTTP
	done        bool         // -help or -version was all that was asked for
}

// configError is everything that is wrong with a configuration, a line each.
type configError struct{ error }

// parseConfig reads arguments and environment and checks all of it before
// anything is started.
func parseConfig(args []string, getenv func(string) string, stdout io.Writer, log *slog.Logger) (*config, error) {
	flags := flag.NewFlagSet("locker", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	version := flags.Bool("version", false, "")
	given, err := parseOptions(flags, args, getenv)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, help)
		return &config{done: true}, nil
	case err != nil:
		return nil, &configError{fmt.Errorf("%w: see -help", err)}
	case *version:
		fmt.Fprintf(stdout, "locker %s, commit %s, %s\n", buildVersion(), buildCommit(), runtime.Version())
		return &config{done: true}, nil
	}
	cfg := &config{state: given["state"].value, stateBy: given["state"].name}
	etcd, err := parseEtcd(given, getenv)
	problems := []error{err}
	if cfg.etcd = etcd; etcd == nil {
		problems = append(problems, given["state"].checkStateFile())
	} else {
		problems = append(problems, given["state"].isNotThere(), etcd.announce(*given["advertise"], given["ssl-cert"].value != ""))
	}
	if flags.NArg() > 0 {
		problems = append(problems, fmt.Errorf("argument %q: run, health, import and export come first, and are followed by what is theirs: see -help", flags.Arg(0)))
	}
	problems = append(problems, cfg.authenticate(getenv("AUTH_USER"), getenv("AUTH_PASS")))
	problems = append(problems, cfg.secure(*given["ssl-cert"], *given["ssl-key"], log))
	problems = append(problems, cfg.choose(*given["listen"], *given["port"]))
	if err := errors.Join(problems...); err != nil {
		return nil, &configError{err}
	}
	return cfg, nil
}

// warnLocal says so when other machines do not reach the locker.
func (cfg *config) warnLocal(log *slog.Logger) {
	if cfg.localOnly {
		log.Warn("listening on this machine only (in a container: inside the container only), because there are no credentials: set AUTH_USER and AUTH_PASS, or LISTEN")
	}
}

// authenticate sets the credentials.
func (cfg *config) authenticate(user, pass string) error {
	problems := []error{bothOrNeither(option{"AUTH_USER", user}, option{"AUTH_PASS", pass})}
	for _, v := range [][2]string{{"AUTH_USER", user}, {"AUTH_PASS", pass}} {
		if strings.ContainsFunc(v[1], unicode.IsControl) {
			problems = append(problems, fmt.Errorf("%s has a control character, maybe a line's end from a file: basic authentication cannot carry one, take it out", v[0]))
		}
	}
	if name, _, colon := strings.Cut(user, ":"); colon { // what follows may be the password
		problems = append(problems, fmt.Errorf("AUTH_USER is \"%s:…\": basic authentication cannot carry a colon in a user's name, choose one without", name))
	}
	if user != "" && pass != "" {
		cfg.credentials = newCredentials(user, pass)
	}
	return errors.Join(problems...)
}

// secure sets the certificate.
func (cfg *config) secure(cert, key option, log *slog.Logger) (err error) {
	if cert.value != "" && key.value != "" {
		cfg.certificate, err = loadCertificate(cert, key, log)
		return err
	}
	return bothOrNeither(cert, key)
}

// choose sets the address to listen on.
func (cfg *config) choose(address, port option) error {
	var problems []error
	if n, err := strconv.ParseUint(port.value, 10, 16); err != nil || n == 0 {
		problems = append(problems, fmt.Errorf("%s is %q: it must be a number from 1 to 65535", port.name, port.value))
	}
	cfg.listenBy = port.name
	switch {
	case address.value != "":
		cfg.listen, cfg.listenBy = address.value, address.name
		_, port, err := net.SplitHostPort(address.value)
		if _, numErr := strconv.ParseUint(port, 10, 16); err != nil || numErr != nil {
			problems = append(problems, fmt.Errorf("%s is %q: it must be host:port, such as 127.0.0.1:8910, [::1]:8910 or :8910", address.name, address.value))
		}
	case cfg.credentials != nil:
		cfg.listen = ":" + port.value
	default:
		cfg.listen, cfg.localOnly = "127.0.0.1:"+port.value, true
	}
	return errors.Join(problems...)
}

// isNotThere refuses a state file beside etcd: nobody would read it.
func (o option) isNotThere() error {
	if _, err := os.Stat(o.value); err != nil {
		return nil
	}
	return fmt.Errorf("LOCKER_ETCD is set, and there is a state file at %s, %s: move its locks to etcd with `locker import %[2]s`, or move it away", o.name, o.value)
}

// checkStateFile reports why the state could not be kept there.
func (o option) checkStateFile() error {
	path, wrong := o.value, fmt.Sprintf("%s is %q", o.name, o.value)
	folder := filepath.Dir(path)
	const mend = "name a file in a folder that the locker can write"
	if path == "" {
		return fmt.Errorf("%s: %s", wrong, mend)
	}
	base := filepath.Base(path)
	if len(base)+longestSuffix > 255 {
		return fmt.Errorf("%s: its name has %d bytes, and files beside it are named after it: at most %d are allowed: %s", wrong, len(base), 255-longestSuffix, mend)
	}
	if strings.HasSuffix(base, ".lock") || strings.HasSuffix(base, ".v1") {
		return fmt.Errorf("%s: names that end in .lock or .v1 are for files beside a state file: choose another name", wrong)
	}
	if info, err := os.Stat(folder); err != nil {
		return fmt.Errorf("%s: %w: %s", wrong, err, mend)
	} else if !info.IsDir() {
		return fmt.Errorf("%s: %s is not a folder: %s", wrong, folder, mend)
	}
	const writeAndSearch = 2 | 1 // access(2)
	if err := syscall.Access(folder, writeAndSearch); err != nil {
		return fmt.Errorf("%s: folder %s: %w: %s", wrong, folder, err, mend)
	}
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s: that is not a file: %s", wrong, mend)
	}
	const read = 4
	if accessErr := syscall.Access(path, read); err == nil && accessErr != nil {
		return fmt.Errorf("%s: %w: give the file to the user that the locker runs as (chown)", wrong, accessErr)
	}
	if _, linkErr := os.Readlink(path); linkErr == nil && err != nil {
		return fmt.Errorf("%s: a link to a file that is not there: %w: mount its disk, or %s", wrong, err, mend)
	}
	return nil
}

// buildVersion returns the module's version, as the build recorded it.
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// buildCommit returns the commit that was built, where the build recorded it.
func buildCommit() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}
