package handlers

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// oidcCallback is where the identity provider sends browsers back to; it is registered there.
const oidcCallback = "/login/oidc/callback"

// beginOIDC sends a browser to the identity provider. What it has to bring back stays in a cookie of its own: whoever
// comes back without it, sent by somebody else, is not signed in.
func (s *server) beginOIDC(w http.ResponseWriter, r *http.Request) error {
	anew := again(r.URL.Query().Get("again"))
	next := s.afterwards(r.URL.Query().Get("next"), anew)
	target, kept, until, err := s.cfg.Auth.BeginOIDC(r.Context(), s.ownOrigin(r)+oidcCallback, anew)
	if err != nil {
		return notFound(err, say(fleet.ErrNotFound, "error.oidc_off", "there is no identity provider"))
	}
	s.setSecret(w, oidcCookie, kept+"."+base64.RawURLEncoding.EncodeToString([]byte(next)), until)
	http.Redirect(w, r, target, http.StatusSeeOther) //nolint:gosec // G710: the provider's own address
	return nil
}

// finishOIDC signs in whoever the provider sends back. The cookie is good for one try. No text of the address is shown.
func (s *server) finishOIDC(w http.ResponseWriter, r *http.Request) error {
	answer := r.URL.Query()
	r.URL.RawQuery = "" // no page that answers this may carry the code or a text of somebody else's further
	kept, rest, _ := strings.Cut(s.secret(r, oidcCookie), ".")
	s.dropSecret(w, oidcCookie)
	target, err := base64.RawURLEncoding.DecodeString(rest)
	if err != nil {
		target = nil // leads to the start page
	}
	from := fleet.Caller{Addr: stateOf(r).addr}
	if s.session(r) != "" {
		if old, err := s.authenticate(r); err == nil {
			from.Session = old.Session
		}
	}
	token, expires, err := s.cfg.Auth.FinishOIDC(r.Context(), s.ownOrigin(r)+oidcCallback, kept, answer, from, r.UserAgent())
	_, stale := errors.AsType[*fleet.StaleSignInError](err)
	switch {
	case stale:
		return say(fleet.ErrForbidden, "error.oidc_stale",
			"the identity provider did not have you sign in anew, or does not say when you did; whoever runs this program has to see to that")
	case errors.Is(err, fleet.ErrUnauthenticated):
		return say(fleet.ErrUnauthenticated, "error.oidc_failed", "signing in at the identity provider did not work; try again")
	case errors.Is(err, fleet.ErrForbidden):
		return say(fleet.ErrForbidden, "error.oidc_refused",
			"the identity provider vouched for you, but none of your groups may use this program, or your name is taken")
	case err != nil:
		return notFound(err, say(fleet.ErrNotFound, "error.oidc_off", "there is no identity provider"))
	}
	s.dropHalf(w, r)
	s.setCookie(w, token, expires)
	http.Redirect(w, r, s.next(string(target)), http.StatusSeeOther)
	return nil
}
