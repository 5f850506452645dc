package drain

import (
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Result is what a drain came to.
type Result struct {
	State    fleet.DrainState    `json:"state"`
	Cordoned bool                `json:"cordoned"`          // the cordon was acknowledged
	Evicted  int                 `json:"evicted"`           // evictions that the server accepted in this run
	Pods     []fleet.PodProgress `json:"pods"`              // all that were seen, as they were last
	Volumes  []string            `json:"volumes,omitempty"` // still attached to a drained node
	Message  string              `json:"message,omitempty"`
}
