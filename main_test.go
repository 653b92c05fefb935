package main

import (
	"log/slog"
	"os"
	"testing"
)

// TestMain lets the test binary be the locker, for tests that start, kill and
// limit a process.
func TestMain(m *testing.M) {
	if os.Getenv("LOCKER_TEST_MAIN") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
