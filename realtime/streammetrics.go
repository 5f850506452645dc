package realtime

import "github.com/prometheus/client_golang/prometheus"

type streamMetrics struct {
	bytes, events, refused, slow, resumed, fresh prometheus.Counter
}

func newStreamMetrics(reg prometheus.Registerer, s *Streamer) *streamMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &streamMetrics{
		bytes:   counter("knm_stream_bytes_total", "Bytes written to event streams."),
		events:  counter("knm_stream_events_total", "Events written to event streams, headers included."),
		refused: counter("knm_stream_refused_total", "Streams refused because there were too many."),
		slow:    counter("knm_stream_cut_total", "Streams cut because their client took nothing or was gone."),
		resumed: counter("knm_stream_resumed_total", "Streams that went on at their cursor."),
		fresh:   counter("knm_stream_fresh_total", "Streams that began with the whole state."),
	}
	register(reg, m.bytes, m.events, m.refused, m.slow, m.resumed, m.fresh, prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Name: "knm_stream_open", Help: "Event streams open now."},
		func() float64 { return float64(s.open()) },
	))
	return m
}
