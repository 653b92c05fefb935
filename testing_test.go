package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen soon, on a machine
// that has much else to do.
const patience = 20 * time.Second

// server is a locker that runs in this process.
type server struct {
	address string
	log     *logs
	stop    func() error // does what TERM does and returns what run returned
}

// startServer runs the locker as main does, with env for its environment, on a
// free port and a new state file unless env says otherwise.
func startServer(t testing.TB, env map[string]string) *server {
	t.Helper()
	settings := map[string]string{"LISTEN": "127.0.0.1:0", "LOCKER_CONFIG": filepath.Join(t.TempDir(), "locker.json")}
	maps.Copy(settings, env)
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{log: newLogs()}
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, nil, func(name string) string { return settings[name] }, io.Discard, s.log)
		s.log.Write([]byte("ended\n"))
	}()
	s.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			return errors.New("the server does not stop")
		}
	})
	t.Cleanup(func() { s.stop() })
	found := s.log.await(t, `msg=start .*address=(\S+)|ended`)
	if found[1] == "" {
		t.Fatalf("the server did not start: %v", s.stop())
	}
	s.address = found[1]
	return s
}

// exchange is an answer, read to its end.
type exchange struct {
	status string // as on the status line, with the reason
	header http.Header
	body   string
}

// do sends one request; header is names and values in turn. The path is sent
// as it is given, and no redirect is followed.
func (s *server) do(t testing.TB, method, path, body string, header ...string) exchange {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.address+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Add(header[i], header[i+1])
	}
	answer, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return readAnswer(t, answer)
}

func readAnswer(t testing.TB, answer *http.Response) exchange {
	t.Helper()
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("read answer: %v", err)
	}
	return exchange{answer.Status, answer.Header, string(data)}
}

// dial opens a connection to send bytes on as they are.
func (s *server) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// talk writes bytes on a connection, while the answer to them is read.
func talk(t testing.TB, conn net.Conn, text string) exchange {
	t.Helper()
	go io.WriteString(conn, text)
	return nextAnswer(t, bufio.NewReader(conn))
}

func nextAnswer(t testing.TB, r *bufio.Reader) exchange {
	t.Helper()
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	return readAnswer(t, answer)
}

// memory is a listener whose connections are pipes, for synctest bubbles.
type memory struct {
	incoming chan net.Conn
	closed   chan struct{}
	close    func()
}

func newMemory() *memory {
	m := &memory{incoming: make(chan net.Conn), closed: make(chan struct{})}
	m.close = sync.OnceFunc(func() { close(m.closed) })
	return m
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case conn := <-m.incoming:
		return conn, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error   { m.close(); return nil }
func (m *memory) Addr() net.Addr { return &net.TCPAddr{} }

func (m *memory) dial(t testing.TB) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	select {
	case m.incoming <- server:
	case <-m.closed:
		t.Fatal("the server does not listen any more")
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// serveMemory serves from memory until stop, which returns what serve
// returned. In a synctest bubble its time is the bubble's.
func serveMemory(t testing.TB, cfg *config) (m *memory, stop func() error) {
	t.Helper()
	m = newMemory()
	return m, serveOn(t, m, cfg)
}

func serveOn(t testing.TB, l net.Listener, cfg *config) (stop func() error) {
	t.Helper()
	return serveBy(t, l, cfg, slog.New(slog.DiscardHandler), time.Now)
}

// serveBy is serveOn with that log and by that wall clock.
func serveBy(t testing.TB, l net.Listener, cfg *config, log *slog.Logger, wall func() time.Time) (stop func() error) {
	t.Helper()
	quick := realSteps()
	quick.sync = func(*os.File) error { return nil }
	quick.syncDir = quick.sync
	st, s, err := openState(filepath.Join(t.TempDir(), "locker.json"), quick, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCommitter(st, s, newMetrics(), log, wall)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, l, cfg, c, log)
		st.close()
	}()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { stop() })
	return stop
}

// serve has a process serve what c decides.
func serve(ctx context.Context, l net.Listener, cfg *config, c *committer, log *slog.Logger) error {
	a := newAPI(cfg.credentials, c.metrics, log, c.wall)
	return newEndpoint(l, cfg, a, log).serve(ctx, c)
}

// newCertificate writes a new self-signed certificate for 127.0.0.1 and its
// key to dir, over those that are there.
func newCertificate(t testing.TB, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newCertificateOf(t, dir, name, key)
}

// newCertificateOf is newCertificate for a key that there is.
func newCertificateOf(t testing.TB, dir, name string, key crypto.Signer) (certFile, keyFile string) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	overwrite(t, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	overwrite(t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return certFile, keyFile
}

func overwrite(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// logs keeps what is logged. It is safe for concurrent use.
type logs struct {
	mu      sync.Mutex
	text    bytes.Buffer
	written chan struct{} // closed at the next write
}

func newLogs() *logs { return &logs{written: make(chan struct{})} }

func (b *logs) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.written)
	b.written = make(chan struct{})
	return b.text.Write(p)
}

func (b *logs) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// await waits until the log has what the pattern matches and returns its
// submatches.
func (b *logs) await(t testing.TB, pattern string) []string {
	t.Helper()
	late := time.After(patience)
	for {
		b.mu.Lock()
		text, written := b.text.String(), b.written
		b.mu.Unlock()
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
