package handlers

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/realtime"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// Bounds of a list of batches.
const (
	defaultBatches = 100
	maxBatches     = 500
	maxKey         = 128
)

// createBatch makes a batch and answers in the way that the client can use: htmx and curl with the stream of its
// progress, a browser without scripts with the page of the batch, and a program with where to find it. A dry run answers
// with the plan.
func (s *server) createBatch(w http.ResponseWriter, r *http.Request) error {
	setDeadlines(w, readTimeout, writeTimeout)
	a, in, err := readAsk(r)
	// A confirmed plan that cannot be had is shown again, with what is in the way and everything that was chosen.
	again := in != nil && in.has("plan") && accepts(r, "text/html") && !htmx(r)
	if err != nil {
		if again {
			in.err = nil
			return s.showPlan(w, r, in, err)
		}
		return err
	}
	// The body is read; from here on nothing is expected of the client, for as long as the stream lives.
	setDeadlines(w, 0, writeTimeout)
	if a.dryRun {
		return s.writePlan(w, r, a.spec)
	}
	b, err := s.cfg.Batches.Submit(r.Context(), callerOf(r), a.spec)
	if err != nil {
		if again {
			return s.showPlan(w, r, in, err)
		}
		return err
	}
	return s.made(w, r, b.ID)
}

// made answers for a batch that was made.
func (s *server) made(w http.ResponseWriter, r *http.Request, id string) error {
	location := "/batches/" + url.PathEscape(id)
	w.Header().Set("Location", "/api/v1"+location)
	switch {
	case htmx(r):
		return s.streamPanel(w, r, id)
	case accepts(r, "text/event-stream"):
		setDeadlines(w, 0, 0)
		return s.progress(w, r, realtime.BatchStream{Viewer: s.freshViewer(r, realtime.JSON), Batch: id})
	case accepts(r, "text/html"):
		http.Redirect(w, r, location, http.StatusSeeOther)
		return nil
	}
	return s.writeBatch(w, r, http.StatusAccepted, id)
}

// freshViewer opens with the current state: a POST has seen nothing yet, whatever its headers say.
func (s *server) freshViewer(r *http.Request, format realtime.Format) realtime.Viewer {
	v := s.viewer(r, format)
	v.Since = ""
	return v
}

// streamPanel answers a form of htmx: the panel first, then its rows and counters as they change.
func (s *server) streamPanel(w http.ResponseWriter, r *http.Request, id string) error {
	b, items, err := s.cfg.Batches.Batch(r.Context(), callerOf(r), id)
	if err != nil {
		return err
	}
	panel, err := views.Fragment(views.Panel(views.BatchPanel{
		Lang: s.lang(r), Batch: b, Items: items, CanSteer: canSteer(callerOf(r), b, items), Embedded: true, Nonce: stateOf(r).nonce, Key: rand.Text(),
	}))
	if err != nil {
		return err
	}
	setDeadlines(w, 0, 0)
	return s.progress(w, r, realtime.BatchStream{Viewer: s.freshViewer(r, realtime.HTML), Batch: id, Open: panel})
}

// canSteer tells whether the buttons are offered. Whether they work is decided where batches are kept.
func canSteer(c fleet.Caller, b fleet.Batch, items []fleet.Item) bool {
	p, ok := b.Operation.Action.Permission()
	if c.May(p, "") {
		return ok
	}
	asked := map[string]bool{}
	for i := range items {
		cluster := items[i].Ref.Cluster
		if !asked[cluster] && !c.May(p, cluster) {
			return false
		}
		asked[cluster] = true
	}
	return ok && len(items) > 0
}

func (s *server) writeBatch(w http.ResponseWriter, r *http.Request, status int, id string) error {
	b, items, err := s.cfg.Batches.Batch(r.Context(), callerOf(r), id)
	if err != nil {
		return notFound(err, unknownBatch(id))
	}
	body, err := batchJSON(b, items)
	if err != nil {
		return err
	}
	return writeJSON(w, status, body)
}

// batchJSON keeps a batch without items apart from one whose items are left out.
func batchJSON(b fleet.Batch, items []fleet.Item) (json.RawMessage, error) {
	if items == nil {
		items = []fleet.Item{}
	}
	return fleet.BatchJSON(b, items)
}

func unknownBatch(id string) error {
	return say(fleet.ErrNotFound, "error.batch_unknown", "there is no batch {{.Part}}", "Part", id)
}

func (s *server) getBatch(w http.ResponseWriter, r *http.Request) error {
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	return s.writeBatch(w, r, http.StatusOK, id)
}

// batchStream is the progress of a batch, for pages and programs under two addresses.
func (s *server) batchStream(w http.ResponseWriter, r *http.Request) error {
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	if err := onlyParams(r.URL.Query(), "since"); err != nil {
		return err
	}
	format := realtime.JSON
	if wantsHTML(r) {
		format = realtime.HTML
	}
	return s.progress(w, r, realtime.BatchStream{Viewer: s.viewer(r, format), Batch: id})
}

// progress serves the stream of a batch to those who see it, and to them no more than they see.
func (s *server) progress(w http.ResponseWriter, r *http.Request, bs realtime.BatchStream) error {
	if by := callerOf(r); !by.Sight().All() {
		list, err := s.cfg.Batches.List(r.Context(), by, fleet.BatchFilter{IDs: []string{bs.Batch}})
		if err == nil && len(list) == 0 {
			err = fleet.ErrNotFound
		}
		if err != nil {
			return notFound(err, unknownBatch(bs.Batch))
		}
		bs.Shown = func(now *fleet.Batch) { now.Parent, now.Operation.Revert = list[0].Parent, list[0].Operation.Revert }
	}
	return notFound(s.cfg.Streams.Batch(w, r, bs), unknownBatch(bs.Batch))
}

// batchFilter reads the filters of a list of batches.
func batchFilter(v url.Values) (fleet.BatchFilter, error) {
	f := fleet.BatchFilter{
		State: fleet.BatchState(trimmed(v, "state")), User: trimmed(v, "user"), Cluster: v.Get("cluster"), Limit: defaultBatches,
	}
	if err := onlyParams(v, "state", "user", "cluster", "since", "limit"); err != nil {
		return f, err
	}
	states := []fleet.BatchState{"", fleet.BatchQueued, fleet.BatchRunning, fleet.BatchPaused, fleet.BatchInterrupted, fleet.BatchDone}
	if !slices.Contains(states, f.State) {
		return f, fleet.Invalid("state", "%q is not one of queued, running, paused, interrupted, done", string(f.State))
	}
	var err error
	if f.Since, err = moment("since", v.Get("since")); err != nil {
		return f, err
	}
	f.Limit, err = limit(v, defaultBatches, maxBatches)
	return f, err
}

func limit(v url.Values, standard, most int) (int, error) {
	raw := v.Get("limit")
	if raw == "" {
		return standard, nil
	}
	n, err := strconv.Atoi(raw)
	if err != nil || n < 1 || n > most {
		return 0, fleet.Invalid("limit", "%q is not a number from 1 to %d", raw, most)
	}
	return n, nil
}

func (s *server) listBatches(w http.ResponseWriter, r *http.Request) error {
	f, err := batchFilter(r.URL.Query())
	if err != nil {
		return err
	}
	list, err := s.cfg.Batches.List(r.Context(), callerOf(r), f)
	if err != nil {
		return err
	}
	items := make([]json.RawMessage, len(list))
	for i, b := range list {
		if items[i], err = fleet.BatchJSON(b, nil); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusOK, map[string]any{"items": items})
}

func (s *server) batchesPage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	f, err := batchFilter(r.URL.Query())
	if err != nil {
		return err
	}
	list, err := s.cfg.Batches.List(r.Context(), callerOf(r), f)
	if err != nil {
		return err
	}
	p := views.BatchesPage{Layout: s.layout(r, "batches.title", "batches"), Batches: list, Filter: f}
	p.Static = true
	return s.show(w, r, http.StatusOK, views.Batches(p))
}

func (s *server) batchPage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	b, items, err := s.cfg.Batches.Batch(r.Context(), callerOf(r), id)
	if err != nil {
		return notFound(err, unknownBatch(id))
	}
	p := views.BatchPage{Layout: s.layout(r, "batch.title", "batches"), Panel: views.BatchPanel{
		Lang: s.lang(r), Batch: b, Items: items, CanSteer: canSteer(callerOf(r), b, items), Nonce: stateOf(r).nonce, Key: rand.Text(),
	}}
	if b.State == fleet.BatchDone {
		p.Static = true
	} else {
		p.Panel.Stream = "/batches/" + url.PathEscape(b.ID) + "/events?" +
			url.Values{"since": {realtime.BatchCursor(b)}}.Encode()
	}
	return s.show(w, r, http.StatusOK, views.Batch(p))
}

// jsonLines writes one object a line.
func jsonLines[T any](w http.ResponseWriter, list []T) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	for _, v := range list {
		if err := enc.Encode(v); err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	_, _ = w.Write(buf.Bytes()) // a client that is gone is noticed by the server
	return nil
}
