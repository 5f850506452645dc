package views

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Every URL of ours is made here, from constants and escaped parts. They all begin with a slash, so none can carry a
// scheme of its own.

func clusterURL(cluster string) string { return "/clusters/" + url.PathEscape(cluster) + "/nodes" }

func clusterRetryURL(cluster string) string { return "/clusters/" + url.PathEscape(cluster) + "/retry" }

func clusterAcceptURL(cluster string) string {
	return "/clusters/" + url.PathEscape(cluster) + "/accept"
}

func nodeURL(ref fleet.NodeRef) string {
	return clusterURL(ref.Cluster) + "/" + url.PathEscape(ref.Name)
}

func nodeJSONURL(ref fleet.NodeRef) string {
	return "/api/v1/nodes/" + url.PathEscape(ref.Cluster) + "/" + url.PathEscape(ref.Name) + "?full=1"
}

func batchURL(id string) string       { return "/batches/" + url.PathEscape(id) }
func batchEventsURL(id string) string { return "/api/v1/batches/" + url.PathEscape(id) + "/events" }

// path is the page's own path for the query: the fleet or one cluster.
func (q Query) path() string {
	if q.Cluster != "" {
		return clusterURL(q.Cluster)
	}
	return "/nodes"
}

// url is the page of the query; what has its default is left out, so that shared links stay short.
func (q Query) url() string {
	v := url.Values{}
	if q.Q != "" {
		v.Set("q", q.Q)
	}
	if q.Sort != "" && q.Sort != "name" {
		v.Set("sort", q.Sort)
	}
	if q.Group != "" {
		v.Set("group", q.Group)
	}
	if q.Page > 1 {
		v.Set("page", strconv.Itoa(q.Page))
	}
	if q.PerPage != 0 && q.PerPage != DefaultPerPage {
		v.Set("per_page", strconv.Itoa(q.PerPage))
	}
	if len(v) == 0 {
		return q.path()
	}
	return q.path() + "?" + v.Encode()
}

func (q Query) at(page int) string       { q.Page = page; return q.url() }
func (q Query) sized(perPage int) string { q.PerPage, q.Page = perPage, 1; return q.url() }

// sorted is the link of a column's header: the column first upwards, then downwards.
func (q Query) sorted(key string) string {
	if q.sortKey() == key {
		if strings.HasPrefix(q.Sort, "-") {
			q.Sort = key
		} else {
			q.Sort = "-" + key
		}
	} else {
		q.Sort = key
	}
	q.Page = 1
	return q.url()
}

func (q Query) sortKey() string {
	if q.Sort == "" {
		return "name"
	}
	return strings.TrimPrefix(q.Sort, "-")
}

// ariaSort is what the header of the column says to a screen reader.
func (q Query) ariaSort(key string) string {
	switch {
	case q.sortKey() != key:
		return "none"
	case strings.HasPrefix(q.Sort, "-"):
		return "descending"
	}
	return "ascending"
}

// refsURL answers with every node that matches, for selecting all of them.
func (q Query) refsURL() string {
	v := url.Values{}
	if q.Cluster != "" {
		v.Set("cluster_name", q.Cluster)
	}
	if q.Q != "" {
		v.Set("q", q.Q)
	}
	u := "/api/v1/nodes/refs"
	if len(v) > 0 {
		u += "?" + v.Encode()
	}
	return u
}

// view names what a selection belongs to: paging, sorting and grouping keep it, another filter starts anew.
func (q Query) view() string { return q.Cluster + "\n" + q.Q }

// DefaultPerPage is the number of rows of a page when the URL does not say.
const DefaultPerPage = 50

// PerPages are the sizes of a page that a URL may ask for.
var PerPages = []int{20, 50, 100, 200}

// terms splits the text of a query at spaces outside of double quotes, keeping every term as it was typed. It reads
// quotes as the query language does, where a backslash takes the meaning from a quote.
func terms(q string) []string {
	var out []string
	start, quoted := -1, false
	for i := 0; i < len(q); i++ {
		switch c := q[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
			if start < 0 {
				start = i
			}
		case (c == ' ' || c == '\t') && !quoted:
			if start >= 0 {
				out = append(out, q[start:i])
			}
			start = -1
		case start < 0:
			start = i
		}
	}
	if start >= 0 {
		out = append(out, q[start:])
	}
	return out
}

// term writes key:value as the query language reads it.
func term(key, value string) string {
	if value == "" || strings.ContainsAny(value, " \t,\"\\") {
		value = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value) + `"`
	}
	return key + ":" + value
}

// has tells whether the query holds exactly this term.
func (q Query) has(key, value string) bool {
	want := term(key, value)
	for _, t := range terms(q.Q) {
		if strings.EqualFold(t, want) {
			return true
		}
	}
	return false
}

// with is the link that sets the term, in place of every other value of its key, or takes it away if it is there.
func (q Query) with(key, value string) string {
	on := q.has(key, value)
	keep := make([]string, 0, 4)
	for _, t := range terms(q.Q) {
		if k, _, ok := strings.Cut(t, ":"); !ok || !strings.EqualFold(strings.TrimPrefix(k, "-"), key) {
			keep = append(keep, t)
		}
	}
	if !on {
		keep = append(keep, term(key, value))
	}
	q.Q, q.Page = strings.Join(keep, " "), 1
	return q.url()
}

// value is the value the query asks for by key, "" for none.
func (q Query) value(key string) string {
	for _, t := range terms(q.Q) {
		if k, v, ok := strings.Cut(t, ":"); ok && strings.EqualFold(k, key) {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

// grouped is the link that groups the list, and keeps everything else of it.
func (q Query) grouped(by string) string { q.Group, q.Page = by, 1; return q.url() }

func (q Query) plain() string { q.Q, q.Page = "", 1; return q.url() }

// langURL is the same page in another language.
func langURL(path, lang string) string { return withParam(path, "lang", lang) }

// withParam sets one parameter of a path of ours. A path that cannot be read becomes the start page.
func withParam(path, key, value string) string {
	u, err := url.Parse(path)
	if err != nil || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") {
		return "/nodes?" + url.Values{key: {value}}.Encode()
	}
	v := u.Query()
	v.Set(key, value)
	return u.EscapedPath() + "?" + v.Encode()
}

func loginURL(path string) string {
	if path == "" {
		return "/login"
	}
	return "/login?" + url.Values{"next": {path}}.Encode()
}

// signInAgainURL is the sign-in page for somebody who is signed in.
const signInAgainURL = "/login?again=1"

func batchesURL(f fleet.BatchFilter) string {
	v := url.Values{}
	for name, value := range map[string]string{"state": string(f.State), "user": f.User, "cluster": f.Cluster, "since": day(f.Since)} {
		if value != "" {
			v.Set(name, value)
		}
	}
	if len(v) == 0 {
		return "/batches"
	}
	return "/batches?" + v.Encode()
}

func withState(f fleet.BatchFilter, s fleet.BatchState) fleet.BatchFilter { f.State = s; return f }
func withUser(f fleet.BatchFilter, user string) fleet.BatchFilter         { f.User = user; return f }
