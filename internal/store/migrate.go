package store

import (
	"context"
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

// ErrNewer says that a newer version of the program has upgraded the database, which this one would damage.
var ErrNewer = errors.New("the database was upgraded by a newer version of the program")

// migrate brings the tables up to date. A lock in dir keeps two processes that start together from doing it twice.
func migrate(ctx context.Context, dir, path string, log *slog.Logger) (err error) {
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
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("reading migrations: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db.DB, sub, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("reading migrations: %w", err)
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("reading the database version: %w", err)
	}
	if current > target {
		return fmt.Errorf("%w: it has version %d, this program knows %d", ErrNewer, current, target)
	}
	done, err := p.Up(ctx)
	if err != nil {
		return fmt.Errorf("upgrading the database: %w", err)
	}
	if len(done) > 0 {
		log.InfoContext(ctx, "database upgraded", "from", current, "to", target)
	}
	return nil
}
