package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	batchesDefault = 50
	batchesMost    = 500
	// itemsAtOnce bounds the rows of one INSERT; both engines take far more parameters than that.
	itemsAtOnce = 400
)

type batchRow struct {
	ID            string `db:"id"`
	Operation     string `db:"operation"`
	State         string `db:"state"`
	Outcome       string `db:"outcome"`
	CreatedBy     string `db:"created_by"`
	CreatedByID   string `db:"created_by_id"`
	CreatedAt     int64  `db:"created_at"`
	StartedAt     int64  `db:"started_at"`
	EndedAt       int64  `db:"ended_at"`
	CancelledBy   string `db:"cancelled_by"`
	MaxConcurrent int    `db:"max_concurrent"`
	MaxFailures   int    `db:"max_failures"`
	PauseBetween  int64  `db:"pause_between"`
	Note          string `db:"note"`
	Version       int64  `db:"version"`
}

const batchColumns = `id, operation, state, outcome, created_by, created_by_id, created_at, started_at, ended_at, cancelled_by,
	max_concurrent, max_failures, pause_between, note, version`

func (r batchRow) batch() (fleet.Batch, error) {
	b := fleet.Batch{
		ID: r.ID, State: fleet.BatchState(r.State), Outcome: fleet.BatchOutcome(r.Outcome),
		CreatedBy: r.CreatedBy, CreatedByID: r.CreatedByID,
		CreatedAt: moment(r.CreatedAt), StartedAt: moment(r.StartedAt), EndedAt: moment(r.EndedAt),
		CancelledBy: r.CancelledBy, Note: r.Note, Version: r.Version, Rollout: fleet.Rollout{
			MaxConcurrent: r.MaxConcurrent, MaxFailures: r.MaxFailures, PauseBetween: time.Duration(r.PauseBetween),
		},
	}
	if err := json.Unmarshal([]byte(r.Operation), &b.Operation); err != nil {
		return fleet.Batch{}, fmt.Errorf("reading the operation of batch %s: %w", r.ID, err)
	}
	return b, nil
}

type itemRow struct {
	Seq       int    `db:"seq"`
	Cluster   string `db:"cluster"`
	Node      string `db:"node"`
	UID       string `db:"uid"`
	State     string `db:"state"`
	Code      string `db:"code"`
	Error     string `db:"error"`
	Changed   int64  `db:"changed"`
	Attempt   int    `db:"attempt"`
	StartedAt int64  `db:"started_at"`
	EndedAt   int64  `db:"ended_at"`
	Version   int64  `db:"version"`
}

const itemColumns = `seq, cluster, node, uid, state, code, error, changed, attempt, started_at, ended_at, version`

func (r itemRow) item() fleet.Item {
	return fleet.Item{
		Seq: r.Seq, Ref: fleet.NodeRef{Cluster: r.Cluster, Name: r.Node}, UID: r.UID, State: fleet.ItemState(r.State),
		Code: r.Code, Error: r.Error, Changed: r.Changed != 0, Attempt: r.Attempt,
		StartedAt: moment(r.StartedAt), EndedAt: moment(r.EndedAt), Version: r.Version,
	}
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// CreateBatch writes a batch, its items, the holds on its nodes and the audit intent in one transaction. The same key of
// the same person answers with the batch that it made before, ErrConflict if that was another request. A node that an
// unfinished batch holds is a BusyError.
func (s *Store) CreateBatch(ctx context.Context, d fleet.BatchDraft) (b fleet.Batch, err error) {
	for range 2 {
		err = s.Tx(ctx, func(tx *Tx) (err error) {
			b, err = tx.createBatch(d)
			return err
		})
		if err == nil || !errors.Is(err, errRaced) {
			break // and a transaction that came second sees on its next try what it came second to
		}
	}
	if err != nil {
		return fleet.Batch{}, err
	}
	return b, nil
}

// errRaced says that a row stood in the way that was not there when the transaction looked.
var errRaced = errors.New("another transaction was faster")

func (t *Tx) createBatch(d fleet.BatchDraft) (fleet.Batch, error) {
	if d.Key != "" {
		var made struct {
			ID     string `db:"id"`
			Digest string `db:"digest"`
		}
		err := t.Get(&made, `SELECT id, digest FROM batches WHERE created_by_id = ? AND idempotency_key = ?`,
			d.By.UserID, d.Key)
		switch {
		case err == nil && made.Digest == d.Digest:
			return t.batch(made.ID)
		case err == nil:
			return fleet.Batch{}, fmt.Errorf("the idempotency key belongs to batch %s, which asked for something else: %w",
				made.ID, fleet.ErrConflict)
		case !errors.Is(err, fleet.ErrNotFound):
			return fleet.Batch{}, err
		}
	}
	op, err := json.Marshal(d.Batch.Operation)
	if err != nil {
		return fleet.Batch{}, fmt.Errorf("writing the operation of a batch: %w", err)
	}
	var key any // NULL
	if d.Key != "" {
		key = d.Key
	}
	b := d.Batch
	if _, err := t.Exec(`INSERT INTO batches (id, action, operation, state, outcome, created_by, created_by_id, role,
		session, via, addr, created_at, started_at, ended_at, cancelled_by, max_concurrent, max_failures, pause_between, note,
		version, idempotency_key, digest, lease_holder, lease_epoch, lease_until, resume_at)
		VALUES (?, ?, ?, ?, '', ?, ?, ?, ?, ?, ?, ?, 0, 0, '', ?, ?, ?, '', 1, ?, ?, '', 0, 0, 0)`,
		b.ID, string(b.Operation.Action), string(op), string(fleet.BatchQueued), d.By.Name, d.By.UserID, string(d.By.Role),
		d.By.Session, d.By.Via, d.By.Addr, micros(b.CreatedAt), b.Rollout.MaxConcurrent, b.Rollout.MaxFailures, int64(b.Rollout.PauseBetween),
		key, d.Digest); err != nil {
		return fleet.Batch{}, raced("writing a batch", err)
	}
	for start := 0; start < len(d.Items); start += itemsAtOnce {
		part := d.Items[start:min(start+itemsAtOnce, len(d.Items))]
		args := make([]any, 0, 5*len(part))
		for _, it := range part {
			args = append(args, b.ID, it.Seq, it.Ref.Cluster, it.Ref.Name, it.UID)
		}
		const row = `(?, ?, ?, ?, ?, 'queued', '', '', 0, 0, 0, 0, 1)`
		if _, err := t.Exec(`INSERT INTO batch_items (batch_id, seq, cluster, node, uid, state, code, error, changed, attempt,
			started_at, ended_at, version) VALUES `+row+strings.Repeat(`, `+row, len(part)-1), args...); err != nil {
			return fleet.Batch{}, fmt.Errorf("writing the items of a batch: %w", err)
		}
	}
	var held []struct {
		Cluster string `db:"cluster"`
		Node    string `db:"node"`
		Batch   string `db:"batch_id"`
	}
	if err := t.Select(&held, `SELECT h.cluster, h.node, h.batch_id FROM batch_items i
		JOIN batch_holds h ON h.cluster = i.cluster AND h.node = i.node WHERE i.batch_id = ? ORDER BY i.seq LIMIT 1`,
		b.ID); err != nil {
		return fleet.Batch{}, err
	}
	for _, h := range held {
		return fleet.Batch{}, &fleet.BusyError{Node: fleet.NodeRef{Cluster: h.Cluster, Name: h.Node}, Batch: h.Batch}
	}
	if _, err := t.Exec(`INSERT INTO batch_holds (cluster, node, batch_id)
		SELECT cluster, node, batch_id FROM batch_items WHERE batch_id = ?`, b.ID); err != nil {
		return fleet.Batch{}, raced("holding the nodes of a batch", err)
	}
	if _, err := t.AppendEntry(d.Intent); err != nil {
		return fleet.Batch{}, err
	}
	return t.batch(b.ID)
}

func raced(doing string, err error) error {
	if errors.Is(err, fleet.ErrConflict) {
		return fmt.Errorf("%s: %w: %w", doing, errRaced, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// batch reads one batch with its counts.
func (t *Tx) batch(id string) (fleet.Batch, error) {
	var row batchRow
	if err := t.Get(&row, `SELECT `+batchColumns+` FROM batches WHERE id = ?`, id); err != nil {
		if errors.Is(err, fleet.ErrNotFound) {
			return fleet.Batch{}, notFound("batch", id)
		}
		return fleet.Batch{}, err
	}
	b, err := row.batch()
	if err != nil {
		return fleet.Batch{}, err
	}
	counts, err := t.counts(id)
	b.Counts = counts[id]
	return b, err
}

// counts derives the counts of batches from their items.
func (t *Tx) counts(ids ...string) (map[string]fleet.Counts, error) {
	query, args, err := sqlx.In(`SELECT batch_id, state, COUNT(*) AS n FROM batch_items WHERE batch_id IN (?)
		GROUP BY batch_id, state`, ids)
	if err != nil {
		return nil, fmt.Errorf("counting items: %w", err)
	}
	var rows []struct {
		Batch string `db:"batch_id"`
		State string `db:"state"`
		N     int    `db:"n"`
	}
	if err := t.Select(&rows, query, args...); err != nil {
		return nil, err
	}
	out := make(map[string]fleet.Counts, len(ids))
	for _, r := range rows {
		c := out[r.Batch]
		c.Total += r.N
		switch fleet.ItemState(r.State) {
		case fleet.ItemQueued:
			c.Queued = r.N
		case fleet.ItemRunning:
			c.Running = r.N
		case fleet.ItemSucceeded:
			c.Succeeded = r.N
		case fleet.ItemFailed:
			c.Failed = r.N
		case fleet.ItemSkipped:
			c.Skipped = r.N
		case fleet.ItemCancelled:
			c.Cancelled = r.N
		}
		out[r.Batch] = c
	}
	return out, nil
}

func (t *Tx) items(id string, after int64) ([]fleet.Item, error) {
	var rows []itemRow
	if err := t.Select(&rows, `SELECT `+itemColumns+` FROM batch_items WHERE batch_id = ? AND version > ? ORDER BY seq`,
		id, after); err != nil {
		return nil, err
	}
	items := make([]fleet.Item, len(rows))
	for i, r := range rows {
		items[i] = r.item()
	}
	return items, nil
}

// Batch returns a batch and those of its items whose version is greater than after, of one moment.
func (s *Store) Batch(ctx context.Context, id string, after int64) (b fleet.Batch, items []fleet.Item, err error) {
	err = s.view(ctx, func(tx *Tx) (err error) {
		if b, err = tx.batch(id); err != nil {
			return err
		}
		items, err = tx.items(id, after)
		return err
	})
	return b, items, err
}

// Batches lists, newest first: 50 unless the filter says otherwise, 500 at most.
func (s *Store) Batches(ctx context.Context, f fleet.BatchFilter) (out []fleet.Batch, err error) {
	var where []string
	var args []any
	add := func(cond string, arg any) {
		where = append(where, cond)
		args = append(args, arg)
	}
	if f.State != "" {
		add(`state = ?`, string(f.State))
	}
	if f.User != "" {
		add(`created_by = ?`, f.User)
	}
	if f.Cluster != "" {
		add(`EXISTS (SELECT 1 FROM batch_items i WHERE i.batch_id = batches.id AND i.cluster = ?)`, f.Cluster)
	}
	if !f.Since.IsZero() {
		add(`created_at >= ?`, micros(f.Since))
	}
	query := `SELECT ` + batchColumns + ` FROM batches`
	if len(where) > 0 {
		query += ` WHERE ` + strings.Join(where, ` AND `)
	}
	limit := f.Limit
	if limit <= 0 {
		limit = batchesDefault
	}
	err = s.view(ctx, func(tx *Tx) error {
		var rows []batchRow
		if err := tx.Select(&rows, query+` ORDER BY created_at DESC, id DESC LIMIT ?`, append(args, min(limit, batchesMost))...); err != nil {
			return err
		}
		if len(rows) == 0 {
			return nil
		}
		ids := make([]string, len(rows))
		for i, r := range rows {
			ids[i] = r.ID
		}
		counts, err := tx.counts(ids...)
		if err != nil {
			return err
		}
		for _, r := range rows {
			b, err := r.batch()
			if err != nil {
				return err
			}
			b.Counts = counts[b.ID]
			out = append(out, b)
		}
		return nil
	})
	return out, err
}

// CancelBatch writes down who asked to cancel and the audit entry. It does nothing if somebody did before, and is
// ErrConflict for a batch that is done.
func (s *Store) CancelBatch(ctx context.Context, id, by string, e fleet.Entry) error {
	return s.Tx(ctx, func(tx *Tx) error {
		n, err := tx.Exec(`UPDATE batches SET cancelled_by = ?, version = version + 1
			WHERE id = ? AND state <> 'done' AND cancelled_by = ''`, by, id)
		if err != nil {
			return err
		}
		if n == 0 {
			b, err := tx.batch(id)
			switch {
			case err != nil:
				return err
			case b.CancelledBy == "":
				return fmt.Errorf("batch %s is done already: %w", id, fleet.ErrConflict)
			}
			return nil
		}
		_, err = tx.AppendEntry(e)
		return err
	})
}

// RunnableBatches lists batches that wait for an owner, cancelled ones first, then the oldest. A lease that belongs to
// the holder counts as none; "" is nobody.
func (s *Store) RunnableBatches(ctx context.Context, holder string, limit int) ([]string, error) {
	at, err := s.now(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	now := micros(at)
	err = s.list(ctx, &ids, `SELECT id FROM batches WHERE state <> 'done' AND (lease_until <= ? OR lease_holder = ?)
		AND (state IN ('queued', 'running') OR cancelled_by <> '' OR state = 'interrupted' AND resume_at > 0 AND resume_at <= ?)
		ORDER BY CASE WHEN cancelled_by = '' THEN 1 ELSE 0 END, created_at, id LIMIT ?`, now, nobody(holder), now, limit)
	return ids, err
}

// nobody keeps the empty holder from matching the rows that have none.
func nobody(holder string) any {
	if holder == "" {
		return nil
	}
	return holder
}

// AcquireBatch takes the lease of a batch with a new epoch, if it is free, expired or the holder's own. ErrLeaseLost if
// another one was faster.
func (s *Store) AcquireBatch(ctx context.Context, id, holder string, ttl time.Duration) (l fleet.BatchLease, b fleet.Batch, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		var before struct {
			Until   int64 `db:"lease_until"`
			Created int64 `db:"created_at"`
		}
		if err := tx.Get(&before, `SELECT lease_until, created_at FROM batches WHERE id = ?`, id); err != nil {
			return lost(err)
		}
		var epoch int64
		if err := tx.Get(&epoch, `UPDATE batches SET lease_holder = ?, lease_epoch = lease_epoch + 1, lease_until = ?
			WHERE id = ? AND state <> 'done' AND (lease_until <= ? OR lease_holder = ?) RETURNING lease_epoch`,
			holder, micros(tx.now.Add(ttl)), id, micros(tx.now), nobody(holder)); err != nil {
			return lost(err)
		}
		idle := tx.now.Sub(moment(max(before.Until, before.Created)))
		l = fleet.BatchLease{Batch: id, Holder: holder, Epoch: epoch, Idle: max(idle, 0)}
		b, err = tx.batch(id)
		return err
	})
	return l, b, err
}

// lost is what the owner of an old epoch gets: the row with its epoch is not there any more.
func lost(err error) error {
	if errors.Is(err, fleet.ErrNotFound) {
		return fleet.ErrLeaseLost
	}
	return err
}

// RenewBatch prolongs a lease and tells who cancelled the batch, "" for nobody.
func (s *Store) RenewBatch(ctx context.Context, l fleet.BatchLease, ttl time.Duration) (cancelledBy string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		return lost(tx.Get(&cancelledBy, `UPDATE batches SET lease_until = ?
			WHERE id = ? AND lease_holder = ? AND lease_epoch = ? AND state <> 'done' RETURNING cancelled_by`,
			micros(tx.now.Add(ttl)), l.Batch, l.Holder, l.Epoch))
	})
	return cancelledBy, err
}

// ReleaseBatch ends a lease and leaves the batch as it is.
func (s *Store) ReleaseBatch(ctx context.Context, l fleet.BatchLease) error {
	return s.Tx(ctx, func(tx *Tx) error {
		n, err := tx.Exec(`UPDATE batches SET lease_holder = '', lease_until = ?
			WHERE id = ? AND lease_holder = ? AND lease_epoch = ?`, micros(tx.now), l.Batch, l.Holder, l.Epoch)
		if err == nil && n == 0 {
			err = fleet.ErrLeaseLost
		}
		return err
	})
}

// step moves the version of a batch on behalf of the owner of its lease. Whatever else a step writes comes after, in
// the same transaction.
func (t *Tx) step(l fleet.BatchLease) (version int64, err error) {
	err = lost(t.Get(&version, `UPDATE batches SET version = version + 1
		WHERE id = ? AND lease_holder = ? AND lease_epoch = ? AND state <> 'done' RETURNING version`,
		l.Batch, l.Holder, l.Epoch))
	return version, err
}

// StartBatch makes a batch running and returns everything there is to do.
func (s *Store) StartBatch(ctx context.Context, l fleet.BatchLease) (b fleet.Batch, by fleet.Caller, items []fleet.Item, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.step(l); err != nil {
			return err
		}
		now := micros(tx.now)
		if _, err := tx.Exec(`UPDATE batches SET state = 'running', note = '', resume_at = 0,
			started_at = CASE WHEN started_at = 0 THEN ? ELSE started_at END WHERE id = ?`, now, l.Batch); err != nil {
			return err
		}
		var who struct {
			Role    string `db:"role"`
			Session string `db:"session"`
			Via     string `db:"via"`
			Addr    string `db:"addr"`
		}
		if err := tx.Get(&who, `SELECT role, session, via, addr FROM batches WHERE id = ?`, l.Batch); err != nil {
			return err
		}
		if b, err = tx.batch(l.Batch); err != nil {
			return err
		}
		by = fleet.Caller{
			UserID: b.CreatedByID, Name: b.CreatedBy, Role: fleet.Role(who.Role),
			Session: who.Session, Via: who.Via, Addr: who.Addr,
		}
		items, err = tx.items(l.Batch, 0)
		return err
	})
	return b, by, items, err
}

// ClaimItem makes an item running and counts the attempt. ErrCancelled if somebody cancelled the batch.
func (s *Store) ClaimItem(ctx context.Context, l fleet.BatchLease, seq int) error {
	return s.Tx(ctx, func(tx *Tx) error {
		version, err := tx.step(l)
		if err != nil {
			return err
		}
		var cancelledBy string
		if err := tx.Get(&cancelledBy, `SELECT cancelled_by FROM batches WHERE id = ?`, l.Batch); err != nil {
			return err
		}
		if cancelledBy != "" {
			return fleet.ErrCancelled
		}
		n, err := tx.Exec(`UPDATE batch_items SET state = 'running', attempt = attempt + 1, version = ?,
			started_at = CASE WHEN started_at = 0 THEN ? ELSE started_at END
			WHERE batch_id = ? AND seq = ? AND state IN ('queued', 'running')`, version, micros(tx.now), l.Batch, seq)
		if err == nil && n != 1 {
			err = fmt.Errorf("item %d of batch %s is finished or missing: %w", seq, l.Batch, fleet.ErrConflict)
		}
		return err
	})
}

// FinishItem records the final state, code, error and changed of an item that is running.
func (s *Store) FinishItem(ctx context.Context, l fleet.BatchLease, it fleet.Item) error {
	if !it.State.Finished() {
		return fmt.Errorf("item %d of batch %s would end in the state %q: %w", it.Seq, l.Batch, it.State, fleet.ErrInvalid)
	}
	return s.Tx(ctx, func(tx *Tx) error {
		version, err := tx.step(l)
		if err != nil {
			return err
		}
		n, err := tx.Exec(`UPDATE batch_items SET state = ?, code = ?, error = ?, changed = ?, ended_at = ?, version = ?
			WHERE batch_id = ? AND seq = ? AND state = 'running'`, string(it.State), it.Code, storable(it.Error), flag(it.Changed),
			micros(tx.now), version, l.Batch, it.Seq)
		if err == nil && n != 1 {
			err = fmt.Errorf("item %d of batch %s is not running: %w", it.Seq, l.Batch, fleet.ErrConflict)
		}
		return err
	})
}

// EndBatch closes a batch without running items: what is queued becomes cancelled, the outcome is derived, the nodes are
// let go and the audit entry is written.
func (s *Store) EndBatch(ctx context.Context, l fleet.BatchLease, end fleet.BatchEnd) error {
	return s.Tx(ctx, func(tx *Tx) error {
		version, err := tx.step(l)
		if err != nil {
			return err
		}
		now := micros(tx.now)
		if _, err := tx.Exec(`UPDATE batch_items SET state = 'cancelled', code = ?, error = ?, ended_at = ?, version = ?
			WHERE batch_id = ? AND state = 'queued'`, end.Code, storable(end.Error), now, version, l.Batch); err != nil {
			return err
		}
		counts, err := tx.counts(l.Batch)
		if err != nil {
			return err
		}
		c := counts[l.Batch]
		if c.Finished() != c.Total {
			return fmt.Errorf("batch %s has %d running items: %w", l.Batch, c.Running, fleet.ErrConflict)
		}
		outcome := fleet.OutcomeOf(c, end.Stopped)
		if _, err := tx.Exec(`UPDATE batches SET state = 'done', outcome = ?, note = ?, ended_at = ?, lease_holder = '',
			lease_until = ?, resume_at = 0 WHERE id = ?`, string(outcome), storable(end.Note), now, now, l.Batch); err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM batch_holds WHERE batch_id = ?`, l.Batch); err != nil {
			return err
		}
		end.Entry.Outcome = string(outcome)
		_, err = tx.AppendEntry(end.Entry)
		return err
	})
}

// InterruptBatch gives a lease back and says why. The batch is runnable again after retry; 0 means that it waits for a
// person.
func (s *Store) InterruptBatch(ctx context.Context, l fleet.BatchLease, note string, retry time.Duration) error {
	return s.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.step(l); err != nil {
			return err
		}
		var resume int64
		if retry > 0 {
			resume = micros(tx.now.Add(retry))
		}
		_, err := tx.Exec(`UPDATE batches SET state = 'interrupted', note = ?, resume_at = ?, lease_holder = '', lease_until = ?
			WHERE id = ?`, storable(note), resume, micros(tx.now), l.Batch)
		return err
	})
}
