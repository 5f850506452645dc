package nodeops

import (
	"errors"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// labelled gives a node labels.
func labelled(kv ...string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Labels = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			n.Labels[kv[i]] = kv[i+1]
		}
	}
}

// tainted gives a node taints.
func tainted(taints ...corev1.Taint) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = taints }
}

func labelsOp(policy fleet.ConflictPolicy, lines ...string) fleet.Operation {
	return fleet.Operation{Action: fleet.ActionLabels, Labels: lines, Mode: fleet.EditAdd, OnConflict: policy}
}

func taintsOp(policy fleet.ConflictPolicy, lines ...string) fleet.Operation {
	return fleet.Operation{Action: fleet.ActionTaints, Taints: lines, Mode: fleet.EditAdd, OnConflict: policy}
}

var (
	theirs = corev1.Taint{Key: "theirs", Effect: corev1.TaintEffectNoExecute, TimeAdded: &metav1.Time{Time: now0}}
	gpu    = corev1.Taint{Key: "gpu", Value: "a", Effect: corev1.TaintEffectNoSchedule}
)

// TestEdit_Patches checks what leaves for the API server: named keys only, and a version only where it matters.
func TestEdit_Patches(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		op     fleet.Operation
		node   *corev1.Node
		labels map[string]any
		taints []any
		pinned bool
		edits  int
	}{
		{
			"labels, overwriting", labelsOp(fleet.ConflictOverwrite, "team=blue", "new=", "old-", "none-", "same=x"),
			node(labelled("team", "red", "old", "1", "same", "x", "other", "y"), tainted(theirs)),
			map[string]any{"team": "blue", "new": "", "old": nil},
			nil, false, 3,
		},
		{"labels, if nobody has another", labelsOp(fleet.ConflictFail, "team=blue"), node(), map[string]any{"team": "blue"}, nil, true, 1},
		{
			"labels, where they are", fleet.Operation{
				Action: fleet.ActionLabels, Labels: []string{"team=blue", "new=1"}, Mode: fleet.EditReplace, OnConflict: fleet.ConflictOverwrite,
			}, node(labelled("team", "red")), map[string]any{"team": "blue"}, nil, true, 1,
		},
		{
			"taints keep what they do not name", taintsOp(fleet.ConflictOverwrite, "gpu=b:NoSchedule"), node(tainted(theirs, gpu)), nil,
			[]any{
				map[string]any{"key": "theirs", "effect": "NoExecute", "timeAdded": "1999-11-22T10:00:00Z"},
				map[string]any{"key": "gpu", "value": "b", "effect": "NoSchedule"},
			},
			true, 1,
		},
		{"the last taint", taintsOp(fleet.ConflictFail, "gpu-"), node(tainted(gpu)), nil, []any{}, true, 1},
		{
			"labels and taints of a template in one patch",
			fleet.Operation{
				Action: fleet.ActionTemplate, Labels: []string{"team=blue"}, Taints: []string{"new:NoSchedule"}, OnConflict: fleet.ConflictOverwrite,
			},
			node(tainted(gpu)),
			map[string]any{"team": "blue"},
			[]any{
				map[string]any{"key": "gpu", "value": "a", "effect": "NoSchedule"},
				map[string]any{"key": "new", "effect": "NoSchedule"},
			},
			true, 2,
		},
		{
			"a template whose taints are there", fleet.Operation{
				Action: fleet.ActionTemplate, Labels: []string{"team=blue"}, Taints: []string{"gpu=a:NoSchedule"}, OnConflict: fleet.ConflictOverwrite,
			}, node(tainted(gpu)), map[string]any{"team": "blue"}, nil, false, 1,
		},
		{
			"copied, replacing",
			fleet.Operation{
				Action: fleet.ActionCopy, Mode: fleet.EditReplace, OnConflict: fleet.ConflictOverwrite,
			},
			node(tainted(gpu, corev1.Taint{Key: "node.kubernetes.io/unschedulable", Effect: corev1.TaintEffectNoSchedule})), nil,
			[]any{map[string]any{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}},
			true, 1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, newAPI(tt.node))
				res, err := r.do(tt.op)
				if err != nil || res.State != fleet.ItemSucceeded || !res.Changed || len(res.Edits) != tt.edits {
					t.Fatalf("Do = %+v, %v, want %d edits", res, err, tt.edits)
				}
				meta := map[string]any{"uid": "uid-1"}
				want := map[string]any{"metadata": meta}
				if tt.labels != nil {
					meta["labels"] = tt.labels
				}
				if tt.pinned {
					meta["resourceVersion"] = "1"
				}
				if tt.taints != nil {
					want["spec"] = map[string]any{"taints": tt.taints}
				}
				if diff := cmp.Diff([]map[string]any{want}, r.api.patches); diff != "" {
					t.Errorf("patches (-want +got):\n%s", diff)
				}
				if r.observed == nil {
					t.Error("the cache was not shown the answer")
				}
			})
		})
	}
}

// TestEdit_Without checks what is left alone, and why.
func TestEdit_Without(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		op    fleet.Operation
		node  *corev1.Node
		state fleet.ItemState
		code  string
		says  string
	}{
		{"already so", labelsOp(fleet.ConflictFail, "team=red", "none-"), node(labelled("team", "red")), fleet.ItemSkipped, fleet.CodeUnchanged, "already"},
		{"identical taint", taintsOp(fleet.ConflictFail, "gpu=a:NoSchedule"), node(tainted(gpu)), fleet.ItemSkipped, fleet.CodeUnchanged, "already"},
		{"absent taint", taintsOp(fleet.ConflictFail, "none-"), node(tainted(gpu)), fleet.ItemSkipped, fleet.CodeUnchanged, "already"},
		{
			"another value", labelsOp(fleet.ConflictFail, "new=1", "team=blue"), node(labelled("team", "red")),
			fleet.ItemFailed, fleet.CodeConflict, `label team is "red", not "blue"`,
		},
		{
			"another value, to be skipped", labelsOp(fleet.ConflictSkip, "new=1", "team=blue"), node(labelled("team", "red")),
			fleet.ItemSkipped, fleet.CodeConflict, `label team is "red"`,
		},
		{
			"another value of a taint", taintsOp(fleet.ConflictFail, "gpu=b:NoSchedule", "new:NoSchedule"), node(tainted(gpu)),
			fleet.ItemFailed, fleet.CodeConflict, `taint gpu:NoSchedule is "a", not "b"`,
		},
		{"lines of another time", labelsOp(fleet.ConflictFail, "a=b=c"), node(), fleet.ItemFailed, fleet.CodeInvalid, "a=b=c"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, newAPI(tt.node))
				res, err := r.do(tt.op)
				if res.State != tt.state || res.Code != tt.code || !strings.Contains(res.Message, tt.says) || res.Changed || res.Edits != nil {
					t.Errorf("Do = %+v, %v", res, err)
				}
				if (err != nil) != (tt.state == fleet.ItemFailed) {
					t.Errorf("error is %v with the state %s", err, res.State)
				}
				if len(r.api.patches) != 0 {
					t.Errorf("%d patches", len(r.api.patches))
				}
				if r.record.phases()[0] != string(tt.op.Action)+" result "+string(tt.state) {
					t.Errorf("on record: %v", r.record.phases())
				}
			})
		})
	}
}

// TestCase60_ChangedMeanwhileIsNoBadInput is checklist item 60: what somebody wrote between our read and our patch is
// met by reading again, and the delta is worked out from what is there then.
func TestCase60_ChangedMeanwhileIsNoBadInput(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(node(tainted(gpu)))
		a.hook = func(r *http.Request, n int) (*http.Response, error) {
			if r.Method == http.MethodPatch && n == 0 {
				a.node.Spec.Taints = []corev1.Taint{theirs, {Key: "new", Value: "old", Effect: corev1.TaintEffectNoSchedule}}
				a.touch()
			}
			return nil, nil
		}
		r := newRig(t, a)
		res, err := r.do(taintsOp(fleet.ConflictOverwrite, "new=1:NoSchedule", "gpu-"))
		if err != nil || res.State != fleet.ItemSucceeded {
			t.Fatalf("Do = %+v, %v", res, err)
		}
		if len(a.node.Spec.Taints) != 2 || a.node.Spec.Taints[0].Key != "theirs" || a.node.Spec.Taints[1].Value != "1" {
			t.Errorf("taints are %v", a.node.Spec.Taints)
		}
		// Found and left are those of the patch that landed, in the result and on record.
		want := []fleet.Edit{{Kind: fleet.EditTaint, Key: "new", Effect: fleet.NoSchedule, Before: new("old"), After: new("1"), Outcome: fleet.EditChanged}}
		if diff := cmp.Diff(want, res.Edits); diff != "" {
			t.Errorf("edits (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"taints intent", "taints intent", "taints result succeeded"}, r.record.phases()); diff != "" {
			t.Errorf("on record (-want +got):\n%s", diff)
		}
	})
}

// TestEdit_AfterACrash abandons an attempt once its patch has landed, or before, and does it again.
func TestEdit_AfterACrash(t *testing.T) {
	t.Parallel()
	op := fleet.Operation{
		Action: fleet.ActionTemplate, Labels: []string{"team=blue", "same=x"}, Taints: []string{"gpu=b:NoSchedule"}, OnConflict: fleet.ConflictOverwrite,
	}
	start := node(labelled("team", "red", "same", "x"), tainted(gpu))
	edits := []fleet.Edit{
		{Kind: fleet.EditLabel, Key: "team", Before: new("red"), After: new("blue"), Outcome: fleet.EditChanged},
		{Kind: fleet.EditTaint, Key: "gpu", Effect: fleet.NoSchedule, Before: new("a"), After: new("b"), Outcome: fleet.EditChanged},
	}
	for _, tt := range []struct {
		name    string
		landed  bool
		since   func(n *corev1.Node) // what somebody does in between
		patches int                  // of the second attempt
		want    fleet.ItemResult
	}{
		{"landed", true, nil, 0, fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true, Edits: edits}},
		{"did not land", false, nil, 1, fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true, Edits: edits}},
		{
			"landed, and a part was changed since", true, func(n *corev1.Node) { n.Labels["team"] = "green" }, 0,
			fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeUndone, Changed: true, Edits: edits},
		},
		{
			"landed, and all was taken back", true, func(n *corev1.Node) { n.Labels["team"], n.Spec.Taints = "red", []corev1.Taint{gpu} }, 1,
			fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true, Edits: edits},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, newAPI(start))
				dead := errors.New("the process is dead")
				if tt.landed {
					r.record.refuse = func(e fleet.Entry) error { // it dies between the patch and its record
						if e.Phase == "result" {
							return dead
						}
						return nil
					}
				} else {
					r.api.hook = func(req *http.Request, _ int) (*http.Response, error) {
						if req.Method == http.MethodPatch {
							return nil, syscall.ECONNREFUSED
						}
						return nil, nil
					}
					r.record.refuse = func(e fleet.Entry) error {
						if e.Phase == "result" {
							return dead
						}
						return nil
					}
				}
				if _, err := r.do(op); !errors.Is(err, fleet.ErrNotRecorded) {
					t.Fatalf("first attempt: %v", err)
				}
				r.record.refuse, r.api.hook = nil, nil
				if tt.since != nil {
					tt.since(r.api.node)
					r.api.touch()
				}
				time.Sleep(time.Minute)
				before := len(r.api.patches)
				res, err := r.do(op, again)
				if err != nil {
					t.Fatal(err)
				}
				res.Message = ""
				if diff := cmp.Diff(tt.want, res); diff != "" {
					t.Errorf("result (-want +got):\n%s", diff)
				}
				if got := len(r.api.patches) - before; got != tt.patches {
					t.Errorf("%d patches, want %d", got, tt.patches)
				}
			})
		})
	}
	t.Run("as asked without an intent", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, newAPI(node(labelled("team", "blue"))))
			res, err := r.do(labelsOp(fleet.ConflictOverwrite, "team=blue"), again)
			if err != nil || res.Code != fleet.CodeUnchanged || res.Changed {
				t.Errorf("Do = %+v, %v", res, err)
			}
		})
	})
}

// TestEdit_LostAnswer loses the answer to a patch that has landed: it is not made again.
func TestEdit_LostAnswer(t *testing.T) {
	t.Parallel()
	for _, op := range []fleet.Operation{labelsOp(fleet.ConflictFail, "team=blue"), taintsOp(fleet.ConflictFail, "new:NoSchedule")} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(node(labelled("other", "x")))
			a.late = func(n int) error {
				if n == 0 {
					return syscall.ECONNRESET
				}
				return nil
			}
			r := newRig(t, a)
			res, err := r.do(op)
			if err != nil || res.State != fleet.ItemSucceeded || !res.Changed || len(res.Edits) != 1 || a.landed != 1 {
				t.Errorf("Do = %+v, %v after %d landed", res, err, a.landed)
			}
		})
	}
}

func TestRevert(t *testing.T) {
	t.Parallel()
	ours := kube.CordonNote{V: 1, By: "bob", Reason: "fan", At: now0, Batch: "b0"}.String()
	label := fleet.Edit{Kind: fleet.EditLabel, Key: "team", Before: new("red"), After: new("blue"), Outcome: fleet.EditChanged}
	added := fleet.Edit{Kind: fleet.EditLabel, Key: "new", After: new(""), Outcome: fleet.EditAdded}
	taint := fleet.Edit{Kind: fleet.EditTaint, Key: "gpu", Effect: fleet.NoSchedule, Before: new("a"), After: new("b"), Outcome: fleet.EditChanged}
	removed := fleet.Edit{Kind: fleet.EditTaint, Key: "old", Effect: fleet.NoExecute, Before: new("x"), Outcome: fleet.EditRemoved}
	cordoning := fleet.Edit{Kind: fleet.EditCordon, After: &ours, Outcome: fleet.EditAdded}
	uncordoning := fleet.Edit{Kind: fleet.EditCordon, Before: &ours, Outcome: fleet.EditRemoved}
	asLeft := node(labelled("team", "blue", "new", "", "other", "x"), tainted(theirs, corev1.Taint{Key: "gpu", Value: "b", Effect: corev1.TaintEffectNoSchedule}))
	for _, tt := range []struct {
		name   string
		undo   []fleet.Edit
		node   *corev1.Node
		state  fleet.ItemState
		code   string
		says   string
		labels map[string]string
		taints []corev1.Taint
		cordon bool
		edits  int
	}{
		{
			"all of it",
			[]fleet.Edit{label, added, taint, removed},
			asLeft, fleet.ItemSucceeded, "", "",
			map[string]string{"team": "red", "other": "x"},
			[]corev1.Taint{theirs, gpu, {Key: "old", Value: "x", Effect: corev1.TaintEffectNoExecute}},
			false, 4,
		},
		{
			"what somebody changed is theirs",
			[]fleet.Edit{label, added, taint},
			node(labelled("team", "green", "new", ""), tainted(theirs, corev1.Taint{Key: "gpu", Value: "c", Effect: corev1.TaintEffectNoSchedule})),
			fleet.ItemSucceeded, fleet.CodeChangedSince, "label team; taint gpu:NoSchedule",
			map[string]string{"team": "green"},
			[]corev1.Taint{theirs, {Key: "gpu", Value: "c", Effect: corev1.TaintEffectNoSchedule}},
			false, 1,
		},
		{
			"all was changed since",
			[]fleet.Edit{label},
			node(labelled("team", "green")), fleet.ItemSkipped, fleet.CodeChangedSince, "label team",
			map[string]string{"team": "green"},
			nil, false, 0,
		},
		{
			"removed since", []fleet.Edit{label}, node(), fleet.ItemSkipped, fleet.CodeChangedSince, "label team", nil, nil, false, 0,
		},
		{
			"already back",
			[]fleet.Edit{label},
			node(labelled("team", "red")), fleet.ItemSkipped, fleet.CodeUnchanged, "already",
			map[string]string{"team": "red"},
			nil, false, 0,
		},
		{"nothing to undo", nil, node(), fleet.ItemSkipped, fleet.CodeNothing, "had not changed", nil, nil, false, 0},
		{"cordon", []fleet.Edit{cordoning}, node(cordoned, noted("b0")), fleet.ItemSucceeded, "", "", nil, nil, false, 1},
		{
			"cordon of another batch", []fleet.Edit{cordoning}, node(cordoned, noted("b7")), fleet.ItemSkipped, fleet.CodeChangedSince, "cordon", nil, nil, true, 0,
		},
		{"cordon with kubectl", []fleet.Edit{cordoning}, node(cordoned), fleet.ItemSkipped, fleet.CodeChangedSince, "cordon", nil, nil, true, 0},
		{
			"cordon with kubectl behind our note",
			[]fleet.Edit{cordoning},
			node(cordoned, noted("b0"), managed("kubectl-cordon", now0.Add(time.Hour))),
			fleet.ItemSkipped, fleet.CodeChangedSince, "cordon", nil, nil, true, 0,
		},
		{"uncordoned since", []fleet.Edit{cordoning}, node(), fleet.ItemSkipped, fleet.CodeUnchanged, "", nil, nil, false, 0},
		{"uncordon", []fleet.Edit{uncordoning}, node(), fleet.ItemSucceeded, "", "", nil, nil, true, 1},
		{"cordoned since", []fleet.Edit{uncordoning}, node(cordoned), fleet.ItemSkipped, fleet.CodeChangedSince, "cordon", nil, nil, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, newAPI(tt.node))
				r.people.caller.Role = fleet.RoleAdmin // old is put back, with NoExecute
				undo := func(it *fleet.Item) { it.Undo = tt.undo }
				res, err := r.do(fleet.Operation{Action: fleet.ActionRevert, Revert: "b0"}, undo)
				if err != nil || res.State != tt.state || res.Code != tt.code || !strings.Contains(res.Message, tt.says) || len(res.Edits) != tt.edits {
					t.Errorf("Do = %+v, %v", res, err)
				}
				n := r.api.node
				if diff := cmp.Diff(tt.labels, n.Labels); diff != "" {
					t.Errorf("labels (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tt.taints, n.Spec.Taints); diff != "" {
					t.Errorf("taints (-want +got):\n%s", diff)
				}
				if n.Spec.Unschedulable != tt.cordon {
					t.Errorf("cordoned: %v", n.Spec.Unschedulable)
				}
				if tt.edits == 0 {
					if len(r.api.patches) != 0 {
						t.Errorf("%d patches", len(r.api.patches))
					}
					return
				}
				if len(r.api.patches) != 1 || r.api.patches[0]["metadata"].(map[string]any)["resourceVersion"] != "1" {
					t.Errorf("patches: %v", r.api.patches)
				}
				// Done again after a crash, it is found to have been done.
				time.Sleep(time.Minute)
				second, err := r.do(fleet.Operation{Action: fleet.ActionRevert, Revert: "b0"}, undo, again)
				if err != nil || len(r.api.patches) != 1 {
					t.Errorf("again: %+v, %v, %d patches", second, err, len(r.api.patches))
				}
				if diff := cmp.Diff(res, second); diff != "" {
					t.Errorf("again (-first +second):\n%s", diff)
				}
				// And what a revert did can be taken back.
				res, err = r.do(fleet.Operation{Action: fleet.ActionRevert, Revert: "b1"}, func(it *fleet.Item) { it.Undo = res.Edits })
				if err != nil || res.State != fleet.ItemSucceeded || len(res.Edits) != tt.edits {
					t.Errorf("taking it back: %+v, %v", res, err)
				}
				if diff := cmp.Diff(tt.node.Labels, r.api.node.Labels); diff != "" {
					t.Errorf("labels after all (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestAuthority_EveryPermission checks that lines and undos are part of what a person must be allowed, at the time.
func TestAuthority_EveryPermission(t *testing.T) {
	t.Parallel()
	put := fleet.Edit{Kind: fleet.EditTaint, Key: "old", Effect: fleet.NoExecute, Before: new(""), Outcome: fleet.EditRemoved}
	for _, tt := range []struct {
		name string
		op   fleet.Operation
		undo []fleet.Edit
		perm fleet.Permission
	}{
		{"NoExecute", taintsOp(fleet.ConflictFail, "a:NoExecute"), nil, fleet.PermNoExecute},
		{"protected", fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"kubernetes.io/hostname=x"}, AllowProtected: true}, nil, fleet.PermProtected},
		{"revert", fleet.Operation{Action: fleet.ActionRevert, Revert: "b0"}, []fleet.Edit{put}, fleet.PermNoExecute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, newAPI(node()))
				undo := func(it *fleet.Item) { it.Undo = tt.undo }
				_, err := r.do(tt.op, undo)
				if !errors.Is(err, fleet.ErrAuthorityLost) || !strings.Contains(err.Error(), string(tt.perm)) || len(r.api.patches) != 0 {
					t.Errorf("an operator: %v", err)
				}
				r.people.caller.Role = fleet.RoleAdmin
				if _, err := r.do(tt.op, undo); err != nil {
					t.Errorf("an admin: %v", err)
				}
			})
		})
	}
}
