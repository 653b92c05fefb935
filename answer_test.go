package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cloudfoundry-community/locker/resource"
)

// rawRequest is what is sent on a connection, as it is, and what must come of
// it.
type rawRequest struct {
	name, text string
	status     string // the line; "" is no answer
	sentence   string // in our JSON; "" when net/http has answered, or when it was no bad request after all
	then       string
}

// What must become of the connection, and what the client does to see it.
const (
	closes = "closes"  // what follows is not taken for a request, it may have been meant as part of this one
	goesOn = "goes on" // what follows is a request
	cut    = "cut"     // nothing follows, the client closes its side
)

// badRequests are sent to a server without credentials, on which jane holds the
// lock "held" with the key k. (For what is wrong with Authorization see
// refusedHeaders, for who sends half of something and waits TestStalledClients.)
func badRequests() []rawRequest {
	const (
		ok           = "HTTP/1.1 200 OK"
		bad          = "HTTP/1.1 400 Bad Request"
		notFound     = "HTTP/1.1 404 Not Found"
		notAllowed   = "HTTP/1.1 405 Method Not Allowed"
		tooLarge     = "HTTP/1.1 413 Request Entity Too Large"
		headerLarge  = "HTTP/1.1 431 Request Header Fields Too Large"
		locked       = "HTTP/1.1 423 Locked"
		noSuchCoding = "HTTP/1.1 501 Not Implemented"
		noSuchHTTP   = "HTTP/1.1 505 HTTP Version Not Supported: unsupported protocol version"

		isHeld  = "lock held is held with the key k by jane since "
		nothing = "there is nothing at this path: locks are at /locks and /lock/NAME, a slash in a name is %2F"
		noBody  = "a JSON object is missing: there is nothing"

		line   = "GET /locks HTTP/1.1\r\n"
		host   = "Host: locker\r\n"
		listed = line + host
		asked  = "PUT /lock/held HTTP/1.1\r\nHost: locker\r\n" // with other for its body it is refused, and changes nothing
		other  = `{"key": "x"}`
		hex    = "c\r\n" + other + "\r\n" // in a chunk
		end    = "0\r\n\r\n"
		chunks = asked + "Transfer-Encoding: chunked\r\n\r\n"
	)
	return []rawRequest{
		// The request line (RFC 9112 section 3).
		{"HTTP/0.9", "GET /locks\r\n\r\n", bad, "", closes},
		{"nothing but spaces", "  \r\n\r\n", bad, "", closes},
		{"no target", "GET HTTP/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"two spaces", "GET  /locks HTTP/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"tabs for spaces", "GET\t/locks\tHTTP/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"space in a target", "GET /lock/a b HTTP/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"line feed in a target", "GET /lock/a\nb HTTP/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"carriage return in a target", "GET /lock/a\rb HTTP/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"carriage return before the line's end", "GET /locks HTTP/1.1\r\r\n" + host + "\r\n", bad, "", closes},
		{"NUL in a target", "GET /lock/a\x00b HTTP/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"TLS", "\x16\x03\x01\x00\x05hello\r\n\r\n", bad, "", closes},
		{"a method that is none", "G(T /locks HTTP/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"HTTP/1.0", "GET /locks HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK", "", closes},
		{"HTTP/1.0 kept alive", "GET /locks HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.0 200 OK", "", closes},
		{"HTTP/1.2", "GET /locks HTTP/1.2\r\n" + host + "\r\n", ok, "", goesOn},
		{"HTTP/0.9 spelt out", "GET /locks HTTP/0.9\r\n" + host + "\r\n", noSuchHTTP, "", closes},
		{"HTTP/2.0", "GET /locks HTTP/2.0\r\n" + host + "\r\n", noSuchHTTP, "", closes},
		{"HTTP/3.0", "GET /locks HTTP/3.0\r\n" + host + "\r\n", noSuchHTTP, "", closes},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", notFound, nothing, closes},
		{"version in lower case", "GET /locks http/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"version of two digits", "GET /locks HTTP/1.10\r\n" + host + "\r\n", bad, "", closes},
		{"version without its end", "GET /locks HTTP/1.\r\n" + host + "\r\n", bad, "", closes},
		{"version of another protocol", "GET /locks SIP/2.0\r\n" + host + "\r\n", bad, "", closes},
		{"target of 24 KiB", "GET /lock/" + strings.Repeat("x", maxHeader+8<<10) + " HTTP/1.1\r\n" + host + "\r\n", headerLarge, "", cut},

		// Cut short.
		{"nothing", "", "", "", cut},
		{"half a method", "GE", bad, "", cut},
		{"half a line", "GET /lo", bad, "", cut},
		{"a line", line, bad, "", cut},
		{"half a header", line + "Hos", bad, "", cut},
		{"header without its end", listed, bad, "", cut},
		{"half a body", asked + "Content-Length: 12\r\n\r\n" + other[:6], bad, "read body: unexpected EOF", cut},
		{"half a chunk", chunks + hex[:6], bad, "read body: unexpected EOF", cut},
		{"no last chunk", chunks + hex, bad, "read body: unexpected EOF", cut},
		{"last chunk cut short", chunks + hex + "0\r\n", bad, "read body: ", cut},

		// Host (RFC 9112 section 3.2).
		{"no Host", line + "\r\n", bad + ": missing required Host header", "", closes},
		{"no Host in absolute form", "GET http://locker/locks HTTP/1.1\r\n\r\n", bad + ": missing required Host header", "", closes},
		{"two Hosts", line + host + host + "\r\n", bad, "", closes},
		{"two different Hosts", line + host + "Host: other\r\n\r\n", bad, "", closes},
		{"space in Host", line + "Host: a b\r\n\r\n", bad + ": malformed Host header", "", closes},
		{"path in Host", line + "Host: a/b\r\n\r\n", bad + ": malformed Host header", "", closes},
		{"user in Host", line + "Host: user@locker\r\n\r\n", bad + ": malformed Host header", "", closes},
		{"quotes in Host", line + "Host: \"locker\"\r\n\r\n", bad + ": malformed Host header", "", closes},
		{"empty Host", line + "Host:\r\n\r\n", ok, "", goesOn},

		// Header fields (RFC 9112 section 5).
		{"space before the colon", line + "Host : locker\r\n\r\n", bad + ": missing required Host header", "", closes},
		{"space before the length's colon", asked + "Content-Length : 12\r\n\r\n" + other, bad + ": invalid header name", "", closes},
		{"space before the coding's colon", asked + "Transfer-Encoding : chunked\r\n\r\n" + hex + end, bad + ": invalid header name", "", closes},
		{"tab before the coding's colon", asked + "Transfer-Encoding\t: chunked\r\n\r\n" + hex + end, bad, "", closes},
		{"no colon", listed + "Accept\r\n\r\n", bad, "", closes},
		{"no name", listed + ": x\r\n\r\n", bad, "", closes},
		{"quotes in a name", listed + "\"Accept\": x\r\n\r\n", bad, "", closes},
		{"NUL in a name", listed + "Acc\x00ept: x\r\n\r\n", bad, "", closes},
		{"invalid UTF-8 in a name", listed + "Acc\xffept: x\r\n\r\n", bad, "", closes},
		{"NUL in a value", listed + "Accept: \x00\r\n\r\n", bad, "", closes},
		{"carriage return in a value", listed + "Accept: a\rTransfer-Encoding: chunked\r\n\r\n", bad, "", closes},
		{"carriage return at a value's end", listed + "Accept: a\r\r\n\r\n", bad, "", closes},
		{"invalid UTF-8 in a value", listed + "Accept: \xff\r\n\r\n", ok, "", goesOn},
		{"line feeds alone", "GET /locks HTTP/1.1\nHost: locker\n\n", ok, "", goesOn},
		{"folded line", listed + "Accept: a\r\n b\r\n\r\n", ok, "", goesOn},
		{"folded first line", line + " Host: locker\r\n\r\n", bad, "", closes},
		{"folded length", asked + "Content-Length:\r\n 12\r\n\r\n" + other, locked, isHeld, goesOn},
		{"value of 24 KiB", listed + "Cookie: " + strings.Repeat("x", maxHeader+8<<10) + "\r\n\r\n", headerLarge, "", cut},
		{"value without an end", listed + "Cookie: " + strings.Repeat("x", maxHeader+8<<10), headerLarge, "", cut},
		{"a browser's cookies", listed + "Cookie: " + strings.Repeat("x", maxHeader/2) + "\r\n\r\n", ok, "", goesOn},
		{"fields without an end", listed + strings.Repeat("Accept: x\r\n", maxHeader/8), headerLarge, "", cut},

		// Length and coding (RFC 9112 section 6): where the body ends must be read in one way only.
		{"length twice", asked + "Content-Length: 12\r\nContent-Length: 12\r\n\r\n" + other, locked, isHeld, goesOn},
		{"two lengths", asked + "Content-Length: 12\r\nContent-Length: 0\r\n\r\n" + other, bad, "", closes},
		{"length that looks different", asked + "Content-Length: 12\r\nContent-Length: 012\r\n\r\n" + other, bad, "", closes},
		{"list of lengths", asked + "Content-Length: 12, 12\r\n\r\n" + other, bad, "", closes},
		{"empty length", asked + "Content-Length:\r\n\r\n" + other, bad, "", closes},
		{"length with a plus", asked + "Content-Length: +12\r\n\r\n" + other, bad, "", closes},
		{"negative length", asked + "Content-Length: -1\r\n\r\n" + other, bad, "", closes},
		{"length in hexadecimal", asked + "Content-Length: 0xc\r\n\r\n" + other, bad, "", closes},
		{"length with a fraction", asked + "Content-Length: 12.0\r\n\r\n" + other, bad, "", closes},
		{"length of 2^63", asked + "Content-Length: 9223372036854775808\r\n\r\n" + other, bad, "", closes},
		{"length of 2^64 and 12", asked + "Content-Length: 18446744073709551628\r\n\r\n" + other, bad, "", closes},
		{"length of 10^9", asked + "Content-Length: 1000000000\r\n\r\n" + strings.Repeat(" ", maxBody+1), tooLarge, "the body has more than 64 KiB", closes},
		{"length, then chunks", asked + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + end, bad, noBody, closes},
		{"chunks, then length", asked + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + hex + end, locked, isHeld, closes},
		{"chunks and a bad length", asked + "Transfer-Encoding: chunked\r\nContent-Length: x\r\n\r\n" + hex + end, bad, "", closes},
		{"chunks on a GET", listed + "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n" + hex + end, ok, "", closes},
		{"chunks in HTTP/1.0", "PUT /lock/held HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + hex + end, "HTTP/1.0 400 Bad Request", noBody, closes},
		{"chunked twice", asked + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + hex + end, noSuchCoding, "", closes},
		{"chunked, identity", asked + "Transfer-Encoding: chunked, identity\r\n\r\n" + hex + end, noSuchCoding, "", closes},
		{"identity", asked + "Transfer-Encoding: identity\r\nContent-Length: 12\r\n\r\n" + other, noSuchCoding, "", closes},
		{"gzip, chunked", asked + "Transfer-Encoding: gzip, chunked\r\n\r\n" + hex + end, noSuchCoding, "", closes},
		{"xchunked", asked + "Transfer-Encoding: xchunked\r\n\r\n" + hex + end, noSuchCoding, "", closes},
		{"quoted chunked", asked + "Transfer-Encoding: \"chunked\"\r\n\r\n" + hex + end, noSuchCoding, "", closes},
		{"empty coding", asked + "Transfer-Encoding:\r\nContent-Length: 12\r\n\r\n" + other, noSuchCoding, "", closes},
		{"vertical tab before chunked", asked + "Transfer-Encoding: \vchunked\r\n\r\n" + hex + end, bad, "", closes},
		{"folded chunked", asked + "Transfer-Encoding:\r\n chunked\r\n\r\n" + hex + end, locked, isHeld, closes},

		// Chunks (RFC 9112 section 7).
		{"chunks", chunks + hex + end, locked, isHeld, closes},
		{"chunk extension", chunks + "c;a=b\r\n" + other + "\r\n0;c=\"d\"\r\n\r\n", locked, isHeld, closes},
		{"trailer", chunks + hex + "0\r\nAuthorization: x\r\n\r\n", locked, isHeld, closes},
		{"trailer that is not allowed", asked + "Trailer: Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n" + hex + "0\r\nContent-Length: 4\r\n\r\n", bad, "", closes},
		{"trailer that is none", chunks + hex + "0\r\nx\r\n\r\n", bad, "read body: ", closes},
		{"trailer of 8 KiB", chunks + hex + "0\r\nA: " + strings.Repeat("x", 8<<10) + "\r\n\r\n", bad, "read body: http: suspiciously long trailer after chunked body", cut},
		{"chunk of no size", chunks + "\r\n" + other + "\r\n" + end, bad, "read body: empty hex number for chunk length", closes},
		{"chunk of size x", chunks + "x\r\n" + other + "\r\n" + end, bad, "read body: invalid byte in chunk length", closes},
		{"chunk of size 0xc", chunks + "0x" + hex + end, bad, "read body: invalid byte in chunk length", closes},
		{"chunk of size +c", chunks + "+" + hex + end, bad, "read body: invalid byte in chunk length", closes},
		{"chunk of size -1", chunks + "-1\r\n" + other + "\r\n" + end, bad, "read body: invalid byte in chunk length", closes},
		{"chunk of size 2^64 and 12", chunks + "1000000000000000" + hex + end, bad, "read body: http chunk length too large", closes},
		{"chunk of size 2^64-1", chunks + "ffffffffffffffff\r\n" + other, bad, "read body: unexpected EOF", cut},
		{"chunk of 10^9", chunks + "3b9aca00\r\n" + strings.Repeat(" ", maxBody+1), tooLarge, "the body has more than 64 KiB", cut},
		{"chunk of 64 KiB and 1", chunks + "10001\r\n" + strings.Repeat(" ", maxBody+1), tooLarge, "the body has more than 64 KiB", cut},
		{"chunk longer than its size", chunks + "b\r\n" + other + "\r\n" + end, bad, "read body: malformed chunked encoding", closes},
		{"chunk shorter than its size", chunks + "d\r\n" + other + "\r\n" + end, bad, "read body: malformed chunked encoding", closes},
		{"chunk with a line feed alone", chunks + "c\n" + other + "\r\n" + end, bad, "read body: chunked line ends with bare LF", closes},
		{"chunk extension with a carriage return", chunks + "c;a\rb\r\n" + other + "\r\n" + end, bad, "read body: invalid CR in chunked line", closes},
		{"chunk extension of 5 KB", chunks + "c;" + strings.Repeat("x", 5_000), bad, "read body: header line too long", cut},
		{"chunks without an end", chunks + strings.Repeat("1\r\n \r\n", maxBody+1), tooLarge, "the body has more than 64 KiB", closes},
		{"chunk extensions without an end", chunks + strings.Repeat("1;"+strings.Repeat("x", 1_000)+"\r\n \r\n", 16) + "1;" + strings.Repeat("x", 1_000) + "\r\n", bad, "read body: chunked encoding contains too much non-data", cut},

		// Methods and what else a request may ask for (RFC 9110).
		{"method in lower case", "get /locks HTTP/1.1\r\n" + host + "\r\n", notAllowed, "this path takes GET", goesOn},
		{"PUT in lower case", "put /lock/held HTTP/1.1\r\n" + host + "Content-Length: 12\r\n\r\n" + other, notAllowed, "this path takes DELETE, GET, PUT", goesOn},
		{"unknown method", "BREW /lock/held HTTP/1.1\r\n" + host + "\r\n", notAllowed, "this path takes DELETE, GET, PUT", goesOn},
		{"POST", "POST /lock/held HTTP/1.1\r\n" + host + "Content-Length: 12\r\n\r\n" + other, notAllowed, "this path takes DELETE, GET, PUT", goesOn},
		{"PATCH", "PATCH /locks HTTP/1.1\r\n" + host + "\r\n", notAllowed, "this path takes GET", goesOn},
		{"TRACE", "TRACE /locks HTTP/1.1\r\n" + host + "Cookie: secret\r\n\r\n", notAllowed, "this path takes GET", goesOn},
		{"OPTIONS", "OPTIONS /lock/held HTTP/1.1\r\n" + host + "\r\n", notAllowed, "this path takes DELETE, GET, PUT", goesOn},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"GET *", "GET * HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"CONNECT", "CONNECT locker:80 HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"CONNECT to a path", "CONNECT /lock/held HTTP/1.1\r\n" + host + "\r\n", notAllowed, "this path takes DELETE, GET, PUT", goesOn},
		{"absolute form", "GET http://locker/lock/held HTTP/1.1\r\n" + host + "\r\n", ok, "", goesOn},
		{"absolute form of nothing", "GET http://locker/nowhere HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"target without a slash", "GET locks HTTP/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"upgrade to h2c", listed + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", ok, "", goesOn},
		{"upgrade to websocket", listed + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", ok, "", goesOn},
		{"something else expected", asked + "Expect: miracles\r\nContent-Length: 12\r\n\r\n" + other, "HTTP/1.1 417 Expectation Failed", "", closes},
		{"range", listed + "Range: bytes=0-1,5-\r\n\r\n", ok, "", goesOn},
		{"If-Match beyond all numbers", "DELETE /lock/held?force=true HTTP/1.1\r\n" + host + "If-Match: \"18446744073709551616\"\r\n\r\n", bad, `If-Match is "\"18446744073709551616\"": it must be one revision in quotes, such as "17"`, goesOn},
		{"If-None-Match beyond all numbers", listed + "If-None-Match: \"18446744073709551616\"\r\n\r\n", ok, "", goesOn},

		// Paths.
		{"two slashes", "GET // HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"two slashes before a path", "GET //locks HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"two slashes before a name", "GET /lock//held HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"two slashes for a name", "GET /lock// HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"no name", "GET /lock/ HTTP/1.1\r\n" + host + "\r\n", bad, "the lock's name is empty: it must have 1 to 255 bytes", goesOn},
		{"no name and no slash", "GET /lock HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"slash after the list", "GET /locks/ HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"slash after a name", "GET /lock/held/ HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"slash in a name", "GET /lock/a/b HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"slash in a name, escaped", "GET /lock/a%2Fb HTTP/1.1\r\n" + host + "\r\n", ok, "", goesOn},
		{"slash before a name, escaped", "GET /lock%2Fheld HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"path escaped", "GET /%6cocks HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"path in capitals", "GET /LOCKS HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"dots in a path", "GET /lock/../locks HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"dots out of the path", "GET /../../etc/passwd HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"dots for a name", "GET /lock/.. HTTP/1.1\r\n" + host + "\r\n", bad, "the lock's name is . or ..: choose another name", goesOn},
		{"dots for a name, escaped", "GET /lock/%2e%2E HTTP/1.1\r\n" + host + "\r\n", bad, "the lock's name is . or ..: choose another name", goesOn},
		{"dot for a name", "GET /lock/. HTTP/1.1\r\n" + host + "\r\n", bad, "the lock's name is . or ..: choose another name", goesOn},
		{"backslashes", `GET /lock\held HTTP/1.1` + "\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"NUL in a name", "GET /lock/a%00b HTTP/1.1\r\n" + host + "\r\n", bad, "the lock's name has a control character", goesOn},
		{"NUL after the list", "GET /locks%00 HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"escape that is none", "GET /lock/%zz HTTP/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"escape cut short", "GET /lock/a% HTTP/1.1\r\n" + host + "\r\n", bad, "", closes},
		{"invalid UTF-8 in a name", "GET /lock/\xff HTTP/1.1\r\n" + host + "\r\n", bad, "the lock's name is not valid UTF-8", goesOn},
		{"invalid UTF-8 in a name, escaped", "GET /lock/%c3%28 HTTP/1.1\r\n" + host + "\r\n", bad, "the lock's name is not valid UTF-8", goesOn},
		{"surrogate in a name", "GET /lock/%ed%a0%80 HTTP/1.1\r\n" + host + "\r\n", bad, "the lock's name is not valid UTF-8", goesOn},
		{"parameters after the list", "GET /locks;x=y HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"fragment after the list", "GET /locks#x HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"fragment after a name", "GET /lock/held#x HTTP/1.1\r\n" + host + "\r\n", bad, "the lock's name has a #: in a path it is %23", goesOn},
		{"name of 255 bytes", "GET /lock/" + strings.Repeat("n", resource.MaxName) + " HTTP/1.1\r\n" + host + "\r\n", ok, "", goesOn},
		{"name of 256 bytes", "GET /lock/" + strings.Repeat("n", resource.MaxName+1) + " HTTP/1.1\r\n" + host + "\r\n", bad, "the lock's name has 256 bytes: at most 255 are allowed", goesOn},
		{"name of 10 KB", "GET /lock/" + strings.Repeat("%6e", 3_333) + " HTTP/1.1\r\n" + host + "\r\n", bad, "the lock's name has 3333 bytes: at most 255 are allowed", goesOn},

		// Queries.
		{"query of nothing", "GET /locks? HTTP/1.1\r\n" + host + "\r\n", ok, "", goesOn},
		{"query twice", "GET /locks??wait=1s HTTP/1.1\r\n" + host + "\r\n", bad, `query: "?wait" is unknown here, or given twice`, goesOn},
		{"query escaped", "GET /locks%3Fwait=1s HTTP/1.1\r\n" + host + "\r\n", notFound, nothing, goesOn},
		{"unknown query", "GET /locks?waits=1s HTTP/1.1\r\n" + host + "\r\n", bad, `query: "waits" is unknown here, or given twice`, goesOn},
		{"unknown query of a lock", "GET /lock/held?force=true HTTP/1.1\r\n" + host + "\r\n", bad, `query: "force" is unknown here, or given twice`, goesOn},
		{"query in capitals", "DELETE /lock/held?FORCE=true HTTP/1.1\r\n" + host + "\r\n", bad, `query: "FORCE" is unknown here, or given twice`, goesOn},
		{"wait twice", "GET /locks?wait=1s&wait=2s HTTP/1.1\r\n" + host + "\r\n", bad, `query: "wait" is unknown here, or given twice`, goesOn},
		{"force twice", "DELETE /lock/held?force=false&force=true HTTP/1.1\r\n" + host + "\r\n", bad, `query: "force" is unknown here, or given twice`, goesOn},
		{"force in capitals", "DELETE /lock/held?force=TRUE HTTP/1.1\r\n" + host + "\r\n", bad, `force is "TRUE": it must be true or false`, goesOn},
		{"force with a fragment", "DELETE /lock/held?force=true#x HTTP/1.1\r\n" + host + "\r\n", bad, `force is "true#x": it must be true or false`, goesOn},
		{"force with NUL", "DELETE /lock/held?force=true%00 HTTP/1.1\r\n" + host + "\r\n", bad, `force is "true\x00": it must be true or false`, goesOn},
		{"semicolon in a query", "GET /locks?a;b HTTP/1.1\r\n" + host + "\r\n", bad, "query: invalid semicolon separator in query", goesOn},
		{"escape in a query that is none", "GET /locks?wait=%zz HTTP/1.1\r\n" + host + "\r\n", bad, `query: invalid URL escape "%zz"`, goesOn},
		{"invalid UTF-8 in a query", "GET /locks?wait=%ff HTTP/1.1\r\n" + host + "\r\n", bad, `wait: "\xff" is not a duration such as "90s" or "2h30m"`, goesOn},
		{"invalid UTF-8 in a query's name", "GET /locks?\xff=1 HTTP/1.1\r\n" + host + "\r\n", bad, `query: "\xff" is unknown here, or given twice`, goesOn},
		{"wait beyond all numbers", "GET /locks?wait=1e999s HTTP/1.1\r\n" + host + "\r\n", bad, `wait: "1e999s" is not a duration such as "90s" or "2h30m"`, goesOn},
		{"wait of 2^63 ns", "GET /locks?wait=9223372036854775808ns HTTP/1.1\r\n" + host + "\r\n", bad, `wait: "9223372036854775808ns" is not a duration such as "90s" or "2h30m"`, goesOn},
		{"query of the metrics", "GET /metrics?name=x HTTP/1.1\r\n" + host + "\r\n", bad, `query: "name" is unknown here, or given twice`, goesOn},
		{"query of 10 KB", "GET /locks?" + strings.Repeat("x", 10_000) + " HTTP/1.1\r\n" + host + "\r\n", bad, `query: "` + strings.Repeat("x", maxProblem-8) + "…", goesOn},
		{"1,000 queries", "GET /locks?" + strings.Repeat("wait=1s&", 1_000) + " HTTP/1.1\r\n" + host + "\r\n", bad, `query: "wait" is unknown here, or given twice`, goesOn},
	}
}

// bodyRequests are the malformed bodies, as PUT and as DELETE of a lock that is
// held.
func bodyRequests() []rawRequest {
	var requests []rawRequest
	add := func(method string, rows []badBody) {
		for _, row := range rows {
			text := fmt.Sprintf("%s /lock/held HTTP/1.1\r\nHost: locker\r\nContent-Length: %d\r\n\r\n%s", method, len(row.body), row.body)
			requests = append(requests, rawRequest{method + " " + row.name, text, "HTTP/1.1 400 Bad Request", row.problem, goesOn})
		}
	}
	add(put, malformed)
	add(del, malformed)
	add(put, taking)
	add(del, releasing)
	return requests
}

// received is what came back on a connection until the server closed it.
type received struct {
	text string
	err  error
}

// send sends the request and what follows it.
func (r rawRequest) send(t *testing.T, s *server) chan received {
	t.Helper()
	conn := s.dial(t)
	text := r.text + map[string]string{
		closes: "DELETE /lock/held?force=true HTTP/1.1\r\nHost: locker\r\n\r\n", // what an attacker may smuggle in
		goesOn: "GET /health HTTP/1.1\r\nHost: locker\r\nConnection: close\r\n\r\n",
	}[r.then]
	go func() {
		io.WriteString(conn, text)
		if r.then == cut {
			conn.(*net.TCPConn).CloseWrite()
		}
	}()
	got := make(chan received, 1)
	go func() {
		data, err := io.ReadAll(conn)
		got <- received{string(data), err}
	}()
	return got
}

// check compares what came back with what had to.
func (r rawRequest) check(t *testing.T, got received) {
	t.Helper()
	if got.err != nil && !errors.Is(got.err, syscall.ECONNRESET) { // there was more that the server did not read
		t.Errorf("the connection was not closed: %v", got.err)
	}
	answers := bufio.NewReader(strings.NewReader(got.text))
	if r.status != "" {
		r.checkAnswer(t, answers)
	}
	if r.then == goesOn {
		if health := nextAnswer(t, answers); !strings.Contains(health.body, `"status":"ok"`) {
			t.Errorf("what followed got %s %s", health.status, health.body)
		}
	}
	if rest, _ := io.ReadAll(answers); len(rest) > 0 {
		t.Errorf("there was one answer more: %s", rest)
	}
}

func (r rawRequest) checkAnswer(t *testing.T, answers *bufio.Reader) {
	t.Helper()
	answer, err := http.ReadResponse(answers, nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	got := readAnswer(t, answer)
	if line := answer.Proto + " " + got.status; line != r.status {
		t.Errorf("got %s, want %s", line, r.status)
	}
	if ours := got.header.Get("Cache-Control") != ""; ours {
		wantWellFormed(t, got)
	}
	var problem resource.Error
	json.Unmarshal([]byte(got.body), &problem)
	if !strings.Contains(problem.Error, r.sentence) || (problem.Error == "") != (r.sentence == "") || len(problem.Error) > 1_000 {
		t.Errorf("got %s, want the sentence %s", got.body, r.sentence)
	}
}

// hostile is a server with a lock that is held, which bad requests leave alone,
// and somebody else who goes on taking and releasing another one.
type hostile struct {
	*server
	path    string
	changes int
}

func startHostile(t *testing.T) *hostile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "locker.json")
	h := &hostile{startServer(t, map[string]string{"LOCKER_CONFIG": path}), path, 2}
	h.do(t, put, "/lock/held", jane)
	return h
}

func (h *hostile) serveOthers(t *testing.T) {
	t.Helper()
	for _, method := range []string{put, del} {
		if got := h.do(t, method, "/lock/others", `{"key": "k"}`); got.status != "200 OK" {
			t.Fatalf("somebody else got %s %s", got.status, got.body)
		}
		h.changes++
	}
}

// seen is the state, on disk and as the API shows it.
func (h *hostile) seen(t *testing.T) string {
	t.Helper()
	return read(t, h.path) + h.do(t, get, "/locks", "").body
}

// wantNoMore checks that nothing has changed but what others did.
func (h *hostile) wantNoMore(t *testing.T) {
	t.Helper()
	got := h.do(t, get, "/locks", "")
	if etag := fmt.Sprintf(`"%d"`, h.changes); got.header.Get("ETag") != etag || !strings.Contains(got.body, `"held":{"key":"k","locked_by":{"jane":1}`) {
		t.Errorf("the state has revision %s, want %s: %s", got.header.Get("ETag"), etag, got.body)
	}
}

// TestBadRequests sends one after another: each gets its answer and leaves the
// state as it is, to the byte.
func TestBadRequests(t *testing.T) {
	h := startHostile(t)
	for _, r := range append(bodyRequests(), badRequests()...) {
		t.Run(r.name, func(t *testing.T) {
			before := h.seen(t)
			r.check(t, <-r.send(t, h.server))
			if after := h.seen(t); after != before {
				t.Errorf("the state was\n%s\nand is\n%s", before, after)
			}
			h.serveOthers(t)
		})
	}
	h.wantNoMore(t)
}

// TestBadRequestsAtOnce sends all at the same time, while others are served.
func TestBadRequestsAtOnce(t *testing.T) {
	h := startHostile(t)
	requests := append(bodyRequests(), badRequests()...)
	var answers []chan received
	for _, r := range requests {
		answers = append(answers, r.send(t, h.server))
		if len(answers)%10 == 0 {
			h.serveOthers(t)
		}
	}
	for i, r := range requests {
		got := <-answers[i]
		t.Run(r.name, func(t *testing.T) { r.check(t, got) })
	}
	h.wantNoMore(t)
}
