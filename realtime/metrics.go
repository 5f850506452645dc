package realtime

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Metrics are labelled by cluster and never by node.

type metrics struct {
	pass       prometheus.Histogram
	events     *prometheus.CounterVec
	relists    *prometheus.CounterVec
	reconnects *prometheus.CounterVec
	lag        *prometheus.HistogramVec
}

func (m *metrics) forget(cluster string) {
	m.events.DeleteLabelValues(cluster)
	m.relists.DeleteLabelValues(cluster)
	m.reconnects.DeleteLabelValues(cluster)
	m.lag.DeleteLabelValues(cluster)
}

func newMetrics(reg prometheus.Registerer, mgr *Manager) *metrics {
	byCluster := []string{"cluster"}
	m := &metrics{
		pass: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "knm_realtime_pass_seconds",
			Help:    "Time to bring every watched view up to date with what changed since the last pass.",
			Buckets: prometheus.ExponentialBuckets(10e-6, 4, 9),
		}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "knm_realtime_watch_events_total", Help: "Node events received from the API server.",
		}, byCluster),
		relists: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "knm_realtime_lists_total", Help: "Complete lists received from the API server.",
		}, byCluster),
		reconnects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "knm_realtime_attempts_ended_total", Help: "Connections to a cluster that ended, whatever the cause.",
		}, byCluster),
		lag: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "knm_realtime_watch_lag_seconds",
			Help:    "From the API server's answer to an own write until the watch brought it or something newer.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 4, 8),
		}, byCluster),
	}
	rows := mgr.render.cache
	counter := func(name, help string, v *atomic.Uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(v.Load()) })
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	register(reg, m.lag,
		counter("knm_cache_hits_total", "Rows and JSON served as rendered before.", &rows.hits),
		counter("knm_cache_misses_total", "Rows and JSON that had to be rendered.", &rows.misses),
		counter("knm_cache_evictions_total", "Rendered rows and JSON dropped to keep the cache within its limit.", &rows.evicted),
		gauge("knm_cache_rows_bytes", "Rendered rows and JSON held.", func() float64 { return float64(rows.size()) }),
		gauge("knm_cache_rows_limit_bytes", "What the nodes leave of the cache's limit to rendered rows.",
			func() float64 { return float64(rows.limit.Load()) }),
		gauge("knm_cache_nodes_bytes", "Nodes held, about.", func() float64 { return float64(held(mgr.all())) }),
		gauge("knm_realtime_view_items", "Nodes in all views together.", func() float64 { return float64(mgr.items.Load()) }),
		gauge("knm_realtime_view_items_limit", "Beyond this, streams of views that are not there yet are refused.",
			func() float64 { return float64(mgr.cfg.ViewItems) }),
		gauge("knm_cache_limit_bytes", "Beyond this for nodes and rows together, clusters that nobody looks at are put to sleep.",
			func() float64 { return float64(mgr.cfg.CacheBytes) }),
	)
	register(reg, m.pass, m.events, m.relists, m.reconnects, &clusterCollector{mgr}, prometheus.NewCounterFunc(
		prometheus.CounterOpts{Name: "knm_realtime_rows_rendered_total", Help: "Node rows rendered."},
		func() float64 { return float64(mgr.render.made.Load()) },
	), prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Name: "knm_realtime_views", Help: "Views held, watched or idle."},
		func() float64 {
			mgr.viewsMu.Lock()
			defer mgr.viewsMu.Unlock()
			return float64(len(mgr.views))
		},
	))
	return m
}

func register(reg prometheus.Registerer, cs ...prometheus.Collector) {
	if reg == nil {
		return
	}
	reg.MustRegister(cs...) // a name twice is a mistake of the program's start
}

// clusterCollector reads the boards when it is asked, so that a removed cluster leaves nothing behind.
type clusterCollector struct{ m *Manager }

var (
	descState = prometheus.NewDesc("knm_realtime_cluster_state",
		"1 for the state the cluster is in.", []string{"cluster", "state"}, nil)
	descNodes = prometheus.NewDesc("knm_realtime_cluster_nodes",
		"Nodes in the cache.", []string{"cluster"}, nil)
	descLastEvent = prometheus.NewDesc("knm_realtime_cluster_last_event_timestamp_seconds",
		"When the last watch event or bookmark came.", []string{"cluster"}, nil)
	descSignificant = prometheus.NewDesc("knm_realtime_changes_total",
		"Node changes stored, by whether anybody would notice.", []string{"cluster", "visible"}, nil)
)

var clusterStates = []fleet.ClusterState{
	fleet.ClusterConnecting, fleet.ClusterSyncing, fleet.ClusterLive, fleet.ClusterStale, fleet.ClusterUnreachable,
	fleet.ClusterUnauthorized, fleet.ClusterForbidden, fleet.ClusterAsleep,
	fleet.ClusterStopped,
}

func (c *clusterCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descState
	ch <- descNodes
	ch <- descLastEvent
	ch <- descSignificant
}

func (c *clusterCollector) Collect(ch chan<- prometheus.Metric) {
	for name, b := range c.m.all() {
		s := b.state()
		for _, state := range clusterStates {
			var v float64
			if s.State == state {
				v = 1
			}
			ch <- prometheus.MustNewConstMetric(descState, prometheus.GaugeValue, v, name, string(state))
		}
		ch <- prometheus.MustNewConstMetric(descNodes, prometheus.GaugeValue, float64(s.Nodes), name)
		if !s.LastEvent.IsZero() {
			at := float64(s.LastEvent.UnixNano()) / 1e9
			ch <- prometheus.MustNewConstMetric(descLastEvent, prometheus.GaugeValue, at, name)
		}
		for visible, n := range map[string]uint64{"true": b.significant.Load(), "false": b.quiet.Load()} {
			ch <- prometheus.MustNewConstMetric(descSignificant, prometheus.CounterValue, float64(n), name, visible)
		}
	}
}
