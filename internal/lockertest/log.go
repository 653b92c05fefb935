package lockertest

import (
	"bytes"
	"regexp"
	"sync"
	"testing"
	"time"
)

// Log keeps what is written to it. It is safe for concurrent use.
type Log struct {
	mu      sync.Mutex
	text    bytes.Buffer
	written chan struct{} // closed at the next write
}

// NewLog returns an empty log.
func NewLog() *Log { return &Log{written: make(chan struct{})} }

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.written)
	l.written = make(chan struct{})
	return l.text.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Await waits until the log has what the pattern matches, and returns its
// submatches.
func (l *Log) Await(t testing.TB, pattern string) []string {
	t.Helper()
	late := time.After(Patience)
	for {
		l.mu.Lock()
		text, written := l.text.String(), l.written
		l.mu.Unlock()
		if found := regexp.MustCompile(pattern).FindStringSubmatch(text); found != nil {
			return found
		}
		select {
		case <-written:
		case <-late:
			t.Fatalf("the log never had %s:\n%s", pattern, text)
		}
	}
}
