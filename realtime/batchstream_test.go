package realtime

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// batches is a store of one batch.
type batches struct {
	mu    sync.Mutex
	batch fleet.Batch
	items []fleet.Item
	reads int
}

func (s *batches) BatchSince(_ context.Context, id string, version int64) (fleet.Batch, []fleet.Item, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if id != s.batch.ID || id == "" {
		return fleet.Batch{}, nil, fmt.Errorf("batch %s: %w", id, fleet.ErrNotFound)
	}
	var items []fleet.Item
	for _, i := range s.items {
		if version < 0 || i.Version > version {
			items = append(items, i)
		}
	}
	return s.batch, items, nil
}

func (s *batches) begin(id string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batch = fleet.Batch{ID: id, State: fleet.BatchRunning, Version: 1, Counts: fleet.Counts{Total: n, Queued: n}}
	s.items = nil
	for i := range n {
		s.items = append(s.items, fleet.Item{
			Seq: i, Ref: fleet.NodeRef{Cluster: "a", Name: fmt.Sprintf("n%d", i)}, State: fleet.ItemQueued, Version: 1,
		})
	}
}

func (s *batches) finish(seq int, state fleet.ItemState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batch.Version++
	s.items[seq].State, s.items[seq].Version = state, s.batch.Version
	s.batch.Counts.Queued--
	if state == fleet.ItemFailed {
		s.batch.Counts.Failed++
		s.items[seq].Error = "no such\r\nnode"
	} else {
		s.batch.Counts.Succeeded++
	}
}

// tell moves the drain of an item.
func (s *batches) tell(seq int, p fleet.DrainProgress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batch.Version++
	s.items[seq].State, s.items[seq].Version, s.items[seq].Drain = fleet.ItemRunning, s.batch.Version, &p
}

func (s *batches) end(o fleet.BatchOutcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batch.Version++
	s.batch.State, s.batch.Outcome = fleet.BatchDone, o
}

func TestBatch_HTMLOpensFollowsAndEnds(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{BatchPoll: time.Hour}, "a")
	b.bt.begin("b1", 3)
	s := b.open("/batch?id=b1&open=%3Cp%3Ehi%3C/p%3E")
	if got, want := s.want().data, `<hx-partial hx-target="#batch-panel" hx-swap="innerHTML"><p>hi</p></hx-partial>`; got != want {
		t.Errorf("first message: got %q, want %q", got, want)
	}
	first := s.want()
	for i := range 3 {
		if want := fmt.Sprintf(`<tr hx-swap-oob="outerMorph" id="i-%d"><td>queued </td></tr>`, i); !strings.Contains(first.data, want) {
			t.Errorf("opening state %q lacks %q", first.data, want)
		}
	}
	b.bt.finish(1, fleet.ItemFailed)
	b.s.BatchChanged("b1")
	next := s.want()
	if want := `<tr hx-swap-oob="outerMorph" id="i-1"><td>failed no such&#10;node</td></tr><x-progress>running 1</x-progress>`; next.data != want {
		t.Errorf("change: got %q, want %q", next.data, want)
	}
	if next.id != "v2" {
		t.Errorf("cursor: got %q, want v2", next.id)
	}
	b.bt.finish(0, fleet.ItemSucceeded)
	b.bt.finish(2, fleet.ItemSucceeded)
	b.bt.end(fleet.OutcomePartial)
	b.s.BatchChanged("b1")
	rest := s.ends()
	last := rest[len(rest)-1]
	var done struct{ Outcome string }
	if err := json.Unmarshal([]byte(last.data), &done); err != nil || last.name != "done" || done.Outcome != "partial" {
		t.Errorf("last event: got %+v, %v; want done with outcome partial", last, err)
	}
}

func TestBatch_JSONResumes(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{BatchPoll: time.Hour}, "a")
	b.bt.begin("b1", 2)
	s := b.open("/batch?id=b1&json=1")
	var names []string
	for range 3 {
		names = append(names, s.want().name)
	}
	if want := []string{"item", "item", "progress"}; !cmp.Equal(names, want) {
		t.Errorf("opening: %s", cmp.Diff(want, names))
	}
	s.close()
	b.bt.finish(1, fleet.ItemSucceeded)
	b.s.BatchChanged("b1") // the server may not have noticed yet that the first reader has gone, and keep its board
	s = b.open("/batch?id=b1&json=1", "Last-Event-ID", "v1")
	item := s.want()
	var i struct{ Node, State string }
	if err := json.Unmarshal([]byte(item.data), &i); err != nil || item.name != "item" || i.Node != "n1" || i.State != "succeeded" {
		t.Errorf("resumed with %+v, %v; want the one item that changed", item, err)
	}
	b.bt.end(fleet.OutcomeSucceeded)
	b.s.BatchChanged("b1")
	rest := s.ends()
	var done struct {
		Items []struct{ Node string }
	}
	last := rest[len(rest)-1]
	if err := json.Unmarshal([]byte(last.data), &done); err != nil || last.name != "done" || len(done.Items) != 2 {
		t.Errorf("last event: got %+v, %v; want done with all items", last, err)
	}
	// A batch that is over answers with its end at once.
	rest = b.open("/batch?id=b1&json=1", "Last-Event-ID", "v3").ends()
	if last := rest[len(rest)-1]; last.name != "done" {
		t.Errorf("after the end: got %+v, want done", last)
	}
}

// TestBatch_PageNewerThanTheReader: whoever comes with a newer page than the last reading waits for the next one.
func TestBatch_PageNewerThanTheReader(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{BatchPoll: time.Hour}, "a")
	b.bt.begin("b1", 2)
	first := b.open("/batch?id=b1&json=1")
	first.until("progress", func(e got) bool { return e.name == "progress" })
	b.bt.finish(0, fleet.ItemSucceeded) // and its hint is lost
	second := b.open("/batch?id=b1&json=1&since=v2")
	first.until("the change", func(e got) bool { return e.id == "v2" }) // the newcomer made us look
	b.bt.finish(1, fleet.ItemSucceeded)
	b.s.BatchChanged("b1")
	if e := second.want(); e.name != "item" || !strings.Contains(e.data, `"node":"n1"`) {
		t.Errorf("got %+v, want the one item that the page did not show", e)
	}
}

// TestBatch_ProgressOfADrain: a row moves with the progress of its drain, and what is sent for it is bounded however many
// pods the node has.
func TestBatch_ProgressOfADrain(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{BatchPoll: time.Hour}, "a")
	b.bt.begin("b1", 2)
	page, api := b.open("/batch?id=b1&since=v1"), b.open("/batch?id=b1&json=1&since=v1")
	p := &fleet.DrainProgress{State: fleet.DrainEvicting}
	for i := range 110 {
		p.Pods = append(p.Pods, fleet.PodProgress{
			Namespace: "ns", Name: fmt.Sprintf("pod-%d", i), UID: fmt.Sprint(i), State: fleet.PodBlockedByPDB, HTTP: http.StatusTooManyRequests,
			Message: strings.Repeat("m", 300), Reasons: []fleet.Reason{{ID: "DR-07", Code: "local_data", Detail: strings.Repeat("d", 100)}},
		})
	}
	for evicted := range 3 {
		p.Evicted = evicted
		b.bt.tell(1, *p)
		b.s.BatchChanged("b1")
		cursor := fmt.Sprint("v", evicted+2)
		row := page.until("the row", func(e got) bool { return e.id == cursor })
		if !strings.Contains(row.data, `id="i-1"`) || strings.Contains(row.data, `id="i-0"`) {
			t.Errorf("the page gets %q", row.data)
		}
		item := api.until("the item", func(e got) bool { return e.name == "item" })
		var got struct {
			Seq   int
			Drain struct {
				Evicted  int
				Counts   map[string]int `json:"pod_states"`
				Pods     []fleet.PodProgress
				Unlisted int `json:"pods_unlisted"`
			}
		}
		if err := json.Unmarshal([]byte(item.data), &got); err != nil || got.Seq != 1 || got.Drain.Evicted != evicted ||
			got.Drain.Counts["blocked_by_pdb"] != 110 || len(got.Drain.Pods) != 10 || got.Drain.Unlisted != 100 {
			t.Errorf("got %+v, %v", got, err)
		}
		if len(item.data) > 8<<10 {
			t.Errorf("a message of %d bytes for one node", len(item.data))
		}
	}
	b.bt.end(fleet.OutcomeSucceeded)
	b.s.BatchChanged("b1")
	rest := api.ends()
	if last := rest[len(rest)-1]; last.name != "done" || len(last.data) > 12<<10 {
		t.Errorf("the end is %s with %d bytes", last.name, len(last.data))
	}
	page.ends()
}

func TestBatch_UnknownIsNotFound(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{}, "a")
	if _, status, err := b.dial("/batch?id=nope"); err != nil || status != http.StatusNotFound {
		t.Errorf("got %d, %v; want 404", status, err)
	}
	b.s.batchMu.Lock()
	defer b.s.batchMu.Unlock()
	if len(b.s.batches) != 0 {
		t.Errorf("%d boards left behind", len(b.s.batches))
	}
}

func TestBatch_LostHintIsPolled(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{BatchPoll: 20 * time.Millisecond}, "a")
	b.bt.begin("b1", 1)
	s := b.open("/batch?id=b1&json=1")
	s.until("progress", func(e got) bool { return e.name == "progress" })
	b.bt.finish(0, fleet.ItemSucceeded) // and no hint
	b.bt.end(fleet.OutcomeSucceeded)
	s.until("done", func(e got) bool { return e.name == "done" })
}

func TestBatch_OneReaderForAllViewers(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{BatchPoll: time.Hour, PerSession: 99}, "a")
	b.bt.begin("b1", 1)
	began := time.Now()
	var open []*stream
	for range 40 {
		s := b.open("/batch?id=b1&json=1")
		s.until("progress", func(e got) bool { return e.name == "progress" })
		open = append(open, s)
	}
	b.bt.mu.Lock()
	reads := b.bt.reads
	b.bt.mu.Unlock()
	if most := 3 + int(time.Since(began)/batchGap); reads > most {
		t.Errorf("40 viewers caused %d readings, want at most %d", reads, most)
	}
	b.bt.end(fleet.OutcomeSucceeded)
	b.s.BatchChanged("b1")
	for _, s := range open {
		s.ends()
	}
}
