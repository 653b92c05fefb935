package resource

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// This file is Concourse's protocol: JSON in on stdin, JSON out on stdout. A
// problem of the request names the member and the mend, never the value: that
// may be a secret in the wrong place.
//
// https://concourse-ci.org/implementing-resource-types.html

const maxRequest = 1 << 20 // bytes on stdin

// program is what one of the three programs is given.
type program struct {
	stdin  io.Reader
	stdout io.Writer
	say    *speaker
	args   []string
	getenv func(string) string
	dial   dialer
}

func newProgram(stdin io.Reader, stdout, stderr io.Writer, args []string, getenv func(string) string) *program {
	return &program{stdin, stdout, &speaker{w: stderr}, args, getenv, realDialer()}
}

// version is the revision of a lock.
type version struct {
	Ref string `json:"ref"`
}

// field is one row of metadata. Concourse wants text.
type field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// result is what in and out answer.
type result struct {
	Version  json.RawMessage `json:"version"`
	Metadata []field         `json:"metadata"`
}

// rows returns the pairs of name and value as metadata, without the empty ones.
func rows(pairs ...string) []field {
	fields := []field{}
	for pair := range slices.Chunk(pairs, 2) {
		if pair[1] != "" {
			fields = append(fields, field{pair[0], pair[1]})
		}
	}
	return fields
}

// request is what Concourse sends.
type request struct {
	source  source
	version json.RawMessage // nil: none
}

// source is a resource's configuration, checked.
type source struct {
	lockerURI, lockName text
	username, password  text
	caCert              text
	skipValidation      flag
	authorities         *x509.CertPool // nil: the system's
}

// read reads the request. Params are stored where the fields point for their
// names, then checked. The error has all problems at once. When ctx is done
// first, read does not wait for the rest of stdin.
func (p *program) read(ctx context.Context, params map[string]any, check func() error) (*request, error) {
	data, err := readAll(ctx, p.stdin)
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	parts := map[string]json.RawMessage{}
	err = Object(data, func(name string, value json.RawMessage, _ int) error {
		if string(value) != "null" {
			parts[name] = value
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read request: %w: give Concourse's JSON on stdin", err)
	}
	r := &request{version: parts["version"]}
	problems := decodePart("source", parts["source"], r.source.fields(), r.source.check)
	problems = append(problems, decodePart("params", parts["params"], params, check)...)
	return r, errors.Join(problems...)
}

func readAll(ctx context.Context, r io.Reader) ([]byte, error) {
	type read struct {
		data []byte
		err  error
	}
	done := make(chan read, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(r, maxRequest+1))
		if len(data) > maxRequest {
			err = errors.New("it has more than 1 MiB")
		}
		done <- read{data, err}
	}()
	select {
	case got := <-done:
		return got.data, got.err
	case <-ctx.Done():
		return nil, errors.New("aborted")
	}
}

// decodePart returns every problem of a member of the request, which names it.
func decodePart(part string, data json.RawMessage, fields map[string]any, check func() error) []error {
	if data == nil {
		data = json.RawMessage("{}")
	}
	var problems []error
	for _, err := range []error{Decode(data, fields), check()} {
		if err == nil {
			continue
		}
		for line := range strings.Lines(err.Error()) {
			problems = append(problems, fmt.Errorf("%s: %s", part, strings.TrimSuffix(line, "\n")))
		}
	}
	return problems
}

func (s *source) fields() map[string]any {
	return map[string]any{
		"locker_uri": &s.lockerURI, "lock_name": &s.lockName,
		"username": &s.username, "password": &s.password,
		"ca_cert": &s.caCert, "skip_ssl_validation": &s.skipValidation,
	}
}

func (s *source) check() error {
	problems := []error{checkURI(string(s.lockerURI)), checkName("lock_name", s.lockName)}
	if s.lockName == "." || s.lockName == ".." {
		problems = append(problems, errors.New("lock_name is . or ..: choose another name"))
	}
	switch {
	case s.username != "" && s.password == "":
		problems = append(problems, errors.New("username is set but password is not: set both, or neither"))
	case s.username == "" && s.password != "":
		problems = append(problems, errors.New("password is set but username is not: set both, or neither"))
	case strings.Contains(string(s.username), ":"):
		problems = append(problems, errors.New("username has a colon, which basic authentication cannot carry: choose one without"))
	}
	if s.caCert != "" {
		s.authorities = x509.NewCertPool()
		if !s.authorities.AppendCertsFromPEM([]byte(s.caCert)) {
			problems = append(problems, errors.New("ca_cert has no certificate: set it to PEM, from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----"))
		}
	}
	return errors.Join(problems...)
}

// checkURI never repeats the URI or a part of it: there may be a password in it.
func checkURI(uri string) error {
	if uri == "" {
		return errors.New("locker_uri is missing: set it to the locker's address, such as https://10.0.0.10:8910")
	}
	u, err := url.Parse(uri)
	switch {
	case err == nil && u.User != nil:
		return errors.New("locker_uri has credentials in it: use username and password")
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return errors.New("locker_uri is no http or https URL: set it to the locker's address, such as https://10.0.0.10:8910")
	case u.Port() != "" && !isPort(u.Port()):
		return errors.New("locker_uri has no port from 1 to 65535: correct it")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(uri, "#"):
		return errors.New("locker_uri has a query or a fragment: leave out what follows ? or #")
	}
	return nil
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func checkName(member string, name text) error {
	switch {
	case name == "":
		return fmt.Errorf("%s is missing: give it a name", member)
	case len(name) > MaxName:
		return fmt.Errorf("%s has %d bytes: at most %d are allowed", member, len(name), MaxName)
	case strings.ContainsFunc(string(name), unicode.IsControl):
		return fmt.Errorf("%s has a control character, such as a line break: leave it out", member)
	}
	return nil
}

// text is a string whose errors do not repeat it.
type text string

func (t *text) UnmarshalJSON(data []byte) error {
	if json.Unmarshal(data, (*string)(t)) != nil {
		return errors.New("must be text: put it in quotes")
	}
	return nil
}

// flag is a bool that may be given as text, as an interpolated variable is.
type flag bool

func (f *flag) UnmarshalJSON(data []byte) error {
	switch strings.Trim(string(data), `"`) {
	case "true":
		*f = true
	case "false":
		*f = false
	default:
		return errors.New("must be true or false")
	}
	return nil
}

// lease is a duration of at least 1s whose errors do not repeat it.
type lease time.Duration

func (l *lease) UnmarshalJSON(data []byte) error {
	var s string
	if json.Unmarshal(data, &s) != nil {
		return errors.New(`must be a duration in quotes, such as "90s" or "2h30m"`)
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second {
		return errors.New(`must be a duration of at least 1s, such as "90s" or "2h30m"`)
	}
	*l = lease(d)
	return nil
}

// buildID names the build, the same in every step and every run of it. It
// reports whether the environment says which build it is; otherwise the id is
// random.
func buildID(getenv func(string) string) (id string, known bool) {
	concourse, build := strings.TrimRight(withoutCredentials(getenv("ATC_EXTERNAL_URL")), "/"), getenv("BUILD_ID")
	if concourse == "" || build == "" {
		return rand.Text(), false
	}
	id = concourse + "/builds/" + build
	if checkName("id", text(id)) != nil {
		id = fmt.Sprintf("%x", sha256.Sum256([]byte(id)))
	}
	return id, true
}

// buildLink returns the URL of the build, "" when the environment has none.
func buildLink(getenv func(string) string) string {
	for _, link := range []string{getenv("BUILD_URL"), jobBuildLink(getenv), plainBuildLink(getenv)} {
		link = withoutCredentials(link)
		if link != "" && CheckLink(link) == nil {
			return link
		}
	}
	return ""
}

// withoutCredentials returns the address without those in it, which are for
// nobody to see.
func withoutCredentials(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return address
	}
	u.User = nil
	return u.String()
}

// jobBuildLink puts together the address of a job's build, as Concourse does.
func jobBuildLink(getenv func(string) string) string {
	link := strings.TrimRight(getenv("ATC_EXTERNAL_URL"), "/")
	for _, part := range []string{"teams", "BUILD_TEAM_NAME", "pipelines", "BUILD_PIPELINE_NAME", "jobs", "BUILD_JOB_NAME", "builds", "BUILD_NAME"} {
		if strings.HasPrefix(part, "BUILD_") {
			part = getenv(part)
		}
		if part == "" {
			return ""
		}
		link += "/" + url.PathEscape(part)
	}
	vars := map[string]json.RawMessage{}
	if text := getenv("BUILD_PIPELINE_INSTANCE_VARS"); text != "" && json.Unmarshal([]byte(text), &vars) != nil {
		return ""
	}
	query := url.Values{}
	for name, value := range vars {
		query.Set("vars."+varRef(name), string(value))
	}
	if len(query) > 0 {
		link += "?" + query.Encode()
	}
	return link
}

// varRef quotes a variable's name where Concourse would take it for a path.
func varRef(name string) string {
	if strings.ContainsAny(name, ",.:/ ") {
		return `"` + name + `"`
	}
	return name
}

func plainBuildLink(getenv func(string) string) string {
	if getenv("BUILD_ID") == "" {
		return ""
	}
	return strings.TrimRight(getenv("ATC_EXTERNAL_URL"), "/") + "/builds/" + url.PathEscape(getenv("BUILD_ID"))
}

// names returns who holds the lock, in the order in which it was granted.
func names(l Lock) []string {
	var names []string
	for _, h := range l.Holders {
		names = append(names, clean(h.LockedBy))
	}
	return names
}

// oldest returns when the first of the present holds was granted, "" for none.
func oldest(l Lock) string {
	if len(l.Holders) == 0 {
		return ""
	}
	first := slices.MinFunc(l.Holders, func(a, b Holder) int { return cmp.Compare(a.Token, b.Token) })
	return first.Since.Format(time.RFC3339)
}

// links returns the builds that hold the lock.
func links(l Lock) string {
	links := map[string]bool{}
	for _, h := range l.Holders {
		if h.Link != "" {
			links[h.Link] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(links)), " ")
}

// answer writes v on stdout.
func (p *program) answer(v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		_, err = p.stdout.Write(append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return nil
}
