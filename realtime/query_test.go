package realtime

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

var queryNodes = []*fleet.Node{
	{
		Ref: fleet.NodeRef{Cluster: "prod", Name: "web-1"}, Status: fleet.StatusReady, Schedulable: true, Roles: []string{"worker"},
		Labels: map[string]string{"topology.kubernetes.io/zone": "eu-1a", "node.kubernetes.io/instance-type": "m5.large", "app": "web"},
		Info:   fleet.Info{KubeletVersion: "v1.34.2", OSImage: "Ubuntu 24.04"}, Addresses: []fleet.Address{{Type: "InternalIP", Address: "10.1.2.3"}},
	},
	{
		Ref: fleet.NodeRef{Cluster: "prod", Name: "gpu-1"}, Status: fleet.StatusNotReady, Roles: []string{"gpu", "worker"},
		Labels: map[string]string{"topology.kubernetes.io/zone": "eu-1b", "app": "train"}, Pressure: []string{"DiskPressure"},
		Taints: []fleet.Taint{{Key: "nvidia.com/gpu", Value: "true", Effect: fleet.NoSchedule}},
		Cordon: &fleet.Cordon{By: "ada", Reason: "Disk Swap"}, Info: fleet.Info{KubeletVersion: "v1.3.1"},
	},
	{
		Ref: fleet.NodeRef{Cluster: "Test", Name: "cp"}, Status: fleet.StatusUnknown, Schedulable: true,
		Labels: map[string]string{"app": ""}, Info: fleet.Info{KubeletVersion: "v1.34.10"},
		Taints: []fleet.Taint{{Key: "node-role.kubernetes.io/control-plane", Effect: fleet.NoExecute}},
	},
}

func TestParseQuery_Matches(t *testing.T) {
	t.Parallel()
	tests := []struct{ q, want string }{
		{"", "web-1 gpu-1 cp"},
		{"WEB", "web-1"},
		{"1", "web-1 gpu-1 cp"}, // name, name, version
		{"web 10.1", "web-1"},
		{"web gpu", ""},
		{`"disk swap"`, "gpu-1"},
		{`"swap disk"`, ""},
		{"test", "cp"},
		{"-web", "gpu-1 cp"},
		{`-"disk swap"`, "web-1 cp"},
		{"ubuntu", "web-1"},
		{"status:Ready", "web-1"},
		{"status:ready", "web-1"},
		{"status:NotReady,unknown", "gpu-1 cp"},
		{"status:pressure", "gpu-1"},
		{"-status:Ready", "gpu-1 cp"},
		{"role:gpu", "gpu-1"},
		{"role:worker", "web-1 gpu-1"},
		{`role:""`, "cp"},
		{"zone:eu-1a,eu-1b", "web-1 gpu-1"},
		{`zone:"eu-1a,eu-1b"`, ""},
		{`zone:""`, "cp"},
		{"type:m5.large", "web-1"},
		{"version:v1.34", "web-1 cp"},
		{"version:1.34.1", ""},
		{"version:1.3", "gpu-1"},
		{"taint:nvidia.com/gpu", "gpu-1"},
		{"taint:nvidia.com/gpu=true:NoSchedule", "gpu-1"},
		{"taint:nvidia.com/gpu=false", ""},
		{"taint:NoExecute", "cp"},
		{"taint:nvidia.com/gpu:NoExecute", ""},
		{"cordoned:true", "gpu-1"},
		{"cordoned:no", "web-1 cp"},
		{"label:app", "web-1 gpu-1 cp"},
		{"label:app=web", "web-1"},
		{`label:"app in (web, train), app!=web"`, "gpu-1"},
		{`label:"app="`, "cp"},
		{"label:!topology.kubernetes.io/zone", "cp"},
		{"label:app=web,app!=train status:Ready zone:eu-1a", "web-1"},
	}
	for _, tt := range tests {
		q, err := ParseQuery(fleet.SeesAll(), "", url.Values{"q": {tt.q}})
		if err != nil {
			t.Errorf("%q: %v", tt.q, err)
			continue
		}
		var got []string
		for _, n := range queryNodes {
			if q.Match(n) {
				got = append(got, n.Ref.Name)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%q: got %q, want %q", tt.q, strings.Join(got, " "), tt.want)
		}
	}
}

func TestParseQuery_NamesTheOffendingPart(t *testing.T) {
	t.Parallel()
	tests := []struct {
		values url.Values
		field  string
		says   []string
	}{
		{url.Values{"q": {"colour:red"}}, "q", []string{`"colour"`, "status, role, zone"}},
		{url.Values{"q": {"web status:Broken"}}, "q", []string{`"Broken"`, "Ready, NotReady, Unknown"}},
		{url.Values{"q": {"cordoned:maybe"}}, "q", []string{"maybe", "true, false"}},
		{url.Values{"q": {"taint:a=b:Sometimes"}}, "q", []string{`"Sometimes"`, "NoSchedule"}},
		{url.Values{"q": {"label:a=b=c"}}, "q", []string{"a=b=c"}},
		{url.Values{"q": {`label:"a in b"`}}, "q", []string{"a in b"}},
		{url.Values{"q": {"status:"}}, "q", []string{`"status:"`, "needs a value"}},
		{url.Values{"q": {"zone:a,,b"}}, "q", []string{"zone:a,,b"}},
		{url.Values{"q": {`zone:"a`}}, "q", []string{"no closing quote"}},
		{url.Values{"q": {`"a"b`}}, "q", []string{"closing quote"}},
		{url.Values{"q": {`a"b`}}, "q", []string{"quote"}},
		{url.Values{"q": {"-"}}, "q", []string{`"-"`}},
		{url.Values{"q": {"a\x00b"}}, "q", []string{"no text"}},
		{url.Values{"q": {"\xff"}}, "q", []string{"no text"}},
		{url.Values{"q": {strings.Repeat("x", 2000)}}, "q", []string{"1024"}},
		{url.Values{"q": {strings.Repeat("x ", 40)}}, "q", []string{"32"}},
		{url.Values{"sort": {"colour"}}, "sort", []string{`"colour"`, "name, cluster"}},
		{url.Values{"sort": {"--name"}}, "sort", []string{"--name"}},
		{url.Values{"sort": {"name", "cpu"}}, "sort", []string{"2 times"}},
		{url.Values{"page": {"0"}}, "page", []string{`"0"`}},
		{url.Values{"page": {"x"}}, "page", []string{`"x"`}},
		{url.Values{"per_page": {"7"}}, "per_page", []string{`"7"`, "20, 50, 100, 200"}},
		{url.Values{"cluster": {"a"}, "cluster_name": {"b"}}, "cluster_name", []string{"differ"}},
	}
	for _, tt := range tests {
		_, err := ParseQuery(fleet.SeesAll(), "", tt.values)
		fe, ok := errors.AsType[*fleet.FieldError](err)
		if !ok {
			t.Errorf("%v: got %v, want a FieldError", tt.values, err)
			continue
		}
		if fe.Field != tt.field {
			t.Errorf("%v: field %q, want %q", tt.values, fe.Field, tt.field)
		}
		for _, part := range tt.says {
			if !strings.Contains(fe.Message, part) {
				t.Errorf("%v: %q does not say %q", tt.values, fe.Message, part)
			}
		}
	}
}

func TestParseQuery_Defaults(t *testing.T) {
	t.Parallel()
	q, err := ParseQuery(fleet.SeesAll(), "", url.Values{"cluster_name": {"prod"}, "page": {"3"}, "q": {" a  b "}})
	if err != nil {
		t.Fatal(err)
	}
	got := [...]any{q.Cluster, q.Text, q.Sort, q.Page, q.PerPage}
	if want := [...]any{"prod", "a  b", "name", 3, 50}; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if q, err = ParseQuery(fleet.SeesAll(), "path", url.Values{"cluster": {"other"}}); err != nil || q.Cluster != "path" {
		t.Errorf("cluster of the path: got %v, %v", q, err)
	}
}

func TestQuery_KeyIsTheSameForTheSameRows(t *testing.T) {
	t.Parallel()
	key := func(values string) string {
		v, err := url.ParseQuery(values)
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseQuery(fleet.SeesAll(), "", v)
		if err != nil {
			t.Fatal(err)
		}
		return q.Key()
	}
	same := [][2]string{
		{"q=a b", "q=b  a"},
		{"q=status:ready", "q=status:Ready"},
		{"q=zone:a,b", "q=zone:b,a"},
		{"q=label:a%3Db,c%3Dd", `q=label:"c=d, a=b"`},
		{"", "sort=name&page=1&per_page=50"},
		{"q=version:v1.34", "q=version:1.34"},
	}
	for _, s := range same {
		if key(s[0]) != key(s[1]) {
			t.Errorf("%q and %q differ: %q, %q", s[0], s[1], key(s[0]), key(s[1]))
		}
	}
	differ := [][2]string{
		{"q=a", "q=-a"},
		{"q=zone:a,b", `q=zone:"a,b"`},
		{"cluster=a", "q=a"},
		{"page=1", "page=2"},
		{"sort=name", "sort=-name"},
		{`q="a b"`, "q=a b"},
		{"q=a", "q=A cluster"},
	}
	for _, d := range differ {
		if key(d[0]) == key(d[1]) {
			t.Errorf("%q and %q have the same key", d[0], d[1])
		}
	}
}

func TestOrder_IsTotalAndStable(t *testing.T) {
	t.Parallel()
	var versions []*version
	for _, n := range queryNodes {
		versions = append(versions, &version{node: n, kubelet: kubeletOrder(n.Info.KubeletVersion)})
	}
	tests := []struct{ sort, want string }{
		{"name", "cp gpu-1 web-1"},
		{"-name", "web-1 gpu-1 cp"},
		{"cluster", "cp gpu-1 web-1"},
		{"status", "gpu-1 cp web-1"},
		{"version", "gpu-1 web-1 cp"},
		{"-version", "cp web-1 gpu-1"},
		{"zone", "cp web-1 gpu-1"},
		{"cpu", "cp gpu-1 web-1"},
	}
	for _, tt := range tests {
		sorted := slices.Clone(versions)
		slices.SortFunc(sorted, order(tt.sort))
		var got []string
		for _, v := range sorted {
			got = append(got, v.node.Ref.Name)
		}
		if d := cmp.Diff(tt.want, strings.Join(got, " ")); d != "" {
			t.Errorf("sort %s: %s", tt.sort, d)
		}
	}
	for _, column := range sorts {
		if columns[column] == nil {
			t.Errorf("column %q has no order", column)
		}
	}
}

func FuzzParseQuery(f *testing.F) {
	for _, s := range []string{"", "a b", `status:Ready -"x y" label:"a in (b,c)"`, "taint:a=b:NoSchedule", `zone:"\"`, "version:1..2", "cordoned:yes", `a\"b`} {
		f.Add(s, "name", "1", "50")
	}
	f.Fuzz(func(t *testing.T, text, sort, page, per string) {
		q, err := ParseQuery(fleet.SeesAll(), "", url.Values{"q": {text}, "sort": {sort}, "page": {page}, "per_page": {per}})
		if err != nil {
			if _, ok := errors.AsType[*fleet.FieldError](err); !ok {
				t.Fatalf("%q: %v is no FieldError", text, err)
			}
			return
		}
		again, err := ParseQuery(fleet.SeesAll(), "", url.Values{"q": {q.text}, "sort": {q.Sort}})
		if err != nil {
			t.Fatalf("the canonical form %q of %q is not understood: %v", q.text, text, err)
		}
		if again.viewKey() != q.viewKey() {
			t.Fatalf("%q: key %q, and of its canonical form %q", text, q.viewKey(), again.viewKey())
		}
		for _, n := range queryNodes {
			if q.Match(n) != again.Match(n) {
				t.Fatalf("%q and its canonical form %q differ on %s", text, q.text, n.Ref)
			}
		}
	})
}
