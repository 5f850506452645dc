package views

import (
	"embed"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/nicksnyder/go-i18n/v2/i18n"
	"golang.org/x/text/language"
)

//go:embed locales/*.json
var locales embed.FS

// Languages are the languages of the catalogue, the default first.
var Languages = []string{"en", "zh"}

// catalogue is read once. Texts without a plural are cut at their placeholders then, because live rows ask for a dozen
// of them each; only those with a plural go through the localizer.
type catalogue struct {
	cut        map[string][]string // text, placeholder, text, …
	localizer  *i18n.Localizer
	hasMessage map[string]bool
}

var catalogues = loadCatalogues()

func loadCatalogues() map[string]*catalogue {
	out := map[string]*catalogue{}
	for _, lang := range Languages {
		bundle := i18n.NewBundle(language.Make(lang))
		bundle.RegisterUnmarshalFunc("json", json.Unmarshal)
		file, err := bundle.LoadMessageFileFS(locales, "locales/"+lang+".json")
		if err != nil {
			panic("views: catalogue: " + err.Error()) // compiled in: cannot depend on where we run
		}
		c := &catalogue{cut: map[string][]string{}, hasMessage: map[string]bool{}, localizer: i18n.NewLocalizer(bundle, lang)}
		for _, m := range file.Messages {
			c.hasMessage[m.ID] = true
			if m.One == "" {
				c.cut[m.ID] = cut(m.Other)
			}
		}
		out[lang] = c
	}
	return out
}

// cut splits a text at placeholders like {{.Name}}, so that texts stand at even places and names at odd ones.
func cut(s string) []string {
	var out []string
	for {
		before, rest, found := strings.Cut(s, "{{.")
		name, after, closed := strings.Cut(rest, "}}")
		if !found || !closed {
			return append(out, s)
		}
		out = append(out, before, name)
		s = after
	}
}

// fill puts the values into their places; a placeholder without a value is left out.
func fill(parts []string, args []any) string {
	if len(parts) == 1 {
		return parts[0]
	}
	var b strings.Builder
	for i, p := range parts {
		if i%2 == 0 {
			b.WriteString(p)
			continue
		}
		for j := 0; j+1 < len(args); j += 2 {
			if args[j] != p {
				continue
			}
			if s, ok := args[j+1].(string); ok {
				b.WriteString(s)
			} else {
				fmt.Fprint(&b, args[j+1])
			}
			break
		}
	}
	return b.String()
}

// T is the text of key in lang. args are pairs of a placeholder's name and its value; the value named Count chooses the
// plural. An unknown language reads English, an unknown key is its own text.
func T(lang, key string, args ...any) string {
	c, ok := catalogues[lang]
	if !ok {
		c = catalogues[Languages[0]]
	}
	if parts, ok := c.cut[key]; ok {
		return fill(parts, args)
	}
	if !c.hasMessage[key] {
		return key
	}
	data := make(map[string]any, len(args)/2)
	for i := 0; i+1 < len(args); i += 2 {
		if name, ok := args[i].(string); ok {
			data[name] = args[i+1]
		}
	}
	cfg := &i18n.LocalizeConfig{MessageID: key, TemplateData: data}
	if n, ok := data["Count"]; ok {
		cfg.PluralCount = n
	}
	s, err := c.localizer.Localize(cfg)
	if err != nil {
		return key
	}
	return s
}

// Has tells whether the catalogue knows the key.
func Has(key string) bool { return catalogues[Languages[0]].hasMessage[key] }

// Message is the text for an error that carries a key and named values, as fleet.FieldError does; english is what it
// says where the catalogue has no such key.
func Message(lang, key string, values map[string]string, english string) string {
	if !Has(key) {
		return english
	}
	args := make([]any, 0, 2*len(values))
	for k, v := range values {
		args = append(args, k, v)
	}
	return T(lang, key, args...)
}

// num writes n with thin grouping so that counts of thousands can be read.
func num[N ~int | ~int32 | ~int64](n N) string {
	s := fmt.Sprint(int64(n))
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}
