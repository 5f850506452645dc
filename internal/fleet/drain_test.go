package fleet

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTracker(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	pod := func(name, uid string, s PodState, evicted bool) *PodProgress {
		return &PodProgress{Namespace: "ns", Name: name, UID: uid, State: s, Evicted: evicted}
	}
	var tr Tracker
	if diff := cmp.Diff(DrainProgress{}, tr.Progress()); diff != "" {
		t.Errorf("before any event (-want +got):\n%s", diff)
	}
	for i, e := range []DrainEvent{
		{NodeState: DrainChecking},
		{Pod: pod("z", "1", PodQueued, false)},
		{Pod: pod("a", "2", PodQueued, false)},
		{NodeState: DrainEvicting},
		{Pod: pod("z", "1", PodEvicting, false)},
		{Pod: pod("z", "1", PodTerminating, true)},
		{Pod: pod("z", "1", PodGone, true)},
		{Pod: pod("z", "3", PodQueued, false)}, // the next one of the name
		{NodeState: DrainEvicting, Message: "still"},
	} {
		e.Seq, e.At = i+1, at.Add(time.Duration(i)*time.Second)
		tr.Apply(e)
	}
	before := tr.Progress()
	want := DrainProgress{
		State: DrainEvicting, Since: at.Add(3 * time.Second), Message: "still", Evicted: 1,
		Pods: []PodProgress{*pod("a", "2", PodQueued, false), *pod("z", "1", PodGone, true), *pod("z", "3", PodQueued, false)},
	}
	if diff := cmp.Diff(want, before); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	tr.Apply(DrainEvent{At: at.Add(time.Hour), NodeState: DrainDone, Volumes: []string{"pv"}})
	if got := tr.Progress(); got.State != DrainDone || got.Message != "" || len(got.Volumes) != 1 || !got.Since.Equal(at.Add(time.Hour)) {
		t.Errorf("at the end: %+v", got)
	}
	if diff := cmp.Diff(want, before); diff != "" {
		t.Errorf("what was handed out has changed (-want +got):\n%s", diff)
	}
}
