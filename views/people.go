package views

import (
	"net/url"
	"strconv"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// fieldSpec is one input of a form with everything that belongs to it for eyes and for screen readers.
type fieldSpec struct {
	Name, Label, Hint, Value, Type, Auto, Error string
	Required, Focus                             bool
}

func (f fieldSpec) id() string { return "f-" + f.Name }

func (f fieldSpec) kind() string {
	if f.Type == "" {
		return "text"
	}
	return f.Type
}

func (f fieldSpec) describedBy() string {
	ids := ""
	if f.Hint != "" {
		ids = f.id() + "-hint"
	}
	if f.Error != "" {
		if ids != "" {
			ids += " "
		}
		ids += f.id() + "-error"
	}
	return ids
}

var roles = []fleet.Role{fleet.RoleViewer, fleet.RoleOperator, fleet.RoleAdmin}

func userURL(name string) string { return "/api/v1/users/" + url.PathEscape(name) }
func sessionEndURL(hash string) string {
	return "/api/v1/sessions/" + url.PathEscape(hash) + "/delete"
}
func tokenEndURL(id string) string { return "/api/v1/tokens/" + url.PathEscape(id) + "/delete" }

// local tells whether the person has a password here.
func local(u fleet.User) bool { return u.Kind == fleet.PersonLocal || u.Kind == "" }

// invited says whether the invitation is still good.
func invited(p UsersPage, u fleet.User) string {
	if p.Now.After(u.InvitedUntil) {
		return T(p.Lang, "user.invited.late")
	}
	return T(p.Lang, "user.invited")
}

// square is the viewBox of a picture.
func square(n int) string { return "0 0 " + strconv.Itoa(n) + " " + strconv.Itoa(n) }

// oidcURL begins a sign-in at the identity provider that leads back to next.
func oidcURL(next string) string {
	if next == "" {
		return "/login/oidc"
	}
	return "/login/oidc?" + url.Values{"next": {next}}.Encode()
}

// day is what a date input reads and writes.
func day(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateOnly)
}

func outcomeClass(o string) string {
	switch o {
	case "succeeded":
		return "ok"
	case "failed", "denied":
		return "bad"
	case "skipped", "partial":
		return "warn"
	}
	return "unk"
}
