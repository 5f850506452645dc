package views

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/PuerkitoBio/goquery"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/static"
)

func isPage(name string) bool { return strings.HasPrefix(name, "page-") }

// fragments are what streams carry.
var fragments = []string{"row", "cluster-row", "cluster-lost", "cluster-other", "badge", "badge-lost", "badge-lacks", "cluster-lacks", "item", "item-skipped", "progress", "counts", "panel", "group", "group-none", "item-drain", "item-done", "progress-paused", "panel-drain"}

func document(t *testing.T, page []byte) *goquery.Document {
	t.Helper()
	d, err := goquery.NewDocumentFromReader(bytes.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestFragments_Golden(t *testing.T) {
	t.Parallel()
	for _, lang := range Languages {
		all := samples(plainly, lang)
		for _, name := range fragments {
			got, err := Fragment(all[name])
			if err != nil {
				t.Fatal(err)
			}
			// One element per line, so that a difference can be read.
			got = append(bytes.ReplaceAll(got, []byte("><"), []byte(">\n<")), '\n')
			file := filepath.Join("testdata", name+"."+lang+".html")
			if *update {
				if err := os.WriteFile(file, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("%s in %s (-want +got); rewrite with -update if that is right:\n%s", name, lang, d)
			}
		}
	}
}

// copied is what a button copies: commands, a line each.
var copied = regexp.MustCompile(`(?:data-copy|title)="[^"]*"`)

// A stream's message ends at a line break, so the templates must write none; and what a value brings along must come out
// as the same text.
func TestFragment_IsOneLine(t *testing.T) {
	t.Parallel()
	for _, name := range fragments {
		raw := copied.ReplaceAll(render(t, samples(plainly, "en")[name]), nil)
		if bytes.ContainsAny(raw, "\r\n") {
			t.Errorf("%s: the template itself writes a line break: %q", name, raw)
		}
		evil := func(s string) string { return s + "\r\nid: 7\n\ndata: x\r\revent: bye\n" }
		got, err := Fragment(samples(evil, "en")[name])
		if err != nil {
			t.Fatal(err)
		}
		if bytes.ContainsAny(got, "\r\n") {
			t.Errorf("%s: line break in %q", name, got)
		}
	}
	got, err := Fragment(NodeRowView(NodeRow{Lang: "en", Node: &fleet.Node{Ref: fleet.NodeRef{Cluster: "c", Name: "a\nb"}}}))
	if err != nil {
		t.Fatal(err)
	}
	d := document(t, []byte("<table>"+string(got)+"</table>"))
	if ref, _ := d.Find("tr").Attr("data-ref"); ref != "c/a\nb" {
		t.Errorf("data-ref %q, want the line break kept", ref)
	}
	if text := d.Find(".open").Text(); text != "a\nb" {
		t.Errorf("text %q, want the line break kept", text)
	}
}

// Rows are rendered once and sent to everybody: nothing in them may depend on who looks or when, and nothing in them may
// be an action, since an action needs the nonce of a page.
func TestFragments_AreForEverybody(t *testing.T) {
	t.Parallel()
	for _, name := range fragments {
		for _, node := range mustParse(t, render(t, samples(plainly, "en")[name])) {
			walk(node, func(n *html.Node) {
				for _, a := range n.Attr {
					if strings.HasPrefix(a.Key, "hx-") && a.Key != "hx-swap-oob" || strings.Contains(a.Key, "nonce") || strings.HasPrefix(a.Key, "on") || a.Key == "style" {
						t.Errorf("%s: <%s %s=%q>", name, n.Data, a.Key, a.Val)
					}
				}
				if n.Data == "time" {
					if got := text(n); !strings.HasSuffix(got, " UTC") {
						t.Errorf("%s: a time that ticks: %q", name, got)
					}
				}
			})
		}
	}
}

func text(n *html.Node) string {
	var b strings.Builder
	walk(n, func(n *html.Node) {
		if n.Type == html.TextNode {
			b.WriteString(n.Data)
		}
	})
	return b.String()
}

// mustParse reads a page, or a fragment where its first element belongs.
func mustParse(t *testing.T, b []byte) []*html.Node {
	t.Helper()
	s := strings.TrimSpace(string(b))
	if !strings.HasPrefix(strings.ToLower(s), "<!doctype") {
		// As htmx reads a message: inside a template, where rows may stand without a table.
		s = "<template>" + s + "</template>"
	}
	n, err := html.Parse(strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	return []*html.Node{n}
}

func walk(n *html.Node, f func(*html.Node)) {
	f(n)
	for c := range n.ChildNodes() {
		walk(c, f)
	}
}

// skeleton is everything of a document but its texts and the values of attributes.
func skeleton(t *testing.T, b []byte) string {
	t.Helper()
	var out strings.Builder
	for _, n := range mustParse(t, b) {
		walk(n, func(n *html.Node) {
			if n.Type == html.CommentNode {
				fmt.Fprintln(&out, "<!-- -->")
			}
			if n.Type == html.ElementNode {
				names := make([]string, len(n.Attr))
				for i, a := range n.Attr {
					names[i] = a.Key
				}
				slices.Sort(names)
				fmt.Fprintf(&out, "<%s %s>\n", n.Data, strings.Join(names, " "))
			}
		})
	}
	return out.String()
}

var payloads = []string{
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `'><svg/onload=alert(1)>`, `" onmouseover="alert(1)`, `' hx-get='/evil`,
	"` onload=alert(1) ", `javascript:alert(1)`, ` hx-on:click="alert(1)" `, `</td></tr></table><script>x</script>`, `</title><script>x</script>`,
	`</textarea><script>x</script>`, `<hx-partial hx-target="#rows">x</hx-partial>`, `<template><script>x</script></template>`, `<!--`, `-->`, `]]>`, `&lt;script&gt;`, `&#60;script&#62;`,
	`<a href="javascript:x">y</a>`, `<iframe srcdoc="x">`, `<base href=//evil>`, `<meta http-equiv=refresh content=0>`, `<form action=//evil>`, `<style>*{}</style>`,
	`<link rel=stylesheet href=//evil>`, `{{.}}`, `${alert(1)}`, "\u2028alert(1)", "\x00<script>", `<math><mi//xlink:href="data:x,<script>">`, `<tr hx-swap-oob="true">`,
	`//evil.example/x`, `\\evil`, `/../../x`, `%22%3E%3Cscript%3E`, `" autofocus onfocus=alert(1) x="`,
}

// What a cluster or a person writes stays text: every page and fragment has the elements and attributes it has with
// harmless texts, whatever the texts are.
func TestHostileTexts_ChangeNoMarkup(t *testing.T) {
	t.Parallel()
	for _, lang := range Languages {
		// The words around decide some branches; the sample keeps those that the code compares with.
		want := map[string]string{}
		for name, c := range samples(func(s string) string { return s + "x" }, lang) {
			want[name] = skeleton(t, render(t, c))
		}
		// All at once: TestHostileTexts_500 has more of them, and does not build the trees that a browser would.
		for _, p := range []string{strings.Join(payloads, "x")} {
			for name, c := range samples(func(s string) string { return s + p }, lang) {
				got := render(t, c)
				if d := cmp.Diff(want[name], skeleton(t, got)); d != "" {
					t.Errorf("%s with %q has other markup (-benign +hostile):\n%s", name, p, d)
				}
			}
		}
	}
}

// The test above must be able to fail.
func TestSkeleton_SeesInjection(t *testing.T) {
	t.Parallel()
	if skeleton(t, []byte(`<p title="a">x</p>`)) == skeleton(t, []byte(`<p title="a" onclick="b">x</p>`)) {
		t.Error("an added attribute goes unseen")
	}
	if skeleton(t, []byte(`<tr id="a"><td>x</td></tr>`)) == skeleton(t, []byte(`<tr id="a"><td><script>x</script></td></tr>`)) {
		t.Error("an added element goes unseen")
	}
}

// Every link and form stays on this site, whatever the texts are.
func TestURLs_StayHere(t *testing.T) {
	t.Parallel()
	for _, p := range append(payloads, "x") {
		for name, c := range samples(func(s string) string { return p + s }, "en") {
			for _, n := range mustParse(t, render(t, c)) {
				walk(n, func(n *html.Node) {
					for _, a := range n.Attr {
						switch a.Key {
						case "href", "action", "src", "hx-get", "hx-post", "hx-sse:connect", "data-events", "data-refs":
						default:
							continue
						}
						if a.Val != "" && a.Val[0] == '#' {
							continue
						}
						if len(a.Val) < 2 || a.Val[0] != '/' || a.Val[1] == '/' || a.Val[1] == '\\' {
							t.Errorf("%s with %q: <%s %s=%q>", name, p, n.Data, a.Key, a.Val)
						}
					}
				})
			}
		}
	}
}

func TestPages_Markup(t *testing.T) {
	t.Parallel()
	for _, lang := range Languages {
		for name, c := range samples(plainly, lang) {
			t.Run(lang+"/"+name, func(t *testing.T) {
				t.Parallel()
				raw := render(t, c)
				d := document(t, raw)
				if isPage(name) {
					if got := d.Find("html").AttrOr("lang", ""); got != htmlLang(lang) {
						t.Errorf("html lang %q", got)
					}
					if d.Find("title").Text() == "" || d.Find("h1").Length() != 1 || d.Find("main").Length() != 1 {
						t.Errorf("want one title, one h1 and one main; have %d h1", d.Find("h1").Length())
					}
				}
				ids := map[string]bool{}
				d.Find("[id]").Each(func(_ int, s *goquery.Selection) {
					id := s.AttrOr("id", "")
					if ids[id] || id == "" {
						t.Errorf("id %q is there twice, or empty", id)
					}
					ids[id] = true
				})
				d.Find("input:not([type=hidden]), select").Each(func(_ int, s *goquery.Selection) {
					id, labelled := s.Attr("id")
					labelled = labelled && d.Find(`label[for="`+id+`"]`).Length() == 1
					if !labelled && s.AttrOr("aria-label", "") == "" && s.Closest("label").Length() == 0 {
						h, _ := goquery.OuterHtml(s)
						t.Errorf("no label: %s", h)
					}
				})
				d.Find("[aria-labelledby], [aria-describedby]").Each(func(_ int, s *goquery.Selection) {
					for id := range strings.FieldsSeq(s.AttrOr("aria-labelledby", "") + " " + s.AttrOr("aria-describedby", "")) {
						if isPage(name) && d.Find(`[id="`+id+`"]`).Length() != 1 {
							t.Errorf("%q names no element", id)
						}
					}
				})
				d.Find("button, a").Each(func(_ int, s *goquery.Selection) {
					// Those that a script fills are named by it.
					if id := s.AttrOr("id", ""); strings.TrimSpace(s.Text()) == "" && s.AttrOr("aria-label", "") == "" && id != "apply" && id != "allmatching" {
						h, _ := goquery.OuterHtml(s)
						t.Errorf("no name: %s", h)
					}
				})
				d.Find("script").Each(func(_ int, s *goquery.Selection) {
					if s.AttrOr("nonce", "") != "n0nce" || s.Text() != "" {
						t.Errorf("a script without the nonce, or inline: %s", s.AttrOr("src", ""))
					}
				})
				if d.Find("[style], style").Length() != 0 {
					t.Error("a style in the page, which the policy forbids")
				}
				for _, n := range mustParse(t, raw) {
					walk(n, func(n *html.Node) {
						action, nonce := false, ""
						for _, a := range n.Attr {
							action = action || strings.HasPrefix(a.Key, "hx-") && a.Key != "hx-swap-oob" && a.Key != "hx-nonce"
							if a.Key == "hx-nonce" {
								nonce = a.Val
							}
							if strings.HasPrefix(a.Key, "hx-on") || strings.HasPrefix(a.Val, "js:") || strings.HasPrefix(a.Key, "on") {
								t.Errorf("code in an attribute: %s=%q", a.Key, a.Val)
							}
						}
						if action && nonce != "n0nce" {
							t.Errorf("<%s> acts without the page's nonce: hx-csp would strip it", n.Data)
						}
					})
				}
			})
		}
	}
}

// Every file that a page names is served.
func TestPages_NameFilesThatExist(t *testing.T) {
	t.Parallel()
	for name, c := range samples(plainly, "en") {
		d := document(t, render(t, c))
		d.Find("script[src], link[href], img[src]").Each(func(_ int, s *goquery.Selection) {
			file := strings.TrimPrefix(s.AttrOr("src", s.AttrOr("href", "")), "/static/")
			if url := static.Asset(file); url == "/static/"+file {
				t.Errorf("%s names %s, which does not exist", name, file)
			}
		})
	}
}

// planFields are those of the form of a plan, of all actions together.
var planFields = []string{
	"action", "nodes", "reason", "foreign", "labels", "taints", "mode", "on_conflict", "allow_protected", "source", "template", "value.team", "value.free", "batch",
	"max_concurrent", "per_cluster", "per_zone", "max_unavailable", "max_failures", "pause_between", "canary", "order",
	"grace_period_seconds", "timeout_seconds", "delete_emptydir_data", "force", "pod_selector", "disable_eviction", "uncordon_after", "ignore_opt_out",
	"skip_wait_for_delete_timeout", "wait_for_replacements",
}

// Forms post only what the handlers take.
func TestForms_Fields(t *testing.T) {
	t.Parallel()
	allowed := map[string][]string{
		"/login/code":                   {"code", "next"},
		"/invite":                       {"code", "password"},
		"/api/v1/second-factor":         {"password"},
		"/api/v1/second-factor/confirm": {"code"},
		"/api/v1/second-factor/delete":  {"code"},
		"/api/v1/users/ivo":             {"role", "disabled", "invite", "grant", "grant_role", "also"},
		"/api/v1/users/eve":             {"disabled", "grant", "grant_role", "also"},
		"/api/v1/users/kim":             {"disabled", "grant", "grant_role", "also", "revoke"},
		"/api/v1/password":              {"current_password", "new_password"},
		"/login":                        {"username", "password", "next"},
		"/setup":                        {"code", "username", "password"},
		"/logout":                       nil,
		"/api/v1/batches":               append(slices.Clone(planFields), "plan", "confirm", "template_version", "idempotency_key"),
		"/plan#result":                  planFields,
		"/api/v1/tokens":                {"name", "expires", "role", "scope"},
		"/api/v1/users":                 {"name", "role", "invite"},
		"/api/v1/users/ada":             {"role", "disabled", "invite", "second_factor", "unblock", "grant", "grant_role", "also"},
		"/api/v1/users/bob":             {"role", "disabled", "invite", "grant", "grant_role", "also"},
		"/batches":                      {"state", "user", "cluster", "since"},
		"/audit":                        {"user", "action", "cluster", "node", "outcome", "batch", "session", "since", "until"},
		"/nodes":                        {"q", "sort", "per_page", "group"},
		"/clusters/prod-eu/nodes":       {"q", "sort", "per_page", "group"},
		"/api/v1/batches/01JB/cancel":   nil,
		"/api/v1/batches/01JB/pause":    nil,
		"/api/v1/templates":             {"name", "note", "labels", "taints", "values"},
		"/api/v1/templates/t1":          {"name", "note", "labels", "taints", "values", "version"},
		"/api/v1/templates/t1/delete":   nil,
		"/api/v1/templates/t2/delete":   nil,
		"/api/v1/batches/01JB/resume":   nil,
		"/api/v1/batches/01JB/retry":    {"idempotency_key"},
		"/batches/01JB/skip":            nil,
		"/api/v1/sessions/h/delete":     nil,
		"/api/v1/tokens/t/delete":       nil,
		"/api/v1/tokens/u/delete":       nil,
		"/clusters/prod-us/retry":       nil,
		"/clusters/lab/retry":           nil,
		"/clusters/prod-us/accept":      {"uid"},
		"/api/v1/clusters":              {"name", "kubeconfig", "context"},
		"/api/v1/clusters/test":         {"name"},

		"/api/v1/clusters/web/replace": {"kubeconfig", "context"},
		"/api/v1/clusters/web/delete":  {"confirm"},
		"":                             nil, // method=dialog
	}
	seen := map[string]bool{}
	for name, c := range samples(plainly, "en") {
		d := document(t, render(t, c))
		d.Find("form").Each(func(_ int, f *goquery.Selection) {
			action := f.AttrOr("action", "")
			fields, ok := allowed[action]
			if !ok {
				t.Errorf("%s: a form posts to %q", name, action)
				return
			}
			seen[action] = true
			f.Find("[name]").Each(func(_ int, s *goquery.Selection) {
				if n := s.AttrOr("name", ""); !slices.Contains(fields, n) {
					t.Errorf("%s: %s gets the field %q", name, action, n)
				}
			})
		})
	}
	for action := range allowed {
		if !seen[action] {
			t.Errorf("no sample has the form of %q: this test would prove nothing about it", action)
		}
	}
}

func TestNodes_Filters(t *testing.T) {
	t.Parallel()
	d := document(t, render(t, Nodes(NodesPage{
		Layout: sampleLayout(plainly, "en"), Query: Query{Q: `zone:eu-1a web "a b"`, Sort: "-cpu", Page: 2, PerPage: 100, Pages: 3, Total: 250},
		Facets: Facets{Zones: []string{"eu-1a", "eu 1b"}}, Clusters: []fleet.Cluster{sampleCluster(plainly, fleet.ClusterLive)},
	})))
	link := func(selector string) string { return d.Find(selector).First().AttrOr("href", "") }
	for selector, want := range map[string]string{
		`.menu li:nth-child(1) a`: `/nodes?per_page=100&q=web+%22a+b%22&sort=-cpu`,
		`.menu li:nth-child(2) a`: `/nodes?per_page=100&q=web+%22a+b%22+zone%3A%22eu+1b%22&sort=-cpu`,
		`.chips .bad`:             `/nodes?per_page=100&q=zone%3Aeu-1a+web+%22a+b%22+status%3ANotReady&sort=-cpu`,
		`th.c-cpu a`:              `/nodes?per_page=100&q=zone%3Aeu-1a+web+%22a+b%22&sort=cpu`,
		`th.c-name a`:             `/nodes?per_page=100&q=zone%3Aeu-1a+web+%22a+b%22`,
		`#prev`:                   `/nodes?per_page=100&q=zone%3Aeu-1a+web+%22a+b%22&sort=-cpu`,
		`#next`:                   `/nodes?page=3&per_page=100&q=zone%3Aeu-1a+web+%22a+b%22&sort=-cpu`,
	} {
		if got := link(selector); got != want {
			t.Errorf("%s leads to\n%s, want\n%s", selector, got, want)
		}
	}
	if got := d.Find("th.c-cpu").AttrOr("aria-sort", ""); got != "descending" {
		t.Errorf("aria-sort of CPU is %q", got)
	}
	if d.Find("th.c-sched a, th.c-taints a").Length() != 0 {
		t.Error("a heading that cannot be sorted by is a link")
	}
	if got := d.Find(`.menu:not(.group-by) li a[aria-current]`).Text(); got != "eu-1a" {
		t.Errorf("the chosen zone is marked as %q", got)
	}
	if d.Find("form#batch").Length() != 0 || !d.Find("table.ro").Is("table") {
		t.Error("somebody who may not act is offered to")
	}
}

// Every link of the page keeps the grouping, and those of the menu keep everything else; selecting all that match has
// nothing to do with it.
func TestNodes_Group(t *testing.T) {
	t.Parallel()
	page := func(cluster, group string) *goquery.Document {
		return document(t, render(t, Nodes(NodesPage{
			Layout:    sampleLayout(plainly, "en"),
			Query:     Query{Cluster: cluster, Q: "web", Sort: "-cpu", Page: 2, PerPage: 100, Pages: 3, Total: 250, Group: group},
			Facets:    Facets{Zones: []string{"a"}},
			CanCordon: true,
		})))
	}
	d := page("", "zone")
	links := 0
	d.Find(".menus .menu:not(.group-by) a, .chips a, thead a, .pager a, .search a").Each(func(_ int, s *goquery.Selection) {
		links++
		if href := s.AttrOr("href", ""); !strings.Contains(href, "group=zone") {
			t.Errorf("%q loses the grouping: %s", strings.TrimSpace(s.Text()), href)
		}
	})
	if links < 20 {
		t.Errorf("only %d links", links)
	}
	if got := d.Find(".search input[name=group]").AttrOr("value", ""); got != "zone" {
		t.Errorf("the search sends group=%q", got)
	}
	if got := d.Find("form#batch").AttrOr("data-refs", "") + d.Find("form#batch").AttrOr("data-view", ""); strings.Contains(got, "zone") {
		t.Errorf("the selection depends on the grouping: %s", got)
	}
	var words []string
	d.Find(".group-by li a").Each(func(_ int, s *goquery.Selection) {
		words = append(words, strings.TrimPrefix(s.AttrOr("href", ""), "/nodes?"))
	})
	want := []string{"per_page=100&q=web&sort=-cpu"}
	for _, by := range []string{"cluster", "zone", "role", "type", "version", "status", "pool"} {
		want = append(want, "group="+by+"&per_page=100&q=web&sort=-cpu")
	}
	if diff := cmp.Diff(want, words); diff != "" {
		t.Errorf("the menu leads to (-want +got):\n%s", diff)
	}
	if got := d.Find(".group-by a[aria-current]").Text(); got != "Zone" {
		t.Errorf("marked in the menu: %q", got)
	}

	d = page("prod", "label:pool")
	fields := map[string]string{}
	d.Find(".group-by form input").Each(func(_ int, s *goquery.Selection) { fields[s.AttrOr("name", "")] = s.AttrOr("value", "") })
	if diff := cmp.Diff(map[string]string{"q": "web", "sort": "-cpu", "per_page": "100", "group": "label:pool"}, fields); diff != "" {
		t.Errorf("the form for a label sends (-want +got):\n%s", diff)
	}
	if got := strings.TrimSpace(d.Find(".group-by summary b").Text()); got != "pool" {
		t.Errorf("the menu names the label as %q", got)
	}
	if d.Find(`.group-by a[href*="group=cluster"]`).Length() != 0 {
		t.Error("the list of one cluster offers to be grouped by cluster")
	}
}

// The box of a header belongs to no form, so that a batch never gets it, and a header is never taken for a node.
func TestGroupRow_IsNoNode(t *testing.T) {
	t.Parallel()
	b := string(Renderer{}.GroupRow(sampleGroup(plainly), "en"))
	for _, bad := range []string{"data-ref", " name=", " form=", " value="} {
		if strings.Contains(b, bad) {
			t.Errorf("a header has %s: %s", bad, b)
		}
	}
	if got := (Renderer{}).GroupID(""); got == (Renderer{}).GroupID(" ") || !regexp.MustCompile(`^g-[0-9a-f]{16}$`).MatchString(got) {
		t.Errorf("id of the group without a value: %q", got)
	}
}

// A cluster that has not synced says so; an empty table would be a lie.
func TestNodes_SaysWhyThereIsNothing(t *testing.T) {
	t.Parallel()
	for state, want := range map[fleet.ClusterState]string{
		fleet.ClusterConnecting: "prod-eu: connecting", fleet.ClusterUnreachable: "prod-eu: unreachable", fleet.ClusterForbidden: "prod-eu: forbidden",
		fleet.ClusterLive: "This cluster has no nodes.",
	} {
		d := document(t, render(t, Nodes(NodesPage{Layout: sampleLayout(plainly, "en"), Clusters: []fleet.Cluster{sampleCluster(plainly, state)}})))
		if got := d.Find("#empty").Text(); !strings.Contains(got, want) {
			t.Errorf("%s: %q does not say %q", state, got, want)
		}
		if state != fleet.ClusterLive && !strings.Contains(d.Find("#empty").Text()+d.Find(".badge").Text(), "connection refused") {
			t.Errorf("%s: the reason is not shown", state)
		}
	}
}

func TestOOB(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{`<tr id="n"><td>x</td></tr>`, `<tr hx-swap-oob="outerMorph" id="n"><td>x</td></tr>`},
		{`<tr></tr>`, `<tr hx-swap-oob="outerMorph"></tr>`},
		{`<p hx-swap-oob="delete">x</p>`, `<p hx-swap-oob="delete">x</p>`},
		{`<p><b hx-swap-oob="delete">x</b></p>`, `<p hx-swap-oob="outerMorph"><b hx-swap-oob="delete">x</b></p>`},
		{``, ``},
		{`text`, `text`},
	} {
		in := []byte(tt.in)
		if got := string(OOB(in, "outerMorph")); got != tt.want {
			t.Errorf("OOB(%s)\n got %s\nwant %s", tt.in, got, tt.want)
		}
		if string(in) != tt.in {
			t.Errorf("OOB wrote into the shared row: %s", in)
		}
	}
}

func TestRenderer_NumbersThatNobodyKnows(t *testing.T) {
	t.Parallel()
	d := document(t, Renderer{}.Counts(Counts{Waiting: true}, 1, 1, 0, "en"))
	for _, n := range countNumbers(Counts{}) {
		if got := d.Find("#" + n.id).Text(); got != "…" {
			t.Errorf("%s of clusters that have no nodes yet: %q, want …", n.id, got)
		}
	}
}

func TestRenderer_OutOfBand(t *testing.T) {
	t.Parallel()
	r := Renderer{}
	for name, b := range map[string][]byte{
		"badge": r.ClusterBadge(sampleCluster(plainly, fleet.ClusterStale), "en"), "progress": r.BatchProgress(sampleBatch(plainly), "zh"),
		"counts": r.Counts(Counts{Total: 3}, 1, 2, 3, "en"),
	} {
		d := document(t, b)
		n := d.Find("body").Children().Length()
		if n == 0 || d.Find("body > [id][hx-swap-oob]").Length() != n {
			t.Errorf("%s: not every element is swapped out of band: %s", name, b)
		}
	}
	for name, b := range map[string][]byte{
		"node": r.NodeRow(sampleNode(plainly), "en"), "cluster": r.ClusterRow(sampleCluster(plainly, fleet.ClusterLive), "en"), "item": r.BatchItem(sampleItems(plainly)[0], "en"),
		"group": r.GroupRow(sampleGroup(plainly), "en"),
	} {
		if !bytes.HasPrefix(b, []byte("<tr id=")) || bytes.Contains(b, []byte("hx-swap-oob")) {
			t.Errorf("%s: not a plain row: %s", name, b)
		}
	}
	if got, want := string(r.NodeRow(sampleNode(plainly), "en")), `<tr id="`+r.NodeID(fleet.NodeRef{Cluster: "prod-eu", Name: "gpu-7"})+`"`; !strings.HasPrefix(got, want) {
		t.Errorf("the row begins %.40s, want %s", got, want)
	}
}

func TestNodeID_TellsClusterFromName(t *testing.T) {
	t.Parallel()
	ids := map[string]fleet.NodeRef{}
	for _, ref := range []fleet.NodeRef{{Cluster: "a", Name: "b"}, {Cluster: "ab", Name: ""}, {Cluster: "", Name: "ab"}, {Cluster: "a/b", Name: "c"}, {Cluster: "a", Name: "b/c"}} {
		id := NodeID(ref)
		if other, twice := ids[id]; twice {
			t.Errorf("%v and %v share %s", ref, other, id)
		}
		if !regexp.MustCompile(`^n-[0-9a-f]{16}$`).MatchString(id) {
			t.Errorf("id %q", id)
		}
		ids[id] = ref
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	for in, want := range map[int64]string{8000: "8", 7910: "7.91", 250: "0.25", 0: "0", 100: "0.1"} {
		if got := cores(in); got != want {
			t.Errorf("cores(%d) = %s, want %s", in, got, want)
		}
	}
	for in, want := range map[int64]string{0: "0", 512: "512", 1 << 30: "1Gi", 33 << 30: "33Gi", 1536 << 20: "1.5Gi", 32986764 << 10: "31.5Gi", 100 << 30: "100Gi", 1 << 62: "4Ei"} {
		if got := size(in); got != want {
			t.Errorf("size(%d) = %s, want %s", in, got, want)
		}
	}
	for in, want := range map[int]string{0: "0", 999: "999", 1000: "1\u202f000", -1234567: "-1\u202f234\u202f567"} {
		if got := num(in); got != want {
			t.Errorf("num(%d) = %q, want %q", in, got, want)
		}
	}
}

func TestSegments_CoverTheBar(t *testing.T) {
	t.Parallel()
	for _, c := range []fleet.Counts{
		{}, {Total: 1, Succeeded: 1}, {Total: 5000, Succeeded: 4998, Failed: 1, Skipped: 1}, {Total: 3, Succeeded: 1, Failed: 1, Running: 1},
	} {
		x := 0
		for _, s := range segments(c) {
			if s.x != x || s.w < 4 {
				t.Errorf("%+v: segment %+v begins at %d, want %d, and is %d wide", c, s, s.x, x, s.w)
			}
			x += s.w
		}
		if x > 1016 {
			t.Errorf("%+v: the bar is %d wide", c, x)
		}
	}
}

func BenchmarkNodeRow(b *testing.B) {
	n := sampleNode(plainly)
	r := Renderer{}
	b.ReportAllocs()
	for b.Loop() {
		if len(r.NodeRow(n, "en")) == 0 {
			b.Fatal("no row")
		}
	}
}

func BenchmarkNodesPage200(b *testing.B) {
	row := Renderer{}.NodeRow(sampleNode(plainly), "en")
	p := NodesPage{Layout: sampleLayout(plainly, "en"), Query: sampleQuery(plainly), Rows: slices.Repeat([][]byte{row}, 200)}
	b.ReportAllocs()
	for b.Loop() {
		render(b, Nodes(p))
	}
}

// The row of a drain is sent with every step of it: it names what holds the drain up, and no more than that.
func TestBatchItemRow_IsSmall(t *testing.T) {
	t.Parallel()
	it := sampleDrainItems(plainly)[3]
	for len(it.Drain.Pods) < 110 {
		it.Drain.Pods = append(it.Drain.Pods, it.Drain.Pods[2])
	}
	for _, lang := range Languages {
		row := Renderer{}.BatchItem(it, lang)
		if len(row) > 9000 {
			t.Errorf("a row with 110 pods in %s has %d bytes", lang, len(row))
		}
		d := document(t, []byte("<table>"+string(row)+"</table>"))
		if n := d.Find(".c-why > .pods > li:not(.quiet)").Length(); n != maxTrouble {
			t.Errorf("it names %d pods", n)
		}
	}
}

func TestDrainWords(t *testing.T) {
	t.Parallel()
	want := "evicting 6/13 · 1 need a consent · 2 blocked by budget web (needs 4, has 4) · 1 refused by an admission webhook · 1 overdue"
	if got := drainWords("en", sampleDrain(plainly)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := drainWords("en", &fleet.DrainProgress{State: fleet.DrainCordoning}); got != "cordoning" {
		t.Errorf("without pods: %s", got)
	}
}

// A row is sent for every change to every viewer.
func TestNodeRow_IsSmall(t *testing.T) {
	t.Parallel()
	for _, lang := range Languages {
		if got := len(Renderer{}.NodeRow(sampleNode(plainly), lang)); got > 3200 {
			t.Errorf("a full row in %s has %d bytes", lang, got)
		}
	}
}

// What stays loses nothing: a DaemonSet's pod with data on the node needs nobody's word.
func TestLosses_OfPodsThatGo(t *testing.T) {
	t.Parallel()
	data := fleet.Reason{Code: "empty_dir", Consent: fleet.ConsentLocalData}
	plan := &fleet.Plan{Clusters: []fleet.ClusterPlan{{Nodes: []fleet.NodePlan{{Pods: []fleet.PodPlan{
		{Name: "agent", PodClass: fleet.PodClass{Verdict: fleet.VerdictIgnore, Reasons: []fleet.Reason{{Code: "daemon_set"}, data}}},
		{Name: "cache", PodClass: fleet.PodClass{Verdict: fleet.VerdictBlock, Reasons: []fleet.Reason{data}, Needs: []fleet.Consent{fleet.ConsentLocalData}}},
	}}}}}}
	got := losses("en", plan)
	if len(got) != 1 || got[0].given || len(got[0].pods) != 1 || got[0].pods[0].name != "/cache" {
		t.Errorf("%+v", got)
	}
}
