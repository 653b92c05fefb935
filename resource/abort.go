package resource

import (
	"context"
	"time"
)

// This file makes contexts that outlast an abort for a while.

// outlive returns a context that is done when ctx has been done for that long.
func outlive(ctx context.Context, more time.Duration) (context.Context, context.CancelFunc) {
	return endAfter(context.WithoutCancel(ctx), ctx, more)
}

// endAfter returns a context that is done when parent is, or when signal has been
// done for that long since this call.
func endAfter(parent, signal context.Context, more time.Duration) (context.Context, context.CancelFunc) {
	outliving, cancel := context.WithCancel(parent)
	stop := context.AfterFunc(signal, func() {
		timer := time.AfterFunc(more, cancel)
		context.AfterFunc(outliving, func() { timer.Stop() })
	})
	return outliving, func() {
		stop()
		cancel()
	}
}
