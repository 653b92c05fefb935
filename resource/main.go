package resource

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Main runs one of the programs, Check, In or Out, with what the process was
// given, until TERM or INT ends it, and exits with status 0 or 1.
func Main(run func(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args []string, getenv func(string) string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more does not end the program,
	stderr := NewLines(os.Stderr)  // nor does one that nobody reads yet
	status := 0
	if err := run(ctx, os.Stdin, os.Stdout, stderr, os.Args[1:], os.Getenv); err != nil {
		fail(stderr, err)
		status = 1
	}
	stderr.Close()
	os.Exit(status)
}
