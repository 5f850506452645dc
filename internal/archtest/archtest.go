// Package archtest fails when a room imports what it must not, directly or through others. The table in it is the
// architecture as far as a machine can hold it; a package without a row fails too.
package archtest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

const module = "github.com/kube-node-manager/kube-node-manager"

// rule says what one room may import. Test files are not bound by it.
type rule struct {
	ours    []string // rooms of ours, relative to the module; "*" for all
	outside []string // prefixes of modules and packages outside of the standard library
	never   []string // prefixes that must not be reached even through others, standard library included
	direct  []string // prefixes that the room's own files must not name, standard library included
	support bool     // for tests and tools: no room of the product may import it
}

// Prefixes that occur in more than one row.
const (
	k8s  = "k8s.io/"
	chi  = "github.com/go-chi/"
	tpl  = "github.com/a-h/templ"
	prom = "github.com/prometheus/client_golang/prometheus"
	sql  = "database/sql$" // its driver package comes with almost anything
)

var rules = map[string]rule{
	"cmd/kube-node-manager": {ours: []string{"internal/app", "internal/config"}},
	"internal/fleet":        {never: []string{k8s, chi, tpl, sql, "net/http"}},
	"internal/inert":        {never: []string{k8s, chi, tpl, sql, "net/http"}},
	"internal/config":       {ours: []string{"internal/fleet"}, outside: []string{"github.com/alecthomas/kong"}, never: []string{k8s, chi, tpl, sql}},
	"internal/audit":        {ours: []string{"internal/fleet"}, never: []string{k8s, chi, tpl}},
	"internal/auth": {
		ours:    []string{"internal/auth/totp", "internal/fleet"},
		outside: []string{"github.com/alexedwards/argon2id", "github.com/alexedwards/scs/v2", "golang.org/x/crypto/", "golang.org/x/text/"},
		never:   []string{k8s, chi, tpl, sql},
	},
	"internal/auth/oidc": {
		ours: []string{"internal/fleet"}, outside: []string{"github.com/coreos/go-oidc/v3/oidc", "golang.org/x/oauth2"}, never: []string{k8s, chi, tpl, sql},
	},
	"internal/auth/ldap": {
		ours: []string{"internal/fleet"}, outside: []string{"github.com/go-ldap/ldap/v3"}, never: []string{k8s, chi, tpl, sql},
	},
	"internal/auth/totp":   {outside: []string{"github.com/boombuler/barcode/qr"}, never: []string{k8s, chi, tpl, sql, "net/http"}},
	"internal/seal":        {ours: []string{"internal/fleet"}, never: []string{k8s, chi, tpl, sql, "net/http"}},
	"internal/credentials": {ours: []string{"internal/fleet"}, outside: []string{"go.yaml.in/yaml/v3"}, never: []string{k8s, chi, tpl, sql}},
	"internal/kube":        {ours: []string{"internal/fleet"}, outside: []string{k8s}, never: []string{chi, tpl, sql}},
	"internal/marks": {
		ours: []string{"internal/fleet"}, outside: []string{"k8s.io/apimachinery/pkg/api/validate/content"}, never: []string{chi, tpl, sql},
	},
	"internal/kubectl": {ours: []string{"internal/fleet"}, never: []string{k8s, chi, tpl, sql}},
	"internal/nodeops": {
		ours:    []string{"internal/drain", "internal/fleet", "internal/kube", "internal/kubectl", "internal/marks"},
		outside: []string{k8s}, never: []string{chi, tpl, sql},
	},
	"internal/drain": {
		ours: []string{"internal/fleet", "internal/kube"}, outside: []string{k8s}, never: []string{chi, tpl, sql},
	},
	"internal/batch": {
		ours: []string{"internal/fleet"}, outside: []string{prom, "golang.org/x/sync/", "golang.org/x/time/"}, never: []string{k8s, chi, tpl, sql},
	},
	"internal/store": {
		ours:    []string{"internal/fleet"},
		outside: []string{"github.com/jackc/pgx/v5", "github.com/jmoiron/sqlx", "github.com/pressly/goose/v3", "modernc.org/sqlite"},
		never:   []string{k8s, chi, tpl},
	},
	"internal/templates": {
		ours: []string{"internal/fleet", "internal/marks"}, outside: []string{"golang.org/x/text/unicode/norm"}, never: []string{chi, tpl, sql},
	},
	"realtime": {
		ours:    []string{"internal/fleet", "internal/kube"},
		outside: []string{k8s, prom, "github.com/r3labs/sse/v2", "github.com/klauspost/compress/flate", "golang.org/x/time/rate"},
		never:   []string{chi, tpl, sql},
	},
	"deploy/kubernetes": {never: []string{k8s, chi, tpl, sql}},
	"static":            {never: []string{k8s, chi, tpl, sql}},
	"views": {
		ours:    []string{"internal/fleet", "internal/kubectl"},
		outside: []string{tpl, "github.com/nicksnyder/go-i18n/v2/i18n", "golang.org/x/text/language"},
		never:   []string{k8s, chi, sql},
		direct:  []string{"net/http"}, // templ itself needs it
	},
	"handlers": {
		// Of realtime only types and the parser of queries. What it brings along is not for use here.
		ours:    []string{"internal/fleet", "internal/inert", "realtime", "static", "views"},
		outside: []string{chi, tpl, prom, "github.com/klauspost/compress/gzhttp", "golang.org/x/text/language"},
		never:   []string{sql},
	},
	"internal/app": {
		// Plugins that sign in to clusters by themselves: what is not linked cannot be talked into anything.
		never:   []string{"k8s.io/client-go/plugin/pkg/client/auth/azure", "k8s.io/client-go/plugin/pkg/client/auth/gcp", "k8s.io/client-go/plugin/pkg/client/auth/oidc"},
		ours:    []string{"*"},
		outside: []string{k8s, prom, "github.com/r3labs/sse/v2", "github.com/KimMachineGun/automemlimit"},
	},

	"internal/archtest":        {support: true},
	"internal/bench":           {support: true, ours: []string{"*"}, outside: []string{"*"}},
	"internal/defects":         {support: true},
	"internal/depspin":         {support: true, outside: []string{"*"}},
	"internal/e2e":             {support: true, ours: []string{"*"}, outside: []string{"*"}},
	"internal/faultproxy":      {support: true, outside: []string{k8s}},
	"internal/ldaptest":        {support: true, ours: []string{"internal/faultproxy"}, outside: []string{"github.com/go-ldap/ldap/v3"}},
	"internal/sbom":            {support: true},
	"internal/kubetest":        {support: true, ours: []string{"internal/fleet", "internal/kube"}, outside: []string{"*"}},
	"internal/store/storetest": {support: true, ours: []string{"internal/faultproxy", "internal/fleet", "internal/store"}, outside: []string{"github.com/google/go-cmp/"}},
	"deploy/demo":              {support: true},
}

// onlyCmd may be imported by commands and support alone.
const onlyCmd = "internal/app"

// graph is the imports of each package, tests left out. std are the packages of the standard library.
type graph struct {
	imports map[string][]string
	std     map[string]bool
}

// check names every import that the rules do not allow.
func check(g graph, rules map[string]rule) []string {
	var bad []string
	report := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	for _, pkg := range slices.Sorted(maps.Keys(g.imports)) {
		room, ok := ours(pkg)
		if !ok {
			continue
		}
		r, ok := rules[room]
		if !ok {
			report("%s has no row: say in archtest what it may import", room)
			continue
		}
		for _, imp := range g.imports[pkg] {
			target, isOurs := ours(imp)
			switch {
			case isOurs && rules[target].support && !r.support:
				report("%s imports %s, which is for tests and tools", room, target)
			case isOurs && target == onlyCmd && !r.support && !strings.HasPrefix(room, "cmd/"):
				report("%s imports %s, which only commands and tests may", room, target)
			case isOurs && !slices.Contains(r.ours, target) && !slices.Contains(r.ours, "*"):
				report("%s imports %s", room, target)
			case !isOurs && !g.std[imp] && !hasPrefix(imp, r.outside):
				report("%s imports %s", room, imp)
			case hasPrefix(imp, r.direct):
				report("%s imports %s directly", room, imp)
			}
		}
		for _, dep := range g.reach(pkg) {
			if hasPrefix(dep.name, r.never) {
				report("%s reaches %s through %s", room, dep.name, strings.Join(dep.path, " → "))
			}
		}
	}
	return bad
}

func ours(pkg string) (room string, ok bool) {
	if pkg == module {
		return ".", true
	}
	return strings.CutPrefix(pkg, module+"/")
}

// hasPrefix matches whole elements of a path: "net/http" is also "net/http/httptrace" and not "net/httpx". A "$" at the
// end leaves out what lies below.
func hasPrefix(pkg string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool {
		if exact, ok := strings.CutSuffix(p, "$"); ok {
			return pkg == exact
		}
		return p == "*" || pkg == p || strings.HasPrefix(pkg, strings.TrimSuffix(p, "/")+"/")
	})
}

type reached struct {
	name string
	path []string
}

// reach lists everything that a package imports through others, with one shortest way there. What a package of ours
// outside of its own imports reaches counts as well: that is the point.
func (g graph) reach(pkg string) []reached {
	from := map[string]string{pkg: ""}
	queue := []string{pkg}
	var out []reached
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		for _, imp := range g.imports[p] {
			if _, seen := from[imp]; seen {
				continue
			}
			from[imp] = p
			queue = append(queue, imp)
			var path []string
			for at := imp; at != pkg; at = from[at] {
				path = append([]string{at}, path...)
			}
			out = append(out, reached{imp, path})
		}
	}
	return out
}
