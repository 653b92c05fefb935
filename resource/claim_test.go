package resource

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
)

// Without a name the asker is the key's value; an empty one is not a name.
func TestTakeCarriesTheName(t *testing.T) {
	for params, want := range map[string]string{
		``:                                 `"key":"k","locked_by":"k"`,
		`,"locked_by":"me"`:                `"key":"k","locked_by":"me"`,
		`,"lock_by":"me"`:                  `"key":"k","locked_by":"me"`,
		`,"lock_by":"me","locked_by":"me"`: `"key":"k","locked_by":"me"`,
		`,"lock_by":"me","locked_by":""`:   `"key":"k","locked_by":"me"`,
		`,"lock_by":"","locked_by":""`:     `"key":"k","locked_by":"k"`,
	} {
		synctest.Test(t, func(t *testing.T) {
			var asked record
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				asked.note(r)
				answerWith(w, http.StatusOK, grantJSON)
			})
			r := s.run(t.Context(), (*program).out, theSource+`,"params":{"key":"k","lock_op":"lock"`+params+`}}`)
			if all := asked.all(); r.err != nil || len(all) != 1 || !strings.HasPrefix(all[0].body, "{"+want+`,"id":`) {
				t.Errorf("%s: error %v, asked %+v", params, r.err, all)
			}
		})
	}
}
