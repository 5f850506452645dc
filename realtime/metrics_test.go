package realtime

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func TestMetrics_SayWhatHappens(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	b := newBench(t, ManagerConfig{Metrics: reg}, StreamerConfig{Metrics: reg, PerUser: 1}, "a")
	b.put("a", spec{name: "n", rv: 1})
	b.put("a", spec{name: "n", rv: 2}) // a heartbeat
	s := b.open("/nodes?json=1", "User", "u")
	s.until("synced", func(e got) bool { return e.name == typeSynced })
	if _, status, err := b.dial("/nodes", "User", "u"); err != nil || status != 429 {
		t.Fatalf("second stream: %d, %v", status, err)
	}
	want := map[string]float64{
		"knm_realtime_cluster_nodes cluster=a":                   1,
		"knm_realtime_cluster_state cluster=a state=unreachable": 1,
		"knm_realtime_cluster_state cluster=a state=live":        0,
		"knm_realtime_changes_total cluster=a visible=true":      1,
		"knm_realtime_changes_total cluster=a visible=false":     1,
		"knm_realtime_views":                                     1,
		"knm_cache_misses_total":                                 1,
		"knm_cache_hits_total":                                   0,
		"knm_cache_limit_bytes":                                  256 << 20,
		"knm_stream_open format=json kind=nodes":                 1,
		"knm_stream_open format=html kind=nodes":                 0,
		"knm_stream_admitted_total served=lasting":               1,
		"knm_stream_refused_total reason=person":                 1,
		"knm_stream_refused_total reason=session":                0,
		"knm_stream_limit limit=person":                          1,
		"knm_stream_limit limit=message_rows":                    maxRows,
		"knm_stream_fresh_total":                                 1,
		"knm_stream_resumed_total":                               0,
		"knm_stream_reset_total":                                 0,
		"knm_stream_cut_total reason=slow":                       0,
		"knm_stream_rows_total":                                  1,
	}
	var got map[string]float64
	eventually(t, "what was sent is counted", func() bool { // the client has it before the counter has
		got = gather(t, reg)
		return got["knm_stream_events_total"] >= 2
	})
	for name, v := range want {
		if g, ok := got[name]; !ok || g != v {
			t.Errorf("%s: got %v (there: %t), want %v", name, g, ok, v)
		}
	}
	if got["knm_cache_rows_bytes"] < 500 || got["knm_cache_nodes_bytes"] < 1000 {
		t.Errorf("cache: %v bytes of rows, %v of nodes", got["knm_cache_rows_bytes"], got["knm_cache_nodes_bytes"])
	}
	if got["knm_stream_events_total"] != 2 { // the node and synced
		t.Errorf("%v events counted, want 2", got["knm_stream_events_total"])
	}
	if plain, wire := got["knm_stream_bytes_total"], got["knm_stream_wire_bytes_total"]; wire == 0 || wire >= plain {
		t.Errorf("%v bytes became %v on the wire, want fewer: the client takes gzip", plain, wire)
	}
	if err := b.m.Remove("a"); err != nil {
		t.Fatal(err)
	}
	for name := range gather(t, reg) {
		if strings.Contains(name, "cluster=a") {
			t.Errorf("%s is left of a removed cluster", name)
		}
		if strings.Contains(name, "node=") {
			t.Errorf("%s has a label that is not bounded", name)
		}
	}
	if len(clusterStates) != 9 || clusterStates[2] != fleet.ClusterLive {
		t.Errorf("states: %v", clusterStates)
	}
}

func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var name strings.Builder
			name.WriteString(f.GetName())
			for _, l := range m.GetLabel() {
				name.WriteString(" " + l.GetName() + "=" + l.GetValue())
			}
			out[name.String()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}
