package handlers

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// clusterBodyLimit is a kubeconfig of the greatest size that is taken, as a form writes it.
const clusterBodyLimit = 1 << 20

// retryCluster makes a cluster that waits for its next attempt try now.
func (s *server) retryCluster(w http.ResponseWriter, r *http.Request) error {
	name, err := s.cluster(r)
	if err != nil {
		return err
	}
	in, err := readInput(r)
	if err != nil {
		return err
	}
	if err := in.done(); err != nil {
		return err
	}
	return s.steered(w, r, s.cfg.Clusters.Retry(r.Context(), callerOf(r), name))
}

// acceptCluster takes the cluster that an address leads to now for the one it is known as. The uid is what the admin
// has looked at: should yet another cluster be there by now, it is not accepted with it.
func (s *server) acceptCluster(w http.ResponseWriter, r *http.Request) error {
	name, err := s.cluster(r)
	if err != nil {
		return err
	}
	in, err := readInput(r)
	if err != nil {
		return err
	}
	uid := in.text("uid")
	if uid == "" {
		in.fail(fleet.Invalid("uid", "must not be empty"))
	}
	if err := in.done(); err != nil {
		return err
	}
	return s.steered(w, r, s.cfg.Clusters.Accept(r.Context(), callerOf(r), name, uid))
}

// steered answers what was done to a cluster. A page shows what comes of it by itself.
func (s *server) steered(w http.ResponseWriter, r *http.Request, err error) error {
	switch {
	case err != nil:
		return err
	case !htmx(r) && accepts(r, "text/html"):
		http.Redirect(w, r, "/clusters", http.StatusSeeOther)
		return nil
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// showClusters is the page of clusters; form is what was sent, and what came of it. A kubeconfig is never sent back.
func (s *server) showClusters(w http.ResponseWriter, r *http.Request, status int, form views.ClusterForm, test *fleet.ClusterTest) error {
	caller := callerOf(r)
	p := views.ClustersPage{
		Layout: s.layout(r, "clusters.title", "clusters"), Clusters: s.cfg.Nodes.Clusters(caller.Sight()),
		CanRetry: caller.MaySomewhere(fleet.PermClusterRetry), CanAccept: caller.MaySomewhere(fleet.PermClusterAdmin),
		CanManage: caller.MaySomewhere(fleet.PermClusterAdmin), Form: form, Test: test,
	}
	p.NoSight = len(p.Clusters) == 0 && !caller.Sight().All()
	if p.Static = !caller.MaySomewhere(fleet.PermNodesView); !p.Static {
		p.Stream = "/clusters/stream"
	}
	if p.CanManage {
		p.Managed, p.Enabled, p.Manifest = s.managed(caller), s.cfg.Managed.Enabled(), s.cfg.Manifest
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		p.Path = "/clusters" // also when it answers a form
	}
	return s.show(w, r, status, views.Clusters(p))
}

// managed are the clusters that were added and that the person may change.
func (s *server) managed(by fleet.Caller) []fleet.ManagedCluster {
	out := []fleet.ManagedCluster{}
	for _, c := range s.cfg.Managed.Managed() {
		if by.May(fleet.PermClusterAdmin, c.Name) {
			out = append(out, c)
		}
	}
	return out
}

// spec reads what adding, replacing and testing have in common.
func (s *server) spec(r *http.Request) (*input, fleet.ClusterSpec, error) {
	if !s.cfg.Managed.Enabled() {
		return nil, fleet.ClusterSpec{}, say(fleet.ErrConflict, "error.clusters_off",
			"no cluster can be added through the web: the server has no key to seal credentials with (--key-file)")
	}
	in, err := readInput(r)
	if err != nil {
		return nil, fleet.ClusterSpec{}, err
	}
	return in, fleet.ClusterSpec{
		Name: strings.TrimSpace(in.text("name")), Context: strings.TrimSpace(in.text("context")), Kubeconfig: fleet.Secret(in.text("kubeconfig")),
	}, nil
}

// answered tells a person what was wrong with the form, in the form; everybody else by status.
func (s *server) answered(w http.ResponseWriter, r *http.Request, spec fleet.ClusterSpec, target string, err error) error {
	if problems, ok := s.formProblem(r, err); ok {
		return s.showClusters(w, r, http.StatusUnprocessableEntity,
			views.ClusterForm{Name: spec.Name, Context: spec.Context, Target: target, Errors: problems}, nil)
	}
	return err
}

func (s *server) addCluster(w http.ResponseWriter, r *http.Request) error {
	in, spec, err := s.spec(r)
	if err != nil {
		return err
	}
	var c fleet.ManagedCluster
	if err = in.done(); err == nil {
		c, err = s.cfg.Managed.AddCluster(r.Context(), callerOf(r), spec)
	}
	switch {
	case errors.Is(err, fleet.ErrConflict):
		return say(fleet.ErrConflict, "error.cluster_taken", "there is a cluster named {{.Part}} already", "Part", spec.Name)
	case err != nil:
		return s.answered(w, r, spec, "", err)
	case wantsHTML(r):
		http.Redirect(w, r, "/clusters", http.StatusSeeOther)
		return nil
	}
	w.Header().Set("Location", "/clusters/"+url.PathEscape(c.Name)+"/nodes")
	return writeJSON(w, http.StatusCreated, c)
}

// replaceCluster exchanges the credential of a cluster that was added. Its nodes stay on every page meanwhile.
func (s *server) replaceCluster(w http.ResponseWriter, r *http.Request) error {
	name, err := pathParam(r, "cluster")
	if err != nil {
		return err
	}
	in, spec, err := s.spec(r)
	if err != nil {
		return err
	}
	if in.has("name") && spec.Name != name {
		in.fail(&fleet.FieldError{Field: "name", Message: "cannot be changed", Key: "clustername.fixed"})
	}
	spec.Name = name
	var c fleet.ManagedCluster
	if err = in.done(); err == nil {
		c, err = s.cfg.Managed.ReplaceCluster(r.Context(), callerOf(r), spec)
	}
	switch {
	case err != nil:
		return s.answered(w, r, spec, name, s.unmanaged(r, name, err))
	case wantsHTML(r):
		http.Redirect(w, r, "/clusters", http.StatusSeeOther)
		return nil
	}
	return writeJSON(w, http.StatusOK, c)
}

// unmanaged tells a cluster of the host's files, which is not ours to change, from one that does not exist.
func (s *server) unmanaged(r *http.Request, name string, err error) error {
	if !errors.Is(err, fleet.ErrNotFound) {
		return err
	}
	if known := s.knownCluster(callerOf(r), name); known != nil {
		return known
	}
	return say(fleet.ErrConflict, "error.cluster_of_host", "{{.Part}} comes from a kubeconfig of the host, which is where it is changed", "Part", name)
}

// removeCluster forgets a cluster that was added. A form has to repeat its name.
func (s *server) removeCluster(w http.ResponseWriter, r *http.Request) error {
	name, err := pathParam(r, "cluster")
	if err != nil {
		return err
	}
	in, err := readInput(r)
	if err != nil {
		return err
	}
	if confirm := strings.TrimSpace(in.text("confirm")); r.Method == http.MethodPost && confirm != name {
		in.fail(&fleet.FieldError{Field: "confirm", Message: "must repeat the name of the cluster", Key: "clustername.confirm"})
	}
	if err = in.done(); err == nil {
		err = s.unmanaged(r, name, s.cfg.Managed.RemoveCluster(r.Context(), callerOf(r), name))
	}
	switch {
	case err != nil:
		return s.answered(w, r, fleet.ClusterSpec{}, name, err)
	case wantsHTML(r):
		http.Redirect(w, r, "/clusters", http.StatusSeeOther)
		return nil
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// testCluster tries a kubeconfig, or what is stored of a cluster, and says what the credential may do.
func (s *server) testCluster(w http.ResponseWriter, r *http.Request) error {
	in, spec, err := s.spec(r)
	if err != nil {
		return err
	}
	var t fleet.ClusterTest
	if err = in.done(); err == nil {
		t, err = s.cfg.Managed.TestCluster(r.Context(), callerOf(r), spec)
	}
	switch {
	case err != nil && spec.Kubeconfig == "" && spec.Name != "":
		return s.unmanaged(r, spec.Name, err)
	case err != nil:
		return s.answered(w, r, spec, "", err)
	case wantsHTML(r):
		return s.showClusters(w, r, http.StatusOK, views.ClusterForm{Name: spec.Name, Context: spec.Context}, &t)
	}
	return writeJSON(w, http.StatusOK, t)
}

func (s *server) listManaged(w http.ResponseWriter, r *http.Request) error {
	if err := onlyParams(r.URL.Query()); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]any{"items": s.managed(callerOf(r))})
}

// manifest is the service account that a cluster is given for us, for those whose own kubeconfig runs a program.
func (s *server) manifest(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/yaml; charset=utf-8")
	_, err := w.Write([]byte(s.cfg.Manifest))
	_ = err // a client that is gone is noticed by the server
	return nil
}
