package main

import "time"

// This file is what goes into the rules, beside a claim, and what comes out of
// them: orders, verdicts, and what happened.

// verdict says what became of a request. Its value is a metric's label.
type verdict string

const (
	granted      verdict = "granted"
	repeated     verdict = "repeat"  // granted before, to the same claim
	queued       verdict = "queued"  // it waits, or keeps its place
	refused      verdict = "refused" // it is not queued
	overLimit    verdict = "limit"   // it would be one claim too many
	released     verdict = "released"
	withdrew     verdict = "withdrew"  // it took a queued claim back
	withdrawn    verdict = "withdrawn" // it waited, and its claim was taken back
	alreadyEnded verdict = "ended"     // released, withdrawn, expired or forced before
	laterRun     verdict = "later_run" // what it names belongs to a run that began after it was sent
	tooLate      verdict = "too_late"  // a take, after a release of its run or of a later one
	oldTicket    verdict = "old_ticket"
	neverTaken   verdict = "own" // only its own hold was to be freed, and it has none
	wasFree      verdict = "free"
	wrongKey     verdict = "wrong_key"
	noSuchHolder verdict = "no_holder"
	forced       verdict = "forced"
	changedHands verdict = "changed" // a forced release named another revision

	passedOn verdict = "forwarded" // the leader answers it
)

// outcome is a verdict and what belongs to it.
type outcome struct {
	verdict verdict
	token   uint64 // of a grant
	waiter  uint64 // the waiter's revision, when it is or was queued
	name    string // whose claim was meant, where the request did not say
	how     how    // the claim ended before
	at      time.Time
}

// release is what somebody gives back. Without a name it is the claim that the
// id has under that key.
type release struct {
	identity
	own    bool // nothing but what the id itself has
	ticket ticket
}

// event is a change, for the log.
type event struct {
	what     string // grant, queue, release, withdraw, expire or force
	lock     string
	identity identity
	link     string
	token    uint64
	lasted   time.Duration // how long it was held or waited for
	by       string        // who forced it: a user or an address
	person   string        // and who they say they are
	why      string        // it is held, or was forced, withdrawn or given back
}

// force is an order to free a lock, whatever its key.
type force struct {
	lockedBy        string  // the holder that is meant; empty: every one
	ifMatch         *uint64 // only when the lock has that revision; nil: always
	by, person, why string  // for the log, see event
}
