package app

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/auth"
	"github.com/kube-node-manager/kube-node-manager/internal/auth/ldap"
	"github.com/kube-node-manager/kube-node-manager/internal/auth/oidc"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// signInWays is how people can sign in, beyond a password, as the configuration says. It calls nobody: a provider or a
// directory that is down does not keep the program from starting.
func (a *App) signInWays(to *auth.Config) error {
	if o := a.cfg.OIDC; o.Issuer != "" {
		secret, err := fileSecret(o.SecretFile)
		if err != nil {
			return fmt.Errorf("--oidc-client-secret-file: %w", err)
		}
		pool, err := certificates(o.CAFile)
		if err != nil {
			return fmt.Errorf("--oidc-ca-file: %w", err)
		}
		p := oidc.New(oidc.Config{
			Issuer: o.Issuer, ClientID: o.ClientID, ClientSecret: secret, Scopes: o.Scopes, GroupsClaim: o.GroupsClaim,
			NameClaim: o.NameClaim, Roles: roles(o.Roles), CAs: pool,
		})
		a.ends.push("closing connections to the identity provider", func(context.Context) error { p.Close(); return nil })
		to.Provider = p
	}
	if l := a.cfg.LDAP; l.URL != "" {
		password, err := fileSecret(l.PasswordFile)
		if err != nil {
			return fmt.Errorf("--ldap-bind-password-file: %w", err)
		}
		pool, err := certificates(l.CAFile)
		if err != nil {
			return fmt.Errorf("--ldap-ca-file: %w", err)
		}
		d, err := ldap.New(ldap.Config{
			URL: l.URL, CAs: pool, BindDN: l.BindDN, BindPassword: password, UserBase: l.UserBase, UserFilter: l.UserFilter,
			IDAttribute: l.IDAttribute, GroupBase: l.GroupBase, GroupFilter: l.GroupFilter, GroupName: l.GroupName, Roles: roles(l.Roles),
		})
		if err != nil {
			return err
		}
		to.Directory = d
	}
	return nil
}

func roles(m map[string]string) map[string]fleet.Role {
	out := make(map[string]fleet.Role, len(m))
	for group, role := range m {
		out[group] = fleet.Role(role) // config knows the three
	}
	return out
}

// fileSecret is the content of a file without the line end that editors add; "" without a file.
func fileSecret(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	s := strings.TrimRight(string(b), "\r\n")
	if s == "" {
		return "", fmt.Errorf("%s is empty: %w", file, fleet.ErrInvalid)
	}
	return s, nil
}

// certificates are those of a file; nil, for those of the system, without one.
func certificates(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // what crypto/tls takes for the certificates of the system
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s holds no certificate: %w", file, fleet.ErrInvalid)
	}
	return pool, nil
}
