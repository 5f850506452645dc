package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// BatchStore keeps batches and the record that is written with them.
type BatchStore interface {
	CreateBatch(ctx context.Context, d fleet.BatchDraft) (fleet.Batch, error)
	Batch(ctx context.Context, id string, after int64) (fleet.Batch, []fleet.Item, error)
	Batches(ctx context.Context, f fleet.BatchFilter) ([]fleet.Batch, error)
	CancelBatch(ctx context.Context, id, by string, e fleet.Entry) error
	RunnableBatches(ctx context.Context, holder string, limit int) ([]string, error)
	AcquireBatch(ctx context.Context, id, holder string, ttl time.Duration) (fleet.BatchLease, fleet.Batch, error)
	RenewBatch(ctx context.Context, l fleet.BatchLease, ttl time.Duration) (fleet.BatchSteer, error)
	ReleaseBatch(ctx context.Context, l fleet.BatchLease) error
	StartBatch(ctx context.Context, l fleet.BatchLease) (fleet.Batch, fleet.Caller, []fleet.Item, error)
	ClaimItem(ctx context.Context, l fleet.BatchLease, seq int) error
	FinishItem(ctx context.Context, l fleet.BatchLease, it fleet.Item) error
	EndBatch(ctx context.Context, l fleet.BatchLease, end fleet.BatchEnd) error
	InterruptBatch(ctx context.Context, l fleet.BatchLease, note string, retry time.Duration) error
	Entries(ctx context.Context, f fleet.AuditFilter) ([]fleet.Entry, error)
	SteerStore
}

// RunBatches checks that a store keeps batches as the engine needs it. Open returns an empty store for each test.
func RunBatches(t *testing.T, open func(t *testing.T) BatchStore) {
	for _, tt := range []struct {
		name string
		test func(t *testing.T, s BatchStore)
	}{
		{"CreateAndRead", createAndRead},
		{"CreateLarge", createLarge},
		{"IdempotencyKey", idempotencyKey},
		{"IdempotencyKeyRace", idempotencyKeyRace},
		{"Busy", busy},
		{"BusyRace", busyRace},
		{"StepsMoveTheVersionByOne", stepsMoveTheVersionByOne},
		{"StepsOfAnOldEpochChangeNothing", stepsOfAnOldEpochChangeNothing},
		{"LeaseIsExclusive", leaseIsExclusive},
		{"LeaseRace", leaseRace},
		{"ItemsGoOneWay", itemsGoOneWay},
		{"Cancel", cancel},
		{"End", end},
		{"Interrupt", interrupt},
		{"List", listBatches},
		{"Within", batchesWithin},
		{"Whole", whole},
		{"PlanTooLarge", planTooLarge},
		{"MadeAndFree", madeAndFree},
		{"Pause", pause},
		{"PauseRefused", pauseRefused},
		{"ResumeWhatWaits", resumeWhatWaits},
		{"Canary", canary},
		{"Skip", skip},
		{"Clean", clean},
		{"PausedInTheMiddle", pausedInTheMiddle},
		{"Note", note},
		{"Progress", progress},
		{"ProgressTwice", progressTwice},
		{"Events", events},
		{"EventsWhileTheyAreWritten", eventsWhileTheyAreWritten},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(t, open(t))
		})
	}
}

// ada is who the suite's batches belong to.
var ada = fleet.Caller{UserID: "u-ada", Name: "ada", Role: fleet.RoleOperator, Session: "s1", Via: "session", Addr: "192.0.2.1"}

// start is when the suite's batches were made, in what every store can keep.
var start = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// draft is a batch that cordons nodes of the cluster prod.
func draft(id string, nodes ...string) fleet.BatchDraft {
	d := fleet.BatchDraft{
		Batch: fleet.Batch{
			ID: id, Operation: fleet.Operation{Action: fleet.ActionCordon, Reason: "disk swap"}, State: fleet.BatchQueued,
			CreatedBy: ada.Name, CreatedByID: ada.UserID, CreatedAt: start,
			Rollout: fleet.Rollout{MaxConcurrent: 10, MaxFailures: 3, PauseBetween: 1500 * time.Millisecond},
		},
		By: ada, Digest: "d-" + id,
		Intent: fleet.Entry{Actor: ada.Name, Via: ada.Via, Action: "batch.create", Phase: "intent", Batch: id},
	}
	for i, n := range nodes {
		d.Items = append(d.Items, fleet.Item{
			Seq: i, Ref: fleet.NodeRef{Cluster: "prod", Name: n}, UID: "uid-" + n, State: fleet.ItemQueued,
		})
	}
	return d
}

func create(t *testing.T, s BatchStore, d fleet.BatchDraft) fleet.Batch {
	t.Helper()
	b, err := s.CreateBatch(t.Context(), d)
	if err != nil {
		t.Fatalf("CreateBatch(%s): %v", d.Batch.ID, err)
	}
	return b
}

func acquire(t *testing.T, s BatchStore, id, holder string, ttl time.Duration) fleet.BatchLease {
	t.Helper()
	l, b, err := s.AcquireBatch(t.Context(), id, holder, ttl)
	if err != nil {
		t.Fatalf("AcquireBatch(%s, %s): %v", id, holder, err)
	}
	if b.ID != id || l.Batch != id || l.Holder != holder || l.Epoch < 1 {
		t.Fatalf("AcquireBatch(%s, %s) = %+v, %+v", id, holder, l, b)
	}
	return l
}

func readB1(t *testing.T, s BatchStore) (fleet.Batch, []fleet.Item) {
	t.Helper()
	const id = "b1"
	b, items, err := s.Batch(t.Context(), id, 0)
	if err != nil {
		t.Fatalf("Batch(%s): %v", id, err)
	}
	return b, items
}

func must(t *testing.T, doing string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", doing, err)
	}
}

func runnable(t *testing.T, s BatchStore, holder string) []string {
	t.Helper()
	ids, err := s.RunnableBatches(t.Context(), holder, 100)
	must(t, "RunnableBatches", err)
	return ids
}

// entries counts what the record says of a batch.
func entries(t *testing.T, s BatchStore, batch, action string) (found []fleet.Entry) {
	t.Helper()
	all, err := s.Entries(t.Context(), fleet.AuditFilter{Action: action, Limit: 1000})
	must(t, "Entries", err)
	for _, e := range all {
		if e.Batch == batch {
			found = append(found, e)
		}
	}
	return found
}

func createAndRead(t *testing.T, s BatchStore) {
	d := draft("b1", "n1", "n2", "n3")
	d.Items[1].UID = ""
	got := create(t, s, d)

	want := d.Batch
	want.Version = 1
	want.Counts = fleet.Counts{Total: 3, Queued: 3}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("CreateBatch (-want +got):\n%s", diff)
	}
	b, items := readB1(t, s)
	if diff := cmp.Diff(want, b); diff != "" {
		t.Errorf("Batch (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(d.Items, items, cmpopts.IgnoreFields(fleet.Item{}, "Version")); diff != "" {
		t.Errorf("items (-want +got):\n%s", diff)
	}
	for _, it := range items {
		if it.Version != 1 {
			t.Errorf("item %d has version %d, want 1: a reader of version 0 must see it", it.Seq, it.Version)
		}
	}
	if n := len(entries(t, s, "b1", "batch.create")); n != 1 {
		t.Errorf("%d intents on record, want 1", n)
	}
	if _, _, err := s.Batch(t.Context(), "b2", 0); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("Batch of nothing: %v, want ErrNotFound", err)
	}
}

func createLarge(t *testing.T, s BatchStore) {
	nodes := make([]string, 5000)
	for i := range nodes {
		nodes[i] = fmt.Sprintf("n%04d", i)
	}
	b := create(t, s, draft("b1", nodes...))
	if b.Counts.Total != 5000 || b.Counts.Queued != 5000 {
		t.Errorf("counts are %+v", b.Counts)
	}
	_, items := readB1(t, s)
	for i, it := range items {
		if it.Seq != i || it.Ref.Name != nodes[i] {
			t.Fatalf("item %d is %+v: the order is not the one asked for", i, it)
		}
	}
	d := draft("b2", "other", nodes[4999])
	if _, err := s.CreateBatch(t.Context(), d); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("the last node is not held: %v", err)
	}
}

func idempotencyKey(t *testing.T, s BatchStore) {
	d := draft("b1", "n1")
	d.Key = "k"
	create(t, s, d)

	again := draft("b2", "n1")
	again.Key, again.Digest = "k", d.Digest
	if b := create(t, s, again); b.ID != "b1" {
		t.Errorf("the same request made %s, want b1", b.ID)
	}
	other := draft("b3", "n2")
	other.Key = "k"
	if _, err := s.CreateBatch(t.Context(), other); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("another request with the same key: %v, want ErrConflict", err)
	}
	bob := draft("b4", "n3")
	bob.Key, bob.By.UserID = "k", "u-bob"
	if b := create(t, s, bob); b.ID != "b4" {
		t.Errorf("another person's key made %s, want b4", b.ID)
	}
	for i := range 2 { // no key is no key, not an equal one
		create(t, s, draft(fmt.Sprintf("b1%d", i), fmt.Sprintf("n1%d", i)))
	}
	if n := len(entries(t, s, "b2", "batch.create")) + len(entries(t, s, "b3", "batch.create")); n != 0 {
		t.Errorf("%d intents for batches that were not made", n)
	}
}

func idempotencyKeyRace(t *testing.T, s BatchStore) {
	ids := make([]string, 12)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			d := draft(fmt.Sprintf("b%d", i), "n1", "n2")
			d.Key, d.Digest = "k", "same"
			b, err := s.CreateBatch(t.Context(), d)
			if err != nil {
				t.Errorf("CreateBatch: %v", err)
			}
			ids[i] = b.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("one key made several batches: %v", ids)
		}
	}
	if all, err := s.Batches(t.Context(), fleet.BatchFilter{}); err != nil || len(all) != 1 {
		t.Errorf("%d batches (%v), want 1", len(all), err)
	}
}

func busy(t *testing.T, s BatchStore) {
	create(t, s, draft("b1", "n1", "n2"))
	_, err := s.CreateBatch(t.Context(), draft("b2", "n0", "n2"))
	b, ok := errors.AsType[*fleet.BusyError](err)
	if !ok || b.Batch != "b1" || b.Node != (fleet.NodeRef{Cluster: "prod", Name: "n2"}) {
		t.Fatalf("CreateBatch = %v, want n2 busy with b1", err)
	}
	if _, _, err := s.Batch(t.Context(), "b2", 0); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("the refused batch is there: %v", err)
	}
	elsewhere := draft("b3", "n2")
	elsewhere.Items[0].Ref.Cluster = "staging"
	create(t, s, elsewhere) // the same name in another cluster is another node

	l := acquire(t, s, "b1", "a", time.Minute)
	must(t, "EndBatch", s.EndBatch(t.Context(), l, fleet.BatchEnd{Stopped: true}))
	create(t, s, draft("b2", "n0", "n2"))
}

func busyRace(t *testing.T, s BatchStore) {
	const n = 12
	var mu sync.Mutex
	var won []string
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			b, err := s.CreateBatch(t.Context(), draft(fmt.Sprintf("b%d", i), fmt.Sprintf("own%d", i), "shared"))
			if err == nil {
				mu.Lock()
				won = append(won, b.ID)
				mu.Unlock()
			} else if _, ok := errors.AsType[*fleet.BusyError](err); !ok {
				t.Errorf("CreateBatch = %v, want BusyError", err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%v hold the node, want one of them", won)
	}
}

func stepsMoveTheVersionByOne(t *testing.T, s BatchStore) {
	ctx := t.Context()
	create(t, s, draft("b1", "n1", "n2"))
	l := acquire(t, s, "b1", "a", time.Minute)
	version := int64(1)
	check := func(doing string, err error, changed ...int) {
		t.Helper()
		must(t, doing, err)
		b, items, err := s.Batch(ctx, "b1", version)
		must(t, "Batch", err)
		if b.Version != version+1 {
			t.Errorf("after %s the version is %d, want %d", doing, b.Version, version+1)
		}
		var seqs []int
		for _, it := range items {
			seqs = append(seqs, it.Seq)
			if it.Version != b.Version {
				t.Errorf("after %s item %d has version %d, want %d", doing, it.Seq, it.Version, b.Version)
			}
		}
		if diff := cmp.Diff(changed, seqs, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("after %s, items newer than %d (-want +got):\n%s", doing, version, diff)
		}
		version = b.Version
	}
	b, by, items, err := s.StartBatch(ctx, l)
	check("StartBatch", err)
	if b.State != fleet.BatchRunning || b.StartedAt.IsZero() || len(items) != 2 {
		t.Errorf("StartBatch = %+v, %d items", b, len(items))
	}
	if diff := cmp.Diff(ada, by); diff != "" {
		t.Errorf("the person behind the batch (-want +got):\n%s", diff)
	}
	check("ClaimItem", s.ClaimItem(ctx, l, 1), 1)
	_, items = readB1(t, s)
	if it := items[1]; it.State != fleet.ItemRunning || it.Attempt != 1 || it.StartedAt.IsZero() {
		t.Errorf("claimed item is %+v", it)
	}
	check("ClaimItem again", s.ClaimItem(ctx, l, 1), 1)
	it := items[1]
	it.State, it.Code, it.Error, it.Changed = fleet.ItemFailed, fleet.CodeNotFound, "there is no such node", true
	check("FinishItem", s.FinishItem(ctx, l, it), 1)
	_, items = readB1(t, s)
	got := items[1]
	if got.State != fleet.ItemFailed || got.Code != fleet.CodeNotFound || got.Error != it.Error || !got.Changed || got.EndedAt.IsZero() || got.Attempt != 2 {
		t.Errorf("finished item is %+v", got)
	}
	check("CancelBatch", s.CancelBatch(ctx, "b1", "bob", fleet.Entry{Action: "batch.cancel", Batch: "b1"}))
	check("EndBatch", s.EndBatch(ctx, l, fleet.BatchEnd{Stopped: true, Code: fleet.CodeCancelled}), 0)
}

func stepsOfAnOldEpochChangeNothing(t *testing.T, s BatchStore) {
	ctx := t.Context()
	create(t, s, draft("b1", "n1", "n2"))
	old := acquire(t, s, "b1", "a", 0) // has run out as soon as it begins
	if _, _, _, err := s.StartBatch(ctx, old); err != nil {
		t.Fatal(err)
	}
	must(t, "ClaimItem", s.ClaimItem(ctx, old, 0))
	now := acquire(t, s, "b1", "b", time.Minute)
	if now.Epoch <= old.Epoch {
		t.Fatalf("epoch went from %d to %d", old.Epoch, now.Epoch)
	}
	before, itemsBefore := readB1(t, s)
	sameHolder := fleet.BatchLease{Batch: "b1", Holder: "b", Epoch: old.Epoch}
	for _, l := range []fleet.BatchLease{old, sameHolder} {
		_, renewErr := s.RenewBatch(ctx, l, time.Minute)
		_, _, _, startErr := s.StartBatch(ctx, l)
		_, holdErr := s.HoldBatch(ctx, l, "x", "x", fleet.Entry{Action: "batch.pause", Batch: "b1"})
		for doing, err := range map[string]error{
			"RenewBatch":     renewErr,
			"StartBatch":     startErr,
			"HoldBatch":      holdErr,
			"NoteBatch":      s.NoteBatch(ctx, l, "x"),
			"RecordProgress": s.RecordProgress(ctx, l, told(0, 9, "late")),
			"ReleaseBatch":   s.ReleaseBatch(ctx, l),
			"ClaimItem":      s.ClaimItem(ctx, l, 1),
			"FinishItem":     s.FinishItem(ctx, l, fleet.Item{Seq: 0, State: fleet.ItemSucceeded}),
			"EndBatch":       s.EndBatch(ctx, l, fleet.BatchEnd{}),
			"InterruptBatch": s.InterruptBatch(ctx, l, "x", 0),
		} {
			if !errors.Is(err, fleet.ErrLeaseLost) {
				t.Errorf("%s with epoch %d of %s: %v, want ErrLeaseLost", doing, l.Epoch, l.Holder, err)
			}
		}
	}
	after, itemsAfter := readB1(t, s)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("batch changed (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(itemsBefore, itemsAfter); diff != "" {
		t.Errorf("items changed (-before +after):\n%s", diff)
	}
	if es, err := s.BatchEvents(ctx, "b1", 0, 0); err != nil || len(es) != 0 {
		t.Errorf("the old owner wrote %d events, %v", len(es), err)
	}
	must(t, "RecordProgress of the owner", s.RecordProgress(ctx, now, told(0, 1, "on time")))
	must(t, "FinishItem of the owner", s.FinishItem(ctx, now, fleet.Item{Seq: 0, State: fleet.ItemSucceeded}))
}

func leaseIsExclusive(t *testing.T, s BatchStore) {
	ctx := t.Context()
	create(t, s, draft("b1", "n1"))
	if diff := cmp.Diff([]string{"b1"}, runnable(t, s, "")); diff != "" {
		t.Errorf("a new batch waits for an owner (-want +got):\n%s", diff)
	}
	l := acquire(t, s, "b1", "a", time.Minute)
	if got := runnable(t, s, ""); len(got) != 0 {
		t.Errorf("%v wait for an owner although a has the lease", got)
	}
	if got := runnable(t, s, "b"); len(got) != 0 {
		t.Errorf("%v wait for b although a has the lease", got)
	}
	if diff := cmp.Diff([]string{"b1"}, runnable(t, s, "a")); diff != "" {
		t.Errorf("a finds its own lease again after a restart (-want +got):\n%s", diff)
	}
	if _, _, err := s.AcquireBatch(ctx, "b1", "b", time.Minute); !errors.Is(err, fleet.ErrLeaseLost) {
		t.Errorf("b takes a live lease: %v, want ErrLeaseLost", err)
	}
	again := acquire(t, s, "b1", "a", time.Minute)
	if again.Epoch != l.Epoch+1 {
		t.Errorf("epoch is %d after %d", again.Epoch, l.Epoch)
	}
	must(t, "ReleaseBatch", s.ReleaseBatch(ctx, again))
	acquire(t, s, "b1", "b", time.Minute)
	if _, _, err := s.AcquireBatch(ctx, "nothing", "b", time.Minute); !errors.Is(err, fleet.ErrLeaseLost) {
		t.Errorf("lease of nothing: %v, want ErrLeaseLost", err)
	}
}

func leaseRace(t *testing.T, s BatchStore) {
	create(t, s, draft("b1", "n1"))
	var mu sync.Mutex
	var won []string
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			l, _, err := s.AcquireBatch(t.Context(), "b1", fmt.Sprintf("h%d", i), time.Minute)
			switch {
			case err == nil:
				mu.Lock()
				won = append(won, l.Holder)
				mu.Unlock()
			case !errors.Is(err, fleet.ErrLeaseLost):
				t.Errorf("AcquireBatch: %v", err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%v have the lease, want one of them", won)
	}
}

func itemsGoOneWay(t *testing.T, s BatchStore) {
	ctx := t.Context()
	create(t, s, draft("b1", "n1", "n2"))
	l := acquire(t, s, "b1", "a", time.Minute)
	_, _, _, err := s.StartBatch(ctx, l)
	must(t, "StartBatch", err)
	done := fleet.Item{Seq: 0, State: fleet.ItemSucceeded}
	if err := s.FinishItem(ctx, l, done); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("finishing what was not claimed: %v, want ErrConflict", err)
	}
	must(t, "ClaimItem", s.ClaimItem(ctx, l, 0))
	if err := s.FinishItem(ctx, l, fleet.Item{Seq: 0, State: fleet.ItemQueued}); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("finishing as queued: %v, want ErrInvalid", err)
	}
	must(t, "FinishItem", s.FinishItem(ctx, l, done))
	before, _ := readB1(t, s)
	if err := s.FinishItem(ctx, l, fleet.Item{Seq: 0, State: fleet.ItemFailed}); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("finishing twice: %v, want ErrConflict", err)
	}
	if err := s.ClaimItem(ctx, l, 0); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("claiming what is finished: %v, want ErrConflict", err)
	}
	if err := s.ClaimItem(ctx, l, 7); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("claiming what is not there: %v, want ErrConflict", err)
	}
	after, _ := readB1(t, s)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("refused steps changed the batch (-before +after):\n%s", diff)
	}
}

func cancel(t *testing.T, s BatchStore) {
	ctx := t.Context()
	create(t, s, draft("b1", "n1", "n2"))
	create(t, s, draft("b0", "n3"))
	l := acquire(t, s, "b1", "a", time.Minute)
	_, _, _, err := s.StartBatch(ctx, l)
	must(t, "StartBatch", err)
	must(t, "ClaimItem", s.ClaimItem(ctx, l, 0))
	e := fleet.Entry{Actor: "bob", Action: "batch.cancel", Phase: "event", Batch: "b1"}
	must(t, "CancelBatch", s.CancelBatch(ctx, "b1", "bob", e))
	must(t, "CancelBatch again", s.CancelBatch(ctx, "b1", "carol", e))
	if b, _ := readB1(t, s); b.CancelledBy != "bob" {
		t.Errorf("cancelled by %q, want bob, who was first", b.CancelledBy)
	}
	if n := len(entries(t, s, "b1", "batch.cancel")); n != 1 {
		t.Errorf("%d cancellations on record, want 1", n)
	}
	if err := s.ClaimItem(ctx, l, 1); !errors.Is(err, fleet.ErrCancelled) {
		t.Errorf("ClaimItem after cancel: %v, want ErrCancelled", err)
	}
	if _, items := readB1(t, s); items[1].State != fleet.ItemQueued {
		t.Errorf("item is %s", items[1].State)
	}
	steer, err := s.RenewBatch(ctx, l, time.Minute)
	if err != nil || steer.CancelledBy != "bob" {
		t.Errorf("RenewBatch = %+v, %v: the owner does not hear of it", steer, err)
	}
	must(t, "FinishItem", s.FinishItem(ctx, l, fleet.Item{Seq: 0, State: fleet.ItemSucceeded}))
	must(t, "InterruptBatch", s.InterruptBatch(ctx, l, "x", 0))
	if diff := cmp.Diff([]string{"b1", "b0"}, runnable(t, s, "")); diff != "" {
		t.Errorf("a cancelled batch needs an owner even if interrupted, and comes first (-want +got):\n%s", diff)
	}
	l = acquire(t, s, "b1", "a", time.Minute)
	must(t, "EndBatch", s.EndBatch(ctx, l, fleet.BatchEnd{Stopped: true, Code: fleet.CodeCancelled, Error: "not started"}))
	b, items := readB1(t, s)
	if b.State != fleet.BatchDone || b.Outcome != fleet.OutcomeCancelled || b.Counts.Succeeded != 1 || b.Counts.Cancelled != 1 {
		t.Errorf("batch is %+v", b)
	}
	if it := items[1]; it.State != fleet.ItemCancelled || it.Code != fleet.CodeCancelled || it.Error != "not started" || it.EndedAt.IsZero() {
		t.Errorf("item is %+v", it)
	}
	must(t, "cancelling again what was cancelled", s.CancelBatch(ctx, "b1", "bob", e))

	l = acquire(t, s, "b0", "a", time.Minute)
	must(t, "EndBatch", s.EndBatch(ctx, l, fleet.BatchEnd{}))
	if err := s.CancelBatch(ctx, "b0", "bob", e); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("cancelling what is done: %v, want ErrConflict", err)
	}
	if err := s.CancelBatch(ctx, "nothing", "bob", e); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("cancelling nothing: %v, want ErrNotFound", err)
	}
}

func end(t *testing.T, s BatchStore) {
	ctx := t.Context()
	create(t, s, draft("b1", "n1", "n2", "n3"))
	l := acquire(t, s, "b1", "a", time.Minute)
	_, _, _, err := s.StartBatch(ctx, l)
	must(t, "StartBatch", err)
	for seq, state := range []fleet.ItemState{fleet.ItemSucceeded, fleet.ItemFailed} {
		must(t, "ClaimItem", s.ClaimItem(ctx, l, seq))
		must(t, "FinishItem", s.FinishItem(ctx, l, fleet.Item{Seq: seq, State: state}))
	}
	must(t, "ClaimItem", s.ClaimItem(ctx, l, 2))
	closing := fleet.BatchEnd{Note: "n", Entry: fleet.Entry{Action: "batch.end", Phase: "result", Batch: "b1"}}
	if err := s.EndBatch(ctx, l, closing); !errors.Is(err, fleet.ErrConflict) {
		t.Fatalf("ending with a running item: %v, want ErrConflict", err)
	}
	must(t, "FinishItem", s.FinishItem(ctx, l, fleet.Item{Seq: 2, State: fleet.ItemSkipped}))
	must(t, "EndBatch", s.EndBatch(ctx, l, closing))
	b, _ := readB1(t, s)
	if b.State != fleet.BatchDone || b.Outcome != fleet.OutcomePartial || b.Note != "n" || b.EndedAt.IsZero() {
		t.Errorf("batch is %+v", b)
	}
	if es := entries(t, s, "b1", "batch.end"); len(es) != 1 || es[0].Outcome != "partial" {
		t.Errorf("on record: %+v", es)
	}
	if _, err := s.RenewBatch(ctx, l, time.Minute); !errors.Is(err, fleet.ErrLeaseLost) {
		t.Errorf("renewing after the end: %v, want ErrLeaseLost", err)
	}
	if _, _, err := s.AcquireBatch(ctx, "b1", "a", time.Minute); !errors.Is(err, fleet.ErrLeaseLost) {
		t.Errorf("acquiring after the end: %v, want ErrLeaseLost", err)
	}
	if got := runnable(t, s, "a"); len(got) != 0 {
		t.Errorf("%v are runnable after the end", got)
	}
}

func interrupt(t *testing.T, s BatchStore) {
	ctx := t.Context()
	create(t, s, draft("b1", "n1"))
	l := acquire(t, s, "b1", "a", time.Minute)
	must(t, "InterruptBatch", s.InterruptBatch(ctx, l, "disk full", time.Hour))
	b, _ := readB1(t, s)
	if b.State != fleet.BatchInterrupted || b.Note != "disk full" {
		t.Errorf("batch is %+v", b)
	}
	if got := runnable(t, s, "a"); len(got) != 0 {
		t.Errorf("%v are runnable an hour too early", got)
	}
	l = acquire(t, s, "b1", "a", time.Minute)
	must(t, "InterruptBatch", s.InterruptBatch(ctx, l, "left alone", 0))
	if got := runnable(t, s, "a"); len(got) != 0 {
		t.Errorf("%v are runnable although a person has to decide", got)
	}
	l = acquire(t, s, "b1", "a", time.Minute)
	must(t, "InterruptBatch", s.InterruptBatch(ctx, l, "again", time.Nanosecond))
	if diff := cmp.Diff([]string{"b1"}, runnable(t, s, "")); diff != "" {
		t.Errorf("the retry is due (-want +got):\n%s", diff)
	}
	l = acquire(t, s, "b1", "a", time.Minute)
	b, _, _, err := s.StartBatch(ctx, l)
	must(t, "StartBatch", err)
	if b.State != fleet.BatchRunning || b.Note != "" {
		t.Errorf("batch is %+v, want it running without the note", b)
	}
}

func listBatches(t *testing.T, s BatchStore) {
	ctx := t.Context()
	for i := range 4 {
		d := draft(fmt.Sprintf("b%d", i), fmt.Sprintf("n%d", i))
		d.Batch.CreatedAt = start.Add(time.Duration(i) * time.Hour)
		if i == 2 {
			d.By.Name, d.By.UserID = "bob", "u-bob"
			d.Items[0].Ref.Cluster = "staging"
		}
		create(t, s, d)
	}
	must(t, "EndBatch", s.EndBatch(ctx, acquire(t, s, "b1", "a", time.Minute), fleet.BatchEnd{}))
	for _, tt := range []struct {
		name   string
		filter fleet.BatchFilter
		want   []string
	}{
		{"all, newest first", fleet.BatchFilter{}, []string{"b3", "b2", "b1", "b0"}},
		{"limit", fleet.BatchFilter{Limit: 2}, []string{"b3", "b2"}},
		{"state", fleet.BatchFilter{State: fleet.BatchDone}, []string{"b1"}},
		{"user", fleet.BatchFilter{User: "bob"}, []string{"b2"}},
		{"cluster", fleet.BatchFilter{Cluster: "staging"}, []string{"b2"}},
		{"since", fleet.BatchFilter{Since: start.Add(2 * time.Hour)}, []string{"b3", "b2"}},
		{"together", fleet.BatchFilter{Cluster: "prod", State: fleet.BatchQueued, User: "ada"}, []string{"b3", "b0"}},
		{"none", fleet.BatchFilter{User: "carol"}, nil},
	} {
		got, err := s.Batches(ctx, tt.filter)
		must(t, tt.name, err)
		var ids []string
		for _, b := range got {
			ids = append(ids, b.ID)
			if b.Counts.Total != 1 || b.Operation.Action != fleet.ActionCordon {
				t.Errorf("%s: %s is %+v", tt.name, b.ID, b)
			}
		}
		if diff := cmp.Diff(tt.want, ids); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// Who sees some clusters sees the batches that are about no others, page by page.
func batchesWithin(t *testing.T, s BatchStore) {
	ctx := t.Context()
	const odd = `a'b%_"\\c` + "\U0001f600" // a cluster of a name that means something to SQL, LIKE and JSON
	in := func(id string, hours int, clusters ...string) fleet.BatchDraft {
		d := draft(id, make([]string, len(clusters))...)
		d.Batch.CreatedAt = start.Add(time.Duration(hours) * time.Hour)
		for i, c := range clusters {
			d.Items[i].Ref = fleet.NodeRef{Cluster: c, Name: id + "-" + strconv.Itoa(i)}
		}
		return d
	}
	from := func(d fleet.BatchDraft, source string) fleet.BatchDraft {
		d.Batch.Operation.Action = fleet.ActionCopy
		d.Batch.Operation.Source = &fleet.NodeRef{Cluster: source, Name: "n"}
		return d
	}
	create(t, s, in("prod", 0, "prod", "prod"))
	create(t, s, in("lab", 1, "lab"))
	create(t, s, in("both", 2, "prod", "lab"))
	create(t, s, in("first-hidden", 3, "lab", "prod"))
	create(t, s, from(in("copy", 4, "prod"), "prod"))
	create(t, s, from(in("copy-of-lab", 5, "prod"), "lab"))
	create(t, s, in("odd", 6, odd))
	create(t, s, from(in("copy-of-odd", 7, "prod"), odd))
	for _, tt := range []struct {
		name   string
		filter fleet.BatchFilter
		want   []string
	}{
		{"everything", fleet.BatchFilter{}, []string{"copy-of-odd", "odd", "copy-of-lab", "copy", "first-hidden", "both", "lab", "prod"}},
		{"nothing", fleet.BatchFilter{Within: []string{}}, nil},
		{"nothing, by name", fleet.BatchFilter{Within: []string{}, IDs: []string{"prod"}}, nil},
		{"prod", fleet.BatchFilter{Within: []string{"prod"}}, []string{"copy", "prod"}},
		{"prod, page by page", fleet.BatchFilter{Within: []string{"prod"}, Limit: 1}, []string{"copy"}},
		{"lab", fleet.BatchFilter{Within: []string{"lab"}}, []string{"lab"}},
		{"odd", fleet.BatchFilter{Within: []string{odd}}, []string{"odd"}},
		{"prod and odd", fleet.BatchFilter{Within: []string{odd, "prod"}}, []string{"copy-of-odd", "odd", "copy", "prod"}},
		{"prod and lab", fleet.BatchFilter{Within: []string{"lab", "prod"}}, []string{"copy-of-lab", "copy", "first-hidden", "both", "lab", "prod"}},
		{"another one", fleet.BatchFilter{Within: []string{"pro", "prod%", "PROD"}}, nil},
		{"of a cluster that is not seen", fleet.BatchFilter{Within: []string{"prod"}, Cluster: "lab"}, nil},
		{"by name", fleet.BatchFilter{IDs: []string{"both", "prod", "no such"}}, []string{"both", "prod"}},
		{"by name within", fleet.BatchFilter{IDs: []string{"both", "prod", "copy-of-lab"}, Within: []string{"prod"}}, []string{"prod"}},
		{"none by name", fleet.BatchFilter{IDs: []string{}}, nil},
	} {
		got, err := s.Batches(ctx, tt.filter)
		must(t, tt.name, err)
		var ids []string
		for _, b := range got {
			ids = append(ids, b.ID)
		}
		if diff := cmp.Diff(tt.want, ids); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
