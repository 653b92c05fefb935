package main

import (
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

func TestEtcdConfigAccepted(t *testing.T) {
	t.Chdir(t.TempDir())
	certFile, keyFile := lockertest.NewCertificate(t, ".", "locker")
	cfg, _, err := parse(t, nil, "LOCKER_ETCD=http://10.0.0.1:2379, https://etcd.example:2379/", "LOCKER_ADVERTISE=http://10.0.0.9:8910", "LOCKER_CONFIG=/nowhere/at/all.json",
		"LOCKER_ETCD_USER=george", "LOCKER_ETCD_PASS="+canary, "LOCKER_ETCD_CA="+certFile, "LOCKER_ETCD_CERT="+certFile, "LOCKER_ETCD_KEY="+keyFile, "LOCKER_ETCD_PREFIX=/ci/locks/")
	if err != nil {
		t.Fatal(err)
	}
	got := cfg.etcd
	if strings.Join(got.endpoints, " ") != "http://10.0.0.1:2379 https://etcd.example:2379" || got.advertise != "http://10.0.0.9:8910" || got.keys.lock("a") != "/ci/locks/lock/a" || got.user != "george" || got.pass != canary {
		t.Errorf("got %+v", got)
	}
	cfg, _, err = parse(t, []string{"-etcd", "http://[::1]:1", "-advertise", "https://h:2", "-ssl-cert", certFile, "-ssl-key", keyFile})
	if err != nil || cfg.etcd.keys != "/locker/" {
		t.Errorf("flags: %+v, %v", cfg, err)
	}
}

func TestEtcdConfigRefused(t *testing.T) {
	t.Chdir(t.TempDir())
	certFile, keyFile := lockertest.NewCertificate(t, ".", "locker")
	lockertest.WriteFile(t, "locker.json", nil)
	lockertest.WriteFile(t, "not.pem", []byte("hello"))
	const etcd, advertise, elsewhere = "LOCKER_ETCD=http://e:2379", "LOCKER_ADVERTISE=http://l:8910", "LOCKER_CONFIG=nowhere.json"
	for _, test := range []struct {
		env  []string
		want []string // a line each
	}{
		{[]string{etcd, elsewhere}, []string{"LOCKER_ADVERTISE is not set"}},
		{[]string{etcd, advertise}, []string{"there is a state file at LOCKER_CONFIG, locker.json"}},
		{[]string{advertise, elsewhere}, []string{"LOCKER_ADVERTISE is set but LOCKER_ETCD is not"}},
		{[]string{"LOCKER_ETCD_PASS=" + canary, elsewhere}, []string{"LOCKER_ETCD_PASS is set but LOCKER_ETCD is not"}},
		{[]string{"LOCKER_ETCD=e:2379,http://e", "LOCKER_ADVERTISE=l:8910", elsewhere}, []string{`LOCKER_ETCD: "e:2379" is not`, `LOCKER_ETCD: "http://e" is not`, `LOCKER_ADVERTISE: "l:8910" is not`}},
		{[]string{etcd, advertise, elsewhere, "LOCKER_ETCD_PREFIX=/locker", "LOCKER_ETCD_USER=george", "LOCKER_ETCD_CERT=" + certFile, "LOCKER_ETCD_CA=missing.pem"},
			[]string{`LOCKER_ETCD_PREFIX is "/locker": it must end in a slash`, "LOCKER_ETCD_USER is set but LOCKER_ETCD_PASS is not", "LOCKER_ETCD_CERT is set but LOCKER_ETCD_KEY is not", "LOCKER_ETCD_CA: open missing.pem"}},
		{[]string{etcd, advertise, elsewhere, "LOCKER_ETCD_CA=not.pem"}, []string{"not.pem has no certificate"}},
		{[]string{etcd, advertise, elsewhere, "LOCKER_ETCD_CERT=not.pem", "LOCKER_ETCD_KEY=" + keyFile}, []string{"do not make a pair"}},
		{[]string{etcd, advertise, elsewhere, "SSL_CERT=" + certFile, "SSL_KEY=" + keyFile}, []string{"must begin with https://"}},
	} {
		_, _, err := parse(t, nil, test.env...)
		if err == nil {
			t.Errorf("%v: accepted", test.env)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		for i, want := range test.want {
			if len(lines) != len(test.want) || !strings.Contains(lines[i], want) {
				t.Errorf("%v: %v, want %q", test.env, err, test.want)
			}
		}
	}
}
