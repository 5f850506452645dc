package auth

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// IdentityProvider vouches for people who sign in there. *oidc.Provider implements it.
type IdentityProvider interface {
	// Begin answers where the browser has to go, and what it has to keep until it comes back. ErrUnavailable.
	Begin(ctx context.Context, redirect string) (target, kept string, until time.Time, err error)
	// Finish answers who came back: ErrUnauthenticated for what proves nothing, ErrUnavailable.
	Finish(ctx context.Context, redirect, kept string, answer url.Values) (fleet.Vouched, error)
}

// Directory checks names and passwords of people who have none here. *ldap.Directory implements it.
type Directory interface {
	// Check answers whose name and password these are: ErrUnauthenticated for nobody's, with the same calls whatever the
	// cause; ErrUnavailable. With pretend it makes the same calls, sends the password nowhere and finds nobody.
	Check(ctx context.Context, name, password string, pretend bool) (fleet.Vouched, error)
}

// vouchedStore is the part of the store that people of other places need.
type vouchedStore interface {
	AccountOf(ctx context.Context, id fleet.Identity) (fleet.Account, error)
}

// OIDC tells whether there is an identity provider.
func (s *Service) OIDC() bool { return s.provider != nil }

// BeginOIDC answers where a browser has to go to sign in, and what it has to keep until then. ErrNotFound without a
// provider, ErrUnavailable if it cannot be asked.
func (s *Service) BeginOIDC(ctx context.Context, redirect string) (target, kept string, until time.Time, err error) {
	if s.provider == nil {
		return "", "", time.Time{}, fmt.Errorf("signing in with a provider: %w", fleet.ErrNotFound)
	}
	target, kept, until, err = s.provider.Begin(ctx, redirect)
	if err != nil {
		s.logger.WarnContext(ctx, "no sign-in with the identity provider", "err", err)
	}
	return target, kept, until, err
}

// FinishOIDC signs in whoever the provider vouches for. Who is seen for the first time is made a person; the role is
// that of the groups of now, each time. ErrUnauthenticated for what proves nothing; ErrForbidden for somebody known to
// the provider who may not use this program. Failures of one address are counted with those of its passwords.
func (s *Service) FinishOIDC(ctx context.Context, redirect, kept string, answer url.Values, from fleet.Caller, userAgent string) (token string, expires time.Time, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("signing in with a provider: %w", err)
		}
	}()
	if s.provider == nil {
		return "", time.Time{}, fleet.ErrNotFound
	}
	leave, err := s.hasher.enter() // bounds how many wait for the provider
	if err != nil {
		return "", time.Time{}, err
	}
	defer leave()
	keys := attemptKeys("", from.Addr)[:2] // there is no name yet: everybody and the address
	if err := s.store.CountAttempt(ctx, keys, func(have []fleet.Attempts) ([]fleet.Attempts, error) {
		return count(keys, have, time.Now())
	}); err != nil {
		return "", time.Time{}, err
	}
	v, err := s.provider.Finish(ctx, redirect, kept, answer)
	if err != nil {
		s.logger.WarnContext(ctx, "no sign-in with the identity provider", "err", err)
	}
	if errors.Is(err, fleet.ErrUnauthenticated) {
		return "", time.Time{}, s.signInFailed(ctx, "", from, "what the identity provider answered proves nothing", false)
	}
	if err != nil {
		return "", time.Time{}, err
	}
	return s.admit(ctx, v, from, userAgent, keys)
}

// admit makes a session for somebody that is vouched for. What they may do follows from what they are now: a person
// whose groups no longer map to a role loses sessions and tokens.
func (s *Service) admit(ctx context.Context, v fleet.Vouched, from fleet.Caller, userAgent string, undo []fleet.AttemptKey) (string, time.Time, error) {
	refuse := func(name, why string) (string, time.Time, error) {
		err := s.signInFailed(ctx, name, from, string(v.Kind)+": "+why, false)
		if errors.Is(err, fleet.ErrUnauthenticated) {
			err = fleet.ErrForbidden // there is no password to be guessed here, and the person has to know whom to ask
		}
		return "", time.Time{}, err
	}
	acct, err := s.store.AccountOf(ctx, v.Identity)
	if errors.Is(err, fleet.ErrNotFound) {
		if v.Role == "" {
			return refuse("", "none of the groups maps to a role")
		}
		acct, err = s.meet(ctx, v, from)
		if errors.Is(err, fleet.ErrConflict) || errors.Is(err, fleet.ErrInvalid) {
			return refuse("", "the name cannot be had here: "+err.Error())
		}
	}
	switch {
	case err != nil:
		return "", time.Time{}, err
	case acct.Disabled:
		return refuse(acct.Name, "disabled")
	case v.Role == "":
		if err := s.regroup(ctx, acct, fleet.UserChange{Revoke: true}, ReasonRevoked, "none of the groups maps to a role", from); err != nil {
			return "", time.Time{}, err
		}
		return refuse(acct.Name, "none of the groups maps to a role")
	case acct.Role != v.Role:
		why := fmt.Sprintf("%s: %s → %s, by the groups", acct.Name, acct.Role, v.Role)
		if err := s.regroup(ctx, acct, fleet.UserChange{Role: &v.Role}, ReasonRole, why, from); err != nil {
			return "", time.Time{}, err
		}
		if acct, err = s.store.AccountOf(ctx, v.Identity); err != nil {
			return "", time.Time{}, err
		}
	}
	return s.issue(ctx, issue{
		session: fleet.NewSession{UserID: acct.ID, Epoch: acct.Epoch},
		undo:    undo, rec: record(signing(acct, from), "signin", string(v.Kind)),
	}, from, userAgent)
}

// meet makes a person of somebody who is seen for the first time. A name that somebody has is not shared: whoever could
// choose their name at the provider would be that person.
func (s *Service) meet(ctx context.Context, v fleet.Vouched, from fleet.Caller) (fleet.Account, error) {
	name, err := normalName(v.Name)
	if err != nil {
		return fleet.Account{}, err
	}
	acct := fleet.Account{
		User: fleet.User{
			ID: newID(), Name: name, Role: v.Role, Epoch: 1, CreatedAt: time.Now(), Kind: v.Kind, Issuer: v.Issuer,
		},
		Subject: v.Subject,
	}
	err = s.store.AddUser(ctx, acct, record(signing(acct, from), "user.add", fmt.Sprintf("%s as %s, vouched for by %s", name, v.Role, v.Issuer)))
	if errors.Is(err, fleet.ErrConflict) {
		// They may have come twice at once.
		if again, ferr := s.store.AccountOf(ctx, v.Identity); ferr == nil {
			return again, nil
		}
	}
	if err != nil {
		return fleet.Account{}, err
	}
	s.settled.Store(true)
	return acct, nil
}

// regroup changes a person as their groups say. That may leave no admin: the groups are somebody's decision, and the
// command line can make another.
func (s *Service) regroup(ctx context.Context, acct fleet.Account, ch fleet.UserChange, reason, detail string, from fleet.Caller) error {
	action := "user.role"
	if ch.Revoke {
		action = "user.revoke"
	}
	u, changed, err := s.store.ChangeUser(ctx, acct.Name, ch, time.Now(), func(_, _ fleet.User) fleet.Entry {
		return record(signing(acct, from), action, detail)
	})
	if err != nil {
		return err
	}
	if changed {
		s.announce(End{UserID: u.ID, Reason: reason})
	}
	return nil
}
