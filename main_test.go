package main

import (
	"log/slog"
	"os"
	"strconv"
	"syscall"
	"testing"
)

// TestMain lets the test binary be the locker, for tests that start, kill and
// limit a process. Tests and benchmarks in this one run tuned as it does.
func TestMain(m *testing.M) {
	if os.Getenv("LOCKER_TEST_MAIN") != "" {
		limitTo(syscall.RLIMIT_FSIZE, os.Getenv("LOCKER_TEST_FSIZE"))
		limitTo(syscall.RLIMIT_NOFILE, os.Getenv("LOCKER_TEST_NOFILE"))
		main()
		os.Exit(0)
	}
	tune()
	os.Exit(m.Run())
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func limitTo(resource int, value string) {
	if limit, err := strconv.ParseUint(value, 10, 64); err == nil {
		syscall.Setrlimit(resource, &syscall.Rlimit{Cur: limit, Max: limit})
	}
}
