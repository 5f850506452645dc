package app

import (
	"path/filepath"

	"github.com/kube-node-manager/kube-node-manager/internal/auth"
	"github.com/kube-node-manager/kube-node-manager/internal/auth/atrest"
	"github.com/kube-node-manager/kube-node-manager/internal/config"
)

// totpKey is the file that is made beside a SQLite database.
const totpKey = "totp.key"

// signInWays is how people can sign in, beyond a password, as the configuration says.
func signInWays(cfg config.Serve, to *auth.Config) error {
	switch {
	case cfg.CredentialsKeyFile != "":
		key, err := atrest.Load(cfg.CredentialsKeyFile)
		if err != nil {
			return err
		}
		to.Sealer = key
	case cfg.URL == "":
		key, err := atrest.Ensure(filepath.Join(cfg.Dir, totpKey))
		if err != nil {
			return err
		}
		to.Sealer = key
	}
	// On PostgreSQL a key made here would be another one on each replica: without a file there are no second factors.
	return nil
}
