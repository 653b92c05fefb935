package main

import (
	"go/parser"
	"go/token"
	"slices"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/order"
)

// TestFilesNeedEachOtherInOneDirection keeps the order in which the package
// can be read: no file needs one that needs it back.
func TestFilesNeedEachOtherInOneDirection(t *testing.T) {
	files, err := order.Draw(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, circle := range files.Circles() {
		t.Errorf("these files need each other:\n%s", circle)
	}
}

// TestRulesArePure refuses what would let the rules read a clock, block or
// touch a file.
func TestRulesArePure(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "lock.go", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	if len(file.Imports) == 0 {
		t.Fatal("lock.go imports nothing: is it the file of the rules?")
	}
	for _, spec := range file.Imports {
		if !slices.Contains([]string{`"cmp"`, `"slices"`, `"time"`}, spec.Path.Value) {
			t.Errorf("lock.go imports %s: the rules need cmp, slices and time alone", spec.Path.Value)
		}
	}
}
