package nodeops

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// A drain that outlives a renewal lets go of the Lease that the renewal left, and looks at it only when nobody writes it
// any more: the race detector is the judge of that.
func TestNodeLease_FreedAfterRenewals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		o := &Ops{cfg: Config{LeaseNamespace: "ops", Installation: "here"}, log: slog.New(slog.DiscardHandler)}
		item := fleet.Item{Ref: fleet.NodeRef{Cluster: "prod", Name: "n1"}, UID: "u1"}
		_, lost := context.WithCancelCause(t.Context())
		l := o.newLease(work{via: kube.Clients{Own: client, Acts: client}, batch: "b1", item: item}, lost)
		if err := l.take(t.Context(), observeFor); err != nil {
			t.Fatal(err)
		}
		l.keep(t.Context())
		time.Sleep(2*renewEvery + time.Second) // of the bubble
		renewals := 0
		for _, a := range client.Actions() {
			if a.GetVerb() == "update" {
				renewals++
			}
		}
		l.free(t.Context())
		left, err := client.CoordinationV1().Leases("ops").List(t.Context(), metav1.ListOptions{})
		if err != nil || len(left.Items) != 0 || renewals != 2 {
			t.Errorf("%d renewals, want 2; left %v, %v", renewals, left, err)
		}
	})
}
