package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	// postgresReaders bounds the connections that only read. With the one that writes, a replica has nine at most.
	postgresReaders = 8
	// A connection that nobody needs is closed, and every one is made anew now and then: after a failover the name of
	// the server may lead elsewhere.
	postgresIdle = 5 * time.Minute
	postgresLife = 30 * time.Minute

	// lockClass is the first key of our advisory locks: "knm". They are locks of a transaction: such a one ends with
	// its transaction, however that ends, and works behind a pooler that lends connections for one transaction each.
	lockClass = 0x6b6e6d
)

// clock is the time of the server in microseconds.
const clock = `(extract(epoch FROM clock_timestamp()) * 1000000)::bigint`

// takeTurn is the first statement of every transaction that writes: whoever has the lock is the only one. The lock
// belongs to the table, so that two installations in one database do not wait for each other. It is granted in the order
// of asking. At the default isolation, which sees at each statement what is committed, everything after this statement
// sees all that the transactions before have done: they run one after the other, none is ever asked to try again, and
// the head of the audit record has one reader and writer at a time.
//
// A process that freezes, or whose network goes away, must not keep the lock: the server ends its session as soon as it
// has said nothing for as long as a transaction may last at all.
const takeTurn = `SELECT set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $1, true),
	pg_advisory_xact_lock($2::int, 'audit_head'::regclass::oid::int)::text, ` + clock

// postgresEngine is a server that several replicas share.
type postgresEngine struct {
	sockets *sockets
}

// open implements engine.
func (e *postgresEngine) open(ctx context.Context, s *Store, cfg Config) error {
	pc, err := parsePostgres(cfg.URL)
	if err != nil {
		return err
	}
	if pc.ConnectTimeout == 0 || pc.ConnectTimeout > openLimit {
		pc.ConnectTimeout = openLimit // of what is connected in advance; whoever waits for it has a deadline of their own
	}
	if pc.RuntimeParams["application_name"] == "" {
		pc.RuntimeParams["application_name"] = "kube-node-manager"
	}
	e.sockets = newSockets(pc.DialFunc)
	pc.DialFunc = e.sockets.dialContext
	if err := e.migrate(ctx, *pc, cfg.Logger); err != nil {
		return err
	}
	s.write, s.read = openPostgres(*pc, 1), openPostgres(*pc, postgresReaders)
	return nil
}

// parsePostgres reads the address. What is wrong with it is not repeated: there is a password in it.
func parsePostgres(address string) (*pgx.ConnConfig, error) {
	pc, err := pgx.ParseConfig(address)
	if err == nil {
		return pc, nil
	}
	if file, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, fmt.Errorf("reading a file that the address of the database names: %w", file)
	}
	return nil, fmt.Errorf("the address of the database is not one of PostgreSQL "+
		"(special characters of a password are written as %%40 and the like): %w", fleet.ErrInvalid)
}

// openPostgres opens lazily.
func openPostgres(pc pgx.ConnConfig, most int) *sqlx.DB {
	db := sqlx.NewDb(stdlib.OpenDB(pc), "pgx")
	db.SetMaxOpenConns(most)
	db.SetMaxIdleConns(most)
	db.SetConnMaxIdleTime(postgresIdle)
	db.SetConnMaxLifetime(postgresLife)
	return db
}

// migrate brings the tables up to date. Of two processes that start together the second waits for the first: the lock is
// held by a transaction of its own, for as long as its connection lives.
func (e *postgresEngine) migrate(ctx context.Context, pc pgx.ConnConfig, log *slog.Logger) (err error) {
	ctx, cancel := context.WithTimeout(ctx, migrationLimit)
	defer cancel()
	db := openPostgres(pc, 2)
	defer func() {
		// What was to be done is committed by then, or has failed already: a peer that hangs up first is no failure of it.
		if cerr := db.Close(); cerr != nil {
			log.Debug("closing the connections of the upgrade", "err", cerr)
		}
	}()
	lock, err := db.BeginTx(ctx, nil)
	if err != nil {
		return kind("connecting to the database", err)
	}
	defer func() {
		_ = lock.Rollback() // which releases it; if the connection is gone, so is the lock
	}()
	ms := strconv.FormatInt(migrationLimit.Milliseconds(), 10)
	var encoding string
	err = lock.QueryRowContext(ctx, `SELECT set_config('lock_timeout', $1, true) ||
		set_config('idle_in_transaction_session_timeout', $1, true) || pg_advisory_xact_lock($2::int, 0)::text`,
		ms, lockClass).Scan(&encoding)
	if err == nil {
		err = lock.QueryRowContext(ctx, `SHOW server_encoding`).Scan(&encoding)
	}
	if err != nil {
		return kind("waiting to upgrade the database", err)
	}
	if encoding != "UTF8" {
		return fmt.Errorf("the database keeps text as %s, which loses some of it: make one with ENCODING 'UTF8': %w",
			encoding, fleet.ErrInvalid)
	}
	return migrate(ctx, goose.DialectPostgres, db.DB, log)
}

// begin implements engine.
func (e *postgresEngine) begin(ctx, life context.Context, conn *sqlx.Conn, limit time.Duration) (_ *sqlx.Tx, now time.Time, err error) {
	tx, err := conn.BeginTxx(life, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return nil, now, err
	}
	var ignored string
	var us int64
	ms := strconv.FormatInt(max(limit.Milliseconds(), 1), 10)
	if err := tx.QueryRowContext(ctx, takeTurn, ms, lockClass).Scan(&ignored, &ignored, &ignored, &us); err != nil {
		_ = tx.Rollback() // nothing was done, and the reason why is on its way
		return nil, now, err
	}
	return tx, moment(us), nil
}

// savepoint implements engine. It asks once for all there is to ask, which database/sql has no words for.
func (*postgresEngine) savepoint(ctx context.Context, conn *sqlx.Conn, _ *sqlx.Tx, more bool) (now time.Time, err error) {
	var us int64
	batch := &pgx.Batch{}
	if more {
		batch.Queue(`RELEASE SAVEPOINT part`)
	}
	batch.Queue(`SAVEPOINT part`)
	batch.Queue(`SELECT ` + clock).QueryRow(func(row pgx.Row) error { return row.Scan(&us) })
	err = conn.Raw(func(driver any) error {
		c, ok := driver.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("the connection is a %T", driver)
		}
		return c.Conn().SendBatch(ctx, batch).Close()
	})
	return moment(us), err
}

// snapshot implements engine.
func (*postgresEngine) snapshot() *sql.TxOptions {
	return &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
}

// now implements engine: the replicas have a clock each, and the database is what they share.
func (*postgresEngine) now(ctx context.Context, read *sqlx.DB) (time.Time, error) {
	var us int64
	err := read.GetContext(ctx, &us, `SELECT `+clock)
	return moment(us), err
}

func (*postgresEngine) json(column string) string { return column + "::json" }

func (e *postgresEngine) close() error {
	if e.sockets == nil {
		return nil
	}
	return e.sockets.close()
}

// postgresKind is the kind of an error of the driver, nil if it has none. The classes are those of the standard:
// https://www.postgresql.org/docs/current/errcodes-appendix.html.
func postgresKind(err error) error {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok || errors.Is(err, pgconn.ErrConnClosed) {
		return fleet.ErrUnavailable // whatever the reason
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || len(e.Code) != 5 {
		return nil
	}
	switch e.Code {
	case "23505", "23503": // unique, foreign key
		return fleet.ErrConflict
	case "25006", "25P03": // a server that only reads, as after a failover; a transaction that said nothing for too long
		return fleet.ErrUnavailable
	}
	switch e.Code[:2] {
	case "08", // connection
		"40", "55", // a deadlock, a lock that was not got in time: of sessions that are not ours
		"53", "57", "58", // no space, no memory; being shut down, cancelled; system
		"XX": // corrupted
		return fleet.ErrUnavailable
	}
	return nil
}
