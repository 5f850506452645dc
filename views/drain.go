package views

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// ItemPods is every pod of one node of a batch, and everything else that its row has no room for.
type ItemPods struct {
	Layout
	Batch fleet.Batch
	Item  fleet.Item
}

// maxTrouble is how many pods the row of a node names: those that it waits for. The others are fetched when somebody
// looks.
const maxTrouble = 10

// maxRowEdits is how many edits the row of a node spells out.
const maxRowEdits = 6

func drainClass(s fleet.DrainState) string {
	switch s {
	case fleet.DrainDone:
		return "ok"
	case fleet.DrainPartial, fleet.DrainUncordoned, fleet.DrainBlocked:
		return "warn"
	case fleet.DrainFailed, fleet.DrainTimedOut, fleet.DrainReplaced:
		return "bad"
	case fleet.DrainCancelled, fleet.DrainGone:
		return "unk"
	case fleet.DrainChecking, fleet.DrainCordoning, fleet.DrainEvicting, fleet.DrainTerminating, fleet.DrainVerifying, fleet.DrainDetaching,
		fleet.DrainReplacing:
	}
	return "run"
}

func podStateClass(s fleet.PodState) string {
	switch s {
	case fleet.PodGone:
		return "ok"
	case fleet.PodBlocked, fleet.PodBlockedByPDB, fleet.PodBlockedByPDBs, fleet.PodBlockedByHook, fleet.PodOverdue:
		return "bad"
	case fleet.PodThrottled, fleet.PodUnanswered, fleet.PodNamespaceGoing, fleet.PodSkipped:
		return "warn"
	case fleet.PodEvicting, fleet.PodTerminating:
		return "run"
	case fleet.PodPending, fleet.PodIgnored, fleet.PodQueued, fleet.PodWaiting:
	}
	return "idle"
}

// troubles are the states in which a pod holds the drain up, those that a person can do something about first.
var troubles = []fleet.PodState{
	fleet.PodBlocked, fleet.PodBlockedByPDBs, fleet.PodBlockedByPDB, fleet.PodBlockedByHook, fleet.PodOverdue, fleet.PodNamespaceGoing,
	fleet.PodUnanswered, fleet.PodThrottled,
}

// trouble are the pods that hold the drain of a node up.
func trouble(d *fleet.DrainProgress) []fleet.PodProgress {
	var out []fleet.PodProgress
	for _, p := range d.Pods {
		if slices.Contains(troubles, p.State) {
			out = append(out, p)
		}
	}
	slices.SortStableFunc(out, func(a, b fleet.PodProgress) int {
		return cmp.Compare(slices.Index(troubles, a.State), slices.Index(troubles, b.State))
	})
	return out
}

// gone is how many of the pods that have to go are gone.
func gone(d *fleet.DrainProgress) (done, all int) {
	for _, p := range d.Pods {
		switch p.State {
		case fleet.PodIgnored:
			continue
		case fleet.PodGone:
			done++
		case fleet.PodPending, fleet.PodBlocked, fleet.PodQueued, fleet.PodWaiting, fleet.PodEvicting, fleet.PodBlockedByPDB, fleet.PodBlockedByPDBs,
			fleet.PodBlockedByHook, fleet.PodThrottled, fleet.PodNamespaceGoing, fleet.PodUnanswered, fleet.PodTerminating, fleet.PodOverdue, fleet.PodSkipped:
		}
		all++
	}
	return done, all
}

// drainWords is how far a drain is: "evicting 7/12 · 2 blocked by budget web (needs 4, has 4)".
func drainWords(lang string, d *fleet.DrainProgress) string {
	done, all := gone(d)
	words := T(lang, "drain."+string(d.State))
	if all > 0 {
		words += " " + strconv.Itoa(done) + "/" + strconv.Itoa(all)
	}
	return strings.Join(append([]string{words}, troubleWords(lang, d)...), " · ")
}

// troubleWords counts what holds the drain up, by what it is.
func troubleWords(lang string, d *fleet.DrainProgress) []string {
	type kind struct {
		state           fleet.PodState
		budgets         string
		needed, healthy int32
	}
	var order []kind
	n := map[kind]int{}
	for _, p := range trouble(d) {
		k := kind{state: p.State}
		if p.State == fleet.PodBlockedByPDB || p.State == fleet.PodBlockedByPDBs {
			k.budgets, k.needed, k.healthy = strings.Join(p.Budgets, ", "), p.Needed, p.Healthy
		}
		if n[k] == 0 {
			order = append(order, k)
		}
		n[k]++
	}
	out := make([]string, len(order))
	for i, k := range order {
		out[i] = T(lang, "trouble."+string(k.state), "N", num(n[k]), "Budget", k.budgets, "Needed", k.needed, "Healthy", k.healthy)
	}
	return out
}

// progressLine is a pod of a drain.
func progressLine(lang string, p *fleet.PodProgress) podLine {
	l := podLine{
		Namespace: p.Namespace, Name: p.Name, UID: p.UID, Owner: ownerText(p.OwnerKind, p.OwnerName), Class: podStateClass(p.State),
		Word: T(lang, "pod."+string(p.State)), Message: p.Message,
	}
	switch p.State {
	case fleet.PodBlockedByPDB, fleet.PodBlockedByPDBs:
		l.Says = append(l.Says, T(lang, "says."+string(p.State), "Budget", strings.Join(p.Budgets, ", "), "Needed", p.Needed, "Healthy", p.Healthy))
	case fleet.PodBlocked, fleet.PodIgnored, fleet.PodWaiting:
		for _, r := range p.Reasons {
			l.Says = append(l.Says, reasonText(lang, r))
		}
	case fleet.PodPending, fleet.PodQueued, fleet.PodEvicting, fleet.PodBlockedByHook, fleet.PodThrottled, fleet.PodNamespaceGoing, fleet.PodUnanswered,
		fleet.PodTerminating, fleet.PodOverdue, fleet.PodSkipped, fleet.PodGone:
	}
	if p.State != fleet.PodGone && p.State != fleet.PodTerminating {
		if p.Attempt > 1 {
			l.Says = append(l.Says, T(lang, "says.attempt", "N", p.Attempt))
		}
		if p.HTTP >= 400 {
			l.Says = append(l.Says, "HTTP "+strconv.Itoa(p.HTTP))
		}
	}
	if p.Until != nil && p.State != fleet.PodGone {
		l.Until, l.UntilKey = p.Until, "says.retry"
		if p.State == fleet.PodTerminating || p.State == fleet.PodOverdue {
			l.UntilKey = "says.grace"
		}
	}
	return l
}

// troubleLines are the pods that a row names, and how many more hold the drain up.
func troubleLines(lang string, d *fleet.DrainProgress) (lines []podLine, more int) {
	pods := trouble(d)
	if len(pods) > maxTrouble {
		pods, more = pods[:maxTrouble], len(pods)-maxTrouble
	}
	for i := range pods {
		lines = append(lines, progressLine(lang, &pods[i]))
	}
	return lines, more
}

// podLines are all pods of a drain, those that hold it up first and those that are gone last.
func podLines(lang string, d *fleet.DrainProgress) []podLine {
	rank := func(p fleet.PodProgress) int {
		if i := slices.Index(troubles, p.State); i >= 0 {
			return i
		}
		switch p.State {
		case fleet.PodIgnored:
			return 102
		case fleet.PodGone, fleet.PodSkipped:
			return 101
		case fleet.PodPending, fleet.PodQueued, fleet.PodWaiting:
			return 100
		case fleet.PodBlocked, fleet.PodEvicting, fleet.PodBlockedByPDB, fleet.PodBlockedByPDBs, fleet.PodBlockedByHook, fleet.PodThrottled,
			fleet.PodNamespaceGoing, fleet.PodUnanswered, fleet.PodTerminating, fleet.PodOverdue:
		}
		return 99
	}
	pods := slices.Clone(d.Pods)
	slices.SortStableFunc(pods, func(a, b fleet.PodProgress) int { return cmp.Compare(rank(a), rank(b)) })
	lines := make([]podLine, len(pods))
	for i := range pods {
		lines[i] = progressLine(lang, &pods[i])
	}
	return lines
}

// rowEdits are the edits that a row spells out. A cordon's own is what the verb says already.
func rowEdits(edits []fleet.Edit) (shown []fleet.Edit, more int) {
	for _, e := range edits {
		if e.Kind != fleet.EditCordon && e.Outcome != fleet.EditUnchanged {
			shown = append(shown, e)
		}
	}
	if len(shown) > maxRowEdits {
		shown, more = shown[:maxRowEdits], len(shown)-maxRowEdits
	}
	return shown, more
}

// itemState is the word beside the dot: of a drain under way, what it is doing.
func itemState(lang string, it fleet.Item) (class, word string) {
	if it.Drain != nil && it.State == fleet.ItemRunning {
		class, word = drainClass(it.Drain.State), T(lang, "drain."+string(it.Drain.State))
		if len(trouble(it.Drain)) > 0 {
			class = "warn"
		}
		return class, word
	}
	return itemClass(it.State), T(lang, "item."+string(it.State))
}

// maySkip tells whether a node can still be left out.
func maySkip(it fleet.Item) bool {
	return it.State == fleet.ItemQueued || it.State == fleet.ItemRunning && it.Drain != nil
}

// maxNow is how many nodes the summary names that are being worked on.
const maxNow = 8

// nowItems are the nodes that are being worked on, those that are held up first.
func nowItems(items []fleet.Item) (shown []fleet.Item, more int) {
	for _, it := range items {
		if it.State == fleet.ItemRunning {
			shown = append(shown, it)
		}
	}
	held := func(it fleet.Item) int {
		if it.Drain != nil {
			return len(trouble(it.Drain))
		}
		return 0
	}
	slices.SortStableFunc(shown, func(a, b fleet.Item) int { return cmp.Compare(held(b), held(a)) })
	if len(shown) > maxNow {
		shown, more = shown[:maxNow], len(shown)-maxNow
	}
	return shown, more
}

// rolloutWords say how a batch goes over its nodes, as far as somebody chose.
func rolloutWords(lang string, r fleet.Rollout) []string {
	var out []string
	for _, x := range []struct {
		key string
		n   int
	}{
		{"rollout.max_concurrent", r.MaxConcurrent},
		{"rollout.per_cluster", r.PerCluster},
		{"rollout.per_zone", r.PerZone},
		{"rollout.max_unavailable", r.MaxUnavailable},
		{"rollout.max_failures", r.MaxFailures},
		{"rollout.canary", r.Canary},
	} {
		if x.n > 0 {
			out = append(out, counted1(lang, x.key, x.n))
		}
	}
	if r.PauseBetween > 0 {
		out = append(out, T(lang, "rollout.pause_between", "Time", span(lang, int64(r.PauseBetween/time.Second))))
	}
	if r.Order == fleet.OrderZone {
		out = append(out, T(lang, "order.zone"))
	}
	return out
}

// operationLines are what was asked for, as kubectl would write it.
func operationLines(lang string, op fleet.Operation) []string {
	var out []string
	if op.Drain != nil {
		out = append(out, drainFlags(*op.Drain)...)
		for key, on := range map[string]bool{"opt.ignore_opt_out": op.Drain.IgnoreOptOut, "opt.wait_for_replacements": op.Drain.WaitReplacements, "opt.uncordon_after": op.Drain.UncordonAfter} {
			if on {
				out = append(out, T(lang, key))
			}
		}
		slices.Sort(out)
	}
	if op.Template != nil {
		out = append(out, op.Template.Name+" v"+strconv.Itoa(op.Template.Version))
	}
	if op.Source != nil {
		out = append(out, "← "+op.Source.String())
	}
	out = append(out, op.Labels...)
	return append(out, op.Taints...)
}

// drainFlags are the options of a drain by kubectl's names, without those that say what is so anyway.
func drainFlags(d fleet.DrainOptions) []string {
	var out []string
	add := func(on bool, flag string) {
		if on {
			out = append(out, flag)
		}
	}
	add(d.DeleteEmptyDirData, "--delete-emptydir-data")
	add(d.Force, "--force")
	add(d.GracePeriodSeconds >= 0, "--grace-period="+strconv.Itoa(d.GracePeriodSeconds))
	add(d.TimeoutSeconds > 0, "--timeout="+strconv.Itoa(d.TimeoutSeconds)+"s")
	add(d.PodSelector != "", "--pod-selector="+d.PodSelector)
	add(d.DisableEviction, "--disable-eviction")
	add(d.SkipStuckSeconds > 0, "--skip-wait-for-delete-timeout="+strconv.Itoa(d.SkipStuckSeconds))
	return out
}

// pausedWords say who paused a batch. A name that no person can have is the batch's own: its canary.
func pausedWords(lang string, b fleet.Batch) string {
	if strings.HasPrefix(b.PausedBy, "*") {
		return T(lang, "batch.canary")
	}
	return T(lang, "batch.pausedby", "Who", b.PausedBy)
}

// retryable tells whether a batch left nodes behind that could be done.
func retryable(b fleet.Batch) bool {
	return b.State == fleet.BatchDone && b.Operation.Action != fleet.ActionRevert && b.Counts.Failed+b.Counts.Cancelled > 0
}

// revertable tells whether what a batch did can be taken back.
func revertable(b fleet.Batch) bool {
	return b.State == fleet.BatchDone && b.Counts.Succeeded+b.Counts.Failed > 0
}

func batchDoURL(id, what string) string { return "/api/v1" + batchURL(id) + "/" + what }
func batchSkipURL(id string) string     { return batchURL(id) + "/skip" }
func reportURL(id, format string) string {
	return "/api/v1" + batchURL(id) + "/report?format=" + format
}

func itemPodsURL(id string, seq int) string {
	return batchURL(id) + "/items/" + strconv.Itoa(seq) + "/pods"
}

// yes is an attribute's value for a truth.
func yes(on bool) string {
	if on {
		return "true"
	}
	return "false"
}

func drained(items []fleet.Item) bool {
	return slices.ContainsFunc(items, func(it fleet.Item) bool { return it.Drain != nil })
}

// nowWords is what a node is at.
func nowWords(lang string, it fleet.Item) string {
	if it.Drain != nil {
		return drainWords(lang, it.Drain)
	}
	return T(lang, "item."+string(it.State))
}
