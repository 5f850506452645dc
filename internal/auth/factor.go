package auth

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/auth/totp"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	halfLife      = 5 * time.Minute // between the password and the code
	recoveryCodes = 10
	recoveryBytes = 10 // of one code: too much to be guessed, so that a plain hash of it will do
	issuerName    = "kube-node-manager"
)

// Sealer keeps a secret encrypted at rest. What was sealed for one place opens nowhere else.
type Sealer interface {
	Seal(at fleet.Place, secret []byte) (fleet.Sealed, error)
	Open(at fleet.Place, sealed fleet.Sealed) ([]byte, error)
}

// factorStore is the part of the store that second factors need.
type factorStore interface {
	SetFactor(ctx context.Context, userID string, secret fleet.Sealed) error
	Factor(ctx context.Context, userID string) (fleet.Factor, error)
	RecoveryCodes(ctx context.Context, userID string) (int, error)
	ConfirmFactor(ctx context.Context, userID string, secret fleet.Sealed, step int64, codes []string, keep string, at time.Time, rec fleet.Entry) (ended []string, err error)
	AddHalf(ctx context.Context, h fleet.HalfSignIn, keys []fleet.AttemptKey, before, after fleet.Attempts) error
	Half(ctx context.Context, hash string, now time.Time) (fleet.HalfSignIn, fleet.Account, error)
	TakeBack(ctx context.Context, keys []fleet.AttemptKey) error
}

// half answers the right password of a person with a second factor: a token that is no session and that nothing but
// SecondStep takes.
func (s *Service) half(ctx context.Context, acct fleet.Account, from fleet.Caller, try attempt) error {
	token := newSecret()
	h := fleet.HalfSignIn{
		Hash: digest("half", token), UserID: acct.ID, Epoch: acct.Epoch, Replaces: from.Session, ExpiresAt: time.Now().Add(halfLife),
	}
	if err := s.store.AddHalf(ctx, h, try.keys, try.before, try.after); err != nil {
		return err
	}
	return &fleet.SecondStepError{Token: token, Expires: h.ExpiresAt}
}

// newSecret is 256 bits that nobody guesses.
func newSecret() string {
	var b [tokenBytes]byte
	_, _ = rand.Read(b[:]) // never fails: the program ends if the system has no randomness
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// SecondStep completes a sign-in with a code of the authenticator or a recovery code. It answers what SignIn does. Codes
// are counted with the passwords of the same name, or of the same browser if that is known: LimitError when throttled.
// ErrUnauthenticated for every other failure; the half sign-in stays good for another try until it expires.
func (s *Service) SecondStep(ctx context.Context, half, code, device string, from fleet.Caller, userAgent string) (in fleet.SignIn, err error) {
	defer func() {
		if err != nil {
			in, err = fleet.SignIn{}, fmt.Errorf("signing in with a code: %w", err)
		}
	}()
	h, acct, err := s.store.Half(ctx, digest("half", half), time.Now())
	if err != nil {
		return in, err
	}
	whose, err := s.asKnown(ctx, device, acct.Name)
	if err != nil {
		return in, err
	}
	leave, err := s.hasher.enter(whose) // bounds how many wait for their turn
	if err != nil {
		return in, err
	}
	defer leave()
	next, err := s.turns.take(ctx, whose.Subject)
	if err != nil {
		return in, err
	}
	defer next()
	try, err := s.attempt(ctx, whose, from.Addr)
	if err != nil {
		return in, err
	}
	proof, err := s.proof(ctx, acct.ID, code)
	if errors.Is(err, fleet.ErrUnauthenticated) {
		return in, s.signInFailed(ctx, acct.Name, from, "wrong code", try)
	}
	if err != nil {
		return in, err
	}
	detail := "with a second factor"
	if proof.Recovery != "" {
		detail = "with a recovery code"
	}
	from.Session = h.Replaces
	in, err = s.issue(ctx, issue{
		session: fleet.NewSession{UserID: acct.ID, Epoch: h.Epoch, Half: h.Hash, Proof: proof}, proven: time.Now(),
		undo: try.keys, knows: acct.Name, shown: device, rec: record(signing(acct, from), "signin", detail),
	}, from, userAgent)
	if errors.Is(err, fleet.ErrUnauthenticated) { // used up, here or in another process, or the person was changed
		return in, s.signInFailed(ctx, acct.Name, from, "wrong code", try)
	}
	return in, err
}

// proof is what a code proves, ErrUnauthenticated if it is nothing. Whether it was used the store decides, where of two
// that come at once one is first.
func (s *Service) proof(ctx context.Context, userID, code string) (fleet.Proof, error) {
	code = strings.ToUpper(strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' || r == '\t' {
			return -1
		}
		return r
	}, code))
	if !totp.IsCode(code) {
		return fleet.Proof{Recovery: digest("recovery", code)}, nil
	}
	if s.sealer == nil {
		return fleet.Proof{}, fmt.Errorf("there is no key for second factors: %w", fleet.ErrUnavailable)
	}
	f, err := s.store.Factor(ctx, userID)
	if errors.Is(err, fleet.ErrNotFound) {
		return fleet.Proof{}, fmt.Errorf("reading a second factor: %w", fleet.ErrUnauthenticated)
	}
	if err != nil {
		return fleet.Proof{}, err
	}
	secret, err := s.sealer.Open(fleet.FactorPlace(userID), f.Secret)
	if err != nil {
		return fleet.Proof{}, err
	}
	step, ok := totp.Match(secret, code, time.Now(), f.LastStep)
	if !ok {
		return fleet.Proof{}, fmt.Errorf("checking a code: %w", fleet.ErrUnauthenticated)
	}
	return fleet.Proof{Step: step}, nil
}

// SecondFactor tells the caller about their own second factor.
func (s *Service) SecondFactor(ctx context.Context, by fleet.Caller) (fleet.FactorState, error) {
	acct, err := s.store.Account(ctx, by.Name)
	if err != nil {
		return fleet.FactorState{}, err
	}
	st := fleet.FactorState{Local: acct.Kind == fleet.PersonLocal, Available: s.sealer != nil, Since: acct.SecondFactor}
	if !st.Since.IsZero() {
		st.Recovery, err = s.store.RecoveryCodes(ctx, acct.ID)
	}
	return st, err
}

// own is the account of a caller who is signed in here; a token may not change what its person signs in with.
func (s *Service) own(ctx context.Context, by fleet.Caller, action string) (fleet.Account, error) {
	if by.UserID == "" || by.Via != "session" || !by.May(fleet.PermSelf, "") {
		return fleet.Account{}, s.refuse(ctx, by, action, by.Name)
	}
	acct, err := s.store.Account(ctx, by.Name)
	if err != nil {
		return fleet.Account{}, err
	}
	if acct.Kind != fleet.PersonLocal {
		return fleet.Account{}, fleet.Problem("", "error.factor_foreign", "", "the password and the second factor of this person are a matter of where they sign in")
	}
	return acct, nil
}

// BeginFactor makes a secret for the caller, who shows that they know their password: a session that was left open must
// not be enough to lock its person out. The secret counts once ConfirmFactor has seen a code of it. FieldError,
// LimitError; ErrConflict for who has a second factor.
func (s *Service) BeginFactor(ctx context.Context, by fleet.Caller, password string) (fleet.Enrolment, error) {
	const action = "factor.add"
	acct, err := s.own(ctx, by, action)
	if err != nil {
		return fleet.Enrolment{}, err
	}
	if s.sealer == nil {
		return fleet.Enrolment{}, fleet.Problem("", "error.factor_key", "", "there is no key to seal second factors with: see --key-file")
	}
	if !acct.SecondFactor.IsZero() {
		return fleet.Enrolment{}, fmt.Errorf("beginning a second factor: %w", fleet.ErrConflict)
	}
	if err := s.confirmPassword(ctx, by, acct, "factor.add", "password", password); err != nil {
		return fleet.Enrolment{}, err
	}
	secret := totp.Secret()
	e := fleet.Enrolment{Secret: totp.Text(secret), URI: totp.URI(issuerName, acct.Name, secret)}
	if e.Picture, e.Size, err = totp.Picture(e.URI); err != nil {
		return fleet.Enrolment{}, err
	}
	sealed, err := s.sealer.Seal(fleet.FactorPlace(acct.ID), secret)
	if err != nil {
		return fleet.Enrolment{}, fmt.Errorf("sealing a second factor: %w", err)
	}
	return e, s.store.SetFactor(ctx, acct.ID, sealed)
}

// guess lets somebody who is signed in try a password or a code: of few at a time, one at a time for their name, counted as
// a sign-in is, until done.
func (s *Service) guess(ctx context.Context, acct fleet.Account, by fleet.Caller) (try attempt, done func(), err error) {
	whose := nameKey(acct.Name)
	leave, err := s.hasher.enter(whose)
	if err != nil {
		return attempt{}, nil, err
	}
	next, err := s.turns.take(ctx, whose.Subject)
	if err != nil {
		leave()
		return attempt{}, nil, err
	}
	done = func() { next(); leave() }
	if try, err = s.attempt(ctx, whose, by.Addr); err != nil {
		done()
		return attempt{}, nil, err
	}
	return try, done, nil
}

// confirmPassword checks the password of somebody who is signed in, counted as a sign-in is. Field is what it was given in.
func (s *Service) confirmPassword(ctx context.Context, by fleet.Caller, acct fleet.Account, action, field, password string) error {
	try, done, err := s.guess(ctx, acct, by)
	if err != nil {
		return err
	}
	defer done()
	hash := acct.Password
	if hash == "" || len(password) > passwordMost {
		password, hash = "", s.hasher.dummy
	}
	match, _, err := s.hasher.matches(ctx, password, hash)
	if err != nil {
		return err
	}
	if !match {
		s.audit.Denied(ctx, by, action, "wrong password")
		return fleet.Problem(field, "error.password_wrong", "", "is wrong")
	}
	return s.store.TakeBack(ctx, try.keys)
}

// ConfirmFactor makes the secret count that BeginFactor made last, if the code is one of it. It answers recovery codes,
// each good once, that are kept nowhere. The caller's other sessions end: they were begun without the second factor.
// FieldError; ErrConflict if there is nothing to confirm.
func (s *Service) ConfirmFactor(ctx context.Context, by fleet.Caller, code string) (recovery []string, err error) {
	acct, err := s.own(ctx, by, "factor.add")
	if err != nil {
		return nil, err
	}
	if s.sealer == nil {
		return nil, fleet.Problem("", "error.factor_key", "", "there is no key to seal second factors with: see --key-file")
	}
	f, err := s.store.Factor(ctx, acct.ID)
	if errors.Is(err, fleet.ErrNotFound) {
		return nil, fmt.Errorf("confirming a second factor that was not begun: %w", fleet.ErrConflict)
	}
	if err != nil {
		return nil, err
	}
	secret, err := s.sealer.Open(fleet.FactorPlace(acct.ID), f.Secret)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	step, ok := totp.Match(secret, strings.ReplaceAll(strings.TrimSpace(code), " ", ""), now, f.LastStep)
	if !ok {
		return nil, fleet.Problem("code", "error.code_wrong", "", "is not the code of now: look at the clocks of both devices")
	}
	hashes := make([]string, recoveryCodes)
	for i := range hashes {
		var b [recoveryBytes]byte
		_, _ = rand.Read(b[:]) // never fails: the program ends if the system has no randomness
		c := base32.StdEncoding.EncodeToString(b[:])
		hashes[i] = digest("recovery", c)
		recovery = append(recovery, c[:4]+"-"+c[4:8]+"-"+c[8:12]+"-"+c[12:])
	}
	ended, err := s.store.ConfirmFactor(ctx, acct.ID, f.Secret, step, hashes, by.Session, now, record(by, "factor.add", acct.Name))
	if err != nil {
		return nil, err
	}
	for _, hash := range ended {
		s.announce(End{Session: hash, UserID: acct.ID, Reason: ReasonRevoked})
	}
	return recovery, nil
}

// DropFactor takes away the caller's own second factor, for a code of it or a recovery code, and ends all their sessions
// and tokens. Codes are counted as at sign-in. FieldError, LimitError; ErrConflict if there is none.
func (s *Service) DropFactor(ctx context.Context, by fleet.Caller, code string) error {
	const action = "factor.drop"
	acct, err := s.own(ctx, by, action)
	if err != nil {
		return err
	}
	if acct.SecondFactor.IsZero() {
		return fmt.Errorf("dropping a second factor that is not there: %w", fleet.ErrConflict)
	}
	try, done, err := s.guess(ctx, acct, by)
	if err != nil {
		return err
	}
	defer done()
	proof, err := s.proof(ctx, acct.ID, code)
	if err == nil {
		err = s.change(ctx, by, acct.Name, action, fleet.UserChange{NoFactor: true, Proof: &proof}, ReasonRevoked,
			func(_, after fleet.User) string { return after.Name })
	}
	if errors.Is(err, fleet.ErrUnauthenticated) {
		s.audit.Denied(ctx, by, action, "wrong code")
		return fleet.Problem("code", "error.code_wrong", "", "is not the code of now: look at the clocks of both devices")
	}
	if err != nil {
		return err
	}
	return s.store.TakeBack(ctx, try.keys)
}

// ResetFactor takes away somebody's second factor without a code, for who has lost everything that makes codes. It ends
// their sessions and tokens. ErrNotFound; ErrConflict if there is none.
func (s *Service) ResetFactor(ctx context.Context, by fleet.Caller, name string) error {
	const action = "factor.reset"
	if err := s.entrust(ctx, by, action, name); err != nil {
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
	if by.UserID == acct.ID { // a session that was left open must not be enough
		return s.refuse(ctx, by, action, "their own, without a code")
	}
	if acct.SecondFactor.IsZero() {
		return fmt.Errorf("%s has no second factor: %w", normal, fleet.ErrConflict)
	}
	return s.change(ctx, by, normal, action, fleet.UserChange{NoFactor: true}, ReasonRevoked,
		func(_, after fleet.User) string { return after.Name })
}
