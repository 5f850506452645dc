package marks

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// TestCase62_BadLabelsAreNamed is checklist item 62, for labels.
func TestCase62_BadLabelsAreNamed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		line string // the offending one
		says string
		more []string // lines before it
	}{
		{"64 characters", "team=" + strings.Repeat("v", 64), "63", nil},
		{"63 bytes, not characters", "team=" + strings.Repeat("ä", 32), "value", nil},
		{"space in the value", "team=a b", "value", nil},
		{"space around the =", "team = a", "key", nil},
		{"two slashes", "X/y/x=1", "key", nil},
		{"upper-case prefix", "Example.com/x=1", "prefix", nil},
		{"empty prefix", "/a=1", "prefix", nil},
		{"empty name", "example.com/=1", "name", nil},
		{"empty key", "=1", "name", nil},
		{"only a dash", "-", "name", nil},
		{"trailing dash is a value", "team=red-", "value", nil},
		{"two =", "team=a=b", "more than one =", nil},
		{"no verb", "team", "neither", nil},
		{"long name", strings.Repeat("n", 64) + "=1", "63", nil},
		{"long prefix", strings.Repeat("a.", 127) + "aa/x=1", "253", nil},
		{"set and removed", "team-", "a second time", []string{"team=red"}},
		{"removed and set", "team=red", "a second time", []string{"team-"}},
		{"set twice", "team=blue", "a second time", []string{"team=red"}},
		{"newline inside", "team=a\nb", "value", nil},
		{"line of taints", "team=a:NoSchedule", "value", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseLabels("labels", append(tt.more, tt.line))
			checkField(t, err, "labels", tt.line, tt.says)
		})
	}
}

// checkField checks that an error names the field, shows the line and says what is wrong with it.
func checkField(t *testing.T, err error, field, line, says string) {
	t.Helper()
	fe, ok := errors.AsType[*fleet.FieldError](err)
	if !ok || fe.Field != field || fe.Args["Part"] != line || !strings.Contains(fe.Message, says) {
		t.Errorf("error is %#v (%v), want one for %s that shows %q and says %q", err, err, field, line, says)
	}
}

// TestCase62_BadTaintsAreNamed is checklist items 59 and 62, for taints.
func TestCase62_BadTaintsAreNamed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		line string
		says string
		more []string
	}{
		{"no effect", "gpu=true", "no effect", nil},
		{"wrong effect", "gpu=true:noSchedule", `"noSchedule"`, nil},
		{"empty effect", "gpu:", "effect", nil},
		{"the effect comes first", "a=b=c:Never", `"Never"`, nil},
		{"wrong effect of a removal", "gpu:Never-", `"Never"`, nil},
		{"two :", "gpu:a:NoSchedule", "more than one :", nil},
		{"two =", "gpu=a=b:NoSchedule", "more than one =", nil},
		{"value without an effect", "gpu=true-", "a value and no effect", nil},
		{"64 characters", "gpu=" + strings.Repeat("v", 64) + ":NoSchedule", "63", nil},
		{"bad value of a removal", "gpu=a b:NoSchedule-", "value", nil},
		{"upper-case prefix", "Example.com/gpu:NoSchedule", "prefix", nil},
		{"two slashes", "a/b/c:NoSchedule", "key", nil},
		{"empty key", ":NoSchedule", "name", nil},
		{"duplicate", "gpu=b:NoSchedule", `"gpu=a:NoSchedule"`, []string{"gpu=a:NoSchedule"}},
		{"added and removed", "gpu:NoSchedule-", `"gpu:NoSchedule"`, []string{"gpu:NoSchedule"}},
		{"added and all removed", "gpu-", `"gpu:NoSchedule"`, []string{"gpu:NoSchedule"}},
		{"one removed and all removed", "gpu-", `"gpu:NoSchedule-"`, []string{"gpu:NoSchedule-"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseTaints("taints", append(tt.more, tt.line))
			checkField(t, err, "taints", tt.line, tt.says)
		})
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	ls, err := ParseLabels("labels", []string{" team=red\r", "", "pool=", "old-", "example.com/a_b.c=v-1"})
	if err != nil {
		t.Fatal(err)
	}
	want := Labels{{Key: "team", Value: "red"}, {Key: "pool"}, {Key: "old", Remove: true}, {Key: "example.com/a_b.c", Value: "v-1"}}
	if diff := cmp.Diff(want, ls); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"team=red", "pool=", "old-", "example.com/a_b.c=v-1"}, ls.Lines()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	ts, err := ParseTaints("taints", []string{"gpu=true:NoSchedule", "gpu:NoExecute", "\told=x:PreferNoSchedule- ", "gone-"})
	if err != nil {
		t.Fatal(err)
	}
	wantTaints := Taints{
		{Key: "gpu", Value: "true", Effect: fleet.NoSchedule},
		{Key: "gpu", Effect: fleet.NoExecute},
		{Key: "old", Effect: fleet.PreferNoSchedule, Remove: true},
		{Key: "gone", Remove: true},
	}
	if diff := cmp.Diff(wantTaints, ts); diff != "" {
		t.Errorf("taints (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"gpu=true:NoSchedule", "gpu:NoExecute", "old:PreferNoSchedule-", "gone-"}, ts.Lines()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	many := make([]string, 101)
	for i := range many {
		many[i] = "k" + strings.Repeat("x", i%60) + string(rune('a'+i/60)) + "=1"
	}
	if _, err := ParseLabels("labels", many); err == nil || !strings.Contains(err.Error(), "100") {
		t.Errorf("101 labels: %v", err)
	}
}

func TestLabels_Diff(t *testing.T) {
	t.Parallel()
	have := map[string]string{"team": "red", "pool": "a", "empty": ""}
	for _, tt := range []struct {
		line   string
		mode   fleet.EditMode
		policy fleet.ConflictPolicy
		want   fleet.Edit
	}{
		{"new=1", fleet.EditAdd, fleet.ConflictFail, fleet.Edit{After: new("1"), Outcome: fleet.EditAdded}},
		{"new=", fleet.EditAdd, fleet.ConflictFail, fleet.Edit{After: new(""), Outcome: fleet.EditAdded}},
		{"team=red", fleet.EditAdd, fleet.ConflictFail, fleet.Edit{Before: new("red"), After: new("red"), Outcome: fleet.EditUnchanged}},
		{"empty=", fleet.EditAdd, fleet.ConflictFail, fleet.Edit{Before: new(""), After: new(""), Outcome: fleet.EditUnchanged}},
		{"team=blue", fleet.EditAdd, fleet.ConflictFail, fleet.Edit{Before: new("red"), After: new("blue"), Outcome: fleet.EditConflict}},
		{"team=blue", fleet.EditAdd, fleet.ConflictSkip, fleet.Edit{Before: new("red"), After: new("blue"), Outcome: fleet.EditKept}},
		{"team=blue", fleet.EditAdd, fleet.ConflictOverwrite, fleet.Edit{Before: new("red"), After: new("blue"), Outcome: fleet.EditChanged}},
		{"empty=1", fleet.EditAdd, fleet.ConflictFail, fleet.Edit{Before: new(""), After: new("1"), Outcome: fleet.EditConflict}},
		{"team-", fleet.EditAdd, fleet.ConflictFail, fleet.Edit{Before: new("red"), Outcome: fleet.EditRemoved}},
		{"empty-", fleet.EditAdd, fleet.ConflictFail, fleet.Edit{Before: new(""), Outcome: fleet.EditRemoved}},
		{"none-", fleet.EditAdd, fleet.ConflictFail, fleet.Edit{Outcome: fleet.EditUnchanged}},
		{"team=blue", fleet.EditReplace, fleet.ConflictOverwrite, fleet.Edit{Before: new("red"), After: new("blue"), Outcome: fleet.EditChanged}},
		{"new=1", fleet.EditReplace, fleet.ConflictOverwrite, fleet.Edit{Outcome: fleet.EditUnchanged, Note: RemarkAbsent}},
		{"kubernetes.io/os-", fleet.EditAdd, fleet.ConflictFail, fleet.Edit{Outcome: fleet.EditUnchanged, Note: RemarkIdentity}},
	} {
		ls, err := ParseLabels("labels", []string{tt.line})
		if err != nil {
			t.Fatal(err)
		}
		tt.want.Kind, tt.want.Key = fleet.EditLabel, ls[0].Key
		if diff := cmp.Diff([]fleet.Edit{tt.want}, ls.Diff(have, tt.mode, tt.policy)); diff != "" {
			t.Errorf("%s, %s, %s (-want +got):\n%s", tt.line, tt.mode, tt.policy, diff)
		}
	}
}

// TestCase61_RemovalByKeyTakesEveryEffect is checklist item 61 and what else a list of taints comes to.
func TestCase61_RemovalByKeyTakesEveryEffect(t *testing.T) {
	t.Parallel()
	at := fleet.Taint{Key: "node.kubernetes.io/unschedulable", Effect: fleet.NoSchedule}
	cp := fleet.Taint{Key: "node-role.kubernetes.io/control-plane", Effect: fleet.NoSchedule}
	one := fleet.Taint{Key: "gpu", Value: "a", Effect: fleet.NoSchedule}
	two := fleet.Taint{Key: "gpu", Value: "b", Effect: fleet.NoExecute}
	other := fleet.Taint{Key: "other", Effect: fleet.PreferNoSchedule}
	all := []fleet.Taint{at, one, other, two, cp}
	for _, tt := range []struct {
		name   string
		lines  []string
		mode   fleet.EditMode
		policy fleet.ConflictPolicy
		edits  []string
		list   []fleet.Taint
	}{
		{"both effects", []string{"gpu-"}, fleet.EditAdd, fleet.ConflictFail, []string{"removed gpu:NoSchedule a→", "removed gpu:NoExecute b→"}, []fleet.Taint{at, other, cp}},
		{"one effect", []string{"gpu:NoSchedule-"}, fleet.EditAdd, fleet.ConflictFail, []string{"removed gpu:NoSchedule a→"}, []fleet.Taint{at, other, two, cp}},
		{"value of a removal is ignored", []string{"gpu=zzz:NoSchedule-"}, fleet.EditAdd, fleet.ConflictFail, []string{"removed gpu:NoSchedule a→"}, []fleet.Taint{at, other, two, cp}},
		{"absent", []string{"gone-", "gpu:PreferNoSchedule-"}, fleet.EditAdd, fleet.ConflictFail, []string{"unchanged gone: →", "unchanged gpu:PreferNoSchedule →"}, all},
		{"another effect of the key", []string{"other=1:NoSchedule"}, fleet.EditAdd, fleet.ConflictFail, []string{"added other:NoSchedule →1"}, append(all[:5:5], fleet.Taint{Key: "other", Value: "1", Effect: fleet.NoSchedule})},
		{"identical", []string{"gpu=a:NoSchedule"}, fleet.EditAdd, fleet.ConflictFail, []string{"unchanged gpu:NoSchedule a→a"}, all},
		{"other value", []string{"gpu=c:NoSchedule"}, fleet.EditAdd, fleet.ConflictFail, []string{"conflict gpu:NoSchedule a→c"}, all},
		{"other value kept", []string{"gpu=c:NoSchedule"}, fleet.EditAdd, fleet.ConflictSkip, []string{"kept gpu:NoSchedule a→c"}, all},
		{
			"other value overwritten",
			[]string{"gpu=c:NoSchedule"},
			fleet.EditMerge, fleet.ConflictOverwrite,
			[]string{"changed gpu:NoSchedule a→c"},
			[]fleet.Taint{at, {Key: "gpu", Value: "c", Effect: fleet.NoSchedule}, other, two, cp},
		},
		{
			"replaced",
			[]string{"gpu=c:NoExecute", "new:NoSchedule"},
			fleet.EditReplace, fleet.ConflictOverwrite,
			[]string{"removed gpu:NoSchedule a→", "removed other:PreferNoSchedule →", "changed gpu:NoExecute b→c", "added new:NoSchedule →"},
			[]fleet.Taint{at, {Key: "gpu", Value: "c", Effect: fleet.NoExecute}, cp, {Key: "new", Effect: fleet.NoSchedule}},
		},
		{
			"replaced by nothing", nil, fleet.EditReplace, fleet.ConflictOverwrite,
			[]string{"removed gpu:NoSchedule a→", "removed other:PreferNoSchedule →", "removed gpu:NoExecute b→"},
			[]fleet.Taint{at, cp},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ts, err := ParseTaints("taints", tt.lines)
			if err != nil {
				t.Fatal(err)
			}
			have := append([]fleet.Taint(nil), all...)
			edits, list := ts.Diff(have, tt.mode, tt.policy)
			if diff := cmp.Diff(all, have); diff != "" {
				t.Errorf("the node's own list was changed:\n%s", diff)
			}
			var got []string
			for _, e := range edits {
				s := string(e.Outcome) + " " + e.Key + ":" + string(e.Effect) + " "
				if e.Before != nil {
					s += *e.Before
				}
				if s += "→"; e.After != nil {
					s += *e.After
				}
				got = append(got, s)
			}
			if diff := cmp.Diff(tt.edits, got); diff != "" {
				t.Errorf("edits (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.list, list); diff != "" {
				t.Errorf("list (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRemarks(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]struct {
		remark    string
		protected bool
	}{
		"team":                                                    {"", false},
		"example.com/team":                                        {"", false},
		"kubernetes.io/hostname":                                  {RemarkIdentity, true},
		"topology.kubernetes.io/zone":                             {RemarkIdentity, true},
		"beta.kubernetes.io/arch":                                 {RemarkIdentity, true},
		"x.node-restriction.kubernetes.io/tier":                   {RemarkRestricted, true},
		"node-restriction.kubernetes.io/tier":                     {RemarkRestricted, true},
		"xnode-restriction.kubernetes.io/tier":                    {"", false},
		"node-role.kubernetes.io/worker":                          {RemarkRole, true},
		"node.kubernetes.io/exclude-from-external-load-balancers": {RemarkTraffic, true},
		"topology.ebs.csi.aws.com/zone":                           {RemarkStorage, true},
		"eks.amazonaws.com/nodegroup":                             {RemarkPool, false},
		"cloud.google.com/gke-nodepool":                           {RemarkPool, false},
		"cloud.google.com/other":                                  {"", false},
		"karpenter.sh/nodepool":                                   {RemarkPool, false},
		"feature.node.kubernetes.io/cpu":                          {RemarkFeature, false},
	} {
		remark, protected := LabelRemark(key)
		if remark != want.remark || protected != want.protected {
			t.Errorf("%s: %q, %v, want %q, %v", key, remark, protected, want.remark, want.protected)
		}
	}
	for key, controller := range map[string]bool{
		"gpu": false, "node.kubernetes.io/unschedulable": true, "node.kubernetes.io/not-ready": true,
		"ToBeDeletedByClusterAutoscaler": true, "node.cluster.x-k8s.io/uninitialized": true,
		"node.kubernetes.io/out-of-service": false, "node-role.kubernetes.io/control-plane": false,
	} {
		if _, got := TaintRemark(key); got != controller {
			t.Errorf("%s belongs to a controller: %v", key, got)
		}
		if err := (Taints{{Key: key, Remove: true}}).CheckOwned("taints"); (err != nil) != controller {
			t.Errorf("removing %s: %v", key, err)
		}
	}
}

func TestOwn(t *testing.T) {
	t.Parallel()
	got := Own([]fleet.Taint{
		{Key: "node.kubernetes.io/not-ready", Effect: fleet.NoExecute},
		{Key: "gpu", Value: "a", Effect: fleet.NoExecute, TimeAdded: new(testTime)},
		{Key: "node-role.kubernetes.io/control-plane", Effect: fleet.NoSchedule},
		{Key: "node.kubernetes.io/out-of-service", Effect: fleet.NoExecute},
	})
	if diff := cmp.Diff([]string{"gpu=a:NoExecute"}, got.Lines()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNeeds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		op   fleet.Operation
		undo []fleet.Edit
		want []fleet.Permission
	}{
		{"cordon", fleet.Operation{Action: fleet.ActionCordon}, nil, []fleet.Permission{fleet.PermNodeCordon}},
		{"labels", fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"a=b"}}, nil, []fleet.Permission{fleet.PermNodeEdit}},
		{
			"protected, removed",
			fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"kubernetes.io/os-"}},
			nil,
			[]fleet.Permission{fleet.PermNodeEdit, fleet.PermProtected},
		},
		{"NoSchedule", fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"a:NoSchedule"}}, nil, []fleet.Permission{fleet.PermNodeEdit}},
		{
			"NoExecute of a template",
			fleet.Operation{Action: fleet.ActionTemplate, Taints: []string{"a:NoExecute"}},
			nil,
			[]fleet.Permission{fleet.PermNodeEdit, fleet.PermNoExecute},
		},
		{"NoExecute removed", fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"a:NoExecute-"}}, nil, []fleet.Permission{fleet.PermNodeEdit}},
		{
			"out of service",
			fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"node.kubernetes.io/out-of-service:NoSchedule"}},
			nil,
			[]fleet.Permission{fleet.PermNodeEdit, fleet.PermNoExecute},
		},
		{"drain", fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{}}, nil, []fleet.Permission{fleet.PermNodeDrain}},
		{
			"drain past budgets",
			fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{DisableEviction: true}},
			nil,
			[]fleet.Permission{fleet.PermNodeDrain, fleet.PermPastBudget},
		},
		{
			"NoExecute taken back",
			fleet.Operation{Action: fleet.ActionRevert},
			[]fleet.Edit{{Kind: fleet.EditTaint, Key: "a", Effect: fleet.NoExecute, After: new(""), Outcome: fleet.EditAdded}},
			[]fleet.Permission{fleet.PermNodeCordon, fleet.PermNodeEdit},
		},
		{
			"NoExecute put back",
			fleet.Operation{Action: fleet.ActionRevert},
			[]fleet.Edit{{Kind: fleet.EditTaint, Key: "a", Effect: fleet.NoExecute, Before: new(""), Outcome: fleet.EditRemoved}},
			[]fleet.Permission{fleet.PermNodeCordon, fleet.PermNodeEdit, fleet.PermNoExecute},
		},
		{
			"protected label put back",
			fleet.Operation{Action: fleet.ActionRevert},
			[]fleet.Edit{{Kind: fleet.EditLabel, Key: "kubernetes.io/os", Before: new(""), Outcome: fleet.EditRemoved}},
			[]fleet.Permission{fleet.PermNodeCordon, fleet.PermNodeEdit, fleet.PermProtected},
		},
		{
			"what had no effect",
			fleet.Operation{Action: fleet.ActionRevert},
			[]fleet.Edit{{Kind: fleet.EditLabel, Key: "kubernetes.io/os", Outcome: fleet.EditUnchanged}},
			[]fleet.Permission{fleet.PermNodeCordon},
		},
	} {
		if diff := cmp.Diff(tt.want, Needs(tt.op, tt.undo)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	tmpl := fleet.Template{
		Labels: []string{"team={{team}}", "pool={{ pool }}-{{team}}"}, Taints: []string{"{{free}}:NoSchedule"},
		Values: map[string][]string{"team": {"red", "blue"}, "pool": {"a"}},
	}
	if diff := cmp.Diff([]string{"free", "pool", "team"}, Placeholders(append(tmpl.Labels, tmpl.Taints...)...)); diff != "" {
		t.Errorf("placeholders (-want +got):\n%s", diff)
	}
	values, err := Choose(tmpl, map[string]string{"free": "gpu", "team": "blue"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"team=blue", "pool=a-blue"}, Fill(tmpl.Labels, values)); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"gpu:NoSchedule"}, Fill(tmpl.Taints, values)); diff != "" {
		t.Errorf("taints (-want +got):\n%s", diff)
	}
	for _, tt := range []struct {
		values map[string]string
		field  string
	}{
		{nil, "value.free"},
		{map[string]string{"free": "x", "team": "green"}, "value.team"},
		{map[string]string{"free": "x", "other": "1"}, "value.other"},
		{map[string]string{"free": "a b"}, "value.free"},
		{map[string]string{"free": "{{team}}"}, "value.free"},
	} {
		_, err := Choose(tmpl, tt.values)
		if fe, ok := errors.AsType[*fleet.FieldError](err); !ok || fe.Field != tt.field {
			t.Errorf("%v: %v, want one for %s", tt.values, err, tt.field)
		}
	}
}
