package test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

var (
	link    = regexp.MustCompile(`\]\(([^)#]*)#?([^)]*)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// anchors returns what links to the headings of a document end in, on GitHub.
func anchors(text string) (anchors []string) {
	for _, found := range heading.FindAllStringSubmatch(text, -1) {
		anchors = append(anchors, strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(found[1]), ""), " ", "-"))
	}
	return anchors
}

// TestLinks follows each link between the documents, and to the files beside
// them.
func TestLinks(t *testing.T) {
	links := 0
	for _, name := range append([]string{"SECURITY.md", "CHANGELOG.md"}, documents...) {
		for _, found := range link.FindAllStringSubmatch(lockertest.Read(t, name), -1) {
			if strings.Contains(found[1], "://") {
				continue
			}
			links++
			to := filepath.Join(filepath.Dir(name), found[1])
			if found[1] == "" {
				to = name
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %v", name, err)
			} else if found[2] != "" && !slices.Contains(anchors(lockertest.Read(t, to)), found[2]) {
				t.Errorf("%s: %s has no heading %s", name, to, found[2])
			}
		}
	}
	if links < 30 {
		t.Errorf("only %d links found", links)
	}
}
