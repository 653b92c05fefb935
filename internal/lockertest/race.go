//go:build race

package lockertest

const race = true
