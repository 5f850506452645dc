package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// defaultLimit bounds every call unless Config says otherwise.
const defaultLimit = 5 * time.Second

// Config says where the data is and how it is opened.
type Config struct {
	// URL is the address of a PostgreSQL database, postgres://…; with "" the data is in SQLite in Dir. Several servers
	// may use one PostgreSQL database at once.
	URL string
	// Dir holds the SQLite database. It is made with mode 0700 if it is missing; the files in it have mode 0600.
	Dir string
	// Exclusive is for the server on SQLite: it holds the directory until Close and is refused with ErrConflict while
	// another server does. Commands that work beside a running server leave it false.
	Exclusive bool
	// Timeout bounds every call; 0 means five seconds.
	Timeout time.Duration
	// Logger is told about migrations; nil discards.
	Logger *slog.Logger
	// Committed is told after each transaction how many calls it was for; it must not block. Nil: nobody.
	Committed func(calls int)
	// ClusterUID tells which cluster has a name now, "" if that is not known. It is asked for each entry of the record that
	// names a cluster and not which, in the middle of a transaction: it must answer from memory. Nil: nobody knows.
	ClusterUID func(cluster string) string
}

// Store is the database. Make one with Open and end it with Close.
type Store struct {
	engine  engine
	write   *sqlx.DB // one connection, of whoever has the turn
	turns   turns
	told    func(calls int)
	uidOf   func(cluster string) string
	read    *sqlx.DB
	timeout time.Duration
	id      string
}

// engine is what SQLite and PostgreSQL do each in their own way.
type engine interface {
	// open migrates the database and opens the connections for writing and reading.
	open(ctx context.Context, s *Store, cfg Config) error
	// begin starts a transaction that writes, and says what time it is by the clock that leases are measured by. Once
	// begun, nobody else's begins: not here and not in another process. It waits for that until ctx ends; the transaction
	// lasts until life does, and while it does nothing for as long as limit.
	begin(ctx, life context.Context, conn *sqlx.Conn, limit time.Duration) (*sqlx.Tx, time.Time, error)
	// savepoint begins another part of a transaction, and says what time it is by the same clock. More tells that there
	// was one before.
	savepoint(ctx context.Context, conn *sqlx.Conn, tx *sqlx.Tx, more bool) (time.Time, error)
	// snapshot are the options of a transaction that reads one state of the database.
	snapshot() *sql.TxOptions
	// now is the clock that leases are measured by.
	now(ctx context.Context, read *sqlx.DB) (time.Time, error)
	// json makes a column that holds JSON as text one that -> and ->> can be asked of.
	json(column string) string
	// close releases what is left when the connections are closed.
	close() error
}

// Open opens the database, makes or upgrades its tables and returns it ready for use. A database that a newer version
// of the program has upgraded is refused.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultLimit
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Committed == nil {
		cfg.Committed = func(int) {}
	}
	if cfg.ClusterUID == nil {
		cfg.ClusterUID = func(string) string { return "" }
	}
	// Opening waits for other processes as long as its migrations do, however impatient the calls after it are.
	s := &Store{timeout: max(cfg.Timeout, openLimit), engine: &sqliteEngine{}, told: cfg.Committed, uidOf: cfg.ClusterUID}
	if cfg.URL != "" {
		s.engine = &postgresEngine{}
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening store: %w", errors.Join(err, s.Close()))
		}
	}()
	if err := s.engine.open(ctx, s, cfg); err != nil {
		return nil, err
	}
	if s.id, err = s.installation(ctx); err != nil {
		return nil, err
	}
	s.timeout = cfg.Timeout
	return s, nil
}

// Close releases the database.
func (s *Store) Close() error {
	var errs []error
	for _, db := range []*sqlx.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(append(errs, s.engine.close())...)
}

// Ping asks the database for an answer.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	return kind("asking the store", s.get(ctx, &one, `SELECT 1`))
}

// InstallationID names this installation; it is made with the database and never changes.
func (s *Store) InstallationID() string { return s.id }

func (s *Store) installation(ctx context.Context) (id string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.Exec(`INSERT INTO meta (name, value) VALUES ('installation', ?) ON CONFLICT (name) DO NOTHING`,
			NewID()); err != nil {
			return err
		}
		return tx.Get(&id, `SELECT value FROM meta WHERE name = 'installation'`)
	})
	return id, err
}

// Tx is one call's part of a transaction that writes. It belongs to the function it was given to and must not be used
// after that returned.
type Tx struct {
	ctx    context.Context //nolint:containedctx // a statement of a transaction can have no other context than the transaction
	tx     *sqlx.Tx
	now    time.Time  // when it began to write, by the clock that leases are measured by
	record *recordEnd // shared by all calls of the transaction
	uidOf  func(cluster string) string
	failed error // of the first statement that failed
}

// Tx runs fn, and what it wrote is there when Tx returns nil; it is undone if fn returns an error, panics, or a statement
// of it failed. Calls run one after the other, whichever engine, process or replica they are of, and in the order of
// asking: what fn reads stays true until it is committed. fn must do nothing but database work.
//
// Calls that wait at the same time share one transaction, and one wait for the disk: each sees what those before it
// wrote, and what a call did that failed is undone alone. None of them returns before the transaction is committed. If
// that fails, it fails for all of them.
//
// Who waits for the turn leaves with the context. Once fn has begun, an end of the context cuts its statements short
// only while nobody else has a part in the transaction. A call that is cancelled then is told what became of it all the
// same. One whose deadline passes gets ErrUnavailable, a second later at most if the database is silent, and what it wrote
// may be there or not.
func (s *Store) Tx(ctx context.Context, fn func(*Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	g, err := s.turns.wait(ctx)
	if err != nil {
		return kind("waiting to write", err)
	}
	if err := ctx.Err(); err != nil { // the turn came as the time was up
		s.handOn(ctx, g)
		return kind("waiting to write", err)
	}
	if g == nil {
		if g, err = s.begin(ctx); err != nil {
			s.handOn(ctx, nil)
			return err
		}
	}
	return g.outcome(ctx, s.part(ctx, g, fn))
}

// part runs fn in the transaction and hands on, whatever fn does.
func (s *Store) part(ctx context.Context, g *group, fn func(*Tx) error) error {
	defer s.handOn(ctx, g)
	return g.run(ctx, fn)
}

// handOn gives the transaction to the next call that waits, or ends it and gives the turn alone.
func (s *Store) handOn(ctx context.Context, g *group) {
	if g != nil {
		if g.open() && s.turns.pass(g) {
			return
		}
		if g.end(ctx) {
			s.told(g.calls)
		}
	}
	s.turns.pass(nil)
}

// Exec runs a statement written with question marks and tells how many rows it changed.
func (t *Tx) Exec(query string, args ...any) (rows int64, err error) {
	res, err := t.tx.ExecContext(t.ctx, t.tx.Rebind(query), args...)
	if err != nil {
		return 0, t.fail("writing", err)
	}
	rows, err = res.RowsAffected()
	return rows, t.fail("writing", err)
}

// Get reads one row into dest, ErrNotFound if there is none.
func (t *Tx) Get(dest any, query string, args ...any) error {
	return t.fail("reading", t.tx.GetContext(t.ctx, dest, t.tx.Rebind(query), args...))
}

// Select reads rows into dest, a pointer to a slice.
func (t *Tx) Select(dest any, query string, args ...any) error {
	return t.fail("reading", t.tx.SelectContext(t.ctx, dest, t.tx.Rebind(query), args...))
}

// fail gives an error its kind, and notes that nothing of what was done can be kept. That there is no such row is an
// answer.
func (t *Tx) fail(doing string, err error) error {
	failed := err != nil && !errors.Is(err, sql.ErrNoRows)
	err = kind(doing, err)
	if failed && t.failed == nil {
		t.failed = err
	}
	return err
}

// get reads one row outside a transaction.
func (s *Store) get(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return kind("reading", s.read.GetContext(ctx, dest, s.read.Rebind(query), args...))
}

// list reads rows outside a transaction into dest, a pointer to a slice.
func (s *Store) list(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return kind("reading", s.read.SelectContext(ctx, dest, s.read.Rebind(query), args...))
}

// now is what time it is by the clock that leases are measured by.
func (s *Store) now(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	now, err := s.engine.now(ctx, s.read)
	return now, kind("reading the clock", err)
}

// view runs fn on one consistent state of the database.
func (s *Store) view(ctx context.Context, fn func(*Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	tx, err := s.read.BeginTxx(ctx, s.engine.snapshot())
	if err != nil {
		return kind("reading", err)
	}
	defer func() {
		_ = tx.Rollback() // nothing was written
	}()
	return fn(&Tx{ctx: ctx, tx: tx})
}

// micros is how times are stored.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// moment is the time that micros stored.
func moment(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// notFound is what a lookup by name answers with.
func notFound(what, name string) error {
	return fmt.Errorf("%s %q: %w", what, name, fleet.ErrNotFound)
}
