package handlers

import (
	"bytes"
	"encoding/json"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/inert"
)

// Bounds of a page of events.
const (
	defaultEvents = 500
	maxEvents     = 5000
)

// batchLog is the transitions of a batch's drains, page by page.
func (s *server) batchLog(w http.ResponseWriter, r *http.Request) error {
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	q := r.URL.Query()
	if err := onlyParams(q, "after", "limit"); err != nil {
		return err
	}
	var after int64
	if raw := q.Get("after"); raw != "" {
		if after, err = strconv.ParseInt(raw, 10, 64); err != nil || after < 0 {
			return fleet.Invalid("after", "%q is not a number of an event", raw)
		}
	}
	most, err := limit(q, defaultEvents, maxEvents)
	if err != nil {
		return err
	}
	// An unknown batch is told apart from one without events.
	if _, _, err := s.cfg.Batches.Batch(r.Context(), callerOf(r), id); err != nil {
		return notFound(err, unknownBatch(id))
	}
	events, err := s.cfg.Batches.Events(r.Context(), callerOf(r), id, after, most)
	if err != nil {
		return notFound(err, unknownBatch(id))
	}
	if accepts(r, "application/x-ndjson") {
		return jsonLines(w, events)
	}
	next := after
	if len(events) > 0 {
		next = events[len(events)-1].Seq
	}
	if events == nil {
		events = []fleet.BatchEvent{}
	}
	return writeJSON(w, http.StatusOK, map[string]any{"items": events, "next": next, "more": len(events) == most})
}

// batchReport is what came of a batch, as a file.
func (s *server) batchReport(w http.ResponseWriter, r *http.Request) error {
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	q := r.URL.Query()
	if err := onlyParams(q, "format"); err != nil {
		return err
	}
	format := q.Get("format")
	write, ok := map[string]func(*bytes.Buffer, fleet.Batch, []fleet.Item) error{
		"": reportJSON, "json": reportJSON, "ndjson": reportLines, "csv": reportCSV,
	}[format]
	if !ok {
		return fleet.Invalid("format", "%q is not one of csv, json, ndjson", format)
	}
	if format == "" {
		format = "json"
	}
	b, items, err := s.cfg.Batches.Batch(r.Context(), callerOf(r), id)
	if err != nil {
		return notFound(err, unknownBatch(id))
	}
	var buf bytes.Buffer
	if err := write(&buf, b, items); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", map[string]string{
		"json": "application/json", "ndjson": "application/x-ndjson", "csv": "text/csv; charset=utf-8",
	}[format])
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": "batch-" + id + "." + format}))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(buf.Bytes()) // a client that is gone is noticed by the server
	return nil
}

func reportJSON(buf *bytes.Buffer, b fleet.Batch, items []fleet.Item) error {
	body, err := batchJSON(b, items)
	if err != nil {
		return err
	}
	return json.Indent(buf, append(body, '\n'), "", " ")
}

// reportLines is the batch without its nodes, and then a node a line.
func reportLines(buf *bytes.Buffer, b fleet.Batch, items []fleet.Item) error {
	body, err := fleet.BatchJSON(b, nil)
	if err != nil {
		return err
	}
	buf.Write(append(body, '\n'))
	for _, it := range items {
		line, err := fleet.ItemJSON(it)
		if err != nil {
			return err
		}
		buf.Write(append(line, '\n'))
	}
	return nil
}

var reportColumns = []string{
	"batch", "action", "seq", "cluster", "node", "uid", "zone", "state", "code", "error", "changed", "attempt", "started_at",
	"ended_at", "seconds", "edits", "drain_state", "drain_message", "evicted", "pods_left",
}

func reportCSV(buf *bytes.Buffer, b fleet.Batch, items []fleet.Item) error {
	out, err := inert.NewCSV(buf, reportColumns...)
	if err != nil {
		return err
	}
	for _, it := range items {
		row := []string{
			b.ID, string(b.Operation.Action), strconv.Itoa(it.Seq), it.Ref.Cluster, it.Ref.Name, it.UID, it.Zone, string(it.State), it.Code, it.Error,
			strconv.FormatBool(it.Changed), strconv.Itoa(it.Attempt), stamp(it.StartedAt), stamp(it.EndedAt), took(it), editsCSV(it.Edits),
		}
		if d := it.Drain; d != nil {
			left := 0
			for _, p := range d.Pods {
				if p.State != fleet.PodGone && p.State != fleet.PodIgnored {
					left++
				}
			}
			row = append(row, string(d.State), d.Message, strconv.Itoa(d.Evicted), strconv.Itoa(left))
		} else {
			row = append(row, "", "", "", "")
		}
		if err := out.Row(row...); err != nil {
			return err
		}
	}
	return out.Flush()
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func took(it fleet.Item) string {
	if it.StartedAt.IsZero() || it.EndedAt.IsZero() {
		return ""
	}
	return strconv.FormatFloat(it.EndedAt.Sub(it.StartedAt).Seconds(), 'f', 3, 64)
}

// editsCSV is what was changed: label a: old → new; absent is -.
func editsCSV(edits []fleet.Edit) string {
	parts := make([]string, len(edits))
	side := func(v *string) string {
		if v == nil {
			return "-"
		}
		return strconv.Quote(*v)
	}
	for i, e := range edits {
		name := e.Key
		if e.Effect != "" {
			name += ":" + string(e.Effect)
		}
		parts[i] = strings.TrimSpace(string(e.Kind)+" "+name) + ": " + side(e.Before) + " → " + side(e.After)
	}
	return strings.Join(parts, "; ")
}
