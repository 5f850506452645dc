package batch_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/batch"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// T42: a drain for which nobody said otherwise stops when one node after the other fails, and says so. Failures with a
// success between them do not stop it, and neither does it with a limit that somebody chose.
func TestEngine_DrainStopsAfterAStreak(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		fails []int
		most  int
		begun int
	}{
		{"three in a row", []int{2, 3, 4, 5}, 0, 5},
		{"two, a success, two", []int{1, 2, 4, 5}, 0, 10},
		{"all from the start", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 0, 3},
		{"five are allowed", []int{0, 1, 2, 3, 5, 6}, 5, 6},
		{"all are allowed", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, batch.MaxNodes, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				world := newDrains(1, time.Second)
				e := f.engine(func(c *batch.Config) {
					c.Doer = &failing{drains: world, fail: func(ref fleet.NodeRef) bool {
						return slices.ContainsFunc(tt.fails, func(n int) bool { return ref.Name == fmt.Sprint("n", n) })
					}}
				})
				f.run(e)
				s := drainSpec(1, names(10)...)
				s.Order, s.MaxFailures = fleet.OrderGiven, tt.most
				b, _ := f.wait(f.submit(e, s))
				if got := len(world.begun()); got != tt.begun {
					t.Errorf("%d nodes were begun, want %d", got, tt.begun)
				}
				if stopped := b.Counts.Cancelled > 0; stopped != strings.HasPrefix(b.Note, "stopped after ") || stopped && tt.most == 0 && !strings.Contains(b.Note, "3 failed nodes in a row") {
					t.Errorf("%+v says %q", b.Counts, b.Note)
				}
			})
		})
	}
}
