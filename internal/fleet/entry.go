package fleet

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"
)

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
	// ClusterUID tells which cluster was called that; "" where it was not known, or from before it was recorded.
	ClusterUID string `json:"cluster_uid,omitempty"`
	As         string `json:"as,omitempty"` // who it was done as in the cluster; "" for our own credential
	Node       string `json:"node,omitempty"`
	NodeUID    string `json:"node_uid,omitempty"`
	Batch      string `json:"batch,omitempty"`
	Outcome    string `json:"outcome,omitempty"` // succeeded, failed, skipped, denied
	Reason     string `json:"reason,omitempty"`  // what the person gave
	Detail     string `json:"detail,omitempty"`  // before and after, or the error
	Prev       string `json:"prev"`              // hash of the entry before
	Hash       string `json:"hash"`              // SHA-256 over the canonical entry and Prev, hex
}

// AuditFilter narrows a reading of the record; zero fields do not narrow.
type AuditFilter struct {
	User, Cluster, Node, Action, Outcome, Batch, Session string

	Since, Until time.Time // from Since on, and before Until
	Limit        int
	BeforeSeq    int64 // only entries older than this one
	AfterSeq     int64 // only entries newer than this one
	Oldest       bool  // begin with the oldest entry, not with the newest
}

// AuditOutcomes are what an entry can say came of it.
func AuditOutcomes() []string {
	return []string{"succeeded", "failed", "skipped", "denied", "partial", "cancelled"}
}

// The canonical encodings of an entry. A change of one needs a new name.
const (
	entryForm = "knm-audit-1"
	// entryForm2 adds ClusterUID and As. Entries without either keep the first, and with it the hash that they always had.
	entryForm2 = "knm-audit-2"
)

// Sum is the hash an entry must carry: lower-case hex of SHA-256 over the canonical encoding, which is the name of the
// form and then Seq, At, Actor, Via, Session, Addr, Action, Phase, Cluster, Node, NodeUID, Batch, Outcome, Reason, Detail
// and Prev, each written as its length in bytes in decimal, a colon, the bytes and a newline. Numbers are decimal; At is
// microseconds since 1970 in UTC. The form is knm-audit-1; for an entry with ClusterUID or As it is knm-audit-2, and those
// two come last. The lengths and the name keep two different entries from ever having the same encoding.
func (e Entry) Sum() string {
	form, more := entryForm, []string(nil)
	if e.ClusterUID != "" || e.As != "" {
		form, more = entryForm2, []string{e.ClusterUID, e.As}
	}
	b := make([]byte, 0, 1024) // of most entries; a record of a million is checked in one go
	for _, field := range append([]string{
		form, strconv.FormatInt(e.Seq, 10), strconv.FormatInt(e.At.UnixMicro(), 10), e.Actor, e.Via, e.Session, e.Addr,
		e.Action, e.Phase, e.Cluster, e.Node, e.NodeUID, e.Batch, e.Outcome, e.Reason, e.Detail, e.Prev,
	}, more...) {
		b = strconv.AppendInt(b, int64(len(field)), 10)
		b = append(append(append(b, ':'), field...), '\n')
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
