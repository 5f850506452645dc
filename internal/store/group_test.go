package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

// note writes one entry.
func note(tx *store.Tx, text string) error {
	_, err := tx.AppendEntry(fleet.Entry{Action: "x", Detail: text})
	return err
}

// notes are what the transaction sees, in order.
func notes(tx *store.Tx) (got []string, err error) {
	err = tx.Select(&got, `SELECT detail FROM audit ORDER BY seq`)
	return got, err
}

// recorded is what everybody sees.
func recorded(t *testing.T, s *store.Store) (got []string) {
	t.Helper()
	all, err := s.EntriesAfter(t.Context(), 0, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		got = append(got, e.Detail)
	}
	return got
}

// unbroken checks the chain of the record.
func unbroken(t *testing.T, s *store.Store) {
	t.Helper()
	if _, err := audit.New(s, slog.New(slog.DiscardHandler)).Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// lineup makes calls that share a transaction, in their order: all of them wait for one that is not theirs.
type lineup struct {
	t     *testing.T
	s     *store.Store
	calls []func(tx *store.Tx) error
	ends  []end
}

// end is how a call came out.
type end struct {
	err      error
	panicked any
	returned bool
}

func (l *lineup) add(fn func(tx *store.Tx) error) { l.calls = append(l.calls, fn) }

// run starts everything and waits for it.
func (l *lineup) run() {
	l.t.Helper()
	ctx := context.WithoutCancel(l.t.Context())
	l.ends = make([]end, len(l.calls))
	held, goOn := make(chan struct{}), make(chan struct{})
	aside := errors.New("nothing of this is kept")
	var all sync.WaitGroup
	all.Go(func() {
		if err := l.s.Tx(ctx, func(*store.Tx) error { close(held); <-goOn; return aside }); !errors.Is(err, aside) {
			l.t.Error(err)
		}
	})
	<-held
	for i, fn := range l.calls {
		all.Go(func() {
			defer func() { l.ends[i].panicked = recover() }()
			l.ends[i].err = l.s.Tx(ctx, fn)
			l.ends[i].returned = true
		})
		eventually(l.t, "the call waits", func() bool { return store.Waiting(l.s) == i+1 })
	}
	close(goOn)
	all.Wait()
}

// patient is a store whose calls have time enough on any machine, and which counts what it commits.
func patient(t *testing.T, cfg store.Config) (s *store.Store, commits func() []int) {
	t.Helper()
	var mu sync.Mutex
	var sizes []int
	cfg.Timeout = patience
	cfg.Committed = func(n int) {
		mu.Lock()
		defer mu.Unlock()
		sizes = append(sizes, n)
	}
	s = open(t, cfg)
	mu.Lock()
	sizes = nil // opening writes too
	mu.Unlock()
	return s, func() []int {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(sizes)
	}
}

// Calls that wait together share a transaction: the second sees what the first wrote while nobody else does, and the
// first has not returned yet.
func TestTx_WhoWaitsSharesTheTransaction(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) {
		s, commits := patient(t, fresh(t))
		l := &lineup{t: t, s: s}
		l.add(func(tx *store.Tx) error { return note(tx, "a") })
		l.add(func(tx *store.Tx) error {
			inside, err := notes(tx)
			if err != nil {
				return err
			}
			if outside := recorded(t, s); len(commits()) == 0 && (!slices.Equal(inside, []string{"a"}) || len(outside) > 0) {
				t.Errorf("inside %q, outside %q", inside, outside)
			}
			return note(tx, "b")
		})
		l.run()
		if err := errors.Join(l.ends[0].err, l.ends[1].err); err != nil {
			t.Error(err)
		}
		t.Logf("committed as %v", commits()) // on a machine that took a pause in between, one by one
		if got := recorded(t, s); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("record: %q", got)
		}
		unbroken(t, s)
	})
}

// However a call fails, what it wrote is undone and nothing else, and only the one whose it is learns why.
func TestTx_WhoFailsFailsAlone(t *testing.T) {
	t.Parallel()
	boom, odd := errors.New("boom"), errors.New("odd")
	good := func(name string) func(tx *store.Tx) error {
		return func(tx *store.Tx) error { return note(tx, name) }
	}
	bad := map[string]func(tx *store.Tx) error{
		"error": func(tx *store.Tx) error { return errors.Join(note(tx, "error"), boom) },
		"panic": func(tx *store.Tx) error {
			if err := note(tx, "panic"); err != nil {
				return err
			}
			panic(odd)
		},
		"exit": func(tx *store.Tx) error {
			if err := note(tx, "exit"); err != nil {
				return err
			}
			runtime.Goexit()
			return nil
		},
		"conflict": func(tx *store.Tx) error {
			if err := note(tx, "conflict"); err != nil {
				return err
			}
			_, err := tx.Exec(`INSERT INTO meta (name, value) VALUES ('installation', 'another')`)
			return err
		},
		// PostgreSQL refuses everything after it and SQLite does not; here it is the same.
		"swallowed": func(tx *store.Tx) error {
			_, _ = tx.Exec(`INSERT INTO meta (name, value) VALUES ('installation', 'another')`)
			_ = note(tx, "swallowed")
			return nil
		},
	}
	check := func(t *testing.T, name string, got end) {
		t.Helper()
		ok := got.returned
		switch name {
		case "error":
			ok = ok && errors.Is(got.err, boom)
		case "panic":
			ok = !got.returned && got.panicked == any(odd)
		case "exit":
			ok = !got.returned && got.panicked == nil
		case "conflict", "swallowed":
			ok = ok && errors.Is(got.err, fleet.ErrConflict)
		default:
			ok = ok && got.err == nil
		}
		if !ok {
			t.Errorf("%s came out as %+v", name, got)
		}
	}
	both(t, func(t *testing.T, fresh place) {
		for _, order := range [][]string{
			{"a", "error", "b", "panic", "c", "exit", "d", "conflict", "e", "swallowed", "f"},
			{"error", "a", "conflict", "panic", "b"},
			{"panic", "a"},
			{"exit", "exit", "a"},
			{"conflict", "a"},
			{"swallowed", "swallowed", "a"},
			{"error", "panic", "exit", "conflict", "swallowed"},
		} {
			t.Run(strings.Join(order, " "), func(t *testing.T) {
				t.Parallel()
				s, _ := patient(t, fresh(t))
				l := &lineup{t: t, s: s}
				var want []string
				for _, name := range order {
					fn := bad[name]
					if fn == nil {
						fn = good(name)
						want = append(want, name)
					}
					l.add(fn)
				}
				l.run()
				for i, name := range order {
					check(t, name, l.ends[i])
				}
				if diff := cmp.Diff(want, recorded(t, s)); diff != "" {
					t.Errorf("the record (-want +got):\n%s", diff)
				}
				unbroken(t, s)
				if err := s.Tx(t.Context(), good("after")); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			})
		}
	})
}

// When the transaction cannot be committed, nobody is told that something was written: also not the one whose function
// failed, who may have failed for what another one wrote.
func TestTx_ACommitThatFailsFailsForAll(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	both(t, func(t *testing.T, fresh place) {
		cfg := fresh(t)
		s, commits := patient(t, cfg)
		l := &lineup{t: t, s: s}
		l.add(func(tx *store.Tx) error { return note(tx, "a") })
		l.add(func(tx *store.Tx) error { return errors.Join(note(tx, "b"), boom) })
		l.add(func(tx *store.Tx) error {
			if cfg.URL == "" { // a row that refers to none is refused at the end
				if _, err := tx.Exec(`PRAGMA defer_foreign_keys = 1`); err != nil {
					return err
				}
				_, err := tx.Exec(`INSERT INTO batch_holds (cluster, node, batch_id) VALUES ('c', 'n', 'none')`)
				return err
			}
			var pid int
			if err := tx.Get(&pid, `SELECT pg_backend_pid()`); err != nil {
				return err
			}
			_, err := storetest.SQL(t, cfg.URL).ExecContext(t.Context(), `SELECT pg_terminate_backend($1, 60000)`, pid)
			return err
		})
		l.run()
		together := len(commits()) == 0 // and not taken apart by a machine that took a pause
		for i, e := range l.ends {
			switch {
			case i == 2 || together:
				if e.err == nil || errors.Is(e.err, boom) {
					t.Errorf("call %d: %v", i, e.err)
				}
			case i == 0 && e.err != nil, i == 1 && e.err == nil:
				t.Errorf("call %d, which was committed before: %v", i, e.err)
			}
		}
		if got := recorded(t, s); together && len(got) > 0 {
			t.Errorf("record: %q", got)
		}
		if err := s.Tx(t.Context(), func(tx *store.Tx) error { return note(tx, "after") }); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		unbroken(t, s)
	})
}

// However many calls wait, a transaction is for so many only: nobody works for the others for ever.
func TestTx_GroupsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // in which no time passes
		s, commits := patient(t, store.Config{Dir: t.TempDir()})
		l := &lineup{t: t, s: s}
		const n = 2*store.GroupMost + 7
		for i := range n {
			l.add(func(tx *store.Tx) error { return note(tx, fmt.Sprint(i)) })
		}
		l.run()
		if got, want := commits(), []int{store.GroupMost, store.GroupMost, 7}; !slices.Equal(got, want) {
			t.Errorf("%d calls were committed as %v, want %v", n, got, want)
		}
		for i, got := range recorded(t, s) {
			if got != fmt.Sprint(i) {
				t.Fatalf("call %s is number %d: they do not come in the order of asking", got, i)
			}
		}
		unbroken(t, s)
	})
}

// The first call's function has run and another one's takes long. A cancelled call waits for what becomes of it; one
// whose time is up says that it does not know.
func TestTx_ContextEndsAfterTheFunctionBegan(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		end  func(ctx context.Context) (context.Context, context.CancelFunc)
		late bool
	}{
		{"cancelled", context.WithCancel, false},
		{"deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, _ := patient(t, store.Config{Dir: t.TempDir()})
				ctx, cancel := tt.end(context.WithoutCancel(t.Context()))
				defer cancel()
				began, goOn, inside, finish := make(chan bool), make(chan bool), make(chan bool), make(chan bool)
				first, second := make(chan error, 1), make(chan error, 1)
				go func() {
					first <- s.Tx(ctx, func(tx *store.Tx) error {
						close(began)
						<-goOn
						return note(tx, "a")
					})
				}()
				<-began
				go func() {
					second <- s.Tx(context.WithoutCancel(t.Context()), func(tx *store.Tx) error {
						close(inside)
						<-finish
						return note(tx, "b")
					})
				}()
				synctest.Wait()
				close(goOn)
				<-inside
				if !tt.late {
					cancel()
					synctest.Wait()
					select {
					case err := <-first:
						t.Errorf("returned before it was committed: %v", err)
					default:
					}
					close(finish)
					if err := errors.Join(<-first, <-second); err != nil {
						t.Error(err)
					}
				} else {
					if err := <-first; !errors.Is(err, fleet.ErrUnavailable) {
						t.Errorf("got %v", err)
					}
					close(finish)
					if err := <-second; err != nil {
						t.Error(err)
					}
				}
				if got := recorded(t, s); !slices.Equal(got, []string{"a", "b"}) {
					t.Errorf("record: %q", got)
				}
			})
		})
	}
}

// Who leaves the queue writes nothing and holds up nobody, also at the moment when the turn comes.
func TestTx_LeavingTheQueue(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) {
		s, _ := patient(t, fresh(t))
		ctx := context.WithoutCancel(t.Context())
		for range 20 {
			began, goOn := make(chan struct{}), make(chan struct{})
			var all sync.WaitGroup
			all.Go(func() {
				if err := s.Tx(ctx, func(*store.Tx) error { close(began); <-goOn; return nil }); err != nil {
					t.Error(err)
				}
			})
			<-began
			leaving, leave := context.WithCancel(ctx)
			var ran atomic.Bool
			all.Go(func() {
				err := s.Tx(leaving, func(*store.Tx) error { ran.Store(true); return nil })
				if (err == nil) != ran.Load() || err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("the function ran: %v, and the call said: %v", ran.Load(), err)
				}
			})
			eventually(t, "the call waits", func() bool { return store.Waiting(s) == 1 })
			all.Go(func() { close(goOn) })
			leave()
			all.Go(func() {
				if err := s.Tx(ctx, func(*store.Tx) error { return nil }); err != nil {
					t.Error(err)
				}
			})
			all.Wait()
		}
	})
}

// Many calls of two replicas that succeed, fail, panic and are cancelled: what was said to be written is there once, and
// nothing else is.
func TestTx_MixedStress(t *testing.T) {
	t.Parallel()
	const workers, each = 12, 40
	both(t, func(t *testing.T, fresh place) {
		cfg := fresh(t)
		one, _ := patient(t, cfg)
		two, _ := patient(t, cfg)
		var mu sync.Mutex // guards wrote
		wrote := map[string]bool{}
		boom := errors.New("boom")
		call := func(s *store.Store, id string, rnd *rand.Rand) (err error) {
			ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
			defer cancel()
			var helper sync.WaitGroup
			defer helper.Wait()
			how := rnd.IntN(6)
			if how == 5 {
				helper.Go(cancel)
			}
			defer func() {
				if p := recover(); p != nil {
					err = p.(error) //nolint:forcetypeassert // ours
				}
			}()
			return s.Tx(ctx, func(tx *store.Tx) error {
				var before, after int
				if err := tx.Get(&before, `SELECT COUNT(*) FROM audit`); err != nil {
					return err
				}
				if err := note(tx, id); err != nil {
					return err
				}
				if how == 1 {
					panic(boom)
				}
				if how == 2 {
					_, err := tx.Exec(`INSERT INTO meta (name, value) VALUES ('installation', 'another')`)
					return err
				}
				if err := tx.Get(&after, `SELECT COUNT(*) FROM audit`); err != nil {
					return err
				}
				if after != before+1 {
					t.Errorf("%s: %d entries became %d", id, before, after)
				}
				if how == 3 {
					return boom
				}
				return nil
			})
		}
		var all sync.WaitGroup
		for w := range workers {
			all.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(w), 7))
				for i := range each {
					id := fmt.Sprintf("%d-%d", w, i)
					err := call([]*store.Store{one, two}[w%2], id, rnd)
					switch {
					case err == nil:
						mu.Lock()
						wrote[id] = true
						mu.Unlock()
					case errors.Is(err, boom), errors.Is(err, fleet.ErrConflict), errors.Is(err, context.Canceled):
					default:
						t.Errorf("%s: %v", id, err)
					}
				}
			})
		}
		all.Wait()
		got := recorded(t, one)
		for _, id := range got {
			if !wrote[id] {
				t.Errorf("%s is there twice, or was said not to be", id)
			}
			delete(wrote, id)
		}
		if len(got) == 0 || len(wrote) > 0 {
			t.Errorf("%d entries; lost: %v", len(got), wrote)
		}
		unbroken(t, two)
	})
}

// What was acknowledged survives a kill -9 in the middle of shared transactions.
func TestTx_AcknowledgedSurvivesAKill(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) {
		cfg := fresh(t)
		child := start(t, "appends", cfg.URL+cfg.Dir)
		var said []string
		for range 300 {
			line, err := child.out.ReadString('\n')
			if err != nil {
				t.Fatalf("%v\n%s", err, child.err.String())
			}
			said = append(said, strings.TrimSpace(line))
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for { // what it said while it was killed
			line, err := child.out.ReadString('\n')
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				break // a line without its end was not said
			}
			said = append(said, strings.TrimSpace(line))
		}
		if err := child.Wait(); err == nil {
			t.Fatal("the child ended well before it was killed")
		}
		s, _ := patient(t, cfg)
		got := recorded(t, s)
		for _, id := range said {
			if n := len(slices.DeleteFunc(slices.Clone(got), func(x string) bool { return x != id })); n != 1 {
				t.Errorf("%s was acknowledged and is there %d times", id, n)
			}
		}
		unbroken(t, s)
		t.Logf("%d acknowledged, %d there", len(said), len(got))
	})
}
