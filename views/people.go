package views

import (
	"net/url"
	"strconv"
	"strings"
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

// roles are what somebody can be everywhere; grantRoles, what they can be in some clusters.
var (
	roles      = []fleet.Role{fleet.RoleNone, fleet.RoleViewer, fleet.RoleOperator, fleet.RoleAdmin}
	grantRoles = roles[1:]
)

// grantField is what a form calls the fields of a grant.
const (
	grantField     = "grant"
	grantRoleField = "grant_role"
	revokeField    = "revoke"
)

func userURL(name string) string { return "/api/v1/users/" + url.PathEscape(name) }
func sessionEndURL(hash string) string {
	return "/api/v1/sessions/" + url.PathEscape(hash) + "/delete"
}
func tokenEndURL(id string) string { return "/api/v1/tokens/" + url.PathEscape(id) + "/delete" }

// local tells whether the person has a password here.
func local(u fleet.User) bool { return u.Kind == fleet.PersonLocal || u.Kind == "" }

// vouchedBy is the key of the word for where a person signs in.
func vouchedBy(u fleet.User) string {
	if strings.HasPrefix(u.Issuer, fleet.HeaderIssuer) {
		return "person.header"
	}
	return "person." + string(u.Kind)
}

// permissionKey is the key of the words for a permission that can be granted.
func permissionKey(p fleet.Permission) string {
	return "perm." + strings.ReplaceAll(string(p), ".", "_")
}

// more are the words for what a grant adds to its role.
func more(lang string, g fleet.Grant) string {
	words := make([]string, len(g.Also))
	for i, p := range g.Also {
		words[i] = T(lang, permissionKey(p))
	}
	return strings.Join(words, ", ")
}

// tokenLimit says what a token may do at most.
func tokenLimit(lang string, t fleet.Token) string {
	role := T(lang, "token.any_role")
	if t.Role != "" {
		role = T(lang, "role."+string(t.Role))
	}
	if t.Scope == "" {
		return role
	}
	return T(lang, "token.in", "Role", role, "Scope", string(t.Scope))
}

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
// title is the catalogue key of the title.
func (p LoginPage) title() string {
	if p.Again {
		return "again.title"
	}
	return "login.title"
}

func oidcURL(next string, again bool) string {
	v := url.Values{}
	if next != "" {
		v.Set("next", next)
	}
	if again {
		v.Set("again", "1")
	}
	if len(v) == 0 {
		return "/login/oidc"
	}
	return "/login/oidc?" + v.Encode()
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
