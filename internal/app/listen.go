package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Limits of connections. A whole request has a deadline of its own, set by handlers; a stream has none, but each of its
// writes has. What is here holds for what never becomes a request, and for what net/http answers by itself.
const (
	readHeaderTimeout = 5 * time.Second // of the TLS handshake too
	readTimeout       = 30 * time.Second
	idleTimeout       = 90 * time.Second
	writeByteTimeout  = 30 * time.Second // of HTTP/2, for the connection under the streams
	maxHeader         = 64 << 10

	metricsConnections = 64  // of /metrics, which a handful of collectors read
	spareFiles         = 256 // left to the database, to clusters and to files when connections are limited
	fewestConnections  = 64  // whatever the system grants
	perAddressFactor   = 4   // default: connections of an address for each stream that it may have
	defaultStreams     = 12000
	defaultPerAddress  = 256
)

// newServer is an http.Server with every limit that net/http knows.
func (a *App) newServer(ctx context.Context, h http.Handler, name string) *http.Server {
	base := context.WithoutCancel(ctx)
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true) // over TLS only: without it, HTTP/2 would go past the timeouts of HTTP/1
	return &http.Server{
		Handler: h, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		Protocols: protocols, HTTP2: &http.HTTP2Config{WriteByteTimeout: writeByteTimeout},
		ErrorLog:    slog.NewLogLogger(a.component(name).Handler(), slog.LevelDebug), // what strangers do to a port
		BaseContext: func(net.Listener) context.Context { return base },
	}
}

// ceiling is how many connections there may be, in all and of one address: by default enough for every stream that may
// be open, and for pages beside them. What the system grants of open files comes before what was asked for: a process
// without files could not even reach its database.
func (a *App) ceiling(files uint64) (total, perAddr int) {
	s := a.cfg.Streams
	streams := cmp.Or(s.Total, defaultStreams)
	total = cmp.Or(a.cfg.Connections.Total, streams+streams/3)
	perAddr = cmp.Or(a.cfg.Connections.PerAddress, perAddressFactor*cmp.Or(s.PerAddress, defaultPerAddress))
	if granted := int(min(files, 1<<30)) - spareFiles; granted < total {
		total = max(granted, fewestConnections)
		a.logger.Warn("the limit of open files allows for fewer connections than are configured: raise it, as with ulimit -n",
			"files", files, "connections", total)
	}
	return total, perAddr
}

// doorMetrics counts connections.
type doorMetrics struct {
	open    prometheus.Gauge
	refused *prometheus.CounterVec
}

// The ceilings, as the metric names them.
const (
	ceilingTotal   = "total"
	ceilingAddress = "address"
)

func newDoorMetrics(reg prometheus.Registerer) (*doorMetrics, error) {
	m := &doorMetrics{
		open: prometheus.NewGauge(prometheus.GaugeOpts{Name: "knm_connections_open", Help: "Connections of clients that are open."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "knm_connections_refused_total", Help: "Connections closed at once because there were too many, in all or of one address.",
		}, []string{"ceiling"}),
	}
	for _, of := range []string{ceilingTotal, ceilingAddress} {
		m.refused.WithLabelValues(of) // a rate of what has not happened yet is 0 and not nothing
	}
	for _, c := range []prometheus.Collector{m.open, m.refused} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return m, nil
}

// door is a listener with ceilings. A connection above one of them is taken and closed at once: left in the kernel's
// queue it would keep those out who are still below theirs, and its owner would wait where another replica may be free.
type door struct {
	net.Listener
	total, perAddr int            // 0: no such ceiling
	proxies        []netip.Prefix // stand for many people, so that only the total holds for them
	metrics        *doorMetrics   // may be nil

	mu   sync.Mutex // guards what follows
	open int
	by   map[netip.Prefix]int
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := peerOf(conn)
		over := d.enter(peer)
		if over == "" {
			return &guest{Conn: conn, leave: sync.OnceFunc(func() { d.leave(peer) })}, nil
		}
		if d.metrics != nil {
			d.metrics.refused.WithLabelValues(over).Inc()
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // reset: nothing of it stays behind in the kernel. If that fails, it is closed more slowly
		}
		_ = conn.Close() // nothing was said on it
	}
}

// enter counts a connection, or names the ceiling that it is above.
func (d *door) enter(peer netip.Addr) (over string) {
	from := customer(peer)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.total > 0 && d.open >= d.total:
		return ceilingTotal
	case d.perAddr > 0 && d.by[from] >= d.perAddr && peer.IsValid() && !slices.ContainsFunc(d.proxies, func(p netip.Prefix) bool { return p.Contains(peer) }):
		return ceilingAddress
	}
	if d.by == nil {
		d.by = make(map[netip.Prefix]int)
	}
	d.by[from]++
	d.open++
	d.count()
	return ""
}

func (d *door) leave(peer netip.Addr) {
	from := customer(peer)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.by[from]--; d.by[from] <= 0 {
		delete(d.by, from)
	}
	d.open--
	d.count()
}

// count shows how many there are; the caller holds the lock, so that the newest number stays.
func (d *door) count() {
	if d.metrics != nil {
		d.metrics.open.Set(float64(d.open))
	}
}

// guest is a connection that is counted until it is closed.
type guest struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (g *guest) Close() error {
	err := g.Conn.Close()
	g.leave()
	return err
}

// peerOf is the address at the other end; the zero Addr stands for what is no address.
func peerOf(conn net.Conn) netip.Addr {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// customer is what of an address belongs to one customer: the address of version 4, the /64 of version 6.
func customer(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// closedByUs tells the end of a listener that was closed on purpose from a failure.
func closedByUs(err error) bool { return errors.Is(err, net.ErrClosed) }
