package handlers

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/realtime"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// queryParams are the words of a node query, the same on every address that takes one.
var queryParams = []string{"q", "sort", "page", "per_page", "group"}

// refsLimit is the greatest number of nodes that one batch takes.
const refsLimit = 5000

func (s *server) home(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	http.Redirect(w, r, home, http.StatusSeeOther)
	return nil
}

// cluster is the cluster of the path, "" on the pages of all clusters. That there is one for this person was found out
// before.
func (s *server) cluster(r *http.Request) (string, error) { return pathParam(r, "cluster") }

// knownCluster refuses a cluster that does not exist, or that the person does not see.
func (s *server) knownCluster(by fleet.Caller, name string) error {
	for _, c := range s.cfg.Nodes.Clusters(by.Sight()) {
		if c.Name == name {
			return nil
		}
	}
	return unknownCluster(name)
}

func unknownCluster(name string) error {
	return say(fleet.ErrNotFound, "error.cluster_unknown", "there is no cluster named {{.Part}}", "Part", name)
}

// node is the node of the path. Its name is checked before anything is asked about it.
func (s *server) node(r *http.Request) (fleet.NodeRef, error) {
	cluster, err := s.cluster(r)
	if err != nil {
		return fleet.NodeRef{}, err
	}
	name, err := pathParam(r, "node")
	if err != nil {
		return fleet.NodeRef{}, err
	}
	ref := fleet.NodeRef{Cluster: cluster, Name: name}
	if !fleet.ValidNodeName(name) {
		return ref, unknownNode(ref)
	}
	return ref, nil
}

func unknownNode(ref fleet.NodeRef) error {
	return say(fleet.ErrNotFound, "error.node_unknown", "there is no node {{.Part}}", "Part", ref.String())
}

// query reads the node query of a page or its stream. Pages and their streams have the same default size.
func (s *server) query(r *http.Request, cluster string) (*realtime.Query, error) {
	v := r.URL.Query()
	if !v.Has("per_page") {
		v.Set("per_page", strconv.Itoa(views.DefaultPerPage))
	}
	return realtime.ParseQuery(callerOf(r).Sight(), cluster, v)
}

// mayIn tells whether somebody holds one of some permissions in a cluster, or anywhere for an empty name.
func mayIn(c fleet.Caller, cluster string, any ...fleet.Permission) bool {
	return slices.ContainsFunc(any, func(p fleet.Permission) bool {
		return c.May(p, cluster) || cluster == "" && c.MaySomewhere(p)
	})
}

func (s *server) nodesPage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	cluster, err := s.cluster(r)
	if err != nil {
		return err
	}
	caller, lang := callerOf(r), s.lang(r)
	p := views.NodesPage{
		Layout:    s.layout(r, "nodes.title", "nodes"),
		CanCordon: mayIn(caller, cluster, acting...),
		Key:       rand.Text(),
	}
	p.In = cluster
	status := http.StatusOK
	err = onlyParams(r.URL.Query(), queryParams...)
	var q *realtime.Query
	if err == nil {
		q, err = s.query(r, cluster)
	}
	if bad, ok := errors.AsType[*fleet.FieldError](err); ok {
		// The page stays usable: what was typed, what is wrong with it, the menus; but no rows that nobody asked for.
		status = http.StatusUnprocessableEntity
		stateOf(r).err = err
		p.QueryError = bad.Field + ": " + views.Message(lang, bad.Key, bad.Args, bad.Message)
		p.Static = true
		q, err = realtime.ParseQuery(caller.Sight(), cluster, nil)
	}
	if err != nil {
		return err
	}
	win := s.cfg.Nodes.Window(q, lang)
	p.Query = views.Query{
		Cluster: cluster, Q: q.Text, Sort: q.Sort, Page: win.Page, PerPage: q.PerPage, Pages: win.Pages, Total: win.Total,
		Group: q.Group,
	}
	p.Rows, p.Counts, p.Facets, p.Clusters = win.Lines(), views.Counts(win.Counts), views.Facets(win.Facets), win.Clusters
	p.NoSight = len(p.Clusters) == 0 && !caller.Sight().All()
	if p.QueryError != "" {
		p.Query.Q, p.Query.Page, p.Query.Pages, p.Query.Total = r.URL.Query().Get("q"), 1, 1, 0
		p.Rows, p.Counts = nil, views.Counts{}
	} else if p.Static = !caller.MaySomewhere(fleet.PermNodesView); !p.Static {
		p.Stream = streamURL(cluster, r.URL.Query(), win)
	}
	return s.show(w, r, status, views.Nodes(p))
}

// streamURL is where the page that shows the window goes on. It names the page that is shown, which is the last one if
// a later one was asked for.
func streamURL(cluster string, asked url.Values, win realtime.Window) string {
	v := url.Values{"since": {win.Cursor}}
	for _, name := range []string{"q", "sort", "per_page", "group"} {
		if asked.Get(name) != "" {
			v.Set(name, asked.Get(name))
		}
	}
	if win.Page > 1 {
		v.Set("page", strconv.Itoa(win.Page))
	}
	path := "/nodes/stream"
	if cluster != "" {
		path = "/clusters/" + url.PathEscape(cluster) + "/stream"
	}
	return path + "?" + v.Encode()
}

func (s *server) nodePage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	ref, err := s.node(r)
	if err != nil {
		return err
	}
	// The cursor is read before the node: what changes in between is sent once more, which is harmless.
	caller := callerOf(r)
	q, err := realtime.ParseQuery(caller.Sight(), ref.Cluster, url.Values{"per_page": {"20"}})
	if err != nil {
		return err
	}
	win := s.cfg.Nodes.Window(q, s.lang(r))
	n, err := s.cfg.Nodes.Node(ref)
	if err != nil {
		return notFound(err, unknownNode(ref))
	}
	row, err := s.cfg.Nodes.Row(ref, s.lang(r))
	if err != nil {
		return notFound(err, unknownNode(ref))
	}
	if n, err = s.withoutOthers(r.Context(), caller, n); err != nil {
		return err
	}
	base := "/clusters/" + url.PathEscape(ref.Cluster) + "/nodes/" + url.PathEscape(ref.Name)
	p := views.NodePage{
		Layout: s.layout(r, "node.title", "nodes"), Node: n, Row: row,
		Stream: base + "/stream?" + url.Values{"since": {win.Cursor}}.Encode(), PodsURL: base + "/pods",
		CanCordon: mayIn(caller, ref.Cluster, acting...), Key: rand.Text(),
	}
	p.In = ref.Cluster
	for _, c := range win.Clusters {
		if c.Name == ref.Cluster {
			p.Cluster = c
		}
	}
	return s.show(w, r, http.StatusOK, views.Node(p))
}

// withoutOthers leads to no batch that the person does not see.
func (s *server) withoutOthers(ctx context.Context, by fleet.Caller, n *fleet.Node) (*fleet.Node, error) {
	if n.Cordon == nil || n.Cordon.Batch == "" {
		return n, nil
	}
	err := s.cfg.Batches.Sees(ctx, by, n.Cordon.Batch)
	if !errors.Is(err, fleet.ErrNotFound) {
		return n, err
	}
	out, cordon := *n, *n.Cordon // the node is shared
	cordon.Batch = ""
	out.Cordon = &cordon
	return &out, nil
}

// notFound gives an ErrNotFound from elsewhere the sentence that names the thing.
func notFound(err, sentence error) error {
	if errors.Is(err, fleet.ErrNotFound) {
		return sentence
	}
	return err
}

// podsFragment is the only page that asks an API server. What goes wrong there is the content of the fragment, told
// where the pods would be.
func (s *server) podsFragment(w http.ResponseWriter, r *http.Request) error {
	ref, err := s.node(r)
	if err != nil {
		return err
	}
	// The cache knows whether there is such a node; the API server would only answer with no pods.
	if _, err := s.cfg.Nodes.Node(ref); err != nil {
		return notFound(err, unknownNode(ref))
	}
	ctx, cancel := context.WithTimeout(r.Context(), podsTimeout)
	defer cancel()
	list, err := s.cfg.Nodes.Pods(ctx, ref)
	p := views.PodsFragment{Lang: s.lang(r), Cluster: ref.Cluster, Node: ref.Name, List: list, Now: time.Now()}
	if err != nil {
		if errors.Is(err, fleet.ErrNotFound) {
			return unknownNode(ref)
		}
		if r.Context().Err() != nil {
			return err
		}
		stateOf(r).err = err
		a := answerFor(err, p.Lang)
		if p.Error = a.message; p.Error == "" {
			p.Error = views.Message(p.Lang, "error."+a.name, nil, a.title)
		}
	}
	return s.show(w, r, http.StatusOK, views.Pods(p))
}

func (s *server) clustersPage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	return s.showClusters(w, r, http.StatusOK, views.ClusterForm{}, nil)
}

func (s *server) listClusters(w http.ResponseWriter, r *http.Request) error {
	if err := onlyParams(r.URL.Query()); err != nil {
		return err
	}
	items := []json.RawMessage{}
	for _, c := range s.cfg.Nodes.Clusters(callerOf(r).Sight()) {
		b, err := fleet.ClusterJSON(c)
		if err != nil {
			return err
		}
		items = append(items, b)
	}
	return writeJSON(w, http.StatusOK, map[string]any{"items": items})
}

// apiQuery reads the node query of an address for programs. A cluster that does not exist is an error there, because an
// empty list would look like a cluster without nodes.
func (s *server) apiQuery(r *http.Request, more ...string) (*realtime.Query, error) {
	v := r.URL.Query()
	if err := onlyParams(v, append(append([]string{"cluster", "cluster_name"}, queryParams...), more...)...); err != nil {
		return nil, err
	}
	q, err := realtime.ParseQuery(callerOf(r).Sight(), "", v)
	if err != nil {
		return nil, err
	}
	if q.Cluster != "" {
		if err := s.knownCluster(callerOf(r), q.Cluster); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// listNodes answers with every node that matches, or with one page if one is asked for: one moment of them, with the
// cursor at which a stream goes on. The nodes are written through as they are cached.
func (s *server) listNodes(w http.ResponseWriter, r *http.Request) error {
	q, err := s.apiQuery(r)
	if err != nil {
		return err
	}
	v := r.URL.Query()
	paged := v.Has("page") || v.Has("per_page")
	list := s.cfg.Nodes.List(q, paged)
	head := struct {
		Cursor   string       `json:"cursor"`
		Revision uint64       `json:"revision"`
		Total    int          `json:"total"`
		Page     int          `json:"page,omitempty"`
		Pages    int          `json:"pages,omitempty"`
		Groups   *[]groupJSON `json:"groups,omitempty"`
	}{Cursor: list.Cursor, Revision: list.Revision, Total: list.Total}
	if paged {
		head.Page, head.Pages = list.Page, list.Pages
	}
	if q.Group != "" {
		head.Groups = new(groupsJSON(list.Groups))
	}
	b, err := json.Marshal(head)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	// What cannot be written has nobody who reads it: the first error stays in the writer and drops the rest.
	out := bufio.NewWriterSize(w, listBuffer)
	_, _ = out.Write(b[:len(b)-1])
	_, _ = out.WriteString(`,"items":[`)
	first := true
	for item := range list.Items {
		if !first {
			_ = out.WriteByte(',')
		}
		first = false
		if _, err := out.Write(item); err != nil {
			return nil // a client that is gone is noticed by the server
		}
	}
	_, _ = out.WriteString("]}\n")
	_ = out.Flush()
	return nil
}

// listBuffer is how much of a list goes to the connection at once.
const listBuffer = 64 << 10

// groupJSON is one group of a list, with sums over all of its nodes, whatever the page.
type groupJSON struct {
	Value       string          `json:"value"`
	Nodes       int             `json:"nodes"`
	Ready       int             `json:"ready"`
	NotReady    int             `json:"not_ready"`
	Unknown     int             `json:"unknown"`
	Cordoned    int             `json:"cordoned"`
	Pressure    int             `json:"pressure"`
	Allocatable allocatableJSON `json:"allocatable"`
}

type allocatableJSON struct {
	CPUMilli    int64 `json:"cpu_milli"`
	MemoryBytes int64 `json:"memory_bytes"`
	Pods        int64 `json:"pods"`
}

func groupsJSON(groups []realtime.Group) []groupJSON {
	out := make([]groupJSON, len(groups))
	for i, g := range groups {
		out[i] = groupJSON{
			Value: g.Value, Nodes: g.Nodes, Ready: g.Ready, NotReady: g.NotReady, Unknown: g.Unknown, Cordoned: g.Cordoned,
			Pressure: g.Pressure, Allocatable: allocatableJSON{g.CPUMilli, g.MemoryBytes, g.Pods},
		}
	}
	return out
}

// listRefs names every node that matches, for "select all matching". Total says how many there are when they are more
// than a batch takes.
func (s *server) listRefs(w http.ResponseWriter, r *http.Request) error {
	q, err := s.apiQuery(r)
	if err != nil {
		return err
	}
	total := s.cfg.Nodes.Window(q, views.Languages[0]).Total
	refs := []string{}
	for _, ref := range s.cfg.Nodes.Matching(q, refsLimit) {
		refs = append(refs, ref.String())
	}
	return writeJSON(w, http.StatusOK, map[string]any{"refs": refs, "total": max(total, len(refs)), "limit": refsLimit})
}

func (s *server) getNode(w http.ResponseWriter, r *http.Request) error {
	ref, err := s.node(r)
	if err != nil {
		return err
	}
	if err := onlyParams(r.URL.Query(), "full"); err != nil {
		return err
	}
	var body []byte
	switch full := r.URL.Query().Get("full"); full {
	case "1", "true":
		body, err = s.cfg.Nodes.FullNode(ref)
	case "", "0", "false":
		var n *fleet.Node
		if n, err = s.cfg.Nodes.Node(ref); err == nil {
			body, err = fleet.NodeJSON(n)
		}
	default:
		return fleet.Invalid("full", "%q is neither 1 nor 0", full)
	}
	if err != nil {
		return notFound(err, unknownNode(ref))
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // a client that is gone is noticed by the server
	return nil
}

// writeJSON renders in full before the first byte.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that is gone is noticed by the server
	return nil
}

// cursor is where a stream goes on: the header that clients send by themselves beats the URL that a page was given.
func cursor(r *http.Request) string {
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		return id
	}
	return r.URL.Query().Get("since")
}

func (s *server) viewer(r *http.Request, format realtime.Format) realtime.Viewer {
	c := callerOf(r)
	return realtime.Viewer{
		Session: c.Session, UserID: c.UserID, Addr: c.Addr, Lang: s.lang(r), Format: format, Since: cursor(r),
		Sight: c.Sight(),
	}
}

func (s *server) nodesStream(w http.ResponseWriter, r *http.Request) error {
	cluster, err := s.cluster(r)
	if err != nil {
		return err
	}
	if err := onlyParams(r.URL.Query(), append([]string{"since"}, queryParams...)...); err != nil {
		return err
	}
	q, err := s.query(r, cluster)
	if err != nil {
		return err
	}
	return s.cfg.Streams.Nodes(w, r, realtime.NodeStream{Viewer: s.viewer(r, realtime.HTML), Query: q})
}

func (s *server) nodeStream(w http.ResponseWriter, r *http.Request) error {
	ref, err := s.node(r)
	if err != nil {
		return err
	}
	return s.cfg.Streams.Nodes(w, r, realtime.NodeStream{Viewer: s.viewer(r, realtime.HTML), Node: &ref})
}

func (s *server) clustersStream(w http.ResponseWriter, r *http.Request) error {
	return s.cfg.Streams.Clusters(w, r, realtime.ClusterStream{Viewer: s.viewer(r, realtime.HTML)})
}

// nodeEvents is the stream for programs.
func (s *server) nodeEvents(w http.ResponseWriter, r *http.Request) error {
	q, err := s.apiQuery(r, "since")
	if err != nil {
		return err
	}
	return s.cfg.Streams.Nodes(w, r, realtime.NodeStream{Viewer: s.viewer(r, realtime.JSON), Query: q})
}

func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int((d+time.Second-1)/time.Second)))
}

// trimmed is a text of a query without the blanks around it.
func trimmed(v url.Values, name string) string { return strings.TrimSpace(v.Get(name)) }
