package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// ends is the stack of what has to be undone. It is used by one goroutine at a time: New, then Run.
type ends struct {
	stack []end
}

type end struct {
	name string
	fn   func(context.Context) error
}

// push adds an end, which runs before those that were pushed before it.
func (e *ends) push(name string, fn func(context.Context) error) {
	e.stack = append(e.stack, end{name, fn})
}

// run empties the stack. One failure does not keep the others from running; all are in the error, each by its name.
func (e *ends) run(ctx context.Context) error {
	var errs []error
	for _, x := range slices.Backward(e.stack) {
		if err := x.fn(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", x.name, err))
		}
	}
	e.stack = nil
	return errors.Join(errs...)
}

// errEnded is the failure of something that was to run until it was told to stop.
var errEnded = errors.New("ended by itself")

// group runs things that last as long as the program. The first one that ends by itself is a failure of the whole.
type group struct {
	base   context.Context // values of the program's context, but not its end
	failed chan error      // capacity 1: the first failure counts
	once   sync.Once       // guards the one send
}

func newGroup(ctx context.Context) *group {
	return &group{base: context.WithoutCancel(ctx), failed: make(chan error, 1)}
}

func (g *group) fail(err error) { g.once.Do(func() { g.failed <- err }) }

// start runs fn in a goroutine of its own and pushes its end: cancel, then wait.
func (g *group) start(e *ends, name string, fn func(context.Context) error) {
	ctx, cancel := context.WithCancel(g.base)
	done := make(chan error, 1)
	go func() {
		err := fn(ctx)
		if ctx.Err() == nil {
			if err == nil {
				err = errEnded
			}
			g.fail(fmt.Errorf("%s: %w", name, err))
			err = nil // told
		}
		done <- err
	}()
	e.push("stopping "+name, func(bound context.Context) error {
		cancel()
		select {
		case err := <-done:
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		case <-bound.Done():
			return fmt.Errorf("still running: %w", context.Cause(bound))
		}
	})
}
