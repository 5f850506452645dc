package views

import (
	"strings"
	"time"

	"github.com/a-h/templ"
)

// htmxConfigJSON: extensions are a whitelist; elements with data-keep and the text of times are the browser's own and
// are never morphed; data-ui- attributes are set by our scripts, and what is open was opened by a person. live.js decides when a stream is opened again.
const htmxConfigJSON = `{"extensions":"hx-csp, sse","morphSkip":"[data-keep]","morphSkipChildren":"time",` +
	`"morphIgnore":["data-htmx-powered","data-ui-","open"],"history":"reload","includeIndicatorCSS":false,` +
	`"sse":{"reconnectMaxAttempts":0,"pauseOnBackground":false,"connectTimeout":10000}}`

func htmlLang(lang string) string {
	if lang == "zh" {
		return "zh-Hans"
	}
	return "en"
}

// scriptKeys are the texts that the scripts use: script.<name> in the catalogue.
var scriptKeys = []string{
	"live", "polling", "connecting", "reconnecting", "stale", "ended", "signin", "signedout", "forbidden", "newbuild",
	"reload", "moved_one", "moved_other", "copied", "copyfailed", "selected_one", "selected_other",
	"cordon_one", "cordon_other", "uncordon_one", "uncordon_other", "allmatching", "partmatching", "allfailed",
	"failed", "now", "sent", "brokenoff", "open",
}

func scriptTexts(lang string) templ.OrderedAttributes {
	out := make(templ.OrderedAttributes, 0, len(scriptKeys))
	for _, k := range scriptKeys {
		out = append(out, templ.KV[string, any]("data-"+strings.ReplaceAll(k, "_", "-"), T(lang, "script."+k)))
	}
	return out
}

type helpKey struct {
	keys []string
	text string
}

var helpKeys = []helpKey{
	{[]string{"/"}, "keys.filter"},
	{[]string{"j", "k"}, "keys.move"},
	{[]string{"x"}, "keys.select"},
	{[]string{"shift", "x"}, "keys.range"},
	{[]string{"a"}, "keys.all"},
	{[]string{"c"}, "keys.cordon"},
	{[]string{"u"}, "keys.uncordon"},
	{[]string{"d"}, "keys.drain"},
	{[]string{"l"}, "keys.labels"},
	{[]string{"t"}, "keys.taints"},
	{[]string{"enter"}, "keys.open"},
	{[]string{"esc"}, "keys.esc"},
	{[]string{"g", "n"}, "keys.nodes"},
	{[]string{"g", "b"}, "keys.batches"},
	{[]string{"?"}, "keys.help"},
}

// timeOf is a moment and how it is told: age (12d, as kubectl), ago (3 minutes ago), or at (date and time).
type timeOf struct {
	time.Time
	style string
}

func age(t time.Time) timeOf     { return timeOf{t, "age"} }
func ago(t time.Time) timeOf     { return timeOf{t, "ago"} }
func exactly(t time.Time) timeOf { return timeOf{t, "at"} }
