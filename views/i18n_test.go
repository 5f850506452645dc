package views

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func rawCatalogue(t *testing.T, lang string) map[string]any {
	t.Helper()
	b, err := locales.ReadFile("locales/" + lang + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

var placeholder = regexp.MustCompile(`\{\{\.\w+\}\}|\{\w+\}`)

func placeholders(v any) []string {
	var texts []string
	switch v := v.(type) {
	case string:
		texts = []string{v}
	case map[string]any:
		for _, s := range v {
			texts = append(texts, s.(string))
		}
	}
	var out []string
	for _, s := range texts {
		out = append(out, placeholder.FindAllString(s, -1)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func TestCatalogue_SameKeysSamePlaceholders(t *testing.T) {
	t.Parallel()
	en, zh := rawCatalogue(t, "en"), rawCatalogue(t, "zh")
	for k, v := range en {
		w, ok := zh[k]
		if !ok {
			t.Errorf("%s is missing in zh", k)
			continue
		}
		if a, b := placeholders(v), placeholders(w); !slices.Equal(a, b) {
			t.Errorf("%s has %v in en and %v in zh", k, a, b)
		}
	}
	for k := range zh {
		if _, ok := en[k]; !ok {
			t.Errorf("%s is missing in en", k)
		}
	}
}

// Keys that are put together from a part and a value of the program.
var families = map[string][]string{
	"role.":          {"none", "viewer", "operator", "admin"},
	"perm.":          {"node_cordon", "node_drain", "node_edit", "node_no_execute", "node_drain_past_budget", "node_protected_labels"},
	"nav.":           {"nodes", "clusters", "batches", "templates", "users", "audit"},
	"facet.":         {"role", "zone", "type", "version"},
	"group.":         groupWords(Query{}),
	"cluster.state.": {"connecting", "syncing", "live", "stale", "unreachable", "unauthorized", "forbidden", "asleep", "stopped"},
	"batch.state.":   {"queued", "running", "paused", "interrupted", "done"},
	"batch.title.":   actionNames(),
	"action.":        actionNames(),
	"plan.will.":     actionNames(),
	"plan.empty.":    actionNames(),
	"plan.impact.":   seriousImpacts,
	"trouble.":       troubleNames(),
	"says.":          {"blocked_by_pdb", "blocked_by_pdbs", "attempt", "retry", "grace"},
	"batch.do.":      {"pause", "resume", "cancel", "retry", "skip", "revert", "report", "link"},
	"rollout.":       append(slices.Clone(rolloutFields), "canary"),
	"note.": {
		"identity", "restricted", "role", "traffic", "storage", "pool", "feature", "absent", "used", "controller", "control_plane", "out_of_service",
	},
	"bar.":           {"drain", "labels", "taints", "apply-template"},
	"opt.":           append(slices.Clone(rolloutFields), "reason", "labels", "taints", "source"),
	"consent.":       {"delete_emptydir_data", "force", "ignore_opt_out"},
	"outcome.":       {"succeeded", "partial", "failed", "cancelled", "skipped", "denied"},
	"item.":          {"queued", "running", "succeeded", "failed", "skipped", "cancelled"},
	"phase.":         {"intent", "result", "denied", "event"},
	"code.":          {"unchanged", "cleaned", "not_found", "replaced", "foreign_cordon", "forbidden", "unauthorized", "conflict", "unavailable", "invalid", "failed", "cancelled", "stopped", "authority_lost", "skipped", "protected", "changed_since", "nothing_to_undo", "blocked", "timed_out", "partial", "uncordoned", "locked"},
	"managed.fault.": {"name", "key", "unreadable", "other"},
	"managed.kind.":  {"token", "certificate"},
	"test.":          {"ok", "address", "unreachable", "timeout", "untrusted", "unauthorized", "forbidden", "redirect", "other"},
	"test.warn.":     {"cluster_admin", "wide", "missing", "expires"},
	"col.":           {"cluster", "name", "status", "scheduling", "cpu", "memory", "pods", "taints", "zone", "version", "age"},
	"script.":        scriptKeys,
	"sched.":         {"yes", "no", "by", "with"},
	"person.":        {"oidc", "ldap", "header"},
	"theme.":         {"system", "light", "dark"},
	"error.":         {"unauthenticated", "forbidden", "not_found", "method", "conflict", "blocked", "too_large", "unsupported", "invalid", "too_many", "unavailable", "timeout", "internal"},
}

func troubleNames() []string {
	out := make([]string, len(troubles))
	for i, s := range troubles {
		out[i] = string(s)
	}
	return out
}

func actionNames() []string {
	var out []string
	for _, a := range fleet.Actions() {
		out = append(out, string(a))
	}
	return out
}

type codes struct{ file, constant, family string }

// constants are the values of the constants of a file whose name or type fits, by the family of keys that words them.
var constants = []codes{
	{"../internal/fleet/drain.go", `\w+\s+Verdict\s+=`, "verdict."},
	{"../internal/fleet/plan.go", `\w+\s+Allowance\s+=`, "allow."},
	{"../internal/fleet/plan.go", `\w+\s+Allowance\s+=`, "budget.is."},
	{"../internal/fleet/plan.go", `\w+\s+NodeVerdict\s+=`, "node.verdict."},
	{"../internal/fleet/plan.go", `\w+\s+EditOutcome\s+=`, "edit."},
	{"../internal/fleet/plan.go", `Confirm\w+\s+=`, "confirm."},
	{"../internal/fleet/drain.go", `\w+\s+DrainState\s+=`, "drain."},
	{"../internal/fleet/drain.go", `\w+\s+PodState\s+=`, "pod."},
	{"../internal/drain/classify.go", `Code\w+\s+=`, "reason."},
	{"../internal/drain/budget.go", `Why\w+\s+=`, "why."},
	{"../internal/drain/plan.go", `(?:Impact|Warn)\w+\s+=`, "impact."},
	{"../internal/marks/protected.go", `Remark\w+\s+=`, "note."},
	{"../internal/nodeops/evict.go", `code(?:NotTol|Tol|Daemon|Unm|Guard|NotAg|Label)\w+\s+=`, "reason."},
	{"../internal/drain/fit.go", `refused(?:Taint|Affinity|HostPort|Volume)\s+=`, "refused."},
}

// Every code that a plan or a drain can carry has its words: a page never shows a code where a sentence should be.
func TestCatalogue_WordsEveryCode(t *testing.T) {
	t.Parallel()
	for _, c := range constants {
		b, err := os.ReadFile(c.file)
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`(?m)^\s*(?:`+c.constant+`)\s*"([a-z_]+)"`).FindAllSubmatch(b, -1)
		if len(found) < 4 {
			t.Errorf("%s: only %d constants like %s: the pattern does not fit the source any more", c.file, len(found), c.constant)
		}
		for _, m := range found {
			if key := c.family + string(m[1]); !Has(key) {
				t.Errorf("%s has %s, which the catalogue does not word", c.file, key)
			}
		}
	}
}

// Every key that the sources use is in the catalogue.
func TestCatalogue_HoldsWhatIsUsed(t *testing.T) {
	t.Parallel()
	for prefix, names := range families {
		for _, n := range names {
			if !Has(prefix + n) {
				t.Errorf("%s is missing", prefix+n)
			}
		}
	}
	used := regexp.MustCompile(`(?:T|counted1)\(\w+(?:\.\w+)*, "([a-z_.]+)"([,)+])`)
	files, err := filepath.Glob("*.templ")
	if err != nil {
		t.Fatal(err)
	}
	gos, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range append(files, gos...) {
		if strings.HasSuffix(f, "_templ.go") || strings.HasSuffix(f, "_test.go") {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range used.FindAllStringSubmatch(string(b), -1) {
			n++
			if m[2] == "+" {
				_, listed := families[m[1]]
				if !listed && !slices.ContainsFunc(constants, func(c codes) bool { return c.family == m[1] }) {
					t.Errorf("%s: the keys beginning %q are not listed in families", f, m[1])
				}
			} else if !Has(m[1]) {
				t.Errorf("%s: %s is missing in the catalogue", f, m[1])
			}
		}
	}
	if n < 150 {
		t.Errorf("only %d uses of T were found: the pattern no longer fits the sources", n)
	}
	for _, c := range chipLinks(Counts{}) {
		if !Has(c.text) {
			t.Errorf("%s is missing", c.text)
		}
	}
	for _, k := range helpKeys {
		if !Has(k.text) {
			t.Errorf("%s is missing", k.text)
		}
	}
}

// Kubernetes' own words and names of products, which are the same in every language.
var untranslated = []string{"GPU", "CPU", "Ready", "NotReady", "English", "中文", "kubelet", "uid", "JSON", "CSV", "NDJSON"}

// No text of a page stands outside the catalogue. Rough: it sees runs of letters
// between tags, and in the attributes that people read.
func TestTemplates_HoldNoText(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.templ")
	if err != nil || len(files) < 6 {
		t.Fatalf("templates %v: %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range literalTexts(string(b)) {
			if !slices.Contains(untranslated, text) {
				t.Errorf("%s: the text %q is not in the catalogue", f, text)
			}
		}
	}
}

var (
	betweenTags = regexp.MustCompile(`>([^<>{}\n]+)</`)
	labels      = regexp.MustCompile(`\b(?:title|placeholder|aria-label|alt)="([^"]+)"`)
)

// literalTexts are runs of letters between tags, and texts of attributes that people read.
func literalTexts(src string) []string {
	var out []string
	for _, re := range []*regexp.Regexp{betweenTags, labels} {
		for _, m := range re.FindAllStringSubmatch(src, -1) {
			if s := strings.TrimSpace(m[1]); strings.IndexFunc(s, unicode.IsLetter) >= 0 {
				out = append(out, s)
			}
		}
	}
	return out
}

func TestLiteralTexts_FindsOne(t *testing.T) {
	t.Parallel()
	got := literalTexts("<p>Hello</p>\n<a title=\"there\">{ x }</a>")
	if !slices.Equal(got, []string{"Hello", "there"}) {
		t.Errorf("got %q", got)
	}
}

func TestT(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		got, want string
	}{
		{T("en", "nav.nodes"), "Nodes"},
		{T("zh", "nav.nodes"), "节点"},
		{T("fr", "nav.nodes"), "Nodes"},
		{T("en", "no.such.key"), "no.such.key"},
		{T("en", "batch.title.cordon", "Count", 1, "N", "1"), "Cordon 1 node"},
		{T("en", "batch.title.cordon", "Count", 2, "N", "2"), "Cordon 2 nodes"},
		{T("zh", "batch.title.cordon", "Count", 1, "N", "1"), "Cordon 1 个节点"},
		{T("en", "sched.by", "Who", "<b>"), "cordoned by <b>"},
		{Message("en", "query.key", map[string]string{"Part": "sttus", "Allowed": "status, zone"}, "english"), "“sttus” is not a key; use one of status, zone"},
		{Message("zh", "no.such.key", nil, "must not be empty"), "must not be empty"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

// A text in one language has no letters of the other script.
func TestCatalogue_Scripts(t *testing.T) {
	t.Parallel()
	for k, v := range rawCatalogue(t, "en") {
		for _, s := range asTexts(v) {
			if strings.IndexFunc(s, func(r rune) bool { return unicode.Is(unicode.Han, r) }) >= 0 {
				t.Errorf("%s in en: %q", k, s)
			}
		}
	}
}

func asTexts(v any) []string {
	if s, ok := v.(string); ok {
		return []string{s}
	}
	var out []string
	for _, s := range v.(map[string]any) {
		out = append(out, s.(string))
	}
	return out
}

// Every key of an error, and every code of a node's result, that any room can hand to a page is in the catalogue.
func TestCatalogue_HoldsWhatOtherRoomsSay(t *testing.T) {
	t.Parallel()
	spoken := regexp.MustCompile(`"(error\.[a-z_]+)"|Code[A-Z]\w+ += "([a-z_]+)"`)
	n := 0
	for _, room := range []string{"../handlers", "../realtime", "../internal/auth", "../internal/batch", "../internal/fleet", "../internal/nodeops"} {
		files, err := filepath.Glob(room + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range spoken.FindAllSubmatch(b, -1) {
				key := string(m[1])
				if key == "" {
					key = "code." + string(m[2])
				}
				n++
				if !Has(key) {
					t.Errorf("%s says %s, which the catalogue does not have", f, key)
				}
			}
		}
	}
	if n < 30 {
		t.Errorf("found only %d keys: the pattern does not fit the sources any more", n)
	}
}
