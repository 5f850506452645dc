package handlers

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// defaultTokenDays is the life of an API token when nobody says.
const defaultTokenDays = 30

// userJSON is a person as programs see one.
type userJSON struct {
	Name       string     `json:"name"`
	Role       fleet.Role `json:"role"`
	Disabled   bool       `json:"disabled"`
	CreatedAt  time.Time  `json:"created_at"`
	LastSignIn time.Time  `json:"last_sign_in,omitzero"`

	Kind         fleet.PersonKind `json:"kind"`
	SecondFactor bool             `json:"second_factor"`
	InvitedUntil time.Time        `json:"invited_until,omitzero"`
	DelayedUntil time.Time        `json:"delayed_until,omitzero"`

	Grants []fleet.Grant `json:"grants"`
	Groups []string      `json:"groups,omitempty"`
}

func userOf(u fleet.User) userJSON {
	if u.Grants == nil {
		u.Grants = []fleet.Grant{}
	}
	return userJSON{
		u.Name, u.Role, u.Disabled, u.CreatedAt, u.LastSignIn, u.Kind, !u.SecondFactor.IsZero(), u.InvitedUntil, u.DelayedUntil, u.Grants, u.Groups,
	}
}

// invitationJSON is an invitation, in the one answer that has its link.
type invitationJSON struct {
	Name      string    `json:"name"`
	Link      string    `json:"link"`
	ExpiresAt time.Time `json:"expires_at"`
}

func (s *server) usersPage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	return s.showUsers(w, r, http.StatusOK, nil, nil)
}

func (s *server) showUsers(w http.ResponseWriter, r *http.Request, status int, inv *views.Invitation, problems map[string]string) error {
	users, err := s.cfg.People.Users(r.Context())
	if err != nil {
		return err
	}
	p := views.UsersPage{Layout: s.layout(r, "users.title", "users"), Users: users, Invitation: inv, Errors: problems}
	p.Static = true
	p.Path = "/users" // also when it answers a form
	return s.show(w, r, status, views.Users(p))
}

func (s *server) listUsers(w http.ResponseWriter, r *http.Request) error {
	users, err := s.cfg.People.Users(r.Context())
	if err != nil {
		return err
	}
	items := make([]userJSON, len(users))
	for i, u := range users {
		items[i] = userOf(u)
	}
	return writeJSON(w, http.StatusOK, map[string]any{"items": items})
}

// formProblem is the sentence for a field when a browser's form was wrong; the form is then shown again with it.
func (s *server) formProblem(r *http.Request, err error) (map[string]string, bool) {
	if !errors.Is(err, fleet.ErrInvalid) || !accepts(r, "text/html") || htmx(r) {
		return nil, false
	}
	problems := map[string]string{}
	fieldProblems(err, s.lang(r), problems)
	if len(problems) == 0 {
		return nil, false
	}
	stateOf(r).err = err
	return problems, true
}

// fieldProblems collects the sentences of all FieldErrors in the tree of an error, the first one of each field.
func fieldProblems(err error, lang string, into map[string]string) {
	if e, ok := err.(*fleet.FieldError); ok { //nolint:errorlint // the walk below is what errors.As does, for all of them
		if _, ok := into[e.Field]; !ok {
			into[e.Field] = views.Message(lang, e.Key, e.Args, e.Message)
		}
		return
	}
	switch x := err.(type) { //nolint:errorlint // see above
	case interface{ Unwrap() []error }:
		for _, e := range x.Unwrap() {
			fieldProblems(e, lang, into)
		}
	case interface{ Unwrap() error }:
		fieldProblems(x.Unwrap(), lang, into)
	}
}

func (s *server) addUser(w http.ResponseWriter, r *http.Request) error {
	inv, err := s.tryAddUser(r)
	if problems, ok := s.formProblem(r, err); ok {
		return s.showUsers(w, r, http.StatusUnprocessableEntity, nil, problems)
	}
	if err != nil {
		return err
	}
	if inv != nil {
		return s.showInvitation(w, r, http.StatusCreated, *inv)
	}
	if accepts(r, "text/html") {
		http.Redirect(w, r, "/users", http.StatusSeeOther)
		return nil
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// showInvitation answers with a link that is kept nowhere: not a redirect, the next request could not show it.
func (s *server) showInvitation(w http.ResponseWriter, r *http.Request, status int, inv fleet.Invitation) error {
	link := s.inviteURL(r, inv)
	if wantsHTML(r) {
		return s.showUsers(w, r, http.StatusOK, &views.Invitation{Name: inv.Name, Link: link, ExpiresAt: inv.ExpiresAt}, nil)
	}
	return writeJSON(w, status, invitationJSON{inv.Name, link, inv.ExpiresAt})
}

// tryAddUser makes a person with a password, or with an invitation to set one.
func (s *server) tryAddUser(r *http.Request) (*fleet.Invitation, error) {
	in, err := readInput(r)
	if err != nil {
		return nil, err
	}
	name, roleName, password, invite := in.text("name"), in.text("role"), in.text("password"), in.flag("invite")
	if err := in.done(); err != nil {
		return nil, err
	}
	role, err := fleet.ParseRole(roleName)
	if err != nil {
		return nil, err
	}
	if !invite {
		return nil, s.cfg.People.AddUser(r.Context(), callerOf(r), name, role, password)
	}
	if password != "" {
		return nil, &fleet.FieldError{
			Field: "password", Key: "error.invite_password", Message: "is not given together with an invitation, which lets the person set it",
		}
	}
	inv, err := s.cfg.People.InviteUser(r.Context(), callerOf(r), name, role)
	if err != nil {
		return nil, err
	}
	return &inv, nil
}

func (s *server) changeUser(w http.ResponseWriter, r *http.Request) error {
	inv, err := s.tryChangeUser(r)
	if problems, ok := s.formProblem(r, err); ok {
		return s.showUsers(w, r, http.StatusUnprocessableEntity, nil, problems)
	}
	if err != nil {
		return err
	}
	if inv != nil {
		return s.showInvitation(w, r, http.StatusOK, *inv)
	}
	if accepts(r, "text/html") {
		http.Redirect(w, r, "/users", http.StatusSeeOther)
		return nil
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// tryChangeUser makes one change. Several at once could stop half-way, with nothing to say which half.
func (s *server) tryChangeUser(r *http.Request) (invitation *fleet.Invitation, err error) {
	name, err := pathParam(r, "name")
	if err != nil {
		return nil, err
	}
	in, err := readInput(r)
	if err != nil {
		return nil, err
	}
	caller, given := callerOf(r), 0
	for _, f := range []string{"role", "disabled", "password", "invite", "second_factor", "unblock", "grant", "revoke"} {
		if in.has(f) {
			given++
		}
	}
	grants, listed := in.grantList()
	if listed {
		given++
	}
	grant := in.grant()
	revoke := fleet.Scope(in.text("revoke"))
	roleName, disabled, password := in.text("role"), in.flag("disabled"), in.text("password")
	invite, factor, unblock := in.flag("invite"), in.text("second_factor"), in.flag("unblock")
	if err := in.done(); err != nil {
		return nil, err
	}
	if given != 1 {
		return nil, fleet.Invalid("role", "give exactly one of role, disabled, password, invite, second_factor, unblock, grants, grant, revoke")
	}
	switch {
	case listed:
		err = s.cfg.People.SetGrants(r.Context(), caller, name, grants)
	case in.has("grant"):
		err = s.cfg.People.AddGrant(r.Context(), caller, name, grant)
	case in.has("revoke"):
		err = s.cfg.People.DropGrant(r.Context(), caller, name, revoke)
	case in.has("invite"):
		if !invite {
			return nil, fleet.Invalid("invite", "can only be true")
		}
		inv, ierr := s.cfg.People.Reinvite(r.Context(), caller, name)
		if err = ierr; err == nil {
			return &inv, nil
		}
	case in.has("second_factor"):
		if factor != "reset" {
			return nil, fleet.Invalid("second_factor", "can only be reset")
		}
		err = s.cfg.People.ResetFactor(r.Context(), caller, name)
	case in.has("unblock"):
		if !unblock {
			return nil, fleet.Invalid("unblock", "can only be true")
		}
		err = s.cfg.People.Unblock(r.Context(), caller, name)
	case in.has("role"):
		role, perr := fleet.ParseRole(roleName)
		if perr != nil {
			return nil, perr
		}
		err = s.cfg.People.SetRole(r.Context(), caller, name, role)
	case in.has("disabled"):
		err = s.cfg.People.SetDisabled(r.Context(), caller, name, disabled)
	default:
		err = s.cfg.People.SetPassword(r.Context(), caller, name, password)
	}
	return nil, notFound(err, say(fleet.ErrNotFound, "error.user_unknown", "there is no user named {{.Part}}", "Part", name))
}

// grant is the one that a form gives: the scope, and with it a role and boxes for what is permitted beside it.
func (in *input) grant() fleet.Grant {
	g := fleet.Grant{Scope: fleet.Scope(in.text("grant")), Role: fleet.Role(in.text("grant_role")), Also: in.permissions("also")}
	if !in.has("grant") && (g.Role != "" || g.Also != nil) {
		in.fail(fleet.Invalid("grant", "is missing: which clusters?"))
	}
	return g
}

// grantList is the list of grants, and whether there is one: an empty one is one.
func (in *input) grantList() (list []fleet.Grant, ok bool) {
	in.taken["grants"] = true
	if in.has("grants") {
		in.fail(notGrants())
	}
	if !in.listed {
		return nil, false
	}
	list = make([]fleet.Grant, in.grants)
	for i := range list {
		at := "grants[" + strconv.Itoa(i) + "]."
		list[i] = fleet.Grant{Scope: fleet.Scope(in.text(at + "scope")), Role: fleet.Role(in.text(at + "role")), Also: in.permissions(at + "also")}
	}
	return list, true
}

// permissions are those that a field names.
func (in *input) permissions(name string) (list []fleet.Permission) {
	for _, p := range in.lines(name) {
		list = append(list, fleet.Permission(p))
	}
	return list
}

func (s *server) accountPage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	return s.showAccount(w, r, http.StatusOK, accountShown{})
}

// accountShown is what the account page shows once, beside what it always shows.
type accountShown struct {
	token    string
	factor   factorShown
	problems map[string]string
}

func (s *server) showAccount(w http.ResponseWriter, r *http.Request, status int, shown accountShown) error {
	caller := callerOf(r)
	sessions, err := s.cfg.People.Sessions(r.Context(), caller)
	if err != nil {
		return err
	}
	tokens, err := s.cfg.People.Tokens(r.Context(), caller)
	if err != nil {
		return err
	}
	factor, err := s.cfg.People.SecondFactor(r.Context(), caller)
	if err != nil {
		return err
	}
	me, err := s.cfg.People.Me(r.Context(), caller)
	if err != nil {
		return err
	}
	p := views.AccountPage{
		Layout: s.layout(r, "account.title", "account"), Sessions: sessions, Tokens: tokens, NewToken: shown.token, Errors: shown.problems,
		Factor: factor, Enrolment: shown.factor.enrolment, Recovery: shown.factor.recovery,
		Grants: me.Grants, Groups: me.Groups,
	}
	p.Static = true
	p.Path = "/account" // also when it answers a form
	return s.show(w, r, status, views.Account(p))
}

// tokenJSON is a token as its owner sees it. Secret is there once, in the answer that makes it.
type tokenJSON struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	UsedAt    time.Time `json:"used_at,omitzero"`
	Secret    string    `json:"token,omitempty"`

	Role  fleet.Role  `json:"role,omitempty"`
	Scope fleet.Scope `json:"scope,omitempty"`
}

func tokenOf(t fleet.Token, secret string) tokenJSON {
	return tokenJSON{t.ID, t.Name, t.CreatedAt, t.ExpiresAt, t.UsedAt, secret, t.Role, t.Scope}
}

func (s *server) listTokens(w http.ResponseWriter, r *http.Request) error {
	tokens, err := s.cfg.People.Tokens(r.Context(), callerOf(r))
	if err != nil {
		return err
	}
	items := make([]tokenJSON, len(tokens))
	for i, t := range tokens {
		items[i] = tokenOf(t, "")
	}
	return writeJSON(w, http.StatusOK, map[string]any{"items": items})
}

func (s *server) addToken(w http.ResponseWriter, r *http.Request) error {
	secret, token, err := s.tryAddToken(r)
	if problems, ok := s.formProblem(r, err); ok {
		return s.showAccount(w, r, http.StatusUnprocessableEntity, accountShown{problems: problems})
	}
	if err != nil {
		return err
	}
	if wantsHTML(r) {
		// Not a redirect: the secret is kept nowhere and could not be shown by the next request.
		return s.showAccount(w, r, http.StatusOK, accountShown{token: secret})
	}
	return writeJSON(w, http.StatusCreated, tokenOf(token, secret))
}

func (s *server) tryAddToken(r *http.Request) (string, fleet.Token, error) {
	in, err := readInput(r)
	if err != nil {
		return "", fleet.Token{}, err
	}
	name, until := in.text("name"), in.text("expires")
	role, scope := fleet.Role(in.text("role")), fleet.Scope(in.text("scope"))
	if err := in.done(); err != nil {
		return "", fleet.Token{}, err
	}
	expires, err := moment("expires", until)
	if err != nil {
		return "", fleet.Token{}, err
	}
	switch {
	case expires.IsZero():
		expires = time.Now().AddDate(0, 0, defaultTokenDays)
	case len(until) == len(time.DateOnly):
		expires = expires.AddDate(0, 0, 1) // good through the day that was named
	}
	return s.cfg.People.AddToken(r.Context(), callerOf(r), fleet.Token{Name: name, ExpiresAt: expires, Role: role, Scope: scope})
}

// ended answers what ends a session or token: a browser goes back to the account, a program gets nothing.
func (s *server) ended(w http.ResponseWriter, r *http.Request, err error) error {
	if err != nil {
		return err
	}
	if accepts(r, "text/html") {
		http.Redirect(w, r, "/account", http.StatusSeeOther)
		return nil
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) endToken(w http.ResponseWriter, r *http.Request) error {
	id, err := idOnly(r)
	if err == nil {
		err = s.cfg.People.EndToken(r.Context(), callerOf(r), id)
	}
	return s.ended(w, r, notFound(err, say(fleet.ErrNotFound, "error.token_unknown", "there is no such token of yours")))
}

func (s *server) listSessions(w http.ResponseWriter, r *http.Request) error {
	sessions, err := s.cfg.People.Sessions(r.Context(), callerOf(r))
	if err != nil {
		return err
	}
	type sessionJSON struct {
		ID        string    `json:"id"`
		Addr      string    `json:"addr"`
		UserAgent string    `json:"user_agent"`
		CreatedAt time.Time `json:"created_at"`
		SeenAt    time.Time `json:"seen_at"`
		ExpiresAt time.Time `json:"expires_at"`
		Current   bool      `json:"current"`
	}
	items := make([]sessionJSON, len(sessions))
	for i, x := range sessions {
		items[i] = sessionJSON{x.Hash, x.Addr, x.UserAgent, x.CreatedAt, x.SeenAt, x.ExpiresAt, x.Current}
	}
	return writeJSON(w, http.StatusOK, map[string]any{"items": items})
}

func (s *server) endSession(w http.ResponseWriter, r *http.Request) error {
	id, err := idOnly(r)
	if err == nil {
		err = s.cfg.People.EndSession(r.Context(), callerOf(r), id)
	}
	return s.ended(w, r, notFound(err, say(fleet.ErrNotFound, "error.session_unknown", "there is no such session of yours")))
}

// idOnly is the id of the path, for requests that carry nothing else.
func idOnly(r *http.Request) (string, error) {
	id, err := pathParam(r, "id")
	if err != nil {
		return "", err
	}
	in, err := readInput(r)
	if err != nil {
		return "", err
	}
	return id, in.done()
}
