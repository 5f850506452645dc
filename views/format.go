package views

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kubectl"
)

// iso is the machine's form of a time, read by the script that writes it in the reader's zone.
func iso(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// utc is what stands in the page until the script has run, and for ever without it. It does not tick.
func utc(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") + " UTC" }

// cores writes thousandths of a core the way people read them: 8, 7.91, 0.25.
func cores(milli int64) string {
	if milli%1000 == 0 {
		return strconv.FormatInt(milli/1000, 10)
	}
	return strings.TrimRight(strconv.FormatFloat(float64(milli)/1000, 'f', 2, 64), "0")
}

// size writes bytes in the binary units of Kubernetes with three digits at most: 31.2Gi, 512Mi.
func size(b int64) string {
	const units = "KMGTPE"
	if b < 1024 {
		return strconv.FormatInt(b, 10)
	}
	v, u := float64(b), -1
	for v >= 1024 && u < len(units)-1 {
		v /= 1024
		u++
	}
	digits := 1
	if v >= 100 || v == float64(int64(v)) {
		digits = 0
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + units[u:u+1] + "i"
}

func statusClass(s fleet.NodeStatus) string {
	switch s {
	case fleet.StatusReady:
		return "ok"
	case fleet.StatusNotReady:
		return "bad"
	case fleet.StatusUnknown:
	}
	return "unk"
}

// cordonKind is what the selection has to know of a row: whether uncordon would need the explicit choice.
func cordonKind(n *fleet.Node) string {
	switch {
	case n.Schedulable:
		return "none"
	case n.Cordon == nil || n.Cordon.By == "":
		return "foreign"
	}
	return "ours"
}

// shownTaints leaves out the taint that only repeats what the scheduling column says.
func shownTaints(ts []fleet.Taint) []fleet.Taint {
	i := slices.IndexFunc(ts, isCordonTaint)
	if i < 0 {
		return ts
	}
	return slices.DeleteFunc(slices.Clone(ts), isCordonTaint)
}

func isCordonTaint(t fleet.Taint) bool { return t.Key == "node.kubernetes.io/unschedulable" }

// taintText is the form kubectl reads and writes.
func taintText(t fleet.Taint) string {
	if t.Value != "" {
		return t.Key + "=" + t.Value + ":" + string(t.Effect)
	}
	return t.Key + ":" + string(t.Effect)
}

// taintPrefix is the part of a taint that a list has no room to show, taintRest is what it is told by.
func taintPrefix(t fleet.Taint) string { return t.Key[:strings.LastIndexByte(t.Key, '/')+1] }

func taintRest(t fleet.Taint) string { return taintText(t)[len(taintPrefix(t)):] }

func taintTexts(ts []fleet.Taint) string {
	s := make([]string, len(ts))
	for i, t := range ts {
		s[i] = taintText(t)
	}
	return strings.Join(s, ", ")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// resourceNames are the resources of a node, the common ones first.
func resourceNames(n *fleet.Node) []string {
	common := []string{"cpu", "memory", "ephemeral-storage", "pods"}
	seen := map[string]bool{}
	for k := range n.Capacity.Raw {
		seen[k] = true
	}
	for k := range n.Allocatable.Raw {
		seen[k] = true
	}
	var out []string
	for _, k := range common {
		if seen[k] {
			out = append(out, k)
			delete(seen, k)
		}
	}
	return append(out, sortedKeys(seen)...)
}

// resource writes one amount for people; the raw quantity of the API is in the tip.
func resource(r fleet.Resources, name string) string {
	raw, ok := r.Raw[name]
	if !ok {
		return "–"
	}
	switch name {
	case "cpu":
		return cores(r.CPUMilli)
	case "memory":
		return size(r.MemoryBytes)
	case "ephemeral-storage":
		return size(r.EphemeralBytes)
	}
	return raw
}

// conditionClass says whether a condition is in its good state. Ready is good when True, what Kubernetes and its node
// problem detectors add is good when False.
func conditionClass(c fleet.Condition) string {
	good := "False"
	if c.Type == "Ready" {
		good = "True"
	}
	switch c.Status {
	case good:
		return "ok"
	case "Unknown":
		return "unk"
	}
	if c.Type == "Ready" {
		return "bad"
	}
	return "warn"
}

// batchKubectl is what a batch does as kubectl would do it, a command a line; "" for what kubectl cannot say.
func batchKubectl(op fleet.Operation, items []fleet.Item) string {
	switch {
	case op.Action == fleet.ActionRevert:
		return strings.Join(kubectl.Undo(items), "\n")
	case op.Mode == fleet.EditReplace:
		return "" // what it does depends on the node; the plan has it
	}
	refs := make([]fleet.NodeRef, len(items))
	for i := range items {
		refs[i] = items[i].Ref
	}
	return strings.Join(kubectl.Commands(op, refs), "\n")
}

// batchClass colours state and outcome; the words stand beside it.
func batchClass(b fleet.Batch) string {
	switch b.State {
	case fleet.BatchRunning, fleet.BatchQueued:
		return "run"
	case fleet.BatchPaused, fleet.BatchInterrupted:
		return "warn"
	case fleet.BatchDone:
	}
	switch b.Outcome {
	case fleet.OutcomeSucceeded:
		return "ok"
	case fleet.OutcomePartial:
		return "warn"
	case fleet.OutcomeFailed:
		return "bad"
	case fleet.OutcomeCancelled:
	}
	return "unk"
}

// batchWord is the one word for where a batch is: its outcome once there is one.
func batchWord(lang string, b fleet.Batch) string {
	if b.State == fleet.BatchDone && b.Outcome != "" {
		return T(lang, "outcome."+string(b.Outcome))
	}
	return T(lang, "batch.state."+string(b.State))
}

func itemClass(s fleet.ItemState) string {
	switch s {
	case fleet.ItemSucceeded:
		return "ok"
	case fleet.ItemFailed:
		return "bad"
	case fleet.ItemSkipped:
		return "warn"
	case fleet.ItemRunning:
		return "run"
	case fleet.ItemQueued:
		return "idle"
	case fleet.ItemCancelled:
	}
	return "unk"
}

// itemWhy is the sentence beside the state: what the code means, then what exactly was said.
func itemWhy(lang string, it fleet.Item) string {
	if it.Code == "" {
		return ""
	}
	if key := "code." + it.Code; Has(key) {
		return T(lang, key)
	}
	return it.Code
}

// segment is one stretch of a progress bar in thousandths of its width.
type segment struct {
	class   string
	x, w    int
	n       int
	textKey string
}

// segments lays the bar out; a count that is not zero is never so thin that it cannot be seen.
func segments(c fleet.Counts) []segment {
	parts := []segment{
		{class: "ok", n: c.Succeeded, textKey: "item.succeeded"},
		{class: "bad", n: c.Failed, textKey: "item.failed"},
		{class: "warn", n: c.Skipped, textKey: "item.skipped"},
		{class: "unk", n: c.Cancelled, textKey: "item.cancelled"},
		{class: "run", n: c.Running, textKey: "item.running"},
	}
	if c.Total == 0 {
		return nil
	}
	out := parts[:0]
	x := 0
	for _, p := range parts {
		if p.n == 0 {
			continue
		}
		p.x, p.w = x, max(p.n*1000/c.Total, 4)
		x += p.w
		out = append(out, p)
	}
	return out
}

func itoa(n int) string { return strconv.Itoa(n) }

func clusterClass(c fleet.Cluster) string {
	switch c.State {
	case fleet.ClusterLive:
		return "ok"
	case fleet.ClusterConnecting, fleet.ClusterSyncing:
		return "run"
	case fleet.ClusterStale:
		return "warn"
	case fleet.ClusterStopped, fleet.ClusterAsleep:
		return "unk"
	case fleet.ClusterUnreachable, fleet.ClusterUnauthorized, fleet.ClusterForbidden:
	}
	return "bad"
}

// podClass: a pod that runs and is not ready deserves a look.
func podClass(p fleet.Pod) string {
	switch p.Phase {
	case "Running":
		if p.Ready {
			return "ok"
		}
		return "warn"
	case "Succeeded":
		return "unk"
	case "Failed":
		return "bad"
	}
	return "run"
}

// asset is the hashed URL of a file; pages rendered without a server, in tests, name the file itself.
func (l Layout) asset(name string) string {
	if l.Asset == nil {
		return "/static/" + name
	}
	return l.Asset(name)
}

// may asks what the person may do in the page's cluster, or anywhere if it is about several, to know what to show; the
// server decides again when it is used.
func (l Layout) may(p fleet.Permission) bool {
	if l.In == "" {
		return l.Caller.MaySomewhere(p)
	}
	return l.Caller.May(p, l.In)
}

// shortID is enough of an id to tell batches apart by eye.
func shortID(id string) string {
	if len(id) > 10 {
		return id[len(id)-8:]
	}
	return id
}

// agent is the part of a User-Agent that a person recognises.
func agent(ua string) string {
	const limit = 90
	r := []rune(ua)
	if len(r) > limit {
		return string(r[:limit]) + "…"
	}
	return ua
}

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

// countNumber is one of the numbers of the summary, by the DOM id it lives under.
type countNum struct {
	id string
	n  int
}

// notKnown stands for a number that nobody knows yet.
const notKnown = -1

// known is the counters as they may be shown: those of clusters whose nodes have not come yet are no zeros.
func (c Counts) known() Counts {
	if c.Waiting {
		return Counts{notKnown, notKnown, notKnown, notKnown, notKnown, notKnown, true}
	}
	return c
}

func counted(n int) string {
	if n == notKnown {
		return "…"
	}
	return num(n)
}

func countNumbers(c Counts) []countNum {
	c = c.known()
	return []countNum{
		{"k-total", c.Total},
		{"k-ready", c.Ready},
		{"k-notready", c.NotReady},
		{"k-unknown", c.Unknown},
		{"k-cordoned", c.Cordoned},
		{"k-pressure", c.Pressure},
	}
}

var batchStates = []fleet.BatchState{
	fleet.BatchQueued, fleet.BatchRunning, fleet.BatchPaused, fleet.BatchInterrupted, fleet.BatchDone,
}

// lasted is how long something took, "" while it has not both begun and ended.
func lasted(from, to time.Time) string {
	if from.IsZero() || to.IsZero() || to.Before(from) {
		return ""
	}
	switch d := to.Sub(from); {
	case d < time.Second:
		return strconv.FormatInt(max(d.Milliseconds(), 1), 10) + " ms"
	case d < time.Minute:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	default:
		return d.Round(time.Second).String()
	}
}

func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "/")
}

// amount is a request; a pod that asks for nothing shows a dash, for 0 would look like a number that was measured.
func amount(v int64, format func(int64) string) string {
	if v == 0 {
		return "–"
	}
	return format(v)
}

// podMilli and podBytes sum what the pods that still hold their resources ask for.
func podMilli(pods []fleet.Pod) (sum int64) {
	for _, p := range pods {
		if p.Phase != "Succeeded" && p.Phase != "Failed" {
			sum += p.CPUMilli
		}
	}
	return sum
}

func podBytes(pods []fleet.Pod) (sum int64) {
	for _, p := range pods {
		if p.Phase != "Succeeded" && p.Phase != "Failed" {
			sum += p.MemoryBytes
		}
	}
	return sum
}

// nodeVerb is the one of the two verbs that would do something.
func nodeVerb(n *fleet.Node) string {
	if n.Schedulable {
		return "cordon"
	}
	return "uncordon"
}

func nodeCommands(ref fleet.NodeRef) []string {
	return []string{
		kubectl.Command(ref.Cluster, "describe", "node", ref.Name),
		kubectl.Command(ref.Cluster, "get", "node", ref.Name, "-o", "yaml"),
		kubectl.Command(ref.Cluster, "get", "pods", "-A", "-o", "wide", "--field-selector", "spec.nodeName="+ref.Name),
	}
}
