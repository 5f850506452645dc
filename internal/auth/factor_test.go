package auth

import (
	"bytes"
	"encoding/base32"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/auth/totp"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// app is the authenticator of a person.
type app struct{ secret []byte }

func (a app) code(at time.Time) string { return totp.Code(a.secret, totp.Step(at)) }

// enrol gives a person a second factor, confirmed with the code of the step before this one, so that the code of now is
// good for the sign-in that follows.
func (h *house) enrol(t *testing.T, by fleet.Caller) (app, []string) {
	t.Helper()
	e, err := h.BeginFactor(t.Context(), by, secret)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base32.StdEncoding.DecodeString(e.Secret)
	if err != nil {
		t.Fatal(err)
	}
	a := app{raw}
	recovery, err := h.ConfirmFactor(t.Context(), by, a.code(time.Now().Add(-30*time.Second)))
	if err != nil {
		t.Fatal(err)
	}
	return a, recovery
}

// firstStep signs in as far as the password goes.
func (h *house) firstStep(t *testing.T, name string) string {
	t.Helper()
	token, _, err := h.SignIn(t.Context(), name, secret, from, "")
	e, ok := errors.AsType[*fleet.SecondStepError](err)
	if !ok || token != "" {
		t.Fatalf("%q, %v", token, err)
	}
	return e.Token
}

func TestFactor_Life(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	other, its := h.in(t, "ada")
	session, by := h.in(t, "ada")
	h.announced()
	a, recovery := h.enrol(t, by)
	if len(recovery) != recoveryCodes {
		t.Errorf("%d recovery codes", len(recovery))
	}
	alive(t, h, session, true)
	alive(t, h, other, false) // was begun without the second factor
	if ends := h.announced(); len(ends) != 1 || ends[0].Session != its.Session {
		t.Errorf("announced: %+v", ends)
	}
	_, err := h.BeginFactor(t.Context(), by, secret)
	wants(t, "a second one", err, fleet.ErrConflict)

	half := h.firstStep(t, "ada")
	// Half signed in is signed in nowhere.
	_, err = h.BySession(t.Context(), half)
	wants(t, "half as a session", err, fleet.ErrUnauthenticated)
	_, err = h.ByToken(t.Context(), "knm_"+half)
	wants(t, "half as a token", err, fleet.ErrUnauthenticated)

	_, _, err = h.SecondStep(t.Context(), half, "000000x", from, "")
	wants(t, "a wrong code", err, fleet.ErrUnauthenticated)
	code := a.code(time.Now())
	token, _, err := h.SecondStep(t.Context(), half, code[:3]+" "+code[3:], from, "")
	if err != nil {
		t.Fatal(err)
	}
	alive(t, h, token, true)
	if token == half {
		t.Error("the half sign-in became the session")
	}
	_, _, err = h.SecondStep(t.Context(), half, recovery[0], from, "")
	wants(t, "the half sign-in again", err, fleet.ErrUnauthenticated)
	_, _, err = h.SecondStep(t.Context(), h.firstStep(t, "ada"), code, from, "")
	wants(t, "the code again", err, fleet.ErrUnauthenticated)

	token, _, err = h.SecondStep(t.Context(), h.firstStep(t, "ada"), strings.ToLower(recovery[1]), from, "")
	if err != nil {
		t.Fatal(err)
	}
	alive(t, h, token, true)
	_, _, err = h.SecondStep(t.Context(), h.firstStep(t, "ada"), recovery[1], from, "")
	wants(t, "the recovery code again", err, fleet.ErrUnauthenticated)
	if st, err := h.SecondFactor(t.Context(), by); err != nil || st.Recovery != recoveryCodes-1 || st.Since.IsZero() || !st.Available {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestFactor_OneUse: of many that come with one code at once, one signs in.
func TestFactor_OneUse(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	_, by := h.in(t, "ada")
	a, recovery := h.enrol(t, by)
	for what, code := range map[string]string{"code": a.code(time.Now()), "recovery code": recovery[0]} {
		const n = 4 // no more than cost nothing
		var wg sync.WaitGroup
		var mu sync.Mutex
		in := 0
		halves := make([]string, n)
		for i := range halves {
			halves[i] = h.firstStep(t, "ada")
		}
		for _, half := range halves {
			wg.Go(func() {
				_, _, err := h.SecondStep(t.Context(), half, code, from, "")
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					in++
				} else if !errors.Is(err, fleet.ErrUnauthenticated) {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		wg.Wait()
		if in != 1 {
			t.Errorf("%d signed in with one %s", in, what)
		}
		if err := h.store.TakeBack(t.Context(), attemptKeys(nameKey("ada"), from.Addr)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFactor_GuessingIsThrottled: whoever knows the password gets no more codes to try than passwords, however often the
// password is shown in between, and the right password does not reset the counter.
func TestFactor_GuessingIsThrottled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := build(t, nil)
		_, by := h.in(t, "ada")
		a, _ := h.enrol(t, by)
		tried := 0
		deadline := time.Now().Add(15 * time.Minute)
		for i := 0; time.Now().Before(deadline) && tried <= 20; i++ {
			at := fleet.Caller{Addr: fmt.Sprintf("198.51.100.%d", i%250)} // the address is not what stops them
			_, _, err := h.SignIn(t.Context(), "ada", secret, at, "")
			if e, ok := errors.AsType[*fleet.SecondStepError](err); ok {
				_, _, err = h.SecondStep(t.Context(), e.Token, "999-wrong", at, "")
				if errors.Is(err, fleet.ErrUnauthenticated) {
					tried++
					continue
				}
			}
			wait, ok := errors.AsType[*fleet.LimitError](err)
			if !ok {
				t.Fatal(err)
			}
			pass(wait.Retry)
		}
		if tried < nameFree || tried > 20 {
			t.Errorf("%d codes were tried in a quarter of an hour", tried)
		}
		// Its person still gets in, when the delay is over.
		var err error
		for range 3 {
			_, _, err = h.SignIn(t.Context(), "ada", secret, from, "")
			if wait, ok := errors.AsType[*fleet.LimitError](err); ok {
				pass(wait.Retry)
				continue
			}
			break
		}
		e, ok := errors.AsType[*fleet.SecondStepError](err)
		if !ok {
			t.Fatal(err)
		}
		if _, _, err := h.SecondStep(t.Context(), e.Token, a.code(time.Now()), from, ""); err != nil {
			t.Errorf("the right code right after the right password: %v", err)
		}
	})
}

func TestFactor_HalfExpires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := build(t, nil)
		_, by := h.in(t, "ada")
		a, _ := h.enrol(t, by)
		half := h.firstStep(t, "ada")
		late := h.firstStep(t, "ada")
		pass(halfLife - time.Second)
		if _, _, err := h.SecondStep(t.Context(), half, a.code(time.Now()), from, ""); err != nil {
			t.Error(err)
		}
		pass(time.Second)
		_, _, err := h.SecondStep(t.Context(), late, a.code(time.Now().Add(30*time.Second)), from, "")
		wants(t, "too late", err, fleet.ErrUnauthenticated)
		// Whoever is disabled between the steps does not get in.
		h.add(t, "bob", fleet.RoleViewer)
		_, bob := h.in(t, "bob")
		b, _ := h.enrol(t, bob)
		half = h.firstStep(t, "bob")
		if err := h.SetDisabled(t.Context(), host, "bob", true); err != nil {
			t.Fatal(err)
		}
		_, _, err = h.SecondStep(t.Context(), half, b.code(time.Now()), from, "")
		wants(t, "disabled meanwhile", err, fleet.ErrUnauthenticated)
	})
}

func TestFactor_WhoMay(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.add(t, "bob", fleet.RoleViewer)
	_, ada := h.in(t, "ada")
	held, bob := h.in(t, "bob")
	ctx := t.Context()
	token := bob
	token.Via = "token"
	_, err := h.BeginFactor(ctx, token, secret)
	wants(t, "by a token", err, fleet.ErrForbidden)
	_, err = h.BeginFactor(ctx, bob, "wrong password")
	wants(t, "without the password", err, fleet.ErrInvalid)
	_, err = h.ConfirmFactor(ctx, bob, "123456")
	wants(t, "nothing to confirm", err, fleet.ErrConflict)
	if _, err := h.BeginFactor(ctx, bob, secret); err != nil {
		t.Fatal(err)
	}
	_, err = h.ConfirmFactor(ctx, bob, "12345")
	wants(t, "a wrong code", err, fleet.ErrInvalid)
	h.in(t, "bob") // what is not confirmed is not asked for

	h.enrol(t, bob)
	_, aRecovery := h.enrol(t, ada)
	wants(t, "reset by a viewer", h.ResetFactor(ctx, bob, "ada"), fleet.ErrForbidden)
	wants(t, "reset of one's own", h.ResetFactor(ctx, ada, "ada"), fleet.ErrForbidden)
	wants(t, "reset of nobody's", h.ResetFactor(ctx, ada, "eve"), fleet.ErrNotFound)
	alive(t, h, held, true)
	made, _, err := h.AddToken(ctx, bob, fleet.Token{Name: "ci", ExpiresAt: after(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.ResetFactor(ctx, ada, "Bob"); err != nil {
		t.Fatal(err)
	}
	_, err = h.ByToken(ctx, made)
	wants(t, "a token from before the reset", err, fleet.ErrUnauthenticated)
	alive(t, h, held, false)
	wants(t, "reset of what is not there", h.ResetFactor(ctx, ada, "bob"), fleet.ErrConflict)
	h.in(t, "bob")

	wants(t, "drop with a wrong code", h.DropFactor(ctx, ada, "nothing"), fleet.ErrInvalid)
	if err := h.DropFactor(ctx, ada, aRecovery[0]); err != nil {
		t.Fatal(err)
	}
	_, ada = h.in(t, "ada")
	wants(t, "drop of what is not there", h.DropFactor(ctx, ada, aRecovery[1]), fleet.ErrConflict)
	var actions []string
	log, err := h.log.Entries(ctx, fleet.AuditFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range log {
		if strings.HasPrefix(e.Action, "factor.") && e.Outcome == "succeeded" {
			actions = append(actions, e.Actor+" "+e.Action)
		}
	}
	if got := strings.Join(actions, ", "); got != "ada factor.drop, ada factor.reset, ada factor.add, bob factor.add" {
		t.Errorf("on record: %s", got)
	}
}

// TestFactor_SecretsAreNotInTheDatabase: not the secret in any form, not a recovery code, not a token of the first step,
// and nothing of them in the log.
func TestFactor_SecretsAreNotInTheDatabase(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	_, by := h.in(t, "ada")
	a, recovery := h.enrol(t, by)
	half := h.firstStep(t, "ada")
	inv, err := h.InviteUser(t.Context(), host, "eve", fleet.RoleViewer)
	if err != nil {
		t.Fatal(err)
	}
	hidden := map[string]string{
		"secret": string(a.secret), "secret as text": totp.Text(a.secret), "recovery code": strings.ReplaceAll(recovery[0], "-", ""),
		"half sign-in": half, "invitation": inv.Code,
	}
	files, err := filepath.Glob(filepath.Join(h.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		found = found || bytes.Contains(b, []byte(by.Session)) // what is looked for would be found
		for what, s := range hidden {
			if bytes.Contains(b, []byte(s)) || strings.Contains(h.said.String(), s) {
				t.Errorf("%s is in %s or in the log", what, filepath.Base(f))
			}
		}
	}
	if !found {
		t.Error("the hash of the session is nowhere: the files were not read")
	}
}

// TestFactor_WrongKey: without the right key no code is good, a recovery code is, and the error names no secret.
func TestFactor_WrongKey(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	_, by := h.in(t, "ada")
	a, recovery := h.enrol(t, by)
	h.sealer = nil
	_, _, err := h.SecondStep(t.Context(), h.firstStep(t, "ada"), a.code(time.Now()), from, "")
	wants(t, "no key", err, fleet.ErrUnavailable)
	if _, _, err = h.SecondStep(t.Context(), h.firstStep(t, "ada"), recovery[0], from, ""); err != nil {
		t.Error(err)
	}
	_, err = h.BeginFactor(t.Context(), by, secret)
	wants(t, "no key to begin with", err, fleet.ErrInvalid)
}

func TestInvite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := build(t, nil)
		ctx := t.Context()
		viewer := fleet.Caller{Name: "bob", UserID: "b", Role: fleet.RoleViewer, Via: "session"}
		_, err := h.InviteUser(ctx, viewer, "eve", fleet.RoleViewer)
		wants(t, "by a viewer", err, fleet.ErrForbidden)
		inv, err := h.InviteUser(ctx, host, "Eve", fleet.RoleAdmin)
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.InviteUser(ctx, host, "eve", fleet.RoleViewer)
		wants(t, "a taken name", err, fleet.ErrConflict)
		for _, guess := range []string{"", secret, inv.Code} {
			_, _, err = h.SignIn(ctx, "eve", guess, from, "")
			wants(t, "before the password is set", err, fleet.ErrUnauthenticated)
		}
		wants(t, "the last admin who can sign in", h.SetDisabled(ctx, fleet.Caller{Name: "ada", UserID: "a", Role: fleet.RoleAdmin, Via: "session"}, "ada", true), fleet.ErrConflict)

		before := h.hasher.computed.Load()
		wants(t, "a wrong code", h.AcceptInvitation(ctx, inv.Code+"x", secret), fleet.ErrInvalid)
		wants(t, "a short password", h.AcceptInvitation(ctx, inv.Code, "x"), fleet.ErrInvalid)
		if h.hasher.computed.Load() != before {
			t.Error("what is refused was paid for")
		}
		if err := h.AcceptInvitation(ctx, inv.Code, secret); err != nil {
			t.Fatal(err)
		}
		token, eve := h.in(t, "eve")
		wants(t, "a second use", h.AcceptInvitation(ctx, inv.Code, "another password"), fleet.ErrInvalid)

		// For a password that was lost. What was signed in ends when it is used, and not before.
		first, err := h.Reinvite(ctx, host, "eve")
		if err != nil {
			t.Fatal(err)
		}
		second, err := h.Reinvite(ctx, host, "eve")
		if err != nil {
			t.Fatal(err)
		}
		alive(t, h, token, true)
		wants(t, "one that was replaced", h.AcceptInvitation(ctx, first.Code, secret), fleet.ErrInvalid)
		h.announced()
		if err := h.AcceptInvitation(ctx, second.Code, "another password"); err != nil {
			t.Fatal(err)
		}
		alive(t, h, token, false)
		if ends := h.announced(); len(ends) != 1 || ends[0].UserID != eve.UserID {
			t.Errorf("announced %+v", ends)
		}

		// Time, a new password and being disabled end an invitation.
		late, err := h.Reinvite(ctx, host, "eve")
		if err != nil {
			t.Fatal(err)
		}
		pass(inviteLife)
		wants(t, "too late", h.AcceptInvitation(ctx, late.Code, secret), fleet.ErrInvalid)
		for what, end := range map[string]func() error{
			"password": func() error { return h.SetPassword(ctx, host, "eve", secret) },
			"disabled": func() error { return h.SetDisabled(ctx, host, "eve", true) },
		} {
			inv, err := h.Reinvite(ctx, host, "eve")
			if err != nil {
				t.Fatal(err)
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			wants(t, what, h.AcceptInvitation(ctx, inv.Code, "yet another password"), fleet.ErrInvalid)
			if err := h.SetDisabled(ctx, host, "eve", false); err != nil {
				t.Fatal(err)
			}
			wants(t, what+", let in again", h.AcceptInvitation(ctx, inv.Code, "yet another password"), fleet.ErrInvalid)
		}
		if err := h.SetDisabled(ctx, host, "eve", true); err != nil {
			t.Fatal(err)
		}
		_, err = h.Reinvite(ctx, host, "eve")
		wants(t, "who is disabled", err, fleet.ErrConflict)
		_, err = h.Reinvite(ctx, host, "nobody")
		wants(t, "nobody", err, fleet.ErrNotFound)
	})
}

// TestInvite_Race: of many who come with one invitation at once, one sets the password.
func TestInvite_Race(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	inv, err := h.InviteUser(t.Context(), host, "eve", fleet.RoleViewer)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	set := 0
	for i := range 8 {
		wg.Go(func() {
			err := h.AcceptInvitation(t.Context(), inv.Code, fmt.Sprintf("password number %d", i))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				set++
			} else if !errors.Is(err, fleet.ErrInvalid) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if set != 1 {
		t.Errorf("%d set a password", set)
	}
}
