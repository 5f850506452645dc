package handlers

import (
	"errors"
	"net/http"
	"net/url"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// askForCode answers the right password of a person with a second factor. What the browser gets is a cookie of its own
// that no other route reads; a program is told where to send the code.
func (s *server) askForCode(w http.ResponseWriter, r *http.Request, half *fleet.SecondStepError, next string) error {
	s.setSecret(w, halfCookie, half.Token, half.Expires)
	if errorForm(r, stateOf(r).route) != asPage {
		return say(fleet.ErrUnauthenticated, "login.code_needed",
			"the password is right and a code is needed: send it as code to /login/code, with the cookie of this answer")
	}
	target := "/login/code"
	if next != home {
		target += "?" + url.Values{"next": {next}}.Encode()
	}
	http.Redirect(w, r, target, http.StatusSeeOther)
	return nil
}

func (s *server) dropHalf(w http.ResponseWriter, r *http.Request) {
	if s.secret(r, halfCookie) != "" {
		s.dropSecret(w, halfCookie)
	}
}

func (s *server) codePage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	if s.secret(r, halfCookie) == "" {
		http.Redirect(w, r, "/login", http.StatusSeeOther)
		return nil
	}
	return s.showCode(w, r, http.StatusOK, s.next(r.URL.Query().Get("next")), "")
}

func (s *server) showCode(w http.ResponseWriter, r *http.Request, status int, next, problem string) error {
	p := views.CodePage{Layout: s.layout(r, "totp.title", ""), Error: problem}
	if next != home {
		p.Next = next
	}
	p.Static = true
	p.Path = "/login/code" // also when it answers a form
	return s.show(w, r, status, views.Code(p))
}

func (s *server) secondStep(w http.ResponseWriter, r *http.Request) error {
	in, err := readInput(r)
	if err != nil {
		return err
	}
	code, next := in.text("code"), s.next(in.text("next"))
	if err := in.done(); err != nil {
		return err
	}
	done, err := s.cfg.Auth.SecondStep(r.Context(), s.secret(r, halfCookie), code, s.secret(r, deviceCookie),
		fleet.Caller{Addr: stateOf(r).addr}, r.UserAgent())
	if err == nil {
		s.signedIn(w, r, done)
		http.Redirect(w, r, next, http.StatusSeeOther)
		return nil
	}
	known := errors.Is(err, fleet.ErrUnauthenticated) || errors.Is(err, fleet.ErrTooMany)
	if errors.Is(err, fleet.ErrUnauthenticated) {
		err = say(fleet.ErrUnauthenticated, "totp.wrong", "the code is wrong or was used, or too much time has passed since the password")
	}
	if !known || errorForm(r, stateOf(r).route) != asPage {
		return err
	}
	stateOf(r).err = err
	a, key := answerFor(err, s.lang(r)), "totp.wrong"
	if a.status == http.StatusTooManyRequests {
		key = "login.throttled"
		w.Header().Set("Retry-After", seconds(a.retry))
	}
	return s.showCode(w, r, a.status, next, key)
}

// ownFactor shows the account again with what came of a change to the caller's second factor, or answers a program.
func (s *server) ownFactor(w http.ResponseWriter, r *http.Request, err error, shown factorShown, body any) error {
	if problems, ok := s.formProblem(r, err); ok {
		return s.showAccount(w, r, http.StatusUnprocessableEntity, accountShown{problems: problems})
	}
	switch {
	case err != nil:
		return err
	case wantsHTML(r):
		// Not a redirect: the secret and the recovery codes could not be shown by the next request.
		return s.showAccount(w, r, http.StatusOK, accountShown{factor: shown})
	}
	return writeJSON(w, http.StatusOK, body)
}

// factorShown is what a person sees once.
type factorShown struct {
	enrolment *fleet.Enrolment
	recovery  []string
}

func (s *server) beginFactor(w http.ResponseWriter, r *http.Request) error {
	password, err := oneField(r, "password")
	var e fleet.Enrolment
	if err == nil {
		e, err = s.cfg.People.BeginFactor(r.Context(), callerOf(r), password)
	}
	type enrolmentJSON struct {
		Secret string `json:"secret"`
		URI    string `json:"uri"`
	}
	return s.ownFactor(w, r, err, factorShown{enrolment: &e}, enrolmentJSON{e.Secret, e.URI})
}

func (s *server) confirmFactor(w http.ResponseWriter, r *http.Request) error {
	code, err := oneField(r, "code")
	var recovery []string
	if err == nil {
		recovery, err = s.cfg.People.ConfirmFactor(r.Context(), callerOf(r), code)
	}
	return s.ownFactor(w, r, err, factorShown{recovery: recovery}, map[string]any{"recovery_codes": recovery})
}

func (s *server) dropFactor(w http.ResponseWriter, r *http.Request) error {
	code, err := oneField(r, "code")
	if err == nil {
		err = s.cfg.People.DropFactor(r.Context(), callerOf(r), code)
	}
	if problems, ok := s.formProblem(r, err); ok {
		return s.showAccount(w, r, http.StatusUnprocessableEntity, accountShown{problems: problems})
	}
	return s.ended(w, r, err) // sends a browser to the account, and from there to sign in
}

// changePassword is for the caller's own: it ends their session, and a browser is sent to sign in.
func (s *server) changePassword(w http.ResponseWriter, r *http.Request) error {
	in, err := readInput(r)
	if err != nil {
		return err
	}
	current, password := in.text("current_password"), in.text("new_password")
	if err = in.done(); err == nil {
		err = s.cfg.People.ChangePassword(r.Context(), callerOf(r), current, password)
	}
	if problems, ok := s.formProblem(r, err); ok {
		return s.showAccount(w, r, http.StatusUnprocessableEntity, accountShown{problems: problems})
	}
	return s.ended(w, r, err)
}

// oneField is the body of requests that carry one thing.
func oneField(r *http.Request, name string) (string, error) {
	in, err := readInput(r)
	if err != nil {
		return "", err
	}
	return in.text(name), in.done()
}

// invitePage is where an invitation leads. The code is behind the # of the link: it reaches no server, no log and no
// referrer; a script copies it into the form, and without one it is pasted.
func (s *server) invitePage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	return s.showInvite(w, r, http.StatusOK, "", nil)
}

func (s *server) showInvite(w http.ResponseWriter, r *http.Request, status int, code string, problems map[string]string) error {
	p := views.InvitePage{Layout: s.layout(r, "invite.title", ""), Code: code, Errors: problems}
	p.Static = true
	return s.show(w, r, status, views.Invite(p))
}

func (s *server) acceptInvitation(w http.ResponseWriter, r *http.Request) error {
	in, err := readInput(r)
	if err != nil {
		return err
	}
	code, password := in.text("code"), in.text("password")
	if err := in.done(); err != nil {
		return err
	}
	err = s.cfg.Auth.AcceptInvitation(r.Context(), code, password)
	if problems, ok := s.formProblem(r, err); ok {
		return s.showInvite(w, r, http.StatusUnprocessableEntity, code, problems)
	}
	if err != nil {
		return err
	}
	http.Redirect(w, r, "/login", http.StatusSeeOther)
	return nil
}

// inviteURL is the link of an invitation.
func (s *server) inviteURL(r *http.Request, inv fleet.Invitation) string {
	return s.ownOrigin(r) + "/invite#" + inv.Code
}
