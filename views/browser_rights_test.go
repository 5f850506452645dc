package views

import (
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Buttons follow what the clusters permit while a list is open, by the clusters of what is selected alone.
func TestBrowser_RightsFollow(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tb := s.open(t)
	c := next(t, "stream", s.conns)
	tb.wait(isLive)
	tb.click(box(1))
	const off = `document.querySelector('#batch button[value=%]').disabled`
	cordon, drain := strings.ReplaceAll(off, "%", "cordon"), strings.ReplaceAll(off, "%", "drain")
	badge := func(cluster fleet.Cluster) string {
		html := string(Renderer{}.ClusterBadge(cluster, "en"))
		return strings.Replace(html, "<li ", `<li hx-swap-oob="outerMorph" `, 1)
	}
	tb.wait(`!` + cordon + ` && !` + drain)
	c.say(t, "data: %s", badge(lackingCluster(plainly)))
	tb.wait(drain + ` && !` + cordon)
	const title = `document.querySelector('#batch button[value=drain]').title`
	if got := eval[string](tb, title); got != "prod-eu does not let us: evict pods" {
		t.Errorf("the button says %q", got)
	}
	tb.click("#clear")
	tb.wait(`!` + drain)
	tb.click(box(2))
	tb.wait(drain)
	c.say(t, "data: %s", badge(sampleCluster(plainly, fleet.ClusterLive)))
	tb.wait(`!` + drain + ` && ` + title + ` === ''`)
}
