package handlers

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// viaToken is how fleet.Caller.Via names a bearer token.
const viaToken = "token"

// cookieName: with the prefix a browser takes the cookie only over TLS, for this host and every path, and no other host
// of the domain can set it.
func (s *server) cookieName() string {
	if s.cfg.Secure {
		return "__Host-knm"
	}
	return "knm"
}

// The suffixes of the cookies that are no sessions.
const (
	halfCookie   = "-half"   // a sign-in has begun: the password was right and the code is to come
	oidcCookie   = "-oidc"   // a sign-in has begun: the person is at the identity provider
	deviceCookie = "_device" // somebody has signed in in this browser; it lets nobody in, and stays when they sign out
)

func (s *server) setCookie(w http.ResponseWriter, token string, expires time.Time) {
	s.setSecret(w, "", token, expires)
}

// signedIn gives the browser what a sign-in that is complete is worth.
func (s *server) signedIn(w http.ResponseWriter, r *http.Request, in fleet.SignIn) {
	s.dropHalf(w, r)
	s.setCookie(w, in.Token, in.Expires)
	if in.Device != "" {
		s.setSecret(w, deviceCookie, in.Device, in.DeviceUntil)
	}
}

// setSecret sets the session's cookie, or another one of the same kind with a suffix.
func (s *server) setSecret(w http.ResponseWriter, suffix, value string, expires time.Time) {
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // G124: Secure wherever there is TLS; config refuses open HTTP
		Name: s.cookieName() + suffix, Value: value, Path: "/", Expires: expires, MaxAge: max(1, int(time.Until(expires).Seconds())),
		Secure: s.cfg.Secure, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

func (s *server) dropCookie(w http.ResponseWriter) { s.dropSecret(w, "") }

func (s *server) dropSecret(w http.ResponseWriter, suffix string) {
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // G124: as above
		Name: s.cookieName() + suffix, Path: "/", MaxAge: -1, Secure: s.cfg.Secure, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// session is the token of the cookie, "" without one.
func (s *server) session(r *http.Request) string { return s.secret(r, "") }

func (s *server) secret(r *http.Request, suffix string) string {
	c, err := r.Cookie(s.cookieName() + suffix)
	if err != nil {
		return ""
	}
	return c.Value
}

// authenticate knows who asks. A bearer token counts alone: a request that carries one is never lent the authority of a
// cookie beside it.
func (s *server) authenticate(r *http.Request) (fleet.Caller, error) {
	var (
		caller fleet.Caller
		err    error
	)
	if auth := r.Header.Get("Authorization"); auth != "" {
		scheme, token, _ := strings.Cut(auth, " ")
		if !strings.EqualFold(scheme, "Bearer") || token == "" {
			return fleet.Caller{}, say(fleet.ErrUnauthenticated, "error.scheme", "the Authorization header must hold a bearer token")
		}
		caller, err = s.cfg.Auth.ByToken(r.Context(), strings.TrimSpace(token))
	} else if token := s.session(r); token == "" {
		return fleet.Caller{}, fleet.ErrUnauthenticated
	} else if background(r) {
		caller, err = s.cfg.Auth.PeekSession(r.Context(), token)
	} else {
		caller, err = s.cfg.Auth.BySession(r.Context(), token)
	}
	if err != nil {
		return fleet.Caller{}, err
	}
	caller.Addr = stateOf(r).addr
	return caller, nil
}

// background tells whether a page asks by itself rather than a person: streams that reconnect, and parts of a page that
// are fetched again when something changed. Such requests must not keep a session alive in a tab that nobody looks at.
func background(r *http.Request) bool {
	return r.Method == http.MethodGet && (stateOf(r).route.kind == stream || htmx(r))
}

// sameOrigin refuses an unsafe request that our own pages did not send. The standard library's check passes requests
// that say nothing of where they come from, and compares hosts without the scheme; here both count.
func (s *server) sameOrigin(r *http.Request) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return nil
	}
	refuse := say(fleet.ErrForbidden, "error.cross_origin",
		"the request did not come from this site: it needs an Origin or Sec-Fetch-Site header that says so")
	if s.cross.Check(r) != nil {
		return refuse
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" {
		if site != "same-origin" {
			return refuse
		}
		return nil
	}
	if origin := r.Header.Get("Origin"); origin == "" || !strings.EqualFold(origin, s.ownOrigin(r)) {
		return refuse
	}
	return nil
}

// ownOrigin is what browsers call this site.
func (s *server) ownOrigin(r *http.Request) string {
	if s.origin != "" {
		return s.origin
	}
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

func (s *server) loginPage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	anew := again(r.URL.Query().Get("again"))
	next, name := s.afterwards(r.URL.Query().Get("next"), anew), ""
	if done, err := s.byHeader(w, r, next); done || err != nil {
		return err
	}
	if s.session(r) != "" {
		who, err := s.authenticate(r)
		switch {
		case err == nil && anew:
			name = who.Name
		case err == nil:
			http.Redirect(w, r, next, http.StatusSeeOther) //nolint:gosec // G710: s.next lets only our own pages through
			return nil
		}
	}
	setup, err := s.cfg.Auth.NeedsSetup(r.Context())
	if err != nil {
		return err
	}
	return s.show(w, r, http.StatusOK, views.Login(s.loginForm(r, next, name, "", setup, anew)))
}

func (s *server) loginForm(r *http.Request, next, name, problem string, setup, anew bool) views.LoginPage {
	p := views.LoginPage{Layout: s.layout(r, "login.title", ""), Username: name, Error: problem, Setup: setup, OIDC: s.cfg.Auth.OIDC(), Again: anew}
	if next != home {
		p.Next = next
	}
	p.Static = true
	return p
}

func (s *server) signIn(w http.ResponseWriter, r *http.Request) error {
	in, err := readInput(r)
	if err != nil {
		return err
	}
	anew := again(in.text("again"))
	name, password, next := in.text("username"), in.text("password"), s.afterwards(in.text("next"), anew)
	if err := in.done(); err != nil {
		return err
	}
	from := fleet.Caller{Addr: stateOf(r).addr}
	if s.session(r) != "" {
		// The session that this browser still has ends with the new one.
		if old, err := s.authenticate(r); err == nil {
			from.Session = old.Session
		}
	}
	done, err := s.cfg.Auth.SignIn(r.Context(), name, password, s.secret(r, deviceCookie), from, r.UserAgent())
	if half, ok := errors.AsType[*fleet.SecondStepError](err); ok {
		return s.askForCode(w, r, half, next)
	}
	if err != nil {
		return s.signInFailed(w, r, err, next, name, anew)
	}
	s.signedIn(w, r, done)
	http.Redirect(w, r, next, http.StatusSeeOther)
	return nil
}

// signInFailed shows the form again to a browser. Which of the two was wrong is not said, to nobody.
func (s *server) signInFailed(w http.ResponseWriter, r *http.Request, err error, next, name string, anew bool) error {
	known := errors.Is(err, fleet.ErrUnauthenticated) || errors.Is(err, fleet.ErrTooMany) || errors.Is(err, fleet.ErrUnavailable)
	if errors.Is(err, fleet.ErrUnauthenticated) {
		err = say(fleet.ErrUnauthenticated, "login.wrong", "name or password is wrong")
	}
	if !known || errorForm(r, stateOf(r).route) != asPage {
		return err
	}
	stateOf(r).err = err
	a := answerFor(err, s.lang(r))
	key := "login.wrong"
	switch {
	case a.status == http.StatusServiceUnavailable:
		key = "login.unavailable" // the same words for everybody, whoever has to be asked for them
	case a.retry > 0 || a.status == http.StatusTooManyRequests:
		key = "login.throttled"
		w.Header().Set("Retry-After", seconds(a.retry))
	}
	return s.show(w, r, a.status, views.Login(s.loginForm(r, next, name, key, false, anew)))
}

// signedInDone is where a sign-in for the sake of another tab ends.
func (s *server) signedInDone(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	p := views.SignedInPage{Layout: s.layout(r, "again.done", "")}
	p.Static = true
	return s.show(w, r, http.StatusOK, views.SignedIn(p))
}

func (s *server) signOut(w http.ResponseWriter, r *http.Request) error {
	in, err := readInput(r)
	if err != nil {
		return err
	}
	if err := in.done(); err != nil {
		return err
	}
	token := s.session(r)
	if callerOf(r).Via == viaToken || token == "" {
		return say(fleet.ErrInvalid, "error.no_session", "a bearer token has no session to sign out of; delete the token instead")
	}
	if err := s.cfg.Auth.SignOut(r.Context(), token); err != nil {
		return err
	}
	s.dropCookie(w)
	// Nothing of ours is stored by browsers but files and the pages that the back button keeps.
	w.Header().Set("Clear-Site-Data", `"cache"`)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
	return nil
}

func (s *server) setupPage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	needed, err := s.cfg.Auth.NeedsSetup(r.Context())
	if err != nil {
		return err
	}
	if !needed {
		http.Redirect(w, r, "/login", http.StatusSeeOther)
		return nil
	}
	p := views.SetupPage{Layout: s.layout(r, "setup.title", "")}
	p.Static = true
	return s.show(w, r, http.StatusOK, views.Setup(p))
}

func (s *server) setup(w http.ResponseWriter, r *http.Request) error {
	in, err := readInput(r)
	if err != nil {
		return err
	}
	code, name, password := in.text("code"), in.text("username"), in.text("password")
	if err := in.done(); err != nil {
		return err
	}
	err = s.cfg.Auth.Setup(r.Context(), code, name, password)
	if problems, ok := s.formProblem(r, err); ok {
		if p, ok := problems["name"]; ok { // what the form calls username, as the sign-in form does
			problems["username"] = p
		}
		p := views.SetupPage{Layout: s.layout(r, "setup.title", ""), Username: name, Errors: problems}
		p.Static = true
		return s.show(w, r, http.StatusUnprocessableEntity, views.Setup(p))
	}
	if err != nil {
		return err
	}
	http.Redirect(w, r, "/login?"+url.Values{"next": {home}}.Encode(), http.StatusSeeOther)
	return nil
}
