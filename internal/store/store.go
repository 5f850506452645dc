package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	databaseFile = "kube-node-manager.db"
	defaultLimit = 5 * time.Second
	// readers bounds the connections that only read. Each costs a page cache of two megabytes at most.
	readers = 4

	// SQLite waits for the lock of another process without an eye on any context. So it may wait for an instant only,
	// and begin asks again. Readers hardly ever wait: only while the write-ahead log is made or removed.
	busyWriter  = 5 * time.Millisecond
	busyReader  = time.Second
	busyUpgrade = 10 * time.Second
)

// Config says where the data is and how it is opened.
type Config struct {
	// Dir holds the database. It is made with mode 0700 if it is missing; the files in it have mode 0600.
	Dir string
	// Exclusive is for the server: it holds the directory until Close and is refused with ErrConflict while another
	// server does. Commands that work beside a running server leave it false.
	Exclusive bool
	// Timeout bounds every call; 0 means five seconds.
	Timeout time.Duration
	// Logger is told about migrations; nil discards.
	Logger *slog.Logger
}

// Store is the database. Make one with Open and end it with Close.
type Store struct {
	write   *sqlx.DB // one connection: writers queue here, under their context, and not inside SQLite
	read    *sqlx.DB // refuses to write
	timeout time.Duration
	turns   *turnstile
	lock    io.Closer // nil unless exclusive
	id      string
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
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	// Opening waits for other processes as long as its migrations do, however impatient the calls after it are.
	s := &Store{timeout: max(cfg.Timeout, busyUpgrade)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if cfg.Exclusive {
		if s.lock, err = lockServer(dir); err != nil {
			return nil, fmt.Errorf("opening store: %w", err)
		}
	}
	path := filepath.Join(dir, databaseFile)
	if err := privateFile(path); err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	if err := migrate(ctx, dir, path, cfg.Logger); err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	if s.turns, err = openTurnstile(dir); err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	if s.write, err = openSQLite(path, busyWriter, "_txlock=immediate"); err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = openSQLite(path, busyReader, "_pragma=query_only(1)"); err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	if s.id, err = s.installation(ctx); err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	s.timeout = cfg.Timeout
	return s, nil
}

// privateFile makes the file before SQLite can, which would use the umask; its companions inherit the mode.
func privateFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = f.Chmod(0o600)
	}
	return errors.Join(err, f.Close())
}

// openSQLite opens lazily. The write-ahead log lets readers and the one writer work side by side; synchronous=FULL
// makes a committed intent survive a loss of power, which NORMAL does not promise.
func openSQLite(path string, busy time.Duration, extra string) (*sqlx.DB, error) {
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}).String() + "?" + strings.Join([]string{
		fmt.Sprintf("_pragma=busy_timeout(%d)", busy.Milliseconds()), "_pragma=journal_mode(WAL)", "_pragma=synchronous(FULL)",
		"_pragma=foreign_keys(1)", "_pragma=secure_delete(1)", extra,
	}, "&")
	db, err := sqlx.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	db.SetConnMaxLifetime(0)
	db.SetConnMaxIdleTime(0)
	return db, nil
}

// Close releases the database and the directory. Calls in flight are waited for.
func (s *Store) Close() error {
	var errs []error
	if s.read != nil {
		errs = append(errs, s.read.Close())
	}
	if s.write != nil {
		errs = append(errs, s.write.Close())
	}
	if s.turns != nil {
		errs = append(errs, s.turns.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
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

// Tx is one transaction that writes. Its statements run under the transaction's own context and deadline. It belongs to
// the function it was given to and must not be used after that returned.
type Tx struct {
	ctx context.Context //nolint:containedctx // a statement of a transaction can have no other context than the transaction
	tx  *sqlx.Tx
}

// Tx runs fn in one transaction, which is committed if fn returns nil and rolled back otherwise. Transactions run one
// after the other; fn must do nothing but database work.
func (s *Store) Tx(ctx context.Context, fn func(*Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	conn, err := s.write.Connx(ctx)
	if err != nil {
		return kind("beginning a transaction", err)
	}
	defer func() {
		_ = conn.Close() // gives it back; a connection that went bad has said so before
	}()
	tx, err := s.begin(ctx, conn)
	if err != nil {
		return kind("beginning a transaction", err)
	}
	defer func() {
		// After a commit this says that the transaction is done; after anything else the rollback is what is wanted, and
		// the reason for it is already on its way to the caller.
		_ = tx.Rollback()
	}()
	if err := fn(&Tx{ctx: ctx, tx: tx}); err != nil {
		return err
	}
	return kind("committing a transaction", tx.Commit())
}

// begin takes the write lock, which is where another process can stand in the way: once begun, nothing can. Whoever
// holds the only connection that writes is the one of this process who may wait at the turnstile.
func (s *Store) begin(ctx context.Context, conn *sqlx.Conn) (_ *sqlx.Tx, err error) {
	leave, err := s.turns.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, leave()) }()
	var tx *sqlx.Tx
	err = again(ctx, func() (bool, error) {
		var err error
		tx, err = conn.BeginTxx(ctx, nil)
		return busy(err), err
	})
	return tx, err
}

// again calls try until it is not told to, or the context ends: both locks that other processes can hold have no way of
// waiting that a context could end.
func again(ctx context.Context, try func() (bool, error)) error {
	var next *time.Ticker
	for {
		more, err := try()
		if !more {
			return err
		}
		if next == nil {
			next = time.NewTicker(time.Millisecond)
			defer next.Stop()
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-next.C:
		}
	}
}

// Exec runs a statement written with question marks and tells how many rows it changed.
func (t *Tx) Exec(query string, args ...any) (rows int64, err error) {
	res, err := t.tx.ExecContext(t.ctx, t.tx.Rebind(query), args...)
	if err != nil {
		return 0, kind("writing", err)
	}
	rows, err = res.RowsAffected()
	return rows, kind("writing", err)
}

// Get reads one row into dest, ErrNotFound if there is none.
func (t *Tx) Get(dest any, query string, args ...any) error {
	return kind("reading", t.tx.GetContext(t.ctx, dest, t.tx.Rebind(query), args...))
}

// Select reads rows into dest, a pointer to a slice.
func (t *Tx) Select(dest any, query string, args ...any) error {
	return kind("reading", t.tx.SelectContext(t.ctx, dest, t.tx.Rebind(query), args...))
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

// view runs fn on one consistent state of the database.
func (s *Store) view(ctx context.Context, fn func(*Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	tx, err := s.read.BeginTxx(ctx, &sql.TxOptions{ReadOnly: true})
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
