package realtime

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func (b *bench) window(query string) Window {
	b.t.Helper()
	v := map[string][]string{}
	for pair := range strings.SplitSeq(query, "&") {
		if k, val, ok := strings.Cut(pair, "="); ok {
			v[k] = []string{val}
		}
	}
	q, err := ParseQuery("", v)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.m.Window(q, "en")
}

func TestNodes_HTMLChangeInsertAndRemove(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{Epoch: "e1"}, StreamerConfig{}, "a")
	for i := range 3 {
		b.put("a", spec{name: fmt.Sprintf("n%d", i), rv: i + 1})
	}
	w := b.window("q=status:Ready")
	s := b.open("/nodes?q=status:Ready&since=" + w.Cursor)

	b.put("a", spec{name: "n1", rv: 10, cordoned: true})
	e := s.want()
	row, err := b.m.Row(fleet.NodeRef{Cluster: "a", Name: "n1"}, "en")
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(string(row), "<tr", `<tr hx-swap-oob="outerMorph"`, 1); !strings.HasPrefix(e.data, want+"<x-counts>") {
		t.Errorf("change: got %q, want %q and the counters", e.data, want)
	}
	if e.name != "" || e.id != b.window("q=status:Ready").Cursor {
		t.Errorf("change: name %q and id %q, want no name and the list's cursor", e.name, e.id)
	}

	b.put("a", spec{name: "n2", rv: 11, ready: "False"}) // leaves the filter
	e = s.want()
	if !strings.HasPrefix(e.data, `<tr id="n-a-n2" hx-swap-oob="delete"></tr>`) {
		t.Errorf("leaving: got %q", e.data)
	}
	if _, _, ok := b.m.parseCursor(e.id); ok {
		t.Errorf("half of a step has the id %q, which would be taken for a cursor", e.id)
	}
	if e = s.want(); e.name != "order" || e.data != `["n-a-n0","n-a-n1"]` {
		t.Errorf("order: got %+v", e)
	}

	b.put("a", spec{name: "n01", rv: 12})
	e = s.want()
	if !strings.HasPrefix(e.data, `<hx-partial hx-target="#rows" hx-swap="beforeend"><tr id="n-a-n01"`) || !strings.Contains(e.data, "</tr></hx-partial>") {
		t.Errorf("entering: got %q", e.data)
	}
	if e = s.want(); e.name != "order" || e.data != `["n-a-n0","n-a-n01","n-a-n1"]` {
		t.Errorf("order: got %+v", e)
	}
}

func TestNodes_HTMLResetAndStates(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{Epoch: "e1"}, StreamerConfig{}, "a")
	b.put("a", spec{name: "n", rv: 1})
	for _, cursor := range []string{"", "e1.999999", "e0.1", "e1.x", "garbage", "e1.1-5"} {
		s := b.open("/nodes?since=" + cursor)
		if e := s.want(); !strings.HasPrefix(e.data, `<hx-partial hx-target="#rows" hx-swap="innerMorph"><tr id="n-a-n"`) {
			t.Errorf("cursor %q: got %q, want the whole window", cursor, e.data)
		}
		s.close()
	}
	s := b.open("/nodes?since=" + b.window("").Cursor)
	b.m.board("a").setStatus(func(c *fleet.Cluster) { c.State, c.Reason = fleet.ClusterStale, "gone" })
	if e := s.want(); e.data != `<x-badge id="a">stale gone</x-badge>` {
		t.Errorf("state: got %q", e.data)
	}
}

func TestNodes_OneNodePage(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{}, "a")
	b.put("a", spec{name: "n", rv: 1})
	b.put("a", spec{name: "m", rv: 1})
	s := b.open("/node?cluster=a&name=n&since=" + b.window("").Cursor)
	b.put("a", spec{name: "m", rv: 2, cordoned: true})
	b.put("a", spec{name: "n", rv: 2, cordoned: true})
	if e := s.want(); !strings.Contains(e.data, `id="n-a-n"`) || strings.Contains(e.data, "n-a-m") || strings.Contains(e.data, "x-counts") {
		t.Errorf("change: got %q, want the one row", e.data)
	}
	if e := b.open("/node?cluster=a&name=n").want(); !strings.Contains(e.data, `id="n-a-n"`) || strings.Contains(e.data, "n-a-m") {
		t.Errorf("without a cursor: got %q, want the one row", e.data)
	}
}

func TestNodes_JSON(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{Epoch: "e1"}, StreamerConfig{}, "a", "b")
	b.put("a", spec{name: "n", rv: 1})
	b.put("b", spec{name: "m", rv: 1})
	s := b.open("/nodes?json=1&cluster=a")
	type msg struct {
		Type      string
		Cluster   string `json:"cluster_name"`
		Node      string `json:"node_name"`
		Data      *struct{ Cluster, Name, UID string }
		Timestamp time.Time
		Changes   []string
	}
	read := func() (m msg, e got) {
		t.Helper()
		e = s.want()
		if err := json.Unmarshal([]byte(e.data), &m); err != nil {
			t.Fatalf("%q: %v", e.data, err)
		}
		if m.Type != e.name || m.Timestamp.IsZero() || m.Changes == nil {
			t.Errorf("message %+v in event %q", m, e.name)
		}
		return m, e
	}
	if m, e := read(); m.Type != nodeAdd || m.Cluster != "a" || m.Node != "n" || m.Data == nil || m.Data.UID != "uid-n" {
		t.Errorf("first: %+v %q", m, e.data)
	}
	if m, _ := read(); m.Type != typeSynced {
		t.Errorf("second: %+v, want synced", m)
	}
	b.put("b", spec{name: "m", rv: 2, cordoned: true}) // another cluster's
	b.put("a", spec{name: "n", rv: 2, cordoned: true})
	m, e := read()
	if m.Type != nodeUpdate || !cmp.Equal(m.Changes, []string{"Schedulable", "Annotations"}) {
		t.Errorf("update: %+v", m)
	}
	cursor := e.id
	b.m.board("a").remove("n", "uid-n", "3")
	if m, _ = read(); m.Type != nodeDelete || m.Node != "n" || m.Data != nil {
		t.Errorf("delete: %+v", m)
	}
	b.put("a", spec{name: "n", uid: "again", rv: 4})
	if m, _ = read(); m.Type != nodeAdd || m.Data.UID != "again" {
		t.Errorf("re-created: %+v", m)
	}
	s.close()

	s = b.open("/nodes?json=1&cluster=a", "Last-Event-ID", cursor)
	if m, _ = read(); m.Type != nodeAdd || m.Data.UID != "again" {
		t.Errorf("resumed: %+v, want what changed", m)
	}
	if m, _ = read(); m.Type != typeSynced {
		t.Errorf("resumed: %+v, want synced", m)
	}
	s.close()
	s = b.open("/nodes?json=1&cluster=a", "Last-Event-ID", "other.7")
	if m, _ = read(); m.Type != typeReset {
		t.Errorf("unknown cursor: %+v, want reset", m)
	}
}

func TestNodes_JSONResumesAfterTheViewWasForgotten(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{IdleViews: 1}, StreamerConfig{}, "a")
	for i := range 5 {
		b.put("a", spec{name: fmt.Sprintf("n%d", i), rv: 1})
	}
	s := b.open("/nodes?json=1")
	synced := s.until("synced", func(e got) bool { return e.name == typeSynced })
	s.close()
	b.waitOpen(0)
	for i := range 10 { // other views push it out
		b.window(fmt.Sprintf("q=x%d", i))
	}
	b.m.board("a").remove("n1", "", "")
	b.put("a", spec{name: "n2", rv: 2, cordoned: true})
	b.put("a", spec{name: "n9", rv: 3})
	s = b.open("/nodes?json=1", "Last-Event-ID", synced.id)
	var names []string
	for range 4 {
		e := s.want()
		names = append(names, e.name)
	}
	if d := cmp.Diff([]string{nodeDelete, nodeUpdate, nodeAdd, typeSynced}, names); d != "" {
		t.Errorf("resumed: %s", d)
	}
}

func TestNodes_CursorFromBeforeARemovalIsNoGood(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{IdleViews: 1}, StreamerConfig{}, "a", "b")
	b.put("a", spec{name: "n", rv: 1})
	b.put("b", spec{name: "n", rv: 1})
	s := b.open("/nodes?json=1")
	synced := s.until("synced", func(e got) bool { return e.name == typeSynced })
	s.close()
	b.waitOpen(0)
	for i := range 10 {
		b.window(fmt.Sprintf("q=x%d", i))
	}
	if err := b.m.Remove("b"); err != nil {
		t.Fatal(err)
	}
	s = b.open("/nodes?json=1", "Last-Event-ID", synced.id)
	if e := s.want(); e.name != typeReset {
		t.Errorf("got %q, want reset: the client still shows the removed cluster", e.name)
	}
}

// TestNodes_MoreDeletionsThanRemembered: a view that looked away for longer than the board remembers finds the rest
// by itself.
func TestNodes_MoreDeletionsThanRemembered(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{Tombstones: 4}, StreamerConfig{}, "a")
	for i := range 40 {
		b.put("a", spec{name: fmt.Sprintf("n%02d", i), rv: 1})
	}
	if w := b.window(""); w.Total != 40 {
		t.Fatalf("%d nodes, want 40", w.Total)
	}
	for i := range 39 {
		b.m.board("a").remove(fmt.Sprintf("n%02d", i), "", "")
	}
	if w := b.window(""); w.Total != 1 || w.Counts.Total != 1 || len(w.Nodes) != 1 || w.Nodes[0].Ref.Name != "n39" {
		t.Errorf("got %d nodes, want n39 alone", w.Total)
	}
}

func TestNodes_RemovedClusterEndsItsStreams(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{}, "a", "b")
	b.put("a", spec{name: "n", rv: 1})
	b.put("b", spec{name: "m", rv: 1})
	html, all := b.open("/nodes?cluster=a&since="+b.window("cluster=a").Cursor), b.open("/nodes?json=1")
	json := b.open("/nodes?json=1&cluster=a")
	all.until("synced", func(e got) bool { return e.name == typeSynced })
	if err := b.m.Remove("a"); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*stream{html, json} {
		events := s.ends()
		if last := events[len(events)-1]; last.name != "bye" || last.data != byeCluster {
			t.Errorf("last event: %+v", last)
		}
	}
	if e := all.want(); e.name != nodeDelete || !strings.Contains(e.data, `"node_name":"n"`) {
		t.Errorf("the stream of all clusters got %+v, want the deletion of n", e)
	}
	if _, status, err := b.dial("/nodes?cluster=a"); err != nil || status != http.StatusNotFound {
		t.Errorf("stream of a removed cluster: %d, %v", status, err)
	}
	if err := b.m.Remove("a"); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("second removal: %v", err)
	}
}

func TestClusters_Stream(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{}, "a")
	// The supervisor of a test's cluster says once that there is no server.
	s := b.open("/clusters")
	s.until("the state", func(e got) bool { return strings.Contains(e.data, "unreachable") })
	b.put("a", spec{name: "n", rv: 1, cordoned: true})
	if e := s.want(); e.data != `<tr hx-swap-oob="outerMorph" id="c-a"><td>unreachable 1 1</td></tr>` {
		t.Errorf("count: got %q", e.data)
	}
	b.put("a", spec{name: "n", rv: 2, cordoned: true, beat: epochStart.Add(time.Hour)}) // moves nothing
	b.add("b")
	e := s.want()
	if !strings.HasPrefix(e.data, `<hx-partial hx-target="#rows" hx-swap="innerMorph"><tr id="c-a">`) || !strings.Contains(e.data, `id="c-b"`) {
		t.Errorf("new cluster: got %q, want all rows", e.data)
	}
	j := b.open("/clusters?json=1")
	if e := j.want(); e.name != typeReset {
		t.Errorf("JSON opens with %+v", e)
	}
	if e := j.want(); e.name != "cluster" || !strings.Contains(e.data, `"name":"a"`) {
		t.Errorf("JSON: %+v", e)
	}
}

// TestStream_Heartbeat: in fake time, on a connection in memory.
func TestStream_Heartbeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}, Epoch: "e1"})
		s := NewStreamer(StreamerConfig{Manager: m, Render: plain{}, Logger: quietLog})
		q, err := ParseQuery("", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, format := range []Format{HTML, JSON} {
			ctx, cancel := context.WithCancel(t.Context())
			pr, pw := io.Pipe()
			done := make(chan error, 1)
			go func() {
				r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
				done <- s.Nodes(&pipeWriter{w: pw, h: http.Header{}}, r, NodeStream{Viewer: Viewer{Format: format}, Query: q})
			}()
			r := reader{in: bufio.NewReader(pr)}
			if _, err := r.next(); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			for range 3 {
				e, err := r.next()
				if err != nil {
					t.Fatal(err)
				}
				if e.name != map[Format]string{HTML: "hb", JSON: typePing}[format] || e.id != "e1.0" {
					t.Errorf("got %+v, want a heartbeat with the cursor", e)
				}
			}
			if d := time.Since(began); d != 60*time.Second {
				t.Errorf("three heartbeats took %s, want 1m0s", d)
			}
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Nodes: %v", err)
			}
			_ = pw.Close() // a pipe's close does not fail
		}
	})
}

// pipeWriter is a response that a test reads as it is written.
type pipeWriter struct {
	w *io.PipeWriter
	h http.Header
}

func (p *pipeWriter) Header() http.Header         { return p.h }
func (p *pipeWriter) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p *pipeWriter) WriteHeader(int)             {}
func (p *pipeWriter) Flush()                      {}

// TestPacer_GrowsUnderLoadOnly: ten changes a second wait for nothing, two hundred are gathered.
func TestPacer_GrowsUnderLoadOnly(t *testing.T) {
	t.Parallel()
	run := func(p *pacer, every, total time.Duration) (messages int, last time.Duration) {
		now := epochStart
		for end := now.Add(total); now.Before(end); messages++ {
			last = p.wait(now)
			now = now.Add(max(every, last))
		}
		return messages, last
	}
	p := &pacer{rate: 20, most: 250 * time.Millisecond}
	if _, gap := run(p, 100*time.Millisecond, 30*time.Second); gap != 0 {
		t.Errorf("10 a second: gap %s, want none", gap)
	}
	p = &pacer{rate: 20, most: 250 * time.Millisecond}
	n, gap := run(p, 5*time.Millisecond, 10*time.Second)
	if gap != 250*time.Millisecond || n > 90 {
		t.Errorf("200 a second: gap %s and %d messages in 10 s, want 250ms and at most 90", gap, n)
	}
	if first := p.wait(epochStart.Add(time.Hour)); first != 0 {
		t.Errorf("after a quiet hour: gap %s, want none", first)
	}
	p = &pacer{}
	if n, _ := run(p, 5*time.Millisecond, time.Second); n != 200 {
		t.Errorf("JSON: %d messages, want all 200", n)
	}
}

func TestStream_Limits(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{PerSession: 2, PerUser: 3, Total: 4}, "a")
	open := func(session, user string) (*stream, int) {
		s, status, err := b.dial("/nodes", "Session", session, "User", user)
		if err != nil {
			t.Fatal(err)
		}
		if status != http.StatusOK {
			s.close()
		}
		return s, status
	}
	first, status := open("s1", "u1")
	if status != http.StatusOK {
		t.Fatalf("the first stream: %d", status)
	}
	for _, tt := range []struct {
		session, user string
		want          int
	}{{"s1", "u1", 200}, {"s1", "u1", 429}, {"s2", "u1", 200}, {"s3", "u1", 429}, {"s4", "u2", 200}, {"s5", "u3", 429}} {
		if _, status = open(tt.session, tt.user); status != tt.want {
			t.Errorf("session %s of %s: %d, want %d", tt.session, tt.user, status, tt.want)
		}
	}
	first.close()
	b.waitOpen(3)
	if _, status = open("s1", "u1"); status != 200 {
		t.Errorf("after one has ended: %d, want 200", status)
	}
}

// waitOpen waits until so many streams are open. The streamer has no signal for it, because nobody else needs one.
func (b *bench) waitOpen(n int) {
	b.t.Helper()
	eventually(b.t, fmt.Sprintf("%d open streams", n), func() bool { return b.s.open() == n })
}

func TestStream_EndIsQuickEvenForAClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{WriteTimeout: time.Minute}, "a")
	for i := range 200 {
		b.put("a", spec{name: fmt.Sprintf("n%03d", i), rv: 1, labels: map[string]string{"pad": strings.Repeat("x", 64<<10)}}) // more than the kernel swallows
	}
	good := b.open("/nodes?json=1", "Session", "stay")
	ended := b.open("/nodes", "Session", "go")
	stuck := b.stall("/nodes?json=1", "go")
	defer stuck.Close()
	b.waitOpen(3)
	good.until("synced", func(e got) bool { return e.name == typeSynced })
	began := time.Now()
	b.s.End(func(v Viewer) bool { return v.Session == "go" }, "logout")
	events := ended.ends()
	if last := events[len(events)-1]; last.name != "bye" || last.data != "logout" {
		t.Errorf("last event: %+v", last)
	}
	b.waitOpen(1)
	if d := time.Since(began); d > time.Second {
		t.Errorf("ending took %s, want less than 1s", d)
	}
	b.put("a", spec{name: "n000", rv: 2})
	if e := good.want(); e.name != nodeUpdate {
		t.Errorf("the other session's stream got %+v", e)
	}
}

// stall opens a stream and reads nothing of it, with as little buffer as the system allows.
func (b *bench) stall(path, session string) net.Conn {
	b.t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.Dial("tcp", b.srv.Listener.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		b.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nSession: %s\r\n\r\n", path, session); err != nil {
		b.t.Fatal(err)
	}
	return c
}

func TestStream_StalledReaderDelaysNobody(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{WriteTimeout: 2 * time.Second}, "a")
	pad := strings.Repeat("x", 16<<10)
	good := b.open("/nodes?json=1")
	good.until("synced", func(e got) bool { return e.name == typeSynced })
	stuck := b.stall("/nodes?json=1", "stuck")
	defer stuck.Close()
	b.waitOpen(2)
	var worst time.Duration
	cut := false
	for i := 1; i < 50000 && !cut; i++ {
		began := time.Now()
		b.put("a", spec{name: "n" + strconv.Itoa(i%50), rv: i, labels: map[string]string{"v": strconv.Itoa(i), "pad": pad}})
		worst = max(worst, time.Since(began))
		want := fmt.Sprintf(`"v":"%d"`, i)
		good.until("change "+strconv.Itoa(i), func(e got) bool { return strings.Contains(e.data, want) })
		cut = b.s.open() == 1
	}
	if !cut {
		t.Error("the stalled stream is still open after 800 MB")
	}
	t.Logf("slowest change %s", worst)
	if worst > time.Second { // far more than it ever is, and less than the stalled write takes
		t.Errorf("a change took %s to store", worst)
	}
}

func TestStream_CloseWith200(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{PerUser: 1000}, "a")
	b.put("a", spec{name: "n", rv: 1})
	var wg sync.WaitGroup
	var mu sync.Mutex
	retries, last := map[string]bool{}, map[string]int{}
	for i := range 200 {
		s := b.open("/nodes?json="+strings.Repeat("1", i%2), "Session", strconv.Itoa(i))
		wg.Go(func() {
			var e got
			for {
				next, err := s.next()
				if err != nil {
					break
				}
				e = next
			}
			mu.Lock()
			defer mu.Unlock()
			last[e.name]++
			retries[e.retry] = true
		})
	}
	b.waitOpen(200)
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := b.s.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
	t.Logf("200 streams closed in %s", time.Since(began))
	wg.Wait()
	if last["restart"] != 200 {
		t.Errorf("last events: %v, want 200 restarts", last)
	}
	if len(retries) < 100 {
		t.Errorf("only %d different times to come back", len(retries))
	}
	if _, status, err := b.dial("/nodes"); err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("new stream while closing: %d, %v", status, err)
	}
}

func TestStream_ChurnLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{IdleViews: 4}, StreamerConfig{}, "a")
	b.put("a", spec{name: "n", rv: 1})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 25 {
				s, _, err := b.dial(fmt.Sprintf("/nodes?q=x%d&json=%s", i, strings.Repeat("1", i%2)), "Session", strconv.Itoa(w))
				if err != nil {
					t.Error(err)
					return
				}
				s.close()
			}
		})
	}
	wg.Wait()
	b.waitOpen(0)
	b.s.mu.Lock()
	if len(b.s.bySession)+len(b.s.byUser) != 0 {
		t.Errorf("counters left behind: %v %v", b.s.bySession, b.s.byUser)
	}
	b.s.mu.Unlock()
	b.m.viewsMu.Lock()
	defer b.m.viewsMu.Unlock()
	if len(b.m.views) > 4 {
		t.Errorf("%d idle views, want at most 4", len(b.m.views))
	}
	for _, v := range b.m.views {
		if v.users != 0 || len(v.panes) != 0 {
			t.Errorf("view %q has %d users and %d pages", v.key, v.users, len(v.panes))
		}
	}
}

// TestRow_RenderedOnce: however many pages and streams show it.
func TestRow_RenderedOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{}, "a")
	b.put("a", spec{name: "n", rv: 1})
	for range 5 {
		b.window("")
	}
	b.put("a", spec{name: "n", rv: 2, beat: epochStart.Add(time.Hour)}) // a heartbeat
	w := b.window("q=n")
	if n := b.m.render.made.Load(); n != 1 {
		t.Errorf("rendered %d times, want once", n)
	}
	if got := w.Nodes[0].Conditions[0].LastHeartbeat; !got.Equal(epochStart.Add(time.Hour)) {
		t.Errorf("the window shows the heartbeat of %s, want the newest", got)
	}
}

type broken struct{ plain }

func (broken) NodeRow(n *fleet.Node, lang string) []byte {
	if n.Ref.Name == "bad" {
		panic("a template's mistake")
	}
	return plain{}.NodeRow(n, lang)
}

func TestRow_PanicCostsOneRow(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{Logger: quietLog}, StreamerConfig{}, "a")
	b.m.render.Renderer = broken{}
	b.put("a", spec{name: "bad", rv: 1})
	b.put("a", spec{name: "good", rv: 1})
	if e := b.open("/nodes").want(); !strings.Contains(e.data, "n-a-good") || strings.Contains(e.data, "n-a-bad") {
		t.Errorf("got %q", e.data)
	}
}

// FuzzEvent: whatever the content is, an independent parser sees exactly one event with exactly this content.
func FuzzEvent(f *testing.F) {
	for _, s := range []string{"", "a", ":a", "a\nb", "a\r\nevent: x\n\nb", "\r", "<p title=\"a\nb\">c\rd</p>", "<a\nb>", "data: x", "\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e := event("e1.7", "name", data)
		var out bytes.Buffer
		r3 := newServer()
		r3.CreateStream("x")
		defer r3.RemoveStream("x")
		ctx, cancel := context.WithCancel(context.Background())
		w := &creditWriter{
			ResponseWriter: &bufferWriter{b: &out, h: http.Header{}}, ack: make(chan struct{}, 1), timeout: time.Minute,
			cancel: func(error) { cancel() }, sent: func(int, int) {},
		}
		w.rc = http.NewResponseController(w.ResponseWriter)
		done := make(chan struct{})
		go func() {
			defer close(done)
			r3.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/?stream=x", nil))
		}()
		h := hop{r3: r3, id: "x", w: w}
		if err := errors.Join(h.ready(ctx), h.send(ctx, e, false)); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-done
		r := reader{in: bufio.NewReader(&out)}
		parsed, err := r.next()
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		want := got{id: "e1.7", name: "name", data: strings.TrimPrefix(string(e.ev.Data), " ")}
		if string(e.ev.Data) != want.data && !strings.HasPrefix(want.data, ":") && want.data != "" {
			t.Fatalf("%q gained a space", data)
		}
		if parsed.data = strings.TrimPrefix(parsed.data, " "); parsed != want {
			t.Fatalf("%q: parsed %+v, want %+v", data, parsed, want)
		}
		if more, err := r.next(); err == nil {
			t.Fatalf("%q: forged a second event %+v", data, more)
		}
	})
}

type bufferWriter struct {
	b *bytes.Buffer
	h http.Header
}

func (w *bufferWriter) Header() http.Header         { return w.h }
func (w *bufferWriter) Write(p []byte) (int, error) { return w.b.Write(p) }
func (w *bufferWriter) WriteHeader(int)             {}
func (w *bufferWriter) Flush()                      {}

func TestOneLine(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"<p>a\nb</p>":                   "<p>a&#10;b</p>",
		"<p title=\"a\nb\"\nid=x>c</p>": `<p title="a&#10;b" id=x>c</p>`,
		"a\r\nb\rc":                     "a&#10;b&#10;c",
		"  <p>\n</p>\n":                 "<p>&#10;</p>",
		"1 < 2\n<b\n>":                  "1 < 2&#10;<b >",
		"<p title='\"\n'>":              "<p title='\"&#10;'>",
		`{"a":"b\n"}`:                   `{"a":"b\n"}`,
	} {
		if got := string(oneLine([]byte(in))); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
