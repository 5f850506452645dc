package realtime

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// streamMetrics say what the streams do. Labels come from the fixed sets below.
type streamMetrics struct {
	open     *prometheus.GaugeVec
	admitted *prometheus.CounterVec
	refused  *prometheus.CounterVec
	cut      *prometheus.CounterVec
	plain    prometheus.Counter
	wire     prometheus.Counter
	messages prometheus.Counter
	rows     prometheus.Counter
	merged   prometheus.Counter
	resumed  prometheus.Counter
	fresh    prometheus.Counter
	reset    prometheus.Counter
	size     prometheus.Histogram
	fanout   prometheus.Histogram
}

// Why a stream was refused. The first four are limits of somebody's share, the others are of the moment.
const (
	reasonSession   = "session"
	reasonPerson    = "person"
	reasonAddress   = "address"
	reasonViews     = "views"
	reasonProcess   = "process"
	reasonAdmission = "admission"
	reasonClosing   = "closing"
)

// Why a stream was cut.
const (
	cutSlow = "slow"
	cutGone = "gone"
)

// How a stream is served.
const (
	servedLasting = "lasting"
	servedBrief   = "brief"
)

var formatNames = map[Format]string{HTML: "html", JSON: "json"}

func newStreamMetrics(reg prometheus.Registerer, s *Streamer) *streamMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &streamMetrics{
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "knm_stream_open", Help: "Event streams open now, by what they show and as what: pages take html, programs json.",
		}, []string{"kind", "format"}),
		admitted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "knm_stream_admitted_total",
			Help: "Event streams begun: lasting ones, and brief ones that tell a browser without HTTP/2 and with many tabs to come back.",
		}, []string{"served"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "knm_stream_refused_total",
			Help: "Event streams refused: the limit of a session, person, address or of the process (429), more new ones a second than are admitted, or the end of the process (503).",
		}, []string{"reason"}),
		cut: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "knm_stream_cut_total",
			Help: "Event streams ended by a write that failed: slow clients took nothing within the write timeout, gone ones had left.",
		}, []string{"reason"}),
		plain:    counter("knm_stream_bytes_total", "Bytes of events before compression."),
		wire:     counter("knm_stream_wire_bytes_total", "Bytes of events as written to connections, compressed where the client takes gzip, without TLS and HTTP framing."),
		messages: counter("knm_stream_events_total", "Events written to streams, heartbeats included."),
		rows:     counter("knm_stream_rows_total", "Rows and objects (nodes, clusters, batch items) written to streams."),
		merged:   counter("knm_stream_merged_total", "Updates of a page that its stream sent as a part of a later message, because the client or its pacing was not ready for each."),
		resumed:  counter("knm_stream_resumed_total", "Streams that went on at their cursor."),
		fresh:    counter("knm_stream_fresh_total", "Streams that began with the whole state because they named no cursor."),
		reset:    counter("knm_stream_reset_total", "Streams that began with the whole state because their cursor was of another process or too old."),
		size: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "knm_stream_event_bytes", Help: "Size of one event before compression.",
			Buckets: prometheus.ExponentialBuckets(64, 4, 9), // to 4 MiB
		}),
		fanout: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "knm_stream_fanout_seconds",
			Help:    "Time from the moment a message was made for the first of its streams to its flush to each of them, catching up after a connect left out.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 4, 10), // to 13 s
		}),
	}
	for _, kind := range []string{kindNodes, kindNode, kindClusters, kindBatch} {
		for _, format := range formatNames {
			m.open.WithLabelValues(kind, format)
		}
	}
	for _, reason := range []string{reasonSession, reasonPerson, reasonAddress, reasonProcess, reasonViews, reasonAdmission, reasonClosing} {
		m.refused.WithLabelValues(reason)
	}
	for _, reason := range []string{cutSlow, cutGone} {
		m.cut.WithLabelValues(reason)
	}
	for _, served := range []string{servedLasting, servedBrief} {
		m.admitted.WithLabelValues(served)
	}
	limits := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "knm_stream_limit",
		Help: "The bounds of streams: open ones of one session, person, address and of the process, lasting HTML ones of a session over HTTP/1.x, new ones a second, and rows and bytes at which a message is closed.",
	}, []string{"limit"})
	for name, n := range map[string]int{
		reasonSession: s.cfg.PerSession, reasonPerson: s.cfg.PerUser, reasonAddress: s.cfg.PerAddr, reasonProcess: s.cfg.Total,
		reasonAdmission: s.cfg.Admit, "plain_http": s.cfg.Plain, "message_rows": maxRows, "message_bytes": maxBytes,
	} {
		limits.WithLabelValues(name).Set(float64(n))
	}
	register(reg, m.open, m.admitted, m.refused, m.cut, m.plain, m.wire, m.messages, m.rows, m.merged, m.resumed, m.fresh,
		m.reset, m.size, m.fanout, limits)
	return m
}

func (m *streamMetrics) admit(c *conn) {
	m.open.WithLabelValues(c.kind, formatNames[c.viewer.Format]).Inc()
	served := servedLasting
	if c.brief {
		served = servedBrief
	}
	m.admitted.WithLabelValues(served).Inc()
}

func (m *streamMetrics) release(c *conn) {
	m.open.WithLabelValues(c.kind, formatNames[c.viewer.Format]).Dec()
}

// began counts how a stream starts.
func (m *streamMetrics) began(c *conn, resumed bool) {
	switch {
	case resumed:
		m.resumed.Inc()
	case c.viewer.Since == "":
		m.fresh.Inc()
	default:
		m.reset.Inc()
	}
}

// wrote counts what went out with one flush: one event, the header, or the end.
func (m *streamMetrics) wrote(plain, wire int) {
	m.plain.Add(float64(plain))
	m.wire.Add(float64(wire))
	if plain > 0 {
		m.messages.Inc()
		m.size.Observe(float64(plain))
	}
}

// delivered counts a frame that was flushed to a client that had been up to date at looked.
func (m *streamMetrics) delivered(f frame, looked time.Time) {
	m.rows.Add(float64(f.rows))
	if !looked.IsZero() && f.made.After(looked) {
		m.fanout.Observe(time.Since(f.made).Seconds())
	}
}
