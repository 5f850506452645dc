package fleet

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

var everyPermission = []Permission{
	PermPublic, PermSelf, PermNodesView, PermBatchView, PermNodeCordon, PermNodeDrain, PermNodeEdit, PermUsersAdmin, PermAuditView,
	PermClusterRetry, PermClusterAdmin, PermTemplates, PermNoExecute, PermPastBudget, PermProtected,
}

func labelled(cluster string) map[string]string {
	return map[string]map[string]string{"prod-eu": {"env": "prod", "region": "eu"}, "prod-us": {"env": "prod", "region": "us"}, "lab": {"env": "lab"}}[cluster]
}

func TestScope(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		scope string
		want  string // clusters of the three above, and one that is not labelled; "!" for an error
	}{
		{"*", "lab other prod-eu prod-us"},
		{"prod-eu", "prod-eu"},
		{" prod-eu ", "prod-eu"},
		{"prod-*", "prod-eu prod-us"},
		{"*-eu", "prod-eu"},
		{"p*-*s", "prod-us"},
		{"**", "lab other prod-eu prod-us"},
		{"prod-eu*eu", ""}, // what stands at both ends does not count twice
		{"PROD-EU", ""},
		{"prod", ""},
		{"label:env=prod", "prod-eu prod-us"},
		{"label:region=eu,env=prod", "prod-eu"},
		{"label:env=prod,env=lab", ""},
		{"label:env=*", ""},
		{"label:env=", ""},
		{"label:", "!"},
		{"label:env", "!"},
		{"label:=prod", "!"},
		{"label:env==prod", "!"},
		{"label:env=prod,", "!"},
		{"", "!"},
		{"  ", "!"},
		{"prod eu", "!"},
		{"prod\neu", "!"},
		{strings.Repeat("a", maxScope+1), "!"},
	} {
		s, err := ParseScope(tt.scope)
		if tt.want == "!" {
			var field *FieldError
			if !errors.As(err, &field) || field.Field != "scope" {
				t.Errorf("ParseScope(%q) = %q, %v; want an error of the field scope", tt.scope, s, err)
			}
			continue
		}
		var got []string
		for _, c := range []string{"lab", "other", "prod-eu", "prod-us"} {
			if s.Holds(c, labelled(c)) {
				got = append(got, c)
			}
		}
		if again, err2 := ParseScope(string(s)); err != nil || strings.Join(got, " ") != tt.want || again != s || err2 != nil {
			t.Errorf("%q holds %v, want %q (%v); again %q, %v", tt.scope, got, tt.want, err, again, err2)
		}
	}
	if Scope("").Holds("", nil) || Scope("").Holds("lab", nil) {
		t.Error("the zero scope holds a cluster")
	}
}

func TestCaller_May(t *testing.T) {
	t.Parallel()
	ops := NewAccess([]Grant{
		{Scope: "prod-eu", Role: RoleViewer, Also: []Permission{PermNodeCordon, PermUsersAdmin}}, // users.admin: not from Check
		{Scope: "label:env=lab", Role: RoleAdmin},
	}, labelled)
	for _, tt := range []struct {
		name   string
		caller Caller
		may    map[string][]Permission // cluster, "" for everywhere, "?" for somewhere
	}{
		{"nobody", Caller{}, nil},
		{"none", Caller{Role: RoleNone}, map[string][]Permission{"": {PermSelf}, "lab": {PermSelf}, "prod-eu": {PermSelf}, "prod-us": {PermSelf}, "?": {PermSelf}}},
		{"an unknown role", Caller{Role: "root"}, nil},
		{"grants", Caller{Role: RoleNone, Access: ops}, map[string][]Permission{
			"": {PermSelf}, "prod-us": {PermSelf},
			"prod-eu": {PermSelf, PermNodesView, PermBatchView, PermNodeCordon},
			"lab": {
				PermSelf, PermNodesView, PermBatchView, PermNodeCordon, PermNodeDrain, PermNodeEdit, PermClusterRetry,
				PermClusterAdmin, PermNoExecute, PermPastBudget, PermProtected,
			},
			"?": {
				PermSelf, PermNodesView, PermBatchView, PermNodeCordon, PermNodeDrain, PermNodeEdit, PermClusterRetry,
				PermClusterAdmin, PermNoExecute, PermPastBudget, PermProtected,
			},
		}},
		{"a token of somebody with grants", Caller{Role: RoleNone, Access: ops, Limit: &Limit{Role: RoleOperator, Scope: "lab", Labels: labelled}}, map[string][]Permission{
			"": {PermSelf}, "lab": {PermSelf, PermNodesView, PermBatchView, PermNodeCordon, PermNodeDrain, PermNodeEdit, PermClusterRetry},
			"?": {PermSelf, PermNodesView, PermBatchView, PermNodeCordon, PermNodeDrain, PermNodeEdit, PermClusterRetry},
		}},
		{"an admin's token that only looks", Caller{Role: RoleAdmin, Limit: &Limit{Role: RoleViewer, Scope: Everywhere}}, map[string][]Permission{
			"": {PermSelf, PermNodesView, PermBatchView}, "lab": {PermSelf, PermNodesView, PermBatchView}, "prod-eu": {PermSelf, PermNodesView, PermBatchView},
			"prod-us": {PermSelf, PermNodesView, PermBatchView}, "?": {PermSelf, PermNodesView, PermBatchView},
		}},
		{"a viewer's token that asks for more", Caller{Role: RoleViewer, Limit: &Limit{Role: RoleAdmin, Scope: "label:env=prod", Labels: labelled}}, map[string][]Permission{
			"": {PermSelf}, "prod-eu": {PermSelf, PermNodesView, PermBatchView}, "prod-us": {PermSelf, PermNodesView, PermBatchView}, "?": {PermSelf, PermNodesView, PermBatchView},
		}},
		{"an admin's token without labels to go by", Caller{Role: RoleAdmin, Limit: &Limit{Role: RoleAdmin, Scope: "label:env=prod"}}, map[string][]Permission{
			"": {PermSelf}, "?": {
				PermSelf, PermNodesView, PermBatchView, PermNodeCordon, PermNodeDrain, PermNodeEdit, PermClusterRetry,
				PermClusterAdmin, PermNoExecute, PermPastBudget, PermProtected,
			},
		}},
	} {
		for _, cluster := range []string{"", "lab", "prod-eu", "prod-us", "?"} {
			for _, p := range everyPermission {
				want := p == PermPublic || slices.Contains(tt.may[cluster], p)
				got := tt.caller.May(p, cluster)
				if cluster == "?" {
					got = tt.caller.MaySomewhere(p)
				}
				if got != want {
					t.Errorf("%s: %s in %q: %v, want %v", tt.name, p, cluster, got, want)
				}
			}
		}
	}
}

// Who may anything in a cluster sees it, and who sees it all shares one key with everybody who does.
func TestCaller_Sight(t *testing.T) {
	t.Parallel()
	eu := NewAccess([]Grant{{Scope: "prod-eu", Role: RoleOperator}}, labelled)
	us := NewAccess([]Grant{{Scope: "prod-us", Role: RoleOperator}}, labelled)
	for name, tt := range map[string]struct {
		caller Caller
		want   string
		all    bool
	}{
		"nobody":           {Caller{}, "", false},
		"none":             {Caller{Role: RoleNone}, "", false},
		"viewer":           {Caller{Role: RoleViewer, Access: eu}, "lab prod-eu prod-us", true},
		"one cluster":      {Caller{Role: RoleNone, Access: eu}, "prod-eu", false},
		"a limited viewer": {Caller{Role: RoleViewer, Limit: &Limit{Role: RoleViewer, Scope: "lab"}}, "lab", false},
	} {
		s := tt.caller.Sight()
		var got []string
		for _, c := range []string{"lab", "prod-eu", "prod-us"} {
			if s.Sees(c) {
				got = append(got, c)
			}
			if s.Sees(c) != tt.caller.Sees(c) {
				t.Errorf("%s: sight and caller differ about %s", name, c)
			}
		}
		if strings.Join(got, " ") != tt.want || s.All() != tt.all || s.Sees("") != tt.all {
			t.Errorf("%s sees %v (all: %v), want %q", name, got, s.All(), tt.want)
		}
	}
	keys := map[string]string{}
	for name, c := range map[string]Caller{
		"eu": {Role: RoleNone, Access: eu}, "us": {Role: RoleNone, Access: us}, "all": {Role: RoleAdmin}, "nobody": {Role: RoleNone},
		"eu, by token": {Role: RoleNone, Access: eu, Limit: &Limit{Role: RoleViewer, Scope: Everywhere}},
		"lab by token": {Role: RoleAdmin, Limit: &Limit{Role: RoleViewer, Scope: "lab"}},
	} {
		if other, taken := keys[c.Sight().Key()]; taken {
			t.Errorf("%s and %s share a key", name, other)
		}
		keys[c.Sight().Key()] = name
	}
	if (Caller{Role: RoleViewer}).Sight().Key() != (Caller{Role: RoleAdmin, Access: eu}).Sight().Key() {
		t.Error("two who see everything do not share a key")
	}
	if (Sight{}).Sees("lab") || (Sight{}).All() {
		t.Error("the zero sight sees something")
	}
}

func TestGrant_Check(t *testing.T) {
	t.Parallel()
	good, err := Grant{Scope: " label:b=2,a=1 ", Role: RoleViewer, Also: []Permission{PermNodeEdit, PermNodeCordon, PermNodeEdit}}.Check()
	if err != nil || good.Scope != "label:a=1,b=2" || !slices.Equal(good.Also, []Permission{PermNodeCordon, PermNodeEdit}) {
		t.Errorf("%+v, %v", good, err)
	}
	for field, g := range map[string]Grant{
		"scope": {Role: RoleViewer},
		"role":  {Scope: "*", Role: RoleNone},
		"also":  {Scope: "*", Role: RoleViewer, Also: []Permission{PermUsersAdmin}},
	} {
		var wrong *FieldError
		if _, err := g.Check(); !errors.As(err, &wrong) || wrong.Field != field {
			t.Errorf("%+v: %v, want an error of the field %s", g, err, field)
		}
	}
}

// FuzzScope: whatever is typed, what is kept means the same when it is read again.
func FuzzScope(f *testing.F) {
	for _, s := range []string{"*", "prod-*", "label:a=1,b=2", "label:a=1,a=2", "**x**", "label:*=*"} {
		f.Add(s, "prod-eu")
	}
	f.Fuzz(func(t *testing.T, text, cluster string) {
		s, err := ParseScope(text)
		if err != nil {
			return
		}
		again, err := ParseScope(string(s))
		if err != nil || again != s {
			t.Fatalf("%q became %q, which becomes %q, %v", text, s, again, err)
		}
		if !strings.HasPrefix(string(s), scopeLabels) && !strings.Contains(string(s), "*") && s.Holds(cluster, nil) != (string(s) == cluster) {
			t.Fatalf("%q and %q", s, cluster)
		}
	})
}
