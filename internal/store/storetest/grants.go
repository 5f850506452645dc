package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// granting makes the grants what they are given as.
func granting(list ...fleet.Grant) fleet.UserChange {
	return fleet.UserChange{Grants: func([]fleet.Grant) ([]fleet.Grant, error) { return list, nil }}
}

// grantsAndGroups: other grants end sessions as another role does, and not tokens; other groups end nothing, and are
// kept without an entry.
func grantsAndGroups(t *testing.T, one, two *store.Store) {
	ctx, at := t.Context(), start.Add(time.Minute)
	ada := person("ada", fleet.RoleNone)
	ada.Kind, ada.Issuer, ada.Subject, ada.Password = fleet.PersonOIDC, "https://idp.test", "1", ""
	ada.Grants = []fleet.Grant{{Scope: "prod-*", Role: fleet.RoleViewer, Also: []fleet.Permission{fleet.PermNodeCordon}, From: fleet.PersonOIDC}}
	ada.Groups = []string{"sre", "with \" quote\x00 and 中文"}
	need(t, one.AddUser(ctx, ada, event))
	kept := func(what string, want fleet.Account) {
		t.Helper()
		got, err := two.Account(ctx, "ada")
		need(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	kept("as made", ada)
	for what, read := range map[string]func() (fleet.User, error){
		"by id": func() (fleet.User, error) { return two.User(ctx, ada.ID) },
		"by identity": func() (fleet.User, error) {
			a, err := two.AccountOf(ctx, fleet.Identity{Kind: fleet.PersonOIDC, Issuer: "https://idp.test", Subject: "1"})
			return a.User, err
		},
	} {
		got, err := read()
		need(t, err)
		if diff := cmp.Diff(ada.User, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	need(t, one.AddSession(ctx, session("ada", "s"), nil, event))
	need(t, one.AddToken(ctx, "t", token("t"), ada.ID, "", 9, event))
	ada.LastSignIn = start
	head, _, err := one.EntriesHead(ctx)
	need(t, err)

	for what, ch := range map[string]fleet.UserChange{
		"the same grants": granting(ada.Grants...),
		"the same groups": {Groups: new(ada.Groups)},
	} {
		if u, changed, err := one.ChangeUser(ctx, "ada", ch, at, change); changed || err != nil || !cmp.Equal(u, ada.User) {
			t.Errorf("%s: %+v, %v, %v", what, u, changed, err)
		}
	}
	ada.Groups = []string{"sre", "night"}
	u, changed, err := one.ChangeUser(ctx, "ada", fleet.UserChange{Groups: new(ada.Groups)}, at, change)
	if changed || err != nil || !cmp.Equal(u, ada.User) {
		t.Errorf("groups: %+v, %v, %v", u, changed, err)
	}
	kept("other groups", ada)
	if now, _, err := two.EntriesHead(ctx); now != head || err != nil {
		t.Errorf("%d entries, want %d (%v)", now, head, err)
	}
	c, err := two.Session(ctx, "s", at)
	need(t, err)
	if diff := cmp.Diff(ada.User, c.User); diff != "" {
		t.Errorf("the session's person (-want +got):\n%s", diff)
	}

	refused := errors.New("no such grant")
	_, _, err = one.ChangeUser(ctx, "ada", fleet.UserChange{Role: new(fleet.RoleAdmin), Grants: func(now []fleet.Grant) ([]fleet.Grant, error) {
		if !cmp.Equal(now, ada.Grants) {
			t.Errorf("asked with %+v", now)
		}
		now[0].Role = fleet.RoleAdmin // theirs to change
		return nil, refused
	}}, at, change)
	is(t, "a change that refuses itself", err, refused)
	kept("refused", ada)

	before := ada.User
	ada.Grants, ada.Groups, ada.Epoch = []fleet.Grant{{Scope: "label:env=prod", Role: fleet.RoleOperator}}, nil, 2
	ch := granting(ada.Grants...)
	ch.Groups = &[]string{}
	var seen [2]fleet.User
	u, changed, err = one.ChangeUser(ctx, "ada", ch, at, func(b, a fleet.User) fleet.Entry {
		seen = [2]fleet.User{b, a}
		return event
	})
	if !changed || err != nil || !cmp.Equal(u, ada.User) || !cmp.Equal(seen, [2]fleet.User{before, ada.User}) {
		t.Errorf("grants: %+v, %v, %v; the record saw %+v", u, changed, err, seen)
	}
	kept("other grants", ada)
	_, err = two.Session(ctx, "s", at)
	is(t, "session", err, fleet.ErrUnauthenticated)
	if why, err := two.WhyEnded(ctx, "s"); why != "role" || err != nil {
		t.Errorf("ended for %q, %v", why, err)
	}
	c, err = two.Token(ctx, "t", at)
	need(t, err)
	if diff := cmp.Diff(ada.User, c.User); diff != "" {
		t.Errorf("the token's person (-want +got):\n%s", diff)
	}
	ada.Grants, ada.Epoch = nil, 3
	_, _, err = two.ChangeUser(ctx, "ada", granting(), at, change)
	need(t, err)
	kept("none", ada)
}

// grantsRace: what several give at once is all there.
func grantsRace(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleNone), event))
	const each = 8
	var wg sync.WaitGroup
	for i, s := range []*store.Store{one, two} {
		wg.Go(func() {
			for n := range each {
				_, _, err := s.ChangeUser(ctx, "ada", fleet.UserChange{Grants: func(now []fleet.Grant) ([]fleet.Grant, error) {
					return append(now, fleet.Grant{Scope: fleet.Scope(fmt.Sprintf("c-%d-%d", i, n)), Role: fleet.RoleViewer}), nil
				}}, start, change)
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	u, err := one.User(ctx, "id-ada")
	need(t, err)
	scopes := map[fleet.Scope]bool{}
	for _, g := range u.Grants {
		scopes[g.Scope] = true
	}
	if len(u.Grants) != 2*each || len(scopes) != 2*each || u.Epoch != 1+2*each {
		t.Errorf("%d grants of %d scopes, epoch %d", len(u.Grants), len(scopes), u.Epoch)
	}
}

// tokenLimits: what a token may do at most is kept with it, and is not its person's role.
func tokenLimits(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	ada := person("ada", fleet.RoleAdmin)
	need(t, one.AddUser(ctx, ada, event))
	want := []fleet.Token{}
	for id, limit := range map[string]fleet.Token{
		"a": {}, "b": {Role: fleet.RoleViewer}, "c": {Scope: "prod-*"}, "d": {Role: fleet.RoleOperator, Scope: "label:a=b,c=d"},
	} {
		tok := token(id)
		tok.Name, tok.Role, tok.Scope = id, limit.Role, limit.Scope
		need(t, one.AddToken(ctx, "hash-"+id, tok, ada.ID, "", 9, event))
		want = append(want, tok)
		c, err := two.Token(ctx, "hash-"+id, start)
		need(t, err)
		if c.Role != limit.Role || c.Scope != limit.Scope || c.User.Role != fleet.RoleAdmin {
			t.Errorf("%s: %+v", id, c)
		}
	}
	got, err := two.Tokens(ctx, ada.ID, start)
	need(t, err)
	byID := func(list []fleet.Token) map[string]fleet.Token {
		m := map[string]fleet.Token{}
		for _, tok := range list {
			m[tok.ID] = tok
		}
		return m
	}
	if diff := cmp.Diff(byID(want), byID(got)); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
	tok := token("e")
	tok.Role = fleet.RoleNone
	if err := one.AddToken(ctx, "hash-e", tok, ada.ID, "", 9, event); err == nil {
		t.Error("a token of no role was kept")
	}
}
