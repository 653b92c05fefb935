// Load is what the benchmarks run beside the locker, each in a process of its
// own:
//
//	load serve
//	load ask ADDRESS KIND CLIENTS TIME
//	load write FOLDER BYTES TIME
//	load txn|txn50 URL LOCKS TIME
//
// "serve" is net/http alone: it prints its address, then reads and answers the
// JSON that the locker does. "ask" is clients of either, and "write" the bare
// durable write, "txn" etcd's bare transaction; all go on for that time and print what they did a second.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cloudfoundry-community/locker/resource"
)

func main() {
	log.SetFlags(0)
	args := append(os.Args[1:], "", "", "", "", "")
	var rate float64
	var err error
	switch args[0] {
	case "serve":
		err = serve()
	case "ask":
		rate, err = ask(args[1], args[2], number(args[3]), duration(args[4]))
	case "write":
		rate, err = write(args[1], number(args[2]), duration(args[3]))
	case "txn", "txn50":
		rate, err = txn(args[1], number(args[2]), duration(args[3]), args[0] == "txn50")
	default:
		err = fmt.Errorf("it is serve, ask, write or txn, not %q", args[0])
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(rate)
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		log.Fatal(err)
	}
	return n
}

func duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		log.Fatal(err)
	}
	return d
}

func serve() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, http.HandlerFunc(answer))
}

func answer(w http.ResponseWriter, r *http.Request) {
	var take resource.Take
	if err := json.NewDecoder(r.Body).Decode(&take); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	now := time.Now().UTC().Truncate(time.Second)
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(resource.Answer{Response: "lock acquired by " + take.Key, Token: 1, Lock: resource.Lock{
		Key: take.Key, LockedBy: map[string]int{take.Key: 1}, Revision: 1,
		Holders: []resource.Holder{{LockedBy: take.Key, Since: now, Token: 1}}, Waiters: []resource.Waiter{},
	}})
}

// write replaces a file of that size in the folder as often as it can.
func write(folder string, size int, time time.Duration) (perSecond float64, err error) {
	data := make([]byte, size)
	return repeat(time, func() error { return replace(filepath.Join(folder, "floor"), data) })
}

func repeat(most time.Duration, do func() error) (perSecond float64, err error) {
	begun, n := time.Now(), 0
	for ; time.Since(begun) < most; n++ {
		if err := do(); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(begun).Seconds(), nil
}

func replace(name string, data []byte) error {
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := os.CreateTemp(filepath.Dir(name), "floor.tmp-*")
	if err != nil {
		return err
	}
	defer f.Close()
	for _, step := range []func() error{
		func() error { _, err := f.Write(data); return err },
		f.Sync,
		func() error { return os.Rename(f.Name(), name) },
		dir.Sync,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
