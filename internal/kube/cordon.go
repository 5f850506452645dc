package kube

import (
	"encoding/json"
	"fmt"
	"time"
)

// What this product writes on a node that it cordons.
const (
	// CordonAnnotation holds a CordonNote as JSON.
	CordonAnnotation = "kube-node-manager.io/cordon"
	// CordonReasonAnnotation holds the reason alone, for people who read the node with kubectl.
	CordonReasonAnnotation = "kube-node-manager.io/cordon-reason"
	// FieldManager names us in managedFields.
	FieldManager = "kube-node-manager"
)

// CordonNote says who cordoned a node, why and when, and what it was before.
type CordonNote struct {
	V                 int       `json:"v"`
	By                string    `json:"by"`
	Via               string    `json:"via,omitempty"`
	Reason            string    `json:"reason"`
	At                time.Time `json:"at,omitzero"`
	Batch             string    `json:"job,omitempty"`
	PrevUnschedulable bool      `json:"prevUnschedulable"`
}

// maxNote bounds what is read back. Anybody with access to the cluster can write the annotation.
const maxNote = 16 << 10

// ParseCordonNote reads the annotation. Fields it does not know are ignored: a newer version of this product may have
// written them.
func ParseCordonNote(s string) (CordonNote, error) {
	if len(s) > maxNote {
		return CordonNote{}, fmt.Errorf("cordon note of %d bytes is too long", len(s))
	}
	var n CordonNote
	if err := json.Unmarshal([]byte(s), &n); err != nil {
		return CordonNote{}, fmt.Errorf("reading cordon note: %w", err)
	}
	if n.V < 1 {
		return CordonNote{}, fmt.Errorf("cordon note has version %d", n.V)
	}
	return n, nil
}

// String is the annotation's value.
func (n CordonNote) String() string {
	b, err := json.Marshal(n)
	if err != nil { // only a year beyond 9999 can do this; a note without a time still says who and why
		n.At = time.Time{}
		b, _ = json.Marshal(n) // strings, ints and bools always encode
	}
	return string(b)
}
