//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// TestTx_WhoWaitsLongestIsNext: of two processes that wait for a third, the one that came first writes first, however
// often the other asks. A server that writes without a pause cannot keep a command out.
func TestTx_WhoWaitsLongestIsNext(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := store.Config{Dir: dir, Timeout: time.Minute}
	holder, first, second := open(t, cfg), open(t, cfg), open(t, cfg)
	turnstile, err := os.OpenFile(filepath.Join(dir, "writer.lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = turnstile.Close() }()
	fd := int(turnstile.Fd())

	ctx := context.WithoutCancel(t.Context())
	errs := make(chan error, 2)
	write := func(s *store.Store, name string) {
		_, err := s.AppendEntry(ctx, fleet.Entry{Action: name})
		errs <- err
	}
	err = holder.Tx(t.Context(), func(*store.Tx) error {
		go write(first, "first")
		for t.Context().Err() == nil { // until the first waits inside
			err := syscall.Flock(fd, syscall.LOCK_SH|syscall.LOCK_NB)
			if errors.Is(err, syscall.EWOULDBLOCK) {
				break
			}
			if err := errors.Join(err, syscall.Flock(fd, syscall.LOCK_UN)); err != nil {
				return err
			}
		}
		go write(second, "second")
		return nil
	})
	if err := errors.Join(err, <-errs, <-errs); err != nil {
		t.Fatal(err)
	}
	got, err := holder.EntriesAfter(t.Context(), 0, 10)
	if err != nil || len(got) != 2 || got[0].Action != "first" || got[1].Action != "second" {
		t.Errorf("%+v, %v", got, err)
	}
}
