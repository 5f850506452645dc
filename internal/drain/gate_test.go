package drain

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestGate_Limits: never more inside than the limit, and one for each budget, whoever asks for which.
func TestGate_Limits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(4)
		var (
			mu          sync.Mutex // guards the next three
			inside, top int
			under       = map[string]int{}
			wg          sync.WaitGroup
		)
		for i := range 60 {
			budgets := []string{fmt.Sprintf("ns/%d", i%7)}
			if i%5 == 0 {
				budgets = append(budgets, fmt.Sprintf("ns/%d", (i+1)%7))
			}
			wg.Go(func() {
				leave, err := g.enter(t.Context(), budgets)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				inside++
				top = max(top, inside)
				for _, b := range budgets {
					if under[b]++; under[b] > 1 {
						t.Errorf("%d under %s", under[b], b)
					}
				}
				mu.Unlock()
				<-time.After(time.Second)
				mu.Lock()
				inside--
				for _, b := range budgets {
					under[b]--
				}
				mu.Unlock()
				leave()
			})
		}
		wg.Wait()
		if top != 4 {
			t.Errorf("%d were inside at most, want 4", top)
		}
	})
}

// TestGate_Throttled: after the server had too much to do nobody comes in for as long as it says, then half as many for
// half a minute, then all.
func TestGate_Throttled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(4)
		// room is how many come in at this moment; all of them leave again.
		room := func() int {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			n := 0
			for {
				leave, err := g.enter(ctx, nil)
				if err != nil {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
					return n
				}
				defer leave()
				n++
			}
		}
		at := time.Now()
		step := func(after time.Duration, want int) {
			<-time.After(time.Until(at.Add(after)))
			if got := room(); got != want {
				t.Errorf("after %s there was room for %d, want %d", after, got, want)
			}
		}
		step(0, 4)
		at = time.Now()
		g.throttled(2 * time.Second)
		step(time.Second, 0)
		step(2*time.Second, 2)
		step(29*time.Second, 2)
		step(30*time.Second, 4)
	})
}
