package templates

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/marks"
)

const (
	nameMost   = 64  // characters
	noteMost   = 500 // characters
	linesMost  = 64  // of labels, and of taints
	lineMost   = 512 // bytes; a key has 317 at most and a value 63
	valuesMost = 64  // to choose from for one placeholder
	valueMost  = 63  // bytes, as of a label's value
)

// placeholder is one in a line. What people write around the name goes.
var placeholder = regexp.MustCompile(`\{\{ *([a-z0-9][a-z0-9_-]{0,62}) *\}\}`)

// nameKey is what names are told apart by: how they are spelled, and not whether in capitals.
func nameKey(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, norm.NFKC.String(name))
}

func checkName(t *fleet.Template) error {
	t.Name = norm.NFC.String(strings.Join(strings.Fields(t.Name), " "))
	if t.Name == "" || utf8.RuneCountInString(t.Name) > nameMost || !printable(t.Name) {
		return fleet.Problem("name", "error.template_name", strconv.Itoa(nameMost), "must have 1 to %s printable characters")
	}
	return nil
}

func checkNote(t *fleet.Template) error {
	t.Note = strings.TrimSpace(strings.ReplaceAll(t.Note, "\r\n", "\n"))
	if utf8.RuneCountInString(t.Note) > noteMost || !printable(strings.ReplaceAll(t.Note, "\n", " ")) {
		return fleet.Problem("note", "error.token_name", strconv.Itoa(noteMost), "must have at most %s printable characters")
	}
	return nil
}

// printable tells whether a text is what it looks like: nothing in it is invisible or turns the text around it.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// checkLines tidies the lines and looks at where their placeholders are.
func checkLines(t *fleet.Template) error {
	for _, part := range []struct {
		field string
		lines *[]string
		// around is what stands before and after the value.
		around func(line string) (before, after string)
	}{{"labels", &t.Labels, aroundLabel}, {"taints", &t.Taints, aroundTaint}} {
		tidy := []string{}
		for _, line := range *part.lines {
			line = strings.TrimSpace(line)
			if line == "" {
				continue
			}
			line, err := checkLine(part.field, line, part.around)
			if err != nil {
				return err
			}
			if tidy = append(tidy, line); len(tidy) > linesMost {
				return fleet.Problem(part.field, "error.template_lines", strconv.Itoa(linesMost), "must have at most %s lines")
			}
		}
		*part.lines = tidy
	}
	if len(t.Labels)+len(t.Taints) == 0 {
		return fleet.Problem("labels", "error.template_empty", "", "must have a label, or there must be a taint")
	}
	return nil
}

func checkLine(field, line string, around func(line string) (before, after string)) (string, error) {
	if len(line) > lineMost || !printable(line) {
		return "", fleet.Problem(field, "error.template_line", shown(line), "must have lines of printable characters, not too long: %s")
	}
	line = placeholder.ReplaceAllString(line, "{{$1}}")
	before, after := around(line)
	switch {
	case strings.ContainsAny(placeholder.ReplaceAllString(line, ""), "{}"):
		return "", fleet.Problem(field, "error.template_brace", shown(line),
			"must write placeholders as names of small letters, digits, - and _ in double braces: %s")
	case placeholder.MatchString(before), placeholder.MatchString(after):
		return "", fleet.Problem(field, "error.template_place", shown(line), "must have placeholders in values only: %s")
	}
	return line, nil
}

// aroundLabel is for key=value.
func aroundLabel(line string) (before, after string) {
	before, _, _ = strings.Cut(line, "=")
	return before, ""
}

// aroundTaint is for key=value:Effect.
func aroundTaint(line string) (before, after string) {
	before, rest, _ := strings.Cut(line, "=")
	if at := strings.LastIndex(rest, ":"); at >= 0 {
		after = rest[at:]
	}
	return before, after
}

// shown is as much of a line as a sentence has room for.
func shown(line string) string {
	const most = 80
	line = strings.ToValidUTF8(line, "\uFFFD")
	if utf8.RuneCountInString(line) > most {
		line = string([]rune(line)[:most]) + "…"
	}
	return strconv.Quote(line)
}

// checkValues looks whether each placeholder is declared, and nothing else is.
func checkValues(t *fleet.Template) error {
	used := make(map[string]bool)
	for _, name := range marks.Placeholders(slices.Concat(t.Labels, t.Taints)...) {
		used[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(used)) {
		if _, ok := t.Values[name]; !ok {
			return fleet.Problem("value."+name, "error.template_undeclared", name, "must be declared: the placeholder %s is used")
		}
	}
	values := make(map[string][]string, len(t.Values))
	for _, name := range slices.Sorted(maps.Keys(t.Values)) {
		if !used[name] {
			return fleet.Problem("value."+shownName(name), "error.template_unused", shown(name), "is for the placeholder %s, which no line uses")
		}
		choices := []string{}
		for _, v := range t.Values[name] {
			v = strings.TrimSpace(v)
			if len(v) > valueMost || strings.ContainsAny(v, "{}") || !printable(v) || slices.Contains(choices, v) {
				return fleet.Problem("value."+name, "error.template_value", shown(v), "must have values of a label, each once: %s")
			}
			if choices = append(choices, v); len(choices) > valuesMost {
				return fleet.Problem("value."+name, "error.template_values", strconv.Itoa(valuesMost), "must have at most %s values")
			}
		}
		values[name] = choices
	}
	t.Values = values
	return nil
}

// shownName is a name that is none of ours as part of a field's name.
func shownName(name string) string {
	if placeholder.MatchString("{{" + name + "}}") {
		return name
	}
	return "?"
}
