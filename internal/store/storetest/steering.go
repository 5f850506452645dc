package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// SteerStore is how people and the owner steer a batch, and what is kept of its drains.
type SteerStore interface {
	MadeBatch(ctx context.Context, userID, key, digest string) (fleet.Batch, error)
	FreeNodes(ctx context.Context, refs []fleet.NodeRef) error
	PauseBatch(ctx context.Context, id, by string, e fleet.Entry) error
	ResumeBatch(ctx context.Context, id, by string, e fleet.Entry) error
	SkipItem(ctx context.Context, id string, seq int, by string, e fleet.Entry) error
	HoldBatch(ctx context.Context, l fleet.BatchLease, by, note string, e fleet.Entry) (fleet.BatchSteer, error)
	NoteBatch(ctx context.Context, l fleet.BatchLease, note string) error
	RecordProgress(ctx context.Context, l fleet.BatchLease, progress ...fleet.ItemProgress) error
	BatchEvents(ctx context.Context, id string, after int64, limit int) ([]fleet.BatchEvent, error)
	BatchPlan(ctx context.Context, id string) (*fleet.Plan, error)
}

// onRecord is an audit entry of the suite.
func onRecord(action string) fleet.Entry {
	return fleet.Entry{Actor: "bob", Action: action, Phase: "event", Batch: "b1"}
}

// told is the progress of an item that told one event for each message.
func told(seq int, mark int64, messages ...string) fleet.ItemProgress {
	p := fleet.ItemProgress{Seq: seq, Mark: mark, Drain: &fleet.DrainProgress{State: fleet.DrainEvicting, Pods: []fleet.PodProgress{}}}
	for i, m := range messages {
		p.Events = append(p.Events, fleet.DrainEvent{
			Seq: i + 1, At: start, NodeRef: fleet.NodeRef{Cluster: "prod", Name: "n1"}, NodeUID: "uid-n1",
			NodeState: fleet.DrainEvicting, Message: m,
		})
		p.Drain.Message = m
	}
	return p
}

// begin makes b1 and has its owner start it and claim the first n items.
func begin(t *testing.T, s BatchStore, n int, nodes ...string) fleet.BatchLease {
	t.Helper()
	create(t, s, draft("b1", nodes...))
	l := acquire(t, s, "b1", "a", time.Minute)
	_, _, _, err := s.StartBatch(t.Context(), l)
	must(t, "StartBatch", err)
	for seq := range n {
		must(t, "ClaimItem", s.ClaimItem(t.Context(), l, seq))
	}
	return l
}

func whole(t *testing.T, s BatchStore) {
	ctx := t.Context()
	before, after := "old", ""
	edits := []fleet.Edit{
		{Kind: fleet.EditLabel, Key: "a/b", Before: &before, After: &after, Outcome: fleet.EditChanged},
		{Kind: fleet.EditTaint, Key: "t", Effect: fleet.NoExecute, Before: nil, After: &after, Outcome: fleet.EditAdded, Note: "x\x00y"},
	}
	d := draft("b1", "n1", "n2")
	d.Batch.Operation = fleet.Operation{
		Action: fleet.ActionRevert, Revert: "b0", Labels: []string{"a=b"}, Drain: &fleet.DrainOptions{GracePeriodSeconds: -1, Force: true},
		Template: &fleet.TemplateUse{ID: "t", Version: 3, Values: map[string]string{"k": "v"}},
	}
	d.Batch.Parent = "b0"
	d.Batch.Rollout = fleet.Rollout{
		MaxConcurrent: 4, PerCluster: 3, PerZone: 2, MaxUnavailable: 5, MaxFailures: 1, PauseBetween: time.Second, Canary: 6, Order: fleet.OrderZone,
	}
	d.Items[0].Zone, d.Items[1].Control, d.Items[1].Undo = "eu-1a", true, edits
	d.Plan = &fleet.Plan{
		Action: fleet.ActionRevert, At: start, Digest: "sha", Confirm: "prod", Why: []string{fleet.ConfirmProtected},
		Clusters: []fleet.ClusterPlan{{Cluster: "prod", At: start, Nodes: []fleet.NodePlan{{
			NodeRef: d.Items[0].Ref, Verdict: fleet.NodeChange, Edits: edits,
			Pods: []fleet.PodPlan{{Namespace: "ns", Name: strings.Repeat("p", 2000), PodClass: fleet.PodClass{Verdict: fleet.VerdictEvict}}},
		}}}},
	}
	b := create(t, s, d)
	if diff := cmp.Diff(d.Batch, b, cmpopts.IgnoreFields(fleet.Batch{}, "Version", "Counts")); diff != "" {
		t.Errorf("batch (-want +got):\n%s", diff)
	}
	_, items := readB1(t, s)
	if diff := cmp.Diff(d.Items, items, cmpopts.IgnoreFields(fleet.Item{}, "Version")); diff != "" {
		t.Errorf("items (-want +got):\n%s", diff)
	}
	plan, err := s.BatchPlan(ctx, "b1")
	must(t, "BatchPlan", err)
	if diff := cmp.Diff(d.Plan, plan); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	create(t, s, draft("b2", "n3"))
	for _, id := range []string{"b2", "nothing"} {
		if _, err := s.BatchPlan(ctx, id); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("plan of %s: %v, want ErrNotFound", id, err)
		}
	}
	if got, err := s.Batches(ctx, fleet.BatchFilter{Parent: "b0"}); err != nil || len(got) != 1 || got[0].ID != "b1" {
		t.Errorf("batches after b0: %+v, %v", got, err)
	}

	// What was found and left is kept with the result, and so is how the drain ended.
	l := acquire(t, s, "b1", "a", time.Minute)
	_, _, _, err = s.StartBatch(ctx, l)
	must(t, "StartBatch", err)
	must(t, "ClaimItem", s.ClaimItem(ctx, l, 0))
	must(t, "RecordProgress", s.RecordProgress(ctx, l, told(0, 1, "half")))
	drained := fleet.DrainProgress{State: fleet.DrainPartial, Since: start, Message: "m", Evicted: 2, Volumes: []string{"pv"}, WeakLock: true}
	for i := range 300 {
		drained.Pods = append(drained.Pods, fleet.PodProgress{Namespace: "ns", Name: fmt.Sprintf("pod-%d", i), State: fleet.PodGone, HTTP: 201})
	}
	must(t, "FinishItem", s.FinishItem(ctx, l, fleet.Item{Seq: 0, State: fleet.ItemSucceeded, Edits: edits, Drain: &drained}))
	must(t, "ClaimItem", s.ClaimItem(ctx, l, 1))
	must(t, "RecordProgress", s.RecordProgress(ctx, l, told(1, 1, "kept")))
	must(t, "FinishItem", s.FinishItem(ctx, l, fleet.Item{Seq: 1, State: fleet.ItemCancelled}))
	_, items = readB1(t, s)
	if diff := cmp.Diff(edits, items[0].Edits) + cmp.Diff(&drained, items[0].Drain); diff != "" {
		t.Errorf("finished item (-want +got):\n%s", diff)
	}
	if it := items[1]; it.Drain == nil || it.Drain.Message != "kept" || it.Edits != nil {
		t.Errorf("an item that was cancelled in the middle is %+v with %+v", it, it.Drain)
	}
}

// A plan that is too large is kept without its pods.
func planTooLarge(t *testing.T, s BatchStore) {
	d := draft("b1", "n1")
	noise := rand.NewChaCha8([32]byte{1}) // which cannot be compressed
	d.Plan = &fleet.Plan{Digest: "sha", Clusters: []fleet.ClusterPlan{{Cluster: "prod", Nodes: []fleet.NodePlan{{NodeRef: d.Items[0].Ref}}}}}
	for range 4500 {
		raw := make([]byte, 1024)
		_, _ = noise.Read(raw) // never an error
		d.Plan.Clusters[0].Nodes[0].Pods = append(d.Plan.Clusters[0].Nodes[0].Pods, fleet.PodPlan{Name: fmt.Sprintf("%x", raw)})
		d.Plan.Clusters[0].Nodes[0].Counts.Evict++
	}
	d.Plan.Clusters[0].Nodes[0].Pods = append(d.Plan.Clusters[0].Nodes[0].Pods, d.Plan.Clusters[0].Nodes[0].Pods...)
	create(t, s, d)
	plan, err := s.BatchPlan(t.Context(), "b1")
	must(t, "BatchPlan", err)
	if n := plan.Clusters[0].Nodes[0]; len(n.Pods) != 0 || n.Counts.Evict != 4500 || plan.Digest != "sha" {
		t.Errorf("kept with %d pods of %+v", len(n.Pods), n.Counts)
	}
	if len(d.Plan.Clusters[0].Nodes[0].Pods) != 9000 {
		t.Error("the caller's plan was changed")
	}
	d = draft("b2", "n2")
	raw := make([]byte, 9<<20)
	_, _ = noise.Read(raw) // never an error
	d.Plan = &fleet.Plan{Kubectl: []string{fmt.Sprintf("%x", raw)}}
	if _, err := s.CreateBatch(t.Context(), d); !errors.Is(err, fleet.ErrTooLarge) {
		t.Errorf("a plan that is too large even so: %v, want ErrTooLarge", err)
	}
}

func madeAndFree(t *testing.T, s BatchStore) {
	ctx := t.Context()
	if _, err := s.MadeBatch(ctx, ada.UserID, "k", "d-b1"); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("made by a key that was never used: %v", err)
	}
	d := draft("b1", "n1", "n2")
	d.Key = "k"
	create(t, s, d)
	if b, err := s.MadeBatch(ctx, ada.UserID, "k", d.Digest); err != nil || b.ID != "b1" || b.Counts.Total != 2 {
		t.Errorf("MadeBatch = %+v, %v", b, err)
	}
	if _, err := s.MadeBatch(ctx, ada.UserID, "k", "other"); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("another request: %v, want ErrConflict", err)
	}
	if _, err := s.MadeBatch(ctx, "u-bob", "k", d.Digest); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("another person's key: %v, want ErrNotFound", err)
	}
	var refs []fleet.NodeRef
	for i := range 1000 {
		refs = append(refs, fleet.NodeRef{Cluster: "prod", Name: fmt.Sprintf("free%d", i)}, fleet.NodeRef{Cluster: "staging", Name: fmt.Sprintf("n%d", i)})
	}
	must(t, "FreeNodes", s.FreeNodes(ctx, refs))
	must(t, "FreeNodes of none", s.FreeNodes(ctx, nil))
	err := s.FreeNodes(ctx, append(refs, d.Items[1].Ref))
	if busy, ok := errors.AsType[*fleet.BusyError](err); !ok || busy.Batch != "b1" || busy.Node != d.Items[1].Ref {
		t.Errorf("FreeNodes = %v, want n2 busy with b1", err)
	}
}

func pause(t *testing.T, s BatchStore) {
	ctx := t.Context()
	l := begin(t, s, 1, "n1", "n2", "n3")
	must(t, "PauseBatch", s.PauseBatch(ctx, "b1", "bob", onRecord("batch.pause")))
	b, _ := readB1(t, s)
	if b.State != fleet.BatchPaused || b.PausedBy != "bob" || b.Version != 4 {
		t.Errorf("batch is %+v", b)
	}
	if err := s.PauseBatch(ctx, "b1", "carol", onRecord("batch.pause")); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("pausing twice: %v, want ErrConflict", err)
	}
	if err := s.ClaimItem(ctx, l, 1); !errors.Is(err, fleet.ErrPaused) {
		t.Errorf("claiming a further item: %v, want ErrPaused", err)
	}
	must(t, "claiming again what was begun", s.ClaimItem(ctx, l, 0))
	steer, err := s.RenewBatch(ctx, l, time.Minute)
	if b, _ := readB1(t, s); err != nil || steer.PausedBy != "bob" || steer.Version != b.Version {
		t.Errorf("RenewBatch = %+v, %v: the owner does not hear of it", steer, err)
	}
	must(t, "FinishItem", s.FinishItem(ctx, l, fleet.Item{Seq: 0, State: fleet.ItemSucceeded}))
	must(t, "ReleaseBatch", s.ReleaseBatch(ctx, l))
	if got := runnable(t, s, "a"); len(got) != 0 {
		t.Errorf("%v wait for an owner although they are paused", got)
	}
	must(t, "ResumeBatch", s.ResumeBatch(ctx, "b1", "carol", onRecord("batch.resume")))
	b, _ = readB1(t, s)
	if b.State != fleet.BatchRunning || b.PausedBy != "" || b.Passed {
		t.Errorf("batch is %+v", b)
	}
	if diff := cmp.Diff([]string{"b1"}, runnable(t, s, "")); diff != "" {
		t.Errorf("a resumed batch waits for an owner (-want +got):\n%s", diff)
	}
	l = acquire(t, s, "b1", "b", time.Minute)
	if !l.Clean {
		t.Error("the lease was given back, and is not clean")
	}
	_, _, _, err = s.StartBatch(ctx, l)
	must(t, "StartBatch", err)
	must(t, "ClaimItem", s.ClaimItem(ctx, l, 1))
	must(t, "CancelBatch", s.CancelBatch(ctx, "b1", "bob", onRecord("batch.cancel")))
	for doing, err := range map[string]error{
		"pausing":  s.PauseBatch(ctx, "b1", "bob", onRecord("batch.pause")),
		"resuming": s.ResumeBatch(ctx, "b1", "bob", onRecord("batch.resume")),
	} {
		if !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("%s what is being cancelled: %v, want ErrConflict", doing, err)
		}
	}
	for action, want := range map[string]int{"batch.pause": 1, "batch.resume": 1} {
		if n := len(entries(t, s, "b1", action)); n != want {
			t.Errorf("%d of %s on record, want %d", n, action, want)
		}
	}
}

func pauseRefused(t *testing.T, s BatchStore) {
	ctx := t.Context()
	for doing, call := range map[string]func(id string) error{
		"PauseBatch":  func(id string) error { return s.PauseBatch(ctx, id, "bob", onRecord("x")) },
		"ResumeBatch": func(id string) error { return s.ResumeBatch(ctx, id, "bob", onRecord("x")) },
	} {
		if err := call("nothing"); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("%s of nothing: %v, want ErrNotFound", doing, err)
		}
	}
	create(t, s, draft("b1", "n1"))
	if err := s.ResumeBatch(ctx, "b1", "bob", onRecord("x")); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("resuming what is not paused: %v, want ErrConflict", err)
	}
	must(t, "pausing what nobody has begun", s.PauseBatch(ctx, "b1", "bob", onRecord("batch.pause")))
	if got := runnable(t, s, ""); len(got) != 0 {
		t.Errorf("%v wait for an owner although they are paused", got)
	}
	must(t, "ResumeBatch", s.ResumeBatch(ctx, "b1", "bob", onRecord("batch.resume")))
	if b, _ := readB1(t, s); b.State != fleet.BatchQueued {
		t.Errorf("batch is %+v, want it queued as it was", b)
	}
	must(t, "EndBatch", s.EndBatch(ctx, acquire(t, s, "b1", "a", time.Minute), fleet.BatchEnd{}))
	for doing, err := range map[string]error{
		"pausing":  s.PauseBatch(ctx, "b1", "bob", onRecord("x")),
		"resuming": s.ResumeBatch(ctx, "b1", "bob", onRecord("x")),
	} {
		if !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("%s what is done: %v, want ErrConflict", doing, err)
		}
	}
}

// A batch that waits for a person goes on when one says so, and is not found to have been left alone for long again.
func resumeWhatWaits(t *testing.T, s BatchStore) {
	ctx := t.Context()
	l := begin(t, s, 1, "n1")
	must(t, "InterruptBatch", s.InterruptBatch(ctx, l, "left alone", 0))
	if err := s.PauseBatch(ctx, "b1", "bob", onRecord("x")); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("pausing what waits anyway: %v, want ErrConflict", err)
	}
	must(t, "ResumeBatch", s.ResumeBatch(ctx, "b1", "bob", onRecord("batch.resume")))
	b, _ := readB1(t, s)
	if b.State != fleet.BatchRunning || b.Note != "" {
		t.Errorf("batch is %+v", b)
	}
	if diff := cmp.Diff([]string{"b1"}, runnable(t, s, "")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	l = acquire(t, s, "b1", "a", time.Minute)
	if !l.Clean || l.Idle > time.Minute {
		t.Errorf("lease is %+v", l)
	}
	// Trouble with the store can be paused, and then does not end by itself.
	must(t, "InterruptBatch", s.InterruptBatch(ctx, l, "disk full", time.Nanosecond))
	must(t, "PauseBatch", s.PauseBatch(ctx, "b1", "bob", onRecord("batch.pause")))
	if b, _ = readB1(t, s); b.State != fleet.BatchPaused {
		t.Errorf("batch is %+v", b)
	}
}

func canary(t *testing.T, s BatchStore) {
	ctx := t.Context()
	d := draft("b1", "n1", "n2", "n3", "n4")
	d.Batch.Rollout.Canary = 1
	create(t, s, d)
	// A pause before the canary is done does not pass it.
	must(t, "PauseBatch", s.PauseBatch(ctx, "b1", "bob", onRecord("batch.pause")))
	must(t, "SkipItem", s.SkipItem(ctx, "b1", 3, "bob", onRecord("batch.skip"))) // and what was left out is no canary
	must(t, "ResumeBatch", s.ResumeBatch(ctx, "b1", "bob", onRecord("batch.resume")))
	l := acquire(t, s, "b1", "a", time.Minute)
	b, _, _, err := s.StartBatch(ctx, l)
	if err != nil || b.Passed {
		t.Fatalf("StartBatch = %+v, %v", b, err)
	}
	must(t, "ClaimItem", s.ClaimItem(ctx, l, 0))
	must(t, "FinishItem", s.FinishItem(ctx, l, fleet.Item{Seq: 0, State: fleet.ItemSucceeded}))
	steer, err := s.HoldBatch(ctx, l, fleet.PausedByCanary, "look at it", onRecord("batch.pause"))
	b, _ = readB1(t, s)
	if err != nil || steer.PausedBy != fleet.PausedByCanary || steer.Passed || steer.Version != b.Version {
		t.Errorf("HoldBatch = %+v, %v", steer, err)
	}
	if b.State != fleet.BatchPaused || b.PausedBy != fleet.PausedByCanary || b.Note != "look at it" {
		t.Errorf("batch is %+v", b)
	}
	_, err = s.HoldBatch(ctx, l, fleet.PausedByCanary, "again", onRecord("batch.pause"))
	must(t, "HoldBatch again", err)
	if n := len(entries(t, s, "b1", "batch.pause")); n != 2 { // bob's, and its own once
		t.Errorf("%d pauses on record", n)
	}
	must(t, "ResumeBatch", s.ResumeBatch(ctx, "b1", "bob", onRecord("batch.resume")))
	if steer, err = s.RenewBatch(ctx, l, time.Minute); err != nil || !steer.Passed || steer.PausedBy != "" {
		t.Errorf("RenewBatch = %+v, %v", steer, err)
	}
	// An owner that has not heard of it yet does not pause it again.
	if steer, err = s.HoldBatch(ctx, l, fleet.PausedByCanary, "x", onRecord("batch.pause")); err != nil || steer.PausedBy != "" || !steer.Passed {
		t.Errorf("HoldBatch after a person went on = %+v, %v", steer, err)
	}
	must(t, "ClaimItem", s.ClaimItem(ctx, l, 1))
	must(t, "PauseBatch", s.PauseBatch(ctx, "b1", "bob", onRecord("batch.pause")))
	must(t, "ReleaseBatch", s.ReleaseBatch(ctx, l))
	l = acquire(t, s, "b1", "a", time.Minute)
	if b, _, _, err = s.StartBatch(ctx, l); err != nil || !b.Passed || b.State != fleet.BatchPaused || b.PausedBy != "bob" {
		t.Errorf("StartBatch of a paused batch = %+v, %v", b, err)
	}
}

func skip(t *testing.T, s BatchStore) {
	ctx := t.Context()
	l := begin(t, s, 2, "n1", "n2", "n3", "n4")
	before, _ := readB1(t, s)
	must(t, "SkipItem of what waits", s.SkipItem(ctx, "b1", 2, "bob", onRecord("batch.skip")))
	must(t, "SkipItem of what is being done", s.SkipItem(ctx, "b1", 1, "bob", onRecord("batch.skip")))
	must(t, "SkipItem again", s.SkipItem(ctx, "b1", 1, "carol", onRecord("batch.skip")))
	b, items := readB1(t, s)
	if b.Version != before.Version+2 || b.Counts.Skipped != 1 || b.Counts.Running != 2 {
		t.Errorf("batch is %+v", b)
	}
	if it := items[2]; it.State != fleet.ItemSkipped || it.Code != fleet.CodeSkipped || it.Error != "left out by bob" || it.EndedAt.IsZero() || it.Version != b.Version-1 {
		t.Errorf("item is %+v", it)
	}
	if it := items[1]; it.State != fleet.ItemRunning || it.Version != b.Version {
		t.Errorf("item is %+v", it)
	}
	steer, err := s.RenewBatch(ctx, l, time.Minute)
	if diff := cmp.Diff(fleet.BatchSteer{Skip: []int{1}, LeftOut: []int{2}, Version: b.Version}, steer); diff != "" || err != nil {
		t.Errorf("RenewBatch (%v) (-want +got):\n%s", err, diff)
	}
	for _, seq := range []int{1, 2} {
		if err := s.ClaimItem(ctx, l, seq); !errors.Is(err, fleet.ErrSkipped) {
			t.Errorf("claiming item %d: %v, want ErrSkipped", seq, err)
		}
	}
	must(t, "FinishItem", s.FinishItem(ctx, l, fleet.Item{Seq: 1, State: fleet.ItemSkipped, Code: fleet.CodeSkipped}))
	must(t, "FinishItem", s.FinishItem(ctx, l, fleet.Item{Seq: 0, State: fleet.ItemSucceeded}))
	if steer, err = s.RenewBatch(ctx, l, time.Minute); err != nil || len(steer.Skip) != 0 || !cmp.Equal(steer.LeftOut, []int{2}) {
		t.Errorf("RenewBatch = %+v, %v", steer, err)
	}
	for _, seq := range []int{0, 1, 2} {
		if err := s.SkipItem(ctx, "b1", seq, "bob", onRecord("x")); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("leaving out item %d, which is finished: %v, want ErrConflict", seq, err)
		}
	}
	for id, seq := range map[string]int{"b1": 9, "nothing": 0} {
		if err := s.SkipItem(ctx, id, seq, "bob", onRecord("x")); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("leaving out %d of %s: %v, want ErrNotFound", seq, id, err)
		}
	}
	if n := len(entries(t, s, "b1", "batch.skip")); n != 2 {
		t.Errorf("%d on record, want 2", n)
	}
	must(t, "EndBatch", s.EndBatch(ctx, l, fleet.BatchEnd{}))
	if _, items = readB1(t, s); items[2].Code != fleet.CodeSkipped || items[3].State != fleet.ItemCancelled {
		t.Errorf("items are %+v", items)
	}
}

// clean: whoever takes a lease over learns whether the owner before had given it back.
func clean(t *testing.T, s BatchStore) {
	ctx := t.Context()
	create(t, s, draft("b1", "n1"))
	take := func(want bool) fleet.BatchLease {
		t.Helper()
		l := acquire(t, s, "b1", "a", 0) // has run out as soon as it begins
		if l.Clean != want {
			t.Errorf("epoch %d: clean is %v, want %v", l.Epoch, l.Clean, want)
		}
		return l
	}
	take(true) // nobody had begun
	l := take(false)
	must(t, "ReleaseBatch", s.ReleaseBatch(ctx, l))
	l = take(true)
	must(t, "InterruptBatch", s.InterruptBatch(ctx, l, "x", 0))
	take(true)
	take(false)
	must(t, "ResumeBatch", s.ResumeBatch(ctx, "b1", "bob", onRecord("x"))) // a person has looked at it
	take(true)
	live := acquire(t, s, "b1", "a", time.Minute)
	must(t, "PauseBatch of what somebody owns", s.PauseBatch(ctx, "b1", "bob", onRecord("x")))
	must(t, "ResumeBatch", s.ResumeBatch(ctx, "b1", "bob", onRecord("x"))) // but not at what its owner does
	if got := runnable(t, s, ""); len(got) != 0 {
		t.Errorf("%v are runnable: resuming took the owner's lease", got)
	}
	must(t, "NoteBatch", s.NoteBatch(ctx, live, "x"))
	if l := acquire(t, s, "b1", "a", time.Minute); l.Clean {
		t.Error("the process died over the batch after it was resumed, and nobody is told")
	}
}

// pausedInTheMiddle: a paused batch with nodes that were begun needs an owner, and one without does not.
func pausedInTheMiddle(t *testing.T, s BatchStore) {
	ctx := t.Context()
	l := begin(t, s, 1, "n1", "n2")
	must(t, "PauseBatch", s.PauseBatch(ctx, "b1", "bob", onRecord("x")))
	must(t, "ReleaseBatch", s.ReleaseBatch(ctx, l))
	if diff := cmp.Diff([]string{"b1"}, runnable(t, s, "")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	l = acquire(t, s, "b1", "a", time.Minute)
	must(t, "FinishItem", s.FinishItem(ctx, l, fleet.Item{Seq: 0, State: fleet.ItemSucceeded}))
	must(t, "ReleaseBatch", s.ReleaseBatch(ctx, l))
	if got := runnable(t, s, ""); len(got) != 0 {
		t.Errorf("%v are runnable", got)
	}
	must(t, "CancelBatch", s.CancelBatch(ctx, "b1", "bob", onRecord("x")))
	l = acquire(t, s, "b1", "a", time.Minute)
	b, _, _, err := s.StartBatch(ctx, l)
	if err != nil || b.State != fleet.BatchRunning {
		t.Errorf("StartBatch of a cancelled batch = %+v, %v", b, err)
	}
	must(t, "EndBatch", s.EndBatch(ctx, l, fleet.BatchEnd{Stopped: true}))
	if b, _ := readB1(t, s); b.PausedBy != "" {
		t.Errorf("batch is %+v", b)
	}
}

func note(t *testing.T, s BatchStore) {
	ctx := t.Context()
	l := begin(t, s, 0, "n1")
	for i, want := range []string{"waiting: 3 of 3", ""} {
		must(t, "NoteBatch", s.NoteBatch(ctx, l, want))
		if b, _ := readB1(t, s); b.Note != want || b.Version != int64(3+i) || b.State != fleet.BatchRunning {
			t.Errorf("batch is %+v, want the note %q", b, want)
		}
	}
	_, err := s.HoldBatch(ctx, l, fleet.PausedByCanary, "look at it", onRecord("x"))
	must(t, "HoldBatch", err)
	must(t, "NoteBatch", s.NoteBatch(ctx, l, "waiting"))
	if b, _ := readB1(t, s); b.Note != "look at it" {
		t.Errorf("a paused batch says %q", b.Note)
	}
}

func progress(t *testing.T, s BatchStore) {
	ctx := t.Context()
	l := begin(t, s, 2, "n1", "n2", "n3")
	before, _ := readB1(t, s)
	other := told(1, 7, "x", "y", "z")
	must(t, "RecordProgress", s.RecordProgress(ctx, l, told(0, 1, "a"), other))
	b, items, err := s.Batch(ctx, "b1", before.Version)
	must(t, "Batch", err)
	if b.Version != before.Version+1 || len(items) != 2 {
		t.Fatalf("version went from %d to %d with %d items", before.Version, b.Version, len(items))
	}
	for i, want := range []string{"a", "z"} {
		if it := items[i]; it.Seq != i || it.Drain == nil || it.Drain.Message != want || it.Version != b.Version || it.State != fleet.ItemRunning {
			t.Errorf("item is %+v with %+v", it, it.Drain)
		}
	}
	must(t, "RecordProgress without events", s.RecordProgress(ctx, l, fleet.ItemProgress{Seq: 0, Drain: &fleet.DrainProgress{Message: "b"}}))
	must(t, "RecordProgress without a drain", s.RecordProgress(ctx, l, fleet.ItemProgress{Seq: 0, Mark: 2, Events: other.Events[:1]}))
	if _, items = readB1(t, s); items[0].Drain.Message != "b" {
		t.Errorf("item says %+v", items[0].Drain)
	}
	for _, seq := range []int{2, 9} {
		if err := s.RecordProgress(ctx, l, told(0, 5, "lost"), told(seq, 1, "x")); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("progress of item %d, which is not running: %v, want ErrConflict", seq, err)
		}
	}
	es, err := s.BatchEvents(ctx, "b1", 0, 0)
	must(t, "BatchEvents", err)
	var got []string
	for i, e := range es {
		if e.Seq != int64(i+1) || e.Event.NodeRef != items[e.Item].Ref || e.Event.NodeUID != items[e.Item].UID || !e.Event.At.Equal(start) {
			t.Errorf("event %d is %+v", i, e)
		}
		got = append(got, fmt.Sprint(e.Item, e.Event.Message))
	}
	if diff := cmp.Diff([]string{"0a", "1x", "1y", "1z", "0x"}, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// An owner that does not know whether what it wrote has landed writes it again, and it is there once.
func progressTwice(t *testing.T, s BatchStore) {
	ctx := t.Context()
	l := begin(t, s, 1, "n1")
	count := func(want int) {
		t.Helper()
		if es, err := s.BatchEvents(ctx, "b1", 0, 0); err != nil || len(es) != want {
			t.Errorf("%d events, %v, want %d", len(es), err, want)
		}
	}
	for range 3 {
		must(t, "RecordProgress", s.RecordProgress(ctx, l, told(0, 2, "a", "b")))
	}
	count(2)
	must(t, "RecordProgress", s.RecordProgress(ctx, l, told(0, 3, "c")))
	count(3)
	must(t, "ClaimItem", s.ClaimItem(ctx, l, 0)) // another attempt counts anew
	must(t, "RecordProgress", s.RecordProgress(ctx, l, told(0, 1, "d")))
	count(4)
}

func events(t *testing.T, s BatchStore) {
	ctx := t.Context()
	l := begin(t, s, 1, "n1")
	const chunks, each = 40, 25 // more rows than are read at once, and each large enough to be packed
	for i := range chunks {
		var messages []string
		for j := range each {
			messages = append(messages, fmt.Sprintf("%d %s", i*each+j+1, strings.Repeat("x", 100)))
		}
		must(t, "RecordProgress", s.RecordProgress(ctx, l, told(0, int64(i+1), messages...)))
	}
	var next int64
	for _, limit := range []int{1, 7, 25, 26, 1, 0, 1000} { // 0 stands for 500
		es, err := s.BatchEvents(ctx, "b1", next, limit)
		must(t, "BatchEvents", err)
		want := min(limit, chunks*each-int(next))
		if limit == 0 {
			want = 500
		}
		if len(es) != want {
			t.Fatalf("%d events after %d with limit %d, want %d", len(es), next, limit, want)
		}
		for _, e := range es {
			if next++; e.Seq != next || !strings.HasPrefix(e.Event.Message, fmt.Sprint(next, " ")) {
				t.Fatalf("event %d is %d: %.20s", next, e.Seq, e.Event.Message)
			}
		}
	}
	if next != chunks*each {
		t.Errorf("the last is %d", next)
	}
	if es, err := s.BatchEvents(ctx, "b1", next, 10); err != nil || len(es) != 0 {
		t.Errorf("after the last: %+v, %v", es, err)
	}
	if _, err := s.BatchEvents(ctx, "nothing", 0, 10); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("events of nothing: %v, want ErrNotFound", err)
	}
}

// A reader that follows the log while it is written sees every event once and in order.
func eventsWhileTheyAreWritten(t *testing.T, s BatchStore) {
	ctx := t.Context()
	l := begin(t, s, 4, "n1", "n2", "n3", "n4")
	const each = 25
	var writers sync.WaitGroup
	for seq := range 4 {
		writers.Go(func() {
			for i := range each {
				if err := s.RecordProgress(ctx, l, told(seq, int64(i+1), fmt.Sprint(i), fmt.Sprint(i, "+"))); err != nil {
					t.Errorf("RecordProgress: %v", err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	perItem := make(map[int]int)
	for next, over := int64(0), false; ; {
		es, err := s.BatchEvents(ctx, "b1", next, 3)
		must(t, "BatchEvents", err)
		for _, e := range es {
			if next++; e.Seq != next {
				t.Fatalf("event %d after %d", e.Seq, next-1)
			}
			n := perItem[e.Item]
			if want := fmt.Sprint(n/2) + []string{"", "+"}[n%2]; e.Event.Message != want {
				t.Fatalf("item %d tells %q, want %q", e.Item, e.Event.Message, want)
			}
			perItem[e.Item]++
		}
		if len(es) == 0 && over {
			break
		}
		select {
		case <-done:
			over = true
		default:
		}
	}
	for seq := range 4 {
		if perItem[seq] != 2*each {
			t.Errorf("item %d told %d events, want %d", seq, perItem[seq], 2*each)
		}
	}
}
