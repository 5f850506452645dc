package handlers

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/inert"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// Bounds of a reading of the record.
const (
	defaultEntries = 100
	maxEntries     = 1000
	maxFilter      = 512 // bytes of one text

	maxExports    = 2 // at the same time
	exportTimeout = 15 * time.Minute
	exportBuffer  = 64 << 10
)

// narrowing are the parameters that say which entries are meant; paging are those that say which of them to show.
var (
	narrowing = []string{"user", "cluster", "node", "action", "outcome", "batch", "session", "since", "until"}
	paging    = []string{"before", "after", "limit"}
)

// auditFilter reads which entries are meant, and nothing but that and what else is allowed.
func auditFilter(v url.Values, more ...string) (fleet.AuditFilter, error) {
	f := fleet.AuditFilter{
		User: trimmed(v, "user"), Cluster: v.Get("cluster"), Node: trimmed(v, "node"), Action: trimmed(v, "action"),
		Outcome: v.Get("outcome"), Batch: trimmed(v, "batch"), Session: trimmed(v, "session"),
	}
	allowed := slices.Concat(more, narrowing)
	if err := onlyParams(v, allowed...); err != nil {
		return f, err
	}
	for _, name := range allowed {
		switch s := v.Get(name); {
		case len(v[name]) > 1:
			return f, fleet.Invalid(name, "is given more than once")
		case len(s) > maxFilter:
			return f, fleet.Invalid(name, "is longer than %d bytes", maxFilter)
		case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
			return f, fleet.Invalid(name, "has a character in it that is no text")
		}
	}
	if f.Outcome != "" && !slices.Contains(fleet.AuditOutcomes(), f.Outcome) {
		return f, fleet.Invalid("outcome", "%q is not one of %s", f.Outcome, strings.Join(fleet.AuditOutcomes(), ", "))
	}
	var err error
	if f.Since, err = moment("since", v.Get("since")); err != nil {
		return f, err
	}
	if f.Until, err = moment("until", v.Get("until")); err != nil {
		return f, err
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		return f, fleet.Invalid("until", "is not later than since")
	}
	return f, nil
}

// auditPageFilter is auditFilter with the page of it.
func auditPageFilter(v url.Values) (fleet.AuditFilter, error) {
	f, err := auditFilter(v, paging...)
	if err != nil {
		return f, err
	}
	if f.Limit, err = limit(v, defaultEntries, maxEntries); err != nil {
		return f, err
	}
	if f.BeforeSeq, err = sequence("before", v.Get("before")); err != nil {
		return f, err
	}
	if f.AfterSeq, err = sequence("after", v.Get("after")); err != nil {
		return f, err
	}
	if f.AfterSeq > 0 && f.BeforeSeq > 0 {
		return f, fleet.Invalid("after", "cannot be given together with before")
	}
	return f, nil
}

func (s *server) auditPage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	f, err := auditPageFilter(r.URL.Query())
	if err != nil {
		return err
	}
	entries, older, newer, err := s.entries(r.Context(), f)
	if err != nil {
		return err
	}
	p := views.AuditPage{Layout: s.layout(r, "audit.title", "audit"), Entries: entries, Filter: f, Older: older, Newer: newer}
	p.Static = true
	return s.show(w, r, http.StatusOK, views.Audit(p))
}

// entries is a page of the record, newest first, and where the pages beside it begin: 0 where there is none. It reads one
// more than asked for, to know whether it goes on.
func (s *server) entries(ctx context.Context, f fleet.AuditFilter) (list []fleet.Entry, older, newer int64, err error) {
	n := f.Limit
	f.Limit, f.Oldest = n+1, f.AfterSeq > 0
	if list, err = s.cfg.Audit.Entries(ctx, f); err != nil {
		return nil, 0, 0, err
	}
	more := len(list) > n
	if more {
		list = list[:n]
	}
	if f.Oldest {
		slices.Reverse(list)
	}
	switch {
	case len(list) == 0 && f.Oldest: // nothing is newer: back to where one came from
		return list, f.AfterSeq + 1, 0, nil
	case len(list) == 0 && f.BeforeSeq > 0:
		return list, 0, f.BeforeSeq - 1, nil
	case len(list) == 0:
		return list, 0, 0, nil
	}
	if more || f.Oldest {
		older = list[len(list)-1].Seq
	}
	if f.BeforeSeq > 0 || f.Oldest && more {
		newer = list[0].Seq
	}
	return list, older, newer, nil
}

func (s *server) listAudit(w http.ResponseWriter, r *http.Request) error {
	f, err := auditPageFilter(r.URL.Query())
	if err != nil {
		return err
	}
	list, older, newer, err := s.entries(r.Context(), f)
	if err != nil {
		return err
	}
	if accepts(r, "application/x-ndjson") {
		return jsonLines(w, list)
	}
	if list == nil {
		list = []fleet.Entry{}
	}
	body := map[string]any{"items": list}
	if older > 0 {
		body["before"] = older
	}
	if newer > 0 {
		body["after"] = newer
	}
	return writeJSON(w, http.StatusOK, body)
}

// entryWriter writes entries in one form.
type entryWriter interface {
	entry(e fleet.Entry) error
	flush() error
}

// exportAudit is the record, or what a filter leaves of it, as a file. It is written as it is read: who reads slowly
// keeps one page in memory and nothing in the database, and who stops reading is cut off.
func (s *server) exportAudit(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	f, err := auditFilter(q, "format")
	if err != nil {
		return err
	}
	format := q.Get("format")
	if format == "" {
		format = "jsonl"
	}
	media, ok := map[string]string{"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}[format]
	if !ok {
		return fleet.Invalid("format", "%q is not one of csv, jsonl", format)
	}
	select {
	case s.exports <- struct{}{}:
		defer func() { <-s.exports }()
	default:
		return &fleet.LimitError{What: "exports of the record", Retry: time.Minute}
	}
	ctx, cancel := context.WithTimeout(r.Context(), exportTimeout)
	defer cancel()
	r = r.WithContext(ctx)

	out := bufio.NewWriterSize(timely{w, http.NewResponseController(w)}, exportBuffer)
	var to entryWriter
	begin := func() (err error) {
		if to != nil {
			return nil
		}
		h := w.Header()
		h.Set("Content-Type", media)
		h.Set("Content-Disposition", `attachment; filename="audit-`+time.Now().UTC().Format("20060102T150405Z")+"."+format+`"`)
		if format == "csv" {
			to, err = newCSVEntries(out)
		} else {
			to = jsonEntries{json.NewEncoder(out)}
		}
		return err
	}
	for _, name := range narrowing {
		if q.Get(name) == "" {
			q.Del(name)
		}
	}
	q.Set("format", format)
	err = s.cfg.Audit.Export(ctx, callerOf(r), q.Encode(), f, func(page []fleet.Entry) error {
		// It can take minutes, and whoever is sent away meanwhile gets no more.
		switch now, err := s.authenticate(r); {
		case err != nil:
			return err
		case !now.May(fleet.PermAuditView, ""):
			return fleet.ErrForbidden
		}
		if err := begin(); err != nil {
			return err
		}
		for _, e := range page {
			if err := to.entry(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = begin() // of an empty file
	}
	if err == nil {
		err = errors.Join(to.flush(), out.Flush())
	}
	if err != nil {
		w.Header().Del("Content-Disposition") // an error is no file
	}
	return err
}

// timely gives each write a deadline of its own.
type timely struct {
	to io.Writer
	rc *http.ResponseController
}

// Write implements io.Writer.
func (t timely) Write(p []byte) (int, error) {
	if err := t.rc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return t.to.Write(p)
}

type jsonEntries struct{ enc *json.Encoder }

func (j jsonEntries) entry(e fleet.Entry) error { return j.enc.Encode(e) }
func (jsonEntries) flush() error                { return nil }

type csvEntries struct{ rows *inert.CSV }

func newCSVEntries(to io.Writer) (csvEntries, error) {
	rows, err := inert.NewCSV(to, "seq", "at", "actor", "via", "session", "addr", "action", "phase", "cluster", "cluster_uid", "as", "node",
		"node_uid", "batch", "outcome", "reason", "detail", "prev", "hash")
	return csvEntries{rows}, err
}

func (c csvEntries) entry(e fleet.Entry) error {
	return c.rows.Row(strconv.FormatInt(e.Seq, 10), stamp(e.At), e.Actor, e.Via, e.Session, e.Addr, e.Action, e.Phase, e.Cluster, e.ClusterUID,
		e.As, e.Node, e.NodeUID, e.Batch, e.Outcome, e.Reason, e.Detail, e.Prev, e.Hash)
}

func (c csvEntries) flush() error { return c.rows.Flush() }
