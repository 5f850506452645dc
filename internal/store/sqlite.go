package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
)

const (
	databaseFile = "kube-node-manager.db"
	// readers bounds the connections that only read. Each costs a page cache of two megabytes at most.
	readers = 4

	// SQLite waits for the lock of another process without an eye on any context. So it may wait for an instant only,
	// and begin asks again. Readers hardly ever wait: only while the write-ahead log is made or removed.
	busyWriter  = 5 * time.Millisecond
	busyReader  = time.Second
	busyUpgrade = openLimit
)

// sqliteEngine is a file that belongs to one machine.
type sqliteEngine struct {
	turns *turnstile
	lock  io.Closer // nil unless exclusive
}

// open implements engine.
func (e *sqliteEngine) open(ctx context.Context, s *Store, cfg Config) error {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if cfg.Exclusive {
		if e.lock, err = lockServer(dir); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, databaseFile)
	if err := privateFile(path); err != nil {
		return err
	}
	if err := e.migrate(ctx, dir, path, cfg); err != nil {
		return err
	}
	if e.turns, err = openTurnstile(dir); err != nil {
		return err
	}
	if s.write, err = openSQLite(path, busyWriter, "_txlock=immediate"); err != nil {
		return err
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = openSQLite(path, busyReader, "_pragma=query_only(1)"); err != nil { // refuses to write
		return err
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	return nil
}

// migrate brings the tables up to date. A lock in dir keeps two processes that start together from doing it twice.
func (e *sqliteEngine) migrate(ctx context.Context, dir, path string, cfg Config) (err error) {
	ctx, cancel := context.WithTimeout(ctx, migrationLimit)
	defer cancel()
	unlock, err := lockMigration(ctx, dir)
	if err != nil {
		return fmt.Errorf("waiting to upgrade the database: %w", err)
	}
	defer func() { err = errors.Join(err, unlock.Close()) }()
	db, err := openSQLite(path, busyUpgrade, "_txlock=immediate")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return migrate(ctx, goose.DialectSQLite3, db.DB, cfg.Logger)
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
// makes a committed intent survive a loss of power, which NORMAL does not promise. Nothing that is needed only to undo
// something goes to a file outside the directory: there may be no place for it, and it would be for others to read.
func openSQLite(path string, busy time.Duration, extra string) (*sqlx.DB, error) {
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}).String() + "?" + strings.Join([]string{
		fmt.Sprintf("_pragma=busy_timeout(%d)", busy.Milliseconds()), "_pragma=journal_mode(WAL)", "_pragma=synchronous(FULL)",
		"_pragma=foreign_keys(1)", "_pragma=secure_delete(1)", "_pragma=temp_store(memory)", extra,
	}, "&")
	db, err := sqlx.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	db.SetConnMaxLifetime(0)
	db.SetConnMaxIdleTime(0)
	return db, nil
}

// begin takes the write lock, which is where another process can stand in the way: once begun, nothing can. Whoever
// holds the only connection that writes is the one of this process who may wait at the turnstile.
func (e *sqliteEngine) begin(ctx, life context.Context, conn *sqlx.Conn, _ time.Duration) (tx *sqlx.Tx, now time.Time, err error) {
	leave, err := e.turns.enter(ctx)
	if err != nil {
		return nil, now, err
	}
	defer func() { err = errors.Join(err, leave()) }()
	err = again(ctx, func() (bool, error) {
		var err error
		tx, err = conn.BeginTxx(life, nil)
		return busy(err), err
	})
	return tx, time.Now(), err
}

// savepoint implements engine. One is open at a time: what they keep for undoing is in memory.
func (*sqliteEngine) savepoint(ctx context.Context, _ *sqlx.Conn, tx *sqlx.Tx, more bool) (time.Time, error) {
	query := `SAVEPOINT part`
	if more {
		query = `RELEASE SAVEPOINT part; SAVEPOINT part`
	}
	_, err := tx.ExecContext(ctx, query)
	return time.Now(), err
}

// snapshot implements engine: a transaction of SQLite reads one state from its first statement on.
func (*sqliteEngine) snapshot() *sql.TxOptions { return &sql.TxOptions{ReadOnly: true} }

// now implements engine: there is one machine and it has one clock.
func (*sqliteEngine) now(context.Context, *sqlx.DB) (time.Time, error) { return time.Now(), nil }

func (*sqliteEngine) json(column string) string { return column }

func (e *sqliteEngine) close() error {
	var errs []error
	if e.turns != nil {
		errs = append(errs, e.turns.Close())
	}
	if e.lock != nil {
		errs = append(errs, e.lock.Close())
	}
	return errors.Join(errs...)
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
