package fleet

import (
	"errors"
	"strings"
	"testing"
)

func TestParseNodeRef(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   string
		want NodeRef
		bad  bool
	}{
		{in: "prod/node-7", want: NodeRef{"prod", "node-7"}},
		{in: "arn:aws:eks:eu-west-1:1:cluster/prod/ip-10-0-0-1.ec2.internal", want: NodeRef{"arn:aws:eks:eu-west-1:1:cluster/prod", "ip-10-0-0-1.ec2.internal"}},
		{in: "admin@prod/a", want: NodeRef{"admin@prod", "a"}},
		{in: "", bad: true},
		{in: "node-7", bad: true},
		{in: "/node-7", bad: true},
		{in: "prod/", bad: true},
		{in: "prod/..", bad: true},
		{in: "prod/.", bad: true},
		{in: "prod/%2e%2e", bad: true},
		{in: "prod/Node", bad: true},
		{in: "prod/-a", bad: true},
		{in: "prod/a-", bad: true},
		{in: "prod/a..b", bad: true},
		{in: "prod/a b", bad: true},
		{in: "prod/ä", bad: true},
		{in: "prod/" + strings.Repeat("a", 254), bad: true},
		{in: "prod/" + strings.Repeat("a", 253), want: NodeRef{"prod", strings.Repeat("a", 253)}},
	} {
		got, err := ParseNodeRef("nodes", tt.in)
		if tt.bad {
			fe, ok := errors.AsType[*FieldError](err)
			if !ok || fe.Field != "nodes" {
				t.Errorf("ParseNodeRef(%q) = %v, %v; want a FieldError for nodes", tt.in, got, err)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("ParseNodeRef(%q) = %v, %v; want %v", tt.in, got, err, tt.want)
		}
		if got.String() != tt.in {
			t.Errorf("String() = %q, want %q", got.String(), tt.in)
		}
	}
}

func FuzzParseNodeRef(f *testing.F) {
	f.Add("a/b")
	f.Add("a/b/c")
	f.Add("../..")
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseNodeRef("nodes", s)
		if err == nil && (ref.String() != s || !ValidNodeName(ref.Name) || strings.ContainsAny(ref.Name, "/%\\ ") || ref.Name == "..") {
			t.Errorf("ParseNodeRef(%q) = %#v", s, ref)
		}
	})
}
