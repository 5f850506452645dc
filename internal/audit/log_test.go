package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newLog answers a log and a way to the same tables for somebody who means harm.
func newLog(t *testing.T) (*audit.Log, *store.Store, *sqlx.DB) {
	t.Helper()
	return openLog(t, t.TempDir())
}

func openLog(t *testing.T, dir string) (*audit.Log, *store.Store, *sqlx.DB) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	db, err := sqlx.Open("sqlite", filepath.Join(dir, "kube-node-manager.db")+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(db.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	return audit.New(s, slog.New(slog.DiscardHandler)), s, db
}

// filled is a directory with a record of n entries, to be copied by whoever wants to harm it.
func filled(t *testing.T, n int) (copied func() string) {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(t.Context(), store.Config{Dir: dir, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Tx(t.Context(), func(tx *store.Tx) error {
		for i := range n {
			if _, err := tx.AppendEntry(fleet.Entry{Actor: "ada", Action: "cordon", Node: fmt.Sprint("n", i), Reason: "disk"}); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return func() string {
		to := t.TempDir()
		if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		return to
	}
}

func TestLog_AppendAndRead(t *testing.T) {
	t.Parallel()
	l, _, _ := newLog(t)
	at := time.Date(2026, 11, 22, 1, 2, 3, 456789123, time.FixedZone("x", 3600))
	in := fleet.Entry{
		At: at, Actor: "ada", Via: "session", Session: "h", Addr: "192.0.2.1", Action: "cordon", Phase: "intent",
		Cluster: "prod", Node: "n1", NodeUID: "u1", Batch: "b1", Outcome: "", Reason: "disk", Detail: "before\x00\xff",
	}
	got, err := l.Append(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	want := in
	want.Seq, want.At, want.Detail, want.Hash = 1, at.UTC().Truncate(time.Microsecond), "before\uFFFD\uFFFD", got.Hash
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("appended (-want +got):\n%s", diff)
	}
	read, err := l.Entries(t.Context(), fleet.AuditFilter{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]fleet.Entry{got}, read); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}
	if n, err := l.Verify(t.Context()); n != 1 || err != nil {
		t.Errorf("verify: %d, %v", n, err)
	}
}

func TestLog_Filter(t *testing.T) {
	t.Parallel()
	l, _, _ := newLog(t)
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i, e := range []fleet.Entry{
		{Actor: "ada", Action: "signin"},
		{Actor: "bob", Action: "cordon", Cluster: "a", Node: "n1"},
		{Actor: "ada", Action: "cordon", Cluster: "b", Node: "n1"},
		{Actor: "ada", Action: "uncordon", Cluster: "b", Node: "n2"},
	} {
		e.At = base.Add(time.Duration(i) * time.Hour)
		if _, err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		f    fleet.AuditFilter
		want []int64
	}{
		{"all, newest first", fleet.AuditFilter{}, []int64{4, 3, 2, 1}},
		{"user", fleet.AuditFilter{User: "ada"}, []int64{4, 3, 1}},
		{"cluster", fleet.AuditFilter{Cluster: "b"}, []int64{4, 3}},
		{"node", fleet.AuditFilter{Node: "n1"}, []int64{3, 2}},
		{"node of cluster", fleet.AuditFilter{Node: "n1", Cluster: "b"}, []int64{3}},
		{"action", fleet.AuditFilter{Action: "cordon"}, []int64{3, 2}},
		{"since is inclusive", fleet.AuditFilter{Since: base.Add(2 * time.Hour)}, []int64{4, 3}},
		{"until is exclusive", fleet.AuditFilter{Until: base.Add(2 * time.Hour)}, []int64{2, 1}},
		{"page", fleet.AuditFilter{BeforeSeq: 4, Limit: 2}, []int64{3, 2}},
		{"a value is no SQL", fleet.AuditFilter{User: "ada' OR '1'='1"}, nil},
	} {
		got, err := l.Entries(t.Context(), tt.f)
		if err != nil {
			t.Fatal(err)
		}
		var seqs []int64
		for _, e := range got {
			seqs = append(seqs, e.Seq)
		}
		if diff := cmp.Diff(tt.want, seqs); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestVerify_NamesTheFirstBadNumber does each harm at several places. The hashes of forged rows are right in
// themselves wherever the forger could make them so.
func TestVerify_NamesTheFirstBadNumber(t *testing.T) {
	t.Parallel()
	const n = 2100 // more than two pages
	copied := filled(t, n)
	places := []int64{1, 1000, 1001, n} // the store has the harm at random places: here are the ends of pages
	exec := func(t *testing.T, db *sqlx.DB, query string, args ...any) {
		t.Helper()
		res, err := db.ExecContext(t.Context(), query, args...)
		if err != nil {
			t.Fatal(err)
		}
		if rows, err := res.RowsAffected(); err != nil || rows == 0 {
			t.Fatalf("%s changed %d rows (%v)", query, rows, err)
		}
	}
	untouched, _, _ := openLog(t, copied())
	if good, err := untouched.Verify(t.Context()); err != nil || good != n {
		t.Fatalf("before: %d, %v", good, err)
	}
	columns := `at, actor, via, session, addr, action, phase, cluster, node, node_uid, batch, outcome, reason, detail, prev, hash, cluster_uid, as_identity`
	for _, tt := range []struct {
		name  string
		at    []int64
		harm  func(t *testing.T, l *audit.Log, db *sqlx.DB, seq int64)
		first func(seq int64) int64
	}{
		{"edit", places, func(t *testing.T, _ *audit.Log, db *sqlx.DB, seq int64) {
			exec(t, db, `UPDATE audit SET reason = 'nothing' WHERE seq = ?`, seq)
		}, nil},
		{"edit with a new hash", places, func(t *testing.T, l *audit.Log, db *sqlx.DB, seq int64) {
			e := entry(t, l, seq)
			e.Reason = "nothing"
			exec(t, db, `UPDATE audit SET reason = ?, hash = ? WHERE seq = ?`, e.Reason, e.Sum(), seq)
		}, func(seq int64) int64 { return min(seq+1, n) }},
		{"delete", places, func(t *testing.T, _ *audit.Log, db *sqlx.DB, seq int64) {
			exec(t, db, `DELETE FROM audit WHERE seq = ?`, seq)
		}, nil},
		{"swap", []int64{1, 999, n - 1}, func(t *testing.T, _ *audit.Log, db *sqlx.DB, seq int64) {
			exec(t, db, `UPDATE audit SET seq = -7 WHERE seq = ?`, seq)
			exec(t, db, `UPDATE audit SET seq = ? WHERE seq = ?`, seq, seq+1)
			exec(t, db, `UPDATE audit SET seq = ? WHERE seq = -7`, seq+1)
		}, nil},
		{"insert in the middle", places, func(t *testing.T, _ *audit.Log, db *sqlx.DB, seq int64) {
			exec(t, db, `UPDATE audit SET seq = -seq WHERE seq >= ?`, seq)
			exec(t, db, `UPDATE audit SET seq = 1 - seq WHERE seq < 0`)
			exec(t, db, `INSERT INTO audit SELECT ?, `+columns+` FROM audit WHERE seq = ?`, seq, seq+1)
			exec(t, db, `UPDATE audit SET actor = 'nobody' WHERE seq = ?`, seq)
		}, nil},
		{"insert at the end", []int64{n + 1, n + 9}, func(t *testing.T, l *audit.Log, db *sqlx.DB, seq int64) {
			last := entry(t, l, n)
			e := last
			e.Seq, e.Prev = seq, last.Hash
			exec(t, db, `INSERT INTO audit SELECT ?, `+columns+` FROM audit WHERE seq = ?`, seq, n)
			exec(t, db, `UPDATE audit SET prev = ?, hash = ? WHERE seq = ?`, e.Prev, e.Sum(), seq)
		}, nil},
		{"insert before the beginning", []int64{0, -3}, func(t *testing.T, _ *audit.Log, db *sqlx.DB, seq int64) {
			exec(t, db, `INSERT INTO audit SELECT ?, `+columns+` FROM audit WHERE seq = 1`, seq)
		}, nil},
		{"truncate", []int64{2, 1000, n}, func(t *testing.T, _ *audit.Log, db *sqlx.DB, seq int64) {
			exec(t, db, `DELETE FROM audit WHERE seq >= ?`, seq)
		}, nil},
		{"truncate all", []int64{1}, func(t *testing.T, _ *audit.Log, db *sqlx.DB, _ int64) {
			exec(t, db, `DELETE FROM audit`)
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, seq := range tt.at {
				l, _, db := openLog(t, copied())
				tt.harm(t, l, db, seq)
				want := seq
				if tt.first != nil {
					want = tt.first(seq)
				}
				good, err := l.Verify(t.Context())
				broken, ok := errors.AsType[*audit.BrokenError](err)
				if !ok || broken.Seq != want {
					t.Errorf("at %d: got %v, want entry %d named", seq, err, want)
				}
				if ok && good >= n && seq <= n && broken.Seq < n {
					t.Errorf("at %d: %d good entries", seq, good)
				}
			}
		})
	}
}

// entry reads one entry.
func entry(t *testing.T, l *audit.Log, seq int64) fleet.Entry {
	t.Helper()
	got, err := l.Entries(t.Context(), fleet.AuditFilter{BeforeSeq: seq + 1, Limit: 1})
	if err != nil || len(got) != 1 || got[0].Seq != seq {
		t.Fatalf("entry %d: %v, %v", seq, got, err)
	}
	return got[0]
}

// TestVerify_BesideWriters: writers append through two handles, as two processes would, and nothing looks broken.
func TestVerify_BesideWriters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var logs []*audit.Log
	for range 2 {
		s, err := store.Open(t.Context(), store.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		logs = append(logs, audit.New(s, slog.New(slog.DiscardHandler)))
	}
	const each = 150
	errs := make(chan error, len(logs))
	for _, l := range logs {
		go func() {
			var err error
			for range each {
				if _, err = l.Append(context.WithoutCancel(t.Context()), fleet.Entry{Action: "x"}); err != nil {
					break
				}
			}
			errs <- err
		}()
	}
	for done := 0; done < len(logs); {
		select {
		case err := <-errs:
			if err != nil {
				t.Error(err)
			}
			done++
		default:
			if _, err := logs[0].Verify(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n, err := logs[1].Verify(t.Context()); err != nil || n != 2*each {
		t.Errorf("got %d entries, %v; want %d", n, err, 2*each)
	}
}

func TestLog_DeniedIsRecordedAfterHangUpAndNeverSilent(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	l := audit.New(s, slog.New(slog.NewTextHandler(&out, nil)))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	l.Denied(gone, fleet.Caller{Name: "vic", Via: "session", Session: "h", Addr: "192.0.2.1"}, "cordon", "prod/n1")
	got, err := l.Entries(t.Context(), fleet.AuditFilter{})
	if err != nil || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	want := fleet.Entry{
		Seq: 1, At: got[0].At, Actor: "vic", Via: "session", Session: "h", Addr: "192.0.2.1", Action: "cordon",
		Phase: "denied", Outcome: "denied", Detail: "prod/n1", Hash: got[0].Hash,
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l.Denied(t.Context(), fleet.Caller{Name: "vic"}, "cordon", "")
	if !strings.Contains(out.String(), "refusal not recorded") {
		t.Errorf("log says %q", out.String())
	}
}
