package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrationLimit bounds how long a start waits for another process that is upgrading the same database.
const migrationLimit = time.Minute

// openLimit bounds each call while opening: others may be upgrading the database, or just closing it.
const openLimit = 10 * time.Second

// ErrNewer says that a newer version of the program has upgraded the database, which this one would damage.
var ErrNewer = errors.New("the database was upgraded by a newer version of the program")

// migrate brings the tables up to date: each step is a transaction, so that a process that is killed leaves the step done
// or not begun. Whoever calls sees to it that nobody else does.
func migrate(ctx context.Context, dialect goose.Dialect, db *sql.DB, log *slog.Logger) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("reading migrations: %w", err)
	}
	p, err := goose.NewProvider(dialect, db, sub, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("reading migrations: %w", err)
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return kind("reading the database version", err)
	}
	if current > target {
		return fmt.Errorf("%w: it has version %d, this program knows %d", ErrNewer, current, target)
	}
	done, err := p.Up(ctx)
	if err != nil {
		return kind("upgrading the database", err)
	}
	if len(done) > 0 {
		log.InfoContext(ctx, "database upgraded", "from", current, "to", target)
	}
	return nil
}
