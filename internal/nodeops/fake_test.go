package nodeops

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

var (
	ada  = fleet.Caller{UserID: "u-ada", Name: "ada", Role: fleet.RoleOperator, Session: "s1", Via: "session", Addr: "192.0.2.1"}
	n1   = fleet.NodeRef{Cluster: "prod", Name: "n1"}
	now0 = time.Date(1999, 11, 22, 10, 0, 0, 0, time.UTC) // before the clock of a bubble begins
)

// api is an API server with one node, without a network: the client's transport itself. It keeps the rules of a merge
// patch with preconditions.
type api struct {
	mu      sync.Mutex
	node    *corev1.Node // nil: gone
	rv      int
	gets    int
	patches []map[string]any
	landed  int
	// hook may answer instead of the server, or do something first and answer nil. It runs under the lock.
	hook func(r *http.Request, n int) (*http.Response, error)
	// late may swallow the answer to a patch that has landed.
	late func(n int) error
}

func newAPI(n *corev1.Node) *api {
	n = n.DeepCopy()
	n.ResourceVersion = "1"
	return &api{node: n, rv: 1}
}

func (a *api) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if strings.HasSuffix(r.URL.Path, "/selfsubjectaccessreviews") {
		review := &authorizationv1.SelfSubjectAccessReview{}
		review.Status.Allowed = true
		return answer(http.StatusCreated, review)
	}
	if r.URL.Path != "/api/v1/nodes/n1" {
		return answer(http.StatusNotFound, &metav1.Status{Reason: metav1.StatusReasonNotFound, Code: 404, Status: "Failure"})
	}
	patching := r.Method == http.MethodPatch
	n := a.gets
	if patching {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		var patch map[string]any
		if err := json.Unmarshal(body, &patch); err != nil {
			return nil, err
		}
		n = len(a.patches)
		a.patches = append(a.patches, patch)
	} else {
		a.gets++
	}
	if a.hook != nil {
		if res, err := a.hook(r, n); res != nil || err != nil {
			return res, err
		}
	}
	res := schema.GroupResource{Resource: "nodes"}
	if a.node == nil {
		return fails(apierrors.NewNotFound(res, "n1"))
	}
	if !patching {
		return answer(http.StatusOK, a.node)
	}
	meta := a.patches[n]["metadata"].(map[string]any)
	if meta["uid"] != string(a.node.UID) {
		return fails(apierrors.NewInvalid(schema.GroupKind{Kind: "Node"}, "n1", nil))
	}
	if rv, pinned := meta["resourceVersion"]; pinned && rv != a.node.ResourceVersion {
		return fails(apierrors.NewConflict(res, "n1", errors.New("the object has been modified")))
	}
	a.node.Annotations = merged(a.node.Annotations, meta["annotations"])
	a.node.Labels = merged(a.node.Labels, meta["labels"])
	if spec, ok := a.patches[n]["spec"].(map[string]any); ok {
		if v, named := spec["unschedulable"]; named {
			a.node.Spec.Unschedulable = v == true
		}
		if list, named := spec["taints"]; named {
			raw, err := json.Marshal(list)
			if err != nil {
				return nil, err
			}
			a.node.Spec.Taints = nil
			if err := json.Unmarshal(raw, &a.node.Spec.Taints); err != nil {
				return nil, err
			}
		}
	}
	a.touch()
	a.landed++
	if a.late != nil {
		if err := a.late(n); err != nil {
			return nil, err
		}
	}
	return answer(http.StatusOK, a.node)
}

// merged is a map after a merge patch of it.
func merged(have map[string]string, patch any) map[string]string {
	values, ok := patch.(map[string]any)
	if !ok {
		return have
	}
	out := maps.Clone(have)
	if out == nil {
		out = make(map[string]string)
	}
	for k, v := range values {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = v.(string)
		}
	}
	return out
}

// touch is what any writer does to a node.
func (a *api) touch() {
	a.rv++
	a.node.ResourceVersion = strconv.Itoa(a.rv)
}

func fails(err *apierrors.StatusError) (*http.Response, error) {
	return answer(int(err.ErrStatus.Code), &err.ErrStatus)
}

func answer(code int, body any) (*http.Response, error) {
	switch b := body.(type) {
	case *corev1.Node:
		b = b.DeepCopy()
		b.APIVersion, b.Kind = "v1", "Node"
		body = b
	case *metav1.Status:
		b.APIVersion, b.Kind = "v1", "Status"
	}
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(data)),
	}, nil
}

// record is an audit record in memory.
type record struct {
	mu      sync.Mutex
	entries []fleet.Entry
	refuse  func(e fleet.Entry) error
}

func (r *record) Append(_ context.Context, e fleet.Entry) (fleet.Entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse != nil {
		if err := r.refuse(e); err != nil {
			return e, err
		}
	}
	e.Seq, e.At = int64(len(r.entries)+1), time.Now().UTC()
	r.entries = append(r.entries, e)
	return e, nil
}

func (r *record) Entries(_ context.Context, f fleet.AuditFilter) ([]fleet.Entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []fleet.Entry
	for _, e := range slices.Backward(r.entries) {
		if e.Node == f.Node && e.Cluster == f.Cluster && e.Action == f.Action && !e.At.Before(f.Since) {
			out = append(out, e)
		}
	}
	return out, nil
}

// phases is the record in short.
func (r *record) phases() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.entries {
		s := e.Action + " " + e.Phase
		if e.Outcome != "" {
			s += " " + e.Outcome
		}
		out = append(out, s)
	}
	return out
}

// people is the authority.
type people struct {
	caller fleet.Caller
	err    error
}

func (p *people) Caller(context.Context, string) (fleet.Caller, error) { return p.caller, p.err }

type rig struct {
	t        *testing.T
	api      *api
	record   *record
	people   *people
	ops      *Ops
	observed []*corev1.Node
}

func newRig(t *testing.T, a *api) *rig {
	t.Helper()
	c, err := kube.New("prod", &rest.Config{Host: "http://192.0.2.7:6443", Transport: a}, kube.WithVersion("test"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, api: a, record: &record{}, people: &people{caller: fleet.Caller{UserID: "u-ada", Name: "ada", Role: fleet.RoleOperator}}}
	r.ops = New(Config{
		Clients: func(cluster string, _ fleet.Caller) (kube.Clients, error) {
			if cluster != "prod" {
				return kube.Clients{}, fleet.ErrNotFound
			}
			return kube.Clients{Own: c.Ops, Acts: c.Ops}, nil
		},
		Record:    r.record,
		Authority: r.people,
		Observe:   func(_ string, n *corev1.Node) { r.observed = append(r.observed, n) },
		Logger:    slog.New(slog.DiscardHandler),
	})
	return r
}

func (r *rig) do(op fleet.Operation, change ...func(*fleet.Item)) (fleet.ItemResult, error) {
	r.t.Helper()
	it := fleet.Item{Ref: n1, UID: "uid-1", State: fleet.ItemRunning, Attempt: 1}
	for _, c := range change {
		c(&it)
	}
	return r.ops.Do(r.t.Context(), fleet.Task{By: ada, Batch: "b1", Item: it, Operation: op})
}

// again is an item of which an earlier attempt was interrupted.
func again(it *fleet.Item) { it.Attempt = 2 }

var (
	cordonOp   = fleet.Operation{Action: fleet.ActionCordon, Reason: "disk swap"}
	uncordonOp = fleet.Operation{Action: fleet.ActionUncordon, Foreign: fleet.ForeignSkip}
)

// node makes the node of the tests.
func node(change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "uid-1"}}
	for _, c := range change {
		c(n)
	}
	return n
}

func cordoned(n *corev1.Node) { n.Spec.Unschedulable = true }

// noted leaves our note of a batch.
func noted(batch string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Annotations = map[string]string{
			kube.CordonAnnotation:       kube.CordonNote{V: 1, By: "bob", Reason: "fan", At: now0, Batch: batch}.String(),
			kube.CordonReasonAnnotation: "fan",
		}
	}
}

// managed says who owns spec.unschedulable.
func managed(manager string, at time.Time) func(*corev1.Node) {
	return func(n *corev1.Node) {
		t := metav1.NewTime(at)
		n.ManagedFields = append(n.ManagedFields, metav1.ManagedFieldsEntry{
			Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, Time: &t,
			FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:unschedulable":{}}}`),
		})
	}
}

func withUID(uid string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.UID = types.UID(uid) }
}
