package views

import (
	"net/url"
	"slices"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// serviceAccountSteps give a cluster a service account for us, and make a kubeconfig of it: kubectl's own commands, the
// same in every language.
const serviceAccountSteps = `kubectl create namespace kube-node-manager
kubectl apply -f rbac.yaml
TOKEN=$(kubectl -n kube-node-manager create token kube-node-manager --duration=8760h)
kubectl config view --raw --minify --flatten > new.kubeconfig
kubectl --kubeconfig new.kubeconfig config unset users
kubectl --kubeconfig new.kubeconfig config set-credentials kube-node-manager --token="$TOKEN"
kubectl --kubeconfig new.kubeconfig config set-context --current --user=kube-node-manager`

func clusterReplaceURL(cluster string) string {
	return "/api/v1/clusters/" + url.PathEscape(cluster) + "/replace"
}

func clusterRemoveURL(cluster string) string {
	return "/api/v1/clusters/" + url.PathEscape(cluster) + "/delete"
}

// What the form of a new cluster is filled with: nothing of a form that was about another one.
func (f ClusterForm) nameOfNew() string    { return f.ofNew(f.Name) }
func (f ClusterForm) contextOfNew() string { return f.ofNew(f.Context) }
func (f ClusterForm) problem(name string) string {
	return f.ofNew(f.Errors[name])
}

func (f ClusterForm) ofNew(s string) string {
	if f.Target != "" {
		return ""
	}
	return s
}

// noClusters is the text for somebody who sees no cluster: that there is none, or whom to ask.
func noClusters(noSight bool) string {
	if noSight {
		return "empty.nosight"
	}
	return "empty.noclusters"
}

// rightWords are the words for rights, several of which may be one thing to a person.
var rightWords = []struct {
	key string // of the catalogue, behind "right."
	is  func(t fleet.TestedRight) bool
}{
	{"nodes", func(t fleet.TestedRight) bool { return t.Resource == "nodes" && t.Verb != "patch" }},
	{"change", func(t fleet.TestedRight) bool { return t.Resource == "nodes" && t.Verb == "patch" }},
	{"pods", func(t fleet.TestedRight) bool {
		return t.Resource == "pods" && t.Subresource == "" && t.Verb != "delete"
	}},
	{"evict", func(t fleet.TestedRight) bool { return t.Subresource == "eviction" }},
	{"delete", func(t fleet.TestedRight) bool { return t.Resource == "pods" && t.Verb == "delete" }},
	{"budgets", func(t fleet.TestedRight) bool { return t.Resource == "poddisruptionbudgets" }},
	{"leases", func(t fleet.TestedRight) bool { return t.Resource == "leases" }},
	{"impersonate", func(t fleet.TestedRight) bool { return t.Verb == fleet.VerbImpersonate && t.Needed }},
	{"anybody", func(t fleet.TestedRight) bool { return t.Verb == fleet.VerbImpersonate && !t.Needed }},
}

// rightsText says what of some rights is permitted, or is not.
func rightsText(lang string, rights []fleet.TestedRight, allowed bool) string {
	var words []string
	for _, w := range rightWords {
		some, all := false, true
		for _, t := range rights {
			if w.is(t) {
				some, all = true, all && t.Allowed
			}
		}
		if some && all == allowed {
			words = append(words, T(lang, "right."+w.key))
		}
	}
	return strings.Join(words, ", ")
}

// lacks are the actions that a cluster would refuse, for lack of a right of ours. One that is not live has said nothing
// that counts.
func lacks(c fleet.Cluster) []fleet.Action {
	var out []fleet.Action
	for _, a := range fleet.Actions() {
		if c.State == fleet.ClusterLive && len(c.Rights.Missing(fleet.Operation{Action: a})) > 0 {
			out = append(out, a)
		}
	}
	return out
}

// whyLacks says why a cluster would refuse an action, "" if it would not.
func whyLacks(lang string, c fleet.Cluster, a fleet.Action) string {
	if !slices.Contains(lacks(c), a) {
		return ""
	}
	return T(lang, "cluster.lacks", "Cluster", c.Name, "Rights", rightsText(lang, c.Rights.Missing(fleet.Operation{Action: a}), false))
}

// inOne is why the one cluster of a list would refuse an action. In a list of several it depends on what is selected.
func inOne(p NodesPage, a fleet.Action) string {
	if p.Query.Cluster == "" || len(p.Clusters) != 1 {
		return ""
	}
	return whyLacks(p.Lang, p.Clusters[0], a)
}

func words(actions []fleet.Action) string {
	out := make([]string, len(actions))
	for i, a := range actions {
		out[i] = string(a)
	}
	return strings.Join(out, " ")
}

// rightClass marks what is missing and what is too much.
func rightClass(r fleet.TestedRight) string {
	switch {
	case r.Needed && !r.Allowed:
		return "bad"
	case !r.Needed && !r.Optional && r.Allowed:
		return "warn"
	}
	return "ok"
}

func testClass(t *fleet.ClusterTest) string {
	if t.Outcome == fleet.TestOK {
		return "ok"
	}
	return "bad"
}

func yesNo(lang string, yes bool) string {
	if yes {
		return T(lang, "yes")
	}
	return T(lang, "no")
}
