package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// This file talks to etcd through its JSON gateway
// (etcd.io/docs/v3.5/dev-guide/api_grpc_gateway): how one request is sent, what
// its failure means, and how transactions are written.

const (
	etcdDial    = time.Second
	etcdAttempt = 2 * time.Second
	etcdLoad    = 30 * time.Second // for an attempt to read all locks
	maxAnswer   = 1 << 30          // bytes
)

// etcd is a client of the gateways of one cluster. It is safe for concurrent use.
type etcd struct {
	endpoints  []string // URLs without a path
	user, pass string   // empty: no authentication
	transport  *http.Transport

	mu    sync.Mutex
	at    int // the endpoint that answered last
	token string
}

// keys are the names of what is kept, under a prefix.
type keys string

func (k keys) leader() string          { return string(k) + "leader" }
func (k keys) state() string           { return string(k) + "state" }
func (k keys) locks() string           { return string(k) + "lock/" }
func (k keys) lock(name string) string { return k.locks() + name }

// gRPC's codes, as the gateway passes them on.
const (
	codeUnknown          = 2
	codeInvalidArgument  = 3
	codeDeadlineExceeded = 4
	codeNotFound         = 5
	codePermissionDenied = 7
	codeExhausted        = 8
	codeUnavailable      = 14
	codeUnauthenticated  = 16
)

// etcdError is what etcd answered instead of a result.
type etcdError struct {
	code    int // 0 when it was not etcd that answered
	status  string
	message string
}

func (e *etcdError) Error() string {
	if e.code == 0 {
		return fmt.Sprintf("%s: %s", e.status, short(e.message, 200))
	}
	return short(e.message, 300)
}

// Is makes an error of etcd's quota one of a full disk.
func (e *etcdError) Is(target error) bool {
	return e.code == codeExhausted && target == syscall.ENOSPC
}

// isRefusal reports whether etcd has decided not to do what was asked.
func isRefusal(err error) bool {
	e, ok := errors.AsType[*etcdError](err)
	return ok && slices.Contains([]int{codeInvalidArgument, codePermissionDenied, codeExhausted, codeUnauthenticated}, e.code)
}

// notSent is a failure before a request was sent.
type notSent struct{ error }

func (e notSent) Unwrap() error { return e.error }

// call sends a request to the endpoint that answered last, and decodes the
// answer. When isRefusal of an error is true, etcd refused the request; a notSent was
// never sent; after any other error etcd may have carried it out.
func (e *etcd) call(ctx context.Context, path string, body []byte, answer any) error {
	token, err := e.authenticated(ctx, "")
	if err != nil {
		return err
	}
	err = e.once(ctx, path, token, body, answer)
	if e.user == "" || !expired(err) {
		return err
	}
	if token, err = e.authenticated(ctx, token); err != nil {
		return err
	}
	return e.once(ctx, path, token, body, answer)
}

// expired reports whether etcd refused a request because of its token, so that a new
// one may help.
func expired(err error) bool {
	refusal, ok := errors.AsType[*etcdError](err)
	return ok && (refusal.code == codeUnauthenticated || refusal.code == codeInvalidArgument &&
		(strings.Contains(refusal.message, "revision in header is old") || strings.Contains(refusal.message, "user name is empty")))
}

// authenticated returns a token other than old, and logs in if there is none. After an
// error, nothing else was sent.
func (e *etcd) authenticated(ctx context.Context, old string) (string, error) {
	e.mu.Lock()
	token := e.token
	e.mu.Unlock()
	if e.user == "" || token != old {
		return token, nil
	}
	var answer struct{ Token string }
	err := e.once(ctx, "/v3/auth/authenticate", "", encode(map[string]string{"name": e.user, "password": e.pass}), &answer)
	if err != nil && !isRefusal(err) {
		return "", notSent{fmt.Errorf("authenticate: %w", err)}
	}
	if err != nil {
		return "", fmt.Errorf("authenticate as %s: %w", e.user, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.token = answer.Token
	return answer.Token, nil
}

// once sends a request to one endpoint. When that is in trouble, the next request
// goes to another.
func (e *etcd) once(ctx context.Context, path, token string, body []byte, answer any) error {
	e.mu.Lock()
	at := e.at
	e.mu.Unlock()
	err := e.exchange(ctx, e.endpoints[at]+path, token, body, answer)
	failure, answered := errors.AsType[*etcdError](err)
	if err != nil && (!answered || failure.code == 0 || slices.Contains([]int{codeUnknown, codeDeadlineExceeded, codeUnavailable}, failure.code)) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.at == at {
			e.at = (at + 1) % len(e.endpoints)
		}
	}
	return err
}

func (e *etcd) exchange(ctx context.Context, url, token string, body []byte, answer any) error {
	sent := false
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent = true }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return notSent{err}
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", token) // bare: 3.4 refuses Bearer
	}
	resp, err := e.transport.RoundTrip(req) // which follows no redirect
	if err != nil && !sent {
		return notSent{err}
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read etcd's answer: %w", err)
	}
	return decodeAnswer(resp, data, answer)
}

// decodeAnswer reads a result, or the error that stands in its place in one of
// the shapes of etcd 3.4 to 3.6.
func decodeAnswer(resp *http.Response, data []byte, answer any) error {
	var failure struct {
		Code     int
		GRPCCode int `json:"grpc_code"`
		Message  string
		Error    json.RawMessage
	}
	if resp.StatusCode == http.StatusOK && !bytes.HasPrefix(data, []byte(`{"error"`)) {
		if err := json.Unmarshal(data, answer); err != nil {
			return fmt.Errorf("read etcd's answer: %w", err)
		}
		return nil
	}
	if json.Unmarshal(data, &failure) == nil && bytes.HasPrefix(failure.Error, []byte("{")) {
		json.Unmarshal(failure.Error, &failure)
	}
	code := max(failure.Code, failure.GRPCCode)
	switch {
	case code != 0:
		return &etcdError{code, resp.Status, failure.Message}
	case resp.StatusCode == http.StatusNotFound:
		return &etcdError{0, resp.Status, "etcd's JSON gateway is not at this address, or is off: with --config-file, etcd 3.4 needs enable-grpc-gateway: true"}
	}
	return &etcdError{0, resp.Status, string(data)}
}

// int64s are texts in etcd's answers, and left out when they are 0.
type (
	header struct {
		Revision int64 `json:",string"`
	}
	keyValue struct {
		Key, Value     []byte
		CreateRevision int64 `json:"create_revision,string"`
		ModRevision    int64 `json:"mod_revision,string"`
		Lease          int64 `json:",string"`
	}
	ranged struct {
		Header header
		KVs    []keyValue
	}
	txnAnswer struct {
		Header    header
		Succeeded bool
		Responses []struct {
			Range *ranged `json:"response_range"`
		}
	}
)

// kvs returns what the range at i of a transaction found.
func (a *txnAnswer) kvs(i int) []keyValue {
	if i >= len(a.Responses) || a.Responses[i].Range == nil {
		return nil
	}
	return a.Responses[i].Range.KVs
}

// kv returns the key that the range at i found; a zero one is absent.
func (a *txnAnswer) kv(i int) keyValue {
	if kvs := a.kvs(i); len(kvs) > 0 {
		return kvs[0]
	}
	return keyValue{}
}

// compare is a condition of a transaction. Only the revision of its target is
// set.
type compare struct {
	Key            []byte `json:"key"`
	Target         string `json:"target"`
	Result         string `json:"result"`
	CreateRevision *int64 `json:"create_revision,omitempty"`
	ModRevision    *int64 `json:"mod_revision,omitempty"`
}

// created wants the key to have been created at that revision; 0 is absent.
func created(key string, revision int64) compare {
	return compare{Key: []byte(key), Target: "CREATE", Result: "EQUAL", CreateRevision: &revision}
}

// modified wants the key to have been written last at that revision; 0 is absent.
func modified(key string, revision int64) compare {
	return compare{Key: []byte(key), Target: "MOD", Result: "EQUAL", ModRevision: &revision}
}

// etcdOp is an operation of a transaction, one of the three.
type etcdOp struct {
	Put    *putOp   `json:"request_put,omitempty"`
	Delete *rangeOp `json:"request_delete_range,omitempty"`
	Range  *rangeOp `json:"request_range,omitempty"`
}

type putOp struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value"`
	Lease int64  `json:"lease,omitempty"`
}

type rangeOp struct {
	Key      []byte `json:"key"`
	RangeEnd []byte `json:"range_end,omitempty"`
	Limit    int    `json:"limit,omitempty"`
}

func putKey(key string, value []byte) etcdOp {
	return etcdOp{Put: &putOp{Key: []byte(key), Value: value}}
}
func deleteKey(key string) etcdOp { return etcdOp{Delete: &rangeOp{Key: []byte(key)}} }
func readKey(key string) etcdOp   { return etcdOp{Range: &rangeOp{Key: []byte(key)}} }

// under returns a prefix's range: all keys that begin with it.
func under(prefix string) *rangeOp {
	end := []byte(prefix)
	end[len(end)-1]++
	return &rangeOp{Key: []byte(prefix), RangeEnd: end}
}

// oneUnder returns the range of one key that begins with a prefix, if there is one.
func oneUnder(prefix string) *rangeOp {
	r := under(prefix)
	r.Limit = 1
	return r
}

// size returns about how many bytes an operation adds to a transaction.
func (o etcdOp) size() int {
	if o.Put != nil {
		return len(o.Put.Key) + len(o.Put.Value)
	}
	return 64
}

// transaction writes the one request by which this program changes or reads keys:
// success is done when every condition is met, else failure. etcd ignores members
// that it does not know, so that a misspelled condition would be none: nothing
// else writes transactions.
func transaction(compares []compare, success, failure []etcdOp) []byte {
	return encode(map[string]any{"compare": slices.Concat([]compare{}, compares), "success": slices.Concat([]etcdOp{}, success), "failure": slices.Concat([]etcdOp{}, failure)})
}

// txn has a transaction done, in one attempt.
func (e *etcd) txn(ctx context.Context, body []byte, within time.Duration) (*txnAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	answer := &txnAnswer{}
	if err := e.call(ctx, "/v3/kv/txn", body, answer); err != nil {
		return nil, err
	}
	return answer, nil
}

// lease is what a leader's record is bound to.
type lease struct {
	ID  int64 `json:",string"`
	TTL int64 `json:",string"` // seconds; 0: etcd does not know it
}

// grant returns a new lease. etcd may give it more time than was asked for.
func (e *etcd) grant(ctx context.Context, ttl time.Duration) (l lease, err error) {
	ctx, cancel := context.WithTimeout(ctx, etcdAttempt)
	defer cancel()
	err = e.call(ctx, "/v3/lease/grant", encode(map[string]int64{"TTL": int64(ttl / time.Second)}), &l)
	if err == nil && (l.ID == 0 || l.TTL <= 0) { // a record without a lease would stay for ever
		err = errors.New("the answer to a lease's request has no lease")
	}
	return l, err
}

// renew has a lease's time begin anew. The answer's TTL is 0 when etcd does not
// know it any more.
func (e *etcd) renew(ctx context.Context, id int64, within time.Duration) (l lease, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var answer struct{ Result lease }
	err = e.call(ctx, "/v3/lease/keepalive", encode(map[string]string{"ID": fmt.Sprint(id)}), &answer)
	return answer.Result, err
}

// revoke ends a lease, and with it the record that is bound to it. That it is not
// known is no error.
func (e *etcd) revoke(ctx context.Context, id int64) error {
	ctx, cancel := context.WithTimeout(ctx, etcdAttempt)
	defer cancel()
	err := e.call(ctx, "/v3/lease/revoke", encode(map[string]string{"ID": fmt.Sprint(id)}), &struct{}{})
	if failure, ok := errors.AsType[*etcdError](err); ok && failure.code == codeNotFound {
		return nil
	}
	return err
}
