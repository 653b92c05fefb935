package test

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file is requests that one locker passes on to another.

var changing = regexp.MustCompile(`(?m)^Date: .*\r\n|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|(?:Etag|Locker-Ticket): .*\r\n|"revision":\d+|"token":\d+|127\.0\.0\.1:\d+`)

// exchanged sends bytes to a locker and returns its answer, but for what changes
// from one to the next.
func exchanged(t testing.TB, l *lockertest.Locker, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", l.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(lockertest.Patience))
	go io.WriteString(conn, text)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: text[:strings.Index(text, " ")]})
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\r\n", resp.Proto, resp.Status)
	resp.Header.Write(&b)
	for _, name := range []string{"Etag", "Locker-Ticket"} {
		fmt.Fprintf(&b, "%s: %t\r\n", name+"?", resp.Header.Get(name) != "")
	}
	return changing.ReplaceAllString(b.String()+string(body), "")
}

// TestEveryLockerAnswersAlike sends the same bytes to the leader and to another.
func TestEveryLockerAnswersAlike(t *testing.T) {
	t.Parallel()
	ls := startLockers(t, 1, 2, "AUTH_USER=george", "AUTH_PASS=secret")
	leader := ls.leader(t)
	request := func(line, body string, header ...string) string {
		credentials := base64.StdEncoding.EncodeToString([]byte("george:secret"))
		return fmt.Sprintf("%s HTTP/1.1\r\nHost: locker\r\nAuthorization: Basic %s\r\n%sContent-Length: %d\r\n\r\n%s", line, credentials, strings.Join(append(header, ""), "\r\n"), len(body), body)
	}
	for _, text := range []string{
		request("PUT /lock/a%2Fgr%C3%BCn", `{"key": "k", "id": "1"}`),
		request("PUT /lock/a%2Fgrün", `{"key": "k", "id": "1"}`),
		request("PUT /lock/a%2Fgrün", `{"key": "other"}`),
		request("PUT /lock/a%2Fgrün", `{"key": "other", "wait": "100ms"}`),
		request("GET /lock/a%2Fgrün", ""), request("HEAD /lock/a%2Fgrün", ""), request("GET /lock/%61%2fgr%c3%bcn?waiters=all", ""),
		request("GET /lock/a%2Fgrün?ticket=true", ""), request("GET /lock/never", ""), request("GET /locks", ""), request("GET /locks?wait=1s", "", `If-None-Match: *`),
		request("GET /events?lock=x", ""),
		request("DELETE /lock/a%2Fgrün?force=true", "", `If-Match: "999"`),
		request("DELETE /lock/a%2Fgrün", `{"key": "wrong"}`),
		request("DELETE /lock/a%2Fgrün", `{"key": "k", "id": "1"}`),
		request("PUT /lock/%2e%2e", `{"key": "k"}`), request("PUT /lock/%zz", `{"key": "k"}`), request("PUT /lock/a?b=c", `{"key": "k"}`),
		request("PUT /lock/a", `{"keys": "k"}`), request("PUT /lock/a", ""), request("PUT /lock/a", `{"key": "k"}`, `If-Match: "1"`),
		request("PUT /lock/a", strings.Repeat(" ", 65<<10)), request("POST /lock/a", ""), request("PATCH /locks", ""), request("GET /nothing", ""), request("GET /lock/a/b", ""), request("GET //locks", ""),
		"PUT /lock/a HTTP/1.1\r\nHost: locker\r\nContent-Length: 2\r\n\r\n{}",
		"GET /health HTTP/1.1\r\nHost: locker\r\nX: \x00\r\n\r\n",
	} {
		here, there := exchanged(t, ls.all[leader], text), exchanged(t, ls.all[1-leader], text)
		if strings.Contains(text, "/events") { // they begin with the term
			continue
		}
		if there != strings.ReplaceAll(here, `,"repeat":true`, "") && there != here && !strings.Contains(text, `"id": "1"`) {
			t.Errorf("%.120s\nis answered\n%s\n\nby the leader, and\n%s\n\nby another", text, here, there)
		}
		if here[:16] != there[:16] {
			t.Errorf("%.120s: %s, and %s", text, here[:20], there[:20])
		}
	}
}

// writeRecord has etcd name a leader that is none.
func writeRecord(t testing.TB, url, record string) {
	t.Helper()
	text := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	body := fmt.Sprintf(`{"success":[{"request_put":{"key":%q,"value":%q}}]}`, text("/locker/leader"), text(record))
	if status, answer := lockertest.Send(t.Context(), "POST", url+"/v3/kv/txn", body); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
}

// TestStaleRecords has two lockers take each other, and themselves, for the
// leader: nobody is answered twice, and nothing goes round in a circle.
func TestStaleRecords(t *testing.T) {
	t.Parallel()
	ls := startLockers(t, 1, 0)
	writeRecord(t, ls.etcd.URLs[0], `{"url":"http://127.0.0.1:1"}`)
	one, other := ls.add(t, ls.etcd.URLs[0]), ls.add(t, ls.etcd.URLs[0])
	writeRecord(t, ls.etcd.URLs[0], `{"url":"`+one.URL+`"}`)
	follows := func(l *lockertest.Locker) bool { return healthOf(l).Leader == one.URL }
	lockertest.Eventually(t, "both follow", func() bool { return follows(one) && follows(other) })
	for _, l := range []*lockertest.Locker{one, other} {
		start := time.Now()
		if body := string(l.Want("GET", "/lock/l", "", 503)); time.Since(start) > 5*time.Second || !strings.Contains(body, "no locker leads at the moment, and nothing was changed") {
			t.Errorf("a read: %s after %v", body, time.Since(start))
		}
	}
	start := time.Now()
	if body := string(other.Want("PUT", "/lock/l", `{"key": "k"}`, 503)); time.Since(start) > 13*time.Second || !strings.Contains(body, "nothing was changed") {
		t.Errorf("a change: %s after %v", body, time.Since(start))
	}
	request := put(t, other, "PUT", "/lock/l", `{"key": "k"}`)
	resp, err := http.ReadResponse(request, nil)
	if err != nil || resp.StatusCode != 503 || resp.Header.Get("Locker-Standby") != "1" {
		t.Errorf("what was passed on before: %+v, %v", resp, err)
	}
}

// TestPinnedLeader passes requests on over TLS only to the certificate that the
// leader's record has, which is there before another is served.
func TestPinnedLeader(t *testing.T) {
	t.Parallel()
	folders := []string{t.TempDir(), t.TempDir()}
	ls := startLockers(t, 1, 0)
	for _, dir := range folders {
		certFile, keyFile := lockertest.NewCertificate(t, dir, "locker")
		address := freeAddress(t)
		ls.all = append(ls.all, lockertest.Start(t, append(ls.env, "LISTEN="+address, "LOCKER_ADVERTISE=https://"+address, "SSL_CERT="+certFile, "SSL_KEY="+keyFile)...))
	}
	leader := ls.leader(t)
	ask := func(method, path, body string) (int, string) {
		status, answer := lockertest.SendBy(t.Context(), unverified, method, ls.all[1-leader].URL+path, body)
		return status, string(answer)
	}
	if status, body := ask("PUT", "/lock/l", `{"key": "k", "id": "1"}`); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	renewed := t.TempDir()
	lockertest.NewCertificate(t, renewed, "locker")
	for _, name := range []string{"key.pem", "cert.pem"} {
		if err := os.Rename(filepath.Join(renewed, name), filepath.Join(folders[leader], name)); err != nil {
			t.Fatal(err)
		}
	}
	for start := time.Now(); !strings.Contains(ls.all[leader].Log.String(), "certificate reloaded"); {
		if status, body := ask("PUT", "/lock/l", `{"key": "k", "id": "1"}`); status != 200 {
			t.Errorf("while the certificate is renewed: %d %s", status, body)
		}
		if time.Since(start) > lockertest.Patience {
			t.Fatalf("it is not: %s", ls.all[leader].Log)
		}
	}
	time.Sleep(time.Second)
	if status, body := ask("PUT", "/lock/l", `{"key": "k", "id": "1"}`); status != 200 {
		t.Errorf("with another certificate: %d %s", status, body)
	}
	writeRecord(t, ls.etcd.URLs[0], `{"url":"`+ls.all[leader].URL+`","cert":"00"}`)
	lockertest.Eventually(t, "the pin counts", func() bool {
		status, body := ask("GET", "/lock/l", "")
		return status == 503 && strings.Contains(body, "its record has 00")
	})
}

// TestDisconnectThroughAStandby cuts clients that wait behind another locker, also
// those that sent bytes ahead: they leave the queue.
func TestDisconnectThroughAStandby(t *testing.T) {
	t.Parallel()
	ls := startLockers(t, 1, 2)
	standby := ls.all[1-ls.leader(t)]
	standby.Want("PUT", "/lock/l", `{"key": "k", "id": "1"}`, 200)
	for _, ahead := range []string{"", "GET /health HTTP/1.1\r\nHost: locker\r\n\r\n"} {
		conn, err := net.Dial("tcp", standby.Address)
		if err != nil {
			t.Fatal(err)
		}
		body := `{"key": "other", "wait": "50s"}`
		fmt.Fprintf(conn, "PUT /lock/l HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s%s", len(body), body, ahead)
		standby.Await("l", lockertest.WithWaiters(1))
		conn.Close()
		start := time.Now()
		standby.Await("l", lockertest.WithWaiters(0))
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("with %q ahead it left after %v", ahead, took)
		}
	}
}

// TestUndeliveredThroughAStandby has clients without an id go, and the lock be
// released in the same moment: what was on its way to them is given back.
func TestUndeliveredThroughAStandby(t *testing.T) { // not beside others: a leader that has no time to renew its lease ends its term
	ls := startLockers(t, 1, 2)
	leader := ls.leader(t)
	standby := ls.all[1-leader]
	for i := range 50 {
		standby.Want("PUT", "/lock/l", `{"key": "k"}`, 200)
		conn, err := net.Dial("tcp", standby.Address)
		if err != nil {
			t.Fatal(err)
		}
		body := `{"key": "other", "wait": "50s"}`
		fmt.Fprintf(conn, "PUT /lock/l HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		standby.Await("l", lockertest.WithWaiters(1))
		time.Sleep(time.Duration(i%5) * time.Millisecond)
		conn.Close()
		ls.all[leader].Want("DELETE", "/lock/l", `{"key": "k"}`, 200)
		ls.all[leader].Await("l", lockertest.Nobodys)
	}
}
