package auth

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestSetup_OnceAndOnlyFresh(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		needs := func(want bool) {
			t.Helper()
			if got, err := h.NeedsSetup(t.Context()); err != nil || got != want {
				t.Errorf("needs set-up: %v, %v", got, err)
			}
		}
		code := func() string {
			t.Helper()
			code, ok, err := h.EnsureSetupCode(t.Context())
			if err != nil || !ok || len(code) != 29 {
				t.Fatalf("%q, %v, %v", code, ok, err)
			}
			return code
		}
		badCode := func(what, code string) {
			t.Helper()
			err := h.Setup(t.Context(), code, "ada", secret)
			if e, ok := errors.AsType[*fleet.FieldError](err); !ok || e.Field != "code" {
				t.Errorf("%s: %v", what, err)
			}
		}
		needs(true)
		for _, name := range []string{"admin", "root", "ada"} { // nobody is there from the start
			wants(t, name, h.try(t, name, "admin123", from.Addr), fleet.ErrUnauthenticated)
		}
		badCode("no code was made", "")
		first := code()
		second := code()
		badCode("replaced", first)
		badCode("empty", "")
		badCode("too much", second+"A")
		pass(setupLife)
		badCode("expired", second)
		third := code()
		before := h.hasher.computed.Load()
		badCode("guess", "AAAA-AAAA-AAAA-AAAA-AAAA-AAAA")
		if h.hasher.computed.Load() != before {
			t.Error("a wrong code cost a computation")
		}
		err := h.Setup(t.Context(), third, "ada", "short")
		if e, ok := errors.AsType[*fleet.FieldError](err); !ok || e.Field != "password" {
			t.Errorf("short password: %v", err)
		}
		needs(true)
		pass(setupLife - time.Second)
		if err := h.Setup(t.Context(), " "+strings.ToLower(strings.ReplaceAll(third, "-", " "))+"\n", "Ada", secret); err != nil {
			t.Fatal(err)
		}
		needs(false)
		wants(t, "second use", h.Setup(t.Context(), third, "eve", secret), fleet.ErrConflict)
		if _, ok, err := h.EnsureSetupCode(t.Context()); ok || err != nil {
			t.Errorf("a code was made although somebody exists: %v", err)
		}
		_, c := h.in(t, "ada")
		if c.Role != fleet.RoleAdmin {
			t.Errorf("first person is %s", c.Role)
		}
	})
}

func TestSetup_OfTwoOneWins(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one, two := enter(t, dir, nil), enter(t, dir, nil) // two processes
	defer one.close(t)
	defer two.close(t)
	for range 100 {
		if err := one.store.Tx(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Exec(`DELETE FROM users`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		again := func(h *house) *Service {
			return New(Config{Store: h.store, Audit: h.log, Logger: discard(), Hash: &cheap})
		}
		a, b := again(one), again(two)
		code, ok, err := a.EnsureSetupCode(t.Context())
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		errs := make([]error, 2)
		var wg sync.WaitGroup
		for i, h := range []*Service{a, b} {
			wg.Go(func() { errs[i] = h.Setup(t.Context(), code, []string{"ada", "eve"}[i], secret) })
		}
		wg.Wait()
		users, err := a.Users(t.Context())
		if err != nil || len(users) != 1 {
			t.Fatalf("%v, %v", users, err)
		}
		won := 0
		for i, err := range errs {
			switch {
			case err == nil:
				won++
				if want := []string{"ada", "eve"}[i]; users[0].Name != want {
					t.Errorf("%s won, but %s exists", want, users[0].Name)
				}
			case !errors.Is(err, fleet.ErrConflict) && !errors.Is(err, fleet.ErrInvalid):
				t.Error(err)
			}
		}
		if won != 1 {
			t.Fatalf("%d won: %v", won, errs)
		}
	}
}

// TestSetup_WinnerIsDecidedByTheStore: both have passed every check when the code is used.
func TestSetup_WinnerIsDecidedByTheStore(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if ok, err := s.SetSetupCode(t.Context(), "h", after(time.Hour)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	use := func(name string) error {
		return s.UseSetupCode(t.Context(), "h", time.Now(), fleet.Account{User: fleet.User{ID: name, Name: name, Role: fleet.RoleAdmin}}, fleet.Entry{})
	}
	if err := use("ada"); err != nil {
		t.Fatal(err)
	}
	wants(t, "second use", use("eve"), fleet.ErrConflict)
}
