// Package audit is the record of who did or was refused what.
//
// Every entry carries its number, the hash of the entry before it and the hash of itself (fleet.Entry.Sum describes the
// encoding), so that an entry that is edited, removed, inserted or moved breaks the chain at its number. The store keeps
// the number and the hash of the last entry beside the chain, which shows that entries were cut off its end. Who can
// write to the database can rewrite all of it; only heads kept elsewhere show that.
//
// A Log may be used by many goroutines. Whoever changes the database hands the entry to the store with the change, so
// that both are written in one transaction; Append is for what changes nothing there. Order is the order of the numbers,
// not of the times.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// pageSize is how many entries Verify holds at once.
const pageSize = 1000

// store keeps the record. *store.Store implements it.
type store interface {
	AppendEntry(ctx context.Context, e fleet.Entry) (fleet.Entry, error)
	Entries(ctx context.Context, f fleet.AuditFilter) ([]fleet.Entry, error)
	EntriesAfter(ctx context.Context, seq int64, limit int) ([]fleet.Entry, error)
	EntriesHead(ctx context.Context) (seq int64, hash string, err error)
	AuditAnchor(ctx context.Context) (fleet.AuditHead, error)
	CutEntries(ctx context.Context, from int64, to fleet.AuditHead) error
}

// Log is the record. Make it with New.
type Log struct {
	store  store
	logger *slog.Logger
}

// New makes a Log over a store.
func New(s store, logger *slog.Logger) *Log {
	return &Log{store: s, logger: logger.With("component", "audit")}
}

// Append adds one entry and returns it with its number, time and hash. An error means that nothing was recorded: what
// should have been recorded first must not be done then.
func (l *Log) Append(ctx context.Context, e fleet.Entry) (fleet.Entry, error) {
	e, err := l.store.AppendEntry(ctx, e)
	if err != nil {
		return e, fmt.Errorf("recording %s: %w", e.Action, err)
	}
	return e, nil
}

// Entries reads the record, newest first.
func (l *Log) Entries(ctx context.Context, f fleet.AuditFilter) ([]fleet.Entry, error) {
	return l.store.Entries(ctx, f)
}

// Export hands the entries that a filter leaves to each, oldest first, in pages that bound what is in memory. That it is
// done goes on record first, with what as the words for the filter, and is not among what is handed out; without the
// record there is no export. What is recorded while it goes on is left out too.
func (l *Log) Export(ctx context.Context, by fleet.Caller, what string, f fleet.AuditFilter, each func([]fleet.Entry) error) error {
	e := By(by)
	e.Action, e.Phase, e.Outcome, e.Detail = "audit.export", "event", "succeeded", what
	e, err := l.Append(ctx, e)
	if err != nil {
		return err
	}
	f.Oldest, f.Limit = true, pageSize
	if f.BeforeSeq == 0 || f.BeforeSeq > e.Seq {
		f.BeforeSeq = e.Seq
	}
	for {
		page, err := l.store.Entries(ctx, f)
		if err != nil {
			return err
		}
		if len(page) > 0 {
			if err := each(page); err != nil {
				return err
			}
			f.AfterSeq = page[len(page)-1].Seq
		}
		if len(page) < pageSize {
			return nil
		}
	}
}

// Denied records that somebody was refused. The refusal stands whether or not it can be recorded, and it is recorded
// even if the one who was refused has hung up.
func (l *Log) Denied(ctx context.Context, by fleet.Caller, action, detail string) {
	e := By(by)
	e.Action, e.Phase, e.Outcome, e.Detail = action, "denied", "denied", detail
	if _, err := l.store.AppendEntry(context.WithoutCancel(ctx), e); err != nil {
		l.logger.ErrorContext(ctx, "refusal not recorded", "action", action, "user", by.Name, "err", err)
	}
}

// By begins an entry with what it has to say about the caller.
func By(c fleet.Caller) fleet.Entry {
	return fleet.Entry{Actor: c.Name, Via: c.Via, Session: c.Session, Addr: c.Addr}
}

// BrokenError says where the record is not what was written.
type BrokenError struct {
	Seq  int64  // number of the first bad or missing entry
	What string // what is wrong with it
}

func (e *BrokenError) Error() string { return fmt.Sprintf("audit entry %d %s", e.Seq, e.What) }

// Verify reads the whole record and checks every hash, every link and the end. It returns the number of good entries
// from the start; the error is a *BrokenError if the record is broken and another one if it could not be read. It may
// run beside writers.
func (l *Log) Verify(ctx context.Context) (n int, err error) {
	for {
		anchor, err := l.store.AuditAnchor(ctx)
		if err != nil {
			return 0, err
		}
		n, err := l.verify(ctx, anchor)
		if !errors.As(err, new(*BrokenError)) {
			return n, err
		}
		// Entries that retention removes meanwhile are missing too, and then the record begins elsewhere.
		if now, aerr := l.store.AuditAnchor(ctx); aerr != nil || now == anchor {
			return n, errors.Join(err, aerr)
		}
	}
}

func (l *Log) verify(ctx context.Context, anchor fleet.AuditHead) (n int, err error) {
	if anchor.Seq > 0 {
		if err := CheckHead(anchor, ""); err != nil {
			return 0, &BrokenError{Seq: anchor.Seq, What: "is where the record begins, and is not signed as such: " + err.Error()}
		}
	}
	last := fleet.Entry{Seq: anchor.Seq, Hash: anchor.Hash} // the last good entry
	from := int64(math.MinInt64)                            // a forged row may have any number
	for seen := int64(-1); ; {
		// An entry and the head are written together: with a head in hand, every entry up to it must be there, and an
		// entry beyond it is either forged or newer than this head, which the next head tells.
		headSeq, headHash, err := l.store.EntriesHead(ctx)
		if err != nil {
			return n, err
		}
		for last.Seq < headSeq {
			page, err := l.store.EntriesAfter(ctx, from, int(min(pageSize, headSeq-last.Seq)))
			if err != nil {
				return n, err
			}
			for _, e := range page {
				if err := follows(last, e); err != nil {
					return n, err
				}
				last, from = e, e.Seq
				n++
			}
			if len(page) == 0 {
				return n, &BrokenError{Seq: last.Seq + 1, What: fmt.Sprintf("is missing, and the record should go on to %d", headSeq)}
			}
		}
		switch {
		case last.Seq > headSeq:
			return n, &BrokenError{Seq: headSeq + 1, What: "is beyond the recorded end"}
		case last.Hash != headHash:
			return n, &BrokenError{Seq: max(headSeq, 1), What: "is not the recorded end"}
		}
		beyond, err := l.store.EntriesAfter(ctx, from, 1)
		if err != nil || len(beyond) == 0 {
			return n, err
		}
		if seen == headSeq { // the head has not moved since this entry was seen for the first time
			return n, &BrokenError{Seq: beyond[0].Seq, What: "is beyond the recorded end"}
		}
		seen = headSeq
	}
}

// follows checks one entry against the one before it.
func follows(last, e fleet.Entry) error {
	switch want := last.Seq + 1; {
	case e.Seq > want:
		return &BrokenError{Seq: want, What: "is missing"}
	case e.Seq < want: // a row below the beginning
		return &BrokenError{Seq: e.Seq, What: "has an impossible number"}
	case e.Sum() != e.Hash:
		return &BrokenError{Seq: e.Seq, What: "was changed after it was written"}
	case e.Prev != last.Hash:
		return &BrokenError{Seq: e.Seq, What: "does not continue the entry before it"}
	}
	return nil
}
