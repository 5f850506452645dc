package auth

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// TestRun_NoticesWhatAnotherProcessDoes: a change through another handle of the same database is announced within five
// seconds, though the only thing this process does is to hold a stream open.
func TestRun_NoticesWhatAnotherProcessDoes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		do     func(ctx context.Context, cli *house, session fleet.Caller) error
		reason string
	}{
		{"disabled", func(ctx context.Context, cli *house, _ fleet.Caller) error {
			return cli.SetDisabled(ctx, host, "vic", true)
		}, ReasonDisabled},
		{"disabled and enabled", func(ctx context.Context, cli *house, _ fleet.Caller) error {
			if err := cli.SetDisabled(ctx, host, "vic", true); err != nil {
				return err
			}
			return cli.SetDisabled(ctx, host, "vic", false)
		}, ReasonDisabled},
		{"password", func(ctx context.Context, cli *house, _ fleet.Caller) error {
			return cli.SetPassword(ctx, host, "vic", "another long phrase")
		}, ReasonPassword},
		{"role", func(ctx context.Context, cli *house, _ fleet.Caller) error {
			return cli.SetRole(ctx, host, "vic", fleet.RoleOperator)
		}, ReasonRole},
		{"ended", func(ctx context.Context, cli *house, c fleet.Caller) error {
			return cli.EndSession(ctx, host, c.Session)
		}, ReasonRevoked},
		{"idle", func(context.Context, *house, fleet.Caller) error {
			pass(30*time.Minute - time.Second)
			return nil
		}, ReasonExpired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				server, cli := enter(t, dir, nil), enter(t, dir, nil)
				defer server.close(t)
				defer cli.close(t)
				cli.add(t, "vic", fleet.RoleViewer)
				cli.add(t, "ada", fleet.RoleAdmin)
				token, vic := server.in(t, "vic")
				other, _ := server.in(t, "ada")
				defer server.run(t)()
				pass(time.Second)
				active(t, server, other)
				if err := tt.do(t.Context(), cli, vic); err != nil {
					t.Fatal(err)
				}
				server.announced()
				pass(5 * time.Second)
				synctest.Wait()
				got := server.announced()
				want := End{Session: vic.Session, UserID: vic.UserID, Reason: tt.reason}
				if !slices.Contains(got, want) { // of two that ended at once, either may be said first
					t.Fatalf("announced %+v, want %+v", got, want)
				}
				for _, e := range got {
					if e.UserID != vic.UserID && tt.reason != ReasonExpired {
						t.Errorf("somebody else was ended: %+v", e)
					}
				}
				alive(t, server, token, false)
				// It is said again for a while, for who was just opening something, and then no more.
				pass(lingerFor)
				synctest.Wait()
				again := server.announced()
				if len(again) == 0 {
					t.Error("said once only")
				}
				pass(time.Minute)
				synctest.Wait()
				if got := server.announced(); len(got) != 0 {
					t.Errorf("still said: %+v", got)
				}
				server.mu.Lock()
				defer server.mu.Unlock()
				if server.known[vic.Session] != nil {
					t.Error("remembered for ever")
				}
			})
		})
	}
}

func TestRun_AbsoluteEndOfASessionAndOfAToken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.sessions.Lifetime = time.Hour
		h.add(t, "ada", fleet.RoleAdmin)
		session, c := h.in(t, "ada")
		bearer, tok, err := h.AddToken(t.Context(), c, fleet.Token{Name: "ci", ExpiresAt: after(2 * time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		by, err := h.ByToken(t.Context(), bearer)
		if err != nil {
			t.Fatal(err)
		}
		defer h.run(t)()
		for range 5 {
			pass(10 * time.Minute)
			active(t, h, session)
		}
		pass(10*time.Minute - time.Second)
		active(t, h, session)
		if got := h.announced(); len(got) != 0 {
			t.Fatalf("too early: %+v", got)
		}
		pass(6 * time.Second)
		synctest.Wait()
		if got := h.announced(); len(got) == 0 || got[0] != (End{Session: c.Session, UserID: c.UserID, Reason: ReasonExpired}) {
			t.Errorf("session: %+v", got)
		}
		pass(time.Until(tok.ExpiresAt) - time.Second)
		h.announced()
		if _, err := h.ByToken(t.Context(), bearer); err != nil {
			t.Error(err)
		}
		pass(5 * time.Second)
		synctest.Wait()
		if got := h.announced(); len(got) == 0 || got[0] != (End{Session: by.Session, UserID: by.UserID, Reason: ReasonExpired}) {
			t.Errorf("token: %+v", got)
		}
		// The janitor has been by since: nothing dead is left.
		pass(cleanEvery)
		synctest.Wait()
		var rows int
		if err := h.store.Tx(t.Context(), func(tx *store.Tx) error {
			return tx.Get(&rows, `SELECT (SELECT COUNT(*) FROM sessions) + (SELECT COUNT(*) FROM tokens)`)
		}); err != nil || rows != 0 {
			t.Errorf("%d dead rows are left, %v", rows, err)
		}
	})
}

// TestRun_ATombstoneStaysUntilTheAbsoluteEnd: the janitor does not take away what says that a session was ended.
func TestRun_ATombstoneStaysUntilTheAbsoluteEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		token, c := h.in(t, "ada")
		if err := h.SignOut(t.Context(), token); err != nil {
			t.Fatal(err)
		}
		defer h.run(t)()
		pass(12*time.Hour - time.Second)
		synctest.Wait()
		if why, err := h.store.WhyEnded(t.Context(), c.Session); why != ReasonLogout || err != nil {
			t.Errorf("%q, %v", why, err)
		}
		pass(time.Second + cleanEvery)
		synctest.Wait()
		if why, err := h.store.WhyEnded(t.Context(), c.Session); why != "" || err != nil {
			t.Errorf("%q, %v", why, err)
		}
	})
}

// TestOnEnd_LateOpener: a stream whose session was checked before it was ended, and that registers after the end was
// announced, is told by the next announcement.
func TestOnEnd_LateOpener(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		token, c := h.in(t, "ada")
		defer h.run(t)()
		if err := h.SignOut(t.Context(), token); err != nil {
			t.Fatal(err)
		}
		if got := h.announced(); len(got) != 1 {
			t.Fatalf("at once: %+v", got)
		}
		pass(pollEvery)
		synctest.Wait()
		if got := h.announced(); len(got) != 1 || got[0] != (End{Session: c.Session, UserID: c.UserID, Reason: ReasonLogout}) {
			t.Errorf("again: %+v", got)
		}
	})
}

func TestRun_ARoleChangeEndsTheStreamsOfATokenOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h, cli := enter(t, dir, nil), enter(t, dir, nil)
		defer h.close(t)
		defer cli.close(t)
		h.add(t, "vic", fleet.RoleOperator)
		session, c := h.in(t, "vic")
		bearer, _, err := h.AddToken(t.Context(), c, fleet.Token{Name: "ci", ExpiresAt: after(24 * time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.SignOut(t.Context(), session); err != nil {
			t.Fatal(err)
		}
		by, err := h.ByToken(t.Context(), bearer)
		if err != nil {
			t.Fatal(err)
		}
		defer h.run(t)()
		pass(time.Minute)
		h.announced()
		if err := cli.SetRole(t.Context(), host, "vic", fleet.RoleViewer); err != nil {
			t.Fatal(err)
		}
		if now, err := h.ByToken(t.Context(), bearer); err != nil || now.Role != fleet.RoleViewer {
			t.Errorf("the token's role is %s, %v", now.Role, err)
		}
		pass(time.Minute)
		synctest.Wait()
		if diff := cmp.Diff([]End{{Session: by.Session, UserID: by.UserID, Reason: ReasonRole}}, h.announced()); diff != "" {
			t.Errorf("ends (-want +got):\n%s", diff)
		}
	})
}

// broken is a store that cannot be asked for a while.
type broken struct {
	Store
	now atomic.Bool
}

func (b *broken) Credentials(ctx context.Context, at time.Time) ([]fleet.CredentialKey, error) {
	if b.now.Load() {
		return nil, fleet.ErrUnavailable
	}
	return b.Store.Credentials(ctx, at)
}

func TestRun_OutlivesABrokenStoreAndSaysSoOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &broken{}
		h := enter(t, dir, func(s *store.Store) Store { b.Store = s; return b })
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		h.add(t, "vic", fleet.RoleViewer)
		_, vic := h.in(t, "vic")
		b.now.Store(true)
		defer h.run(t)()
		pass(time.Minute)
		synctest.Wait()
		if got := h.announced(); len(got) != 0 {
			t.Errorf("not to know is no end: %+v", got)
		}
		if _, _, err := h.store.ChangeUser(t.Context(), "vic", fleet.UserChange{Disabled: new(true)}, time.Now(),
			func(_, _ fleet.User) fleet.Entry { return fleet.Entry{} }); err != nil {
			t.Fatal(err)
		}
		b.now.Store(false)
		pass(pollEvery)
		synctest.Wait()
		if got := h.announced(); len(got) != 1 || got[0].Session != vic.Session {
			t.Errorf("nothing is missed: %+v", got)
		}
		for what, want := range map[string]int{"credentials cannot be read": 1, "credentials can be read again": 1} {
			if got := countOf(h.said.String(), what); got != want {
				t.Errorf("%q was said %d times", what, got)
			}
		}
	})
}
