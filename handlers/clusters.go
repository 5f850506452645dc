package handlers

import (
	"net/http"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

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
