package drain

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// What holds for every drain of this suite, whatever its test is about: each bench checks it when its test ends.

// meter watches the evictions of a bench on their way.
type meter struct {
	mu         sync.Mutex // guards the rest
	announced  map[string]bool
	pods       map[string]fleet.DrainEvent // by namespace and name: the last that said it is being evicted
	namespaces map[string]bool
	total      int
	most       int
	nodes      map[string]int
	budgets    map[string]int
	wrong      []string
	frozen     bool // nobody works budgets out
	unasked    bool // the API server asks no budget about these pods
}

func newMeter() *meter {
	return &meter{
		announced: map[string]bool{}, pods: map[string]fleet.DrainEvent{}, namespaces: map[string]bool{},
		nodes: map[string]int{}, budgets: map[string]int{},
	}
}

// event takes in what a drain says.
func (m *meter) event(e fleet.DrainEvent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.Pod == nil {
		return
	}
	m.namespaces[e.Pod.Namespace] = true
	if e.Pod.State == fleet.PodEvicting {
		m.announced[e.Pod.UID] = true
		m.pods[e.Pod.Namespace+"/"+e.Pod.Name] = e
	}
}

// wrap counts what is under way: ten evictions of a node, twenty of a cluster, one under a budget.
func (m *meter) wrap(rt http.RoundTripper) http.RoundTripper {
	return roundTrip{rt, func(r *http.Request) (*http.Response, error) {
		path := strings.Split(r.URL.Path, "/")
		if path[len(path)-1] != "eviction" || dryRun(r) {
			return rt.RoundTrip(r)
		}
		leave := m.enter(path[4] + "/" + path[6])
		defer leave()
		resp, err := rt.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		// It is under way until its answer is read, which is short.
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return resp, nil
	}}
}

// roundTrip is a transport around another.
type roundTrip struct {
	http.RoundTripper
	do func(*http.Request) (*http.Response, error)
}

func (t roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return t.do(r) }

// WrappedRoundTripper lets client-go find the transport below.
func (t roundTrip) WrappedRoundTripper() http.RoundTripper { return t.RoundTripper }

func dryRun(r *http.Request) bool {
	if r.GetBody == nil {
		return false
	}
	b, err := r.GetBody()
	if err != nil {
		return false
	}
	body, err := io.ReadAll(b)
	return err == nil && bytes.Contains(body, []byte("dryRun"))
}

func (m *meter) enter(pod string) (leave func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.pods[pod]
	m.total++
	m.most = max(m.most, m.total)
	m.nodes[e.Name]++
	if m.total > DefaultInFlight || m.nodes[e.Name] > inFlight {
		m.wrong = append(m.wrong, fmt.Sprintf("%d evictions under way, %d of them on %s", m.total, m.nodes[e.Name], e.Name))
	}
	namespace, _, _ := strings.Cut(pod, "/")
	var budgets []string
	if e.Pod != nil && !m.unasked {
		for _, b := range e.Pod.Budgets {
			key := namespace + "/" + b
			budgets = append(budgets, key)
			if m.budgets[key]++; m.budgets[key] > 1 {
				m.wrong = append(m.wrong, fmt.Sprintf("%d evictions under way under budget %s", m.budgets[key], key))
			}
		}
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.total--
		m.nodes[e.Name]--
		for _, key := range budgets {
			m.budgets[key]--
		}
	}
}

// witness compares with the audit log when all drains of the bench are over: each eviction and each deletion of a pod
// names a uid, and a drain had said that it evicts that one; no eviction named a uid that its pod had no more, for that
// would have cost a budget (case 9).
func (b *bench) witness() {
	b.t.Helper()
	b.meter.mu.Lock()
	defer b.meter.mu.Unlock()
	for _, w := range b.meter.wrong {
		b.t.Error(w)
	}
	for _, e := range b.c.AuditLog(b.t).Writes(b.mark, "pods", kubetest.ByAgent(b.agent)) {
		if e.DryRun() || len(e.Request) == 0 && e.Code == http.StatusTooManyRequests { // turned away unread
			continue
		}
		var body struct {
			metav1.DeleteOptions
			Nested *metav1.DeleteOptions `json:"deleteOptions"`
		}
		if err := json.Unmarshal(e.Request, &body); err != nil {
			b.t.Errorf("%s %s: %v", e.Verb, e.Path, err)
			continue
		}
		o := &body.DeleteOptions
		if e.Subresource == "eviction" {
			o = body.Nested
		}
		switch {
		case o == nil || o.Preconditions == nil || o.Preconditions.UID == nil:
			b.t.Errorf("%s %s names no uid: %s", e.Verb, e.Path, e.Request)
		case !b.meter.announced[string(*o.Preconditions.UID)]:
			b.t.Errorf("%s %s was not announced: %s", e.Verb, e.Path, e.Request)
		case e.Code == http.StatusConflict && strings.Contains(e.Message, "UID"):
			b.t.Errorf("%s %s was for another pod: %s", e.Verb, e.Path, e.Message)
		}
	}
}

// noStaleBudgets fails if a budget still counts an eviction of a pod that is there and not on its way out: that of
// another one of its name. The controller drops the others as soon as it sees their pods go; such a one stays for two
// minutes.
func (b *bench) noStaleBudgets() {
	b.t.Helper()
	b.meter.mu.Lock()
	namespaces, frozen := maps.Clone(b.meter.namespaces), b.meter.frozen
	b.meter.mu.Unlock()
	if frozen || b.t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.t.Context()), heldFor/2)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		stale, err := b.stale(ctx, namespaces)
		if err != nil {
			b.t.Errorf("looking at budgets: %v", err)
			return
		}
		if len(stale) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.t.Errorf("budgets count evictions that were of others: %v", stale)
			return
		}
	}
}

func (b *bench) stale(ctx context.Context, namespaces map[string]bool) ([]string, error) {
	var out []string
	for ns := range namespaces {
		budgets, err := b.c.Client().PolicyV1().PodDisruptionBudgets(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		counted := map[string]string{}
		for i := range budgets.Items {
			for pod := range budgets.Items[i].Status.DisruptedPods {
				counted[pod] = budgets.Items[i].Name
			}
		}
		if len(counted) == 0 {
			continue
		}
		pods, err := b.c.Client().CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		for i := range pods.Items {
			if p := &pods.Items[i]; p.DeletionTimestamp == nil && counted[p.Name] != "" {
				out = append(out, fmt.Sprintf("%s/%s: %s", ns, counted[p.Name], p.Name))
			}
		}
	}
	return out, nil
}
