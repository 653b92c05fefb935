// In is Concourse's in of a locker-resource: it writes down who holds a lock.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/cloudfoundry-community/locker/resource"
)

func main() {
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more ends nothing
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := resource.In(ctx, os.Stdin, os.Stdout, os.Stderr, os.Args[1:], os.Getenv); err != nil {
		resource.Fail(os.Stderr, err)
		os.Exit(1)
	}
}
