package fleet

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRoleMap_Vouch: what groups come to is the most of each place, in an order that the order of the groups does not move.
func TestRoleMap_Vouch(t *testing.T) {
	t.Parallel()
	m := RoleMap{
		"staff": {{Role: RoleViewer}},
		"root":  {{Role: RoleAdmin}},
		"ops":   {{Role: RoleOperator, Scope: "prod-*"}, {Role: RoleViewer, Scope: "edge"}},
		"edge":  {{Role: RoleOperator, Scope: "edge"}, {Role: RoleViewer}},
	}
	for _, tt := range []struct {
		groups []string
		role   Role
		grants []Grant
	}{
		{nil, "", nil},
		{[]string{"Staff", "", "ops "}, "", nil},
		{[]string{"staff"}, RoleViewer, nil},
		{[]string{"root", "staff"}, RoleAdmin, nil},
		{[]string{"ops"}, "", []Grant{{Scope: "edge", Role: RoleViewer}, {Scope: "prod-*", Role: RoleOperator}}},
		{[]string{"edge", "ops"}, RoleViewer, []Grant{{Scope: "edge", Role: RoleOperator}, {Scope: "prod-*", Role: RoleOperator}}},
		{[]string{"ops", "edge"}, RoleViewer, []Grant{{Scope: "edge", Role: RoleOperator}, {Scope: "prod-*", Role: RoleOperator}}},
	} {
		id := Identity{Kind: PersonLDAP, Issuer: "i", Subject: "s"}
		for i := range tt.grants {
			tt.grants[i].From = PersonLDAP
		}
		want := Vouched{Identity: id, Name: "ada", Role: tt.role, Grants: tt.grants, Groups: tt.groups}
		if diff := cmp.Diff(want, m.Vouch(id, "ada", tt.groups)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.groups, diff)
		}
	}
}
