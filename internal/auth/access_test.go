package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// fields are those that the FieldErrors of an error name.
func fields(err error) []string {
	var out []string
	var walk func(error)
	walk = func(err error) {
		if e, ok := err.(*fleet.FieldError); ok { //nolint:errorlint // the walk is what errors.As does, for all of them
			out = append(out, e.Field)
			return
		}
		switch x := err.(type) { //nolint:errorlint // see above
		case interface{ Unwrap() []error }:
			for _, e := range x.Unwrap() {
				walk(e)
			}
		case interface{ Unwrap() error }:
			walk(x.Unwrap())
		}
	}
	walk(err)
	return out
}

func (h *house) user(t *testing.T, name string) fleet.User {
	t.Helper()
	a, err := h.store.Account(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return a.User
}

func TestGrants_Checked(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.add(t, "vic", fleet.RoleNone)
	_, vic := h.in(t, "vic")
	good := []fleet.Grant{{Scope: "a", Role: fleet.RoleViewer}}
	if err := h.SetGrants(t.Context(), host, "vic", good); err != nil {
		t.Fatal(err)
	}
	many := make([]fleet.Grant, fleet.MaxGrants+1)
	for i := range many {
		many[i] = fleet.Grant{Scope: fleet.Scope(fmt.Sprintf("c%d", i)), Role: fleet.RoleViewer}
	}
	for _, tt := range []struct {
		list []fleet.Grant
		want []string
	}{
		{[]fleet.Grant{{Scope: "", Role: fleet.RoleViewer}}, []string{"grants[0].scope"}},
		{[]fleet.Grant{{Scope: "a b", Role: fleet.RoleViewer}, {Scope: "b", Role: "king"}}, []string{"grants[0].scope", "grants[1].role"}},
		{[]fleet.Grant{{Scope: "a", Role: fleet.RoleNone}}, []string{"grants[0].role"}},
		{[]fleet.Grant{{Scope: "a", Role: fleet.RoleViewer, Also: []fleet.Permission{fleet.PermUsersAdmin}}}, []string{"grants[0].also"}},
		{[]fleet.Grant{{Scope: "label:a", Role: fleet.RoleViewer}}, []string{"grants[0].scope"}},
		{[]fleet.Grant{{Scope: "a", Role: fleet.RoleViewer}, {Scope: " a", Role: fleet.RoleAdmin}}, []string{"grants[1].scope"}},
		{[]fleet.Grant{{Scope: "label:b=1,a=2", Role: fleet.RoleViewer}, {Scope: "label:a=2,b=1", Role: fleet.RoleAdmin}}, []string{"grants[1].scope"}},
		{many, []string{"grants"}},
	} {
		err := h.SetGrants(t.Context(), host, "vic", tt.list)
		wants(t, fmt.Sprint(tt.list), err, fleet.ErrInvalid)
		if got := fields(err); !slices.Equal(got, tt.want) {
			t.Errorf("%v: the fields %q are named, want %q", tt.list, got, tt.want)
		}
	}
	if got := fields(h.AddGrant(t.Context(), host, "vic", fleet.Grant{Scope: "a"})); !slices.Equal(got, []string{"role"}) {
		t.Errorf("added: the fields %q are named", got)
	}
	if got := fields(h.DropGrant(t.Context(), host, "vic", "b")); !slices.Equal(got, []string{"scope"}) {
		t.Errorf("dropped: the fields %q are named", got)
	}
	for what, err := range map[string]error{
		"set": h.SetGrants(t.Context(), host, "nobody", good), "add": h.AddGrant(t.Context(), host, "nobody", good[0]),
		"drop": h.DropGrant(t.Context(), host, "nobody", "a"),
	} {
		wants(t, what+" of nobody", err, fleet.ErrNotFound)
	}
	if diff := cmp.Diff(good, h.user(t, "vic").Grants); diff != "" {
		t.Errorf("what was refused changed something (-want +got):\n%s", diff)
	}

	// Nobody but who administers people, and on record: not who may do everything in every cluster, nor who would give
	// to themselves.
	h.add(t, "oz", fleet.RoleOperator)
	if err := h.AddGrant(t.Context(), host, "oz", fleet.Grant{Scope: fleet.Everywhere, Role: fleet.RoleAdmin}); err != nil {
		t.Fatal(err)
	}
	_, oz := h.in(t, "oz")
	for _, by := range []fleet.Caller{vic, oz, {}} {
		for what, err := range map[string]error{
			"set": h.SetGrants(t.Context(), by, by.Name, good), "add": h.AddGrant(t.Context(), by, by.Name, good[0]),
			"drop": h.DropGrant(t.Context(), by, "oz", fleet.Everywhere),
		} {
			wants(t, what+" by "+by.Name, err, fleet.ErrForbidden)
		}
		got, err := h.log.Entries(t.Context(), fleet.AuditFilter{Action: "user.grants", User: by.Name, Limit: 10})
		if err != nil || len(got) < 3 || got[0].Outcome != "denied" {
			t.Errorf("%q: on record %+v, %v", by.Name, got, err)
		}
	}
	// The bound is of what one person has, however it came to be.
	if err := h.SetGrants(t.Context(), host, "vic", many[1:]); err != nil {
		t.Fatal(err)
	}
	wants(t, "one more", h.AddGrant(t.Context(), host, "vic", many[0]), fleet.ErrInvalid)
	if err := h.AddGrant(t.Context(), host, "vic", fleet.Grant{Scope: "c1", Role: fleet.RoleAdmin}); err != nil {
		t.Errorf("another one for the same scope: %v", err)
	}
}

// TestGrants_ReachEveryCaller: sessions, tokens and batches may do what was given, and no more once it is taken.
func TestGrants_ReachEveryCaller(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.add(t, "vic", fleet.RoleNone)
	token, vic := h.in(t, "vic")
	bearer, _, err := h.AddToken(t.Context(), vic, fleet.Token{Name: "ci", ExpiresAt: after(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	all := func(session string) map[string]fleet.Caller {
		t.Helper()
		a, errA := h.BySession(t.Context(), session)
		b, errB := h.PeekSession(t.Context(), session)
		c, errC := h.ByToken(t.Context(), bearer)
		d, errD := h.Caller(t.Context(), vic.UserID)
		if err := errors.Join(errA, errB, errC, errD); err != nil {
			t.Fatal(err)
		}
		if a.Via != "session" || c.Via != "token" || d.Via != "batch" || a.Session == "" || c.Session == "" {
			t.Errorf("%+v, %+v, %+v", a, c, d)
		}
		return map[string]fleet.Caller{"session": a, "peek": b, "token": c, "batch": d}
	}
	for what, c := range all(token) {
		if c.MaySomewhere(fleet.PermNodesView) || !c.May(fleet.PermSelf, "") {
			t.Errorf("%s may something: %+v", what, c)
		}
	}
	h.announced()
	for _, g := range []fleet.Grant{
		{Scope: "prod-*", Role: fleet.RoleViewer},
		{Scope: "label:env=test", Role: fleet.RoleOperator, Also: []fleet.Permission{fleet.PermPastBudget}},
		{Scope: "prod-*", Role: fleet.RoleOperator, From: fleet.PersonLDAP}, // whatever is said of it: it was given here
	} {
		if err := h.AddGrant(t.Context(), host, " VIC", g); err != nil {
			t.Fatal(err)
		}
	}
	if ends := h.announced(); len(ends) != 3 || ends[0] != (End{UserID: vic.UserID, Reason: ReasonRole}) {
		t.Errorf("announced %+v", ends)
	}
	alive(t, h, token, false)
	token, _ = h.in(t, "vic")
	for what, c := range all(token) {
		for cluster, want := range map[string][3]bool{ // view, drain, past budgets
			"prod-1": {true, true, false}, "test-1": {true, true, true}, "dev-1": {}, "": {},
		} {
			for i, p := range []fleet.Permission{fleet.PermNodesView, fleet.PermNodeDrain, fleet.PermPastBudget} {
				if c.May(p, cluster) != want[i] {
					t.Errorf("%s: %s in %q: %v", what, p, cluster, !want[i])
				}
			}
		}
		if c.MaySomewhere(fleet.PermUsersAdmin) || c.MaySomewhere(fleet.PermClusterAdmin) {
			t.Errorf("%s may administer", what)
		}
	}
	if err := h.DropGrant(t.Context(), host, "vic", "label:env=test"); err != nil {
		t.Fatal(err)
	}
	alive(t, h, token, false)
	token, _ = h.in(t, "vic")
	for what, c := range all(token) {
		if c.Sees("test-1") || !c.May(fleet.PermNodeDrain, "prod-9") {
			t.Errorf("%s: %+v", what, c)
		}
	}
	got, err := h.log.Entries(t.Context(), fleet.AuditFilter{Action: "user.grants", Limit: 10})
	var said []string
	for _, e := range got {
		said = append(said, e.Detail)
	}
	if diff := cmp.Diff([]string{
		"vic: operator in prod-*; operator+node.drain_past_budget in label:env=test → operator in prod-*",
		"vic: viewer in prod-*; operator+node.drain_past_budget in label:env=test → operator in prod-*; operator+node.drain_past_budget in label:env=test",
		"vic: viewer in prod-* → viewer in prod-*; operator+node.drain_past_budget in label:env=test",
		"vic: none → viewer in prod-*",
	}, said); diff != "" || err != nil {
		t.Errorf("on record (-want +got):\n%s%v", diff, err)
	}
	if err := h.SetDisabled(t.Context(), host, "vic", true); err != nil {
		t.Fatal(err)
	}
	_, err = h.Caller(t.Context(), vic.UserID)
	wants(t, "a batch of somebody disabled", err, fleet.ErrForbidden)
	_, err = h.Caller(t.Context(), "nobody")
	wants(t, "a batch of nobody", err, fleet.ErrNotFound)
}

// TestTokens_Limited: a token may do what it was made for and what its person may, whichever is less; and it neither
// sees nor ends what may do more.
func TestTokens_Limited(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	_, ada := h.in(t, "ada")
	h.add(t, "vic", fleet.RoleViewer)
	_, vic := h.in(t, "vic")
	for _, tt := range []struct {
		role  fleet.Role
		scope fleet.Scope
		field string
	}{
		{"king", "", "role"}, {"none", "", "role"}, {"", "a b", "scope"}, {"", "label:x", "scope"}, {"ADMIN", "", "role"},
	} {
		_, _, err := h.AddToken(t.Context(), ada, fleet.Token{Name: "ci", ExpiresAt: after(time.Hour), Role: tt.role, Scope: tt.scope})
		if got := fields(err); !slices.Equal(got, []string{tt.field}) {
			t.Errorf("%q in %q: %v names %q", tt.role, tt.scope, err, got)
		}
	}
	for i, tt := range []struct {
		by         fleet.Caller
		role       fleet.Role
		scope      fleet.Scope
		may, mayIn string // everywhere, in prod-1: the first letters of view, cordon, users
		sees       int    // of the tokens of ada that there are by then, and of this one
	}{
		{ada, "", "", "vcu", "vcu", 1},
		{ada, fleet.RoleAdmin, fleet.Everywhere, "vcu", "vcu", 2}, // says so, and is no limit
		{ada, fleet.RoleViewer, "", "v", "v", 1},
		{ada, fleet.RoleOperator, "", "vc", "vc", 2},
		{ada, "", " prod-* ", "", "vcu", 1},
		{ada, fleet.RoleViewer, "prod-*", "", "v", 1},
		{ada, fleet.RoleOperator, "prod-*", "", "vc", 2},
		{ada, "", "test", "", "", 1},
		{vic, fleet.RoleAdmin, "", "v", "v", 1},
		{vic, fleet.RoleOperator, "prod-*", "", "v", 1},
	} {
		bearer, made, err := h.AddToken(t.Context(), tt.by, fleet.Token{Name: "ci", ExpiresAt: after(time.Hour), Role: tt.role, Scope: tt.scope})
		if err != nil {
			t.Fatal(err)
		}
		c, err := h.ByToken(t.Context(), bearer)
		if err != nil {
			t.Fatal(err)
		}
		for cluster, want := range map[string]string{"": tt.may, "prod-1": tt.mayIn} {
			var got strings.Builder
			for _, p := range []fleet.Permission{fleet.PermNodesView, fleet.PermNodeCordon, fleet.PermUsersAdmin} {
				if c.May(p, cluster) && (p != fleet.PermUsersAdmin || tt.by.Name == "ada") {
					got.WriteString(map[fleet.Permission]string{fleet.PermNodesView: "v", fleet.PermNodeCordon: "c", fleet.PermUsersAdmin: "u"}[p])
				}
			}
			if got.String() != want {
				t.Errorf("%d: %q in %q may %q in %q, want %q", i, tt.role, tt.scope, got.String(), cluster, want)
			}
		}
		if c.Name != tt.by.Name || !c.May(fleet.PermSelf, "") {
			t.Errorf("%d: %+v", i, c)
		}
		list, err := h.Tokens(t.Context(), c)
		if err != nil || len(list) != tt.sees || !slices.ContainsFunc(list, func(x fleet.Token) bool { return x.ID == made.ID }) {
			t.Errorf("%d: sees %+v, %v", i, list, err)
		}
		_, _, err = h.AddToken(t.Context(), c, fleet.Token{Name: "more", ExpiresAt: after(time.Hour)})
		wants(t, "a token by a token", err, fleet.ErrForbidden)
		if c.Limit == nil {
			continue
		}
		if sessions, err := h.Sessions(t.Context(), c); err != nil || len(sessions) != 0 {
			t.Errorf("%d: sees sessions: %+v, %v", i, sessions, err)
		}
		wants(t, "a session ended by a limited token", h.EndSession(t.Context(), c, tt.by.Session), fleet.ErrForbidden)
		wants(t, "a token ended by a limited token", h.EndToken(t.Context(), c, made.ID), fleet.ErrForbidden)
	}
	if list, err := h.Tokens(t.Context(), ada); err != nil || len(list) != 8 {
		t.Errorf("ada sees %d, %v", len(list), err)
	}
	got, err := h.log.Entries(t.Context(), fleet.AuditFilter{Action: "token.add", User: "vic", Limit: 2})
	if err != nil || !slices.ContainsFunc(got, func(e fleet.Entry) bool { return strings.HasSuffix(e.Detail, ", as operator at most, in prod-*") }) {
		t.Errorf("on record %+v, %v", got, err)
	}
}

// TestVouched_Grants: what follows from groups comes and goes with them at each sign-in, and what was given here stays.
func TestVouched_Grants(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	e := &elsewhere{}
	h.provider = e
	roles := fleet.RoleMap{
		"ops":   {{Role: fleet.RoleOperator, Scope: "prod-*"}},
		"edge":  {{Role: fleet.RoleViewer, Scope: "edge-*"}},
		"staff": {{Role: fleet.RoleViewer}},
	}
	say := func(groups ...string) {
		e.say(roles.Vouch(fleet.Identity{Kind: fleet.PersonOIDC, Issuer: "https://idp.test", Subject: "1"}, "eve", groups), nil)
	}
	come := func(groups ...string) fleet.Caller {
		t.Helper()
		say(groups...)
		token, err := h.come(t)
		if err != nil {
			t.Fatal(err)
		}
		c, err := h.PeekSession(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	say("nothing of ours")
	_, err := h.come(t)
	wants(t, "no group that maps", err, fleet.ErrForbidden)

	c := come("ops", "nothing of ours")
	if c.Role != fleet.RoleNone || !c.May(fleet.PermNodeDrain, "prod-1") || c.Sees("edge-1") || !slices.Equal(c.Groups, []string{"nothing of ours", "ops"}) {
		t.Errorf("%+v", c)
	}
	own := fleet.Grant{Scope: "lab", Role: fleet.RoleAdmin}
	if err := h.AddGrant(t.Context(), host, "eve", own); err != nil {
		t.Fatal(err)
	}
	// What follows from a group is not to be had or taken here.
	wants(t, "taking what follows from a group", h.DropGrant(t.Context(), host, "eve", "prod-*"), fleet.ErrInvalid)
	h.announced()
	c = come("ops", "nothing of ours")
	if ends := h.announced(); len(ends) != 0 || !c.Sees("lab") || !c.Sees("prod-1") {
		t.Errorf("the same groups: %+v, announced %+v", c, ends)
	}
	epoch := h.user(t, "eve").Epoch
	if c = come("ops"); h.user(t, "eve").Epoch != epoch || !slices.Equal(c.Groups, []string{"ops"}) {
		t.Errorf("a group that means nothing here ended something: %+v", h.user(t, "eve"))
	}
	c = come("edge", "staff")
	if c.Role != fleet.RoleViewer || c.May(fleet.PermNodeDrain, "prod-1") || !c.May(fleet.PermNodeDrain, "lab") || len(h.announced()) != 1 {
		t.Errorf("other groups: %+v", c)
	}
	want := []fleet.Grant{own, {Scope: "edge-*", Role: fleet.RoleViewer, From: fleet.PersonOIDC}}
	if diff := cmp.Diff(want, h.user(t, "eve").Grants); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// A list that an admin gives replaces theirs, not the provider's.
	if err := h.SetGrants(t.Context(), host, "eve", nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want[1:], h.user(t, "eve").Grants); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got, err := h.log.Entries(t.Context(), fleet.AuditFilter{User: "eve", Action: "user.role", Limit: 10})
	if err != nil || len(got) != 1 || got[0].Detail != "eve: none → viewer; eve: admin in lab; operator in prod-* by oidc → admin in lab; viewer in edge-* by oidc, by the groups" {
		t.Errorf("on record %+v, %v", got, err)
	}
	// No group at all any more: out, whatever was given here.
	say()
	_, err = h.come(t)
	wants(t, "no group any more", err, fleet.ErrForbidden)
}

// TestGroupsOf: what a provider says without end is not kept without end.
func TestGroupsOf(t *testing.T) {
	t.Parallel()
	said := []string{"b", "a", "b", "", "line\nbreak", "\xff", strings.Repeat("x", groupMost), strings.Repeat("y", groupMost+1)}
	if diff := cmp.Diff([]string{"a", "b", strings.Repeat("x", groupMost)}, groupsOf(said)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for i := range 3 * groupsMost {
		said = append(said, fmt.Sprintf("g%05d", i))
	}
	if n := len(groupsOf(said)); n != groupsMost {
		t.Errorf("%d are kept", n)
	}
}

func TestSignInByHeader(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	by := func(name string, groups ...string) (fleet.Caller, error) {
		token, _, err := h.SignInByHeader(t.Context(), name, groups, from, "test")
		if err != nil {
			return fleet.Caller{}, err
		}
		return h.PeekSession(t.Context(), token)
	}
	_, err := by("eve", "sre")
	wants(t, "nobody is signed in by a header", err, fleet.ErrNotFound)
	h.header = &HeaderSignIn{Name: "X-Remote-User", Roles: fleet.RoleMap{
		"sre": {{Role: fleet.RoleOperator}}, "ops": {{Role: fleet.RoleOperator, Scope: "prod-*"}},
	}}
	for _, tt := range []struct {
		what, name string
		groups     []string
	}{
		{"no group that maps", "eve", []string{"staff"}},
		{"no group", "eve", nil},
		{"the name of a local admin", "ADA", []string{"sre"}},
		{"no name", "", []string{"sre"}},
		{"no name that can be", "eve smith", []string{"sre"}},
		{"too long", strings.Repeat("x", 65), []string{"sre"}},
	} {
		_, err := by(tt.name, tt.groups...)
		wants(t, tt.what, err, fleet.ErrForbidden)
		got, err := h.log.Entries(t.Context(), fleet.AuditFilter{Action: "signin", Limit: 1})
		if err != nil || got[0].Outcome != "failed" || !strings.HasPrefix(got[0].Detail, "header: ") {
			t.Errorf("%s: on record %+v, %v", tt.what, got, err)
		}
	}
	first, err := by("Eve", "ops")
	if err != nil || first.Name != "eve" || first.Role != fleet.RoleNone || !first.May(fleet.PermNodeDrain, "prod-1") || !slices.Equal(first.Groups, []string{"ops"}) {
		t.Fatalf("%+v, %v", first, err)
	}
	again, err := by("EVE", "sre")
	if err != nil || again.UserID != first.UserID || again.Role != fleet.RoleOperator || len(h.user(t, "eve").Grants) != 0 {
		t.Errorf("%+v, %v", again, err)
	}
	u := h.user(t, "eve")
	if u.Kind != fleet.PersonOIDC || u.Issuer != "trusted-header:X-Remote-User" {
		t.Errorf("%+v", u)
	}
	// Who vouches is part of who somebody is: the same name of a provider is somebody else, and cannot be had.
	h.provider = &elsewhere{vouched: vouchedFor(fleet.PersonOIDC, "eve", "eve", fleet.RoleAdmin)}
	_, err = h.come(t)
	wants(t, "the same name of a provider", err, fleet.ErrForbidden)
	if err := h.SetDisabled(t.Context(), host, "eve", true); err != nil {
		t.Fatal(err)
	}
	_, err = by("eve", "sre")
	wants(t, "disabled", err, fleet.ErrForbidden)
}
