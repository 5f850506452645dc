package store

import (
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// What PostgreSQL says has the kind that the same trouble has on SQLite.
func TestKind_OfPostgres(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]error{
		"23505": fleet.ErrConflict,    // unique_violation
		"23503": fleet.ErrConflict,    // foreign_key_violation
		"57P01": fleet.ErrUnavailable, // admin_shutdown
		"57014": fleet.ErrUnavailable, // query_canceled
		"53100": fleet.ErrUnavailable, // disk_full
		"53300": fleet.ErrUnavailable, // too_many_connections
		"40P01": fleet.ErrUnavailable, // deadlock_detected
		"40001": fleet.ErrUnavailable, // serialization_failure
		"55P03": fleet.ErrUnavailable, // lock_not_available
		"25006": fleet.ErrUnavailable, // read_only_sql_transaction
		"25P03": fleet.ErrUnavailable, // idle_in_transaction_session_timeout
		"08006": fleet.ErrUnavailable, // connection_failure
		"58030": fleet.ErrUnavailable, // io_error
		"XX001": fleet.ErrUnavailable, // data_corrupted
		"42601": nil,                  // syntax_error: our mistake
		"23514": nil,                  // check_violation
		"":      nil,
	} {
		err := kind("doing", fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: code}))
		for _, k := range []error{fleet.ErrConflict, fleet.ErrUnavailable} {
			if got := errors.Is(err, k); got != (k == want) { //nolint:errorlint // kinds are values
				t.Errorf("%s is %v: %v", code, k, got)
			}
		}
	}
}
