package resource

import (
	"encoding/json"
	"errors"
	"strings"
	"time"
)

// This file is the values in source and params that are not plain text. Their
// errors do not repeat the value.

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
	if err != nil || d < minTTL {
		return errors.New(`must be a duration of at least 1s, such as "90s" or "2h30m"`)
	}
	*l = lease(d)
	return nil
}
