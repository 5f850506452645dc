package nodeops

import (
	"encoding/json"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// What happens to a node while a batch works on it, as FuzzRecovery plays it.
const (
	diesBefore = iota // the process dies before anything is written
	diesMeant         // with its intent on record, before the patch
	diesDone          // with the patch made, before the result
	answers           // the try comes to its end
	undone            // a person takes the cordon back with kubectl
	cordonedElsewhere
	moves
)

// FuzzRecovery plays histories of crashes and of other people, and compares what is decided after them with a model that
// knows what has really happened. What landed is not done again and is reported as done; what did not is; and nobody
// fights with a person who has taken it back.
func FuzzRecovery(f *testing.F) {
	f.Add(byte(0), false, []byte{answers})
	for op := range byte(3) {
		for _, before := range []bool{false, true} {
			f.Add(op, before, []byte{diesBefore, diesMeant, diesDone, answers})
			f.Add(op, before, []byte{diesDone, diesMeant, answers})
			f.Add(op, before, []byte{diesMeant, diesMeant, answers})
			f.Add(op, before, []byte{diesDone, undone, answers})
			f.Add(op, before, []byte{diesMeant, cordonedElsewhere, answers})
		}
	}
	ops := []fleet.Operation{
		cordonOp, uncordonOp,
		{Action: fleet.ActionLabels, Labels: []string{"example.com/a=1", "example.com/b-"}, OnConflict: fleet.ConflictOverwrite},
	}
	f.Fuzz(func(t *testing.T, which byte, before bool, history []byte) {
		if len(history) > 12 {
			return
		}
		op := ops[int(which)%len(ops)]
		n := node()
		if before { // as a batch of before has left it
			cordoned(n)
			noted("b0")(n)
		}
		if op.Action == fleet.ActionLabels {
			n.Labels = map[string]string{"example.com/b": "old"}
			if before {
				n.Labels["example.com/a"] = "0"
			}
		}
		var (
			record  []byte    // the newest intent
			meant   time.Time // the first
			landed  bool
			touched bool // by somebody else, since
			clock   = now0.Add(time.Hour)
		)
		for i, move := range history {
			clock = clock.Add(time.Minute)
			switch move % moves {
			case undone:
				touched = touched || n.Spec.Unschedulable
				n.Spec.Unschedulable = false // as kubectl does: notes stay
				continue
			case cordonedElsewhere:
				touched = touched || !n.Spec.Unschedulable
				if !n.Spec.Unschedulable {
					n.Annotations = nil
				}
				cordoned(n)
				continue
			}
			w := work{by: ada, batch: "b1", item: fleet.Item{Ref: n1, UID: "uid-1"}, op: op, at: clock, intended: meant}
			if record != nil {
				var was intention
				if err := json.Unmarshal(record, &was); err != nil {
					t.Fatal(err)
				}
				w.recorded = was.Edits
			}
			d := verbs[op.Action](w, n)
			switch {
			case landed && !touched && d.change != nil:
				t.Fatalf("move %d of %v: it would be done twice: %+v", i, history, d.change)
			case landed && !touched && (d.result.State != fleet.ItemSucceeded || !d.result.Changed || len(d.result.Edits) != len(w.recorded)):
				t.Fatalf("move %d of %v: it landed and is %+v", i, history, d.result)
			case landed && op.Action == fleet.ActionCordon && !n.Spec.Unschedulable && d.change != nil && n.Annotations != nil:
				t.Fatalf("move %d of %v: somebody took it back, and it would be done again", i, history)
			case !landed && !touched && needs(op, before) != (d.change != nil):
				t.Fatalf("move %d of %v: nothing has happened yet, and the decision is %+v", i, history, d)
			case d.change == nil && d.result.State == "":
				t.Fatalf("move %d of %v: no decision", i, history)
			}
			if d.change == nil || move%moves == diesBefore {
				continue
			}
			if meant.IsZero() {
				meant = clock
			}
			var err error
			if record, err = json.Marshal(intention{Before: d.change.before, After: d.change.after, Edits: d.change.edits}); err != nil {
				t.Fatal(err)
			}
			if move%moves == diesMeant {
				continue
			}
			patch(n, d.change)
			landed, touched = true, false
		}
	})
}

// needs tells whether there is something to do on a node that nobody has touched.
func needs(op fleet.Operation, before bool) bool {
	switch op.Action {
	case fleet.ActionCordon:
		return !before
	case fleet.ActionUncordon:
		return before
	default:
		return true
	}
}

// patch makes a change, as the API server does.
func patch(n *corev1.Node, c *change) {
	set := func(m *map[string]string, values map[string]any) {
		for k, v := range values {
			if *m == nil {
				*m = map[string]string{}
			}
			if v == nil {
				delete(*m, k)
			} else {
				(*m)[k] = v.(string)
			}
		}
		if len(*m) == 0 {
			*m = nil
		}
	}
	set(&n.Annotations, c.annotations)
	set(&n.Labels, c.labels)
	if v, ok := c.spec["unschedulable"]; ok {
		n.Spec.Unschedulable = v != nil
	}
}
