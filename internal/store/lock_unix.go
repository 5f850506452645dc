//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// lockServer takes the directory for one server. The kernel releases the lock when the process ends, however it ends.
func lockServer(dir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, "server.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 16)) // only makes the sentence better
		closeErr := f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", dir, err), closeErr)
		}
		return nil, errors.Join(fmt.Errorf("another server (process %s) uses %s: %w",
			strings.TrimSpace(string(holder)), dir, fleet.ErrConflict), closeErr)
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// lockMigration waits for the lock.
func lockMigration(ctx context.Context, dir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, "upgrade.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flockWait(ctx, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// turnstile lets the processes that write to one database take turns. SQLite's own lock is not fair: on a machine with
// more work than processors, a process that writes one transaction after the other holds it whenever anybody else gets
// to look. Who waits for it here holds up the next transaction of everybody else.
type turnstile struct{ f *os.File }

func openTurnstile(dir string) (*turnstile, error) {
	f, err := os.OpenFile(filepath.Join(dir, "writer.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &turnstile{f}, nil
}

// enter waits to be next. Only one goroutine of a process may be in here: the lock belongs to the open file.
func (t *turnstile) enter(ctx context.Context) (leave func() error, err error) {
	if err := flockWait(ctx, t.f); err != nil {
		return nil, err
	}
	return func() error { return syscall.Flock(int(t.f.Fd()), syscall.LOCK_UN) }, nil
}

func (t *turnstile) Close() error { return t.f.Close() }

func flockWait(ctx context.Context, f *os.File) error {
	return again(ctx, func() (bool, error) {
		err := flock(f)
		return errors.Is(err, syscall.EWOULDBLOCK), err
	})
}

func flock(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
