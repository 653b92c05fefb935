package order

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// made writes a package and returns its folder.
func made(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module made.up/p\n\ngo 1.26\n"
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Whatever one file uses of another is an arrow, also what a generic function
// of another package hands over.
func TestCircles(t *testing.T) {
	const a = "package p\n\nimport \"slices\"\n\ntype A struct{ next *A; n int }\n\nfunc (a A) Method() {}\n\nfunc F() []A { return slices.Clone(made) }\n\nvar made []A\n\nconst C = 1\n\n"
	for _, row := range []struct {
		name, a, b string
		want       []string
	}{
		{"none", "", "var _ = F()[0].n + C", nil},
		{"function", "var _ = g", "func g() { F() }", []string{"a.go needs b.go for g\nb.go needs a.go for F"}},
		{"type", "var _ g", "type g struct{ A }", []string{"a.go needs b.go for g\nb.go needs a.go for A"}},
		{"constant", "var _ = g", "const g = C", []string{"a.go needs b.go for g\nb.go needs a.go for C"}},
		{"variable", "var _ = g", "var g = made", []string{"a.go needs b.go for g\nb.go needs a.go for made"}},
		{"method", "func _() { A{}.g() }", "func (A) g() {}", []string{"a.go needs b.go for g\nb.go needs a.go for A"}},
		{"method and field by way of another package", "var _ = g", "var g = func() int { l := slices.Clone(made); l[0].Method(); return l[0].n }()",
			[]string{"a.go needs b.go for g\nb.go needs a.go for Method, made, n"}},
		{"a name of its own", "var _ = func() int { g := 1; return g }()", "var g = C", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := "package p\n\nimport \"slices\"\n\nvar _ = slices.Max[[]int]\n\n" + row.b
			files, err := Draw(made(t, map[string]string{"a.go": a + row.a, "b.go": b, "a_test.go": "package p\n\nvar _ = tested", "b_test.go": "package p\n\nvar tested = C"}))
			if err != nil {
				t.Fatal(err)
			}
			if got := files.Circles(); len(files) != 2 || !slices.Equal(got, row.want) {
				t.Errorf("files %v, circles %q, want %q", files, got, row.want)
			}
		})
	}
}

func TestCirclesByWayOfOthers(t *testing.T) {
	files := Files{
		"a.go": {"b.go": {"B"}}, "b.go": {"c.go": {"C"}}, "c.go": {"a.go": {"A"}},
		"d.go": {"a.go": {"A"}, "e.go": {"E"}}, "e.go": {"f.go": {"F"}}, "f.go": {"e.go": {"E", "e"}}, "g.go": {},
	}
	want := []string{
		"a.go needs b.go for B\nb.go needs c.go for C\nc.go needs a.go for A",
		"e.go needs f.go for F\nf.go needs e.go for E, e",
	}
	if got := files.Circles(); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestNothingToDraw(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"no file":            {},
		"tests alone":        {"a_test.go": "package p"},
		"does not parse":     {"a.go": "package"},
		"does not compile":   {"a.go": "package p\n\nvar _ = missing"},
		"an unknown package": {"a.go": "package p\n\nimport _ \"made.up/q\""},
	} {
		if drawn, err := Draw(made(t, files)); err == nil {
			t.Errorf("%s: drawn %v", name, drawn)
		}
	}
}
