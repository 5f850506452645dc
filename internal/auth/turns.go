package auth

import (
	"context"
	"sync"
)

// turns lets one sign-in per name go on at a time. An attempt counts as failed until it is over; without turns, a
// person who signs in with the right password from six programs at once would count as an attacker.
type turns struct {
	mu sync.Mutex // guards of
	of map[string]*turn
}

type turn struct {
	free    chan struct{} // holds one token while nobody has the turn
	holders int           // who have it or wait for it
}

// take waits for the turn of the name. How many can wait is bounded by the places of the hasher.
func (t *turns) take(ctx context.Context, name string) (next func(), err error) {
	t.mu.Lock()
	if t.of == nil {
		t.of = make(map[string]*turn)
	}
	one := t.of[name]
	if one == nil {
		one = &turn{free: make(chan struct{}, 1)}
		one.free <- struct{}{}
		t.of[name] = one
	}
	one.holders++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if one.holders--; one.holders == 0 {
			delete(t.of, name)
		}
	}
	select {
	case <-one.free:
		return func() { one.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
