package fleet

import "time"

// Entry is one line of the audit record: who did or was refused what, where, with which result.
type Entry struct {
	Seq     int64     `json:"seq"`
	At      time.Time `json:"at"`
	Actor   string    `json:"actor"`             // name as text; kept when the person is gone
	Via     string    `json:"via"`               // session, token, cli, system
	Session string    `json:"session,omitempty"` // hash, to tell two sessions of one person apart
	Addr    string    `json:"addr,omitempty"`
	Action  string    `json:"action"` // signin, signout, user.add, cordon, uncordon, batch.create, …
	Phase   string    `json:"phase"`  // intent, result, denied, event
	Cluster string    `json:"cluster,omitempty"`
	Node    string    `json:"node,omitempty"`
	NodeUID string    `json:"node_uid,omitempty"`
	Batch   string    `json:"batch,omitempty"`
	Outcome string    `json:"outcome,omitempty"` // succeeded, failed, skipped, denied
	Reason  string    `json:"reason,omitempty"`  // what the person gave
	Detail  string    `json:"detail,omitempty"`  // before and after, or the error
	Prev    string    `json:"prev"`              // hash of the entry before
	Hash    string    `json:"hash"`              // SHA-256 over the canonical entry and Prev, hex
}

// AuditFilter narrows a reading of the record; zero fields do not narrow.
type AuditFilter struct {
	User, Cluster, Node, Action string
	Since, Until                time.Time
	Limit                       int
	BeforeSeq                   int64 // for paging: only entries older than this one
}
