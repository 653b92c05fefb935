package history

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// These are the histories that the checker must accuse, and those that it must
// not. A line is one request: when it was sent and answered, in seconds, what
// it asked with key, name and id (- is none), the answer, and the lock that
// was shown with it:
//
//	0-1 take k x 1: granted 5
//	1-2 take k2 x 2: queued 1
//	2-3 look: shown 5 k x/5 then k2/x       revision, key, holders, waiters
//	4-9 release k x 1:                      no answer
//	5-6 take-ttl5 k x 1: granted 7          for 5 s
//	6-7 force-if7 - x -: released           if the revision is 7; without a name, all
//	10 death                                of the process
//	10-26 halt                              of the process

var badHistories = []struct{ name, accused, lines string }{
	{"two keys", "held twice", `
		0-1 take k x 1: granted 5
		2-3 take k2 y 2: granted 6
		4-5 release k x 1: released`},
	{"two keys, one only seen", "held twice", `
		0-1 take k x 1: granted 5
		2-3 look: shown 6 k2 y/6
		4-5 look: shown 6 k2 y/6
		6-7 take k x 1: repeat 5`},
	{"one name twice", "held twice", `
		0-1 take k x 1: granted 5
		2-3 take k x 2: granted 6`},
	{"two keys, a release that did nothing", "held twice", `
		0-1 take k x 1: granted 5
		1-2 release k x 2: nothing
		2-3 take k2 y 3: granted 6`},
	{"two keys, an own release of another", "held twice", `
		0-1 take k x 1: granted 5
		1-2 release-own k x 2:
		2-3 take k2 y 3: granted 6`},
	{"two keys, a release of another id that was known", "held twice", `
		0-1 take k x 1: granted 4
		1-2 release k x 1: released
		2-3 take k x 2: granted 5
		3-4 release k x 1: released
		4-5 take k2 y 3: granted 6`},
	{"two keys, a lost release that died before", "held twice", `
		0-1 take k x -: granted 4
		2-3 release k x -:
		4 death
		5-6 take k x -: granted 8
		7-8 take k2 y 3: granted 9`},
	{"two keys, a lost release that did not happen", "held twice", `
		0-1 take k x 1: granted 5
		1-2 release k x 1:
		5-6 take k2 y 2: granted 6
		7-8 take k x 1: repeat 5`},
	{"a token of two claims of one name", "is also that of", `
		0-1 take k x 1: granted 5
		1-2 release k x 1: released
		2-3 take k x 2: granted 5`},
	{"a token of two claims", "is also that of", `
		0-1 take k x 1: granted 5
		1-2 release k x 1: released
		2-3 take k y 2: granted 5`},
	{"a token seen with another name", "is also that of", `
		0-1 take k x 1: granted 5
		1-2 look: shown 5 k y/5`},
	{"token 0", "is also that of", `0-1 take k x 1: granted 0`},
	{"a token again without id", "without id", `
		0-1 take k x -: granted 5
		2-3 take k x -: granted 5`},
	{"a smaller token", "tokens:", `
		0-1 take k x 1: granted 5
		1-2 release k x 1: released
		2-3 take k2 y 2: granted 4`},
	{"a smaller token of a claim without id that asked before", "tokens:", `
		0-1 take k x -: granted 4
		1-2 release k x -: released
		2-3 take k2 y 2: granted 8
		3-4 release k2 y 2: released
		4-5 take k x -: granted 7`},
	{"a smaller token than one only seen", "tokens:", `
		0-1 look: shown 5 k x/5
		2-3 take k2 y 2: granted 4`},
	{"a waiter passed", "passed:", `
		0-1 take k x 1: granted 5
		1-2 take k2 y 2: queued 1
		3-9 take k3 z 3: granted 7
		3-9 take k2 y 2: granted 9`},
	{"a waiter passed over a restart", "passed:", `
		1-2 take k2 y 2: queued 1
		3-4 take k2 y 2:
		5 death
		5-6 take k2 y 2:
		6-15 take k3 z 3: granted 7
		7-15 take k2 y 2: granted 9`},
	{"a waiter passed that was only shown", "passed:", `
		0-9 take k2 y -: granted 9
		1-2 look: shown 5 k x/5 then k2/y
		3-9 take k3 z 3: granted 7`},
	{"a waiter passed that waits on", "passed:", `
		1-2 take k2 y 2: queued 1
		3-4 take k3 z 3: granted 7
		5-6 take k2 y 2: queued 1`},
	{"a waiter passed by its own key", "passed:", `
		0-1 take k x 1: granted 5
		1-2 take k2 y 2: queued 1
		3-4 take k z 3: granted 6
		5-6 take k2 y 2: queued 1`},
	{"a worse position", "fell from position", `
		1-2 take k2 y 2: queued 1
		5-6 take k2 y 2: queued 2`},
	{"a lost place", "lost: the place", `
		1-2 take k2 y 2: queued 1
		5-6 take k2 y 2: refused`},
	{"a hold lost in a restart", "lost:", `
		0-1 take k x 1: granted 5
		2 death
		3-4 look: shown 6`},
	{"a hold lost that cannot have been given back", "lost:", `
		0-1 take k x -:
		2 death
		3-4 look: shown 5 k x/5
		5-6 look: shown 6`},
	{"a hold lost that comes back", "lost:", `
		0-1 take k x 1: granted 5
		3-4 look: shown 5
		5-6 take k x 1: repeat 5`},
	{"a hold lost in an unfinished release of another key", "lost:", `
		0-1 take k x 1: granted 5
		1-2 release k2 x 2:
		3-4 look: shown 6`},
	{"a repeat that is no repeat", "lost:", `
		0-1 take k x 1: granted 5
		3-4 take k x 1: granted 5`},
	{"a repeat with another token", "lost:", `
		0-1 take k x 1: granted 5
		3-4 take k x 1: granted 7`},
	{"a repeat of another token", "lost:", `
		0-1 take k x 1: granted 5
		3-4 take k x 1: repeat 7`},
	{"a repeat refused", "lost:", `
		0-1 take k x 1: granted 5
		3-4 take k x 1: refused`},
	{"a hold that a release of it does not find", "lost:", `
		0-1 take k x 1: granted 5
		3-4 release k x 1: nothing 6
		5-6 look: shown 6`},
	{"a release lost in a restart", "lost: the release", `
		0-1 take k x 1: granted 5
		1-2 release k x 1: released
		2 death
		3-4 look: shown 5 k x/5`},
	{"a release lost, a repeat", "lost: the release", `
		0-1 take k x 1: granted 5
		1-2 release k x 1: released
		3-4 take k x 1: repeat 5`},
	{"a release without id lost", "lost: the release", `
		0-1 take k x 1: granted 5
		1-2 release k x -: released
		3-4 look: shown 5 k x/5`},
	{"an older lock", "lost: revision", `
		0-1 look: shown 8
		2-3 look: shown 7`},
	{"one revision, two locks", "revision 8 is", `
		0-1 look: shown 8
		0-1 look: shown 8 k x/8`},
	{"holders not in their order", "not in the order", `
		0-1 look: shown 8 k x/8 y/7`},
	{"expired too early", "held twice", `
		0-1 take-ttl5 k x 1: granted 5
		3-4 take k2 y 2: granted 6`},
	{"expired though it was renewed", "held twice", `
		0-1 take-ttl5 k x 1: granted 5
		3-4 take-ttl5 k x 1: repeat 5
		6-7 take k2 y 2: granted 6`},
	{"forced another", "held twice", `
		0-1 take k x 1: granted 5
		1-2 force - y -: nothing
		2-3 take k2 y 2: granted 6`},
	{"forced what nobody saw", "held twice", `
		0-1 take k x 1: granted 5
		1-2 force-if4 - - -: released
		2-3 take k2 y 2: granted 6`},
	{"forced in vain", "held twice", `
		0-1 take k x 1: granted 5
		1-2 force-if4 - - -: refused
		2-3 take k2 y 2: granted 6`},
	{"held after a force", "lost: the release", `
		0-1 take k x 1: granted 5
		1-2 force - - -: released
		2-3 look: shown 5 k x/5`},
	{"passed, and no time to expire", "passed", `
		0-1 take-ttl5 k x 1: queued 1
		1-2 take-ttl5 k x 1:
		3-4 take-ttl5 k x 1: queued 3`},
	{"passed, and a force before", "passed", `
		0-1 force - - -: released
		0-1 take k x 1: queued 1
		1-2 take k x 1:
		6-7 take k x 1: queued 3`},
	{"passed after a halt", "passed", `
		0-1 take k x 1: queued 1
		2-18 halt
		19-20 take k x 1: queued 3`},
}

var goodHistories = []struct{ name, lines string }{
	{"one after the other", `
		0-1 take k x 1: granted 5
		1-2 release k x 1: released 6
		2-3 take k2 y 2: granted 7 shown 7 k2 y/7`},
	{"requests at one time", `
		0-9 take k x 1: granted 5
		0-9 take k2 y 2: granted 4
		0-9 release k2 y 2: released`},
	{"shared holders", `
		0-1 take k x 1: granted 5
		2-3 take k y 2: granted 6 shown 6 k x/5 y/6
		4-5 look: shown 6 k x/5 y/6`},
	{"an unanswered take that was granted", `
		0-1 take k x 1:
		2-3 look: shown 5 k x/5
		4-5 take k2 y 2: refused shown 5 k x/5
		6-7 take k x 1: repeat 5`},
	{"an unanswered take that was granted late", `
		0-1 take k x 1:
		2-3 release-own k x 1: nothing
		4-5 look: shown 5 k x/5`},
	{"a half lost release", `
		0-1 take k x 1: granted 5
		2-3 release k x 1:
		4-5 take k2 y 2: granted 7
		6-7 release k x 1: nothing 7 shown 7 k2 y/7`},
	{"a release that was not answered and did not happen", `
		0-1 take k x 1: granted 5
		2-3 release k x 1:
		4 death
		5-6 take k x 1: repeat 5`},
	{"a lost release that arrives late", `
		0-1 take k x -: granted 4
		2-3 release k x -:
		3-4 release k x -: released
		5-6 take k x -: granted 6
		7-8 take k2 y 3: granted 8`},
	{"one locks, another unlocks", `
		0-1 take k x 1: granted 5
		1-2 release k x 9: released
		2-3 take k2 y 2: granted 8`},
	{"one locks, another unlocks without an answer", `
		0-1 take k x 1: granted 5
		1-2 release k x 9:
		2-3 take k2 y 2: granted 8`},
	{"a give-back of a claim without id", `
		0-1 take k x -:
		1-2 look: shown 5 k x/5
		2-3 look: shown 6
		3-4 take k2 y 2: granted 7`},
	{"a place that ran out", `
		1-2 take k2 y 2: queued 1
		3-20 take k3 z 3: granted 7
		20-21 release k3 z 3: released
		17-30 take k2 y 2: granted 9`},
	{"a place that may have run out", `
		1-2 take k2 y 2: queued 1
		3-20 take k3 z 3: granted 7
		5-17 take k2 y 2: queued 2
		20-21 release k3 z 3: released
		17-30 take k2 y 2: granted 9`},
	{"asked first, queued later", `
		0-9 take k3 z 3: granted 7
		1-2 take k2 y 2: queued 2
		9-10 release k3 z 3: released
		3-11 take k2 y 2: granted 9`},
	{"an older take without an answer", `
		0-1 take k3 z 3:
		1-2 take k2 y 2: queued 2
		3-4 take k3 z 3: granted 7
		5-6 release k3 z 3: released
		4-9 take k2 y 2: granted 9`},
	{"shown by another claim of that name", `
		0-1 take k2 y 1:
		1-2 look: shown 5 then k2/y
		2-9 take k2 y 2: granted 9
		3-7 take k3 z 3: granted 7
		7-8 release k3 z 3: released`},
	{"shown by an earlier one that ran out", `
		0-1 take k2 y 2:
		3-4 look: shown 5 then k2/y
		5-9 take k3 z 3: granted 7
		9-10 release k3 z 3: released
		16-17 take k2 y 2: granted 9`},
	{"withdrawn, then taken again", `
		1-2 take k2 y 2: queued 1
		2-3 release k2 y 2: withdrew
		3-4 take k3 z 3: granted 7
		4-5 release k3 z 3: released
		4-9 take k2 y 2: granted 9`},
	{"withdrawn without an answer", `
		1-2 take k2 y 2: queued 1
		2-3 release k2 y 2:
		3-4 take k3 z 3: granted 7
		4-5 take k2 y 2: refused`},
	{"withdrawn while it waits", `
		1-2 take k2 y 2: queued 1
		2-9 take k2 y 2: refused
		3-4 release k2 y 2: withdrew`},
	{"a waiter without id whose wait ends", `
		0-9 take k2 y -: refused
		1-2 look: shown 5 then k2/y
		3-10 take k3 z 3: granted 7`},
	{"a give-back after a death that was none of its process", `
		0-1 take k x -:
		2 death
		3-4 take k x -:
		5-6 look: shown 5 k x/5
		7-8 look: shown 6`},
	{"two answers of one claim", `
		0-9 take k x 1: granted 5
		1-9 take k x 1: granted 5`},
	{"an ended claim anew", `
		0-1 take k x 1: granted 5
		1-2 release k x 1: released
		3-4 take k x 1: granted 7
		5-6 take k x 1: repeat 7`},
	{"a wrong key", `
		0-1 take k x 1: granted 5
		1-2 release k2 y 2: refused shown 5 k x/5
		3-4 take k x 1: repeat 5`},
	{"granted and released before it is told", `
		0-5 take k x 1: granted 5 shown 6
		1-2 release k x 1: released 6`},
	{"released before the grant is told, then another's", `
		0-9 take k2 y 2: granted 4
		3-4 release-own k2 y 2: released
		5-6 take k x 1: granted 7`},
	{"released while somebody looks", `
		0-1 take k x 1: granted 5
		2-5 look: shown 6
		3-4 release k x 1: released`},
	{"two answers to one waiter at one time", `
		1-9 take k2 y 2: queued 1
		2-3 take k2 y 2: queued 2`},
	{"two revisions at one time", `
		0-3 look: shown 8
		1-2 look: shown 9 k x/9
		1-4 look: shown 8`},
	{"expired", `
		0-1 take-ttl5 k x 1: granted 5
		5-6 take k2 y 2: granted 6
		7-8 take-ttl5 k x 1: queued 1`},
	{"renewed, perhaps, and expired", `
		0-1 take-ttl5 k x 1: granted 5
		3-4 take-ttl5 k x 1:
		5-6 take k2 y 2: granted 6`},
	{"seen, and expired", `
		0-1 take-ttl5 k x 1:
		1-2 look: shown 5 k x/5
		5-6 take k2 y 2: granted 6`},
	{"forced", `
		0-1 take k x 1: granted 5
		1-2 force-if5 - x -: released
		2-3 take k2 y 2: granted 6`},
	{"forced, perhaps", `
		0-1 take k x 1: granted 5
		1-2 force - - -:
		2-3 take k2 y 2: granted 6`},
	{"granted anew after a force", `
		0-1 take k x 1: granted 5
		1-2 force - - -: released
		2-3 take k x 1: granted 7
		3-4 take k x 1: repeat 7`},
	{"granted unheard, expired, and queued anew", `
		0-1 take-ttl5 k x 1: queued 1
		1-2 take-ttl5 k x 1:
		6-7 take-ttl5 k x 1: queued 3`},
	{"granted unheard, forced, and queued anew", `
		0-1 take k x 1: queued 1
		1-2 take k x 1:
		3-4 force - - -: released
		6-7 take k x 1: queued 3`},
	{"away for longer, and halted too", `
		0-1 take k x 1: queued 1
		2-18 halt
		34-35 take k x 1: queued 3`},
}

func TestCheckerAccuses(t *testing.T) {
	for _, test := range badHistories {
		t.Run(test.name, func(t *testing.T) {
			found, _ := historyOf(t, test.lines).check()
			if !strings.Contains(strings.Join(found, "\n"), test.accused) {
				t.Errorf("not accused of %q: %q", test.accused, found)
			}
		})
	}
}

func TestCheckerAcquits(t *testing.T) {
	for _, test := range goodHistories {
		t.Run(test.name, func(t *testing.T) {
			if found, _ := historyOf(t, test.lines).check(); len(found) > 0 {
				t.Errorf("accused: %q", found)
			}
		})
	}
}

// historyOf reads a history as it is written above.
func historyOf(t *testing.T, lines string) *history {
	t.Helper()
	h := &history{}
	for line := range strings.Lines(strings.TrimSpace(lines)) {
		asking, answer, isAsked := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(asking)
		var sent, ended int
		if !isAsked && fields[1] == "halt" {
			fmt.Sscanf(fields[0], "%d-%d", &sent, &ended)
			h.halts = append(h.halts, halt{time.Duration(sent) * time.Second, time.Duration(ended) * time.Second})
			continue
		}
		if !isAsked {
			fmt.Sscanf(fields[0], "%d", &ended)
			h.deaths = append(h.deaths, time.Duration(ended)*time.Second)
			continue
		}
		if _, err := fmt.Sscanf(fields[0], "%d-%d", &sent, &ended); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		a := asked{lock: "l", sent: time.Duration(sent) * time.Second, ended: time.Duration(ended) * time.Second}
		a.what, a.own = strings.CutSuffix(fields[1], "-own")
		what, with, _ := strings.Cut(a.what, "-")
		a.what = what
		if number, ok := strings.CutPrefix(with, "ttl"); ok {
			fmt.Sscanf(number, "%d", &ended)
			a.ttl = time.Duration(ended) * time.Second
		}
		if number, ok := strings.CutPrefix(with, "if"); ok {
			fmt.Sscanf(number, "%d", &a.ifMatch)
		}
		if len(fields) > 2 {
			a.identity = identity{fields[2], strings.TrimPrefix(fields[3], "-"), strings.TrimPrefix(fields[4], "-")}
		}
		a.answered(t, answer)
		h.asked = append(h.asked, a)
	}
	return h
}

// answered reads an answer: a verdict, its token or position, and what is shown.
func (a *asked) answered(t *testing.T, words string) {
	t.Helper()
	words, lock, isShown := strings.Cut(words, "shown")
	fields := strings.Fields(words)
	if len(fields) > 0 {
		a.verdict = verdict(fields[0])
	}
	if len(fields) > 1 && a.verdict == queued {
		fmt.Sscanf(fields[1], "%d", &a.position)
	} else if len(fields) > 1 {
		fmt.Sscanf(fields[1], "%d", &a.token)
	}
	if !isShown {
		return
	}
	a.shown = &view{}
	holders, waiters, _ := strings.Cut(lock, "then")
	for i, word := range strings.Fields(holders) {
		name, number, _ := strings.Cut(word, "/")
		switch i {
		case 0:
			fmt.Sscanf(word, "%d", &a.shown.revision)
		case 1:
			a.shown.key = word
		default:
			h := held{lockedBy: name}
			fmt.Sscanf(number, "%d", &h.token)
			a.shown.holders = append(a.shown.holders, h)
		}
	}
	for _, word := range strings.Fields(waiters) {
		key, name, _ := strings.Cut(word, "/")
		a.shown.waiters = append(a.shown.waiters, identity{Key: key, LockedBy: name})
	}
}
