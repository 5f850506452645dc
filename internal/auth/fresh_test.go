package auth

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// TestSignedIn: a session knows when its person proved who they are, and keeps it through activity. A provider may have
// let somebody in by a proof of hours ago, with nobody at the keyboard.
func TestSignedIn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		at := time.Now().UTC().Truncate(time.Microsecond)
		token, c := h.in(t, "ada")
		pass(3 * time.Minute)
		active(t, h, token) // written anew
		pass(3 * time.Minute)
		again, err := h.PeekSession(t.Context(), token)
		if err != nil || !c.SignedIn.Equal(at) || !again.SignedIn.Equal(at) {
			t.Errorf("with a password: %s, later %s, want %s (%v)", c.SignedIn, again.SignedIn, at, err)
		}

		// A tab that was left open must not be worth a token, which is never asked how old a sign-in is.
		h.fresh = 6 * time.Minute
		pass(time.Microsecond)
		if _, _, err := h.AddToken(t.Context(), c, fleet.Token{Name: "taken along", ExpiresAt: after(time.Hour)}); !errors.As(err, new(*fleet.StaleSignInError)) {
			t.Errorf("a token from an old sign-in: %v", err)
		}
		if list, err := h.Tokens(t.Context(), c); err != nil || len(list) != 0 {
			t.Errorf("tokens: %v, %v", list, err)
		}
		h.fresh = 7 * time.Minute

		// Neither a token nor a batch that goes on alone has a sign-in that could be old.
		bearer, _, err := h.AddToken(t.Context(), c, fleet.Token{Name: "ci", ExpiresAt: after(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		by, err := h.ByToken(t.Context(), bearer)
		if err != nil || !by.SignedIn.IsZero() {
			t.Errorf("with a token: %s, %v", by.SignedIn, err)
		}
		if by, err = h.Caller(t.Context(), c.UserID); err != nil || !by.SignedIn.IsZero() {
			t.Errorf("a batch that goes on: %s, %v", by.SignedIn, err)
		}

		e := &elsewhere{}
		h.provider, h.directory, h.header = e, e, &HeaderSignIn{Name: "X-User", Roles: fleet.RoleMap{"ops": {{Role: fleet.RoleOperator}}}}
		seen := func(what, token string, err error, want time.Time) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if c, err := h.PeekSession(t.Context(), token); err != nil || !c.SignedIn.Equal(want) {
				t.Errorf("%s: %s, want %s (%v)", what, c.SignedIn, want, err)
			}
		}
		v := vouchedFor(fleet.PersonOIDC, "1", "eve", fleet.RoleOperator)
		e.say(v, nil)
		token, err = h.come(t)
		seen("a provider that does not say", token, err, fleet.SignInUnknown())
		v.SignedIn = time.Now().Add(-43 * time.Minute).UTC().Truncate(time.Second)
		e.say(v, nil)
		token, err = h.come(t)
		seen("a provider that says", token, err, v.SignedIn)
		e.say(vouchedFor(fleet.PersonLDAP, "2", "lee", fleet.RoleOperator), nil)
		at = time.Now().UTC().Truncate(time.Microsecond)
		token, _, err = h.SignIn(t.Context(), "lee", "directory password", from, "test")
		seen("a directory", token, err, at)
		token, _, err = h.SignInByHeader(t.Context(), "pat", []string{"ops"}, from, "test")
		seen("a trusted proxy", token, err, time.Time{})

		// Sessions of before there was such a thing.
		token, c = h.in(t, "ada")
		if err := h.store.Tx(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Exec(`UPDATE sessions SET data = ? WHERE token_hash = ?`, `{"deadline":253402300799000000,"values":{}}`, c.Session)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		seen("a session of an older release", token, nil, fleet.SignInUnknown())
	})
}

// TestFinishOIDC_NotAnew: a provider that was to have the person sign in anew and did not opens nothing, on record.
func TestFinishOIDC_NotAnew(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	e := &elsewhere{}
	h.provider = e
	e.say(fleet.Vouched{}, &fleet.StaleSignInError{})
	token, err := h.come(t)
	if _, ok := errors.AsType[*fleet.StaleSignInError](err); !ok || token != "" || errors.Is(err, fleet.ErrUnauthenticated) {
		t.Errorf("%q, %v", token, err)
	}
	got, err := h.log.Entries(t.Context(), fleet.AuditFilter{Action: "signin"})
	if err != nil || len(got) != 1 || got[0].Outcome != "failed" || got[0].Detail != "the identity provider did not have the person sign in anew" {
		t.Errorf("record: %+v, %v", got, err)
	}
}

// TestReplaced: the tabs of a browser in which the same person signs in again are told another thing than those of
// somebody who is gone.
// TestEntrust: what gives people rights or ways in outlives the session that asks, as a token does, and asks for a fresh
// sign-in. What takes them away never waits for one.
func TestEntrust(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		h.add(t, "vic", fleet.RoleViewer)
		_, c := h.in(t, "ada")
		ctx := t.Context()
		grant := fleet.Grant{Scope: "prod", Role: fleet.RoleOperator}
		if err := h.AddGrant(ctx, c, "vic", grant); err != nil {
			t.Fatal(err)
		}
		h.fresh = time.Minute
		pass(time.Minute + time.Microsecond)
		for what, do := range map[string]func() error{
			"user.add":      func() error { return h.AddUser(ctx, c, "eve", fleet.RoleAdmin, secret) },
			"invite":        func() error { _, err := h.InviteUser(ctx, c, "eve", fleet.RoleAdmin); return err },
			"user.invite":   func() error { _, err := h.Reinvite(ctx, c, "vic"); return err },
			"user.enable":   func() error { return h.SetDisabled(ctx, c, "vic", false) },
			"user.role":     func() error { return h.SetRole(ctx, c, "vic", fleet.RoleAdmin) },
			"user.password": func() error { return h.SetPassword(ctx, c, "vic", secret+"!") },
			"user.grants":   func() error { return h.AddGrant(ctx, c, "vic", grant) },
			"all grants":    func() error { return h.SetGrants(ctx, c, "vic", []fleet.Grant{grant}) },
			"factor.reset":  func() error { return h.ResetFactor(ctx, c, "vic") },
		} {
			if err := do(); !errors.As(err, new(*fleet.StaleSignInError)) {
				t.Errorf("%s from an old sign-in: %v", what, err)
			}
		}
		denied, err := h.log.Entries(ctx, fleet.AuditFilter{Outcome: "denied", Limit: 100})
		if err != nil || len(denied) != 9 {
			t.Errorf("%d refusals on record, want 9 (%v)", len(denied), err)
		}
		if err := errors.Join(h.DropGrant(ctx, c, "vic", "prod"), h.SetDisabled(ctx, c, "vic", true)); err != nil {
			t.Errorf("taking away: %v", err)
		}
		if err := h.SetDisabled(ctx, host, "vic", false); err != nil {
			t.Errorf("from the host: %v", err)
		}
	})
}

func TestReplaced(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.add(t, "vic", fleet.RoleViewer)
	_, c := h.in(t, "ada")
	for _, tt := range []struct{ name, want string }{{"ada", ReasonReplaced}, {"vic", ReasonLogout}} {
		h.announced()
		token, _, err := h.SignIn(t.Context(), tt.name, secret, fleet.Caller{Addr: from.Addr, Session: c.Session}, "")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]End{{Session: c.Session, Reason: tt.want}}, h.announced()); diff != "" {
			t.Errorf("by %s (-want +got):\n%s", tt.name, diff)
		}
		if why, err := h.store.WhyEnded(t.Context(), c.Session); why != tt.want || err != nil {
			t.Errorf("by %s other processes hear %q, %v", tt.name, why, err)
		}
		if c, err = h.BySession(t.Context(), token); err != nil {
			t.Fatal(err)
		}
	}
}
