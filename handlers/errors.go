package handlers

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// errMethod is the kind of a request whose path exists under another method only.
var errMethod = errors.New("method not allowed")

// kinds is the one table from kind of error to answer. The first that matches counts.
var kinds = []struct {
	err    error
	status int
	name   string // of the problem type and, with "error." before it, of the sentence in the catalogue
	title  string
}{
	{fleet.ErrUnauthenticated, http.StatusUnauthorized, "unauthenticated", "You are not signed in."},
	{fleet.ErrForbidden, http.StatusForbidden, "forbidden", "You are not permitted to do this."},
	{fleet.ErrNotFound, http.StatusNotFound, "not_found", "It does not exist, or you may not see it."},
	{errMethod, http.StatusMethodNotAllowed, "method", "This address does not answer to that method."},
	{fleet.ErrConflict, http.StatusConflict, "conflict", "It is in conflict with something else."},
	{fleet.ErrBlocked, http.StatusConflict, "blocked", "Something protects it."},
	{fleet.ErrTooLarge, http.StatusRequestEntityTooLarge, "too_large", "The request is too large."},
	{fleet.ErrUnsupported, http.StatusUnsupportedMediaType, "unsupported", "The request is in a form that is not understood."},
	{fleet.ErrInvalid, http.StatusUnprocessableEntity, "invalid", "Something in the request is wrong."},
	{fleet.ErrTooMany, http.StatusTooManyRequests, "too_many", "Too many requests; try again later."},
	{fleet.ErrUnavailable, http.StatusServiceUnavailable, "unavailable", "Something that is needed does not answer now; try again."},
	{context.DeadlineExceeded, http.StatusServiceUnavailable, "timeout", "It took too long; try again."},
}

// said is a kind of error with a sentence that may be shown.
type said struct {
	kind    error
	key     string // of the sentence in the catalogue
	message string // in English, with {{.Part}} filled in
	args    map[string]string
}

func (e *said) Error() string { return e.message }
func (e *said) Unwrap() error { return e.kind }

// say makes an error of the kind whose message is shown: the catalogue's text for key, or this English one.
func say(kind error, key, english string, args ...string) error {
	e := &said{kind: kind, key: key, message: english, args: map[string]string{}}
	for i := 0; i+1 < len(args); i += 2 {
		e.args[args[i]] = args[i+1]
		e.message = strings.ReplaceAll(e.message, "{{."+args[i]+"}}", args[i+1])
	}
	return e
}

// answer is an error as people and programs get it.
type answer struct {
	status  int
	name    string
	title   string
	field   string
	message string // "" for what is ours to know
	batch   string
	retry   time.Duration
}

// answerFor classifies an error. Only texts that were made to be shown become the message.
func answerFor(err error, lang string) answer {
	a := answer{status: http.StatusInternalServerError, name: "internal", title: "Something went wrong on our side."}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			a.status, a.name, a.title = k.status, k.name, k.title
			break
		}
	}
	if e, ok := errors.AsType[*said](err); ok {
		a.message = views.Message(lang, e.key, e.args, e.message)
	}
	if e, ok := errors.AsType[*fleet.FieldError](err); ok {
		a.field, a.message = e.Field, views.Message(lang, e.Key, e.Args, e.Message)
	}
	if e, ok := errors.AsType[*fleet.BusyError](err); ok {
		a.batch = e.Batch
		a.message = views.Message(lang, "error.busy", map[string]string{"Part": e.Node.String(), "Batch": e.Batch}, e.Error())
	}
	if e, ok := errors.AsType[*fleet.DeniedError](err); ok {
		a.message = views.Message(lang, "error.denied", map[string]string{"Part": e.Cluster, "Permission": string(e.Permission)}, e.Error())
	}
	if e, ok := errors.AsType[*fleet.StaleSignInError](err); ok {
		a.name, a.title = "sign_in_again", "Sign in again before this."
		a.message = views.SignInAgain(lang, e)
	}
	if e, ok := errors.AsType[*fleet.LimitError](err); ok {
		a.retry = e.Retry
		a.message = views.Message(lang, "error.limit", map[string]string{"Part": e.What, "Retry": e.Retry.Round(time.Second).String()}, e.Error())
	}
	if e, ok := errors.AsType[*fleet.LaterError](err); ok {
		a.retry = e.Retry
	}
	if a.status >= http.StatusInternalServerError {
		a.message = ""
	}
	return a
}

// fail answers with the error, once. What has already begun cannot be taken back: the connection is cut instead.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	st := stateOf(r)
	st.err = err
	if begun(w) {
		panic(http.ErrAbortHandler)
	}
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		return // the client left; nobody reads an answer
	}
	form := errorForm(r, st.route)
	lang := s.lang(r)
	if form == asJSON {
		lang = "en"
	}
	a := answerFor(err, lang)
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	switch a.status {
	case http.StatusUnauthorized:
		if form == asPage && st.route.kind == page && st.route.perm != fleet.PermPublic {
			http.Redirect(w, r, loginURL(r), http.StatusSeeOther)
			return
		}
		if form == asJSON {
			h.Set("WWW-Authenticate", `Bearer realm="kube-node-manager"`)
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		h.Set("Retry-After", seconds(a.retry))
	}
	if form == asJSON {
		s.problem(w, st.id, a)
		return
	}
	p := views.ErrorPage{
		Layout: s.layout(r, "error.title", ""), Status: a.status, Kind: "error." + a.name, Field: a.field, Message: a.message,
		RequestID: st.id, Batch: a.batch,
	}
	p.Static = true
	c := views.Error(p)
	if form == asFragment {
		c = views.ErrorFragment(p)
	}
	if err := s.show(w, r, a.status, c); err != nil {
		// The page for errors failed itself: a plain sentence is left.
		st.err = errors.Join(st.err, err)
		_ = plain(w, a.status, a.title+" ("+st.id+")\n")
	}
}

// problemJSON is RFC 9457 with our members.
type problemJSON struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail,omitempty"`
	Field     string `json:"field,omitempty"`
	Batch     string `json:"batch,omitempty"`
	RequestID string `json:"request_id"`
}

func (s *server) problem(w http.ResponseWriter, id string, a answer) {
	body, err := json.Marshal(problemJSON{
		Type: "urn:kube-node-manager:problem:" + a.name, Title: a.title, Status: a.status, Detail: a.message, Field: a.field,
		Batch: a.batch, RequestID: id,
	})
	if err != nil {
		body = []byte(`{"title":"internal"}`) // strings and a number cannot fail
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(a.status)
	_, _ = w.Write(append(body, '\n')) // a client that is gone is noticed by the server
}
