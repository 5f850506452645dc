package app

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
)

// pipes is a listener without a network, so that time can be had from testing/synctest. Its connections have no buffer:
// what one end does not read, the other cannot write.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

type pipeEnd struct {
	net.Conn
	peer net.Addr
}

func (p pipeEnd) RemoteAddr() net.Addr { return p.peer }

// dial connects from an address.
func (p *pipes) dial(from string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- pipeEnd{theirs, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 1234))}:
		return ours, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// T31: hundreds of clients of every slow kind. All that they hold is taken back at the time that is promised, and
// whoever behaves is served meanwhile.
func TestServer_SlowClients(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const each = 60
		wire := newPipes()
		cfg := serveConfig(t)
		cfg.MetricsListen = "" // a real socket would hold the clock
		cfg.Streams.PerSession, cfg.Streams.PerPerson = 2*each, 2*each
		var d *door
		r := startWith(t, cfg, func(a *App) {
			d = a.http.(*door)
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			d.Listener = wire
		})
		dial := func() net.Conn {
			c, err := wire.dial("192.0.2.7")
			if err != nil {
				t.Error(err)
			}
			return c
		}
		healthy := r.person(&http.Transport{DisableKeepAlives: true, Dial: func(string, string) (net.Conn, error) { return wire.dial("192.0.2.1") }}) //nolint:staticcheck // SA1019: there is nothing that a context could end
		r.setUp(healthy)
		u, err := url.Parse(healthy.base)
		if err != nil {
			t.Fatal(err)
		}
		session := healthy.client.Jar.Cookies(u)[0].String()

		const host = "Host: 127.0.0.1:80\r\n"
		trickle := func(c net.Conn) error { // a byte a second, for ever
			for {
				if _, err := c.Write([]byte("x")); err != nil {
					return err
				}
				time.Sleep(time.Second)
			}
		}
		hangUp := func(c net.Conn) error { // wait without reading until the other end closes
			for {
				// A pipe tells a writer at once that the other end is closed, and a reader takes what we do not want.
				if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
					return err
				}
				if _, err := c.Write([]byte{}); errors.Is(err, io.ErrClosedPipe) {
					return err
				}
				time.Sleep(time.Second)
			}
		}
		kinds := []struct {
			name string
			gone time.Duration
			do   func(net.Conn) error
		}{
			{"says nothing", readHeaderTimeout, hangUp},
			{"never ends its headers", readHeaderTimeout, func(c net.Conn) error {
				if _, err := io.WriteString(c, "GET /login HTTP/1.1\r\n"+host+"X-A: "); err != nil {
					return err
				}
				return trickle(c)
			}},
			{"never ends its body", readTimeout, func(c net.Conn) error {
				if _, err := io.WriteString(c, "POST /login HTTP/1.1\r\n"+host+"Origin: http://127.0.0.1:80\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 9000\r\n\r\n"); err != nil {
					return err
				}
				go func() { _, _ = io.Copy(io.Discard, c) }() // the answer must not be what holds it
				return trickle(c)
			}},
			{"never ends a chunked body for a stream", readTimeout, func(c net.Conn) error {
				if _, err := io.WriteString(c, "POST /api/v1/batches HTTP/1.1\r\n"+host+"Origin: http://127.0.0.1:80\r\nAccept: text/event-stream\r\nCookie: "+session+
					"\r\nContent-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n2000\r\n"); err != nil {
					return err
				}
				go func() { _, _ = io.Copy(io.Discard, c) }()
				return trickle(c)
			}},
			{"does not read its answer", readTimeout, func(c net.Conn) error {
				if _, err := io.WriteString(c, "GET /login HTTP/1.1\r\n"+host+"\r\n"); err != nil {
					return err
				}
				return hangUp(c)
			}},
			{"does not read its stream", 10 * time.Second, func(c net.Conn) error {
				if _, err := io.WriteString(c, "GET /api/v1/nodes/events HTTP/1.1\r\n"+host+"Cookie: "+session+"\r\n\r\n"); err != nil {
					return err
				}
				return hangUp(c)
			}},
			{"stays without a wish", idleTimeout, func(c net.Conn) error {
				if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\n"+host+"\r\n"); err != nil {
					return err
				}
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					return err
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					return err
				}
				_, err = c.Read(make([]byte, 1))
				return err
			}},
		}
		var wg sync.WaitGroup
		for _, k := range kinds {
			for range each {
				c := dial()
				wg.Go(func() {
					defer c.Close()
					began := time.Now()
					err := k.do(c)
					if took := time.Since(began); err == nil || took < k.gone-time.Second || took > k.gone+2*time.Second {
						t.Errorf("who %s was let go after %s (%v), want %s", k.name, took, err, k.gone)
					}
				})
			}
		}
		slow := make(chan struct{})
		go func() { defer close(slow); wg.Wait() }()
		served, over := 0, false
		for !over {
			began := time.Now()
			for _, path := range []string{"/healthz", "/clusters", "/nodes"} {
				if status, _ := healthy.do("GET", path, nil, "Accept", "text/html"); status != http.StatusOK {
					t.Errorf("%s: status %d", path, status)
				}
			}
			if took := time.Since(began); took > 0 { // time passes only while nobody has anything to do
				t.Errorf("a healthy request had to wait for %s", took)
			}
			served++
			select {
			case <-slow:
				over = true
			case <-time.After(time.Second):
			}
		}
		if served < int(idleTimeout/time.Second) {
			t.Errorf("only %d healthy rounds", served)
		}
		synctest.Wait()
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.open != 0 || len(d.by) != 0 {
			t.Errorf("%d connections are still counted, of %v", d.open, d.by)
		}
	})
}

// A connection above a ceiling is closed at once and is counted; one that ends makes room.
func TestDoor(t *testing.T) {
	t.Parallel()
	wire := newPipes()
	defer func() { _ = wire.Close() }() // it never fails
	reg := prometheus.NewRegistry()
	counts, err := newDoorMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	d := &door{Listener: wire, total: 8, perAddr: 2, proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::7/128")}, metrics: counts}
	in := make(chan net.Conn, 32)
	over := make(chan error, 1)
	go func() {
		for {
			c, err := d.Accept()
			if err != nil {
				over <- err
				return
			}
			in <- c
		}
	}()
	enter := func(from string, want bool) net.Conn {
		t.Helper()
		c, err := wire.dial(from)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		refused := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			refused <- err
		}()
		select {
		case got := <-in:
			if !want {
				t.Errorf("%s was let in", from)
			}
			return got
		case err := <-refused:
			if want || !errors.Is(err, io.EOF) {
				t.Fatalf("%s was not let in: %v", from, err)
			}
		}
		return nil
	}
	first := enter("192.0.2.1", true)
	enter("::ffff:192.0.2.1", true) // the same by another name
	enter("192.0.2.1", false)
	enter("192.0.2.2", true)
	enter("2001:db8::1", true)
	enter("2001:db8::ffff:2", true)
	enter("2001:db8::3", false) // one customer has the whole /64
	for range 3 {
		enter("10.1.2.3", true) // many people behind one proxy
	}
	enter("192.0.2.3", false) // eight in all
	if got := gathered(t, reg)["knm_connections_open"]; got != 8 {
		t.Errorf("%v are open", got)
	}
	for i := range 3 { // however often it is closed, it was one
		if err := first.Close(); err != nil && i == 0 {
			t.Error(err)
		}
	}
	enter("fd00::7", true)
	enter("192.0.2.1", false)
	if got := gathered(t, reg); got["knm_connections_refused_total address"] != 2 || got["knm_connections_refused_total total"] != 2 {
		t.Errorf("metrics %v", got)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-over; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the end of the listener is %v", err)
	}
}

// gathered are the metrics by name and value of their label.
func gathered(t *testing.T, reg *prometheus.Registry) map[string]float64 {
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
				name.WriteString(" " + l.GetValue())
			}
			out[name.String()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

func TestCeiling(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		streams        config.Streams
		connections    config.Connections
		files          uint64
		total, perAddr int
		warned         bool
	}{
		{files: 1 << 20, total: 16000, perAddr: 1024},
		{streams: config.Streams{Total: 300, PerAddress: 100}, files: 1 << 20, total: 400, perAddr: 400},
		{connections: config.Connections{Total: 7, PerAddress: 3}, files: 1024, total: 7, perAddr: 3},
		{files: 1024, total: 768, perAddr: 1024, warned: true},
		{files: 10, total: fewestConnections, perAddr: 1024, warned: true},
		{files: 1<<64 - 1, total: 16000, perAddr: 1024},
	} {
		logs := &lockedBuffer{}
		a := &App{cfg: config.Serve{Streams: tt.streams, Connections: tt.connections}, logger: slog.New(slog.NewJSONHandler(logs, nil))}
		total, perAddr := a.ceiling(tt.files)
		if total != tt.total || perAddr != tt.perAddr || (logs.String() != "") != tt.warned {
			t.Errorf("%+v: %d, %d, log %q", tt, total, perAddr, logs)
		}
	}
}

// The real thing on a real socket: above the ceiling connections are reset at once, and when they end nothing of them is
// left.
func TestApp_ConnectionCeiling(t *testing.T) {
	t.Parallel()
	cfg := serveConfig(t)
	cfg.Connections = config.Connections{PerAddress: 30, Total: 100}
	r := start(t, cfg)
	p := r.person(&http.Transport{DisableKeepAlives: true})
	r.setUp(p)
	metric := func(name string) string {
		t.Helper()
		resp, err := p.client.Get("http://" + r.MetricsAddr() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(line, name+" "); ok {
				return strings.TrimSpace(v)
			}
		}
		return ""
	}
	waitFor(t, func() bool { return metric("knm_connections_open") == "0" })
	var conns []net.Conn
	for range 30 {
		c, err := net.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	waitFor(t, func() bool { return metric("knm_connections_open") == "30" })
	for i := range 20 {
		c, err := net.Dial("tcp", r.Addr())
		if err != nil {
			continue // reset before the dial returned
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("connection %d above the ceiling was spoken to", i)
		}
		c.Close()
	}
	if got := metric(`knm_connections_refused_total{ceiling="address"}`); got != "20" {
		t.Errorf("%s were refused", got)
	}
	for _, c := range conns {
		c.Close()
	}
	waitFor(t, func() bool { return metric("knm_connections_open") == "0" })
	if status, _ := p.do("GET", "/healthz", nil); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
}

// There is no HTTP/2 without TLS: neither by prior knowledge nor by upgrade.
func TestApp_NoH2C(t *testing.T) {
	t.Parallel()
	r := start(t, serveConfig(t))
	for _, hello := range []string{
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
	} {
		c, err := net.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := fmt.Fprint(c, hello); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if !strings.HasPrefix(line, "HTTP/1.1 ") || strings.HasPrefix(line, "HTTP/1.1 101") {
			t.Errorf("%.20q is answered with %q (%v)", hello, line, err)
		}
	}
}
