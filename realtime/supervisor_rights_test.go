package realtime

import (
	"errors"
	"fmt"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

var (
	cordoning = fleet.Operation{Action: fleet.ActionCordon}
	draining  = fleet.Operation{Action: fleet.ActionDrain}
)

// refuses is what a cluster would not permit an operation for.
func (m *Manager) refuses(cluster string, op fleet.Operation) string {
	return fmt.Sprint(m.Refuses(cluster, op))
}

// TestSupervisor_RightsFollow takes rights of our credential away and gives them back while its watch is open: what the
// cluster would refuse is known after a review, and nothing else of the cluster suffers.
func TestSupervisor_RightsFollow(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	user := kubetest.Name(t, "u")
	k.Grant(t, user, kubetest.Rule("", "nodes", "get", "list", "watch"), kubetest.Rule("", "pods", "list", "watch"))
	rbac, meta := k.Client().RbacV1(), metav1.ObjectMeta{Name: kubetest.Name(t, "changes")}
	change, evict := kubetest.Rule("", "nodes", "patch"), kubetest.Rule("", "pods/eviction", "create")
	give := func(rules ...rbacv1.PolicyRule) {
		t.Helper()
		role, err := rbac.ClusterRoles().Get(t.Context(), meta.Name, metav1.GetOptions{})
		if err == nil {
			role.Rules = rules
			_, err = rbac.ClusterRoles().Update(t.Context(), role, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := rbac.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{change, evict}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	m := running(t, ManagerConfig{Review: 300 * time.Millisecond, Probe: 100 * time.Millisecond, LeaseNamespace: "default"})
	add(t, m, cluster(t, "real", k.User(t, user)))
	waitState(t, m, "real", fleet.ClusterLive)
	since := m.stateOf("real").Since
	eventually(t, "the rights to be known", func() bool {
		return m.stateOf("real").Rights != nil && m.refuses("real", cordoning) == "[]" && m.refuses("real", draining) == "[]"
	})
	give(change)
	eventually(t, "evictions to be refused", func() bool {
		return m.refuses("real", draining) == "[create pods/eviction]" && m.refuses("real", cordoning) == "[]"
	})
	give(evict)
	eventually(t, "changes to be refused", func() bool {
		return m.refuses("real", draining) == "[patch nodes]" && m.refuses("real", cordoning) == "[patch nodes]"
	})
	give(change, evict)
	eventually(t, "everything to be permitted again", func() bool {
		return m.refuses("real", cordoning) == "[]" && m.refuses("real", draining) == "[]"
	})
	if s := m.stateOf("real"); s.State != fleet.ClusterLive || !s.Since.Equal(since) {
		t.Errorf("the watch did not go on: %+v", s)
	}
}

// TestManager_RefusesByWhatIsFresh: what a cluster said long ago, or before it was lost, refuses nothing.
func TestManager_RefusesByWhatIsFresh(t *testing.T) {
	t.Parallel()
	m := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}, Review: time.Minute})
	add(t, m, kube.Cluster{Name: "x", Fault: errNoServer})
	set := func(state fleet.ClusterState, ago time.Duration) {
		m.runs["x"].asked.Store(time.Now().Add(-ago).UnixNano())
		m.board("x").setStatus(func(c *fleet.Cluster) {
			c.State, c.Rights = state, &fleet.Rights{Asked: fleet.Terms{}.Asks("ns")}
		})
	}
	for _, tt := range []struct {
		state fleet.ClusterState
		ago   time.Duration
		want  string
	}{
		{fleet.ClusterLive, time.Second, "[patch nodes]"},
		{fleet.ClusterLive, time.Hour, "[]"},
		{fleet.ClusterStale, time.Second, "[]"},
	} {
		set(tt.state, tt.ago)
		if got := m.refuses("x", cordoning); got != tt.want {
			t.Errorf("%s, asked %s ago: %s, want %s", tt.state, tt.ago, got, tt.want)
		}
	}
	if got := m.refuses("y", cordoning); got != "[]" {
		t.Errorf("an unknown cluster refuses %s", got)
	}
}

func TestManager_ClientsOfPeople(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	m := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}, Terms: func(cluster string) fleet.Terms {
		return fleet.Terms{Impersonate: cluster == "people", Prefix: "knm:", Labels: map[string]string{"of": cluster}}
	}})
	for _, name := range []string{"people", "shared"} {
		add(t, m, cluster(t, name, k.REST()))
	}
	ada := fleet.Caller{Name: "ada", Role: fleet.RoleOperator}
	got, err := m.Clients("shared", ada)
	if err != nil || got.As != "" || got.Acts != got.Own {
		t.Errorf("shared: %+v, %v", got, err)
	}
	got, err = m.Clients("people", ada)
	if err != nil || got.As != "knm:ada" || got.Acts == got.Own {
		t.Errorf("people: %+v, %v", got, err)
	}
	if again, err := m.Clients("people", ada); err != nil || again.Acts != got.Acts {
		t.Errorf("the client is not kept: %v", err)
	}
	if _, err := m.Clients("people", fleet.Caller{Name: "system:masters"}); !errors.Is(err, fleet.ErrForbidden) {
		t.Errorf("a name of the cluster's own: %v", err)
	}
	if _, err := m.Clients("unknown", ada); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("an unknown cluster: %v", err)
	}
	if c := m.stateOf("people"); c.Identity != fleet.IdentityImpersonate || c.Labels != "of=people" {
		t.Errorf("shown as %+v", c)
	}
}
