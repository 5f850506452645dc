package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// kind wraps an error of the driver with the kind that it is to everybody else. This is the only place that knows the
// codes of an engine. An error that has a kind already passes unchanged, as does nil.
func kind(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case known(err):
		return err
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("%s: %w: %w", doing, fleet.ErrNotFound, err)
	case errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded): // which makes us cancel things
		return fmt.Errorf("%s: %w", doing, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, sql.ErrConnDone), errors.Is(err, sql.ErrTxDone),
		errors.Is(err, driver.ErrBadConn), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: %w: %w", doing, fleet.ErrUnavailable, err)
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return fmt.Errorf("%s: %w: %w", doing, fleet.ErrUnavailable, err)
	}
	if k := postgresKind(err); k != nil {
		return fmt.Errorf("%s: %w: %w", doing, k, err)
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() {
		case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
			return fmt.Errorf("%s: %w: %w", doing, fleet.ErrConflict, err)
		}
		switch e.Code() & 0xff { // the extended code keeps the primary one in its low byte
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY,
			sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB,
			sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM:
			return fmt.Errorf("%s: %w: %w", doing, fleet.ErrUnavailable, err)
		}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// known tells whether err carries a kind already.
func known(err error) bool {
	for _, k := range []error{
		fleet.ErrNotFound, fleet.ErrInvalid, fleet.ErrUnauthenticated, fleet.ErrForbidden, fleet.ErrConflict,
		fleet.ErrBlocked, fleet.ErrUnavailable, fleet.ErrTooMany, fleet.ErrTooLarge,
	} {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}

// busy tells whether another process holds the lock that the statement needs.
func busy(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && e.Code()&0xff == sqlite3.SQLITE_BUSY
}
