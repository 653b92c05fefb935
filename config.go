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

// This file is the settings: where they come from, and what is wrong with
// them, all at once and before anything is started.

const (
	defaultState = "locker.json"
	defaultPort  = "8910"

	longestSuffix = len(".v1.tmp-4294967295") // of the files beside the state file
)

// config is what section "Configure" of docs/operate.md describes, checked.
type config struct {
	state       string
	listen      string
	localOnly   bool         // nobody asked for it, but there are no credentials
	credentials *credentials // nil: everyone may
	certificate *certificate // nil: plain HTTP
	done        bool         // -help or -version was all that was asked for
}

// configError is everything that is wrong with a configuration, a line each.
type configError struct{ error }

// setting is one that has a variable and a flag; the flag wins, and an empty
// variable is an unset one.
func setting(flags *flag.FlagSet, getenv func(string) string, name, variable, fallback, usage string) *string {
	if v := getenv(variable); v != "" {
		fallback = v
	}
	return flags.String(name, fallback, fmt.Sprintf("%s (variable %s)", usage, variable))
}

// parseConfig reads arguments and environment and checks all of it before
// anything is started.
func parseConfig(args []string, getenv func(string) string, stdout io.Writer, log *slog.Logger) (*config, error) {
	flags := flag.NewFlagSet("locker", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	state := setting(flags, getenv, "state", "LOCKER_CONFIG", defaultState, "state `file`")
	address := setting(flags, getenv, "listen", "LISTEN", "", "`host:port` to listen on")
	port := setting(flags, getenv, "port", "PORT", defaultPort, "`port` to listen on, when there is no -listen: on every interface with credentials, else on 127.0.0.1")
	certFile := setting(flags, getenv, "ssl-cert", "SSL_CERT", "", "PEM `file` of the certificate; without one, plain HTTP")
	keyFile := setting(flags, getenv, "ssl-key", "SSL_KEY", "", "PEM `file` of the certificate's key")
	version := flags.Bool("version", false, "print version, commit and Go's version, and stop")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, "Locker gives out named locks over HTTP and never loses one.\n\nusage: locker [flags]\n       locker health    ask the locker of these settings how it is; status 1 when it is not well\n\n")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		fmt.Fprint(stdout, "\nVariables AUTH_USER and AUTH_PASS: the credentials that every request must carry.\n")
		return &config{done: true}, nil
	case err != nil:
		return nil, &configError{fmt.Errorf("%w: see -help", err)}
	case *version:
		fmt.Fprintf(stdout, "locker %s, commit %s, %s\n", buildVersion(), buildCommit(), runtime.Version())
		return &config{done: true}, nil
	}
	cfg := &config{state: *state}
	problems := []error{checkStateFile(*state)}
	if flags.NArg() > 0 {
		problems = append(problems, fmt.Errorf("argument %q: the locker takes flags, or health alone, see -help", flags.Arg(0)))
	}
	problems = append(problems, cfg.secure(getenv("AUTH_USER"), getenv("AUTH_PASS"), *certFile, *keyFile, log))
	problems = append(problems, cfg.choose(*address, *port))
	if err := errors.Join(problems...); err != nil {
		return nil, &configError{err}
	}
	return cfg, nil
}

// secure sets credentials and certificate.
func (cfg *config) secure(user, pass, certFile, keyFile string, log *slog.Logger) error {
	var problems []error
	for _, pair := range [][4]string{{"AUTH_USER", user, "AUTH_PASS", pass}, {"SSL_CERT", certFile, "SSL_KEY", keyFile}} {
		switch {
		case pair[1] != "" && pair[3] == "":
			problems = append(problems, fmt.Errorf("%s is set but %s is not: set both, or neither", pair[0], pair[2]))
		case pair[1] == "" && pair[3] != "":
			problems = append(problems, fmt.Errorf("%s is set but %s is not: set both, or neither", pair[2], pair[0]))
		}
	}
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
	if certFile != "" && keyFile != "" {
		var err error
		cfg.certificate, err = loadCertificate(certFile, keyFile, log)
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// choose sets the address to listen on.
func (cfg *config) choose(address, port string) error {
	var problems []error
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		problems = append(problems, fmt.Errorf("PORT is %q: it must be a number from 1 to 65535", port))
	}
	switch {
	case address != "":
		cfg.listen = address
		_, port, err := net.SplitHostPort(address)
		if _, numErr := strconv.ParseUint(port, 10, 16); err != nil || numErr != nil {
			problems = append(problems, fmt.Errorf("LISTEN is %q: it must be host:port, such as 127.0.0.1:8910, [::1]:8910 or :8910", address))
		}
	case cfg.credentials != nil:
		cfg.listen = ":" + port
	default:
		cfg.listen, cfg.localOnly = "127.0.0.1:"+port, true
	}
	return errors.Join(problems...)
}

// checkStateFile reports why the state could not be kept at path.
func checkStateFile(path string) error {
	folder := filepath.Dir(path)
	const mend = "name a file in a folder that the locker can write"
	if path == "" {
		return fmt.Errorf("LOCKER_CONFIG is %q: %s", path, mend)
	}
	base := filepath.Base(path)
	if len(base)+longestSuffix > 255 {
		return fmt.Errorf("LOCKER_CONFIG is %q: its name has %d bytes, and files beside it are named after it: at most %d are allowed: %s", path, len(base), 255-longestSuffix, mend)
	}
	if strings.HasSuffix(base, ".lock") || strings.HasSuffix(base, ".v1") {
		return fmt.Errorf("LOCKER_CONFIG is %q: names that end in .lock or .v1 are for files beside a state file: choose another name", path)
	}
	if info, err := os.Stat(folder); err != nil {
		return fmt.Errorf("LOCKER_CONFIG is %q: %w: %s", path, err, mend)
	} else if !info.IsDir() {
		return fmt.Errorf("LOCKER_CONFIG is %q: %s is not a folder: %s", path, folder, mend)
	}
	const writeAndSearch = 2 | 1 // access(2)
	if err := syscall.Access(folder, writeAndSearch); err != nil {
		return fmt.Errorf("LOCKER_CONFIG is %q: folder %s: %w: %s", path, folder, err, mend)
	}
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("LOCKER_CONFIG is %q: that is not a file: %s", path, mend)
	}
	const read = 4
	if accessErr := syscall.Access(path, read); err == nil && accessErr != nil {
		return fmt.Errorf("LOCKER_CONFIG is %q: %w: give the file to the user that the locker runs as (chown)", path, accessErr)
	}
	if _, linkErr := os.Readlink(path); linkErr == nil && err != nil {
		return fmt.Errorf("LOCKER_CONFIG is %q: a link to a file that is not there: %w: mount its disk, or %s", path, err, mend)
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
