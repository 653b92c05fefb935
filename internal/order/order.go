// Package order finds the files of a package that need each other in a circle,
// for the tests that refuse one. It runs the go command.
package order

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Files is which file of a package needs which others, and what of each: the
// functions, types, constants, variables, methods and fields that it uses. Each
// file is in it, tests are not.
type Files map[string]map[string][]string

// Draw reads the package in dir. That it has no file is an error, and so is
// one that does not compile.
func Draw(dir string) (Files, error) {
	parsed, fset, err := parse(dir)
	if err != nil {
		return nil, err
	}
	exports, err := exportsOf(dir)
	if err != nil {
		return nil, err
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })}
	pkg, err := conf.Check(dir, fset, parsed, info)
	if err != nil {
		return nil, fmt.Errorf("check types: %w", err)
	}
	nameOf := func(pos token.Pos) string { return filepath.Base(fset.Position(pos).Filename) }
	files := Files{}
	for _, f := range parsed {
		files[nameOf(f.Pos())] = map[string][]string{}
	}
	for ident, object := range info.Uses {
		if object.Pkg() == pkg {
			files.add(nameOf(ident.Pos()), nameOf(object.Pos()), object.Name())
		}
	}
	return files, nil
}

func (f Files) add(from, to, name string) {
	if from != to && !slices.Contains(f[from][to], name) {
		f[from][to] = append(f[from][to], name)
		slices.Sort(f[from][to])
	}
}

// parse returns the package's files that this platform builds, without tests.
func parse(dir string) ([]*ast.File, *token.FileSet, error) {
	pkg, err := build.ImportDir(dir, 0)
	if err != nil {
		return nil, nil, err
	}
	if len(pkg.GoFiles) == 0 {
		return nil, nil, fmt.Errorf("%s has no Go file but tests", dir)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range pkg.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
	}
	return files, fset, nil
}

// exportsOf returns the files with what each package that dir needs exports.
func exportsOf(dir string) (map[string]string, error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}", ".")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, stderr.Bytes())
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "\t")
		exports[path] = file
	}
	return exports, nil
}

// Circles returns, for each circle of files, what they need of one another, as
// a sentence for each arrow.
func (f Files) Circles() []string {
	var circles []string
	seen := map[string]bool{}
	for _, from := range slices.Sorted(maps.Keys(f)) {
		circle := f.circle(from)
		if seen[from] || len(circle) == 0 {
			continue
		}
		var arrows []string
		for _, a := range circle {
			seen[a] = true
			for _, b := range circle {
				if names := f[a][b]; len(names) > 0 {
					arrows = append(arrows, fmt.Sprintf("%s needs %s for %s", a, b, strings.Join(names, ", ")))
				}
			}
		}
		circles = append(circles, strings.Join(arrows, "\n"))
	}
	return circles
}

// circle returns the files that from needs and that need from, by way of
// others or not; itself is one of them, if there is any.
func (f Files) circle(from string) []string {
	var circle []string
	for to := range f.needs(from) {
		if f.needs(to)[from] {
			circle = append(circle, to)
		}
	}
	slices.Sort(circle)
	return circle
}

// needs returns all files that from needs, by way of others or not.
func (f Files) needs(from string) map[string]bool {
	all := map[string]bool{}
	next := []string{from}
	for len(next) > 0 {
		for to := range f[next[0]] {
			if !all[to] {
				all[to] = true
				next = append(next, to)
			}
		}
		next = next[1:]
	}
	return all
}
