package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	eventsDefault = 500
	eventsMost    = 5000
	// eventRows is how many rows of events are read at once; each holds what was written together.
	eventRows = 32
	// refsAtOnce bounds the refs of one question; both engines take far more parameters than that.
	refsAtOnce = 400
)

// MadeBatch finds the batch that an idempotency key of a person has made. ErrNotFound if it has made none, ErrConflict
// if the digest says that it was another request.
func (s *Store) MadeBatch(ctx context.Context, userID, key, digest string) (b fleet.Batch, err error) {
	err = s.view(ctx, func(tx *Tx) error {
		b, err = tx.made(userID, key, digest)
		return err
	})
	return b, err
}

// FreeNodes is a BusyError if one of the nodes is in a batch that is not done.
func (s *Store) FreeNodes(ctx context.Context, refs []fleet.NodeRef) error {
	return s.view(ctx, func(tx *Tx) error {
		for start := 0; start < len(refs); start += refsAtOnce {
			part := refs[start:min(start+refsAtOnce, len(refs))]
			args := make([]any, 0, 2*len(part))
			for _, ref := range part {
				args = append(args, ref.Cluster, ref.Name)
			}
			var held struct {
				Cluster string `db:"cluster"`
				Node    string `db:"node"`
				Batch   string `db:"batch_id"`
			}
			err := tx.Get(&held, `SELECT cluster, node, batch_id FROM batch_holds
				WHERE (cluster, node) IN (VALUES (?, ?)`+strings.Repeat(`, (?, ?)`, len(part)-1)+`) ORDER BY cluster, node LIMIT 1`, args...)
			switch {
			case err == nil:
				return &fleet.BusyError{Node: fleet.NodeRef{Cluster: held.Cluster, Name: held.Node}, Batch: held.Batch}
			case !errors.Is(err, fleet.ErrNotFound):
				return err
			}
		}
		return nil
	})
}

// PauseBatch writes down who asked for a pause and the audit entry. From its return on no further item can be claimed.
// ErrConflict for a batch that is done, cancelled or paused, or that waits for a person anyway.
func (s *Store) PauseBatch(ctx context.Context, id, by string, e fleet.Entry) error {
	return s.Tx(ctx, func(tx *Tx) error {
		n, err := tx.Exec(`UPDATE batches SET paused_by = ?, state = 'paused', note = '', resume_at = 0, version = version + 1
			WHERE id = ? AND paused_by = '' AND cancelled_by = ''
			AND (state IN ('queued', 'running') OR state = 'interrupted' AND resume_at > 0)`, by, id)
		if err != nil {
			return err
		}
		if n == 0 {
			return tx.cannot(id, "paused")
		}
		_, err = tx.AppendEntry(e)
		return err
	})
}

// ResumeBatch makes a batch go on that is paused, or that is interrupted, and writes the audit entry. If its canary is
// done, it is passed. ErrConflict for any other batch.
func (s *Store) ResumeBatch(ctx context.Context, id, _ string, e fleet.Entry) error {
	return s.Tx(ctx, func(tx *Tx) error {
		// A person looked at it: what the last owner left, and how long ago, is not in the way any more. Where an owner
		// is at work, nothing was left.
		now := micros(tx.now)
		n, err := tx.Exec(`UPDATE batches SET paused_by = '', note = '', resume_at = 0, version = version + 1,
			state = CASE WHEN started_at > 0 THEN 'running' ELSE 'queued' END,
			lease_clean = CASE WHEN lease_until <= ? THEN 1 ELSE lease_clean END,
			lease_until = CASE WHEN lease_until <= ? THEN ? ELSE lease_until END,
			passed = CASE WHEN canary > 0 AND canary <= (SELECT COUNT(*) FROM batch_items i WHERE i.batch_id = batches.id
				AND i.attempt > 0 AND i.state NOT IN ('queued', 'running')) THEN 1 ELSE passed END
			WHERE id = ? AND cancelled_by = '' AND state <> 'done' AND (paused_by <> '' OR state = 'interrupted')`,
			now, now, now, id)
		if err != nil {
			return err
		}
		if n == 0 {
			return tx.cannot(id, "resumed")
		}
		_, err = tx.AppendEntry(e)
		return err
	})
}

// cannot says why a batch was not changed.
func (t *Tx) cannot(id, what string) error {
	b, err := t.head(id)
	if err != nil {
		return err
	}
	is := b.State
	switch {
	case b.State == string(fleet.BatchDone):
	case b.CancelledBy != "":
		is = "being cancelled"
	case b.PausedBy != "":
		is = "paused"
	}
	return fmt.Errorf("batch %s cannot be %s: it is %s: %w", id, what, is, fleet.ErrConflict)
}

// SkipItem leaves out an item that waits, at once, and writes down that one which is being done is to be let go.
// ErrConflict for an item that is finished, ErrNotFound for one that is not there.
func (s *Store) SkipItem(ctx context.Context, id string, seq int, by string, e fleet.Entry) error {
	return s.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.head(id); err != nil {
			return err
		}
		var it struct {
			State  string `db:"state"`
			SkipBy string `db:"skip_by"`
		}
		err := tx.Get(&it, `SELECT state, skip_by FROM batch_items WHERE batch_id = ? AND seq = ?`, id, seq)
		switch {
		case errors.Is(err, fleet.ErrNotFound):
			return notFound("item", fmt.Sprint(seq))
		case err != nil:
			return err
		case fleet.ItemState(it.State).Finished():
			return fmt.Errorf("item %d of batch %s is %s already: %w", seq, id, it.State, fleet.ErrConflict)
		case it.SkipBy != "":
			return nil
		}
		var version int64
		if err := tx.Get(&version, `UPDATE batches SET version = version + 1 WHERE id = ? RETURNING version`, id); err != nil {
			return err
		}
		if fleet.ItemState(it.State) == fleet.ItemQueued {
			_, err = tx.Exec(`UPDATE batch_items SET skip_by = ?, state = 'skipped', code = ?, error = ?, ended_at = ?, version = ?
				WHERE batch_id = ? AND seq = ?`, by, fleet.CodeSkipped, storable("left out by "+by), micros(tx.now), version, id, seq)
		} else {
			_, err = tx.Exec(`UPDATE batch_items SET skip_by = ?, version = ? WHERE batch_id = ? AND seq = ?`, by, version, id, seq)
		}
		if err != nil {
			return err
		}
		_, err = tx.AppendEntry(e)
		return err
	})
}

// HoldBatch pauses a batch on behalf of its owner, with a note that says why and the audit entry, unless it is paused or
// cancelled or a person has gone on after the canary. It answers with what people asked of the batch by then.
func (s *Store) HoldBatch(ctx context.Context, l fleet.BatchLease, by, note string, e fleet.Entry) (steer fleet.BatchSteer, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.step(l); err != nil {
			return err
		}
		n, err := tx.Exec(`UPDATE batches SET paused_by = ?, state = 'paused', note = ?
			WHERE id = ? AND paused_by = '' AND cancelled_by = '' AND passed = 0`, by, storable(note), l.Batch)
		if err != nil {
			return err
		}
		if n == 1 {
			if _, err := tx.AppendEntry(e); err != nil {
				return err
			}
		}
		steer, err = tx.steer(l.Batch)
		return err
	})
	return steer, err
}

// NoteBatch says why a running batch does not start further nodes, "" when it does again. A paused batch keeps its note.
func (s *Store) NoteBatch(ctx context.Context, l fleet.BatchLease, note string) error {
	return s.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.step(l); err != nil {
			return err
		}
		_, err := tx.Exec(`UPDATE batches SET note = ? WHERE id = ? AND state <> 'paused'`, storable(note), l.Batch)
		return err
	})
}

// RecordProgress writes how far the drains of items are, and what they told, as one step. Events that were written
// before, as their mark tells, are not written again. ErrConflict for an item that is not running.
func (s *Store) RecordProgress(ctx context.Context, l fleet.BatchLease, progress ...fleet.ItemProgress) error {
	type packed struct{ drain, events []byte }
	rows := make([]packed, len(progress))
	for i, p := range progress {
		var err error
		if rows[i].drain, err = packDrain(p.Drain); err != nil {
			return fmt.Errorf("writing the drain of item %d: %w", p.Seq, err)
		}
		short := make([]fleet.DrainEvent, len(p.Events))
		for j, e := range p.Events {
			e.NodeRef, e.NodeUID = fleet.NodeRef{}, "" // they are the item's
			short[j] = e
		}
		if rows[i].events, err = packList(short); err != nil {
			return fmt.Errorf("writing the events of item %d: %w", p.Seq, err)
		}
	}
	return s.Tx(ctx, func(tx *Tx) error {
		version, err := tx.step(l)
		if err != nil {
			return err
		}
		for i, p := range progress {
			var told int64
			err := tx.Get(&told, `SELECT told FROM batch_items WHERE batch_id = ? AND seq = ? AND state = 'running'`, l.Batch, p.Seq)
			switch {
			case errors.Is(err, fleet.ErrNotFound):
				return fmt.Errorf("item %d of batch %s is not running: %w", p.Seq, l.Batch, fleet.ErrConflict)
			case err != nil:
				return err
			}
			if rows[i].events != nil && told < p.Mark {
				if err := tx.log(l.Batch, p, rows[i].events); err != nil {
					return err
				}
			}
			if _, err := tx.Exec(`UPDATE batch_items SET drain = COALESCE(?, drain), told = ?, version = ? WHERE batch_id = ? AND seq = ?`,
				rows[i].drain, max(told, p.Mark), version, l.Batch, p.Seq); err != nil {
				return err
			}
		}
		return nil
	})
}

// log appends events to the log of a batch.
func (t *Tx) log(id string, p fleet.ItemProgress, events []byte) error {
	var seq int64
	if err := t.Get(&seq, `UPDATE batches SET events = events + ? WHERE id = ? RETURNING events`, len(p.Events), id); err != nil {
		return err
	}
	_, err := t.Exec(`INSERT INTO batch_events (batch_id, seq, item, n, at, events) VALUES (?, ?, ?, ?, ?, ?)`,
		id, seq, p.Seq, len(p.Events), micros(t.now), events)
	return err
}

// BatchEvents reads the log of a batch after a sequence number, oldest first: 500 events unless told otherwise, 5,000 at
// most.
func (s *Store) BatchEvents(ctx context.Context, id string, after int64, limit int) (out []fleet.BatchEvent, err error) {
	if limit <= 0 {
		limit = eventsDefault
	}
	limit = min(limit, eventsMost)
	err = s.view(ctx, func(tx *Tx) error {
		if _, err := tx.head(id); err != nil {
			return err
		}
		for next := after; ; {
			var rows []struct {
				Seq     int64  `db:"seq"`
				Item    int    `db:"item"`
				N       int64  `db:"n"`
				Events  []byte `db:"events"`
				UID     string `db:"uid"`
				Cluster string `db:"cluster"`
				Node    string `db:"node"`
			}
			if err := tx.Select(&rows, `SELECT e.seq, e.item, e.n, e.events, i.uid, i.cluster, i.node FROM batch_events e
				JOIN batch_items i ON i.batch_id = e.batch_id AND i.seq = e.item
				WHERE e.batch_id = ? AND e.seq > ? ORDER BY e.seq LIMIT ?`, id, next, eventRows); err != nil {
				return err
			}
			for _, r := range rows {
				var events []fleet.DrainEvent
				if err := unpack(r.Events, &events); err != nil {
					return fmt.Errorf("reading event %d of batch %s: %w", r.Seq, id, err)
				}
				if int64(len(events)) != r.N {
					return fmt.Errorf("event %d of batch %s is one of %d, and there are %d", r.Seq, id, r.N, len(events))
				}
				for i, e := range events {
					seq := r.Seq - r.N + int64(i) + 1
					if seq <= after {
						continue
					}
					if len(out) == limit {
						return nil
					}
					e.NodeRef, e.NodeUID = fleet.NodeRef{Cluster: r.Cluster, Name: r.Node}, r.UID
					out = append(out, fleet.BatchEvent{Seq: seq, Item: r.Item, Event: e})
				}
				next = r.Seq
			}
			if len(rows) < eventRows {
				return nil
			}
		}
	})
	return out, err
}

// BatchPlan is the plan that a batch was made by, ErrNotFound if it was made without one.
func (s *Store) BatchPlan(ctx context.Context, id string) (*fleet.Plan, error) {
	var data []byte
	if err := s.get(ctx, &data, `SELECT plan FROM batch_plans WHERE batch_id = ?`, id); err != nil {
		return nil, fmt.Errorf("reading the plan of batch %s: %w", id, err)
	}
	plan := &fleet.Plan{}
	if err := unpack(data, plan); err != nil {
		return nil, fmt.Errorf("reading the plan of batch %s: %w", id, err)
	}
	return plan, nil
}
