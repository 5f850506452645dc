package realtime

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Bounds of a query's text. A person types far less; a program that needs more wants a label selector.
const (
	maxText  = 1024
	maxTerms = 32
)

const defaultPerPage = 50

var (
	queryKeys = []string{"status", "role", "zone", "type", "version", "taint", "cordoned", "label"}
	statuses  = []string{string(fleet.StatusReady), string(fleet.StatusNotReady), string(fleet.StatusUnknown), statusPressure}
	sorts     = []string{"name", "cluster", "status", "role", "zone", "type", "version", "cpu", "memory", "pods", "age"}
	perPages  = []int{20, 50, 100, 200}
)

// statusPressure selects nodes with any trouble beside Ready; it is one of the counters, so it is one of the words.
const statusPressure = "Pressure"

// Query says which nodes, in which order, which page of them. Its predicate is compiled once and is the only one there
// is: list, counters, selection, stream and JSON all ask Match.
type Query struct {
	Cluster string // "" for all clusters
	Text    string // q as it was given
	Sort    string // a column, with a leading - for descending; never empty
	Page    int    // from 1
	PerPage int
	Group   string // as it was given: zone, label:<key>; "" for none

	sight fleet.Sight
	tag   string // names the sight in cursors; see Query.cursorTag
	terms []term
	text  string                  // canonical form of the terms
	only  *fleet.NodeRef          // the one node of a node page's stream
	group *grouping               // nil for none
	cmp   func(a, b *version) int // within a group
}

type term struct {
	canon string
	not   bool
	match func(*fleet.Node) bool
	any   []trait // every node that matches has one of these; nil if that cannot be said
}

// ParseQuery reads the query of a node list from the values of a URL or a form, for somebody who sees some clusters: the
// others do not exist for it. A cluster given by the path wins over the parameters cluster and cluster_name. What it does
// not understand is a *fleet.FieldError that names the offending part and what would be allowed.
func ParseQuery(sight fleet.Sight, cluster string, v url.Values) (*Query, error) {
	q := &Query{Cluster: cluster, Sort: "name", Page: 1, PerPage: defaultPerPage, sight: sight}
	for _, field := range []string{"cluster", "cluster_name", "sort", "page", "per_page", "group"} {
		if n := len(v[field]); n > 1 {
			return nil, fleet.Invalid(field, "is given %d times", n)
		}
	}
	a, b := v.Get("cluster"), v.Get("cluster_name")
	if a != "" && b != "" && a != b {
		return nil, fleet.Invalid("cluster_name", "%q and cluster %q differ", b, a)
	}
	if q.Cluster == "" {
		q.Cluster = a + b
		if a != "" {
			q.Cluster = a
		}
	}
	q.tag = q.cursorTag()
	if s := v.Get("sort"); s != "" {
		if !slices.Contains(sorts, strings.TrimPrefix(s, "-")) {
			return nil, fieldError("sort", "query.sort", s, sorts, "%q is not a column to sort by", s)
		}
		q.Sort = s
	}
	group, err := parseGroup(v.Get("group"))
	if err != nil {
		return nil, err
	}
	q.Group, q.group = v.Get("group"), group
	q.cmp = order(q.Sort)
	if s := v.Get("page"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, fieldError("page", "query.page", s, nil, "%q is not a page number", s)
		}
		q.Page = n
	}
	if s := v.Get("per_page"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || !slices.Contains(perPages, n) {
			return nil, fieldError("per_page", "query.per_page", s, []string{"20", "50", "100", "200"}, "%q is not a page size", s)
		}
		q.PerPage = n
	}
	q.Text = strings.TrimSpace(strings.Join(v["q"], " "))
	if err := q.parseText(); err != nil {
		return nil, err
	}
	return q, nil
}

// ungrouped is the query for those who see no groups. It shares its view with everybody who asked for none.
func (q *Query) ungrouped() *Query {
	if q.group == nil {
		return q
	}
	plain := *q
	plain.Group, plain.group = "", nil
	return &plain
}

// nodeQuery matches exactly one node.
func nodeQuery(sight fleet.Sight, ref fleet.NodeRef) *Query {
	q := &Query{Cluster: ref.Cluster, Sort: "name", Page: 1, PerPage: perPages[0], only: &ref, cmp: order("name"), sight: sight}
	q.tag = q.cursorTag()
	return q
}

// Sees tells whether a cluster is one of the query's.
func (q *Query) Sees(cluster string) bool {
	return (q.Cluster == "" || q.Cluster == cluster) && q.sight.Sees(cluster)
}

// blind tells that the query names a cluster which is out of sight.
func (q *Query) blind() bool { return q.Cluster != "" && !q.sight.Sees(q.Cluster) }

// sightKey is the same for queries that see the same clusters. A cluster by itself is the same to all who see it.
func (q *Query) sightKey() string {
	switch {
	case q.Cluster == "":
		return q.sight.Key()
	case q.blind():
		return "blind"
	}
	return ""
}

// cursorTag is what cursors carry beside the revision, "" for whoever sees everything that was asked for. A cursor says
// that the client has what there was up to a revision; somebody with another sight, though it were the same person after
// a change of their grants, has other nodes, and begins anew.
func (q *Query) cursorTag() string { return sightTag(q.sightKey()) }

func sightTag(key string) string {
	if key == "" || key == fleet.SeesAll().Key() {
		return ""
	}
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:6])
}

// fieldError names the part, and what is allowed instead when that is a short list.
func fieldError(field, key, part string, allowed []string, format string, args ...any) *fleet.FieldError {
	e := fleet.Invalid(field, format, args...)
	e.Key, e.Args = key, map[string]string{"Part": part}
	if len(allowed) > 0 {
		e.Args["Allowed"] = strings.Join(allowed, ", ")
		e.Message += ": use one of " + e.Args["Allowed"]
	}
	return e
}

// Match tells whether the query selects the node. The cluster is part of the question, and so is who asks.
func (q *Query) Match(n *fleet.Node) bool { return q.Sees(n.Ref.Cluster) && q.selects(n) }

// selects is Match for a node of a cluster that the query sees.
func (q *Query) selects(n *fleet.Node) bool {
	if q.only != nil {
		return n.Ref == *q.only
	}
	for i := range q.terms {
		if q.terms[i].match(n) == q.terms[i].not {
			return false
		}
	}
	return true
}

// Key is the same for all queries that show the same rows in the same order on the same page.
func (q *Query) Key() string {
	return q.viewKey() + "\x00" + strconv.Itoa(q.Page) + "\x00" + strconv.Itoa(q.PerPage)
}

// viewKey leaves the page out: all pages of a list share one view.
func (q *Query) viewKey() string {
	if q.only != nil {
		return "node\x00" + q.sightKey() + "\x00" + q.only.Cluster + "\x00" + q.only.Name
	}
	return "list\x00" + q.sightKey() + "\x00" + q.Cluster + "\x00" + q.text + "\x00" + q.Sort + "\x00" + q.Group
}

// all tells that the query selects every node of its clusters.
func (q *Query) all() bool { return len(q.terms) == 0 && q.only == nil }

func (q *Query) parseText() error {
	if len(q.Text) > maxText {
		return fieldError("q", "query.long", strconv.Itoa(len(q.Text)), nil, "is longer than %d bytes", maxText)
	}
	if !utf8.ValidString(q.Text) || strings.ContainsFunc(q.Text, unicode.IsControl) {
		return fieldError("q", "query.text", "", nil, "contains characters that are no text")
	}
	tokens, err := scan(q.Text)
	if err != nil {
		return err
	}
	if len(tokens) > maxTerms {
		return fieldError("q", "query.terms", strconv.Itoa(len(tokens)), nil, "has more than %d terms", maxTerms)
	}
	for _, t := range tokens {
		compiled, err := compile(t)
		if err != nil {
			return err
		}
		q.terms = append(q.terms, compiled)
	}
	canon := make([]string, len(q.terms))
	for i, t := range q.terms {
		canon[i] = t.canon
		if t.not {
			canon[i] = "-" + t.canon
		}
	}
	slices.Sort(canon)
	q.text = strings.Join(slices.Compact(canon), " ")
	return nil
}

// token is one term as written: [-][key:]value, where the value may be quoted.
type token struct {
	raw    string
	not    bool
	key    string // "" for free text
	value  string
	quoted bool
}

// scan splits the text at spaces outside double quotes. Inside quotes \" and \\ stand for themselves.
func scan(s string) ([]token, error) {
	var tokens []token
	for {
		s = strings.TrimLeftFunc(s, unicode.IsSpace)
		if s == "" {
			return tokens, nil
		}
		var t token
		start := s
		if t.not = strings.HasPrefix(s, "-"); t.not {
			s = s[1:]
		}
		if !strings.HasPrefix(s, `"`) {
			if i := strings.IndexFunc(s, func(r rune) bool { return r == ':' || r == '"' || unicode.IsSpace(r) }); i > 0 && s[i] == ':' {
				t.key, s = s[:i], s[i+1:]
			}
		}
		if strings.HasPrefix(s, `"`) {
			value, rest, err := unquote(s)
			if err != nil {
				return nil, err
			}
			if rest != "" && !unicode.IsSpace(firstRune(rest)) {
				return nil, fieldError("q", "query.quote", word(start), nil, "%q goes on after its closing quote", word(start))
			}
			t.value, t.quoted, s = value, true, rest
		} else {
			i := strings.IndexFunc(s, unicode.IsSpace)
			if i < 0 {
				i = len(s)
			}
			t.value, s = s[:i], s[i:]
			if strings.Contains(t.value, `"`) {
				return nil, fieldError("q", "query.quote", word(start), nil, "%q has a quote inside a word; quote the whole value", word(start))
			}
		}
		t.raw = start[:len(start)-len(s)]
		switch {
		case t.key != "" && !slices.Contains(queryKeys, t.key):
			return nil, fieldError("q", "query.key", t.key, queryKeys, "%q is not a key", t.key)
		case t.value == "" && !t.quoted:
			return nil, fieldError("q", "query.value", t.raw, nil, "%q needs a value", t.raw)
		}
		tokens = append(tokens, t)
	}
}

func firstRune(s string) rune { r, _ := utf8.DecodeRuneInString(s); return r }

func word(s string) string {
	if i := strings.IndexFunc(s, unicode.IsSpace); i >= 0 {
		return s[:i]
	}
	return s
}

func unquote(s string) (value, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], nil
		case c == '\\' && i+1 < len(s) && (s[i+1] == '"' || s[i+1] == '\\'):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", fieldError("q", "query.open_quote", s, nil, "%s has no closing quote", s)
}

// quote is what unquote reads.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func compile(t token) (term, error) {
	out := term{not: t.not}
	if t.key == "" {
		needle := strings.ToLower(t.value)
		out.canon = quote(needle)
		out.match = func(n *fleet.Node) bool { return mentions(n, needle) }
		return out, nil
	}
	if t.key == "label" {
		selector, err := labels.Parse(t.value)
		if err != nil {
			e := fieldError("q", "query.label", t.value, nil, "label selector %q: %s", t.value, err)
			return term{}, e
		}
		out.canon = "label:" + quote(selector.String())
		out.match = func(n *fleet.Node) bool { return selector.Matches(labels.Set(n.Labels)) }
		return out, nil
	}
	values := []string{t.value}
	if !t.quoted {
		values = strings.Split(t.value, ",")
	}
	matches := make([]func(*fleet.Node) bool, 0, len(values))
	canon := make([]string, 0, len(values))
	for _, v := range values {
		if v == "" && !t.quoted {
			return term{}, fieldError("q", "query.value", t.raw, nil, "%q has an empty value", t.raw)
		}
		m, c, err := compileValue(t.key, v)
		if err != nil {
			return term{}, err
		}
		matches, canon = append(matches, m), append(canon, quote(c))
		if t, ok := traitOf(t.key, c); ok {
			out.any = append(out.any, t)
		}
	}
	slices.Sort(canon)
	out.canon = t.key + ":" + strings.Join(slices.Compact(canon), ",")
	out.match = matches[0]
	if len(matches) > 1 {
		out.match = func(n *fleet.Node) bool {
			for _, m := range matches {
				if m(n) {
					return true
				}
			}
			return false
		}
	}
	return out, nil
}

// traitOf is the property that a value in canonical form asks for, if it is one of the index.
func traitOf(key, canon string) (trait, bool) {
	switch key {
	case "zone":
		return trait{facetZone, canon}, true
	case "role":
		return trait{facetRole, canon}, true
	case "type":
		return trait{facetType, canon}, true
	case "status":
		return trait{facetStatus, canon}, true
	case "cordoned":
		return trait{facetCordoned, canon}, true
	}
	return trait{}, false
}

// compileValue returns the predicate of one value and the value's canonical form.
func compileValue(key, v string) (match func(*fleet.Node) bool, canon string, err error) {
	switch key {
	case "status":
		i := slices.IndexFunc(statuses, func(s string) bool { return strings.EqualFold(s, v) })
		if i < 0 {
			return nil, "", fieldError("q", "query.status", v, statuses, "%q is not a status", v)
		}
		canon = statuses[i]
		if canon == statusPressure {
			return func(n *fleet.Node) bool { return len(n.Pressure) > 0 }, canon, nil
		}
		return func(n *fleet.Node) bool { return string(n.Status) == canon }, canon, nil
	case "cordoned":
		switch strings.ToLower(v) {
		case "true", "yes":
			return func(n *fleet.Node) bool { return !n.Schedulable }, "true", nil
		case "false", "no":
			return func(n *fleet.Node) bool { return n.Schedulable }, "false", nil
		}
		return nil, "", fieldError("q", "query.cordoned", v, []string{"true", "false"}, "cordoned:%s is not an answer", v)
	case "role":
		if v == "" {
			return func(n *fleet.Node) bool { return len(n.Roles) == 0 }, v, nil
		}
		return func(n *fleet.Node) bool { return slices.Contains(n.Roles, v) }, v, nil
	case "zone":
		return func(n *fleet.Node) bool { return n.Zone() == v }, v, nil
	case "type":
		return func(n *fleet.Node) bool { return n.InstanceType() == v }, v, nil
	case "version":
		canon = strings.TrimPrefix(v, "v")
		return func(n *fleet.Node) bool { return versionHas(n.Info.KubeletVersion, canon) }, canon, nil
	case "taint":
		match, err := compileTaint(v)
		return match, v, err
	}
	return nil, "", fmt.Errorf("query key %q has no predicate", key) // queryKeys and this switch differ
}

// versionHas tells whether the version is the wanted one or a finer one of it: 1.3 has 1.3.5 but not 1.34.
func versionHas(version, want string) bool {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(version, "v"), want)
	return ok && (rest == "" || want == "" || rest[0] < '0' || rest[0] > '9')
}

var effects = []string{string(fleet.NoSchedule), string(fleet.PreferNoSchedule), string(fleet.NoExecute)}

// compileTaint reads key[=value][:Effect], or an effect alone.
func compileTaint(v string) (func(*fleet.Node) bool, error) {
	if v == "" {
		return func(n *fleet.Node) bool { return len(n.Taints) == 0 }, nil
	}
	id, effect, hasEffect := strings.Cut(v, ":")
	if slices.Contains(effects, v) {
		id, effect, hasEffect = "", v, true
	}
	if hasEffect && !slices.Contains(effects, effect) {
		return nil, fieldError("q", "query.effect", effect, effects, "%q is not a taint effect", effect)
	}
	key, value, hasValue := strings.Cut(id, "=")
	if hasValue && key == "" {
		return nil, fieldError("q", "query.value", v, nil, "taint %q has no key", v)
	}
	return func(n *fleet.Node) bool {
		for _, t := range n.Taints {
			if (key == "" || t.Key == key) && (!hasValue || t.Value == value) && (!hasEffect || string(t.Effect) == effect) {
				return true
			}
		}
		return false
	}, nil
}

// mentions is the free text search, over what a row shows. The needle is in lower case.
func mentions(n *fleet.Node, needle string) bool {
	if containsFold(n.Ref.Name, needle) || containsFold(n.Ref.Cluster, needle) ||
		containsFold(n.Zone(), needle) || containsFold(n.InstanceType(), needle) ||
		containsFold(n.Info.KubeletVersion, needle) || containsFold(n.Info.OSImage, needle) {
		return true
	}
	for _, a := range n.Addresses {
		if containsFold(a.Address, needle) {
			return true
		}
	}
	for _, r := range n.Roles {
		if containsFold(r, needle) {
			return true
		}
	}
	return n.Cordon != nil && (containsFold(n.Cordon.Reason, needle) || containsFold(n.Cordon.By, needle))
}

// containsFold is strings.Contains without regard to case; almost everything it sees is lower-case ASCII already.
func containsFold(s, lower string) bool {
	return strings.Contains(s, lower) || hasUpper(s) && strings.Contains(strings.ToLower(s), lower)
}

func hasUpper(s string) bool {
	for i := range len(s) {
		if c := s[i]; c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf {
			return true
		}
	}
	return false
}
