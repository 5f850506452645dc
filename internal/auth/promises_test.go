package auth

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// TestPromises holds the limits to the numbers that docs/security.md gives. The other tests follow whatever they are.
func TestPromises(t *testing.T) {
	t.Parallel()
	s := New(Config{Logger: slog.New(slog.DiscardHandler)})
	for what, pair := range map[string][2]any{
		"a set-up code":                  {setupLife, 30 * time.Minute},
		"an invitation":                  {inviteLife, 72 * time.Hour},
		"half a sign-in":                 {halfLife, 5 * time.Minute},
		"a token":                        {tokenLife, 90 * 24 * time.Hour},
		"an idle session":                {s.sessions.IdleTimeout, 30 * time.Minute},
		"a session":                      {s.sessions.Lifetime, 12 * time.Hour},
		"bits of a token":                {tokenBytes * 8, 256},
		"a known browser":                {deviceLife, 90 * 24 * time.Hour},
		"known browsers of a person":     {deviceMost, 50},
		"the shortest password":          {passwordLeast, 10},
		"failures that cost nothing":     {nameFree, 5},
		"the longest delay":              {delayMost, 15 * time.Minute},
		"failures of an address":         {addrMost, 20},
		"password computations at once":  {hashAtOnce, 4},
		"those that wait for them":       {hashQueue, 32},
		"MiB of one of them":             {int(s.hasher.params.Memory / 1024), 19},
		"passes of one of them":          {int(s.hasher.params.Iterations), 2},
		"how often revocation is looked": {pollEvery, 2 * time.Second},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %v, and docs/security.md says %v", what, pair[0], pair[1])
		}
	}
}

// swapped is a database in which somebody has given one person the sealed secret of another.
type swapped struct {
	*store.Store

	from atomic.Pointer[string] // whose secret everybody has; nil: their own
}

func (s *swapped) Factor(ctx context.Context, userID string) (fleet.Factor, error) {
	if from := s.from.Load(); from != nil {
		userID = *from
	}
	return s.Store.Factor(ctx, userID)
}

// TestFactor_SecretOfSomebodyElse: whoever can write to the database cannot make their own second factor another
// person's, for a sealed secret opens for its person alone.
func TestFactor_SecretOfSomebodyElse(t *testing.T) {
	t.Parallel()
	var db *swapped
	h := build(t, func(s *store.Store) Store {
		db = &swapped{Store: s}
		return db
	})
	h.add(t, "eve", fleet.RoleViewer)
	_, ada := h.in(t, "ada")
	_, eve := h.in(t, "eve")
	h.enrol(t, ada)
	hers, _ := h.enrol(t, eve)
	db.from.Store(&eve.UserID)
	_, _, err := h.SecondStep(t.Context(), h.firstStep(t, "ada"), hers.code(time.Now()), from, "")
	wants(t, "ada with the app of eve", err, fleet.ErrUnavailable)
	if _, _, err := h.SecondStep(t.Context(), h.firstStep(t, "eve"), hers.code(time.Now()), from, ""); err != nil {
		t.Errorf("eve with her own: %v", err)
	}
}
