package drain

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// MaxProbes bounds the dry-run evictions of one plan.
const MaxProbes = 200

// Probe asks the API server about the first MaxProbes pods that the plan evicts, writes the answers into the plan, and
// returns how many it asked about (PV-14). Nothing is evicted, and no budget is touched (DR-32). Answers do not add up:
// each sees the budget as if it were alone. The error is that of ctx.
func Probe(ctx context.Context, ops kubernetes.Interface, plan *fleet.ClusterPlan) (int, error) {
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, atOnce)
		asked int
	)
	for i := range plan.Nodes {
		for j := range plan.Nodes[i].Pods {
			p := &plan.Nodes[i].Pods[j]
			if p.Verdict != fleet.VerdictEvict || asked == MaxProbes || ctx.Err() != nil {
				continue
			}
			asked++
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)}}
				a := interpret(post(ctx, ops, pod, nil, true))
				p.Probe = &fleet.Probe{Allowed: a.meaning == meansAccepted, HTTP: a.http, Message: a.message}
			})
		}
	}
	wg.Wait()
	return asked, ctx.Err()
}
