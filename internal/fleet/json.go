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
	}{
		c.Name, c.Server, c.Version, c.UID, c.FoundUID, c.State, c.Since, c.Reason, c.SyncedAt, c.LastEvent, c.NextRetry,
		c.Nodes, c.Ready, c.NotReady, c.Cordoned,
	})
}

type itemJSON struct {
	Seq       int       `json:"seq"`
	Cluster   string    `json:"cluster"`
	Node      string    `json:"node"`
	UID       string    `json:"uid,omitempty"`
	State     ItemState `json:"state"`
	Code      string    `json:"code,omitempty"`
	Error     string    `json:"error"`
	Changed   bool      `json:"changed"`
	StartedAt time.Time `json:"started_at,omitzero"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
}

func itemOf(i Item) itemJSON {
	return itemJSON{
		Seq: i.Seq, Cluster: i.Ref.Cluster, Node: i.Ref.Name, UID: i.UID, State: i.State, Code: i.Code,
		Error: i.Error, Changed: i.Changed, StartedAt: i.StartedAt, EndedAt: i.EndedAt,
	}
}

// ItemJSON is one node of a batch.
func ItemJSON(i Item) ([]byte, error) { return json.Marshal(itemOf(i)) }

// BatchJSON is a batch with its items; nil items leave the field out, as progress messages and lists do.
func BatchJSON(b Batch, items []Item) ([]byte, error) {
	var list *[]itemJSON
	if items != nil {
		all := make([]itemJSON, len(items))
		for i, item := range items {
			all[i] = itemOf(item)
		}
		list = &all
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
		Items       *[]itemJSON   `json:"items,omitempty"`
	}{
		b.ID, b.Operation.Action, b.State, b.Outcome, b.Operation.Reason, b.Operation.Foreign, b.CreatedBy, b.CreatedAt,
		b.StartedAt, b.EndedAt, b.CancelledBy, b.Note, b.Version,
		counts{
			b.Counts.Total, b.Counts.Queued, b.Counts.Running, b.Counts.Succeeded, b.Counts.Failed,
			b.Counts.Skipped, b.Counts.Cancelled,
		},
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
