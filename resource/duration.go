package resource

import (
	"fmt"
	"strings"
	"time"
)

// Duration is a time.Duration that is a string such as "90s" in JSON.
type Duration time.Duration

// MarshalText writes d as time.Duration.String does.
func (d Duration) MarshalText() ([]byte, error) {
	return []byte(time.Duration(d).String()), nil
}

// UnmarshalText reads what time.ParseDuration reads, but nothing negative.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf(`%q is not a duration such as "90s" or "2h30m"%s`, text, unitHint(string(text)))
	}
	if v < 0 {
		return fmt.Errorf("%q is negative", text)
	}
	*d = Duration(v)
	return nil
}

// unitHint says what to do about a number without a unit, or with one that there
// is not. It does not repeat the number.
func unitHint(text string) string {
	const number = "0123456789."
	switch {
	case text == "":
		return ""
	case strings.Trim(text, number) == "":
		return `: it has no unit, such as the s of "60s"`
	case strings.Trim(text, number+"wdhms") == "" && strings.ContainsAny(text, "wd"):
		return ": the largest unit is h"
	}
	return ""
}
