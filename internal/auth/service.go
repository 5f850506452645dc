package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/alexedwards/scs/v2"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Store keeps people and credentials. *store.Store implements it.
type Store interface {
	personStore
	setupStore
	sessionStore
	tokenStore
	factorStore
	inviteStore
	vouchedStore
	deviceStore
	CountAttempt(ctx context.Context, keys []fleet.AttemptKey, decide func([]fleet.Attempts) ([]fleet.Attempts, error)) error
}

// Recorder is the audit record, for what the store does not record together with a change. *audit.Log implements it.
type Recorder interface {
	Append(ctx context.Context, e fleet.Entry) (fleet.Entry, error)
	Denied(ctx context.Context, by fleet.Caller, action, detail string)
}

// Config is what a Service needs.
type Config struct {
	Store     Store
	Audit     Recorder
	Logger    *slog.Logger
	Idle      time.Duration                          // a session ends so long after its last recorded activity; 0: 30 minutes
	Lifetime  time.Duration                          // a session ends so long after sign-in; 0: 12 hours
	Hash      *argon2id.Params                       // cost of a password; nil: 19 MiB, two passes, one lane
	Provider  IdentityProvider                       // vouches for people; nil: none
	Directory Directory                              // checks passwords of people that are not local; nil: none
	Sealer    Sealer                                 // keeps the secrets of second factors; nil: nobody can set one up
	Labels    func(cluster string) map[string]string // of a cluster, for grants by label; nil: none has any
	Header    *HeaderSignIn                          // how a trusted proxy vouches for people; nil: it does not

	// FreshSignIn is how old a sign-in may be when its person makes a token or gives others rights or ways in; 0: any.
	FreshSignIn time.Duration
}

// Service signs people in and out and administers them. Make it with New; all methods may be called by many goroutines.
type Service struct {
	store     Store
	audit     Recorder
	logger    *slog.Logger
	sessions  *scs.SessionManager
	hasher    *hasher
	provider  IdentityProvider // nil: none
	directory Directory        // nil: none
	sealer    Sealer           // nil: none
	labels    func(cluster string) map[string]string
	header    *HeaderSignIn // nil: none
	fresh     time.Duration // 0: any age will do
	turns     turns
	settled   atomic.Bool // somebody exists; nobody is ever deleted, so this does not change back

	mu    sync.Mutex // guards hooks, known
	hooks []func(End)
	known map[string]*known // by hash: what this process has let in
}

// New makes a Service.
func New(cfg Config) *Service {
	if cfg.Idle == 0 {
		cfg.Idle = 30 * time.Minute
	}
	if cfg.Lifetime == 0 {
		cfg.Lifetime = 12 * time.Hour
	}
	if cfg.Hash == nil {
		cfg.Hash = &argon2id.Params{Memory: 19 * 1024, Iterations: 2, Parallelism: 1, SaltLength: 16, KeyLength: 32}
	}
	return &Service{
		store:  cfg.Store,
		audit:  cfg.Audit,
		logger: cfg.Logger.With("component", "auth"),
		// A literal and not scs.New, which starts the cleaner of a memory store that we do not use.
		sessions: &scs.SessionManager{
			IdleTimeout: cfg.Idle, Lifetime: cfg.Lifetime, Store: managerStore{cfg.Store}, Codec: codec{}, HashTokenInStore: true,
		},
		hasher: newHasher(*cfg.Hash),
		sealer: cfg.Sealer, provider: cfg.Provider, directory: cfg.Directory, labels: cfg.Labels, header: cfg.Header, fresh: cfg.FreshSignIn,
		known: make(map[string]*known),
	}
}

// record begins an entry about something that the caller did.
func record(by fleet.Caller, action, detail string) fleet.Entry {
	return fleet.Entry{
		Actor: by.Name, Via: by.Via, Session: by.Session, Addr: by.Addr,
		Action: action, Phase: "event", Outcome: "succeeded", Detail: detail,
	}
}

// permit answers ErrForbidden, on record, unless the caller may administer people.
func (s *Service) permit(ctx context.Context, by fleet.Caller, action, detail string) error {
	if by.May(fleet.PermUsersAdmin, "") {
		return nil
	}
	return s.refuse(ctx, by, action, detail)
}

// entrust is permit for what gives people rights or ways in. Like a token that outlives the session which asks, and so it
// wants a fresh sign-in. What takes rights away never waits for one.
func (s *Service) entrust(ctx context.Context, by fleet.Caller, action, detail string) error {
	if err := s.permit(ctx, by, action, detail); err != nil {
		return err
	}
	return s.lately(ctx, by, action)
}

// lately answers a StaleSignInError, on record, if the caller's sign-in is too old for what must not be had from a tab that
// somebody left open.
func (s *Service) lately(ctx context.Context, by fleet.Caller, action string) error {
	err := by.SignedInWithin(s.fresh, time.Now())
	if err != nil {
		s.audit.Denied(ctx, by, action, err.Error())
	}
	return err
}

func (s *Service) refuse(ctx context.Context, by fleet.Caller, action, detail string) error {
	s.audit.Denied(ctx, by, action, detail)
	return fmt.Errorf("%s: %w", action, fleet.ErrForbidden)
}

// NeedsSetup tells whether nobody exists yet.
func (s *Service) NeedsSetup(ctx context.Context) (bool, error) {
	if s.settled.Load() {
		return false, nil
	}
	has, err := s.store.HasUsers(ctx)
	if err != nil {
		return false, fmt.Errorf("looking for people: %w", err)
	}
	if has {
		s.settled.Store(true)
	}
	return !has, nil
}

// setupLife is how long a set-up code is good.
const setupLife = 30 * time.Minute

// setupStore is the part of the store that set-up needs.
type setupStore interface {
	HasUsers(ctx context.Context) (bool, error)
	SetSetupCode(ctx context.Context, hash string, expires time.Time) (bool, error)
	SetupCode(ctx context.Context, hash string, now time.Time) (bool, error)
	UseSetupCode(ctx context.Context, hash string, now time.Time, a fleet.Account, rec fleet.Entry) error
}

// EnsureSetupCode makes the one code with which the first admin can be made, good once and for thirty minutes; a code
// made before is good no longer. Only its hash is kept: the caller shows the code to whoever started the program. Ok is
// false when somebody exists and there is nothing to set up.
func (s *Service) EnsureSetupCode(ctx context.Context) (code string, ok bool, err error) {
	var b [15]byte
	_, _ = rand.Read(b[:]) // never fails: the program ends if the system has no randomness
	digits := base32.StdEncoding.EncodeToString(b[:])
	groups := make([]string, 0, len(digits)/4)
	for i := 0; i < len(digits); i += 4 {
		groups = append(groups, digits[i:i+4])
	}
	code = strings.Join(groups, "-")
	ok, err = s.store.SetSetupCode(ctx, setupHash(code), time.Now().Add(setupLife))
	if err != nil || !ok {
		return "", false, err
	}
	return code, true, nil
}

// setupHash ignores how the code was typed: case, blanks, dashes.
func setupHash(code string) string {
	code = strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' || r == '\t' {
			return -1
		}
		return r
	}, strings.ToUpper(strings.TrimSpace(code)))
	return digest("setup", code)
}

// digest is how secrets are kept that have too much randomness to be guessed.
func digest(what, secret string) string {
	sum := sha256.Sum256([]byte("knm-" + what + "\x00" + secret))
	return hex.EncodeToString(sum[:])
}

// Setup makes the first admin with the code. FieldError for a wrong or expired code, ErrConflict when somebody exists.
func (s *Service) Setup(ctx context.Context, code, name, password string) error {
	needs, err := s.NeedsSetup(ctx)
	if err != nil {
		return err
	}
	if !needs {
		return fmt.Errorf("setting up: %w", fleet.ErrConflict)
	}
	wrong := fleet.Problem("code", "error.setup_code", "", "is wrong or has expired")
	hash := setupHash(code)
	good, err := s.store.SetupCode(ctx, hash, time.Now())
	if err != nil {
		return err
	}
	if !good { // before anything that costs
		return wrong
	}
	acct, err := s.account(ctx, name, fleet.RoleAdmin, password)
	if err != nil {
		return err
	}
	rec := record(fleet.Caller{Name: acct.Name, Via: "system"}, "setup", "first admin "+acct.Name)
	err = s.store.UseSetupCode(ctx, hash, time.Now(), acct, rec)
	switch {
	case errors.Is(err, fleet.ErrUnauthenticated):
		return wrong
	case err != nil:
		return err
	}
	s.settled.Store(true)
	return nil
}
