package lockertest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Skip skips a test because of what the machine lacks; in CI, where everything
// has been installed, that is a failure.
func Skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("not to be skipped in CI: %s", why)
	}
	t.Skip(why)
}

// NeedRoot skips a test that only root can run.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		Skip(t, "this needs root")
	}
}

// Eventually waits, 10 s at most, for another process to get there.
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// Read returns what a file has.
func Read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// WriteFile writes a file that only this user can read.
func WriteFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Rename renames a file or a folder.
func Rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// NewCertificate writes a new self-signed certificate for 127.0.0.1 and its
// key to dir, over those that are there.
func NewCertificate(t testing.TB, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return NewCertificateOf(t, dir, name, key)
}

// NewCertificateOf is NewCertificate for a key that there is.
func NewCertificateOf(t testing.TB, dir, name string, key crypto.Signer) (certFile, keyFile string) {
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
	WriteFile(t, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	WriteFile(t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return certFile, keyFile
}

// ClientHello returns the first thing that a client of TLS sends.
func ClientHello(t testing.TB) string {
	t.Helper()
	client, wire := net.Pipe()
	defer wire.Close()
	go tls.Client(client, &tls.Config{ServerName: "locker"}).Handshake()
	hello := make([]byte, 16<<10)
	n, err := wire.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	return string(hello[:n])
}

// FreePort returns a port that stays free while a locker is stopped: it is not
// one that the kernel gives to clients who connect meanwhile.
func FreePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		port := fmt.Sprint(10_000 + mathrand.IntN(20_000))
		if l, err := net.Listen("tcp", ":"+port); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

// AllowFiles lets this process have that many files open.
func AllowFiles(t testing.TB, n uint64) {
	t.Helper()
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Cur >= n {
		return
	}
	files.Cur, files.Max = n, max(files.Max, n)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		Skip(t, fmt.Sprintf("a limit of %d open files: %v", n, err))
	}
}

// Connections are open ones.
type Connections []net.Conn

// Flood opens n connections and sends one of the texts on each, in turn.
func Flood(t testing.TB, address string, n int, texts []string) Connections {
	t.Helper()
	conns := make(Connections, n)
	for i := range conns {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			conns[:i].Close()
			t.Fatal(err)
		}
		conn.(*net.TCPConn).SetLinger(0) // its port is free at once
		io.WriteString(conn, texts[i%len(texts)])
		conns[i] = conn
	}
	return conns
}

// Close closes them all.
func (c Connections) Close() {
	for _, conn := range c {
		conn.Close()
	}
}

// Halves are requests that are not finished, for a server whose credentials
// are this value of an Authorization header.
func Halves(authorization string) []string {
	return []string{
		"",
		"PUT /lock/a HT",
		"GET /locks HTTP/1.1\r\nHost: locker\r\nAuthorization: Basic ",
		"PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: 100\r\n\r\n{",
		"PUT /lock/a HTTP/1.1\r\nHost: locker\r\nAuthorization: " + authorization + "\r\nContent-Length: 100\r\n\r\n{",
		"PUT /lock/a HTTP/1.1\r\nHost: locker\r\nAuthorization: " + authorization + "\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
	}
}
