package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// This is the part of PromQL that the dashboard and the alerts use, read strictly: what it does not know is an error.
// A whole parser would be a module with a server behind it, for two files.

// selection is one metric that an expression reads.
type selection struct {
	metric string
	labels []string // matched
}

// promql is the position in an expression.
type promql struct {
	tokens []string
	found  []selection
	labels []string // grouped or joined by
}

var promToken = regexp.MustCompile(`\s+|[a-zA-Z_:][a-zA-Z0-9_:]*|\d+[smhdwy]\b|\d+(?:\.\d+)?(?:e[+-]?\d+)?|"(?:[^"\\]|\\.)*"|=~|!~|!=|==|>=|<=|[-+*/%^(){}\[\],=<>]`)

// functions are those in use, with the kinds of their arguments: v for an instant vector, r for a range, n for a number.
var functions = map[string]string{"rate": "r", "increase": "r", "histogram_quantile": "nv", "time": "", "clamp_min": "vn"}

var aggregations = []string{"sum", "max", "min", "avg", "count"}

// parsePromQL returns the metrics that an expression reads and the labels that it groups by.
func parsePromQL(expr string) (found []selection, labels []string, err error) {
	p := &promql{}
	rest := expr
	for rest != "" {
		at := promToken.FindStringIndex(rest)
		if at == nil || at[0] != 0 {
			return nil, nil, fmt.Errorf("%q is no PromQL", rest)
		}
		if t := strings.TrimSpace(rest[:at[1]]); t != "" {
			p.tokens = append(p.tokens, t)
		}
		rest = rest[at[1]:]
	}
	if _, err := p.binary(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", expr, err)
	}
	if len(p.tokens) > 0 {
		return nil, nil, fmt.Errorf("%s: %q is left over", expr, strings.Join(p.tokens, " "))
	}
	return p.found, p.labels, nil
}

func (p *promql) peek() string {
	if len(p.tokens) == 0 {
		return ""
	}
	return p.tokens[0]
}

func (p *promql) next() string {
	t := p.peek()
	if t != "" {
		p.tokens = p.tokens[1:]
	}
	return t
}

func (p *promql) expect(want string) error {
	if got := p.next(); got != want {
		return fmt.Errorf("%q where %q belongs", got, want)
	}
	return nil
}

// binary is operands and operators. The order in which they bind does not matter here, only that kinds fit.
func (p *promql) binary() (kind byte, err error) {
	if kind, err = p.operand(); err != nil {
		return 0, err
	}
	for {
		op := p.peek()
		set := op == "and" || op == "or" || op == "unless"
		if !set && !slices.Contains([]string{"+", "-", "*", "/", "%", "^", "==", "!=", ">", "<", ">=", "<="}, op) {
			return kind, nil
		}
		p.next()
		if on := p.peek(); on == "on" || on == "ignoring" {
			p.next()
			if err := p.names(); err != nil {
				return 0, err
			}
		}
		right, err := p.operand()
		if err != nil {
			return 0, err
		}
		if kind == 'r' || right == 'r' {
			return 0, fmt.Errorf("a range beside %q", op)
		}
		if set && (kind == 'n' || right == 'n') {
			return 0, fmt.Errorf("a number beside %q", op)
		}
		if right == 'v' {
			kind = 'v'
		}
	}
}

// names is a list of labels in parentheses.
func (p *promql) names() error {
	if err := p.expect("("); err != nil {
		return err
	}
	for {
		name := p.next()
		if !isName(name) {
			return fmt.Errorf("%q is no label", name)
		}
		p.labels = append(p.labels, name)
		if t := p.next(); t == ")" {
			return nil
		} else if t != "," {
			return fmt.Errorf("%q in a list of labels", t)
		}
	}
}

func isName(t string) bool {
	return t != "" && (t[0] == '_' || t[0] >= 'a' && t[0] <= 'z' || t[0] >= 'A' && t[0] <= 'Z')
}

// operand returns v for a vector, r for a range of one, n for a number.
func (p *promql) operand() (kind byte, err error) {
	t := p.next()
	switch {
	case t == "(":
		if kind, err = p.binary(); err != nil {
			return 0, err
		}
		return kind, p.expect(")")
	case t != "" && t[0] >= '0' && t[0] <= '9':
		return 'n', nil
	case !isName(t):
		return 0, fmt.Errorf("%q where a value belongs", t)
	case slices.Contains(aggregations, t):
		by := p.peek() == "by" || p.peek() == "without"
		if by {
			p.next()
			if err := p.names(); err != nil {
				return 0, err
			}
		}
		return 'v', p.arguments(t, "v")
	case p.peek() == "(":
		kinds, ok := functions[t]
		if !ok {
			return 0, fmt.Errorf("function %q is not known here", t)
		}
		if t == "time" {
			return 'n', p.arguments(t, kinds)
		}
		return 'v', p.arguments(t, kinds)
	}
	return p.selector(t)
}

func (p *promql) arguments(of, kinds string) error {
	if err := p.expect("("); err != nil {
		return err
	}
	for i := range len(kinds) {
		if i > 0 {
			if err := p.expect(","); err != nil {
				return err
			}
		}
		kind, err := p.binary()
		if err != nil {
			return err
		}
		if kind != kinds[i] {
			return fmt.Errorf("%s takes %q as argument %d, not %q", of, kinds[i], i+1, kind)
		}
	}
	return p.expect(")")
}

func (p *promql) selector(metric string) (kind byte, err error) {
	s := selection{metric: metric}
	if p.peek() == "{" {
		p.next()
		for p.peek() != "}" {
			label, op, value := p.next(), p.next(), p.next()
			if !isName(label) || !slices.Contains([]string{"=", "!=", "=~", "!~"}, op) || len(value) < 2 || value[0] != '"' {
				return 0, fmt.Errorf("%s %s %s is no matcher", label, op, value)
			}
			s.labels = append(s.labels, label)
			if p.peek() == "," {
				p.next()
			}
		}
		p.next()
	}
	kind = 'v'
	if p.peek() == "[" {
		p.next()
		if d := p.next(); !regexp.MustCompile(`^\d+[smhdwy]$`).MatchString(d) {
			return 0, fmt.Errorf("%q is no duration", d)
		}
		if err := p.expect("]"); err != nil {
			return 0, err
		}
		kind = 'r'
	}
	p.found = append(p.found, s)
	return kind, nil
}

func TestParsePromQL(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		`sum by (le) (rate(x_bucket{a="b",c=~"d|e"}[5m]))`,
		`(time() - max by (a, b) (x)) > 180 and on (a, b) (y{s="live"} == 1)`,
		`histogram_quantile(0.99, sum by (le) (rate(x_bucket[1h]))) / 2`,
		`x == 0 unless on (a) (y == 1)`,
	} {
		if _, _, err := parsePromQL(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{
		``, `sum(x`, `sum(x))`, `rate(x)`, `rate(x[5])`, `sum(x[5m])`, `x{a}`, `x{a=b}`, `x{a="b"`, `by (x)`, `sum by x (y)`,
		`histogram_quantile(x)`, `histogram_quantile(0.9, x`, `unknown(x)`, `x and 1`, `x +`, `x y`, `x #`, `x[5m] > 1`,
	} {
		if _, _, err := parsePromQL(bad); err == nil {
			t.Errorf("%q is read as PromQL", bad)
		}
	}
}
