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

	PausedBy       string `db:"paused_by"`
	Parent         string `db:"parent"`
	PerCluster     int    `db:"per_cluster"`
	PerZone        int    `db:"per_zone"`
	MaxUnavailable int    `db:"max_unavailable"`
	Canary         int    `db:"canary"`
	Passed         int64  `db:"passed"`
	Order          string `db:"node_order"`
}

const batchColumns = `id, operation, state, outcome, created_by, created_by_id, created_at, started_at, ended_at, cancelled_by,
	max_concurrent, max_failures, pause_between, note, version, paused_by, parent, per_cluster, per_zone, max_unavailable, canary,
	passed, node_order`

func (r batchRow) batch() (fleet.Batch, error) {
	b := fleet.Batch{
		ID: r.ID, State: fleet.BatchState(r.State), Outcome: fleet.BatchOutcome(r.Outcome),
		CreatedBy: r.CreatedBy, CreatedByID: r.CreatedByID,
		CreatedAt: moment(r.CreatedAt), StartedAt: moment(r.StartedAt), EndedAt: moment(r.EndedAt),
		CancelledBy: r.CancelledBy, PausedBy: r.PausedBy, Parent: r.Parent, Passed: r.Passed != 0, Note: r.Note, Version: r.Version,
		Rollout: fleet.Rollout{
			MaxConcurrent: r.MaxConcurrent, PerCluster: r.PerCluster, PerZone: r.PerZone, MaxUnavailable: r.MaxUnavailable,
			MaxFailures: r.MaxFailures, PauseBetween: time.Duration(r.PauseBetween), Canary: r.Canary,
			Order: fleet.BatchOrder(r.Order),
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
	Zone      string `db:"zone"`
	Control   int64  `db:"control"`
	Edits     []byte `db:"edits"`
	Undo      []byte `db:"undo"`
	Drain     []byte `db:"drain"`
}

const itemColumns = `seq, cluster, node, uid, state, code, error, changed, attempt, started_at, ended_at, version, zone, control,
	edits, undo, drain`

func (r itemRow) item() (fleet.Item, error) {
	it := fleet.Item{
		Seq: r.Seq, Ref: fleet.NodeRef{Cluster: r.Cluster, Name: r.Node}, UID: r.UID, State: fleet.ItemState(r.State),
		Code: r.Code, Error: r.Error, Changed: r.Changed != 0, Attempt: r.Attempt,
		StartedAt: moment(r.StartedAt), EndedAt: moment(r.EndedAt), Version: r.Version, Zone: r.Zone, Control: r.Control != 0,
	}
	for _, part := range []struct {
		what string
		data []byte
		dest any
	}{{"edits", r.Edits, &it.Edits}, {"undo", r.Undo, &it.Undo}, {"drain", r.Drain, &it.Drain}} {
		if err := unpack(part.data, part.dest); err != nil {
			return fleet.Item{}, fmt.Errorf("reading the %s of %s: %w", part.what, it.Ref, err)
		}
	}
	return it, nil
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// CreateBatch writes a batch, its items, the holds on its nodes and the audit intent in one transaction. The same key of
// the same person answers with the batch that it made before, ErrConflict if that was another request. A node that an
// unfinished batch holds is a BusyError. A plan that is too large is kept without its pods.
func (s *Store) CreateBatch(ctx context.Context, d fleet.BatchDraft) (b fleet.Batch, err error) {
	packed, err := packDraft(d) // before the turn to write is taken: it may be work
	if err != nil {
		return fleet.Batch{}, err
	}
	for range 2 {
		err = s.Tx(ctx, func(tx *Tx) (err error) {
			b, err = tx.createBatch(d, packed)
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

// packedDraft is the part of a draft that is stored as bytes.
type packedDraft struct {
	operation string
	plan      []byte   // nil without one
	undo      [][]byte // of each item
}

func packDraft(d fleet.BatchDraft) (p packedDraft, err error) {
	op, err := json.Marshal(d.Batch.Operation)
	if err != nil {
		return p, fmt.Errorf("writing the operation of a batch: %w", err)
	}
	p.operation = string(op)
	if p.plan, err = packPlan(d.Plan); err != nil {
		return p, err
	}
	p.undo = make([][]byte, len(d.Items))
	for i, it := range d.Items {
		if p.undo[i], err = packList(it.Undo); err != nil {
			return p, fmt.Errorf("writing what is to be taken back on %s: %w", it.Ref, err)
		}
	}
	return p, nil
}

// made finds the batch that an idempotency key made, ErrNotFound if it made none and ErrConflict if that was another
// request.
func (t *Tx) made(userID, key, digest string) (fleet.Batch, error) {
	var made struct {
		ID     string `db:"id"`
		Digest string `db:"digest"`
	}
	if err := t.Get(&made, `SELECT id, digest FROM batches WHERE created_by_id = ? AND idempotency_key = ?`, userID, key); err != nil {
		return fleet.Batch{}, err
	}
	if made.Digest != digest {
		return fleet.Batch{}, fmt.Errorf("the idempotency key belongs to batch %s, which asked for something else: %w",
			made.ID, fleet.ErrConflict)
	}
	return t.batch(made.ID)
}

func (t *Tx) createBatch(d fleet.BatchDraft, packed packedDraft) (fleet.Batch, error) {
	if d.Key != "" {
		b, err := t.made(d.By.UserID, d.Key, d.Digest)
		if !errors.Is(err, fleet.ErrNotFound) {
			return b, err
		}
	}
	var key any // NULL
	if d.Key != "" {
		key = d.Key
	}
	b := d.Batch
	if _, err := t.Exec(`INSERT INTO batches (id, action, operation, state, outcome, created_by, created_by_id, role,
		session, via, addr, created_at, started_at, ended_at, cancelled_by, max_concurrent, max_failures, pause_between, note,
		version, idempotency_key, digest, lease_holder, lease_epoch, lease_until, resume_at, parent, per_cluster, per_zone,
		max_unavailable, canary, node_order)
		VALUES (?, ?, ?, ?, '', ?, ?, ?, ?, ?, ?, ?, 0, 0, '', ?, ?, ?, '', 1, ?, ?, '', 0, 0, 0, ?, ?, ?, ?, ?, ?)`,
		b.ID, string(b.Operation.Action), packed.operation, string(fleet.BatchQueued), d.By.Name, d.By.UserID, string(d.By.Role),
		d.By.Session, d.By.Via, d.By.Addr, micros(b.CreatedAt), b.Rollout.MaxConcurrent, b.Rollout.MaxFailures, int64(b.Rollout.PauseBetween),
		key, d.Digest, b.Parent, b.Rollout.PerCluster, b.Rollout.PerZone, b.Rollout.MaxUnavailable, b.Rollout.Canary,
		string(b.Rollout.Order)); err != nil {
		return fleet.Batch{}, raced("writing a batch", err)
	}
	for start := 0; start < len(d.Items); start += itemsAtOnce {
		part := d.Items[start:min(start+itemsAtOnce, len(d.Items))]
		args := make([]any, 0, 8*len(part))
		for i, it := range part {
			args = append(args, b.ID, it.Seq, it.Ref.Cluster, it.Ref.Name, it.UID, it.Zone, flag(it.Control), packed.undo[start+i])
		}
		const row = `(?, ?, ?, ?, ?, 'queued', '', '', 0, 0, 0, 0, 1, ?, ?, ?)`
		if _, err := t.Exec(`INSERT INTO batch_items (batch_id, seq, cluster, node, uid, state, code, error, changed, attempt,
			started_at, ended_at, version, zone, control, undo) VALUES `+row+strings.Repeat(`, `+row, len(part)-1), args...); err != nil {
			return fleet.Batch{}, fmt.Errorf("writing the items of a batch: %w", err)
		}
	}
	if packed.plan != nil {
		if _, err := t.Exec(`INSERT INTO batch_plans (batch_id, plan) VALUES (?, ?)`, b.ID, packed.plan); err != nil {
			return fleet.Batch{}, fmt.Errorf("writing the plan of a batch: %w", err)
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

// head reads the row of a batch.
func (t *Tx) head(id string) (row batchRow, err error) {
	err = t.Get(&row, `SELECT `+batchColumns+` FROM batches WHERE id = ?`, id)
	if errors.Is(err, fleet.ErrNotFound) {
		err = notFound("batch", id)
	}
	return row, err
}

// batch reads one batch with its counts.
func (t *Tx) batch(id string) (fleet.Batch, error) {
	row, err := t.head(id)
	if err != nil {
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
		var err error
		if items[i], err = r.item(); err != nil {
			return nil, err
		}
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
	if f.IDs != nil && len(f.IDs) == 0 || f.Within != nil && len(f.Within) == 0 {
		return nil, nil
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
	if f.Parent != "" {
		add(`parent = ?`, f.Parent)
	}
	if !f.Since.IsZero() {
		add(`created_at >= ?`, micros(f.Since))
	}
	if f.IDs != nil {
		add(`id IN (?)`, f.IDs)
	}
	if f.Within != nil {
		add(`NOT EXISTS (SELECT 1 FROM batch_items i WHERE i.batch_id = batches.id AND i.cluster NOT IN (?))`, f.Within)
		// Where taints were copied from is in the operation alone.
		add(`(action <> '`+string(fleet.ActionCopy)+`' OR `+s.engine.json("operation")+` -> 'source' ->> 'cluster' IN (?))`, f.Within)
	}
	query := `SELECT ` + batchColumns + ` FROM batches`
	if len(where) > 0 {
		query += ` WHERE ` + strings.Join(where, ` AND `)
	}
	limit := f.Limit
	if limit <= 0 {
		limit = batchesDefault
	}
	query, args, err = sqlx.In(query+` ORDER BY created_at DESC, id DESC LIMIT ?`, append(args, min(limit, batchesMost))...)
	if err != nil {
		return nil, fmt.Errorf("listing batches: %w", err)
	}
	err = s.view(ctx, func(tx *Tx) error {
		var rows []batchRow
		if err := tx.Select(&rows, query, args...); err != nil {
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
// the holder counts as none; "" is nobody. A paused batch waits for one only if some of its nodes were begun.
func (s *Store) RunnableBatches(ctx context.Context, holder string, limit int) ([]string, error) {
	at, err := s.now(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	now := micros(at)
	err = s.list(ctx, &ids, `SELECT id FROM batches WHERE state <> 'done' AND (lease_until <= ? OR lease_holder = ?)
		AND (state IN ('queued', 'running') OR cancelled_by <> '' OR state = 'interrupted' AND resume_at > 0 AND resume_at <= ?
			OR state = 'paused' AND EXISTS (SELECT 1 FROM batch_items i WHERE i.batch_id = batches.id AND i.state = 'running'))
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
			Clean   int64 `db:"lease_clean"`
		}
		if err := tx.Get(&before, `SELECT lease_until, created_at, lease_clean FROM batches WHERE id = ?`, id); err != nil {
			return lost(err)
		}
		var epoch int64
		if err := tx.Get(&epoch, `UPDATE batches SET lease_holder = ?, lease_epoch = lease_epoch + 1, lease_until = ?, lease_clean = 0
			WHERE id = ? AND state <> 'done' AND (lease_until <= ? OR lease_holder = ?) RETURNING lease_epoch`,
			holder, micros(tx.now.Add(ttl)), id, micros(tx.now), nobody(holder)); err != nil {
			return lost(err)
		}
		idle := tx.now.Sub(moment(max(before.Until, before.Created)))
		l = fleet.BatchLease{Batch: id, Holder: holder, Epoch: epoch, Idle: max(idle, 0), Clean: before.Clean != 0}
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

// RenewBatch prolongs a lease and tells what people asked of the batch.
func (s *Store) RenewBatch(ctx context.Context, l fleet.BatchLease, ttl time.Duration) (steer fleet.BatchSteer, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		n, err := tx.Exec(`UPDATE batches SET lease_until = ? WHERE id = ? AND lease_holder = ? AND lease_epoch = ? AND state <> 'done'`,
			micros(tx.now.Add(ttl)), l.Batch, l.Holder, l.Epoch)
		if err != nil {
			return err
		}
		if n == 0 {
			return fleet.ErrLeaseLost
		}
		steer, err = tx.steer(l.Batch)
		return err
	})
	return steer, err
}

// steer reads what people asked of a batch.
func (t *Tx) steer(id string) (fleet.BatchSteer, error) {
	b, err := t.head(id)
	if err != nil {
		return fleet.BatchSteer{}, err
	}
	out := fleet.BatchSteer{CancelledBy: b.CancelledBy, PausedBy: b.PausedBy, Passed: b.Passed != 0, Version: b.Version}
	var skips []struct {
		Seq   int    `db:"seq"`
		State string `db:"state"`
	}
	if err := t.Select(&skips, `SELECT seq, state FROM batch_items WHERE batch_id = ? AND skip_by <> ''
		AND (state = 'running' OR state = 'skipped' AND attempt = 0) ORDER BY seq`, id); err != nil {
		return fleet.BatchSteer{}, err
	}
	for _, s := range skips {
		if fleet.ItemState(s.State) == fleet.ItemRunning {
			out.Skip = append(out.Skip, s.Seq)
		} else {
			out.LeftOut = append(out.LeftOut, s.Seq)
		}
	}
	return out, nil
}

// ReleaseBatch ends a lease and leaves the batch as it is.
func (s *Store) ReleaseBatch(ctx context.Context, l fleet.BatchLease) error {
	return s.Tx(ctx, func(tx *Tx) error {
		n, err := tx.Exec(`UPDATE batches SET lease_holder = '', lease_until = ?, lease_clean = 1
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

// StartBatch makes a batch running, unless it is paused, and returns everything there is to do.
func (s *Store) StartBatch(ctx context.Context, l fleet.BatchLease) (b fleet.Batch, by fleet.Caller, items []fleet.Item, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.step(l); err != nil {
			return err
		}
		now := micros(tx.now)
		if _, err := tx.Exec(`UPDATE batches SET resume_at = 0,
			state = CASE WHEN paused_by <> '' AND cancelled_by = '' THEN 'paused' ELSE 'running' END,
			note = CASE WHEN state = 'paused' THEN note ELSE '' END,
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

// ClaimItem makes an item running and counts the attempt. ErrCancelled if somebody cancelled the batch; ErrSkipped if
// somebody asked to leave the item out; ErrPaused for an item that was not begun, if the batch is paused.
func (s *Store) ClaimItem(ctx context.Context, l fleet.BatchLease, seq int) error {
	return s.Tx(ctx, func(tx *Tx) error {
		version, err := tx.step(l)
		if err != nil {
			return err
		}
		var now struct {
			CancelledBy string `db:"cancelled_by"`
			PausedBy    string `db:"paused_by"`
			SkipBy      string `db:"skip_by"`
			State       string `db:"state"`
		}
		err = tx.Get(&now, `SELECT b.cancelled_by, b.paused_by, i.skip_by, i.state FROM batches b JOIN batch_items i ON i.batch_id = b.id
			WHERE b.id = ? AND i.seq = ?`, l.Batch, seq)
		switch {
		case errors.Is(err, fleet.ErrNotFound):
			return fmt.Errorf("item %d of batch %s is missing: %w", seq, l.Batch, fleet.ErrConflict)
		case err != nil:
			return err
		case now.CancelledBy != "":
			return fleet.ErrCancelled
		case now.SkipBy != "" && (now.State == "running" || now.State == "skipped"):
			return fleet.ErrSkipped
		case now.PausedBy != "" && now.State == "queued":
			return fleet.ErrPaused
		}
		n, err := tx.Exec(`UPDATE batch_items SET state = 'running', attempt = attempt + 1, version = ?, told = 0,
			started_at = CASE WHEN started_at = 0 THEN ? ELSE started_at END
			WHERE batch_id = ? AND seq = ? AND state IN ('queued', 'running')`, version, micros(tx.now), l.Batch, seq)
		if err == nil && n != 1 {
			err = fmt.Errorf("item %d of batch %s is finished: %w", seq, l.Batch, fleet.ErrConflict)
		}
		return err
	})
}

// FinishItem records the final state of an item that is running: code, error, changed, what was changed and, unless it
// is nil, the progress of its drain.
func (s *Store) FinishItem(ctx context.Context, l fleet.BatchLease, it fleet.Item) error {
	if !it.State.Finished() {
		return fmt.Errorf("item %d of batch %s would end in the state %q: %w", it.Seq, l.Batch, it.State, fleet.ErrInvalid)
	}
	edits, err := packList(it.Edits)
	if err != nil {
		return fmt.Errorf("writing the edits of %s: %w", it.Ref, err)
	}
	drain, err := packDrain(it.Drain)
	if err != nil {
		return fmt.Errorf("writing the drain of %s: %w", it.Ref, err)
	}
	return s.Tx(ctx, func(tx *Tx) error {
		version, err := tx.step(l)
		if err != nil {
			return err
		}
		n, err := tx.Exec(`UPDATE batch_items SET state = ?, code = ?, error = ?, changed = ?, ended_at = ?, version = ?,
			edits = ?, drain = COALESCE(?, drain) WHERE batch_id = ? AND seq = ? AND state = 'running'`,
			string(it.State), it.Code, storable(it.Error), flag(it.Changed), micros(tx.now), version, edits, drain, l.Batch, it.Seq)
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
			lease_until = ?, lease_clean = 1, resume_at = 0, paused_by = '' WHERE id = ?`, string(outcome), storable(end.Note), now, now, l.Batch); err != nil {
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
		_, err := tx.Exec(`UPDATE batches SET state = 'interrupted', note = ?, resume_at = ?, lease_holder = '', lease_until = ?,
			lease_clean = 1 WHERE id = ?`, storable(note), resume, micros(tx.now), l.Batch)
		return err
	})
}
