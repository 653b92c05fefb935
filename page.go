package main

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"net/http"
)

// page is the status page: one file, served as it is.
//
//go:embed page.html
var page []byte

// pagePolicy returns the page's Content-Security-Policy (CSP level 3). Its own
// script and style run, named by their hashes; nothing else does, whatever a
// client calls its locks, and no other host is asked for anything.
func pagePolicy() string {
	return "default-src 'none'; connect-src 'self'; img-src data:" +
		"; script-src " + hashOf("script") + "; style-src " + hashOf("style") +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" +
		"; require-trusted-types-for 'script'; trusted-types 'none'"
}

// hashOf returns the source expression that allows the page's one inline
// element of that name.
func hashOf(element string) string {
	_, text, _ := bytes.Cut(page, []byte("<"+element+">"))
	text, _, _ = bytes.Cut(text, []byte("</"+element+">"))
	sum := sha256.Sum256(text)
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func (a *api) page(r *http.Request, _ []byte) (reply, error) {
	if _, err := parseQuery(r); err != nil {
		return reply{}, badRequest(err)
	}
	body := bytes.TrimSuffix(page, []byte("\n")) // write adds it
	return reply{status: http.StatusOK, contentType: "text/html; charset=utf-8", policy: a.policy, body: [][]byte{body}}, nil
}
