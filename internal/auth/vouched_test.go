package auth

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// elsewhere is a provider and a directory that say what the test says.
type elsewhere struct {
	mu      sync.Mutex // guards all
	vouched fleet.Vouched
	err     error
	asked   []string
}

func (e *elsewhere) say(v fleet.Vouched, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.vouched, e.err = v, err
}

func (e *elsewhere) Begin(context.Context, string, bool) (string, string, time.Time, error) {
	return "https://idp.test", "kept", time.Now().Add(time.Minute), nil
}

func (e *elsewhere) Finish(context.Context, string, string, url.Values) (fleet.Vouched, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.vouched, e.err
}

func (e *elsewhere) Check(_ context.Context, name, password string, pretend bool) (fleet.Vouched, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if pretend {
		password = "(none)"
	}
	e.asked = append(e.asked, name+" "+password)
	if e.err != nil {
		return fleet.Vouched{}, e.err
	}
	if pretend || password != "directory password" || e.vouched.Subject == "" {
		return fleet.Vouched{}, fleet.ErrUnauthenticated
	}
	return e.vouched, nil
}

func vouchedFor(kind fleet.PersonKind, subject, name string, role fleet.Role) fleet.Vouched {
	return fleet.Vouched{Identity: fleet.Identity{Kind: kind, Issuer: "https://idp.test", Subject: subject}, Name: name, Role: role}
}

func (h *house) come(t *testing.T) (string, error) {
	t.Helper()
	token, _, err := h.FinishOIDC(t.Context(), "", "", nil, from, "")
	return token, err
}

func TestVouched_Life(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	e := &elsewhere{}
	_, err := h.come(t)
	wants(t, "no provider", err, fleet.ErrNotFound)
	h.provider = e

	e.say(vouchedFor(fleet.PersonOIDC, "1", "Eve", ""), nil)
	_, err = h.come(t)
	wants(t, "no role", err, fleet.ErrForbidden)
	e.say(vouchedFor(fleet.PersonOIDC, "1", "ADA", fleet.RoleAdmin), nil)
	_, err = h.come(t)
	wants(t, "the name of a local admin", err, fleet.ErrForbidden)
	e.say(vouchedFor(fleet.PersonOIDC, "1", "Eve Smith", fleet.RoleAdmin), nil)
	_, err = h.come(t)
	wants(t, "a name that cannot be", err, fleet.ErrForbidden)
	if users, err := h.Users(t.Context()); err != nil || len(users) != 1 {
		t.Fatalf("somebody was made: %+v, %v", users, err)
	}

	e.say(vouchedFor(fleet.PersonOIDC, "1", "Eve", fleet.RoleOperator), nil)
	first, err := h.come(t)
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.PeekSession(t.Context(), first)
	if err != nil || c.Name != "eve" || c.Role != fleet.RoleOperator {
		t.Fatalf("%+v, %v", c, err)
	}
	made, _, err := h.AddToken(t.Context(), c, fleet.Token{Name: "ci", ExpiresAt: after(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	// Who is known by issuer and subject: another name at the provider is the same person, the same name of another
	// subject or issuer is not.
	e.say(vouchedFor(fleet.PersonOIDC, "1", "married", fleet.RoleOperator), nil)
	second, err := h.come(t)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := h.PeekSession(t.Context(), second); err != nil || again.UserID != c.UserID || again.Name != "eve" {
		t.Errorf("%+v, %v", again, err)
	}
	e.say(vouchedFor(fleet.PersonOIDC, "2", "eve", fleet.RoleAdmin), nil)
	_, err = h.come(t)
	wants(t, "another subject of that name", err, fleet.ErrForbidden)
	foreign := vouchedFor(fleet.PersonOIDC, "1", "eve", fleet.RoleAdmin)
	foreign.Issuer = "https://other.test"
	e.say(foreign, nil)
	_, err = h.come(t)
	wants(t, "another issuer", err, fleet.ErrForbidden)
	e.say(vouchedFor(fleet.PersonLDAP, "1", "eve", fleet.RoleAdmin), nil)
	_, err = h.come(t)
	wants(t, "another kind", err, fleet.ErrForbidden)

	// Other groups, another role: at once for what is open already.
	h.announced()
	e.say(vouchedFor(fleet.PersonOIDC, "1", "eve", fleet.RoleViewer), nil)
	third, err := h.come(t)
	if err != nil {
		t.Fatal(err)
	}
	alive(t, h, first, false)
	alive(t, h, second, false)
	if c, err := h.PeekSession(t.Context(), third); err != nil || c.Role != fleet.RoleViewer {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := h.ByToken(t.Context(), made); err != nil || c.Role != fleet.RoleViewer {
		t.Errorf("the token may do what its person may: %+v, %v", c, err)
	}
	if ends := h.announced(); len(ends) != 1 || ends[0] != (End{UserID: c.UserID, Reason: ReasonRole}) {
		t.Errorf("announced %+v", ends)
	}
	// No group any more: everything ends.
	e.say(vouchedFor(fleet.PersonOIDC, "1", "eve", ""), nil)
	_, err = h.come(t)
	wants(t, "no group any more", err, fleet.ErrForbidden)
	alive(t, h, third, false)
	_, err = h.ByToken(t.Context(), made)
	wants(t, "the token", err, fleet.ErrUnauthenticated)

	// There is no password, no second factor and no role to be had here.
	e.say(vouchedFor(fleet.PersonOIDC, "1", "eve", fleet.RoleViewer), nil)
	fourth, err := h.come(t)
	if err != nil {
		t.Fatal(err)
	}
	c, err = h.PeekSession(t.Context(), fourth)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "a password", h.ChangePassword(t.Context(), c, secret, secret), fleet.ErrInvalid)
	wants(t, "a password by the host", h.SetPassword(t.Context(), host, "eve", secret), fleet.ErrInvalid)
	wants(t, "a role", h.SetRole(t.Context(), host, "eve", fleet.RoleAdmin), fleet.ErrInvalid)
	_, err = h.Reinvite(t.Context(), host, "eve")
	wants(t, "an invitation", err, fleet.ErrConflict)
	_, err = h.BeginFactor(t.Context(), c, "")
	wants(t, "a second factor", err, fleet.ErrInvalid)
	_, _, err = h.SignIn(t.Context(), "eve", "", from, "")
	wants(t, "a sign-in with an empty password", err, fleet.ErrUnauthenticated)

	// Disabled is disabled, whoever vouches.
	if err := h.SetDisabled(t.Context(), host, "eve", true); err != nil {
		t.Fatal(err)
	}
	alive(t, h, fourth, false)
	_, err = h.come(t)
	wants(t, "disabled", err, fleet.ErrForbidden)
}

// TestVouched_Race: who comes several times at once, for the first time, is one person.
func TestVouched_Race(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.provider = &elsewhere{vouched: vouchedFor(fleet.PersonOIDC, "1", "eve", fleet.RoleViewer)}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := h.come(t); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if users, err := h.Users(t.Context()); err != nil || len(users) != 2 {
		t.Errorf("%+v, %v", users, err)
	}
}

// TestVouched_AddressIsThrottled: nobody makes us ask the provider without end.
func TestVouched_AddressIsThrottled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := build(t, nil)
		h.provider = &elsewhere{err: fleet.ErrUnauthenticated}
		for range addrMost {
			_, err := h.come(t)
			wants(t, "proves nothing", err, fleet.ErrUnauthenticated)
		}
		_, err := h.come(t)
		wants(t, "one more", err, fleet.ErrTooMany)
		pass(addrWindow)
		_, err = h.come(t)
		wants(t, "later", err, fleet.ErrUnauthenticated)
	})
}

// TestSignIn_AllKindsAlike: whoever's name it is, of a wrong password the work is one computation and one question to the
// directory, the answer is the same, and a local password goes nowhere else.
func TestSignIn_AllKindsAlike(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	e := &elsewhere{vouched: vouchedFor(fleet.PersonLDAP, "l", "", fleet.RoleOperator)}
	h.directory, h.provider = e, e
	token, _, err := h.SignIn(t.Context(), "Lou", "directory password", from, "")
	if err != nil {
		t.Fatal(err)
	}
	lou, err := h.PeekSession(t.Context(), token)
	if err != nil || lou.Name != "lou" || lou.Role != fleet.RoleOperator {
		t.Fatalf("%+v, %v", lou, err)
	}
	e.say(vouchedFor(fleet.PersonOIDC, "o", "olga", fleet.RoleViewer), nil)
	if _, err := h.come(t); err != nil {
		t.Fatal(err)
	}
	e.say(fleet.Vouched{}, nil)
	h.add(t, "gone", fleet.RoleViewer)
	if err := h.SetDisabled(t.Context(), host, "gone", true); err != nil {
		t.Fatal(err)
	}
	if _, err := h.InviteUser(t.Context(), host, "ivo", fleet.RoleViewer); err != nil {
		t.Fatal(err)
	}
	words := map[string]bool{}
	for i, name := range []string{"ada", "lou", "olga", "gone", "ivo", "nobody", "a b"} {
		e.asked = nil
		before := h.hasher.computed.Load()
		_, _, err := h.SignIn(t.Context(), name, "wrong password", fleet.Caller{Addr: fmt.Sprintf("192.0.2.%d", 100+i)}, "")
		wants(t, name, err, fleet.ErrUnauthenticated)
		words[err.Error()] = true
		if n := h.hasher.computed.Load() - before; n != 1 || len(e.asked) != 1 {
			t.Errorf("%s: %d computations, asked %q", name, n, e.asked)
		}
		if sent := strings.HasSuffix(e.asked[0], "wrong password"); sent != (name == "lou" || name == "nobody") {
			t.Errorf("%s: the directory was asked %q", name, e.asked)
		}
	}
	if len(words) != 1 {
		t.Errorf("failures say different things: %v", words)
	}
	e.asked = nil
	h.in(t, "ada")
	if len(e.asked) != 1 || strings.Contains(e.asked[0], secret) {
		t.Errorf("a local password went to the directory: %q", e.asked)
	}

	// The directory is down: local people get in, and of all others nobody learns who is who.
	e.say(fleet.Vouched{}, fmt.Errorf("connection refused: %w", fleet.ErrUnavailable))
	h.in(t, "ada")
	for _, name := range []string{"ada", "lou", "olga", "gone", "nobody", "a b"} {
		_, _, err := h.SignIn(t.Context(), name, "wrong password", fleet.Caller{Addr: "192.0.2.200"}, "")
		wants(t, name+" while it is down", err, fleet.ErrUnavailable)
	}
	// In no group any more: told no more than anybody else, and what is open ends.
	e.say(vouchedFor(fleet.PersonLDAP, "l", "", ""), nil)
	_, _, err = h.SignIn(t.Context(), "lou", "directory password", from, "")
	if !errors.Is(err, fleet.ErrUnauthenticated) || errors.Is(err, fleet.ErrForbidden) {
		t.Errorf("no group any more: %v", err)
	}
	alive(t, h, token, false)
	// A password that is too long is not cut and sent.
	e.asked = nil
	_, _, err = h.SignIn(t.Context(), "lou", strings.Repeat("x", passwordMost+1), from, "")
	wants(t, "too long", err, fleet.ErrUnauthenticated)
	if len(e.asked) != 1 || e.asked[0] != "lou (none)" {
		t.Errorf("asked %q", e.asked)
	}
}
