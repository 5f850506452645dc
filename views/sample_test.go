package views

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/a-h/templ"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var noon = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

// say makes the texts of a sample: benign ones, or hostile ones in every place where a cluster or a person can put text.
type say func(benign string) string

func plainly(s string) string { return s }

func sampleNode(say say) *fleet.Node {
	added := noon.Add(-time.Hour)
	raw := map[string]string{"cpu": say("8"), "memory": say("32Gi"), "pods": say("110"), say("nvidia.com/gpu"): say("4")}
	return &fleet.Node{
		Ref: fleet.NodeRef{Cluster: say("prod-eu"), Name: say("gpu-7")}, UID: say("8f1c"), Created: noon.Add(-50 * time.Hour),
		Status: fleet.StatusNotReady, StatusSince: noon.Add(-time.Minute), Pressure: []string{say("DiskPressure")},
		Cordon: &fleet.Cordon{By: say("ada"), Reason: say("disk swap"), Since: noon, Batch: say("01JB"), With: say("kubectl")},
		Roles:  []string{say("worker"), say("gpu")},
		Labels: map[string]string{
			"topology.kubernetes.io/zone": say("eu-1a"), "node.kubernetes.io/instance-type": say("g6.12xlarge"), say("pool"): say("gpu"),
		},
		Taints: []fleet.Taint{
			{Key: "node.kubernetes.io/unschedulable", Effect: fleet.NoSchedule},
			{Key: say("nvidia.com/gpu"), Value: say("true"), Effect: fleet.TaintEffect(say("NoSchedule")), TimeAdded: &added},
			{Key: say("a"), Effect: fleet.NoExecute},
			{Key: say("b"), Effect: fleet.NoExecute},
		},
		Conditions: []fleet.Condition{
			{Type: say("Ready"), Status: say("False"), Reason: say("KubeletNotReady"), Message: say("runtime is down"), LastHeartbeat: noon, LastTransition: noon},
		},
		Capacity:    fleet.Resources{CPUMilli: 8000, MemoryBytes: 32 << 30, Pods: 110, GPU: 4, Raw: raw},
		Allocatable: fleet.Resources{CPUMilli: 7910, MemoryBytes: 31 << 30, Pods: 110, GPU: 4, Raw: raw},
		Addresses:   []fleet.Address{{Type: "InternalIP", Address: say("10.0.0.7")}},
		Info: fleet.Info{
			KubeletVersion: say("v1.36.2"), OSImage: say("Bottlerocket"), OS: say("linux"), Architecture: say("amd64"), KernelVersion: say("6.12"),
			ContainerRuntime: say("containerd://2.1"),
		},
		UpdatedAt: noon,
	}
}

func sampleCluster(say say, state fleet.ClusterState) fleet.Cluster {
	c := fleet.Cluster{
		Name: say("prod-eu"), Server: say("https://10.0.0.1:6443"), Version: say("v1.36.2"), State: state, Since: noon,
		Reason: say("connection refused"), NextRetry: noon.Add(time.Minute), Nodes: 1, NotReady: 1, Cordoned: 1,
	}
	if state == fleet.ClusterLive || state == fleet.ClusterStale {
		c.SyncedAt, c.LastEvent = noon, noon
	}
	return c
}

// lackingCluster is live, and permits us to look and to cordon.
func lackingCluster(say say) fleet.Cluster {
	c := sampleCluster(say, fleet.ClusterLive)
	c.Reason, c.NextRetry = "", time.Time{}
	c.Identity, c.Labels = fleet.IdentityShared, say("env=prod")
	c.Rights = &fleet.Rights{Asked: fleet.Terms{}.Asks(say("leases"))}
	for i := range c.Rights.Asked {
		r := &c.Rights.Asked[i]
		r.Allowed = r.Subresource != "eviction" && r.Verb != "delete"
	}
	return c
}

func sampleItems(say say) []fleet.Item {
	ref := func(i int) fleet.NodeRef {
		return fleet.NodeRef{Cluster: say("prod-eu"), Name: say(fmt.Sprintf("n-%d", i))}
	}
	return []fleet.Item{
		{Seq: 0, Ref: ref(0), State: fleet.ItemSucceeded, Changed: true, StartedAt: noon, EndedAt: noon.Add(40 * time.Millisecond)},
		{Seq: 1, Ref: ref(1), State: fleet.ItemFailed, Code: fleet.CodeNotFound, Error: say(`nodes "n-1" not found`), StartedAt: noon, EndedAt: noon},
		{Seq: 2, Ref: ref(2), State: fleet.ItemSkipped, Code: say("some_code"), StartedAt: noon, EndedAt: noon},
		{Seq: 3, Ref: ref(3), State: fleet.ItemRunning, StartedAt: noon},
		{Seq: 4, Ref: ref(4), State: fleet.ItemQueued},
	}
}

func sampleBatch(say say) fleet.Batch {
	return fleet.Batch{
		ID: say("01JB"), Operation: fleet.Operation{Action: fleet.ActionCordon, Reason: say("kernel update"), Foreign: fleet.ForeignInclude},
		State: fleet.BatchRunning, CreatedBy: say("ada"), CreatedAt: noon, StartedAt: noon, CancelledBy: say("bob"), Note: say("stopped by hand"),
		Counts: fleet.Counts{Total: 5, Succeeded: 1, Failed: 1, Skipped: 1, Running: 1, Queued: 1},
	}
}

func sampleLayout(say say, lang string) Layout {
	return Layout{
		Title: "nodes.title", Lang: lang, Theme: "dark", Nav: "nodes", User: say("ada"), Role: fleet.RoleAdmin, Caller: fleet.Caller{Role: fleet.RoleAdmin}, Nonce: "n0nce",
		Path: "/nodes?q=" + say("x"), Now: noon,
	}
}

func sampleGroup(say say) Group {
	return Group{
		By: "zone", Value: say("eu-1a"), Nodes: 1234, Ready: 1230, NotReady: 3, Unknown: 1, Cordoned: 2, Pressure: 1,
		CPUMilli: 98_765_400, MemoryBytes: 400 << 40, Pods: 135_740,
	}
}

func sampleQuery(say say) Query {
	return Query{Cluster: say("prod-eu"), Q: say("web"), Sort: "-cpu", Page: 2, PerPage: 20, Pages: 3, Total: 50}
}

// samples are one of each page and fragment with something in every field.
func samples(say say, lang string) map[string]templ.Component {
	l := sampleLayout(say, lang)
	public := l
	public.User, public.Role, public.Caller, public.Static = "", "", fleet.Caller{}, true
	r := Renderer{}
	n := sampleNode(say)
	batch, items := sampleBatch(say), sampleItems(say)
	done := batch
	done.State, done.Outcome, done.EndedAt, done.CancelledBy = fleet.BatchDone, fleet.OutcomePartial, noon.Add(time.Minute), ""
	live, lost, starting := sampleCluster(say, fleet.ClusterLive), sampleCluster(say, fleet.ClusterUnreachable), sampleCluster(say, fleet.ClusterSyncing)
	lost.Name, starting.Name = say("prod-us"), say("lab")
	other := lost
	other.UID, other.FoundUID = say("0f7c11aa-known"), say("99de55bb-found")
	panel := BatchPanel{Lang: lang, Batch: batch, Items: items, CanSteer: true, Nonce: "n0nce"}
	page, embedded, report := panel, panel, panel
	page.Stream, embedded.Embedded, report.Batch = "/batches/x/events?since=e.1", true, done
	fleetPage := NodesPage{
		Layout: l, Query: sampleQuery(say), Rows: [][]byte{r.NodeRow(n, lang)}, Counts: Counts{Total: 1234, NotReady: 1, Cordoned: 1},
		Facets:   Facets{Zones: []string{say("eu-1a")}, Roles: []string{say("worker")}, Types: []string{say("g6")}, Versions: []string{say("v1.36.2")}},
		Clusters: []fleet.Cluster{live, lost, starting}, Stream: "/nodes/stream?since=e.1", CanCordon: true, Key: "k1",
	}
	wrong := fleetPage
	wrong.Query.Cluster, wrong.Rows, wrong.QueryError, wrong.CanCordon = "", nil, say("no such key"), false
	grouped := fleetPage
	grouped.Query.Group = groupLabel + say("pool")
	grouped.Rows = [][]byte{r.GroupRow(sampleGroup(say), lang), r.NodeRow(n, lang)}
	nobody := wrong
	nobody.Clusters, nobody.QueryError = nil, ""
	errs := map[string]string{"": say("all wrong"), "name": say("bad name"), "username": say("bad name"), "password": say("too short"), say("role"): say("no role")}
	problem := ErrorPage{Layout: l, Status: 409, Kind: "error.conflict", Field: say("nodes"), Message: say("is busy"), RequestID: say("R1"), Batch: say("01JB")}
	pods := []fleet.Pod{
		{Namespace: say("payments"), Name: say("api-1"), Phase: say("Running"), OwnerKind: say("ReplicaSet"), OwnerName: say("api"), CPUMilli: 250, MemoryBytes: 1 << 30, Created: noon},
		{Namespace: "x", Name: "bare", Phase: "Running", Created: noon},
	}
	facts := fleet.CredentialFacts{Kind: "token", User: say("system:serviceaccount:knm"), Fingerprint: "sha256:00:11", ExpiresAt: noon, Server: say("https://a:6443")}
	managed := ClustersPage{
		Layout: l, CanManage: true, Enabled: true, Manifest: say("kind: ServiceAccount"),
		Managed: []fleet.ManagedCluster{{Name: "web", Credential: facts, AddedBy: say("ada"), ChangedBy: say("ada"), ChangedAt: noon, Fault: fleet.FaultKey}},
		Form:    ClusterForm{Name: say("web"), Context: say("c"), Errors: map[string]string{"name": say("taken"), "kubeconfig": say("no"), say("x"): say("y")}},
		Test: &fleet.ClusterTest{
			Outcome: fleet.TestForbidden, Reason: say("no"), Version: say("v1"), Credential: facts, Warnings: []string{fleet.WarnClusterAdmin, fleet.WarnExpires},
			Permissions: []fleet.TestedRight{{Verb: "create", Group: "g", Resource: "pods", Subresource: "exec", Namespace: say("ns")}, {Verb: "get", Resource: "nodes", Needed: true}, {Verb: "*", Resource: "*", Allowed: true}},
		},
	}
	switchedOff := managed
	switchedOff.Enabled, switchedOff.Test, switchedOff.Form = false, nil, ClusterForm{Target: say("web"), Errors: map[string]string{"confirm": say("no")}}
	all := map[string]templ.Component{
		"page-managed":     Clusters(managed),
		"page-managed-off": Clusters(switchedOff),
		"row":              NodeRowView(NodeRow{Node: n, Lang: lang}),
		"group":            GroupRowView(GroupRow{Group: sampleGroup(say), Lang: lang}),
		"group-none":       GroupRowView(GroupRow{Group: Group{By: "label:pool", Nodes: 1, Ready: 1, CPUMilli: 7910}, Lang: lang}),
		"cluster-lacks":    ClusterRowView(ClusterRow{Cluster: lackingCluster(say), Lang: lang}),
		"badge-lacks":      ClusterBadgeView(ClusterRow{Cluster: lackingCluster(say), Lang: lang}),
		"cluster-row":      ClusterRowView(ClusterRow{Cluster: live, Lang: lang}),
		"cluster-lost":     ClusterRowView(ClusterRow{Cluster: lost, Lang: lang}),
		"cluster-other":    ClusterRowView(ClusterRow{Cluster: other, Lang: lang}),
		"badge":            ClusterBadgeView(ClusterRow{Cluster: live, Lang: lang}),
		"badge-lost":       ClusterBadgeView(ClusterRow{Cluster: lost, Lang: lang}),
		"item":             BatchItemRowView(BatchItemRow{Item: items[1], Lang: lang}),
		"item-skipped":     BatchItemRowView(BatchItemRow{Item: items[2], Lang: lang}),
		"progress":         BatchProgressView(BatchProgress{Batch: batch, Lang: lang}),
		"counts":           CountsView(Counts{Total: 1234, NotReady: 7}, 2, 3, 1234, lang),
		"panel":            Panel(embedded),
		"pods":             Pods(PodsFragment{Lang: lang, Cluster: say("c"), Node: say("n"), List: fleet.PodList{Pods: pods, Read: noon}, Now: noon}),
		"pods-error":       Pods(PodsFragment{Lang: lang, Error: say("connection refused"), Now: noon}),
		"error-piece":      ErrorFragment(problem),
		"page-login":       Login(LoginPage{Layout: public, Next: say("/nodes"), Username: say("ada"), Error: "login.wrong", Setup: true, OIDC: true}),
		"page-code":        Code(CodePage{Layout: public, Next: say("/nodes"), Error: "totp.wrong"}),
		"page-invite":      Invite(InvitePage{Layout: public, Code: say("x"), Errors: errs}),
		"page-setup":       Setup(SetupPage{Layout: public, Username: say("ada"), Errors: errs}),
		"page-nodes":       Nodes(fleetPage),
		"page-grouped":     Nodes(grouped),
		"page-wrong":       Nodes(wrong),
		"page-nobody":      Nodes(nobody),
		"page-node":        Node(NodePage{Layout: l, Node: n, Cluster: live, Row: r.NodeRow(n, lang), Stream: "/x/stream", PodsURL: "/x/pods", CanCordon: true, Key: "k"}),
		"page-clusters":    Clusters(ClustersPage{Layout: l, Clusters: []fleet.Cluster{live, lost, starting}, Stream: "/clusters/stream"}),
		"page-batches":     Batches(BatchesPage{Layout: l, Batches: []fleet.Batch{batch, done}, Filter: fleet.BatchFilter{User: say("ada"), State: fleet.BatchDone}}),
		"page-batch":       Batch(BatchPage{Layout: l, Panel: page}),
		"page-report":      Batch(BatchPage{Layout: l, Panel: report}),
		"page-account": Account(AccountPage{
			Layout: l, NewToken: say("knm_x"), Errors: errs,
			Factor: fleet.FactorState{Local: true, Available: true}, Recovery: []string{say("AAAA-BBBB")},
			Enrolment: &fleet.Enrolment{Secret: say("SECRET"), URI: say("otpauth://x"), Picture: say("M4 4h1v1h-1z"), Size: 45},
			Sessions:  []fleet.Session{{Hash: say("h"), Addr: say("10.0.0.1"), UserAgent: say("curl"), CreatedAt: noon, SeenAt: noon, ExpiresAt: noon, Current: true}},
			Tokens:    []fleet.Token{{ID: say("t"), Name: say("ci"), CreatedAt: noon, ExpiresAt: noon}, {ID: say("u"), Name: say("cd"), Role: fleet.RoleViewer, Scope: fleet.Scope(say("prod-*"))}},
			Grants:    []fleet.Grant{{Scope: fleet.Scope(say("prod-*")), Role: fleet.RoleOperator, Also: fleet.Grantable(), From: fleet.PersonOIDC}}, Groups: []string{say("sre")},
		}),
		"page-nofactor": Account(AccountPage{Layout: l, Factor: fleet.FactorState{Local: true, Available: true}}),
		"page-factor":   Account(AccountPage{Layout: l, Factor: fleet.FactorState{Local: true, Available: true, Since: noon, Recovery: 9}}),
		"page-users":    Users(UsersPage{Layout: l, Errors: errs, Invitation: &Invitation{Name: say("eve"), Link: say("https://x/invite#y"), ExpiresAt: noon}, Users: []fleet.User{{Name: say("ada"), Role: fleet.RoleAdmin, CreatedAt: noon, SecondFactor: noon, DelayedUntil: noon.Add(time.Hour)}, {Name: say("eve"), Kind: fleet.PersonOIDC, Role: fleet.RoleViewer, Grants: []fleet.Grant{{Scope: fleet.Scope(say("edge")), Role: fleet.RoleViewer, From: fleet.PersonOIDC}}}, {Name: say("kim"), Kind: fleet.PersonOIDC, Issuer: fleet.HeaderIssuer, Role: fleet.RoleNone, Grants: []fleet.Grant{{Scope: fleet.Scope(say("prod-*")), Role: fleet.RoleOperator, Also: fleet.Grantable()}}}, {Name: say("ivo"), Role: fleet.RoleViewer, InvitedUntil: noon}, {Name: say("bob"), Role: fleet.RoleViewer, Disabled: true}}}),
		"page-audit": Audit(AuditPage{
			Layout: l, Older: 3, Newer: 5, Filter: fleet.AuditFilter{
				User: say("ada"), Action: say("cordon"), Cluster: say("c"), Node: say("n"), Outcome: "succeeded", Batch: say("01JB"), Session: say("5e55"), Since: noon,
			},
			Entries: []fleet.Entry{{
				Seq: 4, At: noon, Actor: say("ada"), Via: say("session"), Addr: say("10.0.0.1"), Action: say("cordon"), Phase: say("result"), Cluster: say("prod-eu"),
				Node: say("n-1"), Batch: say("01JB"), Outcome: say("succeeded"), Reason: say("disk"), Detail: say("false to true"), Hash: say("abc"),
				ClusterUID: say("c-uid"), As: say("ada@idp"), Session: say("5e55"), NodeUID: say("n-uid"),
			}},
		}),
		"page-error": Error(problem),
	}
	maps.Copy(all, planSamples(say, lang))
	maps.Copy(all, drainSamples(say, lang))
	return all
}

func render(tb testing.TB, c templ.Component) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := c.Render(context.Background(), &b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}
