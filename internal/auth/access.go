package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Bounds of what is remembered of the groups of one person.
const (
	groupsMost = 200
	groupMost  = 256 // bytes
)

// person is who somebody is and what they may do now. Every Caller is made here, or something could be left out.
func (s *Service) person(u fleet.User, via string) fleet.Caller {
	return fleet.Caller{
		UserID: u.ID, Name: u.Name, Groups: u.Groups, Role: u.Role, Access: fleet.NewAccess(u.Grants, s.labels), Via: via,
	}
}

// caller is the person behind a credential. The address is the request's and for handlers to fill in.
func (s *Service) caller(c fleet.Credential, via string) fleet.Caller {
	who := s.person(c.User, via)
	who.Session = c.Hash
	// What one of the two leaves open is everything that the person may.
	if role, scope := cmp.Or(c.Role, fleet.RoleAdmin), cmp.Or(c.Scope, fleet.Everywhere); role != fleet.RoleAdmin || scope != fleet.Everywhere {
		who.Limit = &fleet.Limit{Role: role, Scope: scope, Labels: s.labels}
	}
	return who
}

// Caller answers what a person may do now, for a batch of theirs that goes on without them. ErrForbidden for somebody
// who is disabled, ErrNotFound.
func (s *Service) Caller(ctx context.Context, userID string) (fleet.Caller, error) {
	u, err := s.store.User(ctx, userID)
	if err != nil {
		return fleet.Caller{}, fmt.Errorf("reading what the batch's person may do: %w", err)
	}
	if u.Disabled {
		return fleet.Caller{}, fmt.Errorf("%s is disabled: %w", u.Name, fleet.ErrForbidden)
	}
	return s.person(u, "batch"), nil
}

// Me is the caller as others see them, with what they may do where.
func (s *Service) Me(ctx context.Context, by fleet.Caller) (fleet.User, error) {
	return s.store.User(ctx, by.UserID)
}

// SetGrants makes the list all that a person may do in some clusters beside their role, but for what follows from their
// groups. Their sessions end. FieldErrors (joined) name the grant, as grants[2].scope.
func (s *Service) SetGrants(ctx context.Context, by fleet.Caller, name string, list []fleet.Grant) error {
	if err := s.entrust(ctx, by, "user.grants", name); err != nil {
		return err
	}
	if len(list) > fleet.MaxGrants {
		return tooManyGrants("grants")
	}
	list = slices.Clone(list)
	seen := map[fleet.Scope]bool{}
	var errs []error
	for i, g := range list {
		at := "grants[" + strconv.Itoa(i) + "]."
		g.From = ""
		g, err := g.Check()
		if wrong, ok := errors.AsType[*fleet.FieldError](err); ok {
			wrong.Field = at + wrong.Field
			errs = append(errs, wrong)
			continue
		}
		if err != nil {
			return err
		}
		if seen[g.Scope] {
			errs = append(errs, fleet.Problem(at+"scope", "error.grant_twice", string(g.Scope), "%s is there twice"))
		}
		seen[g.Scope] = true
		list[i] = g
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.regrant(ctx, by, name, func([]fleet.Grant) ([]fleet.Grant, error) { return list, nil })
}

// AddGrant gives a person a grant, in place of one of the same scope. Their sessions end. FieldError, ErrNotFound.
func (s *Service) AddGrant(ctx context.Context, by fleet.Caller, name string, g fleet.Grant) error {
	if err := s.entrust(ctx, by, "user.grants", name); err != nil {
		return err
	}
	g.From = ""
	g, err := g.Check()
	if err != nil {
		return err
	}
	return s.regrant(ctx, by, name, func(now []fleet.Grant) ([]fleet.Grant, error) {
		if i := slices.IndexFunc(now, func(x fleet.Grant) bool { return x.Scope == g.Scope }); i >= 0 {
			now[i] = g
			return now, nil
		}
		if len(now) == fleet.MaxGrants {
			return nil, tooManyGrants("scope")
		}
		return append(now, g), nil
	})
}

// DropGrant takes the grant of a scope from a person. Their sessions end. FieldError if there is no such grant, or if it
// follows from a group; ErrNotFound.
func (s *Service) DropGrant(ctx context.Context, by fleet.Caller, name string, scope fleet.Scope) error {
	if err := s.permit(ctx, by, "user.grants", name); err != nil {
		return err
	}
	scope, err := fleet.ParseScope(string(scope))
	if err != nil {
		return err
	}
	return s.regrant(ctx, by, name, func(now []fleet.Grant) ([]fleet.Grant, error) {
		less := slices.DeleteFunc(slices.Clone(now), func(x fleet.Grant) bool { return x.Scope == scope })
		if len(less) == len(now) {
			return nil, fleet.Problem("scope", "error.grant_unknown", string(scope), "there is no grant in %s that was given here")
		}
		return less, nil
	})
}

func tooManyGrants(field string) error {
	return fleet.Problem(field, "error.grants_many", strconv.Itoa(fleet.MaxGrants), "at most %s grants: more is better said with a pattern")
}

// regrant changes the grants that were given here and leaves those of groups.
func (s *Service) regrant(ctx context.Context, by fleet.Caller, name string, to func(own []fleet.Grant) ([]fleet.Grant, error)) error {
	ch := fleet.UserChange{Grants: func(now []fleet.Grant) ([]fleet.Grant, error) {
		own, theirs := split(now)
		own, err := to(own)
		return slices.Concat(own, theirs), err
	}}
	return s.change(ctx, by, name, "user.grants", ch, ReasonRole, regranted)
}

// split tells what was given here from what follows from groups.
func split(list []fleet.Grant) (own, theirs []fleet.Grant) {
	for _, g := range list {
		if g.From == "" {
			own = append(own, g)
		} else {
			theirs = append(theirs, g)
		}
	}
	return own, theirs
}

// regranted is what the record says.
func regranted(before, after fleet.User) string {
	return fmt.Sprintf("%s: %s → %s", after.Name, grantsText(before.Grants), grantsText(after.Grants))
}

func grantsText(list []fleet.Grant) string {
	if len(list) == 0 {
		return "none"
	}
	texts := make([]string, len(list))
	for i, g := range list {
		texts[i] = g.String()
	}
	return strings.Join(texts, "; ")
}

// groupsOf are those of the groups that are remembered, in one order: what was said twice, or is no name of a group that
// could be told to anybody, is left out, and so is what is too much. Fewer groups are never more rights.
func groupsOf(said []string) []string {
	list := slices.DeleteFunc(slices.Clone(said), func(g string) bool {
		return g == "" || len(g) > groupMost || !utf8.ValidString(g) || strings.ContainsFunc(g, unicode.IsControl)
	})
	slices.Sort(list)
	list = slices.Compact(list)
	return list[:min(len(list), groupsMost)]
}

// grantsOf are the grants of the groups that are kept.
func grantsOf(said []fleet.Grant) []fleet.Grant { return said[:min(len(said), fleet.MaxGrants)] }

// narrow tells whether what one token may do is no more than what a limit allows.
func narrow(t fleet.Token, l *fleet.Limit) bool {
	if l == nil {
		return true
	}
	role, scope := cmp.Or(t.Role, fleet.RoleAdmin), cmp.Or(t.Scope, fleet.Everywhere)
	return rank(role) <= rank(l.Role) && (l.Scope == fleet.Everywhere || scope == l.Scope)
}

// rank orders roles by what they may do.
func rank(r fleet.Role) int {
	return slices.Index([]fleet.Role{fleet.RoleNone, fleet.RoleViewer, fleet.RoleOperator, fleet.RoleAdmin}, r)
}

// limit is what a token of the caller's may do at most, in one form.
func limit(role fleet.Role, scope fleet.Scope) (fleet.Role, fleet.Scope, error) {
	var err error
	if role != "" {
		if role, err = fleet.ParseRole(string(role)); err == nil && role == fleet.RoleNone {
			err = fleet.Problem("role", "error.token_role", "", "a token of no role is good for nothing")
		}
	}
	if scope = fleet.Scope(strings.TrimSpace(string(scope))); scope != "" {
		var wrong error
		scope, wrong = fleet.ParseScope(string(scope))
		err = errors.Join(err, wrong)
	}
	return role, scope, err
}
