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
	"github.com/prometheus/client_golang/prometheus"

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
	q, err := ParseQuery(fleet.SeesAll(), "", v)
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
	if _, _, ok := b.m.parseCursor(e.id, ""); ok {
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
		q, err := ParseQuery(fleet.SeesAll(), "", nil)
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
	reg := prometheus.NewPedanticRegistry()
	b := newBench(t, ManagerConfig{}, StreamerConfig{Metrics: reg, PerSession: 2, PerUser: 3, PerAddr: 3, Total: 5}, "a")
	open := func(session, user, addr string) (*stream, int, string) {
		s, status, err := b.dial("/nodes?json=1", "Session", session, "User", user, "Addr", addr)
		if err != nil {
			t.Fatal(err)
		}
		why := ""
		if status != http.StatusOK {
			b, err := io.ReadAll(s.resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			why = string(b)
			s.close()
		}
		return s, status, why
	}
	first, status, _ := open("s1", "u1", "x")
	if status != http.StatusOK {
		t.Fatalf("the first stream: %d", status)
	}
	for _, tt := range []struct {
		session, user, addr string
		want                int
		why                 string
	}{
		{"s1", "u1", "x", 200, ""},
		{"s1", "u1", "y", 429, "session"},
		{"s2", "u1", "y", 200, ""},
		{"s3", "u1", "y", 429, "person"},
		{"s4", "u2", "x", 200, ""},
		{"s5", "u3", "x", 429, "address"},
		{"s6", "u4", "y", 200, ""},
		{"s7", "u5", "z", 429, "server"},
	} {
		_, status, why := open(tt.session, tt.user, tt.addr)
		if status != tt.want || !strings.Contains(why, tt.why) {
			t.Errorf("session %s of %s at %s: %d %q, want %d that names %q", tt.session, tt.user, tt.addr, status, why, tt.want, tt.why)
		}
	}
	got := gather(t, reg)
	for _, reason := range []string{reasonSession, reasonPerson, reasonAddress, reasonProcess} {
		if n := got["knm_stream_refused_total reason="+reason]; n != 1 {
			t.Errorf("%v refusals counted for %s, want 1", n, reason)
		}
	}
	first.close()
	b.waitOpen(4)
	if _, status, _ = open("s1", "u1", "x"); status != 200 {
		t.Errorf("after one has ended: %d, want 200", status)
	}
}

// TestStream_BriefWhereTheBrowserRunsOut: over HTTP/1.x the fifth page of a session is told what changed and when to
// come back, and gets a lasting stream when a place is free. Programs and answers to a POST are not meant.
func TestStream_BriefWhereTheBrowserRunsOut(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{}, "a")
	b.put("a", spec{name: "n", rv: 1})
	b.bt.begin("b1", 1)
	cursor := b.window("").Cursor
	var lasting []*stream
	for range 4 {
		s := b.open("/nodes?since="+cursor, "Session", "s")
		lasting = append(lasting, s)
		b.waitOpen(len(lasting))
	}
	poll := func(what, path, cursor string) (events []got, next string) {
		t.Helper()
		events = b.open(path, "Session", "s", "Last-Event-ID", cursor).ends()
		last := events[len(events)-1]
		wait, err := strconv.Atoi(last.data)
		if last.name != "poll" || err != nil || wait < 2000 || wait >= 3000 {
			t.Fatalf("%s: ended with %+v, want to come back in 2 to 3 s", what, last)
		}
		return events[:len(events)-1], last.id
	}
	events, cursor := poll("nothing changed", "/nodes", cursor)
	if len(events) != 0 {
		t.Errorf("nothing changed, and it was told %+v", events)
	}
	for i := range 3 {
		b.put("a", spec{name: "n", rv: 2 + i, cordoned: i%2 == 0})
	}
	if events, cursor = poll("a change", "/nodes", cursor); len(events) != 1 || !strings.Contains(events[0].data, "n-a-n") {
		t.Errorf("three changes of one node came as %+v", events)
	}
	if events, _ = poll("the clusters page", "/clusters", ""); len(events) != 1 {
		t.Errorf("the clusters page was told %+v", events)
	}
	if events, _ = poll("a batch's page", "/batch?id=b1", "v1"); len(events) != 0 {
		t.Errorf("a batch that has not changed was told %+v", events)
	}
	stays := func(what string, s *stream) {
		t.Helper()
		b.s.End(func(v Viewer) bool { return v.Session == s.resp.Request.Header.Get("Session") }, "end-of-test")
		events := s.ends()
		if last := events[len(events)-1]; last.name != "bye" {
			t.Errorf("%s: ended with %+v, want to stay until it is sent away", what, last)
		}
	}
	other := b.open("/nodes?since="+cursor, "Session", "another")
	lasting[0].close()
	b.waitOpen(4)
	again := b.open("/nodes?since="+cursor, "Session", "s")
	b.waitOpen(5)
	program := b.open("/nodes?json=1", "Session", "s")
	progress, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.srv.URL+"/batch?id=b1&open=x", nil)
	if err != nil {
		t.Fatal(err)
	}
	progress.Header.Set("Session", "s")
	resp, err := b.srv.Client().Do(progress)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b.waitOpen(7)
	stays("a page of another session", other)
	stays("a page when a place is free", again)
	for what, s := range map[string]*stream{"a program": program, "the answer to a POST": {t: t, resp: resp, reader: reader{in: bufio.NewReader(resp.Body)}}} {
		events := s.ends()
		if last := events[len(events)-1]; last.name != "bye" {
			t.Errorf("%s: ended with %+v, want to stay until it is sent away", what, last)
		}
	}
	b.waitOpen(0)
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if left := len(b.s.plain) + len(b.s.briefs) + len(b.s.bySession) + len(b.s.byUser) + len(b.s.byAddr); left != 0 {
		t.Errorf("%d counters are left of streams that ended", left)
	}
}

// TestStream_ReloadAfterAnotherBuild: the page that another build rendered gets its rows right, and then the hint; one
// of the same build that was started again gets no hint.
func TestStream_ReloadAfterAnotherBuild(t *testing.T) {
	t.Parallel()
	epoch := Epoch("v2")
	if again := Epoch("v2"); again == epoch || buildOf(again) != buildOf(epoch) || buildOf(Epoch("v1")) == buildOf(epoch) {
		t.Fatalf("epochs: %s, %s: want the same build and another process", epoch, again)
	}
	b := newBench(t, ManagerConfig{Epoch: epoch}, StreamerConfig{}, "a")
	b.put("a", spec{name: "n", rv: 1})
	seq := 0
	for cursor, want := range map[string]bool{
		Epoch("v1") + ".7": true, Epoch("v2") + ".7": false, "e1.7": false, "": false, b.window("").Cursor: false,
	} {
		s := b.open("/nodes?since=" + cursor)
		var names []string
		if want {
			names = append(names, s.want().name, s.want().name)
			if names[0] != "" || names[1] != "reload" {
				t.Errorf("cursor %q: %q, want the rows first, and then the hint", cursor, names)
			}
		}
		// What comes up to the next change is all that the opening has to say.
		seq++
		mark := fmt.Sprintf("mark-%d", seq)
		b.put("a", spec{name: "n", rv: 1 + seq, cordoned: seq%2 == 1, labels: map[string]string{"v": mark}})
		s.until(mark, func(e got) bool {
			if e.name == "reload" {
				t.Errorf("cursor %q: a hint to reload that is one too many", cursor)
			}
			return strings.Contains(e.data, mark)
		})
		s.close()
		if events := b.open("/nodes?json=1&since="+cursor, "Session", "j"); want {
			if e := events.want(); e.name != typeReset {
				t.Errorf("a program got %+v", e)
			}
		}
	}
}

// TestStream_AdmissionIsPaced: ten times as many as are admitted at once come together; the others are told when to come
// back, and all who do as they are told are in before long. In fake time, which knows no loaded machine.
func TestStream_AdmissionIsPaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const clients, rate = 300, 30
		m := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}, Epoch: "e1"})
		s := NewStreamer(StreamerConfig{Manager: m, Render: plain{}, Logger: quietLog, Admit: rate, Heartbeat: time.Hour})
		q, err := ParseQuery(fleet.SeesAll(), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var wg sync.WaitGroup
		var mu sync.Mutex
		perSecond := map[int]int{}
		refused, retries := 0, map[time.Duration]bool{}
		for range clients {
			wg.Go(func() {
				for {
					at := time.Now()
					w := &countingResponse{h: http.Header{}, flushed: make(chan struct{}, 16)}
					r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
					err := s.Nodes(w, r, NodeStream{Viewer: Viewer{Since: "e1.0"}, Query: q})
					later, ok := errors.AsType[*fleet.LaterError](err)
					mu.Lock()
					if !ok {
						perSecond[int(at.Sub(began)/time.Second)]++
						mu.Unlock()
						if err != nil {
							t.Error(err)
						}
						return
					}
					refused++
					retries[later.Retry] = true
					mu.Unlock()
					wait := time.NewTimer(later.Retry)
					select {
					case <-wait.C:
					case <-ctx.Done():
						return
					}
				}
			})
		}
		all := time.NewTimer(time.Minute)
		<-all.C
		synctest.Wait()
		if n := s.open(); n != clients {
			t.Errorf("%d streams are open after a minute, want all %d", n, clients)
		}
		cancel()
		wg.Wait()
		for second, n := range perSecond {
			if limit := rate + rate/10; second > 0 && n > limit || n > 2*limit {
				t.Errorf("second %d: %d admitted, want at most %d", second, n, limit)
			}
		}
		if refused < clients-2*rate || len(retries) < refused/2 {
			t.Errorf("%d refused with %d different times to come back", refused, len(retries))
		}
	})
}

// TestStream_AdmissionOnTheWire: over real connections, with the status and the header that say so.
func TestStream_AdmissionOnTheWire(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	b := newBench(t, ManagerConfig{}, StreamerConfig{Admit: 1, Metrics: reg}, "a")
	first := b.open("/nodes", "Session", "first")
	first.want()
	for i := range 200 {
		s, status, err := b.dial("/nodes", "Session", strconv.Itoa(i))
		if err != nil {
			t.Fatal(err)
		}
		if status == http.StatusOK { // so slow a machine that a second has passed
			s.close()
			continue
		}
		if after, err := strconv.Atoi(s.resp.Header.Get("Retry-After")); status != http.StatusServiceUnavailable || err != nil || after < 1 || after > 16 {
			t.Errorf("refused with %d, Retry-After %q", status, s.resp.Header.Get("Retry-After"))
		}
		break
	}
	if n := gather(t, reg)["knm_stream_refused_total reason=admission"]; n != 1 {
		t.Errorf("%v refusals counted, want 1", n)
	}
}

// TestStream_HalfOfTheReadersStall is case R19, smaller: half of the clients stop reading with their sockets open. The others
// get every last state, the stalled ones are cut, and each costs no more than its share of memory meanwhile. It runs
// before the parallel tests: it measures the process's memory.
func TestStream_HalfOfTheReadersStall(t *testing.T) { //nolint:paralleltest // see above
	const each = 40
	reg := prometheus.NewPedanticRegistry()
	b := newBench(t, ManagerConfig{}, StreamerConfig{PerUser: 1 << 20, PerAddr: 1 << 20, WriteTimeout: 6 * time.Second, Metrics: reg}, "a")
	b.asServed()
	const nodes = 240
	pad := strings.Repeat("x", 2<<10)
	put := func(i int) {
		b.put("a", spec{name: "n" + strconv.Itoa(i%nodes), rv: i, labels: map[string]string{"v": strconv.Itoa(i), "pad": pad}})
	}
	for i := range nodes {
		put(i + 1)
	}
	healthy := make([]*stream, each)
	for i := range healthy {
		healthy[i] = b.open("/nodes?json=1", "Session", "h"+strconv.Itoa(i), "Accept-Encoding", "identity")
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	var synced sync.WaitGroup
	synced.Add(each)
	last := make(chan string, each)
	for _, s := range healthy {
		wg.Go(func() {
			for {
				e, err := s.next()
				if err != nil {
					last <- "ended"
					return
				}
				if e.name == typeSynced {
					synced.Done()
				}
				if strings.Contains(e.data, `"v":"last"`) {
					last <- "seen"
					return
				}
			}
		})
	}
	synced.Wait()
	before := memory()
	stalled := make([]net.Conn, each)
	for i := range stalled {
		stalled[i] = b.stall("/nodes?json=1", "s"+strconv.Itoa(i))
		defer stalled[i].Close()
	}
	b.waitOpen(2 * each)
	// Their first state is larger than what the kernel takes: they get stuck in the middle of it.
	var written float64
	still := 0
	eventually(t, "all of them to be stuck", func() bool {
		now := gather(t, reg)["knm_stream_bytes_total"]
		if still++; now != written {
			written, still = now, 0
		}
		return still == 100
	})
	cost := (memory() - before) / each
	for i := range 50 {
		put(1000 + i)
	}
	b.put("a", spec{name: "n0", rv: 9999, labels: map[string]string{"v": "last"}})
	for range healthy {
		if got := <-last; got != "seen" {
			t.Error("a healthy client was ended")
		}
	}
	for _, s := range healthy {
		s.close()
	}
	b.waitOpen(0) // the stalled ones are cut
	if n := gather(t, reg)["knm_stream_cut_total reason=slow"]; n != each {
		t.Errorf("%v streams counted as cut for slowness, want %d", n, each)
	}
	t.Logf("a stalled client costs %d KiB", cost>>10)
	if cost > 80<<10 && !raceDetector { // 64, and what other goroutines of a busy process leave lying about
		t.Errorf("a stalled client costs %d KiB, want at most 64", cost>>10)
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

// TestStream_EndAfterTheHandler: who sends a viewer away looks the streams up first and limits them after, and in between
// one can have ended by itself. Its response is net/http's again then, and over HTTP/2 there is nothing left to arm.
func TestStream_EndAfterTheHandler(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{}, "a")
	returned, late := make(chan struct{}), make(chan time.Time, 1)
	handle := b.srv.Config.Handler
	b.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handle.ServeHTTP(&deadlineWriter{ResponseWriter: w, returned: returned, late: late}, r)
		close(returned)
	})
	s := b.open("/nodes")
	b.waitOpen(1)
	b.s.mu.Lock()
	var c *conn
	for c = range b.s.conns {
	}
	b.s.mu.Unlock()
	s.close()
	<-returned
	c.w.limit(time.Now())
	select {
	case at := <-late:
		t.Errorf("the response was given a deadline, %s, after its handler had returned", at)
	default:
	}
}

// deadlineWriter says which deadline was set after the handler had returned.
type deadlineWriter struct {
	http.ResponseWriter
	returned <-chan struct{}
	late     chan<- time.Time
}

func (w *deadlineWriter) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

func (w *deadlineWriter) SetWriteDeadline(at time.Time) error {
	select {
	case <-w.returned:
		w.late <- at
		return nil
	default:
		return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(at)
	}
}

// asServed listens as the product does: little waits in the kernel.
func (b *bench) asServed() {
	b.t.Helper()
	l, err := ListenConfig().Listen(b.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	b.srv.Close()
	b.srv = httptest.NewUnstartedServer(http.HandlerFunc(b.handle))
	b.srv.Listener.Close()
	b.srv.Listener = l
	b.srv.Start()
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

// TestStream_CloseWithManyOpen is case R23, smaller: everybody is told to come back, at different times, and nobody waits for those
// who do not read.
func TestStream_CloseWithManyOpen(t *testing.T) {
	t.Parallel()
	const streams, stuck = 300, 20
	b := newBench(t, ManagerConfig{}, StreamerConfig{PerUser: 2000, PerAddr: 2000, Admit: 2000, WriteTimeout: time.Minute}, "a")
	b.asServed()
	for i := range 40 {
		b.put("a", spec{name: fmt.Sprintf("n%d", i), rv: 1, labels: map[string]string{"pad": strings.Repeat("x", 12<<10)}})
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	retries, last := map[string]bool{}, map[string]int{}
	for i := range streams {
		path := "/clusters"
		if i%2 == 0 {
			path = "/nodes?q=n1$&json=1"
		}
		s := b.open(path, "Session", strconv.Itoa(i))
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
	for i := range stuck {
		defer b.stall("/nodes?json=1", "stuck"+strconv.Itoa(i)).Close()
	}
	b.waitOpen(streams + stuck)
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := b.s.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
	t.Logf("%d streams closed in %s", streams+stuck, time.Since(began))
	wg.Wait()
	if last["restart"] < streams/2 { // all of them, but on a machine that did not get to them in time
		t.Errorf("last events: %v, want %d restarts", last, streams)
	}
	if len(retries) < last["restart"]/2 {
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
