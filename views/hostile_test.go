package views

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// escapes are ways out of where a text is put; vectors are what would be done outside.
var (
	escapes = []string{
		"", `"`, `'`, "`", ">", `">`, `'>`, "-->", "</title>", "</textarea>", "</script>", "</style>", "</td></tr></table>", "</option></select>", "</template>",
		"]]>", "</svg>", "\n", "\t/", "\x00", "&quot;>",
	}
	vectors = []string{
		"<script>x</script>", "<img src onerror=x>", "<svg/onload=x>", " onclick=x a=", " hx-get=//e ", " hx-on:load=x ", "<hx-partial>", "<template>", "<!--", "<iframe srcdoc=x>",
		"<base href=//e>", "<meta http-equiv=refresh>", "<form action=//e>", "<style>*{}</style>", "<link href=//e>", "<a href=javascript:x>", "<math><mi>",
		"<tr hx-swap-oob=true>", "<plaintext>", "<noscript>", "<input autofocus onfocus=x>", "&lt;script&gt;", "<p hx-trigger=load>", "javascript:x//",
	}
)

// markup is every tag of a document with the names of its attributes, in order. Texts and values are no part of it: a
// document in which only those differ has the same elements.
func markup(tb testing.TB, b []byte) string {
	tb.Helper()
	var out strings.Builder
	z := html.NewTokenizer(bytes.NewReader(b))
	var names []string
	for {
		switch kind := z.Next(); kind {
		case html.ErrorToken:
			return out.String()
		case html.TextToken:
		case html.CommentToken, html.DoctypeToken:
			fmt.Fprintf(&out, "<%s>\n", kind)
		default:
			name, more := z.TagName()
			fmt.Fprintf(&out, "%s %s", kind, name)
			names = names[:0]
			for more {
				var key []byte
				key, _, more = z.TagAttr()
				names = append(names, string(key))
			}
			slices.Sort(names)
			fmt.Fprintln(&out, names)
		}
	}
}

// Whatever 504 hostile texts say, in every place of every page, fragment and row where a cluster, a provider or a person
// can put a text: the document has the elements and attributes that it has with harmless ones. Many texts are put in each
// place at once: one that gets out is enough.
func TestHostileTexts_500(t *testing.T) {
	t.Parallel()
	const atOnce = 84
	var payloads []string
	for _, e := range escapes {
		for _, v := range vectors {
			payloads = append(payloads, e+v)
		}
	}
	if len(payloads) < 500 {
		t.Fatalf("only %d payloads", len(payloads))
	}
	sinks := 0
	want := map[string]string{}
	for name, c := range samples(func(s string) string { sinks++; return s + "x" }, "en") {
		want[name] = markup(t, render(t, c))
	}
	if sinks < 40 {
		t.Errorf("only %d texts are put in", sinks)
	}
	rendered := 0
	for group := range slices.Chunk(payloads, atOnce) {
		text := strings.Join(group, "x")
		for name, c := range samples(func(s string) string { return s + text }, "en") {
			var b bytes.Buffer
			if err := c.Render(context.Background(), &b); err != nil {
				t.Fatal(err)
			}
			rendered++
			if got := markup(t, b.Bytes()); got != want[name] {
				i := 0
				for i < min(len(got), len(want[name])) && got[i] == want[name][i] {
					i++
				}
				t.Errorf("%s has other markup with %q…: %.200q instead of %.200q", name, group[0], got[i:], want[name][i:])
			}
		}
	}
	t.Logf("%d texts in %d places: %d pairs in %d renderings", len(payloads), sinks, len(payloads)*sinks, rendered)
}

// The test above must be able to fail.
func TestMarkup_SeesInjection(t *testing.T) {
	t.Parallel()
	for _, b := range []string{
		`<p title="a" onclick="b">x</p>`, `<p title="a"><script>x</script></p>`, `<p title="a"><!-- x --></p>`, `<p title=a>x`, `<p>x</p>`, `<p title="a">x</p><p>`,
	} {
		if markup(t, []byte(b)) == markup(t, []byte(`<p title="b">y</p>`)) {
			t.Errorf("%s goes unseen", b)
		}
	}
}

// FuzzNode: a node whose every text is s has the rows and the page that any node has.
func FuzzNode(f *testing.F) {
	for i, e := range escapes {
		f.Add(e + vectors[i])
	}
	for _, s := range []string{"", "\xff", "\u202e", "a/b", "..", "%2e", strings.Repeat("<", 300)} {
		f.Add(s)
	}
	l := sampleLayout(plainly, "en")
	page := func(tb testing.TB, say say) string {
		n, c := sampleNode(say), sampleCluster(say, fleet.ClusterLive)
		row := Renderer{}.NodeRow(n, "en")
		pods := fleet.PodList{Read: noon, Pods: []fleet.Pod{{Namespace: say("a"), Name: say("b"), Phase: say("Running"), OwnerKind: say("Job"), OwnerName: say("c"), Created: noon}}}
		return markup(tb, render(tb, Node(NodePage{Layout: l, Node: n, Cluster: c, Row: row, Stream: "/x", PodsURL: "/y", CanCordon: true, Key: "k"}))) +
			markup(tb, render(tb, Pods(PodsFragment{Lang: "en", Cluster: say("c"), Node: say("n"), List: pods, Now: noon}))) +
			markup(tb, render(tb, ClusterRowView(ClusterRow{Cluster: c, Lang: "en"})))
	}
	want := page(f, func(s string) string { return s + "x" })
	f.Fuzz(func(t *testing.T, text string) {
		if got := page(t, func(s string) string { return s + "x" + text }); got != want {
			t.Errorf("%q makes other markup:\n%s", text, got)
		}
	})
}
