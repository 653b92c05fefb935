package main

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// client is one of those who take and release locks, on a connection of its own.
// It knows no more of HTTP than it needs, so that it costs little.
type client struct {
	number, clients int
	conn            net.Conn
	answer          *bufio.Reader
	ticket, etag    string
}

// kinds of clients: each does one round, of that many requests that count.
var kinds = map[string]struct {
	round func(c *client, n int) error
	count int
}{
	"own":       {(*client).ownLock, 2},
	"ids":       {(*client).withID, 2},
	"contended": {(*client).contend, 1},
	"crowd":     {(*client).crowd, 1},
	"follow":    {(*client).follow, 1},
}

// ask has clients of a kind do their rounds for some time, and returns how many
// requests that count were answered in a second.
func ask(address, kind string, clients int, most time.Duration) (perSecond float64, err error) {
	k, ok := kinds[kind]
	if !ok {
		return 0, fmt.Errorf("clients of an unknown kind: %s", kind)
	}
	var all sync.WaitGroup
	errs, rates := make([]error, clients), make([]float64, clients)
	for i := range clients {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		c := &client{number: i, clients: clients, conn: conn, answer: bufio.NewReader(conn)}
		all.Go(func() {
			n := 0
			rates[i], errs[i] = repeat(most, func() error { n++; return k.round(c, n) })
		})
	}
	all.Wait()
	for _, rate := range rates {
		perSecond += rate * float64(k.count)
	}
	return perSecond, cmp.Or(errs...)
}

// ownLock takes a lock that nobody else wants, and releases it.
func (c *client) ownLock(int) error {
	return c.takeAndRelease(fmt.Sprint("/lock/l", c.number), `{"key": "k"}`, "")
}

// withID does so with a new id each time, and a ticket for some of them: for a
// thousand of all clients.
func (c *client) withID(n int) error {
	lock := fmt.Sprint("/lock/l", c.number)
	if n%(1+1000/c.clients) == 1 {
		if err := c.do("GET", lock+"?ticket=true", ""); err != nil {
			return err
		}
	}
	return c.takeAndRelease(lock, fmt.Sprintf(`{"key": "k", "id": "%d-%d", "ticket": %q}`, c.number, n, c.ticket), "")
}

// contend waits for a lock that all want, and releases it.
func (c *client) contend(int) error {
	return c.takeAndRelease("/lock/contended", fmt.Sprintf(`{"key": "k%d"}`, c.number), `, "wait": "50s"`)
}

// crowd does so with one of 50 locks.
func (c *client) crowd(int) error {
	who := fmt.Sprintf(`{"key": "k%d", "id": "%[1]d"}`, c.number)
	return c.takeAndRelease(fmt.Sprint("/lock/crowded", c.number%50), who, `, "wait": "50s"`)
}

// follow waits for a change of the list of locks, as the status page does, but is
// back at once.
func (c *client) follow(int) error { return c.do("GET", "/locks?wait=10s", "") }

func (c *client) takeAndRelease(path, who, more string) error {
	if err := c.do("PUT", path, who[:len(who)-1]+more+"}"); err != nil {
		return err
	}
	return c.do("DELETE", path, who)
}

// do sends a request and reads its answer, which must not be an error.
func (c *client) do(method, path, body string) error {
	if _, err := fmt.Fprintf(c.conn, "%s %s HTTP/1.1\r\nHost: locker\r\nIf-None-Match: %s\r\nContent-Length: %d\r\n\r\n%s", method, path, c.etag, len(body), body); err != nil {
		return err
	}
	status, err := c.answer.ReadSlice('\n')
	if err != nil || !bytes.HasPrefix(status, []byte("HTTP/1.1 200")) && !bytes.HasPrefix(status, []byte("HTTP/1.1 304")) {
		return fmt.Errorf("%s %s %s: %q, %w", method, path, body, status, err)
	}
	length := 0
	for {
		line, err := c.answer.ReadSlice('\n')
		if err != nil {
			return err
		}
		name, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(": "))
		switch {
		case !ok:
			_, err := io.CopyN(io.Discard, c.answer, int64(length))
			return err
		case string(name) == "Content-Length":
			length, _ = strconv.Atoi(string(value))
		case string(name) == "Etag":
			c.etag = string(value)
		case string(name) == "Locker-Ticket":
			c.ticket = string(value)
		}
	}
}
