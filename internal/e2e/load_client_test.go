package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The clients of a measurement live in this process, the program under test in one of its own. Ten thousand of them
// must not starve it on the same two cores, so a client is a socket, a goroutine, and no buffer while it waits: those
// are shared. Each comes from an address of its own in 127.0.0.0/8, as people do.

// measure is what the clients of a crowd look for: the changes, and by when everybody has seen enough of them.
type measure struct {
	*changes
	want func(i int) bool // changes without which a client is not done; nil: the last one
	left atomic.Int64     // clients that are not done
	done chan struct{}    // closed when nobody is left
}

func newMeasure(c *changes, want func(i int) bool) *measure {
	return &measure{changes: c, want: want, done: make(chan struct{})}
}

// wait waits until every reader has seen what it has to.
func (m *measure) wait(tb testing.TB, patience time.Duration) time.Duration {
	tb.Helper()
	began := time.Now()
	select {
	case <-m.done:
	case <-time.After(patience):
		tb.Fatalf("%d readers do not have all changes after %s", m.left.Load(), patience)
	}
	return time.Since(began)
}

// arrivals is when each change arrived at one reader, in microseconds after it was sent; 0 is never.
type arrivals struct {
	m       *measure
	at      []uint32
	missing int // of those that it needs
	last    atomic.Int64
}

// reader counts one more reader in.
func (m *measure) reader() *arrivals {
	a := &arrivals{m: m, at: make([]uint32, m.n), missing: 1}
	if m.want != nil {
		a.missing = 0
		for i := range int(m.n) {
			if m.want(i) {
				a.missing++
			}
		}
	}
	m.left.Add(1)
	return a
}

// find notes the changes whose marks are in b, and tells whether there was a new one. Only the reader's goroutine calls
// it.
func (a *arrivals) find(b []byte, now time.Time) (found bool) {
	for {
		i := bytes.Index(b, []byte(markPrefix))
		if i < 0 {
			return found
		}
		b = b[i+len(markPrefix):]
		var seq int64
		for len(b) > 0 && b[0] >= '0' && b[0] <= '9' {
			seq, b = seq*10+int64(b[0]-'0'), b[1:]
		}
		found = a.saw(seq-a.m.base, now) || found
	}
}

func (a *arrivals) saw(i int64, now time.Time) bool {
	if i < 0 || i >= a.m.n || a.at[i] != 0 {
		return false
	}
	d := a.m.latency(i, now)
	if d == 0 {
		return false
	}
	a.at[i] = uint32(max(1, min(d.Microseconds(), 1<<32-1)))
	if a.m.want == nil && i != a.m.n-1 || a.m.want != nil && !a.m.want(int(i)) {
		return true
	}
	if a.missing--; a.missing == 0 {
		a.last.Store(now.UnixNano())
		if a.m.left.Add(-1) == 0 {
			close(a.m.done)
		}
	}
	return true
}

// latencies are those of the changes that arrived. The measure must be done.
func (a *arrivals) latencies() []time.Duration {
	var out []time.Duration
	for _, us := range a.at {
		if us > 0 {
			out = append(out, time.Duration(us)*time.Microsecond)
		}
	}
	return out
}

// habit is what a kind of client does.
type habit struct {
	path    func(i int) string // of the i-th client, with the cursor of the page it stands for
	json    bool
	gzip    bool
	slow    bool            // takes 8 kB a second
	restive bool            // leaves and comes back every few seconds, at random
	held    <-chan struct{} // reads nothing after the header until this is closed; nil: reads
}

// crowd is many clients.
type crowd struct {
	l       *loaded
	ctx     context.Context
	cancel  context.CancelFunc
	all     sync.WaitGroup
	viewers []*viewer

	open      atomic.Int64 // streams
	connects  atomic.Int64 // streams that were accepted
	limited   atomic.Int64 // answers 429
	refused   atomic.Int64 // answers that were any other refusal, as 503
	reset     atomic.Int64 // connections that were refused or broke before an answer
	fresh     atomic.Int64 // streams that had something since they were opened, this time
	encodings atomic.Int64 // streams that came compressed
	trouble   atomic.Pointer[error]
}

// viewer is one client.
type viewer struct {
	c *crowd
	h habit
	i int

	arrivals atomic.Pointer[arrivals]
	wire     atomic.Int64 // bytes off the socket
	plain    atomic.Int64 // bytes of event stream
	marked   atomic.Int64 // bytes of those messages that brought a change
	messages atomic.Int64 // with data, unnamed or of nodes
	started  chan struct{}

	// Only the goroutine of the stream touches these.
	begun bool
	pend  []byte // the beginning of a message whose end is not here yet
	id    string
	retry time.Duration
	back  bool // something came since the connection was made
}

func (l *loaded) crowd(tb testing.TB) *crowd {
	tb.Helper()
	c := &crowd{l: l}
	c.ctx, c.cancel = context.WithCancel(tb.Context())
	tb.Cleanup(c.leave)
	return c
}

// leave ends all clients and waits for them.
func (c *crowd) leave() {
	c.cancel()
	c.all.Wait()
}

// ramp bounds how many clients of a crowd connect at the same time.
const ramp = 64

// join adds n clients of a habit and returns when all of them have their stream.
func (c *crowd) join(tb testing.TB, n int, h habit) []*viewer {
	tb.Helper()
	needFiles(tb, len(c.viewers)+n)
	if most := len(c.l.tokens) * streamsPerToken; len(c.viewers)+n > most {
		tb.Fatalf("%d streams, and people for %d", len(c.viewers)+n, most)
	}
	slots := make(chan struct{}, ramp)
	var joined []*viewer
	for range n {
		v := &viewer{c: c, h: h, i: len(c.viewers), started: make(chan struct{})}
		c.viewers, joined = append(c.viewers, v), append(joined, v)
		slots <- struct{}{}
		c.all.Go(v.run)
		c.all.Go(func() {
			select {
			case <-v.started:
			case <-c.ctx.Done():
			}
			<-slots
		})
	}
	timeout := time.After(2 * time.Minute)
	for _, v := range joined {
		select {
		case <-v.started:
		case <-timeout:
			var last error
			if p := c.trouble.Load(); p != nil {
				last = *p
			}
			tb.Fatalf("%d of %d streams after two minutes: %d limited, %d refused, %d without an answer, last: %v",
				c.open.Load(), n, c.limited.Load(), c.refused.Load(), c.reset.Load(), last)
		}
	}
	return joined
}

// look makes the viewers look for a measure's changes.
func look(m *measure, viewers []*viewer) {
	for _, v := range viewers {
		v.arrivals.Store(m.reader())
	}
}

// run connects, reads and connects again, as a browser does.
func (v *viewer) run() {
	failures := 0
	for v.c.ctx.Err() == nil {
		err := v.stream()
		if v.c.ctx.Err() != nil {
			return
		}
		var wait time.Duration
		again := &refusedError{}
		switch {
		case errors.As(err, &again):
			if again.status == http.StatusTooManyRequests {
				v.c.limited.Add(1)
			} else {
				v.c.refused.Add(1)
				v.c.trouble.Store(&err)
			}
			wait = again.after + rand.N(again.after+time.Second)
		case v.back && v.retry > 0: // what the server asked for, spread
			wait = v.retry/2 + rand.N(v.retry)
			failures = 0
		case v.back:
			failures = 0
			if !v.h.restive {
				wait = rand.N(time.Second)
			}
		default:
			v.c.reset.Add(1)
			v.c.trouble.Store(&err)
			wait = rand.N(min(500*time.Millisecond<<min(failures, 6), 15*time.Second))
			failures++
		}
		v.back, v.retry = false, 0
		if !v.rest(wait) {
			return
		}
	}
}

// rest waits, and tells whether to go on.
func (v *viewer) rest(d time.Duration) bool {
	if d <= 0 {
		return v.c.ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-v.c.ctx.Done():
		return false
	}
}

// refusedError is an answer that says when to come back.
type refusedError struct {
	status int
	after  time.Duration
}

func (e *refusedError) Error() string { return fmt.Sprintf("status %d, back in %s", e.status, e.after) }

const (
	dialTimeout   = 10 * time.Second
	answerTimeout = 30 * time.Second
)

// stream opens one stream and reads it to its end.
func (v *viewer) stream() error {
	seat := v.i / streamsPerToken
	dialer := net.Dialer{Timeout: dialTimeout, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, byte(1+seat>>16), byte(seat>>8), byte(seat))}}
	if v.h.slow || v.h.held != nil {
		dialer.Control = narrow
	}
	nc, err := dialer.DialContext(v.c.ctx, "tcp", v.c.l.listen)
	if err != nil {
		return err
	}
	defer nc.Close()
	end := context.AfterFunc(v.c.ctx, func() { nc.Close() })
	defer end()
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("a %T", nc)
	}
	if err := nc.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(nc, v.request(seat)); err != nil {
		return err
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	in := &socket{raw: raw, v: v}
	resp, err := in.head()
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		again := &refusedError{status: resp.StatusCode, after: 5 * time.Second}
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
			again.after = time.Duration(s) * time.Second
		}
		return again
	}
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	v.c.open.Add(1)
	defer v.c.open.Add(-1)
	v.c.connects.Add(1)
	defer func() {
		if v.back {
			v.c.fresh.Add(-1)
		}
		v.pend = nil
	}()
	if !v.begun {
		v.begun = true
		close(v.started)
	}
	if v.h.restive {
		leave := time.AfterFunc(500*time.Millisecond+rand.N(4500*time.Millisecond), func() { nc.Close() })
		defer leave.Stop()
	}
	if v.h.held != nil {
		select {
		case <-v.h.held:
		case <-v.c.ctx.Done():
			return v.c.ctx.Err()
		}
	}
	if resp.Header.Get("Content-Encoding") == "gzip" {
		v.c.encodings.Add(1)
		return v.inflate(in)
	}
	return in.each(v.take)
}

// narrow keeps the kernel from reading for a client that does not. It has to be said before the connection is made.
func narrow(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10)
	})
	return errors.Join(err, failed)
}

func (v *viewer) request(seat int) string {
	accept := "text/event-stream"
	var b strings.Builder
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: %s\r\nAuthorization: Bearer %s\r\n",
		v.h.path(v.i), v.c.l.listen, accept, v.c.l.tokens[seat])
	if !v.h.json {
		b.WriteString("HX-Request: true\r\nAccept-Language: en\r\n")
	}
	if v.h.gzip {
		b.WriteString("Accept-Encoding: gzip\r\n")
	}
	if v.id != "" {
		fmt.Fprintf(&b, "Last-Event-ID: %s\r\n", v.id)
	}
	b.WriteString("\r\n")
	return b.String()
}

// inflate reads a compressed stream: the socket feeds a pipe, and what comes out of it is taken as if it were plain.
func (v *viewer) inflate(in *socket) error {
	r, w := io.Pipe()
	fed := make(chan error, 1)
	go func() { // ends when the socket or the pipe does; waited for below
		err := in.each(func(b []byte) error { _, err := w.Write(b); return err })
		w.CloseWithError(err)
		fed <- err
	}()
	err := func() error {
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		buf := make([]byte, 16<<10)
		for {
			n, err := z.Read(buf)
			if n > 0 {
				if err := v.take(buf[:n]); err != nil {
					return err
				}
			}
			if err != nil {
				return err
			}
		}
	}()
	r.CloseWithError(err)
	return errors.Join(err, <-fed)
}

// take reads a piece of the event stream.
func (v *viewer) take(b []byte) error {
	now := time.Now()
	v.plain.Add(int64(len(b)))
	if len(v.pend) > 0 {
		v.pend = append(v.pend, b...)
		b = v.pend
	}
	for {
		i := bytes.Index(b, []byte("\n\n"))
		if i < 0 {
			break
		}
		v.message(b[:i+1], now)
		b = b[i+2:]
	}
	switch {
	case len(b) == 0:
		v.pend = nil
	case len(v.pend) > 0 && len(b) == len(v.pend):
	default:
		v.pend = append([]byte(nil), b...)
	}
	return nil
}

func (v *viewer) message(m []byte, now time.Time) {
	data, size := false, int64(len(m)+1)
	for len(m) > 0 {
		line := m
		if i := bytes.IndexByte(m, '\n'); i >= 0 {
			line, m = m[:i], m[i+1:]
		} else {
			m = nil
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "id":
			v.id = string(value)
		case "retry":
			if n, err := strconv.Atoi(string(value)); err == nil {
				v.retry = time.Duration(n) * time.Millisecond
			}
		case "data":
			data = true
			if a := v.arrivals.Load(); a != nil {
				if a.find(value, now) {
					v.marked.Add(size)
				}
			}
		}
	}
	if data {
		v.messages.Add(1)
		if !v.back {
			v.back = true
			v.c.fresh.Add(1)
		}
	}
}

// buffers are shared by all sockets: one that waits has none.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// socket reads an HTTP/1.1 answer off a connection.
type socket struct {
	raw  syscall.RawConn
	v    *viewer
	rest []byte // after the head
	// The chunk that is being read.
	state int
	size  int64
}

// read waits for bytes and hands them over; they are good until use returns.
func (s *socket) read(use func([]byte) error) error {
	var n int
	var got error
	var buf *[32 << 10]byte
	err := s.raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[32 << 10]byte)
		room := buf[:]
		if s.v.h.slow {
			room = buf[:4<<10]
		}
		for {
			n, got = syscall.Read(int(fd), room)
			if !errors.Is(got, syscall.EINTR) {
				break
			}
		}
		if errors.Is(got, syscall.EAGAIN) {
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if buf != nil {
		defer buffers.Put(buf)
	}
	switch {
	case err != nil:
		return err
	case got != nil:
		return got
	case n <= 0:
		return io.EOF
	}
	s.v.wire.Add(int64(n))
	if err := use(buf[:n]); err != nil {
		return err
	}
	if s.v.h.slow && !s.v.rest(500*time.Millisecond) {
		return context.Canceled
	}
	return nil
}

// head reads the answer's header.
func (s *socket) head() (*http.Response, error) {
	var have []byte
	for {
		if err := s.read(func(b []byte) error { have = append(have, b...); return nil }); err != nil {
			return nil, err
		}
		if i := bytes.Index(have, []byte("\r\n\r\n")); i >= 0 {
			s.rest = have[i+4:]
			resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(have[:i+4])), nil)
			if err != nil {
				return nil, err
			}
			if resp.StatusCode == http.StatusOK && len(resp.TransferEncoding) == 0 {
				return nil, errors.New("an event stream that is not chunked")
			}
			// What it takes for the body has ended with the header; the rest is read by hand.
			resp.Body = http.NoBody
			return resp, nil
		}
		if len(have) > 64<<10 {
			return nil, errors.New("a header without end")
		}
	}
}

// each hands over the body piece by piece until it ends.
func (s *socket) each(use func([]byte) error) error {
	if len(s.rest) > 0 {
		rest := s.rest
		s.rest = nil
		if err := s.dechunk(rest, use); err != nil {
			return err
		}
	}
	for {
		if err := s.read(func(b []byte) error { return s.dechunk(b, use) }); err != nil {
			return err
		}
	}
}

// Where in a chunk the next byte belongs.
const (
	inSize = iota
	inExtension
	inData
	afterData
)

// dechunk takes off the chunks around the body. The chunk of size 0 is the end.
func (s *socket) dechunk(b []byte, use func([]byte) error) error {
	for len(b) > 0 {
		switch s.state {
		case inSize, inExtension:
			c := b[0]
			b = b[1:]
			digit := strings.IndexByte("0123456789abcdef", c|0x20)
			switch {
			case c == '\n':
				if s.size == 0 {
					return io.EOF
				}
				s.state = inData
			case c == '\r':
			case s.state == inSize && digit >= 0 && c != ' ':
				s.size = s.size<<4 | int64(digit)
				if s.size > 1<<30 {
					return errors.New("a chunk that is too large")
				}
			case c == ';':
				s.state = inExtension
			case s.state == inSize:
				return fmt.Errorf("%q in the size of a chunk", c)
			}
		case inData:
			n := min(s.size, int64(len(b)))
			if err := use(b[:n]); err != nil {
				return err
			}
			b = b[n:]
			if s.size -= n; s.size == 0 {
				s.state = afterData
			}
		case afterData:
			if b[0] == '\n' {
				s.state = inSize
			}
			b = b[1:]
		}
	}
	return nil
}
