package app

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/handlers"
	"github.com/kube-node-manager/kube-node-manager/internal/auth"
	"github.com/kube-node-manager/kube-node-manager/internal/auth/ldap"
	"github.com/kube-node-manager/kube-node-manager/internal/auth/oidc"
	"github.com/kube-node-manager/kube-node-manager/internal/config"
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
		byGroup, err := roles(o.Roles)
		if err != nil {
			return fmt.Errorf("--oidc-role-map: %w", err)
		}
		p := oidc.New(oidc.Config{
			Issuer: o.Issuer, ClientID: o.ClientID, ClientSecret: secret, Scopes: o.Scopes, GroupsClaim: o.GroupsClaim,
			NameClaim: o.NameClaim, Roles: byGroup, CAs: pool,
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
		byGroup, err := roles(l.Roles)
		if err != nil {
			return fmt.Errorf("--ldap-role-map: %w", err)
		}
		d, err := ldap.New(ldap.Config{
			URL: l.URL, CAs: pool, BindDN: l.BindDN, BindPassword: password, UserBase: l.UserBase, UserFilter: l.UserFilter,
			IDAttribute: l.IDAttribute, GroupBase: l.GroupBase, GroupFilter: l.GroupFilter, GroupName: l.GroupName, Roles: byGroup,
		})
		if err != nil {
			return err
		}
		to.Directory = d
	}
	if h := a.cfg.Header; h.User != "" {
		byGroup, err := roles(h.Roles)
		if err != nil {
			return fmt.Errorf("--trusted-header-role: %w", err)
		}
		to.Header = &auth.HeaderSignIn{Name: http.CanonicalHeaderKey(h.User), Roles: byGroup}
	}
	return nil
}

// leastSecret is what a secret of a proxy has at least: it is sent with every request and must not be guessed.
const leastSecret = 16

// trustedHeader is how a proxy in front vouches for people; nil if none does.
func (a *App) trustedHeader() (*handlers.TrustedHeader, error) {
	h := a.cfg.Header
	if h.User == "" {
		return nil, nil //nolint:nilnil // what handlers take for none
	}
	secret, err := fileSecret(h.SecretFile)
	if err == nil && len(secret) < leastSecret {
		err = fmt.Errorf("%s holds fewer than %d characters: %w", h.SecretFile, leastSecret, fleet.ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("--trusted-header-secret-file: %w", err)
	}
	return &handlers.TrustedHeader{User: h.User, Groups: h.Groups, SecretName: h.SecretName, Secret: secret, From: h.From}, nil
}

// roles are what groups may do. Config knows the roles, and not what a scope looks like.
func roles(list []config.GroupRole) (fleet.RoleMap, error) {
	out := fleet.RoleMap{}
	for _, r := range list {
		next := fleet.GroupRole{Role: fleet.Role(r.Role)}
		if r.Scope != "" {
			var err error
			if next.Scope, err = fleet.ParseScope(r.Scope); err != nil {
				return nil, fmt.Errorf("%s=%s@%s: %w", r.Group, r.Role, r.Scope, err)
			}
		}
		out[r.Group] = append(out[r.Group], next)
	}
	return out, nil
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
