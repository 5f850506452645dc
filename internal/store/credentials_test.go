package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// TestCredentials_GoByThePerson: a session or token is good only with its person, whether or not somebody has ended it
// as well: of the two locks on that door, each holds alone.
func TestCredentials_GoByThePerson(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		change          string
		session, bearer bool // that are good afterwards
	}{
		"nothing":  {`UPDATE users SET name = name`, true, true},
		"disabled": {`UPDATE users SET disabled_at = 1`, false, false},
		"changed":  {`UPDATE users SET epoch = epoch + 1`, false, true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s, ctx, now := open(t, store.Config{}), t.Context(), time.Now()
			later := now.Add(time.Hour)
			event := fleet.Entry{Actor: "ada", Action: "test", Phase: "event"}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(s.AddUser(ctx, fleet.Account{User: fleet.User{ID: "a", Name: "ada", Role: fleet.RoleViewer, Epoch: 1, CreatedAt: now, Kind: fleet.PersonLocal}, Password: "x"}, event))
			must(s.AddSession(ctx, fleet.NewSession{
				Session: fleet.Session{Hash: "s", CreatedAt: now, SeenAt: now, ExpiresAt: later}, UserID: "a", Epoch: 1, IdleAt: later,
			}, nil, event))
			must(s.AddToken(ctx, "t", fleet.Token{ID: "t", Name: "ci", CreatedAt: now, ExpiresAt: later}, "a", "", 9, event))
			must(s.Tx(ctx, func(tx *store.Tx) error {
				_, err := tx.Exec(c.change)
				return err
			}))
			judge := func(kind string, good bool, err error) {
				t.Helper()
				if good && err != nil || !good && !errors.Is(err, fleet.ErrUnauthenticated) {
					t.Errorf("%s: %v, good: %t", kind, err, good)
				}
			}
			_, err := s.Session(ctx, "s", now)
			judge("the session", c.session, err)
			_, err = s.Token(ctx, "t", now)
			judge("the token", c.bearer, err)
		})
	}
}
