package marks

import (
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// placeholder is {{name}} in a line of a template.
var placeholder = regexp.MustCompile(`\{\{\s*([A-Za-z0-9][A-Za-z0-9_.-]*)\s*\}\}`)

// Placeholders are the names that the lines of a template ask for, sorted, each once.
func Placeholders(lines ...string) []string {
	var out []string
	for _, line := range lines {
		for _, m := range placeholder.FindAllStringSubmatch(line, -1) {
			out = append(out, m[1])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Choose settles the placeholders of a template: what was chosen, or else the default, which is the first value that may
// be chosen. The error is a FieldError for value.<name>.
func Choose(t fleet.Template, chosen map[string]string) (map[string]string, error) {
	names := Placeholders(slices.Concat(t.Labels, t.Taints)...)
	given := make([]string, 0, len(chosen))
	for name := range chosen {
		given = append(given, name)
	}
	slices.Sort(given) // the same mistake first, each time
	for _, name := range given {
		if !slices.Contains(names, name) {
			return nil, fleet.Invalid("value."+name, "is not a placeholder of the template")
		}
	}
	out := make(map[string]string, len(names))
	for _, name := range names {
		choices := t.Values[name]
		value, ok := chosen[name]
		switch {
		case !ok && len(choices) == 0:
			return nil, fleet.Invalid("value."+name, "must be given")
		case !ok:
			value = choices[0]
		case len(choices) > 0 && !slices.Contains(choices, value):
			return nil, fleet.Invalid("value."+name, "%q is not one of %s", value, strings.Join(choices, ", "))
		}
		if strings.ContainsFunc(value, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) || strings.Contains(value, "{{") {
			return nil, fleet.Invalid("value."+name, "%q holds a character that no label has", value)
		}
		out[name] = value
	}
	return out, nil
}

// Fill puts values into lines. Every placeholder must have one; Choose sees to that.
func Fill(lines []string, values map[string]string) []string {
	out := make([]string, len(lines))
	for i, line := range lines {
		out[i] = placeholder.ReplaceAllStringFunc(line, func(m string) string {
			return values[placeholder.FindStringSubmatch(m)[1]]
		})
	}
	return out
}
