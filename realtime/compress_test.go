package realtime

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/views"
)

func TestAcceptsGzip(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		header string
		want   bool
	}{
		{"", false},
		{"gzip", true},
		{"gzip, deflate, br, zstd", true},
		{"br;q=1.0, GZIP ; Q=0.8", true},
		{"x-gzip", true},
		{"deflate, br", false},
		{"identity", false},
		{"*", true},
		{"*;q=0", false},
		{"gzip;q=0", false},
		{"gzip;q=0.000, *", false},
		{"gzip;q=0.1, *;q=0", true},
		{"identity;q=1, gzip;q=0.5", false},
		{"identity;q=0.5, gzip;q=0.5", true},
		{"gzip;q=x", false},
		{"gzip;q=2", false},
		{"gzip;q=NaN", false},
		{"gzipped", false},
	} {
		if got := acceptsGzip(http.Header{"Accept-Encoding": {tt.header}}); got != tt.want {
			t.Errorf("%q: %t, want %t", tt.header, got, tt.want)
		}
	}
	if !acceptsGzip(http.Header{"Accept-Encoding": {"br", "gzip"}}) {
		t.Error("a second header line is not read")
	}
}

// decoded is what a decompressor that knows nothing of us makes of the bytes, with the error it ended on.
func decoded(b []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// sequence sends messages, chosen by the bytes of the script, over some connections that do not all get the same, and
// compares after every single one.
func sequence(t *testing.T, script []byte, random *rand.Rand) {
	t.Helper()
	type connection struct {
		gz          *gzipStream
		plain, wire bytes.Buffer
	}
	conns := make([]*connection, 3)
	for i := range conns {
		conns[i] = &connection{gz: &gzipStream{}}
		out, _ := conns[i].gz.take(nil) // the header's flush
		conns[i].wire.Write(out)
	}
	size := func(op byte) int {
		return []int{0, 1, 5, 12, 13, 40, 700, 1500, tailBytes - 1, tailBytes, tailBytes + 1, 9000, 40000, 70000}[int(op)%14]
	}
	row := fmt.Sprintf(`<tr id="n-%x"><td class="c-status">Ready</td>`, random.Uint64())
	for step, op := range script {
		// Half of a message repeats what others say, the rest is noise.
		message := make([]byte, 0, size(op))
		for len(message) < size(op) {
			if random.IntN(2) == 0 {
				message = append(message, row...)
			} else {
				message = append(message, byte(random.Uint32()), op, byte(step))
			}
		}
		message = message[:size(op)]
		what := &shared{}
		if op&0x80 != 0 {
			what = nil // nobody else's, as far as it knows
		}
		for i, c := range conns {
			if op&0x40 != 0 && i == step%len(conns) {
				continue // this one is not sent it
			}
			for rest := message; len(rest) > 0; { // in pieces, as it is written
				n := min(len(rest), 1+random.IntN(600))
				if _, err := c.gz.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			c.plain.Write(message)
			out, plain := c.gz.take(what)
			c.wire.Write(out)
			if plain != len(message) {
				t.Fatalf("step %d: %d bytes counted, want %d", step, plain, len(message))
			}
			got, err := decoded(c.wire.Bytes())
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("step %d: decoding ended with %v, want a stream that goes on", step, err)
			}
			if !bytes.Equal(got, c.plain.Bytes()) {
				t.Fatalf("step %d, connection %d: %d bytes decoded, want the %d that were sent", step, i, len(got), c.plain.Len())
			}
		}
	}
	for i, c := range conns {
		c.wire.Write(c.gz.end())
		got, err := decoded(c.wire.Bytes())
		if err != nil || !bytes.Equal(got, c.plain.Bytes()) {
			t.Fatalf("connection %d, complete: %v, %d bytes of %d", i, err, len(got), c.plain.Len())
		}
	}
}

// FuzzGzipStream: whatever is sent to whom, each connection decodes to what was sent to it, after every message and at
// the end.
func FuzzGzipStream(f *testing.F) {
	f.Add([]byte{6, 6, 6, 0x83, 6, 7}, uint64(1))
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}, uint64(2))
	f.Add([]byte{13, 0x46, 12, 0x85, 0x47, 0x47, 9, 10}, uint64(3))
	f.Fuzz(func(t *testing.T, script []byte, seed uint64) {
		sequence(t, script[:min(len(script), 24)], rand.New(rand.NewPCG(seed, 0)))
	})
}

func TestGzipStream_AnySequence(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		script := make([]byte, 8)
		for i := range script {
			script[i] = byte(random.Uint32())
		}
		sequence(t, script, random)
	}
}

// TestGzipStream_CompressesOnceForThoseInStep: those who were sent the same get the very same bytes, a heartbeat between
// two rows takes no dictionary away, and a large message keeps nothing large alive.
func TestGzipStream_CompressesOnceForThoseInStep(t *testing.T) {
	t.Parallel()
	a, b := &gzipStream{begun: true}, &gzipStream{begun: true}
	send := func(g *gzipStream, s *shared, m string) []byte {
		t.Helper()
		if _, err := g.Write([]byte(m)); err != nil {
			t.Fatal(err)
		}
		out, _ := g.take(s)
		return out
	}
	row := func(i int) string {
		return strings.Repeat(fmt.Sprintf("<td>cell %d of a row that looks like the others</td>", i), 1) + strings.Repeat("<td class=x>the same in all rows, and long enough</td>", 20)
	}
	beat := &shared{}
	for i := range 5 {
		s := &shared{}
		first, second := send(a, s, row(i)), send(b, s, row(i))
		if &first[0] != &second[0] {
			t.Errorf("row %d was compressed twice", i)
		}
		if i > 0 && len(first) > 100 {
			t.Errorf("row %d takes %d bytes: it knows nothing of the row before", i, len(first))
		}
		if i == 2 {
			send(a, beat, "event: hb\ndata: x\n\n")
			send(b, beat, "event: hb\ndata: x\n\n")
		}
	}
	late := &gzipStream{begun: true}
	s := &shared{}
	if x, y := send(a, s, row(9)), send(late, s, row(9)); bytes.Equal(x, y) {
		t.Error("somebody without a history was sent bytes that refer to one")
	}
	send(a, &shared{}, strings.Repeat("0123456789", 100000))
	kept := 0
	for _, p := range []*tail{a.past.older, a.past.last} {
		if p != nil {
			kept += cap(p.bytes)
		}
	}
	if kept > 2*tailBytes || a.plain != nil {
		t.Errorf("%d bytes are kept of a message of a million", kept)
	}
}

// TestGzipStream_LargeMessageHidesWhatWasBefore: a dictionary is one piece of what was sent, so nothing may be found in
// front of a message of which only the end is kept.
func TestGzipStream_LargeMessageHidesWhatWasBefore(t *testing.T) {
	t.Parallel()
	once := strings.Repeat("only here, and worth to be found again; ", 3)
	var plain, wire bytes.Buffer
	g := &gzipStream{}
	for _, m := range []string{once, strings.Repeat("0123456789", tailBytes/8), once, once} {
		if _, err := g.Write([]byte(m)); err != nil {
			t.Fatal(err)
		}
		out, _ := g.take(nil)
		wire.Write(out)
		plain.WriteString(m)
	}
	wire.Write(g.end())
	if got, err := decoded(wire.Bytes()); err != nil || !bytes.Equal(got, plain.Bytes()) {
		t.Errorf("decoded: %v, %d bytes of %d", err, len(got), plain.Len())
	}
}

// TestStream_Compressed: over a real connection every message can be read when it is sent, the end is complete, and a
// client that does not ask gets it plain.
func TestStream_Compressed(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{}, "a")
	for i := range 3 {
		b.put("a", spec{name: fmt.Sprintf("n%d", i), rv: 1})
	}
	for _, query := range []string{"", "json=1&"} {
		// An explicit header keeps Go's client from decompressing by itself.
		zipped := b.open("/nodes?"+query+"cluster=a", "Accept-Encoding", "gzip")
		plain := b.open("/nodes?"+query+"cluster=a", "Accept-Encoding", "gzip;q=0, identity")
		if got := zipped.resp.Header; got.Get("Content-Encoding") != "gzip" || got.Get("Vary") != "Accept-Encoding" {
			t.Errorf("headers: %v", got)
		}
		if got := plain.resp.Header; got.Get("Content-Encoding") != "" || got.Get("Vary") != "Accept-Encoding" {
			t.Errorf("headers of a plain one: %v", got)
		}
		z, err := gzip.NewReader(zipped.in)
		if err != nil {
			t.Fatal(err)
		}
		unzipped := reader{in: bufio.NewReader(z)}
		same := func() {
			t.Helper()
			want := plain.want()
			got, err := unzipped.next()
			if err != nil {
				t.Fatal(err)
			}
			// Two JSON streams are told of the first state at two moments.
			if got.name != want.name || got.id != want.id || query == "" && got != want {
				t.Errorf("compressed %+v\nplain %+v", got, want)
			}
		}
		same()
		if query != "" {
			for range 3 {
				same()
			}
		}
		for i := range 5 {
			b.put("a", spec{name: "n1", rv: 100 + i, cordoned: i%2 == 0})
			same()
		}
		b.s.End(func(Viewer) bool { return true }, "logout")
		same()
		if _, err := unzipped.next(); !errors.Is(err, io.EOF) {
			t.Errorf("the compressed stream ended with %v, want a complete end", err)
		}
		b.waitOpen(0)
		for i := range 5 { // back to where it was, for the next round
			b.put("a", spec{name: "n1", rv: 200 + i})
		}
	}
}

// viewsRenderer is the product's own.
type viewsRenderer struct{ views.Renderer }

func (r viewsRenderer) GroupRow(g Group, lang string) []byte {
	return r.Renderer.GroupRow(views.Group(g), lang)
}

func (r viewsRenderer) Counts(c Counts, page, pages, total int, lang string) []byte {
	return r.Renderer.Counts(views.Counts(c), page, pages, total, lang)
}

// pageOf is a manager with a page of real rows; no goroutine but its feeder runs.
func pageOf(b *testing.B, n int) (*bench, *Query) {
	b.Helper()
	bench := newBench(b, ManagerConfig{}, StreamerConfig{Heartbeat: time.Hour, PerUser: 1 << 20, Total: 1 << 20, Admit: 1 << 20}, "prod-eu-1")
	bench.m.render.Renderer, bench.s.render.Renderer = viewsRenderer{}, viewsRenderer{}
	for i := range n {
		bench.put("prod-eu-1", realistic(i, 1, false))
	}
	return bench, mustQuery(b, map[string][]string{"per_page": {"200"}})
}

func realistic(i, rv int, cordoned bool) spec {
	return spec{name: fmt.Sprintf("ip-10-0-%d-%d.eu-central-1.compute.internal", i/250, i%250), rv: rv, cordoned: cordoned, labels: map[string]string{
		"topology.kubernetes.io/zone": fmt.Sprintf("eu-central-1%c", 'a'+i%3), "node.kubernetes.io/instance-type": "m6i.2xlarge",
		"node-role.kubernetes.io/worker": "", "v": fmt.Sprint(rv),
	}}
}

// meter is a response that counts, and tells of every flush.
type meter struct {
	h       http.Header
	flushed chan struct{}
	mu      sync.Mutex // guards bytes
	bytes   int
}

func (m *meter) Header() http.Header { return m.h }
func (m *meter) WriteHeader(int)     {}
func (m *meter) Flush()              { m.flushed <- struct{}{} }
func (m *meter) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes += len(p)
	return len(p), nil
}

// BenchmarkCompression is what a change of one row of a page of 200 costs on the wire, and what a stream holds, with the
// product's own rows: bytes and time for each of 100 viewers, in step or each with a history of its own.
func BenchmarkCompression(b *testing.B) {
	for _, mode := range []string{"plain", "together", "apart"} {
		b.Run(mode, func(b *testing.B) {
			const viewers, nodes = 100, 200
			bench, q := pageOf(b, nodes)
			bench.s.rate = 0
			before := memory()
			cursor := bench.m.Window(q, "en").Cursor
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			meters := make([]*meter, viewers)
			for i := range meters {
				m := &meter{h: http.Header{}, flushed: make(chan struct{}, 4)}
				meters[i] = m
				wg.Go(func() {
					r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
					if mode != "plain" {
						r.Header.Set("Accept-Encoding", "gzip")
					}
					if err := bench.s.Nodes(m, r, NodeStream{Viewer: Viewer{Since: cursor, Lang: "en"}, Query: q}); err != nil {
						b.Error(err)
					}
				})
				<-m.flushed
			}
			sent := func() (n int) {
				for _, m := range meters {
					m.mu.Lock()
					n += m.bytes
					m.mu.Unlock()
				}
				return n
			}
			i := 0
			change := func() {
				i++
				bench.put("prod-eu-1", realistic(i*37%nodes, 1+i, i/nodes%2 == 0))
				for _, m := range meters {
					<-m.flushed
				}
				if mode == "apart" { // each has a past that nobody shares
					for c := range bench.s.conns {
						last := *c.w.gz.past.last
						last.bytes = slices.Clone(last.bytes)
						c.w.gz.past.last = &last
					}
				}
			}
			for range 3 {
				change() // the first has nothing to refer to
			}
			began, from, changes := time.Now(), sent(), i
			b.ReportAllocs()
			for b.Loop() {
				change()
			}
			n := float64(i-changes) * viewers
			b.ReportMetric(float64(sent()-from)/n, "B/change")
			b.ReportMetric(float64(time.Since(began).Microseconds())/n, "µs/event")
			b.ReportMetric(float64(memory()-before)/viewers/1024, "KiB/stream")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// memory is what lives after two collections, stacks included.
func memory() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
