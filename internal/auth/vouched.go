package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// IdentityProvider vouches for people who sign in there. *oidc.Provider implements it.
type IdentityProvider interface {
	// Begin answers where the browser has to go, and what it has to keep until it comes back. Anew asks for a person who
	// proves there who they are, whatever the provider knows of this browser. ErrUnavailable.
	Begin(ctx context.Context, redirect string, anew bool) (target, kept string, until time.Time, err error)
	// Finish answers who came back: ErrUnauthenticated for what proves nothing, StaleSignInError for what was to prove it
	// anew and does not, ErrUnavailable.
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

// BeginOIDC answers where a browser has to go to sign in, anew if the person is to prove who they are whatever the provider
// knows of this browser, and what it has to keep until then. ErrNotFound without a provider, ErrUnavailable if it cannot
// be asked.
func (s *Service) BeginOIDC(ctx context.Context, redirect string, anew bool) (target, kept string, until time.Time, err error) {
	if s.provider == nil {
		return "", "", time.Time{}, fmt.Errorf("signing in with a provider: %w", fleet.ErrNotFound)
	}
	target, kept, until, err = s.provider.Begin(ctx, redirect, anew)
	if err != nil {
		s.logger.WarnContext(ctx, "no sign-in with the identity provider", "err", err)
	}
	return target, kept, until, err
}

// FinishOIDC signs in whoever the provider vouches for. Who is seen for the first time is made a person; the role is
// that of the groups of now, each time. ErrUnauthenticated for what proves nothing; ErrForbidden for somebody known to
// the provider who may not use this program; StaleSignInError if it was to be anew and was not. Failures of one address are
// counted with those of its passwords.
func (s *Service) FinishOIDC(ctx context.Context, redirect, kept string, answer url.Values, from fleet.Caller, userAgent string) (token string, expires time.Time, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("signing in with a provider: %w", err)
		}
	}()
	if s.provider == nil {
		return "", time.Time{}, fleet.ErrNotFound
	}
	leave, err := s.hasher.enter(fleet.AttemptKey{}) // bounds how many wait for the provider
	if err != nil {
		return "", time.Time{}, err
	}
	defer leave()
	keys := addrKeys(from.Addr) // there is no name yet
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
		return "", time.Time{}, s.signInFailed(ctx, "", from, "what the identity provider answered proves nothing", attempt{})
	}
	if stale, ok := errors.AsType[*fleet.StaleSignInError](err); ok {
		err = s.signInFailed(ctx, "", from, "the identity provider did not have the person sign in anew", attempt{})
		if errors.Is(err, fleet.ErrUnauthenticated) {
			err = stale
		}
	}
	if err != nil {
		return "", time.Time{}, err
	}
	in, err := s.admit(ctx, v, from, userAgent, issue{undo: keys})
	return in.Token, in.Expires, err
}

// HeaderSignIn is how a trusted proxy vouches for people.
type HeaderSignIn struct {
	Name  string        // of the header with the name, which is part of who they are
	Roles fleet.RoleMap // what the groups that it names may do
}

// SignInByHeader signs in somebody whose name and groups came in headers that the handlers have found to be the trusted
// proxy's. The name is who they are: the proxy says no other thing of them that does not change. Errors are those of
// FinishOIDC.
func (s *Service) SignInByHeader(ctx context.Context, name string, groups []string, from fleet.Caller, userAgent string) (token string, expires time.Time, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("signing in by a header: %w", err)
		}
	}()
	if s.header == nil {
		return "", time.Time{}, fleet.ErrNotFound
	}
	id := fleet.Identity{Kind: fleet.PersonOIDC, Issuer: fleet.HeaderIssuer + s.header.Name}
	if id.Subject, err = normalName(name); err != nil {
		return "", time.Time{}, s.unvouched(ctx, "", id, from, "the name cannot be had here")
	}
	in, err := s.admit(ctx, s.header.Roles.Vouch(id, id.Subject, groups), from, userAgent, issue{})
	return in.Token, in.Expires, err
}

// unvouched refuses somebody who is vouched for. There is no password to be guessed here, and the person has to know
// whom to ask: it is ErrForbidden.
func (s *Service) unvouched(ctx context.Context, name string, id fleet.Identity, from fleet.Caller, why string) error {
	err := s.signInFailed(ctx, name, from, means(id)+": "+why, attempt{})
	if errors.Is(err, fleet.ErrUnauthenticated) {
		err = fleet.ErrForbidden
	}
	return err
}

// means is who vouches for a person, as the record says it.
func means(id fleet.Identity) string {
	if strings.HasPrefix(id.Issuer, fleet.HeaderIssuer) {
		return "header"
	}
	return string(id.Kind)
}

// admit makes a session for somebody that is vouched for. What they may do follows from what they are now: a person
// whose groups no longer map to a role anywhere loses sessions and tokens. What was given here stays beside it. Of
// is what the sign-in uses up and leaves.
func (s *Service) admit(ctx context.Context, v fleet.Vouched, from fleet.Caller, userAgent string, of issue) (fleet.SignIn, error) {
	const nothing = "none of the groups maps to a role"
	refuse := func(name, why string) (fleet.SignIn, error) {
		return fleet.SignIn{}, s.unvouched(ctx, name, v.Identity, from, why)
	}
	none := v.Role == "" && len(v.Grants) == 0
	v.Role, v.Grants, v.Groups = cmp.Or(v.Role, fleet.RoleNone), grantsOf(v.Grants), groupsOf(v.Groups)
	acct, err := s.store.AccountOf(ctx, v.Identity)
	if errors.Is(err, fleet.ErrNotFound) {
		if none {
			return refuse("", nothing)
		}
		acct, err = s.meet(ctx, v, from)
		if errors.Is(err, fleet.ErrConflict) || errors.Is(err, fleet.ErrInvalid) {
			return refuse("", "the name cannot be had here: "+err.Error())
		}
	}
	switch {
	case err != nil:
		return fleet.SignIn{}, err
	case acct.Disabled:
		return refuse(acct.Name, "disabled")
	case none:
		if err := s.regroup(ctx, acct, fleet.UserChange{Revoke: true}, from); err != nil {
			return fleet.SignIn{}, err
		}
		return refuse(acct.Name, nothing)
	}
	if _, theirs := split(acct.Grants); acct.Role != v.Role || !cmpGrants(theirs, v.Grants) || !slices.Equal(acct.Groups, v.Groups) {
		ch := fleet.UserChange{Role: &v.Role, Groups: &v.Groups, Grants: func(now []fleet.Grant) ([]fleet.Grant, error) {
			own, _ := split(now)
			return slices.Concat(own, v.Grants), nil
		}}
		if err := s.regroup(ctx, acct, ch, from); err != nil {
			return fleet.SignIn{}, err
		}
		if acct, err = s.store.AccountOf(ctx, v.Identity); err != nil {
			return fleet.SignIn{}, err
		}
	}
	of.session, of.proven = fleet.NewSession{UserID: acct.ID, Epoch: acct.Epoch}, time.Now()
	if v.Kind == fleet.PersonOIDC {
		// The person may have been let in by a proof of hours ago: a new session of ours alone says nothing.
		of.proven = cmp.Or(v.SignedIn, fleet.SignInUnknown())
	}
	of.rec = record(signing(acct, from), "signin", means(v.Identity))
	return s.issue(ctx, of, from, userAgent)
}

// cmpGrants tells whether two lists of grants are the same.
func cmpGrants(a, b []fleet.Grant) bool {
	return slices.EqualFunc(a, b, func(x, y fleet.Grant) bool {
		return x.Scope == y.Scope && x.Role == y.Role && x.From == y.From && slices.Equal(x.Also, y.Also)
	})
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
			Grants: v.Grants, Groups: v.Groups,
		},
		Subject: v.Subject,
	}
	detail := fmt.Sprintf("%s as %s, vouched for by %s", name, v.Role, v.Issuer)
	if len(v.Grants) > 0 {
		detail += "; " + grantsText(v.Grants)
	}
	err = s.store.AddUser(ctx, acct, record(signing(acct, from), "user.add", detail))
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
func (s *Service) regroup(ctx context.Context, acct fleet.Account, ch fleet.UserChange, from fleet.Caller) error {
	reason := ReasonRole
	if ch.Revoke {
		reason = ReasonRevoked
	}
	u, changed, err := s.store.ChangeUser(ctx, acct.Name, ch, time.Now(), func(before, after fleet.User) fleet.Entry {
		action, detail := "user.grants", regranted(before, after)
		switch {
		case ch.Revoke:
			action, detail = "user.revoke", "none of the groups maps to a role"
		case before.Role != after.Role:
			action = "user.role"
			role := fmt.Sprintf("%s: %s → %s", after.Name, before.Role, after.Role)
			if cmpGrants(before.Grants, after.Grants) {
				detail = role
			} else {
				detail = role + "; " + detail
			}
		}
		if !ch.Revoke {
			detail += ", by the groups"
		}
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
