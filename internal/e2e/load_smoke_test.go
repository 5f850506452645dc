package e2e

import (
	"bytes"
	"strings"
	"testing"
)

// TestLoad_Smoke runs every scenario of the benchmarks in small, so that they cannot rot. It judges what they found by
// what must be true on any machine: everybody ends with the newest state, page views and streams cost the API server
// nothing, and everybody comes back after a restart.
func TestLoad_Smoke(t *testing.T) {
	t.Parallel()
	const nodes, streams = 20, 50
	c := control(t, nodes)
	pages(t, c, nodes, 5)
	changesTo(t, c, nodes, 2, 10, 20)
	crowded(t, c, nodes, streams, 5, 20, 20, true)
	burst(t, c, nodes, 10)
	batches(t, c, nodes, 4)
	drains(t, c, 4, 3, 2)
	held(t, c, nodes, streams, 2)
	whole(t, c, nodes, 3)
	down(t, 4)

	var b bytes.Buffer
	if err := table(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"API calls", "HTML p50 against raw", "RSS per stream", "everybody back after", "all clusters live", "4 clusters, all down", "batch against kubectl drain"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table has no line %q:\n%s", want, b.String())
		}
	}
}
