package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(asChild); role != "" {
		if err := children[role](os.Getenv(childURL)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(storetest.Runner{M: m})
}

// place makes a new database and says where it is.
type place func(t *testing.T) store.Config

// both runs a test on each engine.
func both(t *testing.T, test func(t *testing.T, fresh place)) {
	for name, fresh := range map[string]place{
		"sqlite":   func(t *testing.T) store.Config { return store.Config{Dir: t.TempDir()} },
		"postgres": func(t *testing.T) store.Config { return store.Config{URL: storetest.Postgres(t).Database(t)} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, fresh)
		})
	}
}

func open(t *testing.T, cfg store.Config) *store.Store {
	t.Helper()
	if cfg.Dir == "" && cfg.URL == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestOpen_FilesArePrivate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a %41?b=c", "data")
	s := open(t, store.Config{Dir: dir, Exclusive: true})
	if _, err := s.AppendEntry(t.Context(), fleet.Entry{Action: "x"}); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files++
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 5 { // directory, database, its log and index, lock
		t.Errorf("saw only %d files: the database is somewhere else", files)
	}
}

func TestOpen_NarrowsAWideDatabase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "kube-node-manager.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	open(t, store.Config{Dir: dir})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode is %v", got)
	}
}

func TestOpen_SecondServerIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := store.Open(t.Context(), store.Config{Dir: dir, Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), store.Config{Dir: dir, Exclusive: true}); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("second server: %v", err)
	}
	command := open(t, store.Config{Dir: dir}) // commands work beside a server
	if command.InstallationID() != first.InstallationID() {
		t.Error("two handles of one database disagree about the installation")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, store.Config{Dir: dir, Exclusive: true})
}

func TestOpen_TogetherUpgradesOnce(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) {
		cfg := fresh(t)
		if cfg.URL != "" {
			cfg.URL = storetest.Postgres(t).Empty(t, "")
		}
		const n = 8
		errs := make(chan error, n)
		for range n {
			go func() {
				s, err := store.Open(context.WithoutCancel(t.Context()), cfg)
				if err == nil {
					err = s.Close()
				}
				errs <- err
			}()
		}
		for range n {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		var twice int
		err := open(t, cfg).Tx(t.Context(), func(tx *store.Tx) error {
			return tx.Get(&twice, `SELECT COUNT(*) - COUNT(DISTINCT version_id) FROM goose_db_version`)
		})
		if err != nil || twice != 0 {
			t.Errorf("%d upgrades were made twice, %v", twice, err)
		}
	})
}

func TestTx_RollsBackOnErrorAndPanic(t *testing.T) {
	t.Parallel()
	both(t, rollsBack)
}

func rollsBack(t *testing.T, fresh place) {
	s := open(t, fresh(t))
	boom := errors.New("boom")
	err := s.Tx(t.Context(), func(tx *store.Tx) error {
		if _, err := tx.AppendEntry(fleet.Entry{Action: "a"}); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = s.Tx(t.Context(), func(tx *store.Tx) error {
			if _, err := tx.AppendEntry(fleet.Entry{Action: "b"}); err != nil {
				return err
			}
			panic(boom)
		})
	}()
	if seq, _, err := s.EntriesHead(t.Context()); err != nil || seq != 0 {
		t.Errorf("record has %d entries (%v), want none", seq, err)
	}
}

func TestTx_ContextEndsTheWaitForTheWriter(t *testing.T) {
	t.Parallel()
	both(t, contextEndsTheWait)
}

func contextEndsTheWait(t *testing.T, fresh place) {
	cfg := fresh(t)
	cfg.Timeout = 30 * time.Second
	s := open(t, cfg)
	held, free := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- s.Tx(context.WithoutCancel(t.Context()), func(*store.Tx) error {
			close(held)
			<-free
			return nil
		})
	}()
	<-held
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.AppendEntry(ctx, fleet.Entry{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := s.Ping(t.Context()); err != nil { // readers do not wait for the writer
		t.Error(err)
	}
	close(free)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestStore_DeadlineIsUnavailable(t *testing.T) {
	t.Parallel()
	both(t, deadlineIsUnavailable)
}

func deadlineIsUnavailable(t *testing.T, fresh place) {
	cfg := fresh(t)
	cfg.Timeout = 30 * time.Second
	other := open(t, cfg)
	cfg.Timeout = 50 * time.Millisecond
	s := open(t, cfg)
	err := other.Tx(t.Context(), func(tx *store.Tx) error {
		_, err := s.AppendEntry(t.Context(), fleet.Entry{}) // another process holds the write lock
		if !errors.Is(err, fleet.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpen_RefusesANewerDatabase(t *testing.T) {
	t.Parallel()
	both(t, refusesANewerDatabase)
}

func refusesANewerDatabase(t *testing.T, fresh place) {
	cfg := fresh(t)
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Tx(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, TRUE)`)
		return err
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), cfg); !errors.Is(err, store.ErrNewer) {
		t.Errorf("got %v", err)
	}
}

// TestStore_FullDisk: what cannot be written is refused as unavailable, what is there can be read, and it ends with
// the want of space.
func TestStore_FullDisk(t *testing.T) {
	t.Parallel()
	s := open(t, store.Config{})
	pages := func(query string) (n int) {
		t.Helper()
		if err := s.Tx(t.Context(), func(tx *store.Tx) error { return tx.Get(&n, query) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	pages(`PRAGMA max_page_count = 1`) // SQLite makes it the pages that are in use
	big := fleet.Entry{Detail: strings.Repeat("x", 4000)}
	written := 0
	for ; ; written++ {
		if _, err := s.AppendEntry(t.Context(), big); err != nil {
			if !errors.Is(err, fleet.ErrUnavailable) {
				t.Fatalf("got %v", err)
			}
			break
		}
		if written > 1000 {
			t.Fatal("the disk does not get full")
		}
	}
	if seq, _, err := s.EntriesHead(t.Context()); err != nil || int(seq) != written {
		t.Errorf("head is %d after %d, %v", seq, written, err)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	pages(`PRAGMA max_page_count = 100000`)
	if e, err := s.AppendEntry(t.Context(), big); err != nil || int(e.Seq) != written+1 {
		t.Errorf("after: %d, %v", e.Seq, err)
	}
}

// Whoever writes an entry about a cluster need not know which cluster that is, but may.
func TestEntriesSayWhichCluster(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), ClusterUID: func(cluster string) string {
		return map[string]string{"prod": "u1"}[cluster]
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, tt := range []struct {
		e    fleet.Entry
		want string
	}{
		{fleet.Entry{Cluster: "prod"}, "u1"},
		{fleet.Entry{Cluster: "prod", ClusterUID: "u2"}, "u2"},
		{fleet.Entry{Cluster: "other"}, ""},
		{fleet.Entry{}, ""},
	} {
		e, err := s.AppendEntry(t.Context(), tt.e)
		if err != nil || e.ClusterUID != tt.want || e.Sum() != e.Hash {
			t.Errorf("%+v became %+v, %v", tt.e, e, err)
		}
	}
}
