package store

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	entriesDefault = 100
	entriesMost    = 1000
	// fieldMost bounds one text of an entry: a record must not become the place where memory goes.
	fieldMost = 4096
)

// entryRow is one row of audit.
type entryRow struct {
	Seq     int64  `db:"seq"`
	At      int64  `db:"at"`
	Actor   string `db:"actor"`
	Via     string `db:"via"`
	Session string `db:"session"`
	Addr    string `db:"addr"`
	Action  string `db:"action"`
	Phase   string `db:"phase"`
	Cluster string `db:"cluster"`
	Node    string `db:"node"`
	NodeUID string `db:"node_uid"`
	Batch   string `db:"batch"`
	Outcome string `db:"outcome"`
	Reason  string `db:"reason"`
	Detail  string `db:"detail"`
	Prev    string `db:"prev"`
	Hash    string `db:"hash"`

	ClusterUID string `db:"cluster_uid"`
	As         string `db:"as_identity"`
}

const entryColumns = `seq, at, actor, via, session, addr, action, phase, cluster, node, node_uid, batch, outcome, reason, detail, prev, hash,
	cluster_uid, as_identity`

func (r entryRow) entry() fleet.Entry {
	return fleet.Entry{
		Seq: r.Seq, At: moment(r.At), Actor: r.Actor, Via: r.Via, Session: r.Session, Addr: r.Addr, Action: r.Action,
		Phase: r.Phase, Cluster: r.Cluster, Node: r.Node, NodeUID: r.NodeUID, Batch: r.Batch, Outcome: r.Outcome,
		Reason: r.Reason, Detail: r.Detail, Prev: r.Prev, Hash: r.Hash,
		ClusterUID: r.ClusterUID, As: r.As,
	}
}

// AppendEntry adds one entry to the record in a transaction of its own and returns it with number, time and hash.
func (s *Store) AppendEntry(ctx context.Context, e fleet.Entry) (fleet.Entry, error) {
	err := s.Tx(ctx, func(tx *Tx) (err error) {
		e, err = tx.AppendEntry(e)
		return err
	})
	return e, err
}

// AppendEntry adds one entry to the record as part of the transaction: what the transaction changes and what the
// record says of it are written together or not at all. A zero At becomes now, and an entry about a cluster says
// which one that is, where it is known. Texts lose what PostgreSQL cannot keep (NUL, bytes that are not UTF-8) and what is
// longer than 4 KiB.
func (t *Tx) AppendEntry(e fleet.Entry) (fleet.Entry, error) {
	if !t.record.known {
		if err := t.Get(t.record, `SELECT seq, hash FROM audit_head WHERE id = 1`); err != nil {
			return e, fmt.Errorf("numbering an audit entry: %w", err)
		}
		t.record.known = true
	}
	if e.At.IsZero() {
		e.At = time.Now()
	}
	if e.Cluster != "" && e.ClusterUID == "" {
		e.ClusterUID = t.uidOf(e.Cluster)
	}
	e.At = e.At.UTC().Truncate(time.Microsecond)
	for _, text := range []*string{
		&e.Actor, &e.Via, &e.Session, &e.Addr, &e.Action, &e.Phase, &e.Cluster, &e.Node, &e.NodeUID, &e.Batch, &e.Outcome,
		&e.Reason, &e.Detail, &e.ClusterUID, &e.As,
	} {
		*text = storable(*text)
	}
	e.Seq, e.Prev = t.record.Seq+1, t.record.Hash
	e.Hash = e.Sum()
	if _, err := t.Exec(`INSERT INTO audit (`+entryColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		e.Seq, micros(e.At), e.Actor, e.Via, e.Session, e.Addr, e.Action, e.Phase, e.Cluster, e.Node, e.NodeUID, e.Batch,
		e.Outcome, e.Reason, e.Detail, e.Prev, e.Hash, e.ClusterUID, e.As); err != nil {
		return e, fmt.Errorf("writing audit entry %d: %w", e.Seq, err)
	}
	t.record.Seq, t.record.Hash, t.record.moved = e.Seq, e.Hash, true
	return e, nil
}

// storable makes s a text that both engines keep as it is.
func storable(s string) string {
	if len(s) > fieldMost {
		s = s[:fieldMost]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		if len(s) > 0 && s[len(s)-1] >= utf8.RuneSelf {
			s = s[:len(s)-1]
		}
		s += "…"
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// Entries reads the record, newest first unless the filter says otherwise: 100 entries if it says nothing, 1,000 at most.
func (s *Store) Entries(ctx context.Context, f fleet.AuditFilter) ([]fleet.Entry, error) {
	query, args := entriesQuery(f)
	return s.entries(ctx, query, args...)
}

func entriesQuery(f fleet.AuditFilter) (query string, args []any) {
	var where []string
	add := func(cond string, arg any) {
		where = append(where, cond)
		args = append(args, arg)
	}
	// The second condition of some says nothing new; it lets the index serve that leaves the empty ones out.
	for _, is := range [][2]string{
		{"actor = ?", f.User},
		{"action = ?", f.Action},
		{"cluster = ? AND cluster <> ''", f.Cluster},
		{"node = ? AND node <> ''", f.Node},
		{"outcome = ? AND outcome <> ''", f.Outcome},
		{"batch = ? AND batch <> ''", f.Batch},
		{"session = ? AND session <> ''", f.Session},
	} {
		if is[1] != "" {
			add(is[0], is[1])
		}
	}
	if !f.Since.IsZero() {
		add("at >= ?", micros(f.Since))
	}
	if !f.Until.IsZero() {
		add("at < ?", micros(f.Until))
	}
	if f.BeforeSeq > 0 {
		add("seq < ?", f.BeforeSeq)
	}
	if f.AfterSeq > 0 {
		add("seq > ?", f.AfterSeq)
	}
	query = `SELECT ` + entryColumns + ` FROM audit`
	if len(where) > 0 {
		query += ` WHERE ` + strings.Join(where, " AND ")
	}
	query += ` ORDER BY seq`
	if !f.Oldest {
		query += ` DESC`
	}
	limit := f.Limit
	if limit <= 0 {
		limit = entriesDefault
	}
	return query + ` LIMIT ?`, append(args, min(limit, entriesMost))
}

// EntriesAfter reads the record in order, from the entry after seq on.
func (s *Store) EntriesAfter(ctx context.Context, seq int64, limit int) ([]fleet.Entry, error) {
	return s.entries(ctx, `SELECT `+entryColumns+` FROM audit WHERE seq > ? ORDER BY seq LIMIT ?`, seq, limit)
}

func (s *Store) entries(ctx context.Context, query string, args ...any) ([]fleet.Entry, error) {
	var rows []entryRow
	if err := s.list(ctx, &rows, query, args...); err != nil {
		return nil, fmt.Errorf("reading the audit record: %w", err)
	}
	out := make([]fleet.Entry, len(rows))
	for i, r := range rows {
		out[i] = r.entry()
	}
	return out, nil
}

// EntriesHead is the number and the hash of the last entry, 0 and "" while there is none.
func (s *Store) EntriesHead(ctx context.Context) (seq int64, hash string, err error) {
	var head struct {
		Seq  int64  `db:"seq"`
		Hash string `db:"hash"`
	}
	if err := s.get(ctx, &head, `SELECT seq, hash FROM audit_head WHERE id = 1`); err != nil {
		return 0, "", fmt.Errorf("reading the audit record: %w", err)
	}
	return head.Seq, head.Hash, nil
}
