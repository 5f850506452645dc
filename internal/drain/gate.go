package drain

import (
	"context"
	"sync"
	"time"
)

// Gate holds back the evictions of one cluster, over all drains that share it: so many at a time, and one for each
// disruption budget (DR-35). For a while after the API server has had too much to do it lets through half as many. It
// starts no goroutines.
type Gate struct {
	limit int

	mu     sync.Mutex // guards the rest
	inside int
	left   chan struct{} // closed when somebody leaves
	held   map[string]chan struct{}
	until  time.Time // the server asked for quiet
	slow   time.Time // until when there is room for half
}

const (
	// DefaultInFlight is how many evictions a cluster gets at a time.
	DefaultInFlight = 20
	// slowFor is how long a gate goes slow.
	slowFor = 30 * time.Second
)

// NewGate returns a gate that lets n evictions through at a time; 0 means DefaultInFlight.
func NewGate(n int) *Gate {
	if n <= 0 {
		n = DefaultInFlight
	}
	return &Gate{limit: n, left: make(chan struct{}), held: map[string]chan struct{}{}}
}

// enter waits until an eviction under the given budgets may be sent. Whoever comes in must leave.
func (g *Gate) enter(ctx context.Context, budgets []string) (leave func(), err error) {
	for ctx.Err() == nil {
		busy, wait, mine := g.claim(budgets)
		switch {
		case mine != nil:
			return func() { g.release(budgets, mine) }, nil
		case busy != nil:
			select {
			case <-busy:
			case <-ctx.Done():
			}
		default:
			if err := pause(ctx, wait); err != nil {
				return nil, err
			}
		}
	}
	return nil, ctx.Err()
}

// claim takes a place and all the budgets, or nothing: then it says what has to happen first, or how long to wait.
func (g *Gate) claim(budgets []string) (busy chan struct{}, wait time.Duration, mine chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if wait := g.until.Sub(now); wait > 0 {
		return nil, wait, nil
	}
	for _, b := range budgets {
		if other := g.held[b]; other != nil {
			return other, 0, nil
		}
	}
	room := g.limit
	if now.Before(g.slow) {
		room = max(1, room/2)
	}
	if g.inside >= room {
		return g.left, 0, nil
	}
	g.inside++
	mine = make(chan struct{})
	for _, b := range budgets {
		g.held[b] = mine
	}
	return nil, 0, mine
}

func (g *Gate) release(budgets []string, mine chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	for _, b := range budgets {
		delete(g.held, b)
	}
	close(mine)
	close(g.left)
	g.left = make(chan struct{})
}

// throttled lets nobody in for as long as the server asks, and then half as many for a while.
func (g *Gate) throttled(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if until := now.Add(d); until.After(g.until) {
		g.until = until
	}
	g.slow = g.until
	if later := now.Add(slowFor); later.After(g.slow) {
		g.slow = later
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
