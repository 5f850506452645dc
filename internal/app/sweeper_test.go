package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// attic is a sweepStore in memory.
type attic struct {
	mu      sync.Mutex // guards everything
	turn    time.Time
	batches []oldBatch
	calls   []string
	fails   string // the call that fails
}

type oldBatch struct {
	id   string
	end  time.Time
	rows int64
}

var errAttic = errors.New("broken")

// call is made with the lock held.
func (a *attic) call(format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	a.calls = append(a.calls, what)
	if a.fails != "" && strings.HasPrefix(what, a.fails) {
		return errAttic
	}
	return nil
}

func (a *attic) TakeTurn(_ context.Context, _ string, every time.Duration) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fails == "turn" {
		return false, errAttic
	}
	if !a.turn.IsZero() && time.Since(a.turn) < every {
		return false, nil
	}
	a.turn = time.Now()
	return true, nil
}

func (a *attic) OldBatch(_ context.Context, age time.Duration, told bool) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.batches {
		if time.Since(b.end) > age && (!told || b.rows > 0) {
			return b.id, nil
		}
	}
	return "", fleet.ErrNotFound
}

func (a *attic) PruneEvents(_ context.Context, id string, most int) (int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.call("events %s", id); err != nil {
		return 0, err
	}
	i := slices.IndexFunc(a.batches, func(b oldBatch) bool { return b.id == id })
	n := min(int64(most), a.batches[i].rows)
	a.batches[i].rows -= n
	return n, nil
}

func (a *attic) PruneBatch(_ context.Context, id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.call("batch %s", id); err != nil {
		return err
	}
	a.batches = slices.DeleteFunc(a.batches, func(b oldBatch) bool { return b.id == id })
	return nil
}

// set changes something while a sweeper runs.
func (a *attic) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

func (a *attic) left() (out []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.batches {
		out = append(out, fmt.Sprintf("%s:%d", b.id, b.rows))
	}
	return out
}

func filled() *attic {
	ago := func(days int) time.Time { return time.Now().Add(-time.Duration(days) * 24 * time.Hour) }
	return &attic{batches: []oldBatch{{"b100", ago(100), 2 * sweepRows}, {"b40", ago(40), 3}, {"b35", ago(35), 0}, {"b2", ago(2), 7}}}
}

const day = 24 * time.Hour

func TestSweeper_RemovesWhatIsDue(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name            string
		batches, events time.Duration
		want            []string
	}{
		{"both", 90 * day, 30 * day, []string{"b40:0", "b35:0", "b2:7"}},
		{"batches only", 90 * day, 0, []string{"b40:3", "b35:0", "b2:7"}},
		{"events only", 0, 30 * day, []string{"b100:0", "b40:0", "b35:0", "b2:7"}},
		{"nothing", 0, 0, []string{"b100:400", "b40:3", "b35:0", "b2:7"}},
		{"events are kept longer", 10 * day, 99 * day, []string{"b2:7"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := filled()
			x := sweeper{store: a, batches: tt.batches, events: tt.events, logger: slog.New(slog.DiscardHandler)}
			if err := x.sweep(t.Context()); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(tt.want, a.left()); diff != "" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
		})
	}
}

// It sweeps at once and every hour, unless another replica did; what could not be done is done next time.
func TestSweeper_Runs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := filled()
		a.fails = "batch"
		var log bytes.Buffer
		x := sweeper{store: a, batches: 90 * day, events: 30 * day, logger: slog.New(slog.NewTextHandler(&log, nil))}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- x.run(ctx) }()
		synctest.Wait()
		if diff := cmp.Diff([]string{"b100:0", "b40:0", "b35:0", "b2:7"}, a.left()); diff != "" {
			t.Errorf("at once (-want +got):\n%s", diff)
		}
		if got := log.String(); strings.Count(got, "level=WARN") != 1 || !strings.Contains(got, "broken") {
			t.Errorf("the log says %q", got)
		}
		a.set(func() { a.fails = "" })
		time.Sleep(sweepEvery + time.Second)
		synctest.Wait()
		if diff := cmp.Diff([]string{"b40:0", "b35:0", "b2:7"}, a.left()); diff != "" {
			t.Errorf("an hour later (-want +got):\n%s", diff)
		}
		var before int
		a.set(func() {
			a.batches[0].rows = 5
			before = len(a.calls)
		})
		time.Sleep(sweepEvery - 2*time.Minute)
		a.set(func() { a.turn = time.Now() }) // another replica's
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		a.set(func() {
			if len(a.calls) != before {
				t.Errorf("it was another's turn, and it did %q", a.calls[before:])
			}
		})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A batch that does not go is no reason to ask for it for ever.
func TestSweeper_GivesUpOnWhatStays(t *testing.T) {
	t.Parallel()
	a := filled()
	x := sweeper{store: stubborn{a}, batches: 90 * day, logger: slog.New(slog.DiscardHandler)}
	if err := x.sweep(t.Context()); err == nil {
		t.Error("no error")
	}
}

type stubborn struct{ *attic }

func (stubborn) PruneBatch(context.Context, string) error { return nil }

var _ sweepStore = (*store.Store)(nil)
