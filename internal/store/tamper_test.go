package store_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

// varied are entries of both forms, with something in every field of some.
func varied(n int) []fleet.Entry {
	out := make([]fleet.Entry, n)
	for i := range out {
		out[i] = fleet.Entry{Actor: []string{"ada", "bob"}[i%2], Via: "session", Action: "cordon", Phase: "intent", Node: fmt.Sprint("n", i), Cluster: "prod"}
		if i%3 > 0 {
			out[i].ClusterUID, out[i].As, out[i].Session, out[i].Batch = fmt.Sprint("u", i%3), "ada@idp", "s1", "b1"
		}
	}
	return out
}

func appendAll(tb testing.TB, s *store.Store, list []fleet.Entry) {
	tb.Helper()
	err := s.Tx(tb.Context(), func(tx *store.Tx) error {
		for _, e := range list {
			if _, err := tx.AppendEntry(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// Somebody with the database in hands harms the record at 150 random places, each time in another way: the first number
// that is not what was written is named, on both engines.
func TestRecord_HarmIsNamed(t *testing.T) {
	t.Parallel()
	const n, each = 250, 25
	seed := rand.Uint64()
	both(t, func(t *testing.T, fresh place) {
		r := rand.New(rand.NewPCG(seed, 1))
		cfg := fresh(t)
		cfg.Timeout = patience
		s := open(t, cfg)
		log := audit.New(s, slog.New(slog.DiscardHandler))
		appendAll(t, s, varied(n))
		do := func(statements ...string) {
			t.Helper()
			err := s.Tx(t.Context(), func(tx *store.Tx) error {
				for _, q := range statements {
					switch rows, err := tx.Exec(q); {
					case err != nil:
						return fmt.Errorf("%s: %w", q, err)
					case rows == 0 && !strings.HasPrefix(q, "CREATE"):
						return fmt.Errorf("%s changed nothing", q)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		do(`CREATE TABLE audit_kept AS SELECT * FROM audit`)
		texts := []string{
			"actor", "via", "session", "addr", "action", "phase", "cluster", "node", "node_uid", "batch", "outcome", "reason", "detail", "prev", "hash",
			"cluster_uid", "as_identity",
		}
		for _, harm := range []struct {
			name string
			do   func(seq int64) (first int64)
		}{
			{"delete", func(seq int64) int64 {
				do(fmt.Sprint(`DELETE FROM audit WHERE seq = `, seq))
				return seq
			}},
			{"edit", func(seq int64) int64 {
				what := `at = at + 1`
				if i := r.IntN(len(texts) + 1); i < len(texts) {
					what = texts[i] + ` = ` + texts[i] + ` || 'x'`
				}
				do(fmt.Sprint(`UPDATE audit SET `, what, ` WHERE seq = `, seq))
				return seq
			}},
			{"edit, with the hash made to fit", func(seq int64) int64 {
				page, err := s.EntriesAfter(t.Context(), seq-1, 1)
				if err != nil || len(page) != 1 {
					t.Fatal(err)
				}
				page[0].Actor = "nobody"
				do(fmt.Sprintf(`UPDATE audit SET actor = 'nobody', hash = '%s' WHERE seq = %d`, page[0].Sum(), seq))
				return min(seq+1, n)
			}},
			{"swap", func(seq int64) int64 {
				other := seq%n + 1
				do(fmt.Sprint(`UPDATE audit SET seq = -1 WHERE seq = `, seq), fmt.Sprint(`UPDATE audit SET seq = `, seq, ` WHERE seq = `, other),
					fmt.Sprint(`UPDATE audit SET seq = `, other, ` WHERE seq = -1`))
				return min(seq, other)
			}},
			{"insert", func(seq int64) int64 {
				columns := strings.Join(texts, ", ") + ", at"
				do(fmt.Sprint(`UPDATE audit SET seq = -seq WHERE seq >= `, seq), `UPDATE audit SET seq = 1 - seq WHERE seq < 0`,
					fmt.Sprint(`INSERT INTO audit (seq, `, columns, `) SELECT `, seq, `, `, columns, ` FROM audit WHERE seq = `, seq%n+1+seq/n),
					fmt.Sprint(`UPDATE audit SET actor = 'nobody' WHERE seq = `, seq))
				return seq
			}},
			{"truncate", func(seq int64) int64 {
				do(fmt.Sprint(`DELETE FROM audit WHERE seq >= `, seq))
				return seq
			}},
		} {
			for range each {
				seq := r.Int64N(n) + 1
				want := harm.do(seq)
				good, err := log.Verify(t.Context())
				if broken, ok := errors.AsType[*audit.BrokenError](err); !ok || broken.Seq != want || good > n {
					t.Errorf("%s at %d (seed %d): %d good, %v; want %d named", harm.name, seq, seed, good, err, want)
				}
				do(`DELETE FROM audit WHERE seq IS NOT NULL`, `INSERT INTO audit SELECT * FROM audit_kept`)
			}
			if good, err := log.Verify(t.Context()); err != nil || good != n {
				t.Fatalf("after %s: %d, %v", harm.name, good, err)
			}
		}
	})
}

// Each filter is answered from an index: a record of years is not read to find a page.
func TestRecord_FiltersHaveIndexes(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) {
		cfg := fresh(t)
		cfg.Timeout = patience
		open(t, cfg)
		// Many entries of few people, about few clusters: hashes do not matter here.
		numbers, explain, db := `WITH RECURSIVE g(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM g WHERE i < 8000)`, `EXPLAIN QUERY PLAN `, (*sqlx.DB)(nil)
		if cfg.URL != "" {
			numbers, explain = `WITH g AS (SELECT generate_series(1, 8000) AS i)`, `EXPLAIN `
			db = sqlx.NewDb(storetest.SQL(t, cfg.URL), "pgx")
		} else {
			var err error
			if db, err = sqlx.Open("sqlite", cfg.Dir+"/kube-node-manager.db?_pragma=busy_timeout(5000)"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		for _, q := range []string{
			`INSERT INTO audit (seq, at, actor, via, session, addr, action, phase, cluster, node, node_uid, batch, outcome, reason, detail, prev, hash) ` + numbers +
				` SELECT i, i, 'p' || i % 50, '', 's' || i % 90, '', 'a' || i % 40, '', 'c' || i % 60, 'n' || i % 700, '', 'b' || i % 300, 'o' || i % 30, '', '', '', '' FROM g`,
			`ANALYZE`,
		} {
			if _, err := db.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		for index, f := range map[string]fleet.AuditFilter{
			"audit_actor": {User: "p7"}, "audit_action": {Action: "a7"}, "audit_cluster": {Cluster: "c7"}, "audit_node_name": {Node: "n7"}, "audit_batch": {Batch: "b7"},
			"audit_session": {Session: "s7"}, "audit_outcome": {Outcome: "o7"}, "audit_node": {Cluster: "c7", Node: "n7"}, "": {},
		} {
			f.Limit = 100
			query, args := store.EntriesQuery(f)
			steps := planOf(t, db, explain+db.Rebind(query), args)
			plan := strings.Join(steps, "\n")
			words := strings.FieldsFunc(plan, func(r rune) bool { return r == ' ' || r == '\n' })
			if index == "audit_node" { // few enough to be found by either
				if !slices.Contains(words, "audit_node") && !slices.Contains(words, "audit_node_name") {
					t.Errorf("%+v:\n%s", f, plan)
				}
			} else if index != "" && !slices.Contains(words, index) {
				t.Errorf("%+v is not answered by %s:\n%s", f, index, plan)
			}
			// PostgreSQL may find it cheaper to sort the few that an index found.
			if strings.Contains(plan, "TEMP B-TREE") || strings.Contains(plan, "Seq Scan") {
				t.Errorf("%+v is sorted or read as a whole:\n%s", f, plan)
			}
		}
	})
}

// planOf is what the engine says of how it would read.
func planOf(t *testing.T, db *sqlx.DB, query string, args []any) (steps []string) {
	t.Helper()
	var rows []struct {
		SQLite   string `db:"detail"`
		Postgres string `db:"QUERY PLAN"`
	}
	if err := db.Unsafe().SelectContext(t.Context(), &rows, query, args...); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		steps = append(steps, row.SQLite+row.Postgres)
	}
	return steps
}

// BenchmarkVerify checks a record of a million entries.
func BenchmarkVerify(b *testing.B) {
	const n = 1_000_000
	for _, engine := range []string{"sqlite", "postgres"} {
		b.Run(engine, func(b *testing.B) {
			cfg := store.Config{Dir: b.TempDir(), Timeout: 10 * time.Minute}
			if engine == "postgres" {
				cfg = store.Config{URL: storetest.Postgres(b).Database(b), Timeout: 10 * time.Minute}
			}
			s, err := store.Open(b.Context(), cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer func() {
				if err := s.Close(); err != nil {
					b.Error(err)
				}
			}()
			for list := range slices.Chunk(varied(n), 20_000) {
				appendAll(b, s, list)
			}
			log := audit.New(s, slog.New(slog.DiscardHandler))
			for b.Loop() {
				if good, err := log.Verify(b.Context()); err != nil || good != n {
					b.Fatal(good, err)
				}
			}
			b.ReportMetric(n/(b.Elapsed().Seconds()/float64(b.N)), "entries/s")
		})
	}
}
