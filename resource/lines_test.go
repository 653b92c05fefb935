package resource

import (
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A reader that does not read holds nobody up, and learns of what it missed.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = bytesKept / len("line\n")
		r, w := io.Pipe()
		l := NewLines(w)
		for range most + 100 {
			io.WriteString(l, "line\n")
		}
		read := make(chan string, 1)
		go func() {
			text, _ := io.ReadAll(r)
			read <- string(text)
		}()
		synctest.Wait()
		l.Close()
		w.Close()
		text := <-read
		if lines := strings.Count(text, "line\n"); lines < most || !strings.Contains(text, "lines lost") {
			t.Errorf("%d lines read, the rest counted: %t", lines, strings.Contains(text, "lines lost"))
		}
	})
}

// Long lines that nobody reads do not fill the memory, and there is room again
// when they are read.
func TestLinesAreBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		l := NewLines(w)
		long := strings.Repeat("x", 1<<20) + "\n"
		for range 20 {
			io.WriteString(l, long)
		}
		read := make(chan string, 1)
		go func() {
			text, _ := io.ReadAll(r)
			read <- string(text)
		}()
		synctest.Wait()
		io.WriteString(l, "the last\n")
		synctest.Wait()
		l.Close()
		w.Close()
		if text := <-read; len(text) > 9<<20 || len(text) < 7<<20 || !strings.Contains(text, "lines=13") || !strings.HasSuffix(text, "the last\n") {
			t.Errorf("%d bytes read, ending in %q", len(text), text[len(text)-120:])
		}
	})
}

// There is room again when all that was kept has been read.
func TestLinesHaveRoomAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		l := NewLines(w)
		half := strings.Repeat("x", bytesKept/2+1)
		for _, line := range []string{half, half[1:], "the last\n"} {
			io.WriteString(l, line)
			synctest.Wait()
			if n, err := io.ReadFull(r, make([]byte, len(line))); err != nil {
				t.Fatalf("%d bytes of %d: %v", n, len(line), err)
			}
			synctest.Wait()
		}
		l.Close()
	})
}

func TestLinesCloseWithoutReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		l := NewLines(w)
		io.WriteString(l, "line\n")
		start := time.Now()
		l.Close()
		if took := time.Since(start); took != linesFlush {
			t.Errorf("close took %v", took)
		}
		r.Close()
	})
}
