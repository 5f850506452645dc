package auth

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	tokenPrefix = "knm_" // lets scanners of repositories find what must not be there
	tokenBytes  = 32
	tokenLife   = 90 * 24 * time.Hour
	tokensMost  = 50 // of one person
)

// tokenStore is the part of the store that API tokens need.
type tokenStore interface {
	AddToken(ctx context.Context, hash string, t fleet.Token, userID, session string, most int, rec fleet.Entry) error
	Token(ctx context.Context, hash string, now time.Time) (fleet.Credential, error)
	TouchToken(ctx context.Context, hash string, used time.Time) error
	Tokens(ctx context.Context, userID string, now time.Time) ([]fleet.Token, error)
	EndToken(ctx context.Context, id, owner, why string, at time.Time, rec fleet.Entry) (fleet.CredentialKey, error)
}

// ByToken answers whose token it is. What it may do is what its person may do now, and no more than what it was made for.
func (s *Service) ByToken(ctx context.Context, bearer string) (fleet.Caller, error) {
	secret, ok := strings.CutPrefix(bearer, tokenPrefix)
	if !ok || len(secret) != base64.RawURLEncoding.EncodedLen(tokenBytes) {
		return fleet.Caller{}, fmt.Errorf("reading a token: %w", fleet.ErrUnauthenticated)
	}
	c, err := s.store.Token(ctx, digest("token", bearer), time.Now())
	if err != nil {
		return fleet.Caller{}, err
	}
	if s.track(c, true, time.Now()) {
		wctx, cancel := context.WithTimeout(ctx, touchLimit)
		defer cancel()
		if err := s.store.TouchToken(wctx, c.Hash, time.Now()); err != nil {
			s.logger.WarnContext(ctx, "use of a token not recorded", "user", c.User.Name, "err", err)
		}
	}
	return s.caller(c, "token"), nil
}

// Tokens lists the caller's own tokens; to a limited token, those that may do no more than itself.
func (s *Service) Tokens(ctx context.Context, by fleet.Caller) ([]fleet.Token, error) {
	list, err := s.store.Tokens(ctx, by.UserID, time.Now())
	return slices.DeleteFunc(list, func(t fleet.Token) bool { return !narrow(t, by.Limit) }), err
}

// AddToken makes an API token for the caller, who must be signed in: a token makes no tokens. It is good until
// want.ExpiresAt, ninety days at most, for want.Role at most and in want.Scope only; what is empty is no limit. The secret
// is kept nowhere. StaleSignInError for a sign-in that is too old: who finds a tab open must not take a token along.
func (s *Service) AddToken(ctx context.Context, by fleet.Caller, want fleet.Token) (secret string, t fleet.Token, err error) {
	if by.UserID == "" || by.Via != "session" || !by.May(fleet.PermSelf, "") {
		return "", fleet.Token{}, s.refuse(ctx, by, "token.add", want.Name)
	}
	now, name, expires := time.Now(), strings.TrimSpace(want.Name), want.ExpiresAt
	role, scope, err := limit(want.Role, want.Scope)
	if err != nil {
		return "", fleet.Token{}, err
	}
	switch {
	case name == "":
		return "", fleet.Token{}, fleet.Problem("name", "error.name_empty", "", "must not be empty")
	case !utf8.ValidString(name) || utf8.RuneCountInString(name) > nameMost || strings.ContainsFunc(name, unicode.IsControl):
		return "", fleet.Token{}, fleet.Problem("name", "error.token_name", strconv.Itoa(nameMost), "must have at most %s printable characters")
	case !expires.After(now):
		return "", fleet.Token{}, fleet.Problem("expires", "error.expires_past", "", "must be in the future")
	case expires.After(now.Add(tokenLife)):
		return "", fleet.Token{}, fleet.Problem("expires", "error.expires_far", strconv.Itoa(int(tokenLife.Hours()/24)), "must be within %s days")
	}
	if err := s.lately(ctx, by, "token.add"); err != nil {
		return "", fleet.Token{}, err
	}
	var b [tokenBytes]byte
	_, _ = rand.Read(b[:]) // never fails: the program ends if the system has no randomness
	secret = tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	t = fleet.Token{
		ID: newID(), Name: name, Role: role, Scope: scope, CreatedAt: now.UTC().Truncate(time.Microsecond),
		ExpiresAt: expires.UTC().Truncate(time.Microsecond),
	}
	detail := fmt.Sprintf("%s (%s) until %s", t.ID, name, t.ExpiresAt.Format(time.RFC3339))
	if role != "" {
		detail += ", as " + string(role) + " at most"
	}
	if scope != "" {
		detail += ", in " + string(scope)
	}
	rec := record(by, "token.add", detail)
	if err := s.store.AddToken(ctx, digest("token", secret), t, by.UserID, by.Session, tokensMost, rec); err != nil {
		return "", fleet.Token{}, err
	}
	return secret, t, nil
}

// EndToken ends one of the caller's own tokens, or anybody's if the caller administers people. ErrNotFound.
func (s *Service) EndToken(ctx context.Context, by fleet.Caller, id string) error {
	owner, err := s.owner(ctx, by, "token.end", id)
	if err != nil {
		return err
	}
	key, err := s.store.EndToken(ctx, id, owner, ReasonRevoked, time.Now(), record(by, "token.end", id))
	if err != nil {
		return err
	}
	s.announce(End{Session: key.Hash, UserID: key.UserID, Reason: ReasonRevoked})
	return nil
}
