package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// gateway is as much of etcd's JSON gateway as the locker uses, in this process,
// so that a test can rule what becomes of each transaction.
type gateway struct {
	url string

	mu       sync.Mutex
	revision int64
	kvs      map[string]keyValue
	leases   map[int64]bool
	script   []string // what becomes of the next transactions with conditions; see play
	held     [][]byte // transactions that were held back
	played   []string // and what became of those that were
	user     string   // whose token is wanted; empty: none is
	tokens   int
	shape36  bool
}

func newGateway(t testing.TB) *gateway {
	g := &gateway{revision: 1, kvs: map[string]keyValue{}, leases: map[int64]bool{}}
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	g.url = server.URL
	return g
}

// client returns a client of the gateway.
func (g *gateway) client() *etcd { return (&etcdConfig{endpoints: []string{g.url}}).client() }

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.user != "" && r.URL.Path != "/v3/auth/authenticate" && r.Header.Get("Authorization") != fmt.Sprint("token", g.tokens) {
		g.refuse(w, "code 16 etcdserver: invalid auth token")
		return
	}
	switch r.URL.Path {
	case "/v3/kv/txn":
		step := "ok"
		if bytes.Contains(body, []byte(`"target":"MOD"`)) && len(g.script) > 0 {
			step, g.script = g.script[0], g.script[1:]
		}
		g.play(w, step, body)
	case "/v3/lease/grant":
		id := int64(1000 + len(g.leases))
		g.leases[id] = true
		fmt.Fprintf(w, `{"header":{},"ID":"%d","TTL":"5"}`, id)
	case "/v3/lease/keepalive":
		var ask struct {
			ID int64 `json:",string"`
		}
		json.Unmarshal(body, &ask)
		ttl := ""
		if g.leases[ask.ID] {
			ttl = `,"TTL":"5"`
		}
		fmt.Fprintf(w, `{"result":{"header":{},"ID":"%d"%s}}`+"\n", ask.ID, ttl)
	case "/v3/lease/revoke":
		var ask struct {
			ID int64 `json:",string"`
		}
		json.Unmarshal(body, &ask)
		if !g.leases[ask.ID] {
			g.refuse(w, "code 5 etcdserver: requested lease not found")
			return
		}
		g.expire(ask.ID)
		fmt.Fprint(w, `{"header":{}}`)
	case "/v3/auth/authenticate":
		if !bytes.Contains(body, []byte(`"`+g.user+`"`)) {
			g.refuse(w, "code 3 etcdserver: authentication failed, invalid user ID or password")
			return
		}
		g.tokens++
		fmt.Fprintf(w, `{"header":{},"token":"token%d"}`, g.tokens)
	default:
		http.NotFound(w, r)
	}
}

// expire ends a lease, as its time does.
func (g *gateway) expire(id int64) {
	g.revision++
	g.leases[id] = false
	maps.DeleteFunc(g.kvs, func(_ string, kv keyValue) bool { return kv.Lease == id })
}

// play has a transaction meet its fate: "ok"; "lost", applied without an answer;
// "cut", neither; "held", kept for letGo and not answered; "go", that is let go first;
// "slow", a while later; "code N TEXT", refused so; "late N TEXT", applied and then that.
func (g *gateway) play(w http.ResponseWriter, step string, body []byte) {
	g.played = append(g.played, step)
	word, _, _ := strings.Cut(step, " ")
	switch word {
	case "slow":
		time.Sleep(lookPause)
		w.Write(g.apply(body))
	case "go":
		for _, held := range g.held {
			g.apply(held)
		}
		g.held = nil
		w.Write(g.apply(body))
	case "ok":
		w.Write(g.apply(body))
	case "code":
		g.refuse(w, step)
	case "late":
		g.apply(body)
		g.refuse(w, step)
	case "lost":
		g.apply(body)
		panic(http.ErrAbortHandler)
	case "held":
		g.held = append(g.held, body)
		panic(http.ErrAbortHandler)
	case "cut":
		panic(http.ErrAbortHandler)
	}
}

// letGo applies what was held back.
func (g *gateway) letGo() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, body := range g.held {
		g.apply(body)
	}
	g.held = nil
}

func (g *gateway) refuse(w http.ResponseWriter, step string) {
	var word string
	var code int
	fmt.Sscan(step, &word, &code)
	_, message, _ := strings.Cut(step, fmt.Sprint(code, " "))
	status := map[int]int{3: 400, 5: 404, 7: 403, 8: 429, 16: 401, 14: 503}
	w.WriteHeader(cmp.Or(status[code], 500))
	if g.shape36 {
		fmt.Fprintf(w, `{"code":%d,"message":%q}`, code, message)
		return
	}
	fmt.Fprintf(w, `{"error":%q,"message":%[1]q,"code":%[2]d}`, message, code)
}

// apply does what etcd does, and nothing for a member that it does not know.
func (g *gateway) apply(body []byte) []byte {
	var txn struct {
		Compare          []compare
		Success, Failure []etcdOp
	}
	if err := json.Unmarshal(body, &txn); err != nil {
		panic(err)
	}
	succeeded := !slices.ContainsFunc(txn.Compare, func(c compare) bool {
		kv := g.kvs[string(c.Key)]
		switch c.Target {
		case "CREATE":
			return c.CreateRevision != nil && kv.CreateRevision != *c.CreateRevision
		case "MOD":
			return c.ModRevision != nil && kv.ModRevision != *c.ModRevision
		}
		return false
	})
	ops := txn.Success
	if !succeeded {
		ops = txn.Failure
	}
	wrote := slices.ContainsFunc(ops, func(o etcdOp) bool { return o.Range == nil })
	if wrote {
		g.revision++
	}
	var responses []string
	for _, o := range ops {
		responses = append(responses, g.do(o))
	}
	return fmt.Appendf(nil, `{"header":{"revision":"%d"},"succeeded":%t,"responses":[%s]}`, g.revision, succeeded, strings.Join(responses, ","))
}

func (g *gateway) do(o etcdOp) string {
	switch {
	case o.Put != nil:
		kv := keyValue{Key: o.Put.Key, Value: o.Put.Value, CreateRevision: cmp.Or(g.kvs[string(o.Put.Key)].CreateRevision, g.revision), ModRevision: g.revision, Lease: o.Put.Lease}
		g.kvs[string(o.Put.Key)] = kv
		return `{"response_put":{}}`
	case o.Delete != nil:
		maps.DeleteFunc(g.kvs, func(key string, _ keyValue) bool { return within(key, o.Delete) })
		return `{"response_delete_range":{}}`
	}
	found := []keyValue{}
	for _, key := range slices.Sorted(maps.Keys(g.kvs)) {
		if within(key, o.Range) {
			found = append(found, g.kvs[key])
		}
	}
	return fmt.Sprintf(`{"response_range":{"kvs":%s,"count":"%d"}}`, lowered(found), len(found))
}

func within(key string, r *rangeOp) bool {
	if len(r.RangeEnd) == 0 {
		return key == string(r.Key)
	}
	return key >= string(r.Key) && key < string(r.RangeEnd)
}

// lowered writes keys as etcd does.
func lowered(kvs []keyValue) string {
	var list []string
	for _, kv := range kvs {
		list = append(list, fmt.Sprintf(`{"key":%s,"value":%s,"create_revision":"%d","mod_revision":"%d","lease":"%d"}`, encode(kv.Key), encode(kv.Value), kv.CreateRevision, kv.ModRevision, kv.Lease))
	}
	return "[" + strings.Join(list, ",") + "]"
}

// set writes a key, as somebody else would, and returns its revision.
func (g *gateway) set(key, value string, lease int64) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.revision++
	g.do(etcdOp{Put: &putOp{Key: []byte(key), Value: []byte(value), Lease: lease}})
	return g.revision
}

func (g *gateway) get(key string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return string(g.kvs[key].Value)
}

func (g *gateway) plan(steps ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.script, g.played = steps, nil
}
