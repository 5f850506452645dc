// Package kubectl says how an operation is done with kubectl: for people who want to see it in the words they know, or to
// do it by hand. It runs nothing. Every word is quoted for a POSIX shell where it needs it, because names of contexts are
// free text.
package kubectl

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// defaultTimeout is that of a drain for which none was chosen, in seconds.
const defaultTimeout = 1800

// Quote quotes a word for a POSIX shell, if it needs it.
func Quote(s string) string {
	plain := s != "" && s[0] != '=' && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_./:@%+=", r)
	}) < 0
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// Command is one command for one cluster.
func Command(cluster string, words ...string) string {
	var b strings.Builder
	b.WriteString("kubectl --context ")
	b.WriteString(Quote(cluster))
	for _, w := range words {
		b.WriteByte(' ')
		b.WriteString(Quote(w))
	}
	return b.String()
}

// Commands are an operation as kubectl would do it, a command a line, cluster by cluster. What depends on the state of
// each node is not in them: a revert has none, see Undo, and where lists are replaced see Changes.
func Commands(op fleet.Operation, refs []fleet.NodeRef) []string {
	var out []string
	for _, c := range clusters(refs) {
		for _, words := range commands(op, c.nodes) {
			out = append(out, Command(c.name, words...))
		}
	}
	return out
}

type cluster struct {
	name  string
	nodes []string
}

// clusters are the nodes by cluster, in the order in which they are first named.
func clusters(refs []fleet.NodeRef) []cluster {
	var out []cluster
	at := make(map[string]int)
	for _, ref := range refs {
		i, ok := at[ref.Cluster]
		if !ok {
			i = len(out)
			at[ref.Cluster] = i
			out = append(out, cluster{name: ref.Cluster})
		}
		out[i].nodes = append(out[i].nodes, ref.Name)
	}
	return out
}

func commands(op fleet.Operation, nodes []string) [][]string {
	switch op.Action {
	case fleet.ActionCordon, fleet.ActionUncordon:
		return [][]string{append([]string{string(op.Action)}, nodes...)}
	case fleet.ActionDrain:
		return drain(op.Drain, nodes)
	case fleet.ActionLabels, fleet.ActionTaints, fleet.ActionCopy, fleet.ActionTemplate:
		var out [][]string
		if len(op.Labels) > 0 {
			out = append(out, edit("label", nodes, op.Labels, op.OnConflict))
		}
		if len(op.Taints) > 0 {
			out = append(out, edit("taint", nodes, op.Taints, op.OnConflict))
		}
		return out
	case fleet.ActionRevert:
	}
	return nil
}

func edit(verb string, nodes, lines []string, policy fleet.ConflictPolicy) []string {
	words := slices.Concat([]string{verb, "nodes"}, nodes, lines)
	if policy == fleet.ConflictOverwrite {
		words = append(words, "--overwrite")
	}
	return words
}

func drain(o *fleet.DrainOptions, nodes []string) [][]string {
	if o == nil {
		o = &fleet.DrainOptions{GracePeriodSeconds: -1}
	}
	timeout := o.TimeoutSeconds
	if timeout == 0 {
		timeout = defaultTimeout
	}
	words := append([]string{"drain"}, nodes...)
	words = append(words, "--ignore-daemonsets", fmt.Sprintf("--timeout=%ds", timeout))
	if o.GracePeriodSeconds >= 0 {
		words = append(words, fmt.Sprintf("--grace-period=%d", o.GracePeriodSeconds))
	}
	for _, f := range []struct {
		given bool
		flag  string
	}{
		{o.DeleteEmptyDirData, "--delete-emptydir-data"},
		{o.Force, "--force"},
		{o.PodSelector != "", "--pod-selector=" + o.PodSelector},
		{o.DisableEviction, "--disable-eviction"},
		{o.SkipStuckSeconds > 0, fmt.Sprintf("--skip-wait-for-delete-timeout=%d", o.SkipStuckSeconds)},
	} {
		if f.given {
			words = append(words, f.flag)
		}
	}
	out := [][]string{words}
	if o.UncordonAfter {
		out = append(out, append([]string{"uncordon"}, nodes...))
	}
	return out
}

// Node is a node with what is to become of it.
type Node struct {
	Ref   fleet.NodeRef
	Edits []fleet.Edit
}

// Changes are the edits as kubectl would make them, each from before to after. Nodes of a cluster with the same edits
// share a command.
func Changes(nodes []Node) []string {
	type group struct {
		cluster string
		words   [3][]string // label, taint, cordon
		nodes   []string
	}
	var order []string
	groups := make(map[string]*group)
	for _, n := range nodes {
		g := group{cluster: n.Ref.Cluster}
		for _, e := range n.Edits {
			kind, word := change(e)
			if word != "" {
				g.words[kind] = append(g.words[kind], word)
			}
		}
		key := fmt.Sprintf("%q%q", g.cluster, g.words)
		if groups[key] == nil {
			order = append(order, key)
			groups[key] = &g
		}
		groups[key].nodes = append(groups[key].nodes, n.Ref.Name)
	}
	var out []string
	for _, key := range order {
		g := groups[key]
		for kind, words := range g.words {
			switch {
			case len(words) == 0:
			case kind == cordons:
				out = append(out, Command(g.cluster, append(words[:1:1], g.nodes...)...))
			case kind == labels:
				out = append(out, Command(g.cluster, edit("label", g.nodes, words, fleet.ConflictOverwrite)...))
			default:
				out = append(out, Command(g.cluster, edit("taint", g.nodes, words, fleet.ConflictOverwrite)...))
			}
		}
	}
	return out
}

// The places of Changes' words.
const (
	labels = iota
	taints
	cordons
)

// change is the word for one edit, "" if nothing changes.
func change(e fleet.Edit) (kind int, word string) {
	switch e.Outcome {
	case fleet.EditAdded, fleet.EditChanged, fleet.EditRemoved:
	case fleet.EditUnchanged, fleet.EditConflict, fleet.EditKept:
		return 0, ""
	default:
		return 0, ""
	}
	switch e.Kind {
	case fleet.EditLabel:
		if e.After == nil {
			return labels, e.Key + "-"
		}
		return labels, e.Key + "=" + *e.After
	case fleet.EditTaint:
		switch {
		case e.After == nil:
			return taints, e.Key + ":" + string(e.Effect) + "-"
		case *e.After == "":
			return taints, e.Key + ":" + string(e.Effect)
		}
		return taints, e.Key + "=" + *e.After + ":" + string(e.Effect)
	case fleet.EditCordon:
		if e.After == nil {
			return cordons, "uncordon"
		}
		return cordons, "cordon"
	}
	return 0, ""
}

// Undo takes back what was changed on the nodes of a revert.
func Undo(items []fleet.Item) []string {
	nodes := make([]Node, len(items))
	for i, it := range items {
		nodes[i].Ref = it.Ref
		for _, e := range it.Undo {
			e.Before, e.After = e.After, e.Before
			nodes[i].Edits = append(nodes[i].Edits, e)
		}
	}
	return Changes(nodes)
}
