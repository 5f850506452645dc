package handlers

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/inert"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// recorded is a site with a real record of entries.
func recorded(t *testing.T, list ...fleet.Entry) (*site, *store.Store) {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	err = st.Tx(t.Context(), func(tx *store.Tx) error {
		for _, e := range list {
			if _, err := tx.AppendEntry(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return newSite(t, func(c *Config) { c.Audit = audit.New(st, slog.New(slog.DiscardHandler)) }), st
}

type auditList struct {
	Items  []fleet.Entry `json:"items"`
	Before int64         `json:"before"`
	After  int64         `json:"after"`
}

func (l auditList) seqs() (out []int64) {
	for _, e := range l.Items {
		out = append(out, e.Seq)
	}
	return out
}

func (s *site) audit(query string) (l auditList) {
	s.t.Helper()
	w := s.do(call{path: "/api/v1/audit?" + query, who: "admin"})
	if err := json.Unmarshal(w.Body.Bytes(), &l); err != nil || w.Code != http.StatusOK {
		s.t.Fatalf("%s: status %d, %v: %s", query, w.Code, err, w.Body)
	}
	return l
}

func TestAudit_Filters(t *testing.T) {
	t.Parallel()
	at := func(h int) time.Time { return time.Date(2026, 1, 1, h, 0, 0, 0, time.UTC) }
	s, _ := recorded(
		t,
		fleet.Entry{At: at(1), Actor: "ada", Action: "cordon", Cluster: "a", Node: "n1", Batch: "b1", Session: "s1", Outcome: "succeeded", ClusterUID: "u", As: "x"},
		fleet.Entry{At: at(2), Actor: "ada", Action: "cordon", Cluster: "a", Node: "n2", Batch: "b1", Session: "s1", Outcome: "failed"},
		fleet.Entry{At: at(3), Actor: "bob", Action: "signin", Session: "s2", Outcome: "denied"},
		fleet.Entry{At: at(4), Actor: "bob", Action: "drain", Cluster: "b", Node: "n1", Batch: "b2", Session: "s2"},
	)
	for query, want := range map[string][]int64{
		"": {4, 3, 2, 1}, "user=ada": {2, 1}, "cluster=a": {2, 1}, "node=n1": {4, 1}, "node=n1&cluster=a": {1}, "action=cordon": {2, 1},
		"outcome=denied": {3}, "batch=b1": {2, 1}, "session=s2": {4, 3}, "since=2026-01-01T03:00": {4, 3}, "until=2026-01-01T03:00:00Z": {2, 1},
		"user=ada&outcome=failed&batch=b1&session=s1&cluster=a&node=n2&action=cordon": {2},
		"user=&cluster=&node=&action=&outcome=&batch=&session=&since=&until=":         {4, 3, 2, 1},
		"user=" + url.QueryEscape("ada' OR 1=1 --"):                                   nil, "cluster=%25": nil,
	} {
		if got := s.audit(query).seqs(); !cmp.Equal(got, want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
	if e := s.audit("node=n1&cluster=a").Items[0]; e.ClusterUID != "u" || e.As != "x" {
		t.Errorf("%+v", e)
	}
	for query, field := range map[string]string{
		"outcome=good": "outcome", "since=soon": "since", "until=2026-13-01": "until", "since=2026-01-02&until=2026-01-02": "until",
		"before=0": "before", "after=x": "after", "after=1&before=9": "after", "limit=1001": "limit", "user=%00": "user", "node=a%0Ab": "node", "cluster=%ff": "cluster",
		"batch=" + strings.Repeat("x", 513): "batch", "user=ada&user=bob": "user", "colour=red": "colour", "q=x": "q", "format=csv": "format",
	} {
		for _, path := range []string{"/api/v1/audit?", "/audit?"} {
			w := s.do(call{path: path + query, who: "admin", header: map[string]string{"Accept": "application/json"}})
			if p := problemOf(t, w); w.Code != http.StatusUnprocessableEntity || p.Field != field {
				t.Errorf("%s%s: status %d, field %q, want %q", path, query, w.Code, p.Field, field)
			}
		}
	}
}

// Whoever pages back and forth sees every entry once in each direction, also while entries are added.
func TestAudit_PagesBothWays(t *testing.T) {
	t.Parallel()
	var list []fleet.Entry
	for i := range 23 {
		list = append(list, fleet.Entry{Action: []string{"cordon", "signin"}[i%2]})
	}
	s, st := recorded(t, list...)
	l := s.audit("limit=5&action=cordon")
	if l.After != 0 {
		t.Errorf("something is newer than the newest: %d", l.After)
	}
	down := l.seqs()
	if _, err := st.AppendEntry(t.Context(), fleet.Entry{Action: "cordon"}); err != nil {
		t.Fatal(err)
	}
	for l.Before > 0 {
		l = s.audit(fmt.Sprint("limit=5&action=cordon&before=", l.Before))
		down = append(down, l.seqs()...)
	}
	if want := []int64{23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1}; !cmp.Equal(down, want) {
		t.Errorf("down: %v, want %v", down, want)
	}
	var up []int64
	for l.After > 0 {
		l = s.audit(fmt.Sprint("limit=5&action=cordon&after=", l.After))
		up = append(up, l.seqs()...)
		if l.Before == 0 {
			t.Errorf("no way back from %v", up)
		}
	}
	if want := []int64{13, 11, 9, 7, 5, 23, 21, 19, 17, 15, 24}; !cmp.Equal(up, want) {
		t.Errorf("up: %v, want %v", up, want)
	}
	// The page has the same pages, and keeps what it is narrowed to.
	d := document(t, s.do(call{path: "/audit?limit=5&action=cordon&since=2026-01-01T10:30:05Z&before=13", who: "admin", header: html}))
	for rel, want := range map[string]string{
		"next": "/audit?action=cordon&before=3&limit=5&since=2026-01-01T10%3A30%3A05", "prev": "/audit?action=cordon&after=11&limit=5&since=2026-01-01T10%3A30%3A05",
	} {
		if got, _ := d.Find("a[rel=" + rel + "]").Attr("href"); got != want {
			t.Errorf("%s: %q, want %q", rel, got, want)
		}
	}
	if got, _ := d.Find("input[name=since]").Attr("value"); got != "2026-01-01T10:30:05" {
		t.Errorf("the form forgets since: %q", got)
	}
	if got, _ := d.Find("a[download]").First().Attr("href"); got != "/api/v1/audit/export?action=cordon&format=csv&since=2026-01-01T10%3A30%3A05" {
		t.Errorf("export %q", got)
	}
}

func TestAuditExport(t *testing.T) {
	t.Parallel()
	var list []fleet.Entry
	for i := range 2500 { // more than two pages
		list = append(list, fleet.Entry{Actor: []string{"ada", "bob"}[i%2], Action: "cordon", Node: fmt.Sprint("n", i), Reason: "=1+1\n\u202e", Cluster: "c", ClusterUID: "u", As: "-x"})
	}
	s, st := recorded(t, list...)
	whole, err := st.EntriesAfter(t.Context(), 0, 5000)
	if err != nil {
		t.Fatal(err)
	}
	get := func(query string) *httptest.ResponseRecorder {
		w := s.do(call{path: "/api/v1/audit/export?" + query, who: "admin", header: curl})
		if w.Code != http.StatusOK {
			t.Fatalf("%s: status %d: %s", query, w.Code, w.Body)
		}
		name, ok := strings.CutPrefix(w.Header().Get("Content-Disposition"), `attachment; filename="audit-`)
		if !ok || strings.Trim(name, `0123456789TZ.csvjonl"`) != "" || w.Header().Get("Content-Encoding") != "" {
			t.Errorf("headers %v", w.Header())
		}
		return w
	}
	// JSON lines are the entries, to the byte: whoever has the file can check the chain.
	w := get("format=jsonl")
	dec := json.NewDecoder(w.Body)
	var got []fleet.Entry
	for {
		var e fleet.Entry
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if e.Sum() != e.Hash {
			t.Fatalf("entry %d is not what was hashed", e.Seq)
		}
		got = append(got, e)
	}
	if diff := cmp.Diff(whole, got); diff != "" || w.Header().Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("%q (-want +got):\n%.2000s", w.Header().Get("Content-Type"), diff)
	}
	// CSV says the same in cells that do nothing.
	w = get("format=csv&user=bob&node=&cluster=c")
	rows, err := csv.NewReader(w.Body).ReadAll()
	if err != nil || len(rows) != 1251 || w.Header().Get("Content-Type") != "text/csv; charset=utf-8" {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	for i, name := range rows[0] {
		e := whole[2*2-1]
		want := map[string]string{
			"seq": "4", "at": stamp(e.At), "actor": "bob", "action": "cordon", "cluster": "c", "cluster_uid": "u", "as": "'-x", "node": "n3",
			"reason": `'=1+1\n\u202e`, "prev": inert.Cell(e.Prev), "hash": e.Hash,
		}
		if rows[2][i] != want[name] {
			t.Errorf("%s: %q, want %q", name, rows[2][i], want[name])
		}
	}
	// That it was done is on record, and what was asked for.
	l := s.audit("action=audit.export")
	var said []string
	for _, e := range l.Items {
		said = append(said, e.Actor+" "+e.Outcome+" "+e.Detail)
	}
	if want := []string{"admin succeeded cluster=c&format=csv&user=bob", "admin succeeded format=jsonl"}; !cmp.Equal(said, want) {
		t.Errorf("on record: %q, want %q", said, want)
	}
	if w := get("format=jsonl&user=nobody"); w.Body.Len() != 0 {
		t.Errorf("nothing is %q", w.Body)
	}
	if w := get("format=csv&user=nobody"); strings.Count(w.Body.String(), "\n") != 1 {
		t.Errorf("no rows are %q", w.Body)
	}
	for query, field := range map[string]string{"format=xls": "format", "outcome=x": "outcome", "limit=5": "limit", "before=5": "before", "format=csv&format=jsonl": "format"} {
		w := s.do(call{path: "/api/v1/audit/export?" + query, who: "admin", header: curl})
		if p := problemOf(t, w); w.Code != http.StatusUnprocessableEntity || p.Field != field {
			t.Errorf("%s: status %d, field %q", query, w.Code, p.Field)
		}
	}
}

// feed is a record whose export goes on as the test says.
type feed struct {
	record
	each func(n int, page func([]fleet.Entry) error) (again bool, err error)
}

func (f feed) Export(_ context.Context, _ fleet.Caller, _ string, _ fleet.AuditFilter, each func([]fleet.Entry) error) error {
	for n := 0; ; n++ {
		if again, err := f.each(n, each); err != nil || !again {
			return err
		}
	}
}

func fedBy(t *testing.T, each func(n int, page func([]fleet.Entry) error) (bool, error)) *site {
	t.Helper()
	return newSite(t, func(c *Config) { c.Audit = feed{record{}, each} })
}

// What cannot be recorded is not exported, and an error is not a file.
func TestAuditExport_Refused(t *testing.T) {
	t.Parallel()
	s := fedBy(t, func(int, func([]fleet.Entry) error) (bool, error) { return false, errors.New("the disk is full") })
	w := s.do(call{path: "/api/v1/audit/export?format=csv", who: "admin", header: curl})
	if p := problemOf(t, w); w.Code != http.StatusInternalServerError || w.Header().Get("Content-Disposition") != "" || strings.Contains(p.Detail, "disk") {
		t.Errorf("status %d, %v, %+v", w.Code, w.Header(), p)
	}
	s = fedBy(t, func(_ int, page func([]fleet.Entry) error) (bool, error) {
		return false, errors.Join(page([]fleet.Entry{{Seq: 1}}), fleet.ErrUnavailable)
	})
	w = s.do(call{path: "/api/v1/audit/export?format=csv", who: "admin", header: curl})
	if problemOf(t, w); w.Code != http.StatusServiceUnavailable || w.Header().Get("Content-Disposition") != "" {
		t.Errorf("status %d, %v", w.Code, w.Header())
	}
}

// An export that breaks off is not taken for a whole one, whoever is signed out gets no more of it, each write has a
// deadline of its own, and there are never more than a few at once.
func TestAuditExport_Ends(t *testing.T) {
	t.Parallel()
	big := make([]fleet.Entry, 1000)
	for i := range big {
		big[i] = fleet.Entry{Seq: int64(i), Detail: strings.Repeat("x", 100)}
	}
	begun, goOn := make(chan struct{}), make(chan struct{})
	s := fedBy(t, func(n int, page func([]fleet.Entry) error) (bool, error) {
		if n == 1 {
			begun <- struct{}{}
			<-goOn
		}
		return n < 50, page(big)
	})
	server := httptest.NewServer(s.h)
	t.Cleanup(server.Close)
	get := func() (*http.Response, error) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/api/v1/audit/export", nil)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Authorization", "Bearer admin")
		return server.Client().Do(r)
	}
	errs := make(chan error)
	for range maxExports {
		go func() {
			res, err := get()
			if err == nil {
				_, err = io.Copy(io.Discard, res.Body)
				err = errors.Join(err, res.Body.Close())
			}
			errs <- err
		}()
	}
	for range maxExports {
		<-begun
	}
	res, err := get()
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") != "60" {
		t.Errorf("one too many: %s, %v", res.Status, res.Header)
	}
	if err := res.Body.Close(); err != nil {
		t.Error(err)
	}
	s.end("admin")
	close(goOn)
	for range maxExports {
		if err := <-errs; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the rest of a file that was cut off: %v", err)
		}
	}
}

func TestAuditExport_Deadlines(t *testing.T) {
	t.Parallel()
	var w *armed
	var seen []time.Time
	s := fedBy(t, func(n int, page func([]fleet.Entry) error) (bool, error) {
		w.write = time.Time{}
		err := page([]fleet.Entry{{Detail: strings.Repeat("x", 2*exportBuffer)}})
		seen = append(seen, w.write)
		return n == 0, err
	})
	w = &armed{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://knm.test/api/v1/audit/export", nil)
	r.AddCookie(&http.Cookie{Name: "knm", Value: "admin"})
	before := time.Now()
	s.h.ServeHTTP(w, r)
	if len(seen) != 2 || seen[0].Before(before.Add(writeTimeout)) || seen[1].Before(seen[0]) {
		t.Errorf("deadlines %v", seen)
	}
}
