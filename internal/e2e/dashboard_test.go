package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// notShown are metrics of ours that no panel shows, and why.
var notShown = map[string]string{}

// queried is one expression of a file, and what it is for.
type queried struct{ where, expr string }

// ofScrape are the labels that the scrape adds.
var ofScrape = []string{"instance", "job"}

// dashboard is the part of Grafana's format that the test looks at.
type dashboard struct {
	UID    string
	Title  string
	Inputs []struct{ Name, Type, PluginID string } `json:"__inputs"`
	Panels []panel
	Schema int `json:"schemaVersion"`
}

type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ H, W, X, Y int }
	FieldConfig              struct{ Defaults struct{ Unit string } }
	Targets                  []struct {
		Expr       string
		RefID      string
		Datasource struct{ UID string }
	}
}

func readDashboard(t *testing.T) []queried {
	t.Helper()
	b, err := os.ReadFile("../../deploy/grafana/kube-node-manager.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if d.UID == "" || d.Title == "" || d.Schema == 0 || len(d.Inputs) != 1 || d.Inputs[0].Name != "DS_PROMETHEUS" || d.Inputs[0].PluginID != "prometheus" {
		t.Errorf("the dashboard cannot be imported: %+v", d)
	}
	var found []queried
	ids := map[int]bool{}
	for i, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		for _, q := range d.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%q lies on %q", p.Title, q.Title)
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.Description == "" || len(p.Targets) == 0 || p.FieldConfig.Defaults.Unit == "" {
			t.Errorf("panel %d %q lacks a title, a description, a unit or a target", p.ID, p.Title)
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${DS_PROMETHEUS}" {
				t.Errorf("panel %q asks %q", p.Title, target.Datasource.UID)
			}
			expr := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*", "$cluster", ".*").Replace(target.Expr)
			found = append(found, queried{p.Title, expr})
		}
	}
	return found
}

func readAlerts(t *testing.T) []queried {
	t.Helper()
	b, err := os.ReadFile("../../deploy/grafana/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.UnmarshalStrict(b, &file); err != nil {
		t.Fatal(err)
	}
	var found []queried
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || r.For == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("rule %q lacks a name, a time, a severity, a summary or a description", r.Alert)
			}
			found = append(found, queried{r.Alert, r.Expr})
		}
	}
	if len(found) == 0 {
		t.Fatal("no rules")
	}
	return found
}

// The dashboard and the alerts ask for nothing that the program does not say, in words that Prometheus understands, and
// leave out nothing that it says of itself.
func TestDashboard_AsksForWhatThereIs(t *testing.T) {
	t.Parallel()
	exposed := scrape(t)
	asked := map[string]bool{}
	for _, q := range append(readDashboard(t), readAlerts(t)...) {
		found, grouped, err := parsePromQL(q.expr)
		if err != nil {
			t.Errorf("%s: %v", q.where, err)
			continue
		}
		known := append([]string{"le"}, ofScrape...)
		whole := true
		for _, s := range found {
			name, there := exposed.family(s.metric)
			asked[name] = true
			if !there {
				whole = false
				t.Errorf("%s: the program has no metric %s", q.where, s.metric)
				continue
			}
			has := append(slices.Clone(ofScrape), exposed[name]...)
			known = append(known, has...)
			for _, l := range s.labels {
				if !slices.Contains(has, l) {
					t.Errorf("%s: %s has no label %s", q.where, s.metric, l)
				}
			}
		}
		for _, l := range grouped {
			if whole && !slices.Contains(known, l) {
				t.Errorf("%s: groups by %s, which none of its metrics has", q.where, l)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(exposed)) {
		if !strings.HasPrefix(name, "knm_") {
			continue
		}
		if !asked[name] && notShown[name] == "" {
			t.Errorf("%s is on no panel and has no reason to be on none", name)
		}
	}
	for name := range notShown {
		if _, there := exposed.family(name); !there || asked[name] {
			t.Errorf("%s does not need a reason", name)
		}
	}
}

// exposition is the labels of each metric that the program says, by name.
type exposition map[string][]string

var (
	metricType   = regexp.MustCompile(`^# TYPE (\S+) (\w+)$`)
	metricSample = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? \S+$`)
	metricLabel  = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="(?:[^"\\]|\\.)*"`)
)

func readExposition(t *testing.T, r io.Reader) exposition {
	t.Helper()
	e := exposition{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if m := metricType.FindStringSubmatch(line); m != nil {
			e[m[1]] = []string{}
			continue
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		m := metricSample.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("%q is no sample", line)
		}
		name, _ := e.family(m[1])
		for _, l := range metricLabel.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(e[name], l[1]) {
				e[name] = append(e[name], l[1])
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return e
}

// family is the metric that a name in an expression or a sample belongs to: a histogram has three such names.
func (e exposition) family(name string) (family string, known bool) {
	if _, ok := e[name]; ok {
		return name, true
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok {
			_, known = e[base]
			return base, known
		}
	}
	return name, false
}

// scrape uses the program a little and reads its metrics.
func scrape(t *testing.T) exposition {
	t.Helper()
	c := kubetest.Shared(t)
	node := c.Node(t, kubetest.NodeSpec{Name: kubetest.Name(t, "n")}).Name
	metrics := freePort(t)
	s := startServerWith(t, "--kubeconfig", c.Kubeconfig, "--kubeconfig", noServers(t, 1), "--metrics-listen", metrics)
	who := s.client(t, "ada", "viewer")
	st := who.stream("GET", "/api/v1/nodes/events", "")
	st.until("the node", func(e event) bool { return e.Name == "node_add" && strings.Contains(e.Data, node) })
	c.Cordon(t, node)
	st.until("the change", func(e event) bool { return e.Name == "node_update" && strings.Contains(e.Data, node) })
	who.send("GET", "/nodes", "", "", "Accept", "text/html").Body.Close()
	until(t, "an attempt at the cluster that is down to end", patience, func() bool {
		resp := who.send("GET", "/api/v1/clusters", "", "")
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return err == nil && strings.Contains(string(b), string(fleet.ClusterUnreachable))
	})

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+metrics+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := noRedirect.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("/metrics: %s", resp.Status)
	}
	return readExposition(t, resp.Body)
}
