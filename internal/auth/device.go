package auth

import (
	"context"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	deviceLife = 90 * 24 * time.Hour
	deviceMost = 50 // of one person; a program that signs in every night must not push the person's own browser out soon
)

// deviceStore is the part of the store that known browsers need.
type deviceStore interface {
	Device(ctx context.Context, hash, name string, now time.Time) (bool, error)
	Delayed(ctx context.Context, now time.Time) (map[string]time.Time, error)
	ClearAttempts(ctx context.Context, userID, name string, rec fleet.Entry) error
}

// Whoever fails in somebody's name delays that name, and so the person. A browser in which the person has signed in before
// carries a secret that says so, and is counted by itself: what others do in the person's name does not delay it, and
// its own failures delay it alone. The secret opens nothing: who steals it has the free failures of one more counter,
// until the person signs in again, which replaces it.
//
// The counters of the address and of everybody count a known browser too and do not refuse it: the one who fails may sit
// behind the same address, or fail in everybody's name at once, and its own counter is stricter than either. It has
// turns of its own, and places of its own before the computation, for the same reason.

// asKnown is the counter of somebody who types a name: that of the name, or that of the browser if it is known for the
// name. What is known for another name is as good as nothing.
func (s *Service) asKnown(ctx context.Context, device, name string) (fleet.AttemptKey, error) {
	key := nameKey(name)
	if len(device) != base64.RawURLEncoding.EncodedLen(tokenBytes) {
		return key, nil
	}
	hash := digest("device", device)
	good, err := s.store.Device(ctx, hash, key.Subject, time.Now())
	if err != nil {
		return fleet.AttemptKey{}, fmt.Errorf("looking for a known browser: %w", err)
	}
	if good {
		key = fleet.AttemptKey{Scope: fleet.AttemptDevice, Subject: hash}
	}
	return key, nil
}

// nameKey is the counter of a name. It is hashed, because what people type there is not always a name.
func nameKey(name string) fleet.AttemptKey {
	return fleet.AttemptKey{Scope: fleet.AttemptName, Subject: digest("name", name)}
}

// knowing makes a secret by which the browser of a sign-in is known for a name from now on, in place of the one that it
// showed.
func knowing(name, shown string, now time.Time) (device string, d fleet.NewDevice) {
	device = newSecret()
	return device, fleet.NewDevice{
		Hash: digest("device", device), Name: nameKey(name).Subject, Replaces: digest("device", shown),
		ExpiresAt: now.Add(deviceLife), Most: deviceMost,
	}
}

// Unblock lets a person try again at once whose name, or whose browser, is delayed after failures. ErrNotFound.
func (s *Service) Unblock(ctx context.Context, by fleet.Caller, name string) error {
	const action = "user.unblock"
	if err := s.permit(ctx, by, action, name); err != nil {
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
	return s.store.ClearAttempts(ctx, acct.ID, nameKey(normal).Subject, record(by, action, normal))
}
