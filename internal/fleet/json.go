package fleet

import (
	"encoding/json"
	"time"
)

// The JSON of the nouns as the HTTP contract names it. Fields are added, never renamed. One place for all, so that the
// list endpoint, the detail endpoint and the stream cannot differ.

type nodeJSON struct {
	Cluster     string            `json:"cluster"`
	Name        string            `json:"name"`
	UID         string            `json:"uid"`
	Status      NodeStatus        `json:"status"`
	StatusSince time.Time         `json:"status_since,omitzero"`
	Pressure    []string          `json:"pressure"`
	Schedulable bool              `json:"schedulable"`
	Cordon      *Cordon           `json:"cordon"`
	Roles       []string          `json:"roles"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	Taints      []Taint           `json:"taints"`
	Conditions  []conditionJSON   `json:"conditions"`
	Capacity    map[string]string `json:"capacity"`
	Allocatable map[string]string `json:"allocatable"`
	Addresses   []Address         `json:"addresses"`
	Info        Info              `json:"info"`
	Created     time.Time         `json:"created"`
	UpdatedAt   time.Time         `json:"updated_at"`
	Revision    uint64            `json:"revision"`
}

// conditionJSON leaves out a time that the API does not know, where Condition would write the year 1.
type conditionJSON struct {
	Type           string    `json:"type"`
	Status         string    `json:"status"`
	Reason         string    `json:"reason"`
	Message        string    `json:"message"`
	LastHeartbeat  time.Time `json:"last_heartbeat,omitzero"`
	LastTransition time.Time `json:"last_transition,omitzero"`
}

// NodeJSON is the node as lists, details and streams show it.
func NodeJSON(n *Node) ([]byte, error) {
	conditions := make([]conditionJSON, len(n.Conditions))
	for i, c := range n.Conditions {
		conditions[i] = conditionJSON(c)
	}
	return json.Marshal(nodeJSON{
		Cluster: n.Ref.Cluster, Name: n.Ref.Name, UID: n.UID,
		Status: n.Status, StatusSince: n.StatusSince, Pressure: list(n.Pressure),
		Schedulable: n.Schedulable, Cordon: n.Cordon, Roles: list(n.Roles),
		Labels: object(n.Labels), Annotations: object(n.Annotations), Taints: list(n.Taints),
		Conditions: conditions, Capacity: object(n.Capacity.Raw), Allocatable: object(n.Allocatable.Raw),
		Addresses: list(n.Addresses), Info: n.Info,
		Created: n.Created, UpdatedAt: n.UpdatedAt, Revision: n.Revision,
	})
}

// ClusterJSON is a cluster with its live state.
func ClusterJSON(c Cluster) ([]byte, error) {
	return json.Marshal(struct {
		Name      string       `json:"name"`
		Server    string       `json:"server"`
		Version   string       `json:"version"`
		UID       string       `json:"uid"`
		FoundUID  string       `json:"found_uid,omitempty"`
		State     ClusterState `json:"state"`
		Since     time.Time    `json:"since,omitzero"`
		Reason    string       `json:"reason"`
		SyncedAt  time.Time    `json:"synced_at,omitzero"`
		LastEvent time.Time    `json:"last_event,omitzero"`
		NextRetry time.Time    `json:"next_retry,omitzero"`
		Nodes     int          `json:"nodes"`
		Ready     int          `json:"ready"`
		NotReady  int          `json:"not_ready"`
		Cordoned  int          `json:"cordoned"`

		Identity string        `json:"identity,omitempty"`
		Labels   string        `json:"labels,omitempty"`
		Rights   []TestedRight `json:"rights,omitempty"`
	}{
		c.Name, c.Server, c.Version, c.UID, c.FoundUID, c.State, c.Since, c.Reason, c.SyncedAt, c.LastEvent, c.NextRetry,
		c.Nodes, c.Ready, c.NotReady, c.Cordoned, c.Identity, c.Labels, c.asked(),
	})
}

type itemJSON struct {
	Seq       int        `json:"seq"`
	Cluster   string     `json:"cluster"`
	Node      string     `json:"node"`
	UID       string     `json:"uid,omitempty"`
	Zone      string     `json:"zone,omitempty"`
	Control   bool       `json:"control_plane,omitempty"`
	State     ItemState  `json:"state"`
	Code      string     `json:"code,omitempty"`
	Error     string     `json:"error"`
	Changed   bool       `json:"changed"`
	StartedAt time.Time  `json:"started_at,omitzero"`
	EndedAt   time.Time  `json:"ended_at,omitzero"`
	Edits     []Edit     `json:"edits,omitempty"`
	Drain     *drainJSON `json:"drain,omitempty"`
}

// drainJSON is the progress of a drain. Counted are all pods; listed are all of them, or those that hold the drain up.
type drainJSON struct {
	State    DrainState       `json:"state"`
	Since    time.Time        `json:"since,omitzero"`
	Message  string           `json:"message,omitempty"`
	Evicted  int              `json:"evicted"`
	Counts   map[PodState]int `json:"pod_states"`
	Pods     []PodProgress    `json:"pods"`
	Unlisted int              `json:"pods_unlisted,omitempty"`
	Volumes  []string         `json:"volumes,omitempty"`
	WeakLock bool             `json:"weak_lock,omitempty"`
}

// briefPods is how many pods a brief progress lists.
const briefPods = 10

// drainOf is the whole progress, or a brief one for messages that are sent with every change.
func drainOf(p *DrainProgress, brief bool) *drainJSON {
	if p == nil {
		return nil
	}
	out := &drainJSON{
		State: p.State, Since: p.Since, Message: p.Message, Evicted: p.Evicted, Counts: make(map[PodState]int),
		Pods: list(p.Pods), Volumes: p.Volumes, WeakLock: p.WeakLock,
	}
	for i := range p.Pods {
		out.Counts[p.Pods[i].State]++
	}
	if !brief {
		return out
	}
	out.Pods = []PodProgress{}
	for i := range p.Pods {
		if len(out.Pods) < briefPods && p.Pods[i].State.Stuck() {
			out.Pods = append(out.Pods, p.Pods[i])
		}
	}
	out.Unlisted = len(p.Pods) - len(out.Pods)
	return out
}

func itemOf(i Item, brief bool) itemJSON {
	return itemJSON{
		Seq: i.Seq, Cluster: i.Ref.Cluster, Node: i.Ref.Name, UID: i.UID, Zone: i.Zone, Control: i.Control, State: i.State, Code: i.Code,
		Error: i.Error, Changed: i.Changed, StartedAt: i.StartedAt, EndedAt: i.EndedAt, Edits: i.Edits, Drain: drainOf(i.Drain, brief),
	}
}

// ItemJSON is one node of a batch with all that is known of it.
func ItemJSON(i Item) ([]byte, error) { return json.Marshal(itemOf(i, false)) }

// ItemBriefJSON is one node of a batch, for streams: of a drain it lists only the pods that hold it up, at most ten.
func ItemBriefJSON(i Item) ([]byte, error) { return json.Marshal(itemOf(i, true)) }

// BatchJSON is a batch with its items and all that is known of them; nil items leave the field out, as progress messages
// and lists do.
func BatchJSON(b Batch, items []Item) ([]byte, error) { return batchJSON(b, items, false) }

// BatchBriefJSON is a batch with its items as streams show them.
func BatchBriefJSON(b Batch, items []Item) ([]byte, error) { return batchJSON(b, items, true) }

func batchJSON(b Batch, items []Item, brief bool) ([]byte, error) {
	var list *[]itemJSON
	if items != nil {
		all := make([]itemJSON, len(items))
		for i, item := range items {
			all[i] = itemOf(item, brief)
		}
		list = &all
	}
	var pause string
	if b.Rollout.PauseBetween > 0 {
		pause = b.Rollout.PauseBetween.String()
	}
	type counts struct {
		Total     int `json:"total"`
		Queued    int `json:"queued"`
		Running   int `json:"running"`
		Succeeded int `json:"succeeded"`
		Failed    int `json:"failed"`
		Skipped   int `json:"skipped"`
		Cancelled int `json:"cancelled"`
	}
	return json.Marshal(struct {
		ID          string        `json:"id"`
		Action      Action        `json:"action"`
		State       BatchState    `json:"state"`
		Outcome     BatchOutcome  `json:"outcome"`
		Reason      string        `json:"reason,omitempty"`
		Foreign     ForeignPolicy `json:"foreign,omitempty"`
		CreatedBy   string        `json:"created_by"`
		CreatedAt   time.Time     `json:"created_at"`
		StartedAt   time.Time     `json:"started_at,omitzero"`
		EndedAt     time.Time     `json:"ended_at,omitzero"`
		CancelledBy string        `json:"cancelled_by,omitempty"`
		Note        string        `json:"note,omitempty"`
		Version     int64         `json:"version"`
		Counts      counts        `json:"counts"`

		PausedBy       string         `json:"paused_by,omitempty"`
		Parent         string         `json:"parent,omitempty"`
		MaxConcurrent  int            `json:"max_concurrent,omitempty"`
		PerCluster     int            `json:"per_cluster,omitempty"`
		PerZone        int            `json:"per_zone,omitempty"`
		MaxUnavailable int            `json:"max_unavailable,omitempty"`
		MaxFailures    int            `json:"max_failures,omitempty"`
		PauseBetween   string         `json:"pause_between,omitempty"`
		Canary         int            `json:"canary,omitempty"`
		Order          BatchOrder     `json:"order,omitempty"`
		Drain          *DrainOptions  `json:"drain,omitempty"`
		Labels         []string       `json:"labels,omitempty"`
		Taints         []string       `json:"taints,omitempty"`
		Mode           EditMode       `json:"mode,omitempty"`
		OnConflict     ConflictPolicy `json:"on_conflict,omitempty"`
		AllowProtected bool           `json:"allow_protected,omitempty"`
		Source         *NodeRef       `json:"source,omitempty"`
		Template       *TemplateUse   `json:"template,omitempty"`
		Revert         string         `json:"revert,omitempty"`

		Items *[]itemJSON `json:"items,omitempty"`
	}{
		b.ID, b.Operation.Action, b.State, b.Outcome, b.Operation.Reason, b.Operation.Foreign, b.CreatedBy, b.CreatedAt,
		b.StartedAt, b.EndedAt, b.CancelledBy, b.Note, b.Version,
		counts{
			b.Counts.Total, b.Counts.Queued, b.Counts.Running, b.Counts.Succeeded, b.Counts.Failed,
			b.Counts.Skipped, b.Counts.Cancelled,
		},
		b.PausedBy, b.Parent, b.Rollout.MaxConcurrent, b.Rollout.PerCluster, b.Rollout.PerZone, b.Rollout.MaxUnavailable,
		b.Rollout.MaxFailures, pause, b.Rollout.Canary, b.Rollout.Order,
		b.Operation.Drain, b.Operation.Labels, b.Operation.Taints, b.Operation.Mode, b.Operation.OnConflict, b.Operation.AllowProtected,
		b.Operation.Source, b.Operation.Template, b.Operation.Revert,
		list,
	})
}

// list and object keep an absent value an empty one: clients iterate over it without asking first.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func object(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
