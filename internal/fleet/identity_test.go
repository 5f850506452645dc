package fleet

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func labelsOf(cluster string) map[string]string {
	if cluster == "prod" {
		return map[string]string{"env": "prod"}
	}
	return nil
}

func TestCaller_In(t *testing.T) {
	t.Parallel()
	access := NewAccess([]Grant{{Scope: "label:env=prod", Role: RoleOperator}, {Scope: "stage", Role: RoleViewer}}, labelsOf)
	for _, tt := range []struct {
		name    string
		caller  Caller
		cluster string
		prefix  string
		want    Persona
	}{
		{"a role everywhere", Caller{Name: "ada", Role: RoleAdmin}, "prod", "knm:", Persona{"knm:ada", []string{"knm:role:admin"}}},
		{"a role in this one", Caller{Name: "ada", Role: RoleNone, Access: access}, "prod", "knm:", Persona{"knm:ada", []string{"knm:role:operator"}}},
		{"none in that one", Caller{Name: "ada", Role: RoleNone, Access: access}, "other", "knm:", Persona{User: "knm:ada"}},
		{"two roles", Caller{Name: "ada", Role: RoleViewer, Access: access}, "prod", "", Persona{"ada", []string{"role:viewer", "role:operator"}}},
		{"groups", Caller{Name: "é@x", Role: RoleViewer, Groups: []string{"sre", "cn=a,dc=b"}}, "prod", "p/", Persona{"p/é@x", []string{"p/role:viewer", "p/group:sre", "p/group:cn=a,dc=b"}}},
		{
			"a token cuts a role down",
			Caller{Name: "ada", Role: RoleAdmin, Limit: &Limit{Role: RoleOperator, Scope: "prod"}},
			"prod", "",
			Persona{"ada", []string{"role:operator"}},
		},
		{"and to some clusters", Caller{Name: "ada", Role: RoleAdmin, Limit: &Limit{Role: RoleOperator, Scope: "prod"}}, "stage", "", Persona{User: "ada"}},
		{"a token gives nothing", Caller{Name: "ada", Role: RoleViewer, Limit: &Limit{Role: RoleAdmin, Scope: Everywhere}}, "prod", "", Persona{"ada", []string{"role:viewer"}}},
	} {
		got, err := tt.caller.In(tt.cluster, Terms{Impersonate: true, Prefix: tt.prefix})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

// What a cluster would take for one of its own names, or for another name than we meant, never leaves.
func TestCaller_InRefuses(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "system:admin", "system:masters", "SYSTEM:masters", " system:masters", "a\r\nImpersonate-Group: system:masters", "a\nb", "a\x00",
		"a\u0085b", "a\xff", "ada ", "\u00a0ada", strings.Repeat("a", 257),
	} {
		for _, prefix := range []string{"", "knm:"} {
			var bad *NameError
			if id, err := (Caller{Name: name, Role: RoleAdmin}).In("prod", Terms{Prefix: prefix}); !errors.As(err, &bad) || !errors.Is(err, ErrForbidden) {
				t.Errorf("the name %q behind %q: %+v, %v", name, prefix, id, err)
			}
			if id, err := (Caller{Name: "ada", Groups: []string{"sre", name}}).In("prod", Terms{Prefix: prefix}); !errors.As(err, &bad) {
				t.Errorf("the group %q behind %q: %+v, %v", name, prefix, id, err)
			}
		}
	}
	if _, err := (Caller{Name: "masters"}).In("prod", Terms{Prefix: "system:"}); err == nil {
		t.Error("a prefix makes a name of the cluster's own")
	}
	if _, err := (Caller{Name: "ada", Groups: make([]string, 257)}).In("prod", Terms{}); err == nil {
		t.Error("any number of groups")
	}
}

func TestRights_Missing(t *testing.T) {
	t.Parallel()
	all := func(terms Terms, but string) *Rights {
		r := &Rights{Asked: terms.Asks("ns")}
		for i := range r.Asked {
			r.Asked[i].Allowed = r.Asked[i].String() != but
		}
		return r
	}
	drain := Operation{Action: ActionDrain}
	deletes := Operation{Action: ActionDrain, Drain: &DrainOptions{DisableEviction: true}}
	cordon := Operation{Action: ActionCordon}
	for _, tt := range []struct {
		but  string
		as   bool
		want []bool // of cordon, drain, drain past budgets
	}{
		{"", false, []bool{false, false, false}},
		{"patch nodes", false, []bool{true, true, true}},
		{"create pods/eviction", false, []bool{false, true, false}},
		{"delete pods", false, []bool{false, false, true}},
		{"watch pods", true, []bool{false, true, true}},
		{"get nodes", false, []bool{false, false, false}},
		{"impersonate groups p:role:operator", true, []bool{true, true, true}},
		{"impersonate users", true, []bool{false, false, false}}, // it may be for some people
	} {
		r := all(Terms{Impersonate: tt.as, Prefix: "p:"}, tt.but)
		for i, op := range []Operation{cordon, drain, deletes} {
			if got := len(r.Missing(op)) > 0; got != tt.want[i] {
				t.Errorf("without %q, impersonating %t: missing for operation %d: %v", tt.but, tt.as, i, r.Missing(op))
			}
		}
	}
	var none *Rights
	if none.Missing(cordon) != nil || !none.Same(nil) || none.Same(all(Terms{}, "")) || !all(Terms{}, "").Same(all(Terms{}, "")) {
		t.Error("rights that nobody was asked about")
	}
}
