package marks

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

var testTime = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// FuzzLabels checks that what passes is written as it is read, and comes to something on every node.
func FuzzLabels(f *testing.F) {
	for _, s := range []string{"team=red", "k=", "k-", "a/b=c", "/a=1", "X/y/x=1", "k=v-", "k=a=b", "=", "-", "\xff=1", "k=\x00"} {
		f.Add(s, "team=blue")
	}
	f.Fuzz(func(t *testing.T, line, other string) {
		ls, err := ParseLabels("labels", []string{line, other})
		if err != nil {
			return
		}
		again, err := ParseLabels("labels", ls.Lines())
		if err != nil || cmp.Diff(ls, again) != "" {
			t.Errorf("%q, %q read as %v, and again as %v (%v)", line, other, ls, again, err)
		}
		have := map[string]string{}
		for range 2 { // the second time there is nothing to do
			for _, e := range Effective(ls.Diff(have, fleet.EditAdd, fleet.ConflictOverwrite)) {
				if delete(have, e.Key); e.After != nil {
					have[e.Key] = *e.After
				}
			}
		}
		if left := Effective(ls.Diff(have, fleet.EditAdd, fleet.ConflictFail)); len(left) > 0 {
			t.Errorf("%q, %q: %v is left to do", line, other, left)
		}
	})
}

// FuzzTaints is FuzzLabels for taints.
func FuzzTaints(f *testing.F) {
	for _, s := range []string{"gpu=true:NoSchedule", "gpu:NoExecute-", "gpu-", "gpu=x:NoSchedule-", "a:b:c", "a=b=c:NoSchedule", ":", "-", ":-", "\xff:NoSchedule"} {
		f.Add(s, "gpu=b:PreferNoSchedule")
	}
	f.Fuzz(func(t *testing.T, line, other string) {
		ts, err := ParseTaints("taints", []string{line, other})
		if err != nil {
			return
		}
		again, err := ParseTaints("taints", ts.Lines())
		if err != nil || cmp.Diff(ts, again) != "" {
			t.Errorf("%q, %q read as %v, and again as %v (%v)", line, other, ts, again, err)
		}
		stays := fleet.Taint{Key: "node.kubernetes.io/unschedulable", Effect: fleet.NoSchedule, TimeAdded: &testTime}
		_, list := ts.Diff([]fleet.Taint{stays}, fleet.EditAdd, fleet.ConflictOverwrite)
		seen := map[string]bool{}
		for _, taint := range list {
			key := taint.Key + ":" + string(taint.Effect)
			if seen[key] {
				t.Errorf("%q, %q: %s twice in %v", line, other, key, list)
			}
			seen[key] = true
		}
		if edits, _ := ts.Diff(list, fleet.EditAdd, fleet.ConflictFail); len(Effective(edits)) > 0 {
			t.Errorf("%q, %q: %v is left to do", line, other, edits)
		}
	})
}
