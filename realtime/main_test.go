package realtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(kubetest.Main(m)) }

var quietLog = slog.New(slog.DiscardHandler)

// alarm is a log that fails the test on errors: what a supervisor or a view survives is a mistake all the same.
type alarm struct {
	slog.Handler
	t testing.TB
}

func newAlarm(t testing.TB) *slog.Logger { return slog.New(alarm{slog.DiscardHandler, t}) }

func (alarm) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }
func (a alarm) WithAttrs([]slog.Attr) slog.Handler         { return a }
func (a alarm) WithGroup(string) slog.Handler              { return a }
func (a alarm) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(at slog.Attr) bool {
		text += " " + at.String()
		return true
	})
	a.t.Error(text)
	return nil
}

// plain renders what a test can read back. Rows carry the revision, so that an old row is told from a new one.
type plain struct{}

func (plain) NodeRow(n *fleet.Node, lang string) []byte {
	return fmt.Appendf(nil, "<tr id=\"%s\" data-rev=\"%d\">\n<td>%s %s %t %s %d</td></tr>", plain{}.NodeID(n.Ref), n.Revision,
		lang, n.Status, n.Schedulable, n.Labels["v"], len(n.Taints))
}
func (plain) NodeID(ref fleet.NodeRef) string { return "n-" + ref.Cluster + "-" + ref.Name }
func (plain) GroupRow(g Group, lang string) []byte {
	return fmt.Appendf(nil, "<tr id=\"%s\"><th>%s %+v</th></tr>", plain{}.GroupID(g.Value), lang, g)
}
func (plain) GroupID(value string) string { return "g-" + value }
func (plain) Counts(c Counts, page, pages, total int, lang string) []byte {
	return fmt.Appendf(nil, `<x-counts>%v %d/%d %d %s</x-counts>`, c, page, pages, total, lang)
}

func (plain) ClusterBadge(c fleet.Cluster, lang string) []byte {
	return fmt.Appendf(nil, `<x-badge id="%s">%s %s</x-badge>`, c.Name, c.State, c.Reason)
}

func (plain) ClusterRow(c fleet.Cluster, lang string) []byte {
	return fmt.Appendf(nil, `<tr id="%s"><td>%s %d %d</td></tr>`, plain{}.ClusterID(c.Name), c.State, c.Nodes, c.Cordoned)
}
func (plain) ClusterID(name string) string { return "c-" + name }
func (plain) BatchItem(i fleet.Item, lang string) []byte {
	return fmt.Appendf(nil, `<tr id="i-%d"><td>%s %s</td></tr>`, i.Seq, i.State, i.Error)
}

func (plain) BatchProgress(b fleet.Batch, lang string) []byte {
	return fmt.Appendf(nil, `<x-progress>%s %d</x-progress>`, b.State, b.Counts.Finished())
}

// spec is a node in a few words.
type spec struct {
	name, uid string
	rv        int
	labels    map[string]string
	cordoned  bool
	taints    []corev1.Taint
	ready     corev1.ConditionStatus
	beat      time.Time
}

var epochStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func (s spec) node() *corev1.Node {
	if s.uid == "" {
		s.uid = "uid-" + s.name
	}
	if s.ready == "" {
		s.ready = corev1.ConditionTrue
	}
	if s.beat.IsZero() {
		s.beat = epochStart
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: s.name, UID: types.UID(s.uid), ResourceVersion: strconv.Itoa(s.rv), Labels: s.labels,
			CreationTimestamp: metav1.NewTime(epochStart),
		},
		Spec: corev1.NodeSpec{Unschedulable: s.cordoned, Taints: s.taints},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: s.ready, Reason: "KubeletReady", Message: "two\nlines",
				LastHeartbeatTime: metav1.NewTime(s.beat), LastTransitionTime: metav1.NewTime(epochStart),
			}},
			Capacity: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"),
				corev1.ResourcePods: resource.MustParse("110"),
			},
			Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("3900m")},
			Addresses:   []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}},
			NodeInfo:    corev1.NodeSystemInfo{KubeletVersion: "v1.34.2"},
		},
	}
}

var errNoServer = errors.New("this cluster exists in a test only")

// bench is a manager whose boards the test feeds by hand, and streams on top of it.
type bench struct {
	t   testing.TB
	m   *Manager
	s   *Streamer
	srv *httptest.Server
	bt  *batches
}

func newBench(t testing.TB, mc ManagerConfig, sc StreamerConfig, clusters ...string) *bench {
	t.Helper()
	if mc.Logger == nil {
		mc.Logger = newAlarm(t)
	}
	mc.Render = plain{}
	b := &bench{t: t, m: NewManager(mc), bt: &batches{}}
	for _, name := range clusters {
		b.add(name)
	}
	sc.Manager, sc.Render, sc.Logger, sc.Batches = b.m, plain{}, mc.Logger, b.bt
	b.s = NewStreamer(sc)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.m.Run(ctx) }()
	b.srv = httptest.NewServer(http.HandlerFunc(b.handle))
	for _, name := range clusters { // the supervisor of a test's cluster says once that there is no server
		eventually(t, "the state of "+name, func() bool { return b.m.board(name).state().State == fleet.ClusterUnreachable })
	}
	t.Cleanup(func() {
		closing, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		if err := b.s.Close(closing); err != nil {
			t.Errorf("Close: %v", err)
		}
		b.srv.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return b
}

// eventually waits for what has no signal of its own, because nobody but a test waits for it.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waiting for %s: in vain", what)
		}
	}
}

func (b *bench) add(name string) *board {
	if err := b.m.Add(kube.Cluster{Name: name, Fault: errNoServer}); err != nil {
		b.t.Errorf("Add(%s): %v", name, err)
	}
	return b.m.board(name)
}

func (b *bench) put(cluster string, s spec) {
	b.t.Helper()
	if err := b.m.board(cluster).apply(s.node()); err != nil {
		b.t.Fatalf("apply: %v", err)
	}
}

// sightOf is the sight of somebody who views the clusters of a scope, and "none" is of nobody.
func sightOf(scope string) fleet.Sight {
	who := fleet.Caller{Role: fleet.RoleNone}
	switch scope {
	case "*":
		return fleet.SeesAll()
	case "none":
	default:
		who.Access = fleet.NewAccess([]fleet.Grant{{Scope: fleet.Scope(scope), Role: fleet.RoleViewer}}, nil)
	}
	return who.Sight()
}

func (b *bench) handle(w http.ResponseWriter, r *http.Request) {
	v := Viewer{
		Session: r.Header.Get("Session"), UserID: r.Header.Get("User"), Addr: r.Header.Get("Addr"), Lang: "en",
		Since: r.Header.Get("Last-Event-ID"), Sight: fleet.SeesAll(),
	}
	if scope := r.Header.Get("Sight"); scope != "" {
		v.Sight = sightOf(scope)
	}
	if v.Since == "" {
		v.Since = r.URL.Query().Get("since")
	}
	if r.URL.Query().Get("json") != "" {
		v.Format = JSON
	}
	var err error
	switch r.URL.Path {
	case "/nodes":
		var q *Query
		if q, err = ParseQuery(v.Sight, "", r.URL.Query()); err == nil {
			err = b.s.Nodes(w, r, NodeStream{Viewer: v, Query: q})
		}
	case "/node":
		err = b.s.Nodes(w, r, NodeStream{Viewer: v, Node: &fleet.NodeRef{
			Cluster: r.URL.Query().Get("cluster"), Name: r.URL.Query().Get("name"),
		}})
	case "/clusters":
		err = b.s.Clusters(w, r, ClusterStream{v})
	case "/batch":
		err = b.s.Batch(w, r, BatchStream{Viewer: v, Batch: r.URL.Query().Get("id"), Open: []byte(r.URL.Query().Get("open"))})
	}
	if e, ok := errors.AsType[*fleet.LaterError](err); ok {
		w.Header().Set("Retry-After", strconv.Itoa(int(e.Retry.Seconds())))
	}
	switch {
	case err == nil:
	case errors.Is(err, fleet.ErrTooMany):
		http.Error(w, err.Error(), http.StatusTooManyRequests)
	case errors.Is(err, fleet.ErrNotFound):
		http.Error(w, err.Error(), http.StatusNotFound)
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// got is one event as a parser of the standard sees it.
type got struct{ id, name, data, retry string }

// reader parses an event stream as the HTML standard says, and knows nothing of how it was written.
type reader struct {
	in     *bufio.Reader
	lastID string
}

func (r *reader) next() (got, error) {
	var e got
	var data []string
	for {
		line, err := r.in.ReadString('\n')
		if err != nil {
			return got{}, err
		}
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if line == "" {
			if len(data) == 0 {
				e = got{}
				continue
			}
			e.id, e.data = r.lastID, strings.Join(data, "\n")
			return e, nil
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "":
		case "id":
			r.lastID = value
		case "event":
			e.name = value
		case "retry":
			e.retry = value
		case "data":
			data = append(data, value)
		}
	}
}

// stream is an open connection of a test.
type stream struct {
	reader
	t     testing.TB
	resp  *http.Response
	close func()
}

func (b *bench) open(path string, header ...string) *stream {
	b.t.Helper()
	s, status, err := b.dial(path, header...)
	if err != nil || status != http.StatusOK {
		b.t.Fatalf("opening %s: %v, status %d", path, err, status)
	}
	return s
}

func (b *bench) dial(path string, header ...string) (*stream, int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.srv.URL+path, nil)
	if err != nil {
		cancel()
		return nil, 0, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := b.srv.Client().Do(req)
	if err != nil {
		cancel()
		return nil, 0, err
	}
	s := &stream{t: b.t, resp: resp, reader: reader{in: bufio.NewReaderSize(resp.Body, 4096)}}
	s.close = sync.OnceFunc(func() {
		cancel()
		_ = resp.Body.Close() // the context has ended it
	})
	b.t.Cleanup(s.close)
	return s, resp.StatusCode, nil
}

// want reads the next event and fails the test if there is none.
func (s *stream) want() got {
	s.t.Helper()
	e, err := s.next()
	if err != nil {
		s.t.Fatalf("reading the stream: %v", err)
	}
	return e
}

// until reads up to the first event that fits.
func (s *stream) until(what string, fits func(got) bool) got {
	s.t.Helper()
	for {
		e, err := s.next()
		if err != nil {
			s.t.Fatalf("waiting for %s: %v", what, err)
		}
		if fits(e) {
			return e
		}
	}
}

// ends reads until the server has ended the stream.
func (s *stream) ends() []got {
	s.t.Helper()
	var all []got
	for {
		e, err := s.next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			s.t.Fatalf("waiting for the end: %v", err)
		}
		all = append(all, e)
	}
}

func deletedUnknown(key string, obj any) cache.DeletedFinalStateUnknown {
	return cache.DeletedFinalStateUnknown{Key: key, Obj: obj}
}
