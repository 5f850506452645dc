package auth

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// personStore is the part of the store that people need.
type personStore interface {
	Users(ctx context.Context) ([]fleet.User, error)
	User(ctx context.Context, id string) (fleet.User, error)
	Account(ctx context.Context, name string) (fleet.Account, error)
	AddUser(ctx context.Context, a fleet.Account, rec fleet.Entry) error
	ChangeUser(ctx context.Context, name string, ch fleet.UserChange, at time.Time, rec func(before, after fleet.User) fleet.Entry) (u fleet.User, changed bool, err error)
	Rehash(ctx context.Context, userID, old, fresh string) error
}

// account makes a person that is not stored yet.
func (s *Service) account(ctx context.Context, name string, role fleet.Role, password string) (fleet.Account, error) {
	name, nameErr := normalName(name)
	_, roleErr := fleet.ParseRole(string(role))
	if err := errors.Join(nameErr, roleErr, checkPassword(name, password)); err != nil {
		return fleet.Account{}, err
	}
	hash, err := s.newHash(ctx, password)
	if err != nil {
		return fleet.Account{}, err
	}
	return fleet.Account{
		User:     fleet.User{ID: newID(), Name: name, Role: role, Epoch: 1, CreatedAt: time.Now(), Kind: fleet.PersonLocal},
		Password: hash,
	}, nil
}

func (s *Service) newHash(ctx context.Context, password string) (string, error) {
	leave, err := s.hasher.enter(fleet.AttemptKey{})
	if err != nil {
		return "", err
	}
	defer leave()
	return s.hasher.hash(ctx, password)
}

// newID makes a name that nothing else has: 128 random bits in lower-case letters and digits.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: the program ends if the system has no randomness
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
}

// Users lists everybody by name, and whose name is delayed after failures.
func (s *Service) Users(ctx context.Context) ([]fleet.User, error) {
	list, err := s.store.Users(ctx)
	if err != nil {
		return nil, err
	}
	delayed, err := s.store.Delayed(ctx, time.Now())
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].DelayedUntil = delayed[nameKey(list[i].Name).Subject]
	}
	return list, nil
}

// AddUser makes a person. FieldErrors (joined, if there are several) for what is wrong, ErrConflict for a taken name.
func (s *Service) AddUser(ctx context.Context, by fleet.Caller, name string, role fleet.Role, password string) error {
	if err := s.entrust(ctx, by, "user.add", ""); err != nil {
		return err
	}
	acct, err := s.account(ctx, name, role, password)
	if err != nil {
		return err
	}
	if err := s.store.AddUser(ctx, acct, record(by, "user.add", fmt.Sprintf("%s as %s", acct.Name, role))); err != nil {
		return err
	}
	s.settled.Store(true)
	return nil
}

// SetDisabled shuts a person out, or lets them in again. Shutting out ends their sessions and their tokens for good.
// ErrConflict for the last admin, except from the command line, which can make another.
func (s *Service) SetDisabled(ctx context.Context, by fleet.Caller, name string, disabled bool) error {
	action, permit := "user.enable", s.entrust
	if disabled {
		action, permit = "user.disable", s.permit
	}
	if err := permit(ctx, by, action, name); err != nil {
		return err
	}
	return s.change(ctx, by, name, action, fleet.UserChange{Disabled: &disabled}, ReasonDisabled,
		func(_, after fleet.User) string { return after.Name })
}

// SetRole changes what a person may do. Their sessions end; their tokens stay and may do what the person may.
// ErrConflict for the last admin, except from the command line.
func (s *Service) SetRole(ctx context.Context, by fleet.Caller, name string, role fleet.Role) error {
	if err := s.entrust(ctx, by, "user.role", name); err != nil {
		return err
	}
	if _, err := fleet.ParseRole(string(role)); err != nil {
		return err
	}
	normal, err := normalName(name)
	if err != nil {
		return err
	}
	acct, err := s.store.Account(ctx, normal)
	if err != nil {
		return err
	}
	if acct.Kind != fleet.PersonLocal {
		return fleet.Problem("role", "error.role_foreign", "", "follows from the groups of this person at each sign-in")
	}
	return s.change(ctx, by, name, "user.role", fleet.UserChange{Role: &role}, ReasonRole,
		func(before, after fleet.User) string {
			return fmt.Sprintf("%s: %s → %s", after.Name, before.Role, after.Role)
		})
}

// SetPassword gives a person a new password. It ends all their sessions and their tokens: whoever knew the old password may
// have made some.
func (s *Service) SetPassword(ctx context.Context, by fleet.Caller, name, password string) error {
	if err := s.entrust(ctx, by, "user.password", name); err != nil {
		return err
	}
	normal, err := normalName(name)
	if err != nil {
		return err
	}
	if err := checkPassword(normal, password); err != nil {
		return err
	}
	acct, err := s.store.Account(ctx, normal) // before anything that costs
	if err != nil {
		return err
	}
	if acct.Kind != fleet.PersonLocal {
		return fleet.Problem("password", "error.password_foreign", "", "is not kept here for this person")
	}
	return s.renew(ctx, by, normal, password)
}

// ChangePassword gives the caller a new password, for the one they have: a session that was left open must not be enough.
// It ends all their sessions, the one that asks too, and their tokens. FieldErrors for current_password and new_password;
// LimitError when throttled, as at signing in.
func (s *Service) ChangePassword(ctx context.Context, by fleet.Caller, current, password string) error {
	const action = "user.password"
	acct, err := s.own(ctx, by, action)
	if err != nil {
		return err
	}
	if err := checkPassword(acct.Name, password); err != nil {
		if wrong, ok := errors.AsType[*fleet.FieldError](err); ok {
			wrong.Field = "new_password"
		}
		return err
	}
	if err := s.confirmPassword(ctx, by, acct, action, "current_password", current); err != nil {
		return err
	}
	return s.renew(ctx, by, acct.Name, password)
}

// renew puts a password that was checked in place of the one before.
func (s *Service) renew(ctx context.Context, by fleet.Caller, normal, password string) error {
	hash, err := s.newHash(ctx, password)
	if err != nil {
		return err
	}
	return s.change(ctx, by, normal, "user.password", fleet.UserChange{Password: &hash}, ReasonPassword,
		func(_, after fleet.User) string { return after.Name })
}

func (s *Service) change(ctx context.Context, by fleet.Caller, name, action string, ch fleet.UserChange, why string, detail func(before, after fleet.User) string) error {
	name, err := normalName(name)
	if err != nil {
		return err
	}
	ch.KeepAdmin = by.Via != "cli"
	u, changed, err := s.store.ChangeUser(ctx, name, ch, time.Now(), func(before, after fleet.User) fleet.Entry {
		return record(by, action, detail(before, after))
	})
	if err != nil {
		return err
	}
	if changed {
		s.announce(End{UserID: u.ID, Reason: why})
	}
	return nil
}

// Sessions lists the caller's own sessions. Every session may do more than a limited token, which learns of none.
func (s *Service) Sessions(ctx context.Context, by fleet.Caller) ([]fleet.Session, error) {
	if by.Limit != nil {
		return nil, nil
	}
	list, err := s.store.Sessions(ctx, by.UserID, time.Now())
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].Current = list[i].Hash == by.Session
	}
	return list, nil
}

// EndSession ends one of the caller's own sessions, or anybody's if the caller administers people. ErrNotFound.
func (s *Service) EndSession(ctx context.Context, by fleet.Caller, hash string) error {
	owner, err := s.owner(ctx, by, "session.end", hash)
	if err != nil {
		return err
	}
	userID, err := s.store.EndSession(ctx, hash, owner, ReasonRevoked, time.Now(), record(by, "session.end", hash))
	if err != nil {
		return err
	}
	s.announce(End{Session: hash, UserID: userID, Reason: ReasonRevoked})
	return nil
}

// owner is whose credentials the caller may end: "" for everybody's. What is limited ends none.
func (s *Service) owner(ctx context.Context, by fleet.Caller, action, detail string) (string, error) {
	if by.Limit != nil {
		return "", s.refuse(ctx, by, action, detail)
	}
	if by.May(fleet.PermUsersAdmin, "") {
		return "", nil
	}
	if by.UserID == "" || !by.May(fleet.PermSelf, "") {
		return "", s.refuse(ctx, by, action, detail)
	}
	return by.UserID, nil
}
