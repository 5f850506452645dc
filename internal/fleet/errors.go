package fleet

import (
	"errors"
	"fmt"
	"time"
)

// The kinds of error that cross rooms. They are compared with errors.Is, never by text; the layer that learns the kind
// wraps it together with the cause, and only handlers turn a kind into a status or a sentence.
var (
	ErrNotFound        = errors.New("not found")
	ErrInvalid         = errors.New("invalid")
	ErrUnauthenticated = errors.New("not signed in")
	ErrForbidden       = errors.New("not permitted")
	ErrConflict        = errors.New("conflict")
	ErrBlocked         = errors.New("blocked")     // a disruption budget or a protection stands in the way
	ErrUnavailable     = errors.New("unavailable") // a cluster or the store cannot be reached now
	ErrTooMany         = errors.New("too many")
	ErrTooLarge        = errors.New("too large")
	ErrUnsupported     = errors.New("unsupported media type")

	// ErrAuthorityLost says that the person behind a batch may no longer do what it does: the batch stops.
	ErrAuthorityLost = errors.New("authority lost")
	// ErrNotRecorded says that the record or our own state could not be read or written. It is never the node's
	// fault: the batch is interrupted and tried again, and no further node is touched meanwhile.
	ErrNotRecorded = errors.New("not recorded")
	// ErrLeaseLost says that somebody else owns the batch now.
	ErrLeaseLost = errors.New("lease lost")
	// ErrCancelled says that somebody asked to cancel the batch: no further item may be claimed.
	ErrCancelled = errors.New("cancelled")
	// ErrPaused says that somebody paused the batch: no further item may be claimed until it goes on.
	ErrPaused = errors.New("paused")
	// ErrSkipped says that a person let go of a node in the middle of it.
	ErrSkipped = errors.New("skipped")
)

// FieldError says which field of an input is wrong. It is ErrInvalid.
type FieldError struct {
	Field   string            // the name in the form, the query or the JSON body
	Message string            // an English sentence part, without the field: `must not be empty`
	Key     string            // catalogue key of the message, "" where only English exists (texts of apimachinery)
	Args    map[string]string // values for the catalogue's placeholders; Part names the offending piece
}

func (e *FieldError) Error() string { return fmt.Sprintf("%s: %s", e.Field, e.Message) }

// Is makes every FieldError an ErrInvalid.
func (e *FieldError) Is(target error) bool { return target == ErrInvalid }

// Invalid returns a FieldError with an English message only.
func Invalid(field, format string, args ...any) *FieldError {
	return &FieldError{Field: field, Message: fmt.Sprintf(format, args...)}
}

// Problem returns a FieldError with a key for the catalogue; part stands for the %s of the English text and for the
// placeholder Part of the catalogue's, "" for none.
func Problem(field, key, part, english string) *FieldError {
	e := &FieldError{Field: field, Key: key, Message: english}
	if part != "" {
		e.Message, e.Args = fmt.Sprintf(english, part), map[string]string{"Part": part}
	}
	return e
}

// BusyError says that a node is in the hands of another batch. It is ErrConflict.
type BusyError struct {
	Node  NodeRef
	Batch string // id of the batch that holds the node; "" for whoever does not see it
}

func (e *BusyError) Error() string {
	if e.Batch == "" {
		return fmt.Sprintf("%s is being worked on by another batch", e.Node)
	}
	return fmt.Sprintf("%s is being worked on by batch %s", e.Node, e.Batch)
}

// Is makes every BusyError an ErrConflict.
func (e *BusyError) Is(target error) bool { return target == ErrConflict }

// DeniedError says what somebody lacks in which cluster, of which they know. It is ErrForbidden.
type DeniedError struct {
	Cluster    string
	Permission Permission
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("this needs %s in cluster %s", e.Permission, e.Cluster)
}

// Is makes every DeniedError an ErrForbidden.
func (e *DeniedError) Is(target error) bool { return target == ErrForbidden }

// StaleSignInError says that somebody has to prove anew who they are before something that cannot be taken back. It is
// ErrForbidden.
type StaleSignInError struct {
	Age   time.Duration // of the sign-in; 0 if nobody knows
	Limit time.Duration
}

func (e *StaleSignInError) Error() string {
	if e.Age == 0 {
		return fmt.Sprintf("this needs a sign-in of the last %s, and it is not known when you last proved who you are: sign in again", e.Limit)
	}
	return fmt.Sprintf("this needs a sign-in of the last %s, and yours is %s old: sign in again", e.Limit, e.Age.Truncate(time.Second))
}

// Is makes every StaleSignInError an ErrForbidden.
func (e *StaleSignInError) Is(target error) bool { return target == ErrForbidden }

// PlanChangedError says that what a person consented to is not what would happen now. It is ErrConflict.
type PlanChangedError struct {
	Seen string // digest of the plan that the person saw
	Now  string // of the plan as it is now
}

func (e *PlanChangedError) Error() string {
	return "the plan has changed since it was looked at: pods that need a consent came or went"
}

// Is makes every PlanChangedError an ErrConflict.
func (e *PlanChangedError) Is(target error) bool { return target == ErrConflict }

// LimitError says that somebody asked too often or for too much. It is ErrTooMany.
type LimitError struct {
	What  string        // what is limited: `sign-in`, `streams`
	Retry time.Duration // when to try again
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("too many: %s; try again in %s", e.What, e.Retry)
}

// Is makes every LimitError an ErrTooMany.
func (e *LimitError) Is(target error) bool { return target == ErrTooMany }

// IdentityError says that an address leads to another cluster than the one it led to before. It is ErrUnavailable:
// nothing of that cluster is shown, and nothing is written to it, until an admin accepts it.
type IdentityError struct {
	Cluster string
	Pinned  string // uid that the cluster is known by
	Found   string // uid of what answers now
}

func (e *IdentityError) Error() string {
	return fmt.Sprintf("the address leads to another cluster: expected %s, found %s", short(e.Pinned), short(e.Found))
}

// Is makes every IdentityError an ErrUnavailable.
func (e *IdentityError) Is(target error) bool { return target == ErrUnavailable }

// short is enough of a uid for a person to compare.
func short(uid string) string {
	if len(uid) > 8 {
		return uid[:8] + "…"
	}
	return uid
}

// LaterError says that this is a bad moment, for reasons that are not the asker's, and when a better one is. It is
// ErrUnavailable.
type LaterError struct {
	What  string
	Retry time.Duration // when to try again
}

func (e *LaterError) Error() string { return fmt.Sprintf("%s; try again in %s", e.What, e.Retry) }

// Is makes every LaterError an ErrUnavailable.
func (e *LaterError) Is(target error) bool { return target == ErrUnavailable }
