package drain

import (
	"context"
	"sync"
	"time"
)

// Gate holds back the evictions of one cluster, over all drains that share it: so many at a time, and one for each
// disruption budget (DR-35). It starts no goroutines.
type Gate struct {
	slots chan struct{}

	mu    sync.Mutex // guards held and until
	held  map[string]chan struct{}
	until time.Time // the server asked for quiet
}

// DefaultInFlight is how many evictions a cluster gets at a time.
const DefaultInFlight = 20

// NewGate returns a gate that lets n evictions through at a time; 0 means DefaultInFlight.
func NewGate(n int) *Gate {
	if n <= 0 {
		n = DefaultInFlight
	}
	return &Gate{slots: make(chan struct{}, n), held: map[string]chan struct{}{}}
}

// enter waits until an eviction under the given budgets may be sent. Whoever comes in must leave.
func (g *Gate) enter(ctx context.Context, budgets []string) (leave func(), err error) {
	for {
		busy, wait, mine := g.claim(budgets)
		switch {
		case mine != nil:
			select {
			case g.slots <- struct{}{}:
				return func() { <-g.slots; g.release(budgets, mine) }, nil
			case <-ctx.Done():
				g.release(budgets, mine)
				return nil, ctx.Err()
			}
		case busy != nil:
			select {
			case <-busy:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		default:
			if err := pause(ctx, wait); err != nil {
				return nil, err
			}
		}
	}
}

// claim takes all the budgets or none: then it says who has one, or how long to wait.
func (g *Gate) claim(budgets []string) (busy chan struct{}, wait time.Duration, mine chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if wait := time.Until(g.until); wait > 0 {
		return nil, wait, nil
	}
	for _, b := range budgets {
		if other := g.held[b]; other != nil {
			return other, 0, nil
		}
	}
	mine = make(chan struct{})
	for _, b := range budgets {
		g.held[b] = mine
	}
	return nil, 0, mine
}

func (g *Gate) release(budgets []string, mine chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range budgets {
		delete(g.held, b)
	}
	close(mine)
}

// quiet lets nobody in for a while.
func (g *Gate) quiet(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if until := time.Now().Add(d); until.After(g.until) {
		g.until = until
	}
}

// pause waits, or ends with the context.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
