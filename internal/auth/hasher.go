package auth

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/alexedwards/argon2id"
	"golang.org/x/crypto/argon2"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	hashAtOnce = 4  // computations at a time: each takes the memory of the parameters
	hashQueue  = 32 // that may wait for them
	hashKept   = 8  // places beside those, for known browsers alone
)

// hasher computes password hashes, few at a time.
type hasher struct {
	params   argon2id.Params
	dummy    string        // matches nothing and costs what a password costs
	places   chan struct{} // one for each that computes or waits
	kept     chan struct{} // the same, for known browsers: whoever fills all places does not keep them out
	slots    chan struct{} // one for each that computes
	computed atomic.Int64
}

func newHasher(p argon2id.Params) *hasher {
	blank := make([]byte, p.SaltLength+p.KeyLength)
	_, _ = rand.Read(blank) // never fails: the program ends if the system has no randomness
	return &hasher{
		params: p,
		dummy: fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, p.Memory, p.Iterations, p.Parallelism,
			base64.RawStdEncoding.EncodeToString(blank[:p.SaltLength]), base64.RawStdEncoding.EncodeToString(blank[p.SaltLength:])),
		places: make(chan struct{}, hashAtOnce+hashQueue),
		kept:   make(chan struct{}, hashKept),
		slots:  make(chan struct{}, hashAtOnce),
	}
}

// enter takes a place for somebody who is counted so, LimitError if all are taken. Whoever got one gives it back with
// leave.
func (h *hasher) enter(whose fleet.AttemptKey) (leave func(), err error) {
	places := h.places
	if whose.Scope == fleet.AttemptDevice {
		places = h.kept
	}
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	default:
		return nil, &fleet.LimitError{What: "sign-ins at once", Retry: time.Second}
	}
}

// slot waits for the right to compute.
func (h *hasher) slot(ctx context.Context) (free func(), err error) {
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting to check a password: %w", ctx.Err())
	}
}

// matches computes once. Weaker tells that the hash was made with other parameters than those of today. The caller
// has entered.
func (h *hasher) matches(ctx context.Context, password, hash string) (ok, weaker bool, err error) {
	free, err := h.slot(ctx)
	if err != nil {
		return false, false, err
	}
	defer free()
	h.computed.Add(1)
	ok, params, err := argon2id.CheckHash(normalPassword(password), hash)
	if err != nil {
		return false, false, fmt.Errorf("checking a password: %w", err)
	}
	return ok, *params != h.params, nil
}

// hash computes once. The caller has entered.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	free, err := h.slot(ctx)
	if err != nil {
		return "", err
	}
	defer free()
	h.computed.Add(1)
	hash, err := argon2id.CreateHash(normalPassword(password), &h.params)
	if err != nil {
		return "", fmt.Errorf("hashing a password: %w", err)
	}
	return hash, nil
}
