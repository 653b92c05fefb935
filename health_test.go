package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

func TestHealthURL(t *testing.T) {
	for _, row := range []struct{ listen, port, cert, want string }{
		{"", "", "", "http://127.0.0.1:8910/health"},
		{"", "9000", "", "http://127.0.0.1:9000/health"},
		{":80", "9000", "", "http://127.0.0.1:80/health"},
		{"0.0.0.0:80", "", "x", "https://127.0.0.1:80/health"},
		{"[::]:80", "", "", "http://127.0.0.1:80/health"},
		{"[::1]:80", "", "", "http://[::1]:80/health"},
		{"10.0.0.1:80", "", "", "http://10.0.0.1:80/health"},
		{"ci.example:80", "", "", "http://ci.example:80/health"},
		{"x", "", "", ""},
		{"", "0", "", ""},
	} {
		env := map[string]string{"LISTEN": row.listen, "PORT": row.port, "SSL_CERT": row.cert}
		u, err := healthURL(func(name string) string { return env[name] })
		got := ""
		if u != nil {
			got = u.String()
		}
		if got != row.want || (err == nil) != (row.want != "") {
			t.Errorf("%+v: %q, %v", row, got, err)
		}
	}
}

func TestCheckHealth(t *testing.T) {
	certFile, keyFile := lockertest.NewCertificate(t, t.TempDir(), "locker")
	for name, env := range map[string]map[string]string{"plain": {}, "with credentials": withAuth(), "TLS": {"SSL_CERT": certFile, "SSL_KEY": keyFile}} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, env)
			settings := map[string]string{"LISTEN": s.address, "SSL_CERT": env["SSL_CERT"]}
			getenv := func(name string) string { return settings[name] }
			var out strings.Builder
			if err := checkHealth(t.Context(), nil, getenv, &out); err != nil || !strings.Contains(out.String(), `"status":"ok"`) {
				t.Errorf("%v, printed %s", err, out.String())
			}
			if err := checkHealth(t.Context(), []string{"-listen"}, getenv, &out); err == nil || !strings.Contains(err.Error(), `argument "-listen": locker health has no arguments`) {
				t.Errorf("error %v", err)
			}
			var usage strings.Builder
			if err := checkHealth(t.Context(), []string{"-help"}, getenv, &usage); err != nil || usage.String() != help {
				t.Errorf("the help is %s, %v", usage.String(), err)
			}
			s.stop()
			if err := checkHealth(t.Context(), nil, getenv, &out); !errors.Is(err, errUnhealthy) {
				t.Errorf("error %v when nobody answers", err)
			}
		})
	}
}

// A locker that says that it is not well is believed, and is not told any password.
func TestCheckHealthOfTheSick(t *testing.T) {
	sick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		io.WriteString(w, "sick"+r.Header.Get("Authorization"))
	}))
	defer sick.Close()
	settings := withAuth()
	settings["LISTEN"] = sick.Listener.Addr().String()
	var out strings.Builder
	err := checkHealth(t.Context(), nil, func(name string) string { return settings[name] }, &out)
	if !errors.Is(err, errUnhealthy) || out.String() != "sick" {
		t.Errorf("%v, printed %s", err, out.String())
	}
}
