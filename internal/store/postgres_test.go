package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/faultproxy"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

// asChild makes this test binary another process, which plays one of the children.
const (
	asChild  = "KNM_STORE_TEST_CHILD"
	childURL = "KNM_STORE_TEST_URL"
)

var children = map[string]func(url string) error{
	"opens": func(url string) error {
		s, err := store.Open(context.Background(), store.Config{URL: url})
		if err != nil {
			return err
		}
		return s.Close()
	},
	// holds begins to write and never ends.
	"holds": func(url string) error {
		s, err := store.Open(context.Background(), store.Config{URL: url})
		if err != nil {
			return err
		}
		return s.Tx(context.Background(), func(tx *store.Tx) error {
			if _, err := tx.AppendEntry(fleet.Entry{Action: "lost"}); err != nil {
				return err
			}
			fmt.Println("holding")
			_, err := io.Copy(io.Discard, os.Stdin)
			return err
		})
	},
	// appends writes from many goroutines, and says what it was told is written.
	"appends": func(place string) error {
		cfg := store.Config{URL: place, Timeout: patience}
		if filepath.IsAbs(place) {
			cfg = store.Config{Dir: place, Timeout: patience}
		}
		s, err := store.Open(context.Background(), cfg)
		if err != nil {
			return err
		}
		var out sync.Mutex // guards the lines
		errs := make(chan error)
		for w := range 10 {
			go func() {
				for i := 0; ; i++ {
					id := fmt.Sprintf("%d-%d", w, i)
					if _, err := s.AppendEntry(context.Background(), fleet.Entry{Action: "x", Detail: id}); err != nil {
						errs <- err
						return
					}
					out.Lock()
					fmt.Println(id)
					out.Unlock()
				}
			}()
		}
		return <-errs
	},
	// closes has a call in flight to a server that has become silent, and must leave nothing behind.
	"closes": func(url string) error {
		s, err := store.Open(context.Background(), store.Config{URL: url})
		if err != nil {
			return err
		}
		if err := s.Ping(context.Background()); err != nil {
			return err
		}
		fmt.Println("open")
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
			return err
		}
		if err := s.Ping(context.Background()); !errors.Is(err, fleet.ErrUnavailable) {
			return fmt.Errorf("of a silent server: %w", err)
		}
		return errors.Join(s.Close(), goleak.Find())
	},
}

// process is a child with its way in and out.
type process struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err strings.Builder
}

func start(t *testing.T, role, url string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0])}
	p.Env = []string{asChild + "=" + role, childURL + "=" + url}
	p.Stderr = &p.err
	in, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil { // the test did not come to its end
			_, _ = p.Process.Kill(), p.Wait()
		}
	})
	return p
}

// says waits for a line of the child.
func (p *process) says(t *testing.T, want string) {
	t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != want {
		t.Fatalf("the child says %q, %v, want %q\n%s", line, err, want, p.err.String())
	}
}

// kill is kill -9.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err == nil {
		t.Fatal("the child ended well before it was killed")
	}
}

// patience is for what has no deadline of its own, on a busy machine.
const patience = time.Minute

// eventually asks until it is told yes.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !ask() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func batchOf(id string, nodes ...string) fleet.BatchDraft {
	d := fleet.BatchDraft{Batch: fleet.Batch{ID: id, Operation: fleet.Operation{Action: fleet.ActionCordon}, CreatedAt: time.Now()}}
	for i, n := range nodes {
		d.Items = append(d.Items, fleet.Item{Seq: i, Ref: fleet.NodeRef{Cluster: "prod", Name: n}})
	}
	return d
}

// Two replicas: when the lease of the first has run out the second takes the batch over, and nothing that the first does
// after that has an effect.
func TestPostgres_WhoLostTheLeaseChangesNothing(t *testing.T) {
	t.Parallel()
	cfg, ctx := store.Config{URL: storetest.Postgres(t).Database(t), Timeout: patience}, t.Context()
	a, b := open(t, cfg), open(t, cfg)
	if _, err := a.CreateBatch(ctx, batchOf("b1", "n1", "n2", "n3")); err != nil {
		t.Fatal(err)
	}
	old, _, err := a.AcquireBatch(ctx, "b1", "a", 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := a.StartBatch(ctx, old); err != nil {
		t.Fatal(err)
	}
	if err := a.ClaimItem(ctx, old, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the batch waits for an owner", func() bool {
		ids, err := b.RunnableBatches(ctx, "", 10)
		return err == nil && len(ids) == 1
	})
	now, _, err := b.AcquireBatch(ctx, "b1", "b", time.Hour)
	if err != nil || now.Epoch <= old.Epoch {
		t.Fatalf("taking over: %+v, %v", now, err)
	}
	dump := func() (fleet.Batch, []fleet.Item, int64) {
		t.Helper()
		batch, items, err := b.Batch(ctx, "b1", 0)
		if err != nil {
			t.Fatal(err)
		}
		seq, _, err := b.EntriesHead(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return batch, items, seq
	}
	batch, items, seq := dump()
	_, renewed := a.RenewBatch(ctx, old, time.Hour)
	_, _, _, started := a.StartBatch(ctx, old)
	_, _, acquired := a.AcquireBatch(ctx, "b1", "a", time.Hour)
	for doing, err := range map[string]error{
		"RenewBatch": renewed, "StartBatch": started, "AcquireBatch": acquired,
		"ClaimItem":      a.ClaimItem(ctx, old, 1),
		"FinishItem":     a.FinishItem(ctx, old, fleet.Item{Seq: 0, State: fleet.ItemSucceeded}),
		"InterruptBatch": a.InterruptBatch(ctx, old, "x", time.Second),
		"EndBatch":       a.EndBatch(ctx, old, fleet.BatchEnd{Stopped: true}),
		"ReleaseBatch":   a.ReleaseBatch(ctx, old),
	} {
		if !errors.Is(err, fleet.ErrLeaseLost) {
			t.Errorf("%s of the old owner: %v, want ErrLeaseLost", doing, err)
		}
	}
	batchAfter, itemsAfter, seqAfter := dump()
	if diff := cmp.Diff(batch, batchAfter) + cmp.Diff(items, itemsAfter); diff != "" || seq != seqAfter {
		t.Errorf("the old owner wrote (entries %d → %d):\n%s", seq, seqAfter, diff)
	}
	if err := b.FinishItem(ctx, now, fleet.Item{Seq: 0, State: fleet.ItemSucceeded}); err != nil {
		t.Errorf("the owner: %v", err)
	}
}

// A replica whose own clock is a quarter of a century slow takes a lease like any other: the clock of the database counts.
func TestPostgres_LeasesGoByTheDatabasesClock(t *testing.T) {
	t.Parallel()
	cfg, ctx := store.Config{URL: storetest.Postgres(t).Database(t), Timeout: patience}, t.Context()
	b := open(t, cfg)
	if _, err := b.CreateBatch(ctx, batchOf("b1", "n1")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateBatch(ctx, batchOf("b2", "n2")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateBatch(ctx, batchOf("b3", "n3")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.AcquireBatch(ctx, "b3", "b", 0); err != nil { // has run out as soon as it begins
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) { // in which it is the year 2000
		if time.Now().Year() > 2001 {
			t.Fatal("this proves nothing")
		}
		a, err := store.Open(context.Background(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		l, _, err := a.AcquireBatch(context.Background(), "b1", "a", time.Hour)
		if err != nil {
			t.Error(err)
		}
		if l.Idle > time.Hour {
			t.Errorf("a new batch was left alone for %s", l.Idle)
		}
		if ids, err := a.RunnableBatches(context.Background(), "", 10); err != nil || !slices.Contains(ids, "b3") {
			t.Errorf("%v wait for an owner, %v: b3 is not seen", ids, err)
		}
		if l, _, err = a.AcquireBatch(context.Background(), "b2", "a", time.Minute); err == nil {
			_, err = a.RenewBatch(context.Background(), l, time.Hour)
		}
		if err := errors.Join(err, a.Close()); err != nil {
			t.Error(err)
		}
	})
	for _, id := range []string{"b1", "b2"} {
		if _, _, err := b.AcquireBatch(ctx, id, "b", time.Hour); !errors.Is(err, fleet.ErrLeaseLost) {
			t.Errorf("%s: a lease of an hour was taken at once: %v", id, err)
		}
	}
	if ids, err := b.RunnableBatches(ctx, "", 10); err != nil || !slices.Equal(ids, []string{"b3"}) {
		t.Errorf("%v wait for an owner, want b3, %v", ids, err)
	}
}

// Two replicas write 500 entries each, at once: one unbroken chain.
func TestPostgres_TwoWritersOneChain(t *testing.T) {
	t.Parallel()
	const writers, each = 4, 250
	cfg := store.Config{URL: storetest.Postgres(t).Database(t), Timeout: patience}
	stores := []*store.Store{open(t, cfg), open(t, cfg)}
	start := time.Now()
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() {
			for n := range each {
				_, err := stores[i%2].AppendEntry(t.Context(), fleet.Entry{Actor: fmt.Sprint("w", i), Action: "x", Detail: fmt.Sprint(n)})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	t.Logf("%.0f entries a second", writers*each/time.Since(start).Seconds())
	n, err := audit.New(stores[1], slog.New(slog.DiscardHandler)).Verify(t.Context())
	if err != nil || n != writers*each {
		t.Errorf("%d entries, %v", n, err)
	}
}

// The server crashes and comes back while the store is in use. Meanwhile everything is refused as unavailable and in
// time; afterwards it goes on by itself, and what was said to be written is there.
func TestPostgres_CrashAndRecovery(t *testing.T) {
	t.Parallel()
	server := storetest.OwnPostgres(t)
	s := open(t, store.Config{URL: server.Database(t), Timeout: 2 * time.Second})
	var written, failed atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for ctx.Err() == nil {
				switch _, err := s.AppendEntry(context.WithoutCancel(ctx), fleet.Entry{Action: "x"}); {
				case err == nil:
					written.Add(1)
				case errors.Is(err, fleet.ErrUnavailable):
					failed.Add(1)
				default:
					t.Errorf("writing: %v", err)
				}
				if _, err := s.HasUsers(context.WithoutCancel(ctx)); err != nil && !errors.Is(err, fleet.ErrUnavailable) {
					t.Errorf("reading: %v", err)
				}
			}
		})
	}
	defer func() { stop(); all.Wait() }()
	eventually(t, "entries are written", func() bool { return written.Load() > 20 })
	server.Crash(t)
	eventually(t, "writing is refused", func() bool { return failed.Load() > 3 })
	if err := s.Ping(t.Context()); !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("Ping: %v", err)
	}
	if _, _, err := s.Batch(t.Context(), "b1", 0); !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("Batch: %v", err)
	}
	before := written.Load()
	server.Start(t)
	eventually(t, "entries are written again", func() bool { return written.Load() > before+20 })
	stop()
	all.Wait()
	n, err := audit.New(s, slog.New(slog.DiscardHandler)).Verify(t.Context())
	if err != nil || int64(n) < written.Load() {
		t.Errorf("%d entries in the record, %d were acknowledged, %v", n, written.Load(), err)
	}
}

// An operator ends our session in the middle of a transaction: it is refused as unavailable, and the next one works.
func TestPostgres_SessionIsTerminated(t *testing.T) {
	t.Parallel()
	server := storetest.Postgres(t)
	s := open(t, store.Config{URL: server.Database(t), Timeout: patience})
	admin := storetest.SQL(t, server.URL("postgres"))
	err := s.Tx(t.Context(), func(tx *store.Tx) error {
		var pid int
		if err := tx.Get(&pid, `SELECT pg_backend_pid()`); err != nil {
			return err
		}
		if _, err := admin.ExecContext(t.Context(), `SELECT pg_terminate_backend($1)`, pid); err != nil {
			return err
		}
		eventually(t, "the session is gone", func() bool {
			var n int
			err := admin.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM pg_stat_activity WHERE pid = $1`, pid).Scan(&n)
			return err == nil && n == 0
		})
		_, err := tx.AppendEntry(fleet.Entry{Action: "x"})
		return err
	})
	if !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if e, err := s.AppendEntry(t.Context(), fleet.Entry{Action: "y"}); err != nil || e.Seq != 1 {
		t.Errorf("afterwards: %+v, %v", e, err)
	}
}

// A network that swallows everything: calls end at their deadline, and go on when it is back.
func TestPostgres_SilentNetwork(t *testing.T) {
	t.Parallel()
	server := storetest.Postgres(t)
	proxy := faultproxy.NewTCP(t, server.Addr(), 1)
	address := server.TCP(server.Database(t), proxy.Addr(), storetest.Password, "sslmode=require")
	s := open(t, store.Config{URL: address, Timeout: 500 * time.Millisecond})
	eventually(t, "it works", func() bool { return s.Ping(t.Context()) == nil })
	proxy.Set(t, faultproxy.Paused)
	if _, err := s.AppendEntry(t.Context(), fleet.Entry{}); !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("writing: %v", err)
	}
	if err := s.Ping(t.Context()); !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("reading: %v", err)
	}
	proxy.Set(t, faultproxy.Fault{})
	eventually(t, "it works again", func() bool {
		_, err := s.AppendEntry(t.Context(), fleet.Entry{})
		return err == nil && s.Ping(t.Context()) == nil
	})
}

// A replica that freezes in the middle of a transaction keeps the others from writing for no longer than its transaction
// might have taken.
func TestPostgres_FrozenReplicaDoesNotKeepTheLock(t *testing.T) {
	t.Parallel()
	address := storetest.Postgres(t).Database(t)
	other := open(t, store.Config{URL: address, Timeout: patience})
	frozen := start(t, "holds", address)
	frozen.says(t, "holding")
	if err := frozen.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := other.AppendEntry(t.Context(), fleet.Entry{Action: "other"}); err != nil {
		t.Errorf("the other replica: %v", err)
	}
	frozen.kill(t)
	list, err := other.EntriesAfter(t.Context(), 0, 10)
	if err != nil || len(list) != 1 || list[0].Action != "other" {
		t.Errorf("%+v, %v", list, err)
	}
}

// A store that is closed while the server is silent leaves no connection and no goroutine behind.
func TestPostgres_ClosesWhileTheServerIsSilent(t *testing.T) {
	t.Parallel()
	server := storetest.Postgres(t)
	proxy := faultproxy.NewTCP(t, server.Addr(), 2)
	c := start(t, "closes", server.TCP(server.Database(t), proxy.Addr(), storetest.Password, "sslmode=require"))
	c.says(t, "open")
	proxy.Set(t, faultproxy.Paused)
	if err := c.in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("%v\n%s", err, c.err.String())
	}
}

// A process is killed in the middle of an upgrade. What it had begun is not there, and the next one goes on.
func TestPostgres_KilledInTheMiddleOfAnUpgrade(t *testing.T) {
	t.Parallel()
	address := storetest.Postgres(t).Empty(t, "")
	db := storetest.SQL(t, address)
	// The third step makes batches, then batch_items: it stops there for as long as somebody else is about to make that.
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), `CREATE TABLE batch_items (x INT)`); err != nil {
		t.Fatal(err)
	}
	c := start(t, "opens", address)
	const blocked = `SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`
	count := func(query string) (n int) {
		t.Helper()
		if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "the child is in the middle of it", func() bool { return count(blocked) > 0 })
	c.kill(t)
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its sessions are gone", func() bool {
		return count(`SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'kube-node-manager'`) == 0
	})
	if n := count(`SELECT MAX(version_id) FROM goose_db_version`); n != 2 {
		t.Errorf("the version is %d, want 2", n)
	}
	if n := count(`SELECT COUNT(*) FROM pg_tables WHERE tablename LIKE 'batch%'`); n != 0 {
		t.Errorf("%d tables of the third step are there", n)
	}
	s := open(t, store.Config{URL: address})
	if _, err := s.CreateBatch(t.Context(), batchOf("b1", "n1")); err != nil {
		t.Error(err)
	}
}

// The address decides about TLS, and no error repeats its password.
func TestPostgres_Address(t *testing.T) {
	t.Parallel()
	server := storetest.Postgres(t)
	db := server.Database(t)
	other := filepath.Join(t.TempDir(), "no.pem")
	good := "sslmode=verify-full&sslrootcert=" + url.QueryEscape(server.CA())
	for _, tt := range []struct {
		name, url string
		kind      error // nil: it works
	}{
		{"verified", server.TCP(db, server.Addr(), storetest.Password, good), nil},
		{"unknown certificate", server.TCP(db, server.Addr(), storetest.Password, "sslmode=verify-full"), fleet.ErrUnavailable},
		{"wrong password", server.TCP(db, server.Addr(), "swordfish", good), fleet.ErrUnavailable},
		{"no such database", server.TCP("/nowhere", server.Addr(), storetest.Password, good), fleet.ErrUnavailable},
		{"no server", server.TCP(db, "127.0.0.1:1", storetest.Password, ""), fleet.ErrUnavailable},
		{"no certificate", server.TCP(db, server.Addr(), storetest.Password, "sslmode=verify-full&sslrootcert="+url.QueryEscape(other)), os.ErrNotExist},
		{"unescaped", "postgres://knm:" + storetest.Password + "/%@" + server.Addr() + "/x", fleet.ErrInvalid},
		{"no port", "postgres://knm:" + storetest.Password + "@h:" + storetest.Password + "/x", fleet.ErrInvalid},
		{"sslmode", server.TCP(db, server.Addr(), storetest.Password, "sslmode=perhaps"), fleet.ErrInvalid},
	} {
		s, err := store.Open(t.Context(), store.Config{URL: tt.url})
		if err == nil {
			var encrypted bool
			err = errors.Join(s.Tx(t.Context(), func(tx *store.Tx) error {
				return tx.Get(&encrypted, `SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`)
			}), s.Close())
			if !encrypted {
				t.Errorf("%s: it is not encrypted", tt.name)
			}
		}
		if !errors.Is(err, tt.kind) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.kind)
		}
		if err != nil && (strings.Contains(err.Error(), storetest.Password) || strings.Contains(err.Error(), "swordfish")) {
			t.Errorf("%s: the error shows the password: %v", tt.name, err)
		}
	}
}

// A database whose encoding cannot keep every text is refused before anything is written to it.
func TestPostgres_RefusesOtherEncodings(t *testing.T) {
	t.Parallel()
	latin := storetest.Postgres(t).Empty(t, `ENCODING 'LATIN1' TEMPLATE template0`)
	if _, err := store.Open(t.Context(), store.Config{URL: latin}); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}
