// Locker gives out named locks over HTTP and never loses one.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

const (
	headerTime = 10 * time.Second
	idleTime   = 3 * time.Minute // above the 90 s after which Go's clients let go themselves
	stopTime   = 4 * time.Second // for answers to be written at the end; the promise is 5 s in all
	maxHeader  = 16 << 10        // bytes; a browser's cookies for a shared host fit
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "run" {
		os.Exit(wrap(os.Args[2:], os.Getenv))
	}
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more would end the process
	ballast := tune()
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup(1) has it
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	log := resource.NewLines(os.Stderr)
	status := 0
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, log); err != nil {
		fmt.Fprintln(log, "locker:", strings.ReplaceAll(err.Error(), "\n", "\nlocker: "))
		status = 1
		if _, ok := errors.AsType[*configError](err); ok {
			status = 2
		}
	}
	log.Close()
	runtime.KeepAlive(ballast)
	os.Exit(status)
}

// Garbage is collected when there is so much of it, in percent of the heap. The
// ballast makes up for a small heap: from 17 MiB of garbage on, collecting it costs
// little time, and the locker stays below 40 MiB; thousands of waiting connections
// cost more memory than that, and do not wait for as much again.
const (
	garbagePercent = 30
	ballastSize    = 56 << 20
)

// tune sets what Go's runtime does by default, unless the environment says
// otherwise, to what a lock server needs. The ballast is to be kept alive: it
// counts as heap, but as nothing is written to it, it takes no memory.
func tune() (ballast []byte) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
		ballast = make([]byte, ballastSize)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		// The writer comes back from the disk several times in a commit. It
		// must not queue for a processor then, behind those whom it is to answer.
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 2)
	}
	return ballast
}

// run does what the arguments say: it serves until ctx is done, or looks whether
// another process does. A *configError lists everything that is wrong
// with the configuration; any other error is why the server could not start or
// go on.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "health" {
		return checkHealth(ctx, args[1:], getenv, stdout)
	}
	if len(args) > 0 && args[0] == "import" {
		return runImport(ctx, args, getenv, stdout)
	}
	if len(args) > 0 && args[0] == "export" {
		return runExport(ctx, args, getenv, stdout)
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	cfg, err := parseConfig(args, getenv, stdout, log)
	if err != nil || cfg.done {
		return err
	}
	if cfg.etcd != nil {
		return runSeveral(ctx, cfg, log)
	}
	st, err := openStore(cfg.state, cfg.stateBy, realSteps())
	if err != nil {
		return err
	}
	defer st.close()
	listener, err := listen(ctx, cfg.listen, cfg.listenBy) // before anything is imported: the original locker may still run
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
	if st.missing {
		log.Warn("there was no state file, no lock is held: if this is not the first start, stop the locker and put the file back", "state", st.path)
	}
	if st.imported {
		log.Info("the original locker's state is imported", "kept", st.path+".v1")
	}
	if st.shared() {
		log.Warn("the state file has a second name (a hard link): make sure that no other locker serves it by that", "state", st.path)
	}
	counts := newMetrics()
	c, err := newCommitter(st, s, counts, log, time.Now)
	if err != nil {
		return err
	}
	log.Info("start", "version", buildVersion(), "address", listener.Addr().String(), "tls", cfg.certificate != nil,
		"auth", cfg.credentials != nil, "state", st.path, "locks", c.state().size(), "claims", c.state().claims, "page", pageURL(listener.Addr(), cfg.certificate != nil))
	cfg.warnLocal(log)
	a := newAPI(cfg, counts, log, time.Now)
	a.begin(c)
	err = newEndpoint(listener, cfg, a, log).serve(ctx, c)
	log.Info("stop")
	return err
}

// runSeveral is run where the state is in etcd: etcd that is out of reach is
// waited for.
func runSeveral(ctx context.Context, cfg *config, log *slog.Logger) error {
	listener, err := listen(ctx, cfg.listen, cfg.listenBy)
	if err != nil {
		return err
	}
	defer listener.Close()
	counts := newMetrics()
	n := newNode(cfg.etcd, cfg.certificate, counts, log, time.Now)
	log.Info("start", "version", buildVersion(), "address", listener.Addr().String(), "tls", cfg.certificate != nil,
		"auth", cfg.credentials != nil, "etcd", strings.Join(cfg.etcd.endpoints, ","), "prefix", string(cfg.etcd.keys), "advertise", cfg.etcd.advertise, "page", pageURL(listener.Addr(), cfg.certificate != nil))
	cfg.warnLocal(log)
	a := newAPI(cfg, counts, log, time.Now)
	a.node = n
	err = newEndpoint(listener, cfg, a, log).serve(ctx, n)
	log.Info("stop")
	return err
}

// pageURL returns where people on this machine find the status page.
func pageURL(address net.Addr, secured bool) string {
	scheme := "http"
	if secured {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(address.String())
	if ip := net.ParseIP(host); err != nil || ip.IsUnspecified() {
		host = "localhost"
	}
	return scheme + "://" + net.JoinHostPort(host, port) + "/"
}

// decider decides what is answered: a committer, or what makes committers come
// and go.
type decider interface {
	run() error // until close, or until it cannot go on
	drain()     // refuses what is new and answers what waits
	close()     // lets run return
}

// endpoint is what answers HTTP. It stays while committers come and go.
type endpoint struct {
	api         *api
	server      *http.Server
	listener    net.Listener
	conns       *conns
	certificate *certificate // nil: plain HTTP
}

func newEndpoint(l net.Listener, cfg *config, a *api, log *slog.Logger) *endpoint {
	e := &endpoint{api: a, server: newServer(a), conns: newConns(log), certificate: cfg.certificate}
	e.server.ConnState = e.conns.track
	e.listener = newLimited(l, maxConns(), e.conns.makeRoom, &a.crowded)
	return e
}

// serve answers by what d decides until ctx is done, the listener fails or the
// state cannot be kept. When it returns, everyone has been answered, and as far
// as commits succeed everything is committed.
func (e *endpoint) serve(ctx context.Context, d decider) error {
	written, served := make(chan error, 1), make(chan error, 1)
	go func() { written <- d.run() }()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go e.conns.watch(watching)
	go func() { served <- e.accept(watching) }()
	var err error
	select {
	case <-ctx.Done():
	case err = <-served:
		err = fmt.Errorf("serve: %w", err)
	case err = <-written:
		written <- nil
	}
	e.listener.Close() // before anyone is told to try again
	d.drain()
	e.finish(ctx)
	d.close()
	return errors.Join(err, <-written)
}

// accept serves connections until the listener is closed.
func (e *endpoint) accept(ctx context.Context) error {
	if e.certificate == nil {
		return e.server.Serve(e.listener)
	}
	go e.certificate.watch(ctx)
	e.server.TLSConfig = e.certificate.config()
	return e.server.ServeTLS(e.listener, "", "")
}

// finish returns when all answers are written, or their time is over, and what
// could not be delivered is on its way back.
func (e *endpoint) finish(ctx context.Context) {
	e.conns.closeNew()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if e.server.Shutdown(stopping) != nil {
		e.server.Close()
	}
	e.api.wait()
}

func newServer(a *api) *http.Server {
	var http1 http.Protocols
	http1.SetHTTP1(true)
	return &http.Server{
		Handler:                      a,
		Protocols:                    &http1,
		DisableGeneralOptionsHandler: true, // it would answer before credentials are checked
		ReadHeaderTimeout:            headerTime,
		IdleTimeout:                  idleTime,
		MaxHeaderBytes:               maxHeader,
		ConnContext:                  withConn,
		ErrorLog:                     stdlog.New(a.outsiders, "", 0),
	}
}
