package main

import (
	"cmp"
	"flag"
	"fmt"
)

// This file is where the settings come from: flags and variables.

const (
	defaultState = "locker.json"
	defaultPort  = "8910"
	defaultKeys  = "/locker/"
)

// option is a setting: its value, and what it was given by, a flag or a variable,
// since a message names what was really used.
type option struct{ name, value string }

// options have a flag and a variable each.
var options = []struct{ flag, variable, fallback string }{
	{"state", "LOCKER_CONFIG", defaultState},
	{"listen", "LISTEN", ""},
	{"port", "PORT", defaultPort},
	{"ssl-cert", "SSL_CERT", ""},
	{"ssl-key", "SSL_KEY", ""},
	{"etcd", "LOCKER_ETCD", ""},
	{"advertise", "LOCKER_ADVERTISE", ""},
	{"etcd-prefix", "LOCKER_ETCD_PREFIX", defaultKeys},
	{"etcd-ca", "LOCKER_ETCD_CA", ""},
	{"etcd-cert", "LOCKER_ETCD_CERT", ""},
	{"etcd-key", "LOCKER_ETCD_KEY", ""},
}

const help = `Locker gives out named locks over HTTP and never loses one.

  locker [flags]    serve; the status page is at http://localhost:8910/
  locker health     ask the locker of these settings how it is
  locker run        run a command under a lock: locker run -help
  locker import FILE | -empty, locker export     locks to etcd, and back

  locker &                                                       # an example
  curl -X PUT -d '{"key": "me"}' localhost:8910/lock/staging
  curl -X DELETE -d '{"key": "me"}' localhost:8910/lock/staging

  -state FILE        LOCKER_CONFIG  state file (locker.json)
  -listen HOST:PORT  LISTEN         address; beats the port
  -port PORT         PORT           port (8910), on every interface with
                                    credentials, else on 127.0.0.1
  -ssl-cert FILE     SSL_CERT       PEM certificate; without it, plain HTTP
  -ssl-key FILE      SSL_KEY        its key
                     AUTH_USER, AUTH_PASS  what every request must carry
  -etcd URL,URL      LOCKER_ETCD    several lockers, with their locks in etcd
  -advertise URL     LOCKER_ADVERTISE    where the others reach this one
  -etcd-prefix KEY   LOCKER_ETCD_PREFIX  what etcd's keys begin with (/locker/)
  -etcd-ca FILE      LOCKER_ETCD_CA      PEM authorities of etcd's certificates
  -etcd-cert FILE    LOCKER_ETCD_CERT    PEM certificate that etcd is shown
  -etcd-key FILE     LOCKER_ETCD_KEY     its key
                     LOCKER_ETCD_USER, LOCKER_ETCD_PASS  etcd's user
  -version, -help                   print and stop

Exit status: 0 ended by a signal, or healthy; 1 failed, or not healthy; 2 wrong
settings, all of which are listed.
`

// parseOptions returns the options by their flags. A flag wins, and an empty
// variable is an unset one.
func parseOptions(flags *flag.FlagSet, args []string, getenv func(string) string) (map[string]*option, error) {
	given := map[string]*option{}
	for _, o := range options {
		given[o.flag] = &option{o.variable, cmp.Or(getenv(o.variable), o.fallback)}
		flags.StringVar(&given[o.flag].value, o.flag, given[o.flag].value, "")
	}
	err := flags.Parse(args)
	flags.Visit(func(f *flag.Flag) {
		if o := given[f.Name]; o != nil {
			o.name = "-" + f.Name
		}
	})
	return given, err
}

// bothOrNeither reports that one of two options is set and the other is not.
func bothOrNeither(a, b option) error {
	if a.value == "" {
		a, b = b, a
	}
	if a.value == "" || b.value != "" {
		return nil
	}
	return fmt.Errorf("%s is set but %s is not: set both, or neither", a.name, b.name)
}
