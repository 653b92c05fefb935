package resource

import (
	"testing"
)

// The lock's address is right with and without a slash at its end and a path.
func TestLockerURI(t *testing.T) {
	for uri, want := range map[string]string{
		"http://h:8910":          "http://h:8910/lock/a%2Fb%20c",
		"http://h:8910/":         "http://h:8910/lock/a%2Fb%20c",
		"https://h/ci/locker":    "https://h/ci/locker/lock/a%2Fb%20c",
		"https://h/ci/locker//":  "https://h/ci/locker/lock/a%2Fb%20c",
		"http://[::1]:8910":      "http://[::1]:8910/lock/a%2Fb%20c",
		"https://h/with%20space": "https://h/with%20space/lock/a%2Fb%20c",
	} {
		s := &source{lockerURI: uri, lockName: "a/b c"}
		if err := s.check(); err != nil {
			t.Errorf("%s: %v", uri, err)
		}
		if got := newClient(s, nil).lock; got != want {
			t.Errorf("%s: %s, want %s", uri, got, want)
		}
	}
}
