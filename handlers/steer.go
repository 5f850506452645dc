package handlers

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// steering is a route that does one thing to a batch that exists and answers with how the batch is then.
func (s *server) steering(do func(ctx context.Context, by fleet.Caller, id string) error) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := s.steerTarget(r)
		if err != nil {
			return err
		}
		if err := do(r.Context(), callerOf(r), id); err != nil {
			return notFound(err, unknownBatch(id))
		}
		return s.steerAnswer(w, r, id)
	}
}

// steerTarget is the batch of the path. Such a request has no fields.
func (s *server) steerTarget(r *http.Request) (string, error) {
	id, err := pathParam(r, "id")
	if err != nil {
		return "", err
	}
	in, err := readInput(r)
	if err != nil {
		return "", err
	}
	return id, in.done()
}

func (s *server) steerAnswer(w http.ResponseWriter, r *http.Request, id string) error {
	switch {
	case htmx(r):
		// The stream of the panel shows what comes of it.
		w.WriteHeader(http.StatusNoContent)
		return nil
	case accepts(r, "text/html"):
		http.Redirect(w, r, "/batches/"+url.PathEscape(id), http.StatusSeeOther)
		return nil
	}
	return s.writeBatch(w, r, http.StatusAccepted, id)
}

func (s *server) cancelBatch() handler { return s.steering(s.cfg.Batches.Cancel) }
func (s *server) pauseBatch() handler  { return s.steering(s.cfg.Batches.Pause) }
func (s *server) resumeBatch() handler { return s.steering(s.cfg.Batches.Resume) }

// retryBatch makes a new batch of what failed, and answers for that one as the route that makes batches does.
func (s *server) retryBatch(w http.ResponseWriter, r *http.Request) error {
	setDeadlines(w, readTimeout, writeTimeout)
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	in, err := readInput(r)
	if err != nil {
		return err
	}
	key := idempotencyKey(in, r)
	if err := in.done(); err != nil {
		return err
	}
	setDeadlines(w, 0, writeTimeout)
	b, err := s.cfg.Batches.Retry(r.Context(), callerOf(r), id, key)
	if err != nil {
		return notFound(err, unknownBatch(id))
	}
	return s.made(w, r, b.ID)
}

// skipItem leaves out one node of a batch.
func (s *server) skipItem(w http.ResponseWriter, r *http.Request) error {
	id, err := s.steerTarget(r)
	if err != nil {
		return err
	}
	seq, err := itemParam(r)
	if err != nil {
		return err
	}
	if err := s.cfg.Batches.Skip(r.Context(), callerOf(r), id, seq); err != nil {
		return notFound(err, unknownItem(id, seq))
	}
	return s.steerAnswer(w, r, id)
}

// skipByForm is skipItem for the buttons of rows, which all belong to one form.
func (s *server) skipByForm(w http.ResponseWriter, r *http.Request) error {
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	in, err := readInput(r)
	if err != nil {
		return err
	}
	seq := in.numberFrom("item", 0, -1)
	if seq < 0 {
		in.fail(fleet.Invalid("item", "must be given"))
	}
	if err := in.done(); err != nil {
		return err
	}
	if err := s.cfg.Batches.Skip(r.Context(), callerOf(r), id, seq); err != nil {
		return notFound(err, unknownItem(id, seq))
	}
	return s.steerAnswer(w, r, id)
}

// itemPods is every pod of one node of a batch: a fragment for the row, a page for a browser without scripts.
func (s *server) itemPods(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	seq, err := itemParam(r)
	if err != nil {
		return err
	}
	b, items, err := s.cfg.Batches.Batch(r.Context(), callerOf(r), id)
	if err != nil {
		return notFound(err, unknownBatch(id))
	}
	i := slices.IndexFunc(items, func(it fleet.Item) bool { return it.Seq == seq })
	if i < 0 {
		return unknownItem(id, seq)
	}
	if htmx(r) {
		return s.show(w, r, http.StatusOK, views.ItemPodsView(s.lang(r), items[i]))
	}
	p := views.ItemPods{Layout: s.layout(r, "batch.title", "batches"), Batch: b, Item: items[i]}
	p.Static = true
	return s.show(w, r, http.StatusOK, views.ItemPodsPage(p))
}

// itemParam is the place of a node in its batch, from the path.
func itemParam(r *http.Request) (int, error) {
	raw, err := pathParam(r, "seq")
	if err != nil {
		return 0, err
	}
	seq, err := strconv.Atoi(raw)
	if err != nil || seq < 0 {
		return 0, say(fleet.ErrNotFound, "error.page_unknown", "there is no such page")
	}
	return seq, nil
}

func unknownItem(id string, seq int) error {
	return say(fleet.ErrNotFound, "error.item_unknown", "the batch {{.Part}} has no node {{.Item}}", "Part", id, "Item", strconv.Itoa(seq))
}
