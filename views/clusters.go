package views

import (
	"net/url"

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

// rightOf is a right as kubectl auth can-i writes it.
func rightOf(r fleet.TestedRight) string {
	s := r.Verb + " " + r.Resource
	if r.Group != "" {
		s += "." + r.Group
	}
	if r.Subresource != "" {
		s += "/" + r.Subresource
	}
	if r.Namespace != "" {
		s += " -n " + r.Namespace
	}
	return s
}

// rightClass marks what is missing and what is too much.
func rightClass(r fleet.TestedRight) string {
	switch {
	case r.Needed && !r.Allowed:
		return "bad"
	case !r.Needed && r.Allowed:
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
