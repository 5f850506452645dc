package app

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/seal"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// The key of a SQLite database is made once, beside it. A wrong one is refused by its id, whichever kind of secret needs
// it. A lost one is not replaced by another: the program starts, and what is sealed waits for the key.
func TestSealKeys(t *testing.T) {
	t.Parallel()
	cfg := serveConfig(t)
	file := filepath.Join(cfg.Dir, "seal.key")
	cfg.Key = config.Key{File: file, Ours: true}
	keysOf := func(cfg config.Serve) (*seal.Keys, string, error) {
		t.Helper()
		var (
			out  lockedBuffer
			keys *seal.Keys
			err  error
		)
		a := &App{cfg: cfg, logger: slog.New(slog.NewTextHandler(&out, nil))}
		a.store, err = store.Open(t.Context(), store.Config{Dir: cfg.Dir, Logger: a.logger})
		if err != nil {
			t.Fatal(err)
		}
		keys, err = a.sealKeys(t.Context())
		if cerr := a.store.Close(); cerr != nil {
			t.Error(cerr)
		}
		return keys, out.String(), err
	}
	first, _, err := keysOf(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	if again, _, err := keysOf(cfg); err != nil || again.Current() != first.Current() {
		t.Errorf("the next start: %v %v", again, err)
	}

	s, err := store.Open(t.Context(), store.Config{Dir: cfg.Dir})
	if err != nil {
		t.Fatal(err)
	}
	who := fleet.Account{User: fleet.User{ID: "id-ada", Name: "ada", Role: fleet.RoleAdmin, Epoch: 1, Kind: fleet.PersonLocal}}
	sealed, err := first.Seal(fleet.FactorPlace(who.ID), []byte("secret"))
	err = errors.Join(err, s.AddUser(t.Context(), who, fleet.Entry{Action: "user.add"}), s.SetFactor(t.Context(), who.ID, sealed), s.Close())
	if err != nil {
		t.Fatal(err)
	}
	wrong := cfg
	wrong.Key = config.Key{Text: seal.NewKey()}
	_, _, err = keysOf(wrong)
	if e, ok := errors.AsType[*seal.UnknownKeyError](err); !ok || e.ID != first.Current() || !strings.Contains(err.Error(), "second factor of ada") {
		t.Errorf("a wrong key: %v", err)
	}
	named := cfg
	named.Key = config.Key{File: filepath.Join(t.TempDir(), "none")}
	if _, _, err := keysOf(named); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that somebody named and that is not there: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	keys, said, err := keysOf(cfg)
	if keys != nil || err != nil || !strings.Contains(said, first.Current()) {
		t.Errorf("a key that was lost: %v %v %s", keys, err, said)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another key is in its place: %v", err)
	}
}
