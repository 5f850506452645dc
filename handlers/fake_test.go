package handlers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/PuerkitoBio/goquery"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/realtime"
	"github.com/kube-node-manager/kube-node-manager/views"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// odd is a cluster named after a context that holds everything a path gives a meaning to.
const odd = "arn:aws:eks:eu-west-1:123:cluster/prod@a%2Fb c?x#y"

// world is everything behind the handlers, in memory.
type world struct {
	mu      sync.Mutex // guards all fields; handlers run in parallel
	nodes   []*fleet.Node
	podsErr error
	podsFn  func(context.Context) error
	streams []any // what streams were asked for
	specs   []fleet.BatchSpec
	submit  error // answer of Submit, if not nil
	planned []fleet.BatchSpec
	plan    *fleet.Plan  // answer of Plan and BatchPlan, if not nil
	planErr error        // answer of Plan, if not nil
	steer   error        // answer of every steering call, if not nil
	items   []fleet.Item // of every batch, if not nil
	events  []fleet.BatchEvent
	list    []fleet.Template
	saved   []fleet.Template
	saveErr error // answer of SaveTemplate, if not nil
	batches map[string]fleet.Batch
	denied  []string
	exports []string // of the record
	signIn  error

	signedIn time.Time // of every person
	calls    []string  // what People and Auth were asked to do
	people   error     // answer of every call of People, if not nil
	setup    bool
	oidc     bool
	factor   fleet.FactorState
	entries  []fleet.Entry
	ready    error
	ended    map[string]bool // whose sessions and tokens are over
	off      bool            // no key to seal credentials with

	clustersOf map[string][]string // what batches are about, if not prod
	callers    map[string]fleet.Caller
	grants     []fleet.Grant
}

func newWorld() *world {
	wd := &world{batches: map[string]fleet.Batch{
		"b1": {ID: "b1", Operation: fleet.Operation{Action: fleet.ActionCordon}, State: fleet.BatchRunning, Version: 7, CreatedBy: "ada"},
		"b2": {ID: "b2", Operation: fleet.Operation{Action: fleet.ActionCordon}, State: fleet.BatchDone, Outcome: fleet.OutcomeSucceeded},
	}}
	for _, c := range []string{"prod", odd} {
		for i := range 3 {
			wd.nodes = append(wd.nodes, &fleet.Node{
				Ref: fleet.NodeRef{Cluster: c, Name: fmt.Sprintf("node-%d", i)}, UID: fmt.Sprintf("uid-%d", i), Status: fleet.StatusReady,
				Schedulable: true, Labels: map[string]string{"topology.kubernetes.io/zone": "a"}, Revision: uint64(i + 1),
			})
		}
	}
	return wd
}

func (wd *world) Window(q *realtime.Query, lang string) realtime.Window {
	wd.mu.Lock()
	defer wd.mu.Unlock()
	w := realtime.Window{Cursor: "e1.42", Revision: 42, Page: 1, Pages: 1}
	for _, c := range wd.clusters() {
		if q.Sees(c.Name) {
			w.Clusters = append(w.Clusters, c)
		}
	}
	for _, n := range wd.nodes {
		if q.Match(n) {
			w.Total++
			w.Counts.Total++
			if q.Group == "zone" { // all of them are in zone a
				w.Groups = []realtime.Group{{By: "zone", Value: "a", Nodes: w.Total, Ready: w.Total}}
			}
			if len(w.Nodes) < q.PerPage {
				w.Nodes = append(w.Nodes, n)
				w.Rows = append(w.Rows, views.Renderer{}.NodeRow(n, lang))
			}
		}
	}
	if len(w.Groups) > 0 {
		w.Heads = []realtime.Head{{Row: views.Renderer{}.GroupRow(views.Group(w.Groups[0]), lang)}}
	}
	return w
}

func (wd *world) List(q *realtime.Query, paged bool) realtime.List {
	win := wd.Window(q, "en")
	l := realtime.List{Cursor: win.Cursor, Revision: win.Revision, Total: win.Total, Page: win.Page, Pages: win.Pages, Groups: win.Groups}
	wd.mu.Lock()
	defer wd.mu.Unlock()
	var items [][]byte
	for _, n := range wd.nodes {
		if b, err := fleet.NodeJSON(n); q.Match(n) && err == nil && (!paged || len(items) < q.PerPage) {
			items = append(items, b)
		}
	}
	l.Items = slices.Values(items)
	return l
}

func (wd *world) clusters() []fleet.Cluster {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return []fleet.Cluster{
		{Name: odd, State: fleet.ClusterLive, SyncedAt: now, Since: now, Nodes: 3},
		{Name: "prod", State: fleet.ClusterLive, SyncedAt: now, Since: now, Nodes: 3},
	}
}

func (wd *world) Clusters(sight fleet.Sight) []fleet.Cluster {
	return slices.DeleteFunc(wd.clusters(), func(c fleet.Cluster) bool { return !sight.Sees(c.Name) })
}

func (wd *world) Node(ref fleet.NodeRef) (*fleet.Node, error) {
	wd.mu.Lock()
	defer wd.mu.Unlock()
	for _, n := range wd.nodes {
		if n.Ref == ref {
			return n, nil
		}
	}
	return nil, fmt.Errorf("looking up %s: %w", ref, fleet.ErrNotFound)
}

func (wd *world) FullNode(ref fleet.NodeRef) ([]byte, error) {
	if _, err := wd.Node(ref); err != nil {
		return nil, err
	}
	return []byte(`{"kind":"Node"}`), nil
}

func (wd *world) Row(ref fleet.NodeRef, lang string) ([]byte, error) {
	n, err := wd.Node(ref)
	if err != nil {
		return nil, err
	}
	return views.Renderer{}.NodeRow(n, lang), nil
}

func (wd *world) Matching(q *realtime.Query, limit int) []fleet.NodeRef {
	wd.mu.Lock()
	defer wd.mu.Unlock()
	var refs []fleet.NodeRef
	for _, n := range wd.nodes {
		if q.Match(n) && len(refs) < limit {
			refs = append(refs, n.Ref)
		}
	}
	return refs
}

func (wd *world) Pods(ctx context.Context, _ fleet.NodeRef) (fleet.PodList, error) {
	if wd.podsFn != nil {
		return fleet.PodList{}, wd.podsFn(ctx)
	}
	return fleet.PodList{Pods: []fleet.Pod{{Namespace: "default", Name: "web-0", Phase: "Running"}}, Read: time.Now()}, wd.podsErr
}

// serveStream says hello, and what was asked for is kept. The real ones have tests of their own.
func (wd *world) serveStream(w http.ResponseWriter, s any, err error) error {
	if err != nil {
		return err
	}
	wd.mu.Lock()
	wd.streams = append(wd.streams, s)
	wd.mu.Unlock()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache, no-transform")
	w.WriteHeader(http.StatusOK)
	_, err = io.WriteString(w, "data: hello\n\n")
	return err
}

type streams struct{ wd *world }

func (f streams) Nodes(w http.ResponseWriter, _ *http.Request, s realtime.NodeStream) error {
	return f.wd.serveStream(w, s, nil)
}

func (f streams) Clusters(w http.ResponseWriter, _ *http.Request, s realtime.ClusterStream) error {
	return f.wd.serveStream(w, s, nil)
}

func (f streams) Batch(w http.ResponseWriter, _ *http.Request, s realtime.BatchStream) error {
	var err error
	if _, ok := f.wd.batches[s.Batch]; !ok {
		err = fleet.ErrNotFound
	}
	return f.wd.serveStream(w, s, err)
}

type batches struct{ wd *world }

// about checks what the engine checks of the clusters of a request.
func (f batches) about(by fleet.Caller, spec fleet.BatchSpec) error {
	p, _ := spec.Action.Permission()
	refs := slices.Clone(spec.Nodes)
	if spec.Source != nil {
		refs = append(refs, *spec.Source)
	}
	for _, ref := range refs {
		// Tests that are not about sights name clusters as they like.
		if sight := by.Sight(); !sight.All() && !slices.ContainsFunc(f.wd.Clusters(sight), func(c fleet.Cluster) bool { return c.Name == ref.Cluster }) {
			return fleet.Invalid("nodes", "%q names the cluster %q, which is not known here", ref, ref.Cluster)
		}
	}
	for _, ref := range spec.Nodes {
		if !by.May(p, ref.Cluster) {
			return &fleet.DeniedError{Cluster: ref.Cluster, Permission: p}
		}
	}
	if spec.Revert != "" {
		if err := f.Sees(context.Background(), by, spec.Revert); err != nil {
			return fleet.Invalid("batch", "there is no batch %q", spec.Revert)
		}
	}
	return nil
}

func (f batches) Submit(_ context.Context, by fleet.Caller, spec fleet.BatchSpec) (fleet.Batch, error) {
	if err := f.about(by, spec); err != nil {
		return fleet.Batch{}, err
	}
	f.wd.mu.Lock()
	defer f.wd.mu.Unlock()
	f.wd.specs = append(f.wd.specs, spec)
	if f.wd.submit != nil {
		return fleet.Batch{}, f.wd.submit
	}
	b := f.wd.batches["b1"]
	b.Operation, b.CreatedBy = spec.Operation, by.Name
	return b, nil
}

// clusters are those that a batch is about.
func (f batches) clusters(id string) []string {
	if list := f.wd.clustersOf[id]; list != nil {
		return list
	}
	return []string{"prod"}
}

func (f batches) Sees(_ context.Context, by fleet.Caller, id string) error {
	sight := by.Sight()
	if _, ok := f.wd.batches[id]; !ok && !sight.All() {
		return fmt.Errorf("looking for batch: %w", fleet.ErrNotFound)
	}
	for _, name := range f.clusters(id) {
		if !sight.All() && !slices.ContainsFunc(f.wd.Clusters(sight), func(c fleet.Cluster) bool { return c.Name == name }) {
			return fmt.Errorf("looking for batch: %w", fleet.ErrNotFound)
		}
	}
	return nil
}

func (f batches) Batch(ctx context.Context, by fleet.Caller, id string) (fleet.Batch, []fleet.Item, error) {
	b, ok := f.wd.batches[id]
	if !ok || f.Sees(ctx, by, id) != nil {
		return fleet.Batch{}, nil, fmt.Errorf("reading batch: %w", fleet.ErrNotFound)
	}
	if f.wd.items != nil {
		return b, f.wd.items, nil
	}
	items := []fleet.Item{}
	for i, name := range f.clusters(id) {
		items = append(items, fleet.Item{Seq: i, Ref: fleet.NodeRef{Cluster: name, Name: "node-0"}, State: fleet.ItemQueued})
	}
	return b, items, nil
}

func (f batches) List(ctx context.Context, by fleet.Caller, filter fleet.BatchFilter) ([]fleet.Batch, error) {
	var out []fleet.Batch
	for _, id := range slices.Sorted(maps.Keys(f.wd.batches)) {
		if (filter.IDs == nil || slices.Contains(filter.IDs, id)) && f.Sees(ctx, by, id) == nil {
			out = append(out, f.wd.batches[id])
		}
	}
	return out, nil
}

// steered is what every steering call answers.
func (f batches) steered(by fleet.Caller, id string) error {
	if err := f.Sees(context.Background(), by, id); err != nil {
		return err
	}
	if p, _ := f.wd.batches[id].Operation.Action.Permission(); f.known(id) == nil {
		for _, name := range f.clusters(id) {
			if !by.May(p, name) {
				return &fleet.DeniedError{Cluster: name, Permission: p}
			}
		}
	}
	return f.known(id)
}

func (f batches) known(id string) error {
	if _, ok := f.wd.batches[id]; !ok {
		return fmt.Errorf("steering batch: %w", fleet.ErrNotFound)
	}
	return f.wd.steer
}

func (f batches) Cancel(_ context.Context, by fleet.Caller, id string) error {
	f.wd.note("Cancel %s by %s", id, by.Name)
	return f.steered(by, id)
}

func (f batches) Plan(_ context.Context, by fleet.Caller, spec fleet.BatchSpec) (*fleet.Plan, error) {
	if err := f.about(by, spec); err != nil {
		return nil, err
	}
	f.wd.mu.Lock()
	defer f.wd.mu.Unlock()
	f.wd.planned = append(f.wd.planned, spec)
	if f.wd.planErr != nil {
		return nil, f.wd.planErr
	}
	if f.wd.plan != nil {
		return f.wd.plan, nil
	}
	return &fleet.Plan{
		Action: spec.Action, At: time.Now(), Operation: spec.Operation, Counts: fleet.PlanCounts{Total: len(spec.Nodes), Change: len(spec.Nodes)}, Digest: "digest-1",
	}, nil
}

func (f batches) BatchPlan(ctx context.Context, by fleet.Caller, id string) (*fleet.Plan, error) {
	if err := cmp.Or(f.Sees(ctx, by, id), f.known(id)); err != nil {
		return nil, err
	}
	if f.wd.plan == nil {
		return nil, fmt.Errorf("reading a plan: %w", fleet.ErrNotFound)
	}
	return f.wd.plan, nil
}

func (f batches) Events(ctx context.Context, by fleet.Caller, id string, after int64, limit int) ([]fleet.BatchEvent, error) {
	if err := f.Sees(ctx, by, id); err != nil {
		return nil, err
	}
	var out []fleet.BatchEvent
	for _, e := range f.wd.events {
		if e.Seq > after && len(out) < limit {
			out = append(out, e)
		}
	}
	return out, f.known(id)
}

func (f batches) Pause(_ context.Context, by fleet.Caller, id string) error {
	f.wd.note("Pause %s by %s", id, by.Name)
	return f.steered(by, id)
}

func (f batches) Resume(_ context.Context, by fleet.Caller, id string) error {
	f.wd.note("Resume %s by %s", id, by.Name)
	return f.steered(by, id)
}

func (f batches) Retry(_ context.Context, by fleet.Caller, id, key string) (fleet.Batch, error) {
	f.wd.note("Retry %s by %s with %q", id, by.Name, key)
	return f.wd.batches["b1"], f.steered(by, id)
}

func (f batches) Skip(_ context.Context, by fleet.Caller, id string, item int) error {
	f.wd.note("Skip %s %d by %s", id, item, by.Name)
	if item > 0 {
		return fleet.ErrNotFound
	}
	return f.steered(by, id)
}

type templates struct{ wd *world }

func (f templates) Templates(context.Context) ([]fleet.Template, error) { return f.wd.list, nil }

func (f templates) Template(_ context.Context, id string, version int) (fleet.Template, error) {
	for _, t := range f.wd.list {
		if t.ID == id && (version == 0 || t.Version == version) {
			return t, nil
		}
	}
	return fleet.Template{}, fmt.Errorf("reading a template: %w", fleet.ErrNotFound)
}

func (f templates) SaveTemplate(_ context.Context, _ fleet.Caller, t fleet.Template) (fleet.Template, error) {
	f.wd.mu.Lock()
	defer f.wd.mu.Unlock()
	if f.wd.saveErr != nil {
		return fleet.Template{}, f.wd.saveErr
	}
	f.wd.saved = append(f.wd.saved, t)
	t.Version++
	if t.ID == "" {
		t.ID = "t9"
	}
	return t, nil
}

func (f templates) DeleteTemplate(ctx context.Context, by fleet.Caller, id string) error {
	f.wd.note("DeleteTemplate %s by %s", id, by.Name)
	_, err := f.Template(ctx, id, 0)
	return err
}

type authority struct{ wd *world }

func (f authority) SignIn(_ context.Context, name, password, device string, from fleet.Caller, _ string) (fleet.SignIn, error) {
	f.wd.note("SignIn %s from %s replacing %q", name, from.Addr, from.Session)
	f.wd.note("SignIn in a browser that shows %q", device)
	if f.wd.signIn != nil {
		return fleet.SignIn{}, f.wd.signIn
	}
	if name != "ada" || password != "correct horse battery" {
		return fleet.SignIn{}, fleet.ErrUnauthenticated
	}
	return signedIn(), nil
}

// signedIn is what the sign-ins that turn out well are worth.
func signedIn() fleet.SignIn {
	return fleet.SignIn{
		Token: "admin", Expires: time.Now().Add(time.Hour), Device: "this browser", DeviceUntil: time.Now().Add(90 * 24 * time.Hour),
	}
}

func (f authority) SecondStep(_ context.Context, half, code, device string, from fleet.Caller, _ string) (fleet.SignIn, error) {
	f.wd.note("SecondStep %s from %s", half, from.Addr)
	f.wd.note("SecondStep in a browser that shows %q", device)
	if f.wd.signIn != nil {
		return fleet.SignIn{}, f.wd.signIn
	}
	if code != "123456" {
		return fleet.SignIn{}, fleet.ErrUnauthenticated
	}
	return signedIn(), nil
}

func (f authority) AcceptInvitation(_ context.Context, code, _ string) error {
	f.wd.note("AcceptInvitation")
	if code != "good" {
		return fleet.Invalid("code", "is wrong or too old")
	}
	return nil
}

func (f authority) OIDC() bool { return f.wd.oidc }

func (f authority) BeginOIDC(_ context.Context, redirect string, anew bool) (string, string, time.Time, error) {
	f.wd.note("BeginOIDC %s%s", redirect, map[bool]string{true: " anew"}[anew])
	return "https://idp.test/auth?state=s", "kept", time.Now().Add(10 * time.Minute), f.wd.signIn
}

func (f authority) FinishOIDC(_ context.Context, redirect, kept string, answer url.Values, from fleet.Caller, _ string) (string, time.Time, error) {
	f.wd.note("FinishOIDC %s %s %s replacing %q", redirect, kept, answer.Get("code"), from.Session)
	return "admin", time.Now().Add(time.Hour), f.wd.signIn
}

func (f authority) SignInByHeader(_ context.Context, name string, groups []string, from fleet.Caller, _ string) (string, time.Time, error) {
	f.wd.note("SignInByHeader %s %q %s %s", name, groups, from.Addr, from.Session)
	return "operator", time.Now().Add(time.Hour), f.wd.signIn
}

func (f authority) SignOut(_ context.Context, token string) error {
	f.wd.note("SignOut %s", token)
	return nil
}

func (f authority) caller(token, via string) (fleet.Caller, error) {
	if who, ok := f.wd.callers[token]; ok {
		who.UserID, who.Name, who.Session, who.Via = "u-"+token, token, "hash-"+token, via
		return who, nil
	}
	role, err := fleet.ParseRole(token)
	if token == "store-down" {
		return fleet.Caller{}, errors.New("disk on fire: secret path")
	}
	f.wd.mu.Lock()
	defer f.wd.mu.Unlock()
	if err != nil || f.wd.ended[token] {
		return fleet.Caller{}, fleet.ErrUnauthenticated
	}
	return fleet.Caller{UserID: "u-" + token, Name: token, Role: role, Session: "hash-" + token, Via: via, SignedIn: f.wd.signedIn}, nil
}

func (f authority) BySession(_ context.Context, token string) (fleet.Caller, error) {
	return f.caller(token, "session")
}

func (f authority) PeekSession(_ context.Context, token string) (fleet.Caller, error) {
	f.wd.note("PeekSession")
	return f.caller(token, "session")
}

func (f authority) ByToken(_ context.Context, bearer string) (fleet.Caller, error) {
	return f.caller(bearer, viaToken)
}

func (f authority) NeedsSetup(context.Context) (bool, error) { return f.wd.setup, nil }

func (f authority) Setup(_ context.Context, code, name, password string) error {
	f.wd.note("Setup %s", name)
	if code != "good" {
		return fmt.Errorf("setting up: %w", errors.Join(fleet.Invalid("code", "is wrong or too old"), fleet.Invalid("name", "must not be empty")))
	}
	return nil
}

type steering struct{ wd *world }

func (f steering) Retry(_ context.Context, by fleet.Caller, cluster string) error {
	f.wd.note("Retry %s by %s", cluster, by.Name)
	return nil
}

func (f steering) Accept(_ context.Context, by fleet.Caller, cluster, uid string) error {
	f.wd.note("Accept %s %s by %s", cluster, uid, by.Name)
	if uid == "not-that-one" {
		return fmt.Errorf("accepting: %w", fleet.ErrConflict)
	}
	return nil
}

// managed keeps no credential: what it was given is noted by size alone.
type managed struct{ wd *world }

func (f managed) Enabled() bool { return !f.wd.off }

func (f managed) Managed() []fleet.ManagedCluster {
	return []fleet.ManagedCluster{{Name: odd, AddedBy: "ada", ChangedBy: "ada", Credential: fleet.CredentialFacts{Kind: "token", User: "knm", Fingerprint: "sha256:00"}}, {Name: "test"}}
}

func (f managed) did(what string, by fleet.Caller, spec fleet.ClusterSpec) (fleet.ManagedCluster, error) {
	f.wd.note("%s %s %q %d by %s", what, spec.Name, spec.Context, len(spec.Kubeconfig.Reveal()), by.Name)
	switch {
	case strings.Contains(spec.Kubeconfig.Reveal(), "exec"):
		return fleet.ManagedCluster{}, &fleet.FieldError{Field: "kubeconfig", Message: "runs a program", Key: "kubeconfig.exec", Args: map[string]string{"Part": "users[0].user.exec"}}
	case what == "AddCluster" && spec.Name == "prod":
		return fleet.ManagedCluster{}, fmt.Errorf("adding: %w", fleet.ErrConflict)
	case what != "AddCluster" && spec.Name != odd && spec.Name != "test":
		return fleet.ManagedCluster{}, fmt.Errorf("cluster: %w", fleet.ErrNotFound)
	}
	return fleet.ManagedCluster{Name: spec.Name}, nil
}

func (f managed) AddCluster(_ context.Context, by fleet.Caller, spec fleet.ClusterSpec) (fleet.ManagedCluster, error) {
	return f.did("AddCluster", by, spec)
}

func (f managed) ReplaceCluster(_ context.Context, by fleet.Caller, spec fleet.ClusterSpec) (fleet.ManagedCluster, error) {
	return f.did("ReplaceCluster", by, spec)
}

func (f managed) RemoveCluster(_ context.Context, by fleet.Caller, name string) error {
	_, err := f.did("RemoveCluster", by, fleet.ClusterSpec{Name: name})
	return err
}

func (f managed) TestCluster(_ context.Context, by fleet.Caller, spec fleet.ClusterSpec) (fleet.ClusterTest, error) {
	f.wd.note("TestCluster %s %q %d by %s", spec.Name, spec.Context, len(spec.Kubeconfig.Reveal()), by.Name)
	if strings.Contains(spec.Kubeconfig.Reveal(), "exec") {
		return fleet.ClusterTest{}, fleet.Invalid("kubeconfig", "runs a program")
	}
	return fleet.ClusterTest{Outcome: fleet.TestOK, Version: "v1.37.0", Warnings: []string{fleet.WarnClusterAdmin}, Permissions: []fleet.TestedRight{
		{Verb: "list", Resource: "nodes", Needed: true, Allowed: true}, {Verb: "*", Group: "*", Resource: "*", Allowed: true},
	}}, nil
}

type people struct{ wd *world }

func (wd *world) note(format string, args ...any) {
	wd.mu.Lock()
	defer wd.mu.Unlock()
	wd.calls = append(wd.calls, fmt.Sprintf(format, args...))
}

func (f people) Users(context.Context) ([]fleet.User, error) {
	return []fleet.User{{ID: "u1", Name: "ada", Role: fleet.RoleAdmin, Grants: f.wd.grants}}, nil
}

func (f people) AddUser(_ context.Context, _ fleet.Caller, name string, role fleet.Role, _ string) error {
	f.wd.note("AddUser %s %s", name, role)
	return f.wd.people
}

func (f people) InviteUser(_ context.Context, _ fleet.Caller, name string, role fleet.Role) (fleet.Invitation, error) {
	f.wd.note("InviteUser %s %s", name, role)
	return fleet.Invitation{Name: name, Code: "invitation-code", ExpiresAt: time.Now().Add(time.Hour)}, f.wd.people
}

func (f people) Reinvite(_ context.Context, _ fleet.Caller, name string) (fleet.Invitation, error) {
	f.wd.note("Reinvite %s", name)
	return fleet.Invitation{Name: name, Code: "invitation-code", ExpiresAt: time.Now().Add(time.Hour)}, f.wd.people
}

func (f people) SecondFactor(context.Context, fleet.Caller) (fleet.FactorState, error) {
	return f.wd.factor, nil
}

func (f people) ChangePassword(_ context.Context, by fleet.Caller, current, password string) error {
	f.wd.note("ChangePassword %s %s %s", by.Name, current, password)
	return nil
}

func (f people) BeginFactor(_ context.Context, by fleet.Caller, password string) (fleet.Enrolment, error) {
	f.wd.note("BeginFactor %s %s", by.Name, password)
	return fleet.Enrolment{Secret: "SECRETTEXT", URI: "otpauth://totp/x", Picture: "M4 4h7v1h-7z", Size: 45}, f.wd.people
}

func (f people) ConfirmFactor(_ context.Context, by fleet.Caller, code string) ([]string, error) {
	f.wd.note("ConfirmFactor %s %s", by.Name, code)
	return []string{"AAAA-BBBB-CCCC-DDDD"}, f.wd.people
}

func (f people) DropFactor(_ context.Context, by fleet.Caller, code string) error {
	f.wd.note("DropFactor %s %s", by.Name, code)
	return f.wd.people
}

func (f people) Unblock(_ context.Context, _ fleet.Caller, name string) error {
	f.wd.note("Unblock %s", name)
	return f.wd.people
}

func (f people) ResetFactor(_ context.Context, _ fleet.Caller, name string) error {
	f.wd.note("ResetFactor %s", name)
	return f.wd.people
}

func (f people) SetDisabled(_ context.Context, _ fleet.Caller, name string, disabled bool) error {
	f.wd.note("SetDisabled %s %t", name, disabled)
	return f.wd.people
}

func (f people) SetRole(_ context.Context, _ fleet.Caller, name string, role fleet.Role) error {
	f.wd.note("SetRole %s %s", name, role)
	return f.wd.people
}

func (f people) SetGrants(_ context.Context, _ fleet.Caller, name string, list []fleet.Grant) error {
	f.wd.note("SetGrants %s %v", name, list)
	return f.wd.people
}

func (f people) AddGrant(_ context.Context, _ fleet.Caller, name string, g fleet.Grant) error {
	f.wd.note("AddGrant %s %s", name, g)
	return f.wd.people
}

func (f people) DropGrant(_ context.Context, _ fleet.Caller, name string, scope fleet.Scope) error {
	f.wd.note("DropGrant %s %s", name, scope)
	return f.wd.people
}

func (f people) Me(_ context.Context, by fleet.Caller) (fleet.User, error) {
	return fleet.User{ID: by.UserID, Name: by.Name, Role: by.Role, Grants: f.wd.grants}, nil
}

func (f people) SetPassword(_ context.Context, _ fleet.Caller, name, _ string) error {
	f.wd.note("SetPassword %s", name)
	return f.wd.people
}

func (f people) Sessions(_ context.Context, by fleet.Caller) ([]fleet.Session, error) {
	return []fleet.Session{{Hash: "h1", Current: true, Addr: by.Addr}}, nil
}

func (f people) EndSession(_ context.Context, _ fleet.Caller, hash string) error {
	f.wd.note("EndSession %s", hash)
	return f.wd.people
}

func (f people) Tokens(context.Context, fleet.Caller) ([]fleet.Token, error) {
	return []fleet.Token{{ID: "t1", Name: "ci"}}, nil
}

func (f people) AddToken(_ context.Context, _ fleet.Caller, want fleet.Token) (string, fleet.Token, error) {
	f.wd.note("%s", strings.TrimRight(fmt.Sprintf("AddToken %s %s %s %s", want.Name, want.ExpiresAt.UTC().Format(time.DateOnly), want.Role, want.Scope), " "))
	want.ID = "t2"
	return "knm_fresh_secret", want, f.wd.people
}

func (f people) EndToken(_ context.Context, _ fleet.Caller, id string) error {
	f.wd.note("EndToken %s", id)
	return f.wd.people
}

type record struct{ wd *world }

func (f record) Entries(_ context.Context, flt fleet.AuditFilter) ([]fleet.Entry, error) {
	return f.wd.entries[:min(len(f.wd.entries), flt.Limit)], nil
}

func (f record) Export(_ context.Context, by fleet.Caller, what string, _ fleet.AuditFilter, each func([]fleet.Entry) error) error {
	f.wd.mu.Lock()
	f.wd.exports = append(f.wd.exports, by.Name+": "+what)
	f.wd.mu.Unlock()
	if len(f.wd.entries) == 0 {
		return nil
	}
	return each(f.wd.entries)
}

func (f record) Denied(_ context.Context, by fleet.Caller, action, detail string) {
	f.wd.mu.Lock()
	defer f.wd.mu.Unlock()
	f.wd.denied = append(f.wd.denied, by.Name+": "+action+": "+detail)
}

func (wd *world) config(logs io.Writer) Config {
	return Config{
		Nodes: wd, Clusters: steering{wd}, Managed: managed{wd}, Streams: streams{wd}, Batches: batches{wd}, Templates: templates{wd}, Auth: authority{wd}, People: people{wd}, Audit: record{wd},
		Ready:   func(context.Context) error { return wd.ready },
		Logger:  slog.New(slog.NewJSONHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: prometheus.NewRegistry(), Version: "test",
	}
}

// site is a handler with the world behind it.
type site struct {
	*world
	t    *testing.T
	h    http.Handler
	logs *safeBuffer
}

type safeBuffer struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newSite(t *testing.T, change ...func(*Config)) *site {
	t.Helper()
	wd, logs := newWorld(), &safeBuffer{}
	cfg := wd.config(logs)
	for _, c := range change {
		c(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &site{world: wd, t: t, h: h, logs: logs}
}

// call is one request. Who is the role of the session's person, "" for nobody.
type call struct {
	method, path string
	who          string
	body         string
	header       map[string]string
}

const formType = "application/x-www-form-urlencoded"

func (s *site) do(c call) *httptest.ResponseRecorder {
	s.t.Helper()
	if c.method == "" {
		c.method = http.MethodGet
	}
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	r := httptest.NewRequestWithContext(s.t.Context(), c.method, "http://knm.test"+c.path, body)
	if c.who != "" {
		r.AddCookie(&http.Cookie{Name: "knm", Value: c.who})
	}
	if c.method != http.MethodGet && c.method != http.MethodHead {
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		if c.body != "" {
			r.Header.Set("Content-Type", formType)
		}
	}
	for k, v := range c.header {
		if v == "" {
			r.Header.Del(k)
			continue
		}
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	s.h.ServeHTTP(w, r)
	return w
}

var (
	html = map[string]string{"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
	hx   = map[string]string{"Accept": "text/html, text/event-stream", "HX-Request": "true", "HX-Request-Type": "partial"}
	curl = map[string]string{"Accept": "*/*"}
)

func with(base map[string]string, kv ...string) map[string]string {
	m := map[string]string{}
	maps.Copy(m, base)
	for i := 0; i+1 < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

func formBody(kv ...string) string {
	v := url.Values{}
	for i := 0; i+1 < len(kv); i += 2 {
		v.Add(kv[i], kv[i+1])
	}
	return v.Encode()
}

func problemOf(t *testing.T, w *httptest.ResponseRecorder) problemJSON {
	t.Helper()
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Fatalf("Content-Type = %q, status %d, body %s", got, w.Code, w.Body)
	}
	var p problemJSON
	dec := json.NewDecoder(w.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		t.Fatal(err)
	}
	if p.Status != w.Code || p.Title == "" || !strings.HasPrefix(p.Type, "urn:kube-node-manager:problem:") || p.RequestID != w.Header().Get("X-Request-Id") || p.RequestID == "" {
		t.Errorf("malformed problem %+v with status %d", p, w.Code)
	}
	return p
}

func document(t *testing.T, w *httptest.ResponseRecorder) *goquery.Document {
	t.Helper()
	if got := w.Header().Get("Content-Type"); got != "text/html; charset=utf-8" {
		t.Fatalf("Content-Type = %q, status %d, body %s", got, w.Code, w.Body)
	}
	d, err := goquery.NewDocumentFromReader(strings.NewReader(w.Body.String()))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (wd *world) end(who string) {
	wd.mu.Lock()
	defer wd.mu.Unlock()
	wd.ended = map[string]bool{who: true}
}

func (wd *world) called(want string) bool {
	wd.mu.Lock()
	defer wd.mu.Unlock()
	return slices.Contains(wd.calls, want)
}

func (wd *world) lastStream(t *testing.T) any {
	t.Helper()
	wd.mu.Lock()
	defer wd.mu.Unlock()
	if len(wd.streams) == 0 {
		t.Fatal("no stream was asked for")
	}
	return wd.streams[len(wd.streams)-1]
}
