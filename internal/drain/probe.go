package drain

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// MaxProbes bounds the dry-run evictions of one plan.
const MaxProbes = 200

// ProbeResult is what the API server says to the eviction of a pod without doing it: budgets, permissions and those
// admission webhooks that take part in dry runs.
type ProbeResult struct {
	Allowed bool   `json:"allowed"`
	HTTP    int    `json:"http,omitempty"` // 0: no answer
	Message string `json:"message,omitempty"`
}

// Probe asks the API server about the first MaxProbes pods that the plan evicts, writes the answers into the plan, and
// returns how many it asked about (PV-14). Nothing is evicted, and no budget is touched (DR-32). Answers do not add up:
// each sees the budget as if it were alone. The error is that of ctx.
func Probe(ctx context.Context, ops kubernetes.Interface, plan *Plan) (int, error) {
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, atOnce)
		asked int
	)
	for i := range plan.Nodes {
		for j := range plan.Nodes[i].Pods {
			p := &plan.Nodes[i].Pods[j]
			if p.Verdict != Evict || asked == MaxProbes || ctx.Err() != nil {
				continue
			}
			asked++
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)}}
				a := interpret(post(ctx, ops, pod, nil, true))
				p.Probe = &ProbeResult{Allowed: a.meaning == meansAccepted, HTTP: a.http, Message: a.message}
			})
		}
	}
	wg.Wait()
	return asked, ctx.Err()
}
