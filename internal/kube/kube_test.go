package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

var at = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func full() *corev1.Node {
	stamp := metav1.NewTime(at)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: "gpu-1", UID: "u-1", ResourceVersion: "42", CreationTimestamp: stamp,
			Labels: map[string]string{
				"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/gpu": "", "kubernetes.io/role": "gpu",
				"topology.kubernetes.io/zone": "eu-1a", "node.kubernetes.io/instance-type": "p4",
			},
			Annotations: map[string]string{lastApplied: `{"big":"copy"}`, "keep": "me"},
			ManagedFields: []metav1.ManagedFieldsEntry{
				{Manager: "kubelet", Time: &stamp, FieldsV1: metav1.NewFieldsV1(`{"f:status":{}}`)},
				{Manager: "odd", Time: &stamp, FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:labels":{"f:unschedulable":{}}}}`)},
				{Manager: "kubectl", Time: &stamp, FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:unschedulable":{},"f:taints":{}}}`)},
			},
		},
		Spec: corev1.NodeSpec{
			Unschedulable: true,
			Taints: []corev1.Taint{
				{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule, TimeAdded: &stamp},
				{Key: "gpu", Value: "true", Effect: corev1.TaintEffectNoExecute},
			},
		},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{
				{Type: "DiskPressure", Status: corev1.ConditionTrue, Reason: "Full", LastHeartbeatTime: stamp, LastTransitionTime: stamp},
				{Type: "ReadonlyFilesystem", Status: corev1.ConditionTrue},
				{Type: "MemoryPressure", Status: corev1.ConditionUnknown},
				{Type: "EtcdIsVoter", Status: corev1.ConditionTrue},
				{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady", Message: "PLEG", LastTransitionTime: stamp},
			},
			Capacity: corev1.ResourceList{
				"cpu": resource.MustParse("8"), "memory": resource.MustParse("32Gi"), "pods": resource.MustParse("110"),
				"ephemeral-storage": resource.MustParse("100Gi"), "nvidia.com/gpu": resource.MustParse("4"), "amd.com/gpu": resource.MustParse("1"),
				"hugepages-1Gi": resource.MustParse("0"),
			},
			Allocatable: corev1.ResourceList{"cpu": resource.MustParse("7910m")},
			Addresses:   []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}},
			NodeInfo:    corev1.NodeSystemInfo{KubeletVersion: "v1.34.2", OSImage: "Ubuntu", OperatingSystem: "linux", Architecture: "amd64"},
			Images:      []corev1.ContainerImage{{Names: []string{"a", "b"}, SizeBytes: 1}},
		},
	}
}

func TestNode_Converts(t *testing.T) {
	t.Parallel()
	n := Node("prod", full())
	want := &fleet.Node{
		Ref: fleet.NodeRef{Cluster: "prod", Name: "gpu-1"}, UID: "u-1", ResourceVersion: "42", Created: at,
		Status: fleet.StatusNotReady, StatusSince: at, Pressure: []string{"DiskPressure", "ReadonlyFilesystem"},
		Cordon: &fleet.Cordon{Since: at, With: "kubectl"}, Roles: []string{"gpu", "worker"},
		Taints: []fleet.Taint{
			{Key: "node.kubernetes.io/unschedulable", Effect: fleet.NoSchedule, TimeAdded: &at},
			{Key: "gpu", Value: "true", Effect: fleet.NoExecute},
		},
		Addresses: []fleet.Address{{Type: "InternalIP", Address: "10.0.0.1"}},
		Info:      fleet.Info{KubeletVersion: "v1.34.2", OSImage: "Ubuntu", OS: "linux", Architecture: "amd64"},
	}
	ignore := cmpopts.IgnoreFields(fleet.Node{}, "Labels", "Annotations", "Conditions", "Capacity", "Allocatable")
	if d := cmp.Diff(want, n, ignore); d != "" {
		t.Errorf("node (-want +got): %s", d)
	}
	if c := n.Conditions[0]; c != (fleet.Condition{Type: "DiskPressure", Status: "True", Reason: "Full", LastHeartbeat: at, LastTransition: at}) {
		t.Errorf("condition: %+v", c)
	}
	if !n.Conditions[1].LastHeartbeat.IsZero() {
		t.Errorf("a missing heartbeat became %s", n.Conditions[1].LastHeartbeat)
	}
	c := n.Capacity
	if got := [...]int64{c.CPUMilli, c.MemoryBytes, c.EphemeralBytes, c.Pods, c.GPU}; got != [...]int64{8000, 32 << 30, 100 << 30, 110, 5} {
		t.Errorf("capacity: %v", got)
	}
	if n.Allocatable.CPUMilli != 7910 || n.Allocatable.Raw["cpu"] != "7910m" || c.Raw["nvidia.com/gpu"] != "4" {
		t.Errorf("resources: %+v %+v", n.Allocatable, c.Raw)
	}
	for range 20 { // a map's order must not show
		if got := Node("prod", full()).Roles; !slices.Equal(got, want.Roles) {
			t.Fatalf("roles %v", got)
		}
	}
	bare := Node("x", &corev1.Node{})
	if bare.Status != fleet.StatusUnknown || !bare.Schedulable || bare.Cordon != nil || bare.Roles != nil {
		t.Errorf("a bare node: %+v", bare)
	}
}

func TestStrip_LosesNothingThatIsShown(t *testing.T) {
	t.Parallel()
	for _, cordoned := range []bool{true, false} {
		n := full()
		n.Spec.Unschedulable = cordoned
		before := Node("x", n.DeepCopy())
		original := n.Annotations
		Strip(n)
		once := n.DeepCopy()
		Strip(n)
		if d := cmp.Diff(once, n); d != "" {
			t.Errorf("not idempotent: %s", d)
		}
		delete(before.Annotations, lastApplied)
		if d := cmp.Diff(before, Node("x", n)); d != "" {
			t.Errorf("cordoned %t: (-before +after): %s", cordoned, d)
		}
		if n.Status.Images != nil || n.Annotations[lastApplied] != "" || (len(n.ManagedFields) > 0) != cordoned {
			t.Errorf("not stripped: %+v", n)
		}
		if original[lastApplied] == "" {
			t.Error("the annotations of another reader were written to")
		}
	}
}

func TestFullJSON_IsTheNode(t *testing.T) {
	t.Parallel()
	n := full()
	Strip(n)
	p, err := Pack(n)
	if err != nil {
		t.Fatal(err)
	}
	b, err := FullJSON(p)
	if err != nil {
		t.Fatal(err)
	}
	var got corev1.Node
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.Kind != "Node" || got.APIVersion != "v1" {
		t.Errorf("type: %s %s", got.APIVersion, got.Kind)
	}
	got.TypeMeta = metav1.TypeMeta{}
	if d := cmp.Diff(n, &got, cmp.Comparer(func(a, b metav1.Time) bool { return a.Equal(&b) }),
		cmp.Comparer(func(a, b resource.Quantity) bool { return a.Cmp(b) == 0 })); d != "" {
		t.Errorf("(-packed +unpacked): %s", d)
	}
	if _, err := FullJSON(Packed("nonsense")); err == nil {
		t.Error("nonsense was unpacked")
	}
}

func TestCordon_WhoDidIt(t *testing.T) {
	t.Parallel()
	note := CordonNote{V: 1, By: "ada", Reason: "disk", At: at, Batch: "b1"}
	later, earlier := metav1.NewTime(at.Add(time.Hour)), metav1.NewTime(at.Add(-time.Hour))
	owner := func(manager string, when *metav1.Time) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{Manager: manager, Time: when, FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:unschedulable":{}}}`)}
	}
	ours := &fleet.Cordon{By: "ada", Reason: "disk", Since: at, Batch: "b1"}
	tests := []struct {
		name   string
		note   string
		reason string
		fields []metav1.ManagedFieldsEntry
		want   *fleet.Cordon
	}{
		{"our note", note.String(), "disk", []metav1.ManagedFieldsEntry{owner(FieldManager, &later)}, ours},
		{"our note, fields unknown", note.String(), "", nil, ours},
		{"our note, older foreign owner", note.String(), "", []metav1.ManagedFieldsEntry{owner("kubectl", &earlier)}, ours},
		{"cordoned again by kubectl behind our note", note.String(), "disk", []metav1.ManagedFieldsEntry{owner("kubectl", &later)}, &fleet.Cordon{With: "kubectl", Since: later.UTC()}},
		{"kubectl", "", "", []metav1.ManagedFieldsEntry{owner("kubectl", &later)}, &fleet.Cordon{With: "kubectl", Since: later.UTC()}},
		{"the last of two owners", "", "", []metav1.ManagedFieldsEntry{owner("a", &later), owner("b", &earlier)}, &fleet.Cordon{With: "a", Since: later.UTC()}},
		{"garbage", "{", "why", nil, &fleet.Cordon{Reason: "why"}},
		{"nothing known", "", "", nil, &fleet.Cordon{}},
	}
	for _, tt := range tests {
		n := &corev1.Node{Spec: corev1.NodeSpec{Unschedulable: true}}
		n.Annotations = map[string]string{CordonAnnotation: tt.note, CordonReasonAnnotation: tt.reason}
		n.ManagedFields = tt.fields
		if d := cmp.Diff(tt.want, Node("x", n).Cordon); d != "" {
			t.Errorf("%s (-want +got): %s", tt.name, d)
		}
	}
}

func TestCordonNote_Fields(t *testing.T) {
	t.Parallel()
	n := CordonNote{V: 1, By: "ada", Via: "session", Reason: "r", At: at, Batch: "b", PrevUnschedulable: true}
	want := `{"v":1,"by":"ada","via":"session","reason":"r","at":"2026-03-04T05:06:07Z","job":"b","prevUnschedulable":true}`
	if n.String() != want {
		t.Errorf("got %s, want %s", n, want)
	}
	got, err := ParseCordonNote(want)
	if err != nil || got != n {
		t.Errorf("got %+v, %v", got, err)
	}
	n.At = time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)
	if got, err := ParseCordonNote(n.String()); err != nil || got.By != "ada" {
		t.Errorf("a year that JSON cannot write: %+v, %v", got, err)
	}
	if _, err := ParseCordonNote(`{"v":1,"new":{"field":1},"by":"x"}`); err != nil {
		t.Errorf("a newer note: %v", err)
	}
	for _, bad := range []string{"", "null", "[]", "{}", `"x"`, `{"v":0}`, `{"v":1,"at":"x"}`, strings.Repeat(" ", maxNote) + "{}"} {
		if _, err := ParseCordonNote(bad); err == nil {
			t.Errorf("%.20q was understood", bad)
		}
	}
}

func FuzzParseCordonNote(f *testing.F) {
	f.Add(CordonNote{V: 1, By: "ada", At: at}.String())
	f.Add(`{"v":1,"at":"0000-01-01T00:00:00+23:59"}`)
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseCordonNote(s)
		if err != nil {
			return
		}
		again, err := ParseCordonNote(n.String())
		if err != nil {
			t.Fatalf("%q: its own form %q: %v", s, n, err)
		}
		if !again.At.Equal(n.At) && !again.At.IsZero() {
			t.Fatalf("%q: time %s became %s", s, n.At, again.At)
		}
	})
}

func TestError_Kinds(t *testing.T) {
	t.Parallel()
	nodes := schema.GroupResource{Resource: "nodes"}
	budget := apierrors.NewTooManyRequests("no", 1)
	budget.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: policyv1.DisruptionBudgetCause}}
	tests := []struct {
		err  error
		want error
	}{
		{apierrors.NewNotFound(nodes, "x"), fleet.ErrNotFound},
		{apierrors.NewForbidden(nodes, "x", errors.New("no")), fleet.ErrForbidden},
		{apierrors.NewConflict(nodes, "x", errors.New("old")), fleet.ErrConflict},
		{apierrors.NewAlreadyExists(nodes, "x"), fleet.ErrConflict},
		{apierrors.NewBadRequest("x"), fleet.ErrInvalid},
		{apierrors.NewInvalid(schema.GroupKind{Kind: "Node"}, "x", nil), fleet.ErrInvalid},
		{apierrors.NewTooManyRequests("slow", 1), fleet.ErrTooMany},
		{budget, fleet.ErrBlocked},
		{apierrors.NewRequestEntityTooLargeError("x"), fleet.ErrTooLarge},
		{apierrors.NewServiceUnavailable("x"), fleet.ErrUnavailable},
		{apierrors.NewInternalError(errors.New("x")), fleet.ErrUnavailable},
		{apierrors.NewTimeoutError("x", 1), fleet.ErrUnavailable},
		{apierrors.NewResourceExpired("x"), fleet.ErrUnavailable},
		{apierrors.NewUnauthorized("x"), fleet.ErrUnavailable},
		{apierrors.NewUnauthorized("x"), ErrCredentials},
		{apierrors.NewGenericServerResponse(418, "get", nodes, "x", "teapot", 0, true), fleet.ErrUnavailable},
		{context.DeadlineExceeded, fleet.ErrUnavailable},
		{&url.Error{Op: "Get", Err: io.EOF}, fleet.ErrUnavailable},
		{&net.OpError{Op: "dial", Err: errors.New("refused")}, fleet.ErrUnavailable},
		{fmt.Errorf("wrapped: %w", apierrors.NewNotFound(nodes, "x")), fleet.ErrNotFound},
	}
	for _, tt := range tests {
		got := Error(tt.err)
		if !errors.Is(got, tt.want) {
			t.Errorf("%v: got %v, want %v", tt.err, got, tt.want)
		}
		if !errors.Is(got, tt.err) {
			t.Errorf("%v: the cause is lost", tt.err)
		}
		if errors.Is(got, fleet.ErrUnauthenticated) {
			t.Errorf("%v is about the person", tt.err)
		}
		if twice := Error(got); twice.Error() != got.Error() && !errors.Is(got, ErrCredentials) {
			t.Errorf("%v: a second time adds to it: %v", tt.err, twice)
		}
	}
	if Error(nil) != nil {
		t.Error("no error became one")
	}
	other := errors.New("other")
	if got := Error(other); !errors.Is(got, other) || errors.Unwrap(got) != nil {
		t.Errorf("an error of our own became %v", got)
	}
	if got := Error(&url.Error{Err: context.Canceled}); errors.Is(got, fleet.ErrUnavailable) {
		t.Errorf("a cancelled call became %v", got)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := func(contexts string) string {
		return `{"apiVersion":"v1","kind":"Config","clusters":[{"name":"c","cluster":{"server":"https://192.0.2.1:6443"}}],` +
			`"users":[{"name":"u","user":{"token":"secret"}},{"name":"file","user":{"tokenFile":"token"}},{"name":"cert","user":{"client-certificate":"nope.pem","client-key":"nope.pem"}}],` +
			`"contexts":[` + contexts + `]}`
	}
	context := func(name, cluster, user string) string {
		return fmt.Sprintf(`{"name":%q,"context":{"cluster":%q,"user":%q}}`, name, cluster, user)
	}
	write("token", "from-file")
	good := write("good", config(context("b", "c", "u")+","+context("a", "c", "file")))
	odd := write("odd", config(context("x", "missing", "u")+","+context("y", "c", "cert")+","+context("z", "c", "u")))

	clusters, err := Load([]string{good, odd}, WithVersion("1.2.3"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range clusters {
		got = append(got, fmt.Sprintf("%s %s fault=%t", c.Name, c.Server, c.Fault != nil))
		if (c.Watch == nil || c.Ops == nil) != (c.Fault != nil) {
			t.Errorf("%s: clients and fault %v", c.Name, c.Fault)
		}
	}
	want := []string{
		"a https://192.0.2.1:6443 fault=false", "b https://192.0.2.1:6443 fault=false",
		"x  fault=true", "y  fault=true", "z https://192.0.2.1:6443 fault=false",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("clusters (-want +got): %s", d)
	}
	if f := clusters[3].Fault; f == nil || !strings.Contains(f.Error(), odd) || !strings.Contains(f.Error(), `"y"`) {
		t.Errorf("fault %v names neither file nor context", f)
	}

	again := write("again", config(context("b", "c", "u")))
	if _, err := Load([]string{good, again}); !errors.Is(err, fleet.ErrConflict) || !strings.Contains(err.Error(), good) || !strings.Contains(err.Error(), again) {
		t.Errorf("a name twice: %v, want both files named", err)
	}
	if _, err := Load([]string{write("empty", `{"apiVersion":"v1","kind":"Config"}`)}); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("no contexts: %v", err)
	}
	if _, err := Load([]string{filepath.Join(dir, "absent")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Load([]string{write("bad", "{")}); err == nil {
		t.Error("half a file was loaded")
	}
	if clusters, err := Load(nil); err != nil || len(clusters) != 0 {
		t.Errorf("no files: %v, %v", clusters, err)
	}
}

// TestNew_OneConnection: both clients talk over one, say who they are, and Close ends it.
func TestNew_OneConnection(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	peers, agents := map[string]bool{}, map[string]bool{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		peers[r.RemoteAddr], agents[r.UserAgent()] = true, true
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"gitVersion":"v1.34.2"}`) // a test's answer
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	c, err := New("x", &rest.Config{Host: srv.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, WithVersion("1.2.3"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	ask := func() {
		t.Helper()
		for _, client := range []interface {
			RESTClient() rest.Interface
		}{c.Watch.Discovery(), c.Ops.Discovery()} {
			if _, err := client.RESTClient().Get().AbsPath("/version").DoRaw(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		mu.Lock() // the answers are here, so nobody holds it; the race detector wants to see it
		defer mu.Unlock()
	}
	ask()
	if len(peers) != 1 || !agents["kube-node-manager/1.2.3"] || len(agents) != 1 {
		t.Errorf("connections %v, agents %v", peers, agents)
	}
	if c.BytesRead() != int64(len(`{"gitVersion":"v1.34.2"}`)) {
		t.Errorf("%d bytes counted, want those of the watch client", c.BytesRead())
	}
	if v, err := Version(t.Context(), c.Ops); err != nil || v != "v1.34.2" {
		t.Errorf("Version: %q, %v", v, err)
	}
	c.Close()
	ask()
	if len(peers) != 2 {
		t.Errorf("connections after Close: %v, want a new one", peers)
	}
}

func TestPods(t *testing.T) {
	t.Parallel()
	always := corev1.ContainerRestartPolicyAlways
	requests := func(cpu, memory string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse(cpu), "memory": resource.MustParse(memory)}}
	}
	yes, now := true, metav1.NewTime(at)
	pod := func(ns, name, node string, change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.PodSpec{NodeName: node}}
		p.Status.Phase = corev1.PodRunning
		change(p)
		return p
	}
	client := fake.NewClientset(
		pod("b", "app", "n", func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "app-1", Controller: &yes}}
			p.Spec.Containers = []corev1.Container{{Resources: requests("100m", "64Mi")}, {Resources: requests("200m", "64Mi")}}
			p.Spec.InitContainers = []corev1.Container{{Resources: requests("50m", "32Mi"), RestartPolicy: &always}, {Resources: requests("1", "16Mi")}}
			p.Spec.Overhead = corev1.ResourceList{"cpu": resource.MustParse("10m")}
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 2}, {RestartCount: 1}}
		}),
		pod("a", "going", "n", func(p *corev1.Pod) { p.DeletionTimestamp, p.Finalizers = &now, []string{"x"} }),
		pod("a", "elsewhere", "m", func(*corev1.Pod) {}),
	)
	got, err := Pods(t.Context(), client, "n")
	if err != nil {
		t.Fatal(err)
	}
	want := []fleet.Pod{
		{Namespace: "a", Name: "going", Phase: "Terminating"},
		{
			Namespace: "b", Name: "app", Phase: "Running", Ready: true, Restarts: 3, OwnerKind: "ReplicaSet", OwnerName: "app-1",
			CPUMilli: 1060, MemoryBytes: 160 << 20, // the init phase: sidecar and the greedy one; then sidecar and both
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("pods (-want +got): %s", d)
	}
}
