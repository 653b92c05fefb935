package main

import (
	"log/slog"
	"os"
	"strconv"
	"syscall"
	"testing"
)

// TestMain lets the test binary be the locker, for tests that start, kill and
// limit a process.
func TestMain(m *testing.M) {
	if os.Getenv("LOCKER_TEST_MAIN") != "" {
		if limit, err := strconv.ParseUint(os.Getenv("LOCKER_TEST_FSIZE"), 10, 64); err == nil {
			syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: limit})
		}
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
