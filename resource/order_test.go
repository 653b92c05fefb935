package resource

import (
	"testing"

	"github.com/cloudfoundry-community/locker/internal/order"
)

// Files can be read one after another: none needs another that needs it back.
func TestNoCircleOfFiles(t *testing.T) {
	files, err := order.Draw(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, circle := range files.Circles() {
		t.Errorf("these files need each other:\n%s", circle)
	}
}
