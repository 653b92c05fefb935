package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// This file is `locker health`, for a container's or a supervisor's check: where
// the locker runs there may be no other client.

const healthTime = 5 * time.Second // for an answer

var errUnhealthy = errors.New("the locker is not healthy")

// checkHealth asks the locker that the environment's settings describe how it is,
// and prints the answer. Over TLS it does not verify who answers, since it asks
// this machine, and it sends no credentials. An error says that the locker is not
// healthy, or did not answer.
func checkHealth(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	flags := flag.NewFlagSet("health", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	if errors.Is(flags.Parse(args), flag.ErrHelp) {
		_, err := fmt.Fprint(stdout, help)
		return err
	}
	if len(args) > 0 {
		return &configError{fmt.Errorf("argument %q: locker health has no arguments: it goes by the variables that the locker goes by, see locker -help", args[0])}
	}
	u, err := healthURL(getenv)
	if err != nil {
		return &configError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, healthTime)
	defer cancel()
	resp, err := askOnce(ctx, u)
	if ctx.Err() != nil {
		return fmt.Errorf("%w: no answer within %s", errUnhealthy, healthTime)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errUnhealthy, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(stdout, io.LimitReader(resp.Body, maxBody)); err != nil {
		return fmt.Errorf("%w: %w", errUnhealthy, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: %s", errUnhealthy, resp.Status)
	}
	return nil
}

// askOnce asks on a connection of its own: net/http's client would be a tenth of the
// program.
func askOnce(ctx context.Context, u *url.URL) (*http.Response, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", u.Path, u.Host); err != nil {
		return nil, err
	}
	return http.ReadResponse(bufio.NewReader(conn), nil)
}

// healthURL returns where the locker of these settings answers on this machine.
func healthURL(getenv func(string) string) (*url.URL, error) {
	cfg := &config{}
	if err := cfg.choose(option{"LISTEN", getenv("LISTEN")}, option{"PORT", cmp.Or(getenv("PORT"), defaultPort)}); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(cfg.listen)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1" // every interface
	}
	u := &url.URL{Scheme: "http", Host: net.JoinHostPort(host, port), Path: "/health"}
	if getenv("SSL_CERT") != "" {
		u.Scheme = "https"
	}
	return u, nil
}
