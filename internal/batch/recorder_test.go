package batch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// paper is what a recorder writes on.
type paper struct {
	mu     sync.Mutex
	fails  int // of the next writings
	parts  []fleet.ItemProgress
	at     []time.Time
	events map[int][]fleet.DrainEvent
	marks  map[int]int64
	tries  int
	gate   chan struct{} // nil: open
}

func newPaper() *paper {
	return &paper{events: make(map[int][]fleet.DrainEvent), marks: make(map[int]int64)}
}

func (p *paper) write(parts []fleet.ItemProgress) error {
	p.mu.Lock()
	gate := p.gate
	p.tries++
	p.mu.Unlock()
	if gate != nil {
		<-gate
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fails > 0 {
		p.fails--
		if p.fails%2 == 0 {
			p.land(parts) // and the answer is lost
		}
		return fleet.ErrUnavailable
	}
	p.land(parts)
	p.at = append(p.at, time.Now())
	return nil
}

// land does what the store does: events whose mark was seen are there already.
func (p *paper) land(parts []fleet.ItemProgress) {
	p.parts = append(p.parts, parts...)
	for _, part := range parts {
		if part.Mark > p.marks[part.Seq] {
			p.events[part.Seq] = append(p.events[part.Seq], part.Events...)
			p.marks[part.Seq] = part.Mark
		}
	}
}

// running runs a recorder over paper until the test's end.
func (p *paper) running(t *testing.T) *recorder {
	t.Helper()
	r := newRecorder(p.write, func(error) {})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { r.run(ctx); close(over) }()
	t.Cleanup(func() { cancel(); <-over })
	return r
}

func podEvent(n, pod int, s fleet.PodState) fleet.DrainEvent {
	return fleet.DrainEvent{Seq: n, At: time.Now(), Pod: &fleet.PodProgress{
		Namespace: "ns", Name: fmt.Sprint("p", pod), UID: fmt.Sprint("u", pod), State: s, Evicted: s == fleet.PodTerminating || s == fleet.PodGone, Attempt: n,
	}}
}

// TestRecorder_TenThousandEvents: a drain that tells far more than can be written is never held up, what waits is bounded,
// the progress is the newest, and nothing that is final is lost.
func TestRecorder_TenThousandEvents(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPaper()
		p.gate = make(chan struct{})
		r := p.running(t)
		tell := r.open(7)
		const pods, all = 110, 10_000
		began := time.Now()
		n := 0
		next := func(pod int, s fleet.PodState) { n++; tell(podEvent(n, pod, s)) }
		const early = 10 // pods that are gone before all the noise
		for pod := range early {
			next(pods+pod, fleet.PodGone)
		}
		for i := 0; n < all-2*pods-1; i++ {
			if i%10 == 0 {
				n++
				tell(fleet.DrainEvent{Seq: n, NodeState: fleet.DrainEvicting})
				continue
			}
			next(i%pods, fleet.PodBlockedByPDB)
		}
		for pod := range pods {
			next(pod, fleet.PodTerminating)
			next(pod, fleet.PodGone)
		}
		n++
		tell(fleet.DrainEvent{Seq: n, NodeState: fleet.DrainDone})
		if took := time.Since(began); took != 0 || n != all {
			t.Errorf("%d events held the drain up for %s while nothing could be written", n, took)
		}
		r.mu.Lock()
		waits := len(r.logs[7].waiting)
		r.mu.Unlock()
		if waits > recordMost {
			t.Errorf("%d events wait, want at most %d", waits, recordMost)
		}
		close(p.gate)
		if err := r.done(t.Context(), 7); err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		gone, done, before := 0, 0, 0
		for _, e := range p.events[7] {
			if e.Seq <= before {
				t.Fatalf("event %d after %d", e.Seq, before)
			}
			before = e.Seq
			switch {
			case e.NodeState == fleet.DrainDone:
				done++
			case e.Pod != nil && e.Pod.State == fleet.PodGone:
				gone++
			}
		}
		if gone != pods+early || done != 1 {
			t.Errorf("%d pods gone and %d ends on paper, want %d and 1", gone, done, pods+early)
		}
		if got := len(p.events[7]); got > recordMost+recordAtOnce || got < recordMost {
			t.Errorf("%d events on paper", got)
		}
		last := p.parts[len(p.parts)-1].Drain
		if last.State != fleet.DrainDone || last.Evicted != pods+early || len(last.Pods) != pods+early {
			t.Errorf("the last progress says %s with %d evicted of %d", last.State, last.Evicted, len(last.Pods))
		}
	})
}

// TestRecorder_WritesSeldom: many events cost few writings, and a node that goes on telling is written all the time.
func TestRecorder_WritesSeldom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPaper()
		r := p.running(t)
		tells := []func(fleet.DrainEvent){r.open(0), r.open(1), r.open(2)}
		for i := range 1000 {
			for seq, tell := range tells {
				tell(podEvent(i+1, seq, fleet.PodQueued))
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(recordEvery)
		synctest.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.at) < 45 || len(p.at) > 60 {
			t.Errorf("%d writings in 10 s, want about one in %s for all of them", len(p.at), recordEvery)
		}
		last := make(map[int]int)
		for _, part := range p.parts {
			last[part.Seq] += len(part.Events)
		}
		for seq := range tells {
			if last[seq] != 1000 {
				t.Errorf("%d events of item %d on paper", last[seq], seq)
			}
		}
	})
}

// TestRecorder_TriesAgain: a writing that failed is tried again as it was, whether or not it had landed, and the events are
// there once and in order.
func TestRecorder_TriesAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPaper()
		p.fails = 7
		r := p.running(t)
		tell := r.open(0)
		for i := range 300 {
			tell(podEvent(i+1, i%7, fleet.PodQueued))
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(recordRest)
		synctest.Wait()
		p.mu.Lock()
		if len(p.events[0]) != 300 {
			t.Errorf("%d events on paper", len(p.events[0]))
		}
		for i, e := range p.events[0] {
			if e.Seq != i+1 {
				t.Fatalf("event %d is %d", i+1, e.Seq)
			}
		}
		p.fails = 1 << 20
		p.mu.Unlock()
		tell(podEvent(301, 0, fleet.PodGone))
		if err := r.done(t.Context(), 0); !errors.Is(err, fleet.ErrUnavailable) {
			t.Errorf("done = %v, although it could not be written", err)
		}
		p.mu.Lock()
		p.fails = 0
		p.mu.Unlock()
		if err := r.done(t.Context(), 0); err != nil {
			t.Errorf("done = %v", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if n := len(p.events[0]); n != 301 {
			t.Errorf("%d events on paper", n)
		}
	})
}

// TestRecorder_BacksOff: while nothing can be written, it is tried seldom.
func TestRecorder_BacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPaper()
		p.fails = 1 << 30
		r := p.running(t)
		tell := r.open(0)
		for i := range 600 {
			tell(podEvent(i+1, 0, fleet.PodQueued))
			time.Sleep(100 * time.Millisecond)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.tries > 25 {
			t.Errorf("%d tries in a minute", p.tries)
		}
	})
}
