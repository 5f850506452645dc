package kubectl

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func TestCommands(t *testing.T) {
	t.Parallel()
	refs := []fleet.NodeRef{{Cluster: "prod", Name: "n1"}, {Cluster: "it's $HOME", Name: "n9"}, {Cluster: "prod", Name: "n2"}}
	for _, tt := range []struct {
		name string
		op   fleet.Operation
		want []string
	}{
		{
			"cordon",
			fleet.Operation{Action: fleet.ActionCordon},
			[]string{"kubectl --context prod cordon n1 n2", `kubectl --context 'it'\''s $HOME' cordon n9`},
		},
		{
			"labels",
			fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"team=red", "old-"}, OnConflict: fleet.ConflictFail},
			[]string{"kubectl --context prod label nodes n1 n2 team=red old-", `kubectl --context 'it'\''s $HOME' label nodes n9 team=red old-`},
		},
		{
			"template",
			fleet.Operation{
				Action: fleet.ActionTemplate, Labels: []string{"team=red"}, Taints: []string{"gpu:NoSchedule"}, OnConflict: fleet.ConflictOverwrite,
			},
			[]string{
				"kubectl --context prod label nodes n1 n2 team=red --overwrite", "kubectl --context prod taint nodes n1 n2 gpu:NoSchedule --overwrite",
				`kubectl --context 'it'\''s $HOME' label nodes n9 team=red --overwrite`, `kubectl --context 'it'\''s $HOME' taint nodes n9 gpu:NoSchedule --overwrite`,
			},
		},
		{
			"revert", fleet.Operation{Action: fleet.ActionRevert, Revert: "b1"}, nil,
		},
	} {
		if diff := cmp.Diff(tt.want, Commands(tt.op, refs)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	drains := func(o *fleet.DrainOptions) []string {
		return Commands(fleet.Operation{Action: fleet.ActionDrain, Drain: o}, refs[:1])
	}
	if diff := cmp.Diff([]string{"kubectl --context prod drain n1 --ignore-daemonsets --timeout=1800s"}, drains(nil)); diff != "" {
		t.Errorf("drain (-want +got):\n%s", diff)
	}
	want := []string{
		"kubectl --context prod drain n1 --ignore-daemonsets --timeout=60s --grace-period=0 --delete-emptydir-data --force" +
			" '--pod-selector=app notin (a,b)' --disable-eviction --skip-wait-for-delete-timeout=9",
		"kubectl --context prod uncordon n1",
	}
	got := drains(&fleet.DrainOptions{
		TimeoutSeconds: 60, DeleteEmptyDirData: true, Force: true, PodSelector: "app notin (a,b)", DisableEviction: true,
		SkipStuckSeconds: 9, UncordonAfter: true,
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("drain with everything (-want +got):\n%s", diff)
	}
}

func TestUndo(t *testing.T) {
	t.Parallel()
	red := []fleet.Edit{
		{Kind: fleet.EditLabel, Key: "team", Before: new("red"), After: new("blue"), Outcome: fleet.EditChanged},
		{Kind: fleet.EditTaint, Key: "gpu", Effect: fleet.NoSchedule, After: new(""), Outcome: fleet.EditAdded},
		{Kind: fleet.EditTaint, Key: "old", Effect: fleet.NoExecute, Before: new("x"), Outcome: fleet.EditRemoved},
		{Kind: fleet.EditLabel, Key: "same", Before: new("x"), After: new("x"), Outcome: fleet.EditUnchanged},
	}
	item := func(name string, undo ...fleet.Edit) fleet.Item {
		return fleet.Item{Ref: fleet.NodeRef{Cluster: "prod", Name: name}, Undo: undo}
	}
	got := Undo([]fleet.Item{
		item("n1", red...), item("n2", red...), item("n3"),
		item("n4", fleet.Edit{Kind: fleet.EditCordon, After: new("{}"), Outcome: fleet.EditAdded}),
	})
	want := []string{
		"kubectl --context prod label nodes n1 n2 team=red --overwrite",
		"kubectl --context prod taint nodes n1 n2 gpu:NoSchedule- old=x:NoExecute --overwrite",
		"kubectl --context prod uncordon n4",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestQuote asks a shell.
func TestQuote(t *testing.T) {
	t.Parallel()
	words := []string{"", "a b", "it's", `"`, "$HOME", "`id`", "a\nb", "*", "~", "!x", "a;b", "=ls", "#", "-n", "{a,b}", "prod", `\`, "${IFS}", "&", "日本"}
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Quote(w)
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", `printf '%s\0' `+strings.Join(quoted, " ")).Output()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(words, strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")); diff != "" {
		t.Errorf("the shell read (-want +got):\n%s", diff)
	}
	if got := Quote("prod/eu-1.example.com:443"); got != "prod/eu-1.example.com:443" {
		t.Errorf("quoted without need: %s", got)
	}
}
