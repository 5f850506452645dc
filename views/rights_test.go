package views

import (
	"slices"
	"testing"

	"github.com/PuerkitoBio/goquery"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// disabled are the actions whose buttons cannot be pressed, each with a reason to be read and heard.
func disabled(t *testing.T, d *goquery.Document) (out []string) {
	t.Helper()
	d.Find("#batch button[name=action]").Each(func(_ int, b *goquery.Selection) {
		_, off := b.Attr("disabled")
		title, why := b.AttrOr("title", ""), b.AttrOr("aria-description", "")
		if off != (title != "") || title != why {
			t.Errorf("%s: disabled %t, title %q, described as %q", b.AttrOr("value", ""), off, title, why)
		}
		if off {
			out = append(out, b.AttrOr("value", ""))
		}
	})
	return out
}

// Buttons whose action the cluster would refuse are disabled on the page of a node and on the list of the cluster. On a
// list of several it depends on what is selected: the badge says what the script needs.
func TestRights_ButtonsThatWouldFail(t *testing.T) {
	t.Parallel()
	c := lackingCluster(plainly)
	layout := sampleLayout(plainly, "en")
	node := NodePage{Layout: layout, Node: sampleNode(plainly), Cluster: c, CanCordon: true}
	if got := disabled(t, document(t, render(t, Node(node)))); !slices.Equal(got, []string{"drain"}) {
		t.Errorf("on the page of a node: %q", got)
	}
	list := NodesPage{Layout: layout, Query: Query{Cluster: c.Name}, Clusters: []fleet.Cluster{c}, CanCordon: true}
	if got := disabled(t, document(t, render(t, Nodes(list)))); !slices.Equal(got, []string{"drain"}) {
		t.Errorf("on the list of its cluster: %q", got)
	}
	list.Query.Cluster = ""
	page := document(t, render(t, Nodes(list)))
	if got := disabled(t, page); len(got) > 0 {
		t.Errorf("on the list of all: %q", got)
	}
	badge := page.Find("#clusters [data-lacks]")
	if badge.AttrOr("data-lacks", "") != "drain" || badge.AttrOr("data-cluster", "") != c.Name || badge.AttrOr("data-why", "") != "prod-eu does not let us: evict pods" {
		h, err := goquery.OuterHtml(page.Find("#clusters"))
		t.Errorf("the badge: %s, %v", h, err)
	}

	// Whoever may change nothing gets no button that would; and what a cluster said before it was lost counts for nothing.
	for i := range c.Rights.Asked {
		if c.Rights.Asked[i].Verb == "patch" {
			c.Rights.Asked[i].Allowed = false
		}
	}
	node.Cluster = c
	if got := disabled(t, document(t, render(t, Node(node)))); len(got) < 5 {
		t.Errorf("without the right to change nodes: %q", got)
	}
	node.Cluster.State = fleet.ClusterStale
	if got := disabled(t, document(t, render(t, Node(node)))); len(got) > 0 {
		t.Errorf("of a cluster that is not live: %q", got)
	}
}
