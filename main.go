// Locker gives out named locks over HTTP and never loses one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/cloudfoundry-community/locker/resource"
)

const (
	defaultState = "locker.json"
	defaultPort  = "8910"
	headerTime   = 10 * time.Second
	idleTime     = 3 * time.Minute // above the 90 s after which Go's clients let go themselves
	stopTime     = 4 * time.Second // for answers to be written at the end; the promise is 5 s in all
	maxHeader    = 16 << 10        // bytes; a browser's cookies for a shared host fit
)

func main() {
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more would end the process
	tune()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := resource.NewLines(os.Stderr)
	status := 0
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, log); err != nil {
		fmt.Fprintln(log, "locker:", err)
		status = 1
		if _, ok := errors.AsType[*configError](err); ok {
			status = 2
		}
	}
	log.Close()
	os.Exit(status)
}

// tune sets what Go's runtime does by default, unless the environment says
// otherwise, to what a lock server needs.
func tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // thousands of waiting connections cost more memory than collecting it costs time
	}
	if os.Getenv("GOMAXPROCS") == "" {
		// The writer comes back from the disk several times in a commit. It
		// must not queue for a processor then, behind those whom it is to answer.
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 2)
	}
}

// run serves until ctx is done. A *configError lists everything that is wrong
// with the configuration; any other error is why the server could not start or
// go on.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	log := slog.New(slog.NewTextHandler(stderr, nil))
	cfg, err := parseConfig(args, getenv, stdout, log)
	if err != nil || cfg.done {
		return err
	}
	st, err := openStore(cfg.state, realSteps())
	if err != nil {
		return err
	}
	defer st.close()
	listener, err := listen(ctx, cfg.listen) // before anything is imported: the original locker may still run
	if ctx.Err() != nil && err != nil {
		return nil // stopped before it was started
	}
	if err != nil {
		return err
	}
	defer listener.Close()
	s, err := st.load(time.Now().UTC().Truncate(time.Second))
	if err != nil {
		return err
	}
	if st.imported {
		log.Info("the original locker's state is imported", "kept", st.path+".v1")
	}
	c, err := newCommitter(st, s, log, time.Now)
	if err != nil {
		return err
	}
	log.Info("start", "version", buildVersion(), "address", listener.Addr().String(), "tls", cfg.certificate != nil,
		"auth", cfg.credentials != nil, "state", st.path, "locks", len(c.state().locks), "claims", c.state().claims)
	if cfg.localOnly {
		log.Warn("listening on this machine only, because there are no credentials: set AUTH_USER and AUTH_PASS, or LISTEN")
	}
	err = serve(ctx, listener, cfg, c, log)
	log.Info("stop")
	return err
}

// serve answers on listener until ctx is done or the state cannot be kept. When
// it returns, everyone has been answered, and as far as commits succeed
// everything is committed.
func serve(ctx context.Context, listener net.Listener, cfg *config, c *committer, log *slog.Logger) error {
	a := newAPI(c, cfg.credentials, log)
	srv := newServer(a, log)
	conns := &conns{quiet: map[net.Conn]silence{}, log: log}
	srv.ConnState = conns.track
	listener = newLimited(listener, maxConns(), conns.makeRoom, &a.crowded)
	written, served := make(chan error, 1), make(chan error, 1)
	go func() { written <- c.run() }()
	if cfg.certificate == nil {
		go func() { served <- srv.Serve(listener) }()
	} else {
		watching, stop := context.WithCancel(ctx)
		defer stop()
		go cfg.certificate.watch(watching)
		srv.TLSConfig = cfg.certificate.config()
		go func() { served <- srv.ServeTLS(listener, "", "") }()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-served:
		err = fmt.Errorf("serve: %w", err)
	case err = <-written:
		written <- nil
	}
	listener.Close() // before anyone is told to try again
	c.drain()
	conns.closeNew()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if srv.Shutdown(stopping) != nil {
		srv.Close()
	}
	a.wait() // what could not be delivered is given back first
	c.close()
	return errors.Join(err, <-written)
}

func newServer(a *api, log *slog.Logger) *http.Server {
	var http1 http.Protocols
	http1.SetHTTP1(true)
	return &http.Server{
		Handler:                      a,
		Protocols:                    &http1,
		DisableGeneralOptionsHandler: true, // it would answer before credentials are checked
		ReadHeaderTimeout:            headerTime,
		IdleTimeout:                  idleTime,
		MaxHeaderBytes:               maxHeader,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// config is what section "Configure" of the README describes, checked.
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
		fmt.Fprint(stdout, "Locker gives out named locks over HTTP and never loses one.\n\nusage: locker [flags]\n\n")
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
		problems = append(problems, fmt.Errorf("argument %q: the locker takes flags only, see -help", flags.Arg(0)))
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
	if info, err := os.Stat(folder); err != nil {
		return fmt.Errorf("LOCKER_CONFIG is %q: %w: %s", path, err, mend)
	} else if !info.IsDir() {
		return fmt.Errorf("LOCKER_CONFIG is %q: %s is no folder: %s", path, folder, mend)
	}
	const writeAndSearch = 2 | 1 // access(2)
	if err := syscall.Access(folder, writeAndSearch); err != nil {
		return fmt.Errorf("LOCKER_CONFIG is %q: folder %s: %w: %s", path, folder, err, mend)
	}
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("LOCKER_CONFIG is %q: that is no file: %s", path, mend)
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
