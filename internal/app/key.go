package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/seal"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// sealKeys are the keys of the configuration. Nil if there are none: the secrets in the database, if any, then cannot be
// read, and whoever needs one says so. Keys that lack one in use are an error of the start: the wrong file was given, and
// going on would look as if all was well.
func (a *App) sealKeys(ctx context.Context) (*seal.Keys, error) {
	keys, err := readKeys(a.cfg.Key)
	if errors.Is(err, fs.ErrNotExist) && a.cfg.Key.Ours {
		keys, err = a.firstKey(ctx)
	}
	if err != nil {
		return nil, err
	}
	if keys == nil {
		rows, err := a.store.Sealed(ctx, "", fleet.SealedRow{}, 1)
		if err != nil {
			return nil, err
		}
		if len(rows) > 0 {
			a.logger.Warn("there are secrets in the database and no key: clusters of the web are not watched, and codes of second factors are refused",
				"key", rows[0].Key, "key_file", a.cfg.Key.File)
		}
		return nil, nil //nolint:nilnil // to have no key is no error
	}
	if err := seal.Check(ctx, a.store, keys); err != nil {
		return nil, fmt.Errorf("the key is not that of the database: %w", err)
	}
	return keys, nil
}

// firstKey makes the file of the key where there is nothing yet that it would be the wrong key of: a key that was lost
// comes back from a backup, and must not find another one in its place.
func (a *App) firstKey(ctx context.Context) (*seal.Keys, error) {
	rows, err := a.store.Sealed(ctx, "", fleet.SealedRow{}, 1)
	if err != nil || len(rows) > 0 {
		return nil, err
	}
	if a.cfg.Dir == "" { // a database of this process alone
		return seal.Parse(seal.NewKey())
	}
	if err := seal.Create(a.cfg.Key.File); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return seal.Read(a.cfg.Key.File)
}

// readKeys answers nil for a configuration without keys.
func readKeys(cfg config.Key) (*seal.Keys, error) {
	switch {
	case cfg.Text != "":
		return seal.Parse(cfg.Text)
	case cfg.File != "":
		return seal.Read(cfg.File)
	}
	return nil, nil //nolint:nilnil // to have no key is no error
}

var _ seal.Rows = (*store.Store)(nil)
