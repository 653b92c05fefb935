package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
func checkHealth(ctx context.Context, getenv func(string) string, stdout io.Writer) error {
	url, err := healthURL(getenv)
	if err != nil {
		return &configError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, healthTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return &configError{err}
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Do(req)
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

// healthURL returns where the locker of these settings answers on this machine.
func healthURL(getenv func(string) string) (string, error) {
	cfg := &config{}
	if err := cfg.choose(getenv("LISTEN"), cmp.Or(getenv("PORT"), defaultPort)); err != nil {
		return "", err
	}
	host, port, err := net.SplitHostPort(cfg.listen)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1" // every interface
	}
	scheme := "http"
	if getenv("SSL_CERT") != "" {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port) + "/health", nil
}
