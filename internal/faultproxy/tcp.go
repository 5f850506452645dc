package faultproxy

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// Accept is what becomes of a new connection.
type Accept int

// The ways to treat a new connection.
const (
	Forward Accept = iota // connect it to the server
	Refuse                // nobody listens: the client's kernel says "connection refused"
	Reset                 // accept and reset at once
	Silence               // accept, and neither read nor answer
)

// Fault is how a proxy treats connections. The zero value forwards everything at once.
type Fault struct {
	Accept   Accept        // of new connections
	StopUp   bool          // what the client sends stays with us; both sockets stay open
	StopDown bool          // the same for what the server sends; with StopUp: a pause
	Latency  time.Duration // added to every piece in either direction
	Jitter   time.Duration // on top of Latency, up to so much
	Rate     int           // bytes per second in each direction; 0: as fast as they come
	CutAfter int64         // reset the connection after so many bytes of the server; 0: never
}

// Half-open connections and a pause, as faults.
var (
	HalfOpen = Fault{StopDown: true} // the client's bytes arrive, the answers do not
	Paused   = Fault{StopUp: true, StopDown: true}
)

// TCP forwards connections to one address. Make one with NewTCP.
type TCP struct {
	addr    string
	seed    uint64
	running sync.WaitGroup

	mu       sync.Mutex // guards everything below
	target   string
	fault    Fault
	changed  chan struct{} // closed and replaced whenever fault changes
	listener net.Listener  // nil while connections are refused
	conns    map[*Conn]struct{}
	opened   uint64
	closed   bool
}

// Conn is one connection through a TCP proxy.
type Conn struct {
	p      *TCP
	n      uint64
	target string
	client *net.TCPConn
	done   chan struct{}
	end    func()

	// own is the connection's fault, nil while that of the proxy counts. Guarded by p.mu.
	own    *Fault
	passed int64 // bytes of the server; only its pipe touches it
}

// NewTCP starts a proxy to an address and ends it with the test.
func NewTCP(tb testing.TB, target string, seed uint64) *TCP {
	tb.Helper()
	p := &TCP{target: target, seed: seed, changed: make(chan struct{}), conns: map[*Conn]struct{}{}}
	rnd := rand.New(rand.NewPCG(seed, uint64(time.Now().UnixNano())))
	var err error
	for range 200 {
		// Below the ports that kernels give to outgoing connections, so that it is still free after a Refuse.
		if err = p.listen(fmt.Sprintf("127.0.0.1:%d", 11000+rnd.IntN(9000))); err == nil {
			break
		}
	}
	if err != nil {
		tb.Fatalf("faultproxy: %v", err)
	}
	tb.Cleanup(p.close)
	return p
}

// Addr is where the proxy listens, as host:port. It stays the same.
func (p *TCP) Addr() string { return p.addr }

// listen opens the listener and serves it.
func (p *TCP) listen(addr string) error {
	l, err := net.Listen("tcp", addr) //nolint:noctx // of this machine: it takes no time
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addr, p.listener = l.Addr().String(), l
	p.running.Go(func() { p.serve(l) })
	return nil
}

func (p *TCP) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		p.accept(c.(*net.TCPConn))
	}
}

func (p *TCP) accept(client *net.TCPConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fault := p.fault
	// A connection that the kernel had accepted before the listener was closed counts as refused, too.
	if p.closed || fault.Accept == Refuse || fault.Accept == Reset {
		drop(client)
		return
	}
	p.opened++
	c := &Conn{p: p, n: p.opened, target: p.target, client: client, done: make(chan struct{})}
	c.end = sync.OnceFunc(func() { close(c.done) })
	p.conns[c] = struct{}{}
	p.running.Go(func() { c.run(fault.Accept == Silence) })
}

// Set changes how the proxy treats new connections, and open ones as far as it is about bytes. It returns when it holds.
func (p *TCP) Set(tb testing.TB, f Fault) {
	tb.Helper()
	p.mu.Lock()
	p.fault = f
	p.announce()
	l := p.listener
	if f.Accept == Refuse {
		p.listener = nil
	}
	addr := p.addr
	p.mu.Unlock()
	switch {
	case f.Accept == Refuse && l != nil:
		_ = l.Close() // nothing of ours is in it
	case f.Accept != Refuse && l == nil:
		if err := p.listen(addr); err != nil {
			tb.Fatalf("faultproxy: listening again: %v", err)
		}
	}
}

// announce wakes the pipes. mu is held.
func (p *TCP) announce() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Retarget leads new connections to another address.
func (p *TCP) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Cut resets every open connection.
func (p *TCP) Cut() {
	for _, c := range p.Conns() {
		c.Cut()
	}
}

// Conns are the open connections, oldest first.
func (p *TCP) Conns() []*Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*Conn, 0, len(p.conns))
	for c := range p.conns {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *Conn) int { return int(a.n) - int(b.n) })
	return all
}

// Opened is how many connections were accepted so far.
func (p *TCP) Opened() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(p.opened)
}

func (p *TCP) close() {
	p.mu.Lock()
	p.closed = true
	l := p.listener
	p.listener = nil
	p.mu.Unlock()
	if l != nil {
		_ = l.Close() // nothing of ours is in it
	}
	p.Cut()
	p.running.Wait()
}

// Set gives the connection a fault of its own, which counts instead of the proxy's from now on.
func (c *Conn) Set(f Fault) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.own = &f
	c.p.announce()
}

// Cut resets the connection, on both sides.
func (c *Conn) Cut() { c.end() }

// current is the fault that counts now, and what closes when it changes.
func (c *Conn) current() (Fault, <-chan struct{}) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.own != nil {
		return *c.own, c.p.changed
	}
	return c.p.fault, c.p.changed
}

// run owns the connection and its two pipes.
func (c *Conn) run(silent bool) {
	var pipes sync.WaitGroup
	defer func() {
		c.p.mu.Lock()
		delete(c.p.conns, c)
		c.p.mu.Unlock()
	}()
	var server *net.TCPConn
	if !silent {
		conn, err := net.DialTimeout("tcp", c.target, 10*time.Second) //nolint:noctx // as long as that
		if err != nil {
			drop(c.client)
			return
		}
		server = conn.(*net.TCPConn)
		pipes.Go(func() { c.pipe(c.client, server, 0) })
		pipes.Go(func() { c.pipe(server, c.client, 1) })
	}
	<-c.done
	drop(c.client)
	if server != nil {
		drop(server)
	}
	pipes.Wait()
}

// drop closes with a reset.
func drop(c *net.TCPConn) {
	_ = c.SetLinger(0) // it may be closed already
	_ = c.Close()
}

// piece is how much is passed on at once: small enough for rates to be even.
const piece = 16 << 10

// pipe passes on what one side sends; direction is 0 to the server and 1 to the client. It ends with the connection.
func (c *Conn) pipe(from, to *net.TCPConn, direction uint64) {
	rnd := rand.New(rand.NewPCG(c.p.seed, 2*c.n+direction))
	buf := make([]byte, piece)
	for {
		n, err := from.Read(buf)
		if n > 0 && !c.pass(buf[:n], to, direction, rnd) {
			c.end()
			return
		}
		if err != nil {
			// The end of one side is passed on in order, behind everything it said.
			if closed := to.CloseWrite(); closed != nil || !errors.Is(err, io.EOF) || direction == 1 {
				c.end()
			}
			return
		}
	}
}

// pass hands on one piece when the fault lets it; false when the connection is over.
func (c *Conn) pass(b []byte, to *net.TCPConn, direction uint64, rnd *rand.Rand) bool {
	for len(b) > 0 {
		f, changed := c.current()
		if direction == 0 && f.StopUp || direction == 1 && f.StopDown {
			select {
			case <-changed:
				continue
			case <-c.done:
				return false
			}
		}
		n := len(b)
		delay := f.Latency
		if f.Jitter > 0 {
			delay += time.Duration(rnd.Int64N(int64(f.Jitter)))
		}
		if f.Rate > 0 {
			n = min(n, max(1, f.Rate/20))
			delay += time.Duration(n) * time.Second / time.Duration(f.Rate)
		}
		cut := false
		if direction == 1 && f.CutAfter > 0 {
			if left := f.CutAfter - c.passed; int64(n) >= left {
				n, cut = int(max(left, 0)), true
			}
		}
		if delay > 0 && !c.wait(delay) {
			return false
		}
		if _, err := to.Write(b[:n]); err != nil {
			return false
		}
		if direction == 1 {
			c.passed += int64(n)
		}
		if cut {
			return false
		}
		b = b[n:]
	}
	return true
}

func (c *Conn) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.done:
		return false
	}
}
