package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	touchEvery = time.Minute // activity is written at most so often
	touchLimit = time.Second // and a request waits at most so long for it
	agentMost  = 256
)

// SignIn checks name and password. It answers a token that no browser has held before, the absolute end of its session,
// and by what the browser is known at the next sign-in; device is what it showed of that, and counts if it is good. A
// session hash in from is a session of the same browser: it ends with the new one. LimitError when throttled, before the
// password is looked at; ErrUnauthenticated for every other failure, with one computation and the same writes whatever the
// cause. Where there is a second factor the answer to the right password is a fleet.SecondStepError, whose token
// SecondStep takes.
func (s *Service) SignIn(ctx context.Context, name, password, device string, from fleet.Caller, userAgent string) (in fleet.SignIn, err error) {
	defer func() {
		if err != nil {
			in, err = fleet.SignIn{}, fmt.Errorf("signing in: %w", err)
		}
	}()
	typed := name
	name, nameErr := normalName(typed)
	counted := name
	if nameErr != nil { // a name that cannot be is a name that is not known
		counted = "\x00" + typed
	}
	whose, err := s.asKnown(ctx, device, counted)
	if err != nil {
		return in, err
	}
	leave, err := s.hasher.enter(whose)
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
	acct, err := s.store.Account(ctx, name)
	known := nameErr == nil && err == nil
	if err != nil && !errors.Is(err, fleet.ErrNotFound) {
		return in, err
	}
	hash := s.hasher.dummy
	if known && !acct.Disabled && acct.Password != "" {
		hash = acct.Password
	}
	long := len(password) > passwordMost
	if long { // costs the same as any other, and cannot match
		password, hash = password[:passwordMost], s.hasher.dummy
	}
	match, weaker, err := s.hasher.matches(ctx, password, hash)
	if err != nil {
		return in, err
	}
	pretend := nameErr != nil || known && (acct.Kind != fleet.PersonLDAP || acct.Disabled) || password == "" || long
	if v, ok, err := s.lookUp(ctx, name, password, pretend, match); err != nil || ok {
		if err != nil {
			return in, err
		}
		in, err = s.admit(ctx, v, from, userAgent, issue{undo: try.keys, knows: counted, shown: device})
		if errors.Is(err, fleet.ErrForbidden) { // whoever has no password here is told no more than anybody else
			err = fleet.ErrUnauthenticated
		}
		return in, err
	}
	if !match {
		why := "wrong password"
		switch {
		case !known:
			why = "unknown name"
		case acct.Disabled:
			why = "disabled"
		case acct.Password == "":
			why = "no password"
		}
		return in, s.signInFailed(ctx, acct.Name, from, why, try)
	}
	s.settled.Store(true)
	if weaker {
		s.rehash(ctx, acct, password)
	}
	if !acct.SecondFactor.IsZero() {
		return in, s.half(ctx, acct, from, try)
	}
	return s.issue(ctx, issue{
		session: fleet.NewSession{UserID: acct.ID, Epoch: acct.Epoch}, proven: time.Now(),
		undo: try.keys, knows: counted, shown: device, rec: record(signing(acct, from), "signin", ""),
	}, from, userAgent)
}

// lookUp asks the directory, if there is one, whose name and password these are. For a local person it only pretends to:
// their password is nobody else's business, and how long the answer takes must not tell who is local. When the
// directory cannot be asked, local people still get in, and everybody else is told so, whoever they are.
func (s *Service) lookUp(ctx context.Context, name, password string, pretend, match bool) (fleet.Vouched, bool, error) {
	if s.directory == nil {
		return fleet.Vouched{}, false, nil
	}
	v, err := s.directory.Check(ctx, name, password, pretend)
	switch {
	case match: // a local person with the right password
		return fleet.Vouched{}, false, nil
	case errors.Is(err, fleet.ErrUnauthenticated):
		return fleet.Vouched{}, false, nil
	case err != nil:
		s.logger.WarnContext(ctx, "the directory cannot be asked", "err", err)
		return fleet.Vouched{}, false, err
	}
	v.Name = name
	return v, true, nil
}

// attempt is one that has been counted.
type attempt struct {
	keys          []fleet.AttemptKey
	before, after fleet.Attempts     // of the name, or of the known browser
	blocked       fleet.AttemptScope // whose next one has to wait; "" for nobody's
}

// attempt counts one on a name or a known browser, as failed until it turns out well; LimitError when throttled.
func (s *Service) attempt(ctx context.Context, whose fleet.AttemptKey, addr string) (attempt, error) {
	a := attempt{keys: attemptKeys(whose, addr)}
	err := s.store.CountAttempt(ctx, a.keys, func(have []fleet.Attempts) ([]fleet.Attempts, error) {
		now, last := time.Now(), len(a.keys)-1
		next, err := count(a.keys, have, now)
		if err == nil {
			a.before, a.after, a.blocked = have[last], next[last], ""
			if a.after.Blocked.After(now) {
				a.blocked = whose.Scope
			}
		}
		return next, err
	})
	return a, err
}

// signing is the person who signs in, for the record.
func signing(acct fleet.Account, from fleet.Caller) fleet.Caller {
	return fleet.Caller{Name: acct.Name, Via: "session", Addr: from.Addr}
}

// signInFailed records the failure. A name that nobody has is not written down.
func (s *Service) signInFailed(ctx context.Context, name string, from fleet.Caller, why string, try attempt) error {
	if try.blocked != "" {
		of := "on this name"
		if try.blocked == fleet.AttemptDevice {
			of = "in this browser, which is known,"
		}
		why += "; further attempts " + of + " are delayed"
	}
	e := record(fleet.Caller{Name: name, Via: "session", Addr: from.Addr}, "signin", why)
	e.Outcome = "failed"
	// Whoever hangs up quickly must not get out of the record.
	if _, err := s.audit.Append(context.WithoutCancel(ctx), e); err != nil {
		return err
	}
	return fleet.ErrUnauthenticated
}

// issue makes a session through the manager. Of is whose it is and what it uses up.
func (s *Service) issue(ctx context.Context, of issue, from fleet.Caller, userAgent string) (in fleet.SignIn, err error) {
	now := time.Now()
	if of.knows != "" {
		in.Device, of.session.Device = knowing(of.knows, of.shown, now)
		in.DeviceUntil = of.session.Device.ExpiresAt
	}
	of.session.Session = fleet.Session{Addr: from.Addr, UserAgent: clip(userAgent, agentMost), CreatedAt: now, SeenAt: now}
	of.session.Replaces = from.Session
	c := &call{issue: &of}
	ctx, err = s.sessions.Load(withCall(ctx, c), "")
	if err != nil {
		return fleet.SignIn{}, err
	}
	if err := s.sessions.RenewToken(ctx); err != nil {
		return fleet.SignIn{}, err
	}
	s.sessions.Put(ctx, provenKey, of.proven.UnixMicro())
	c.issue.session.ExpiresAt = s.sessions.Deadline(ctx)
	if in.Token, _, err = s.sessions.Commit(ctx); err != nil {
		return fleet.SignIn{}, err
	}
	if from.Session != "" {
		why, err := s.store.WhyEnded(ctx, from.Session)
		if err != nil || why == "" { // not to know does not keep the end back
			why = ReasonLogout
		}
		s.announce(End{Session: from.Session, UserID: from.UserID, Reason: why})
	}
	in.Expires = c.issue.session.ExpiresAt
	return in, nil
}

// rehash brings the hash to the parameters of today. The sign-in has succeeded whether or not this does.
func (s *Service) rehash(ctx context.Context, acct fleet.Account, password string) {
	fresh, err := s.hasher.hash(ctx, password)
	if err == nil {
		err = s.store.Rehash(ctx, acct.ID, acct.Password, fresh)
	}
	if err != nil {
		s.logger.WarnContext(ctx, "password hash not renewed", "user", acct.Name, "err", err)
	}
}

// SignOut ends the session of the token. A token that is not good is signed out already.
func (s *Service) SignOut(ctx context.Context, token string) error {
	if token == "" {
		return nil
	}
	c := &call{}
	ctx, err := s.sessions.Load(withCall(ctx, c), token)
	if err != nil {
		return fmt.Errorf("signing out: %w", err)
	}
	if !c.ok {
		return nil
	}
	c.rec = record(s.caller(c.found, "session"), "signout", "")
	if err := s.sessions.Destroy(ctx); err != nil {
		return fmt.Errorf("signing out: %w", err)
	}
	s.announce(End{Session: c.found.Hash, UserID: c.found.User.ID, Reason: ReasonLogout})
	return nil
}

// BySession answers who holds the token and counts as activity of that person.
func (s *Service) BySession(ctx context.Context, token string) (fleet.Caller, error) {
	return s.bySession(ctx, token, true)
}

// PeekSession answers who holds the token and leaves the session as idle as it is.
func (s *Service) PeekSession(ctx context.Context, token string) (fleet.Caller, error) {
	return s.bySession(ctx, token, false)
}

func (s *Service) bySession(ctx context.Context, token string, active bool) (fleet.Caller, error) {
	if token == "" {
		return fleet.Caller{}, fmt.Errorf("reading a session: %w", fleet.ErrUnauthenticated)
	}
	c := &call{}
	sctx, err := s.sessions.Load(withCall(ctx, c), token)
	if err != nil {
		return fleet.Caller{}, fmt.Errorf("reading a session: %w", err)
	}
	if !c.ok {
		return fleet.Caller{}, fmt.Errorf("reading a session: %w", fleet.ErrUnauthenticated)
	}
	if s.track(c.found, active, time.Now()) {
		wctx, cancel := context.WithTimeout(sctx, touchLimit)
		defer cancel()
		if _, _, err := s.sessions.Commit(wctx); err != nil {
			// A full or locked database must not lock out who is signed in; it may only end their session early.
			s.logger.WarnContext(ctx, "activity not recorded", "user", c.found.User.Name, "err", err)
			c.ok = true
		}
		if !c.ok {
			return fleet.Caller{}, fmt.Errorf("reading a session: %w", fleet.ErrUnauthenticated)
		}
	}
	who := s.caller(c.found, "session")
	who.SignedIn = s.signedIn(sctx, c.found.User)
	return who, nil
}

// provenKey is where a session keeps when its person proved who they are: a provider may have let them in by a proof of
// hours ago, with nobody at the keyboard. Sessions of before there was one have none, as those whose provider did not say.
const provenKey = "proven"

// signedIn is when the person of a session proved who they are. That of a trusted proxy's people is the proxy's matter.
func (s *Service) signedIn(ctx context.Context, u fleet.User) time.Time {
	if strings.HasPrefix(u.Issuer, fleet.HeaderIssuer) {
		return time.Time{}
	}
	return time.UnixMicro(s.sessions.GetInt64(ctx, provenKey)).UTC()
}

// clip shortens s to n bytes and whole characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}
