package fleet

import (
	"slices"
	"strings"
	"time"
)

// PersonKind says where a person is known, and thereby how they sign in.
type PersonKind string

// The kinds of person.
const (
	PersonLocal PersonKind = "local" // has a password here
	PersonOIDC  PersonKind = "oidc"  // an identity provider vouches for them
	PersonLDAP  PersonKind = "ldap"  // a directory checks their password
)

// Identity is who somebody is to a provider. Names and mail addresses change hands; these do not.
type Identity struct {
	Kind    PersonKind
	Issuer  string
	Subject string
}

// Vouched is what a provider says of somebody who has just proven who they are.
type Vouched struct {
	Identity
	Name string // that they go by; used when the person is first seen
	Role Role   // everywhere; "" if nothing that they are maps to one

	Grants []Grant  // in some clusters
	Groups []string // that they are in

	SignedIn time.Time // when they proved it there; zero if the provider does not say
}

// HeaderIssuer begins the issuer of people for whom a header of a trusted proxy vouches; the name of the header follows.
// To the rest of the program they are people of an identity provider.
const HeaderIssuer = "trusted-header:"

// Factor is the second factor of a person.
type Factor struct {
	Secret   Sealed
	LastStep int64 // of the last code that was taken; no code of this or an earlier step is good
}

// FactorPlace is where the secret of a person's second factor is kept.
func FactorPlace(userID string) Place { return SealedRow{Table: SealedFactors, ID: userID}.Place() }

// FactorState is what a person may know of their own second factor.
type FactorState struct {
	Local     bool      // only people with a password here have one
	Available bool      // there is a key to keep secrets with
	Since     time.Time // zero while there is none
	Recovery  int       // codes that were not used
}

// Enrolment is the secret of a second factor, shown once.
type Enrolment struct {
	Secret string // base32
	URI    string // otpauth://
	// Picture is the URI as a QR code: the d attribute of a path in a square of Size units, a quiet zone included.
	Picture string
	Size    int
}

// Proof is what passed as a second factor and must not pass again.
type Proof struct {
	Step     int64  // of the code; 0 if it was a recovery code
	Recovery string // hash of the recovery code
}

// HalfSignIn is a password that was right and waits for the second factor.
type HalfSignIn struct {
	Hash      string // of the token
	UserID    string
	Epoch     int64
	Replaces  string // hash of a session of the same browser that ends with the new one
	ExpiresAt time.Time
}

// Invitation lets a person set their own password, once.
type Invitation struct {
	Name      string
	Code      string // kept nowhere
	ExpiresAt time.Time
}

// SecondStepError says that the password was right and a code is needed. It is ErrUnauthenticated: whoever knows nothing
// of second factors has not signed anybody in. The token can do nothing but be shown together with a code.
type SecondStepError struct {
	Token   string
	Expires time.Time
}

func (*SecondStepError) Error() string { return "a second factor is needed" }

// Is makes every SecondStepError an ErrUnauthenticated.
func (*SecondStepError) Is(target error) bool { return target == ErrUnauthenticated }

// RoleMap is what groups of a provider may do, by group.
type RoleMap map[string][]GroupRole

// GroupRole is a role everywhere, or where the scope says.
type GroupRole struct {
	Role  Role
	Scope Scope // "" for everywhere
}

// Vouch says of somebody what their groups come to: the role that may do most, and one grant for each scope.
func (m RoleMap) Vouch(id Identity, name string, groups []string) Vouched {
	v := Vouched{Identity: id, Name: name, Groups: groups}
	scoped := map[Scope]Role{}
	for _, g := range groups {
		for _, r := range m[g] {
			if r.Scope == "" {
				v.Role = most(v.Role, r.Role)
			} else {
				scoped[r.Scope] = most(scoped[r.Scope], r.Role)
			}
		}
	}
	for scope, role := range scoped {
		v.Grants = append(v.Grants, Grant{Scope: scope, Role: role, From: id.Kind})
	}
	slices.SortFunc(v.Grants, func(a, b Grant) int { return strings.Compare(string(a.Scope), string(b.Scope)) })
	return v
}

// most is the role that may do more.
func most(a, b Role) Role {
	if len(grants[b]) > len(grants[a]) {
		return b
	}
	return a
}
