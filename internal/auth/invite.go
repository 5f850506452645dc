package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// inviteLife is how long an invitation is good.
const inviteLife = 72 * time.Hour

// inviteStore is the part of the store that invitations need.
type inviteStore interface {
	SetInvitation(ctx context.Context, name, hash string, until time.Time, rec fleet.Entry) error
	Invited(ctx context.Context, hash string, now time.Time) (fleet.User, error)
	UseInvitation(ctx context.Context, hash, password string, at time.Time, rec func(fleet.User) fleet.Entry) (fleet.User, error)
}

// InviteUser makes a person without a password, who sets it with the invitation: nobody else ever knows it. FieldErrors
// for what is wrong, ErrConflict for a taken name.
func (s *Service) InviteUser(ctx context.Context, by fleet.Caller, name string, role fleet.Role) (fleet.Invitation, error) {
	if err := s.entrust(ctx, by, "user.add", ""); err != nil {
		return fleet.Invitation{}, err
	}
	normal, nameErr := normalName(name)
	_, roleErr := fleet.ParseRole(string(role))
	if err := errors.Join(nameErr, roleErr); err != nil {
		return fleet.Invitation{}, err
	}
	now := time.Now()
	inv := fleet.Invitation{Name: normal, Code: newSecret(), ExpiresAt: now.Add(inviteLife)}
	acct := fleet.Account{
		User: fleet.User{
			ID: newID(), Name: normal, Role: role, Epoch: 1, CreatedAt: now, Kind: fleet.PersonLocal, InvitedUntil: inv.ExpiresAt,
		},
		Invitation: digest("invite", inv.Code),
	}
	if err := s.store.AddUser(ctx, acct, record(by, "user.add", fmt.Sprintf("%s as %s, invited", normal, role))); err != nil {
		return fleet.Invitation{}, err
	}
	s.settled.Store(true)
	return inv, nil
}

// Reinvite makes a new invitation for a person, in place of one that was lost, or for a password that was. An earlier
// invitation is good no longer; a password stays good until the invitation is used. ErrNotFound; ErrConflict for a
// person who is disabled or has no password here.
func (s *Service) Reinvite(ctx context.Context, by fleet.Caller, name string) (fleet.Invitation, error) {
	if err := s.entrust(ctx, by, "user.invite", name); err != nil {
		return fleet.Invitation{}, err
	}
	normal, err := normalName(name)
	if err != nil {
		return fleet.Invitation{}, err
	}
	inv := fleet.Invitation{Name: normal, Code: newSecret(), ExpiresAt: time.Now().Add(inviteLife)}
	return inv, s.store.SetInvitation(ctx, normal, digest("invite", inv.Code), inv.ExpiresAt, record(by, "user.invite", normal))
}

// AcceptInvitation sets the password of whoever was invited. It is good once; FieldError for a code that is not good and
// for a password that must not be.
func (s *Service) AcceptInvitation(ctx context.Context, code, password string) error {
	wrong := fleet.Problem("code", "error.invitation", "", "is wrong, was used or has expired")
	hash := digest("invite", code)
	u, err := s.store.Invited(ctx, hash, time.Now())
	if errors.Is(err, fleet.ErrUnauthenticated) { // before anything that costs
		return wrong
	}
	if err != nil {
		return fmt.Errorf("accepting an invitation: %w", err)
	}
	if err := checkPassword(u.Name, password); err != nil {
		return err
	}
	fresh, err := s.newHash(ctx, password)
	if err != nil {
		return err
	}
	u, err = s.store.UseInvitation(ctx, hash, fresh, time.Now(), func(u fleet.User) fleet.Entry {
		return record(fleet.Caller{Name: u.Name, Via: "session"}, "user.accept", u.Name)
	})
	if errors.Is(err, fleet.ErrUnauthenticated) {
		return wrong
	}
	if err != nil {
		return fmt.Errorf("accepting an invitation: %w", err)
	}
	s.announce(End{UserID: u.ID, Reason: ReasonPassword})
	return nil
}
