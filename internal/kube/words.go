package kube

import (
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Words lets the nodes of a cluster share what they have in common: decoding makes a string of its own of every key,
// zone, version and message, the same ones for every node, and that is most of what a node costs to keep. A nil Words
// shares nothing. Methods may be called from many goroutines.
type Words struct {
	mu     sync.Mutex // guards everything below
	words  map[string]string
	tables map[string]map[string]string
}

// Bounds of what Words remembers. Much of it is not common at all (host names, addresses): when it is full it begins
// anew, and what is common is back after a few nodes.
const (
	maxWords  = 8192
	maxTables = 1024
	maxWord   = 256 // bytes; longer text is hardly ever the same
)

// NewWords returns an empty Words.
func NewWords() *Words {
	return &Words{words: map[string]string{}, tables: map[string]map[string]string{}}
}

// Node is like the function Node, with everything shared that can be.
func (w *Words) Node(cluster string, n *corev1.Node) *fleet.Node {
	out := Node(cluster, n)
	if w == nil {
		return out
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	out.Labels, out.Annotations = w.all(out.Labels), w.all(out.Annotations)
	for i := range out.Roles {
		out.Roles[i] = w.word(out.Roles[i])
	}
	for i := range out.Taints {
		t := &out.Taints[i]
		t.Key, t.Value, t.Effect = w.word(t.Key), w.word(t.Value), fleet.TaintEffect(w.word(string(t.Effect)))
	}
	for i := range out.Conditions {
		c := &out.Conditions[i]
		c.Type, c.Status, c.Reason, c.Message = w.word(c.Type), w.word(c.Status), w.word(c.Reason), w.word(c.Message)
	}
	for i := range out.Pressure {
		out.Pressure[i] = w.word(out.Pressure[i])
	}
	for i := range out.Addresses {
		out.Addresses[i].Type = w.word(out.Addresses[i].Type)
	}
	i := &out.Info
	for _, s := range []*string{&i.KubeletVersion, &i.OSImage, &i.OS, &i.Architecture, &i.KernelVersion, &i.ContainerRuntime} {
		*s = w.word(*s)
	}
	out.Capacity.Raw = w.table(out.Capacity.Raw)
	out.Allocatable.Raw = w.table(out.Allocatable.Raw)
	return out
}

// word is the one copy of a text. mu is held.
func (w *Words) word(s string) string {
	if s == "" || len(s) > maxWord {
		return s
	}
	if one, ok := w.words[s]; ok {
		return one
	}
	if len(w.words) >= maxWords {
		clear(w.words)
	}
	// What was decoded in one piece with something large must not keep that alive.
	s = strings.Clone(s)
	w.words[s] = s
	return s
}

// all is a map with the same content, of the one copies. mu is held.
func (w *Words) all(m map[string]string) map[string]string {
	if m == nil {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[w.word(k)] = w.word(v)
	}
	return out
}

// table is the one copy of a whole map: nodes of a type have the same amounts of everything. mu is held.
func (w *Words) table(m map[string]string) map[string]string {
	var key strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		key.WriteString(k)
		key.WriteByte(0)
		key.WriteString(m[k])
		key.WriteByte(0)
	}
	if one, ok := w.tables[key.String()]; ok {
		return one
	}
	if len(w.tables) >= maxTables {
		clear(w.tables)
	}
	m = w.all(m)
	w.tables[key.String()] = m
	return m
}
