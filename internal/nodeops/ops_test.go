package nodeops

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

func TestDecisions(t *testing.T) {
	t.Parallel()
	include := fleet.Operation{Action: fleet.ActionUncordon, Foreign: fleet.ForeignInclude}
	for _, tt := range []struct {
		name     string
		op       fleet.Operation
		node     *corev1.Node
		intended bool
		write    bool
		want     fleet.ItemResult // without the message
		says     string
	}{
		{"cordon", cordonOp, node(), false, true, fleet.ItemResult{State: fleet.ItemSucceeded}, ""},
		{
			"cordon what we cordoned in another batch", cordonOp, node(cordoned, noted("b0")), false, false,
			fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeUnchanged},
			"already cordoned by bob since 1999-11-22 10:00 UTC (fan)",
		},
		{
			"cordon what kubectl cordoned", cordonOp, node(cordoned, managed("kubectl-cordon", now0)), false, false,
			fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeUnchanged},
			"with kubectl-cordon since",
		},
		{
			"cordon what this batch cordoned", cordonOp, node(cordoned, noted("b1")), false, false,
			fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true},
			"",
		},
		{
			"cordon over a note that outlived its cordon", cordonOp, node(noted("b0")), false, true,
			fleet.ItemResult{State: fleet.ItemSucceeded},
			"",
		},
		{
			"cordon what somebody uncordoned behind this batch", cordonOp, node(noted("b1")), true, false,
			fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeUndone, Changed: true},
			"uncordoned it since",
		},
		{"uncordon ours", uncordonOp, node(cordoned, noted("b0")), false, true, fleet.ItemResult{State: fleet.ItemSucceeded}, ""},
		{
			"uncordon ours, managed by us", uncordonOp, node(cordoned, noted("b0"), managed(kube.FieldManager, now0)), false, true,
			fleet.ItemResult{State: fleet.ItemSucceeded},
			"",
		},
		{
			"uncordon foreign", uncordonOp, node(cordoned, managed("karpenter", now0)), false, false,
			fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeForeignCordon},
			"with karpenter",
		},
		{
			"uncordon what kubectl cordoned again behind our note", uncordonOp,
			node(cordoned, noted("b0"), managed("kubectl-cordon", now0.Add(time.Hour))), false, false,
			fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeForeignCordon},
			"with kubectl-cordon",
		},
		{
			"uncordon a garbled note", uncordonOp, node(cordoned, func(n *corev1.Node) {
				n.Annotations = map[string]string{kube.CordonAnnotation: "{"}
			}), false, false, fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeForeignCordon}, "",
		},
		{
			"uncordon what was cordoned before us", uncordonOp, node(cordoned, func(n *corev1.Node) {
				n.Annotations = map[string]string{kube.CordonAnnotation: kube.CordonNote{V: 1, By: "bob", PrevUnschedulable: true}.String()}
			}), false, false, fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeForeignCordon}, "",
		},
		{"uncordon foreign by choice", include, node(cordoned), false, true, fleet.ItemResult{State: fleet.ItemSucceeded}, ""},
		{
			"uncordon what is schedulable", uncordonOp, node(), false, false,
			fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeUnchanged},
			"already schedulable",
		},
		{
			"uncordon what is schedulable, with our note left", uncordonOp, node(noted("b0")), false, true,
			fleet.ItemResult{State: fleet.ItemSucceeded, Code: fleet.CodeCleaned},
			"",
		},
		{"uncordon that landed", uncordonOp, node(), true, false, fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true}, ""},
		{
			"uncordon that landed and was cordoned again", uncordonOp, node(cordoned, func(n *corev1.Node) {
				n.Annotations = map[string]string{
					kube.CordonAnnotation: kube.CordonNote{V: 1, By: "carol", At: now0.Add(time.Hour), Batch: "b7"}.String(),
				}
			}), true, false, fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeUndone}, "by carol",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := work{by: ada, batch: "b1", item: fleet.Item{Ref: n1, UID: "uid-1"}, op: tt.op, at: now0.Add(30 * time.Minute)}
			if tt.intended {
				w.intended = now0.Add(20 * time.Minute)
			}
			before := tt.node.DeepCopy()
			d := verbs[tt.op.Action](w, tt.node)
			if (d.change != nil) != tt.write {
				t.Errorf("change is %+v, want one: %v", d.change, tt.write)
			}
			got := d.result
			if !strings.Contains(got.Message, tt.says) {
				t.Errorf("message is %q, want it to say %q", got.Message, tt.says)
			}
			if got.State == fleet.ItemSkipped && got.Message == "" {
				t.Error("skipped without a reason")
			}
			got.Message = ""
			if got.Changed && got.Code != fleet.CodeUndone && !tt.intended && len(got.Edits) == 0 {
				t.Error("changed, and nobody can take it back")
			}
			got.Edits = nil
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, tt.node); diff != "" {
				t.Errorf("the verb changed the node (-before +after):\n%s", diff)
			}
		})
	}
}

func TestDo_CordonIsOnePatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, newAPI(node(noted("b0"))))
		res, err := r.do(cordonOp)
		if err != nil || res.State != fleet.ItemSucceeded || !res.Changed {
			t.Fatalf("Do = %+v, %v", res, err)
		}
		want := []map[string]any{{
			"metadata": map[string]any{
				"uid": "uid-1", "resourceVersion": "1",
				"annotations": map[string]any{
					kube.CordonAnnotation:       `{"v":1,"by":"ada","via":"ui","reason":"disk swap","at":"2000-01-01T00:00:00Z","job":"b1","prevUnschedulable":false}`,
					kube.CordonReasonAnnotation: "disk swap",
				},
			},
			"spec": map[string]any{"unschedulable": true},
		}}
		if diff := cmp.Diff(want, r.api.patches); diff != "" {
			t.Errorf("patches (-want +got):\n%s", diff)
		}
		if len(r.observed) != 1 || r.observed[0].ResourceVersion != "2" || !r.observed[0].Spec.Unschedulable {
			t.Errorf("the cache was shown %+v", r.observed)
		}
		if diff := cmp.Diff([]string{"cordon intent", "cordon result succeeded"}, r.record.phases()); diff != "" {
			t.Errorf("on record (-want +got):\n%s", diff)
		}
		e := r.record.entries[0]
		if e.Actor != "ada" || e.Session != "s1" || e.Addr != "192.0.2.1" || e.NodeUID != "uid-1" || e.Batch != "b1" ||
			e.Cluster != "prod" || e.Node != "n1" || e.Reason != "disk swap" ||
			!strings.HasPrefix(e.Detail, `{"before":{"unschedulable":false},"after":{"unschedulable":true,`) {
			t.Errorf("intent is %+v", e)
		}
	})
}

func TestDo_CordonWithoutReasonDropsAnOldOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, newAPI(node(noted("b0"))))
		if _, err := r.do(fleet.Operation{Action: fleet.ActionCordon}); err != nil {
			t.Fatal(err)
		}
		if old, ok := r.api.node.Annotations[kube.CordonReasonAnnotation]; ok {
			t.Errorf("the reason of an earlier cordon stayed: %q", old)
		}
	})
}

func TestDo_UncordonTakesOurNotesAndNothingElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, newAPI(node(cordoned, noted("b0"), func(n *corev1.Node) { n.Annotations["other"] = "stays" })))
		res, err := r.do(uncordonOp)
		if err != nil || res.State != fleet.ItemSucceeded || !res.Changed {
			t.Fatalf("Do = %+v, %v", res, err)
		}
		if r.api.node.Spec.Unschedulable || len(r.api.patches) != 1 {
			t.Errorf("node is %+v after %d patches", r.api.node.Spec, len(r.api.patches))
		}
		if diff := cmp.Diff(map[string]string{"other": "stays"}, r.api.node.Annotations); diff != "" {
			t.Errorf("annotations (-want +got):\n%s", diff)
		}
	})
}

func TestDo_IntentIsOnRecordBeforeTheRequestLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(node())
		r := newRig(t, a)
		a.hook = func(req *http.Request, _ int) (*http.Response, error) {
			if req.Method == http.MethodPatch {
				if diff := cmp.Diff([]string{"cordon intent"}, r.record.phases()); diff != "" {
					t.Errorf("when the patch arrives, on record (-want +got):\n%s", diff)
				}
			}
			return nil, nil
		}
		if _, err := r.do(cordonOp); err != nil {
			t.Fatal(err)
		}
	})
}

func TestDo_WithoutRecordNoWrite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, newAPI(node()))
		r.record.refuse = func(fleet.Entry) error { return errors.New("disk full") }
		if _, err := r.do(cordonOp); !errors.Is(err, fleet.ErrNotRecorded) {
			t.Errorf("Do: %v, want ErrNotRecorded", err)
		}
		if len(r.api.patches) != 0 {
			t.Errorf("%d patches without an intent on record", len(r.api.patches))
		}
	})
}

func TestDo_ResultThatCannotBeRecordedIsFoundAgain(t *testing.T) {
	t.Parallel()
	for _, op := range []fleet.Operation{cordonOp, uncordonOp} {
		t.Run(string(op.Action), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n := node()
				if op.Action == fleet.ActionUncordon {
					n = node(cordoned, noted("b0"))
				}
				r := newRig(t, newAPI(n))
				r.record.refuse = func(e fleet.Entry) error {
					if e.Phase == "result" {
						return errors.New("disk full")
					}
					return nil
				}
				if _, err := r.do(op); !errors.Is(err, fleet.ErrNotRecorded) {
					t.Fatalf("Do: %v, want ErrNotRecorded", err)
				}
				r.record.refuse = nil
				res, err := r.do(op, again)
				if err != nil || res.State != fleet.ItemSucceeded || !res.Changed {
					t.Errorf("Do again = %+v, %v", res, err)
				}
				if r.api.landed != 1 {
					t.Errorf("the node was written %d times", r.api.landed)
				}
				want := []string{string(op.Action) + " intent", string(op.Action) + " result succeeded"}
				if diff := cmp.Diff(want, r.record.phases()); diff != "" {
					t.Errorf("on record (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestDo_IntentOfAnotherBatchIsNotOurs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, newAPI(node()))
		if _, err := r.record.Append(t.Context(), entry(ada, "b0", uncordonOp, n1, "intent")); err != nil {
			t.Fatal(err)
		}
		res, err := r.do(uncordonOp, again)
		if err != nil || res.State != fleet.ItemSkipped || res.Code != fleet.CodeUnchanged || res.Changed {
			t.Errorf("Do = %+v, %v: this batch had changed nothing", res, err)
		}
	})
}

func TestDo_Authority(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		people people
		want   error
		denied bool
	}{
		{"demoted", people{caller: fleet.Caller{Role: fleet.RoleViewer}}, fleet.ErrAuthorityLost, true},
		{"disabled", people{err: fmt.Errorf("ada: %w", fleet.ErrUnauthenticated)}, fleet.ErrAuthorityLost, true},
		{"gone", people{err: fmt.Errorf("ada: %w", fleet.ErrNotFound)}, fleet.ErrAuthorityLost, true},
		{"unknown because the store is down", people{err: fleet.ErrUnavailable}, fleet.ErrNotRecorded, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, newAPI(node()))
				*r.people = tt.people
				if _, err := r.do(cordonOp); !errors.Is(err, tt.want) {
					t.Errorf("Do: %v, want %v", err, tt.want)
				}
				if r.api.gets+len(r.api.patches) != 0 {
					t.Error("the cluster was asked")
				}
				if denied := len(r.record.entries) == 1 && r.record.entries[0].Phase == "denied"; denied != tt.denied {
					t.Errorf("on record: %v", r.record.phases())
				}
			})
		})
	}
}

func TestDo_Conflicts(t *testing.T) {
	t.Parallel()
	// other is a writer that is faster than us, each time or a number of times.
	other := func(a *api, times int, what func(n *corev1.Node)) {
		a.hook = func(r *http.Request, n int) (*http.Response, error) {
			if r.Method == http.MethodPatch && n < times {
				what(a.node)
				a.touch()
			}
			return nil, nil
		}
	}
	t.Run("a few are nothing", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, newAPI(node()))
			other(r.api, 4, func(*corev1.Node) {})
			start := time.Now()
			res, err := r.do(cordonOp)
			if err != nil || res.State != fleet.ItemSucceeded || len(r.api.patches) != 5 || r.api.landed != 1 {
				t.Errorf("Do = %+v, %v after %d patches", res, err, len(r.api.patches))
			}
			if took := time.Since(start); took < 4*pause || took > 8*pause {
				t.Errorf("four waits took %s, want each between %s and %s", took, pause, 2*pause)
			}
			if diff := cmp.Diff([]string{"cordon intent", "cordon result succeeded"}, r.record.phases()); diff != "" {
				t.Errorf("on record (-want +got):\n%s", diff)
			}
		})
	})
	t.Run("too many", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, newAPI(node()))
			other(r.api, 100, func(*corev1.Node) {})
			res, err := r.do(cordonOp)
			if !errors.Is(err, fleet.ErrConflict) || res.Code != fleet.CodeConflict || res.Message == "" {
				t.Errorf("Do = %+v, %v", res, err)
			}
			if len(r.api.patches) != 5 || r.api.landed != 0 {
				t.Errorf("%d patches, %d landed", len(r.api.patches), r.api.landed)
			}
		})
	})
	t.Run("the intent is looked at again", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, newAPI(node()))
			other(r.api, 1, func(n *corev1.Node) { cordoned(n); noted("b9")(n) })
			res, err := r.do(cordonOp)
			if err != nil || res.State != fleet.ItemSkipped || res.Code != fleet.CodeUnchanged || !strings.Contains(res.Message, "by bob") {
				t.Errorf("Do = %+v, %v", res, err)
			}
			if r.api.landed != 0 || r.api.node.Annotations[kube.CordonReasonAnnotation] != "fan" {
				t.Error("the other person's note was overwritten")
			}
		})
	})
	t.Run("replaced in between", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, newAPI(node()))
			other(r.api, 1, func(n *corev1.Node) { withUID("uid-2")(n) })
			res, err := r.do(cordonOp)
			if err != nil || res.State != fleet.ItemSkipped || res.Code != fleet.CodeReplaced || r.api.landed != 0 {
				t.Errorf("Do = %+v, %v", res, err)
			}
		})
	})
	t.Run("deleted in between", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, newAPI(node()))
			r.api.hook = func(req *http.Request, _ int) (*http.Response, error) {
				if req.Method == http.MethodPatch {
					r.api.node = nil
				}
				return nil, nil
			}
			res, err := r.do(cordonOp)
			if !errors.Is(err, fleet.ErrNotFound) || res.Code != fleet.CodeNotFound || !strings.Contains(res.Message, "n1") {
				t.Errorf("Do = %+v, %v", res, err)
			}
		})
	})
}

func TestDo_UIDs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, newAPI(node(withUID("uid-2"))))
		res, err := r.do(cordonOp)
		if err != nil || res.Code != fleet.CodeReplaced || len(r.api.patches) != 0 {
			t.Errorf("another uid: %+v, %v", res, err)
		}
		// A node that nobody knew when the list was frozen is the one that is there at its turn.
		res, err = r.do(cordonOp, func(it *fleet.Item) { it.UID = "" })
		if err != nil || res.State != fleet.ItemSucceeded || r.api.landed != 1 {
			t.Errorf("unknown uid: %+v, %v", res, err)
		}
		if e := r.record.entries[len(r.record.entries)-1]; e.NodeUID != "uid-2" {
			t.Errorf("on record without the uid: %+v", e)
		}
	})
}

func TestDo_LostAnswers(t *testing.T) {
	t.Parallel()
	lost := fmt.Errorf("read tcp 192.0.2.7:6443: %w", syscall.ECONNRESET)
	for _, tt := range []struct {
		op   fleet.Operation
		node *corev1.Node
	}{
		{cordonOp, node()},
		{uncordonOp, node(cordoned, noted("b0"))},
	} {
		t.Run(string(tt.op.Action)+" landed", func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, newAPI(tt.node))
				r.api.late = func(int) error { return lost }
				res, err := r.do(tt.op)
				if err != nil || res.State != fleet.ItemSucceeded || !res.Changed {
					t.Errorf("Do = %+v, %v", res, err)
				}
				if len(r.api.patches) != 1 {
					t.Errorf("%d patches", len(r.api.patches))
				}
			})
		})
		t.Run(string(tt.op.Action)+" never arrived", func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, newAPI(tt.node))
				r.api.hook = func(req *http.Request, n int) (*http.Response, error) {
					if req.Method == http.MethodPatch && n == 0 {
						return nil, lost
					}
					return nil, nil
				}
				res, err := r.do(tt.op)
				if err != nil || res.State != fleet.ItemSucceeded || r.api.landed != 1 {
					t.Errorf("Do = %+v, %v", res, err)
				}
			})
		})
		t.Run(string(tt.op.Action)+" and then nothing", func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, newAPI(tt.node))
				r.api.hook = func(*http.Request, int) (*http.Response, error) {
					if len(r.api.patches) > 0 {
						return nil, lost
					}
					return nil, nil
				}
				res, err := r.do(tt.op)
				if !errors.Is(err, fleet.ErrUnavailable) || res.Code != fleet.CodeUnavailable ||
					!strings.Contains(res.Message, "prod cannot be reached") || !strings.Contains(res.Message, "not known") {
					t.Errorf("Do = %+v, %v", res, err)
				}
				if strings.Contains(res.Message, "192.0.2.7") {
					t.Errorf("the message names an address: %s", res.Message)
				}
			})
		})
	}
}

func TestDo_ClusterTrouble(t *testing.T) {
	t.Parallel()
	resource := schema.GroupResource{Resource: "nodes"}
	status := func(code int, reason metav1.StatusReason, retry int32) func() (*http.Response, error) {
		return func() (*http.Response, error) {
			s := &metav1.Status{Status: "Failure", Code: int32(code), Reason: reason, Message: "the server\x1b[31m says so"}
			if retry > 0 {
				s.Details = &metav1.StatusDetails{RetryAfterSeconds: retry}
			}
			res, err := answer(code, s)
			if retry > 0 {
				res.Header.Set("Retry-After", fmt.Sprint(retry))
			}
			return res, err
		}
	}
	for _, tt := range []struct {
		name    string
		on      string
		answer  func() (*http.Response, error)
		code    string
		says    string
		calls   int // of that method
		atLeast time.Duration
		atMost  time.Duration
	}{
		{"401", "GET", status(401, metav1.StatusReasonUnauthorized, 0), fleet.CodeUnauthorized, "cluster prod does not accept our credential", 1, 0, 0},
		{"403 read", "GET", func() (*http.Response, error) {
			return fails(apierrors.NewForbidden(resource, "n1", errors.New("no")))
		}, fleet.CodeForbidden, "cluster prod does not permit it", 1, 0, 0},
		{"401 write", "PATCH", status(401, metav1.StatusReasonUnauthorized, 0), fleet.CodeUnauthorized, "prod", 1, 0, 0},
		{"403 write", "PATCH", status(403, metav1.StatusReasonForbidden, 0), fleet.CodeForbidden, "the server [31m says so", 1, 0, 0},
		{"422", "PATCH", status(422, metav1.StatusReasonInvalid, 0), fleet.CodeInvalid, "cluster prod refused the change", 1, 0, 0},
		{"500", "PATCH", status(500, metav1.StatusReasonInternalError, 0), fleet.CodeUnavailable, "prod", 3, 2 * pause, 4 * pause},
		{"429", "PATCH", status(429, metav1.StatusReasonTooManyRequests, 3), fleet.CodeUnavailable, "prod is too busy", 5, 12 * time.Second, 13 * time.Second},
		{"429 that asks for an hour", "GET", status(429, metav1.StatusReasonTooManyRequests, 3600), fleet.CodeUnavailable, "prod", 5, 4 * maxPause, 4 * maxPause},
		{"refused", "GET", func() (*http.Response, error) { return nil, syscall.ECONNREFUSED }, fleet.CodeUnavailable, "cluster prod cannot be reached", 3, 2 * pause, 4 * pause},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, newAPI(node()))
				calls := 0
				r.api.hook = func(req *http.Request, _ int) (*http.Response, error) {
					if req.Method != tt.on {
						return nil, nil
					}
					calls++
					return tt.answer()
				}
				start := time.Now()
				res, err := r.do(cordonOp)
				if err == nil || res.State != fleet.ItemFailed || res.Code != tt.code || !strings.Contains(res.Message, tt.says) {
					t.Errorf("Do = %+v, %v", res, err)
				}
				if strings.ContainsRune(res.Message, 0x1b) {
					t.Errorf("the message passes a control character on: %q", res.Message)
				}
				if calls != tt.calls {
					t.Errorf("%d calls, want %d: nothing is to be repeated behind our back", calls, tt.calls)
				}
				if took := time.Since(start); took < tt.atLeast || tt.atMost > 0 && took > tt.atMost {
					t.Errorf("took %s, want between %s and %s", took, tt.atLeast, tt.atMost)
				}
				if last := r.record.phases(); last[len(last)-1] != "cordon result failed" {
					t.Errorf("on record: %v", last)
				}
			})
		})
	}
	t.Run("silence", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(node())
			r := newRig(t, a)
			a.hook = func(req *http.Request, _ int) (*http.Response, error) {
				<-req.Context().Done()
				return nil, req.Context().Err()
			}
			start := time.Now()
			res, err := r.do(cordonOp)
			if res.Code != fleet.CodeUnavailable || !strings.Contains(res.Message, "prod did not answer within 15s") {
				t.Errorf("Do = %+v, %v", res, err)
			}
			if took := time.Since(start); took > 3*callTimeout+time.Second {
				t.Errorf("took %s", took)
			}
		})
	})
	t.Run("cut off", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(node())
			r := newRig(t, a)
			ctx, cancel := context.WithCancel(t.Context())
			a.hook = func(req *http.Request, _ int) (*http.Response, error) {
				if req.Method == http.MethodPatch {
					cancel()
					return nil, req.Context().Err()
				}
				return nil, nil
			}
			_, err := r.ops.Do(ctx, fleet.Task{By: ada, Batch: "b1", Item: fleet.Item{Ref: n1, UID: "uid-1", Attempt: 1}, Operation: cordonOp})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Do: %v", err)
			}
			if diff := cmp.Diff([]string{"cordon intent"}, r.record.phases()); diff != "" {
				t.Errorf("nobody knows the result, but on record (-want +got):\n%s", diff)
			}
		})
	})
	t.Run("unknown cluster", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, newAPI(node()))
			res, err := r.do(cordonOp, func(it *fleet.Item) { it.Ref.Cluster = "gone" })
			if err == nil || !strings.Contains(res.Message, "cluster gone is not known") {
				t.Errorf("Do = %+v, %v", res, err)
			}
		})
	})
}

func TestResolve_WritesNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		op     fleet.Operation
		node   *corev1.Node
		intent bool
		want   fleet.ItemState
		change bool
	}{
		{"cordon landed", cordonOp, node(cordoned, noted("b1")), true, fleet.ItemSucceeded, true},
		{"cordon did not land", cordonOp, node(), true, fleet.ItemCancelled, false},
		{"uncordon landed", uncordonOp, node(), true, fleet.ItemSucceeded, true},
		{"uncordon was not even meant", uncordonOp, node(), false, fleet.ItemSkipped, false},
		{"uncordon did not land", uncordonOp, node(cordoned, noted("b0")), true, fleet.ItemCancelled, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, newAPI(tt.node))
				if tt.intent {
					e := entry(ada, "b1", tt.op, n1, "intent")
					if _, err := r.record.Append(t.Context(), e); err != nil {
						t.Fatal(err)
					}
				}
				r.people.err = fleet.ErrUnauthenticated // the batch may have ended because of that
				time.Sleep(time.Hour)
				res, err := r.ops.Resolve(t.Context(), fleet.Task{By: ada, Batch: "b1", Item: fleet.Item{Ref: n1, UID: "uid-1", Attempt: 1}, Operation: tt.op})
				if err != nil || res.State != tt.want || res.Changed != tt.change {
					t.Errorf("Resolve = %+v, %v", res, err)
				}
				if len(r.api.patches) != 0 {
					t.Errorf("%d patches", len(r.api.patches))
				}
			})
		})
	}
}

func TestAuthorize(t *testing.T) {
	t.Parallel()
	r := newRig(t, newAPI(node()))
	refs := []fleet.NodeRef{n1}
	for _, role := range []fleet.Role{fleet.RoleOperator, fleet.RoleAdmin} {
		if err := r.ops.Authorize(t.Context(), fleet.Caller{Role: role}, cordonOp, refs); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}
	for _, role := range []fleet.Role{fleet.RoleViewer, "", "root"} {
		before := len(r.record.entries)
		if err := r.ops.Authorize(t.Context(), fleet.Caller{Name: "eve", Role: role}, cordonOp, refs); !errors.Is(err, fleet.ErrForbidden) {
			t.Errorf("%q: %v, want ErrForbidden", role, err)
		}
		if es := r.record.entries[before:]; len(es) != 1 || es[0].Phase != "denied" || es[0].Actor != "eve" || es[0].Cluster != "prod" {
			t.Errorf("%q: on record %+v", role, es)
		}
	}
	r.record.refuse = func(fleet.Entry) error { return errors.New("disk full") }
	if err := r.ops.Authorize(t.Context(), fleet.Caller{Role: fleet.RoleViewer}, cordonOp, refs); !errors.Is(err, fleet.ErrForbidden) {
		t.Errorf("a refusal that cannot be recorded: %v, want ErrForbidden all the same", err)
	}
}

func TestAuthorize_NamesTheField(t *testing.T) {
	t.Parallel()
	r := newRig(t, newAPI(node()))
	for _, tt := range []struct {
		op    fleet.Operation
		field string
		part  string
	}{
		{fleet.Operation{}, "action", `""`},
		{fleet.Operation{Action: "reboot"}, "action", `"reboot"`},
		{fleet.Operation{Action: fleet.ActionCordon, Reason: strings.Repeat("ä", 201)}, "reason", "200"},
		{fleet.Operation{Action: fleet.ActionCordon, Reason: "a\nb"}, "reason", "U+000A"},
		{fleet.Operation{Action: fleet.ActionCordon, Reason: "a\x7fb"}, "reason", "U+007F"},
		{fleet.Operation{Action: fleet.ActionCordon, Reason: "a\u202eb"}, "reason", "U+202E"},
		{fleet.Operation{Action: fleet.ActionCordon, Reason: "a\xffb"}, "reason", "UTF-8"},
		{fleet.Operation{Action: fleet.ActionCordon, Foreign: fleet.ForeignSkip}, "foreign", "uncordon"},
		{fleet.Operation{Action: fleet.ActionUncordon, Foreign: "all"}, "foreign", `"all"`},
	} {
		_, err := r.ops.Prepare(t.Context(), ada, tt.op, []fleet.NodeRef{n1})
		fe, ok := errors.AsType[*fleet.FieldError](err)
		if !ok || fe.Field != tt.field || !strings.Contains(fe.Message, tt.part) {
			t.Errorf("%+v: %v, want %s to name %s", tt.op, err, tt.field, tt.part)
		}
	}
	for _, tt := range []struct {
		op    fleet.Operation
		field string
		part  string
	}{
		{fleet.Operation{Action: fleet.ActionCordon, Drain: &fleet.DrainOptions{}}, "drain", "drain"},
		{fleet.Operation{Action: fleet.ActionCordon, Labels: []string{"a=b"}}, "labels", "labels"},
		{fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"a=b"}, Taints: []string{"a:NoSchedule"}}, "taints", "taints"},
		{fleet.Operation{Action: fleet.ActionCopy, Source: &n1, Taints: []string{"a:NoSchedule"}}, "taints", "taints"},
		{fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"a:NoSchedule"}, AllowProtected: true}, "allow_protected", "labels"},
		{fleet.Operation{Action: fleet.ActionDrain, Mode: fleet.EditAdd}, "mode", "copy-taints"},
		{fleet.Operation{Action: fleet.ActionDrain, OnConflict: fleet.ConflictFail}, "on_conflict", "apply-template"},
		{fleet.Operation{Action: fleet.ActionTaints, Source: &n1}, "source", "copy-taints"},
		{fleet.Operation{Action: fleet.ActionTaints, Template: &fleet.TemplateUse{}}, "template", "apply-template"},
		{fleet.Operation{Action: fleet.ActionCordon, Revert: "b0"}, "batch", "revert"},
		{fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"a=b"}, Mode: "merge"}, "mode", `"merge"`},
		{fleet.Operation{Action: fleet.ActionCopy, Source: &n1, Mode: "add"}, "mode", `"add"`},
		{fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"a=b"}, OnConflict: "ask"}, "on_conflict", `"ask"`},
		{fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"a=b"}, Mode: "replace", OnConflict: "fail"}, "on_conflict", "replace"},
		{fleet.Operation{Action: fleet.ActionLabels}, "labels", "at least one"},
		{fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"\t", ""}}, "labels", "at least one"},
		{fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"a=b=c"}}, "labels", `"a=b=c"`},
		{fleet.Operation{Action: fleet.ActionTaints}, "taints", "at least one"},
		{fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"a"}}, "taints", `"a"`},
		{fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"a-"}, Mode: "replace"}, "taints", `"a-"`},
		{fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"node.kubernetes.io/unschedulable-"}}, "taints", "uncordon"},
		{fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"node.kubernetes.io/not-ready:NoSchedule"}}, "taints", "not-ready"},
		{fleet.Operation{Action: fleet.ActionCopy}, "source", "must name"},
		{fleet.Operation{Action: fleet.ActionCopy, Source: &fleet.NodeRef{Cluster: "prod", Name: "../x"}}, "source", "name of a node"},
		{fleet.Operation{Action: fleet.ActionCopy, Source: &fleet.NodeRef{Cluster: "none", Name: "n1"}}, "source", "none"},
		{fleet.Operation{Action: fleet.ActionCopy, Source: &fleet.NodeRef{Cluster: "prod", Name: "n2"}}, "source", "no node n2"},
		{fleet.Operation{Action: fleet.ActionCopy, Source: &n1}, "source", "no taints to copy"},
		{fleet.Operation{Action: fleet.ActionTemplate}, "template", "must name"},
		{fleet.Operation{Action: fleet.ActionTemplate, Template: &fleet.TemplateUse{ID: "t0"}}, "template", "no such"},
		{fleet.Operation{Action: fleet.ActionRevert}, "batch", "must name"},
		{fleet.Operation{Action: fleet.ActionRevert, Revert: "b0"}, "batch", `"b0"`},
		{fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{GracePeriodSeconds: -2}}, "grace_period_seconds", "-2"},
		{fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{TimeoutSeconds: 86401}}, "timeout_seconds", "86401"},
		{fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{SkipStuckSeconds: -1}}, "skip_wait_for_delete_timeout", "-1"},
		{fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{PodSelector: "a in ("}}, "pod_selector", ""},
	} {
		_, err := r.ops.Prepare(t.Context(), ada, tt.op, []fleet.NodeRef{n1})
		fe, ok := errors.AsType[*fleet.FieldError](err)
		if !ok || fe.Field != tt.field || !strings.Contains(fe.Message, tt.part) {
			t.Errorf("%+v: %v, want %s to name %s", tt.op, err, tt.field, tt.part)
		}
	}
	for _, reason := range []string{"", strings.Repeat("ä", 200), "换硬盘 👩‍🔧 – ok"} {
		op := fleet.Operation{Action: fleet.ActionCordon, Reason: reason}
		if _, err := r.ops.Prepare(t.Context(), ada, op, []fleet.NodeRef{n1}); err != nil {
			t.Errorf("reason %q: %v", reason, err)
		}
	}
}

func FuzzReason(f *testing.F) {
	for _, s := range []string{"disk swap", "a\nb", "a\u202eb", "\xff", "<script>", `"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, reason string) {
		op := fleet.Operation{Action: fleet.ActionCordon, Reason: reason}
		if checkFields(op) != nil {
			return
		}
		d := cordon(work{by: ada, batch: "b1", item: fleet.Item{Ref: n1}, op: op, at: now0}, node())
		raw, _ := d.change.annotations[kube.CordonAnnotation].(string)
		note, err := kube.ParseCordonNote(raw)
		if err != nil || note.Reason != reason || note.Batch != "b1" || len(raw) > 4096 {
			t.Errorf("note of %q is %q (%v)", reason, raw, err)
		}
	})
}
