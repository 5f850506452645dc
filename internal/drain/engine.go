package drain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

type name = types.NamespacedName

// drain is the drain of one node. Everything in it belongs to the goroutine that called Drain; what others learn
// reaches it as functions, through in.
type drain struct {
	job Job
	log *slog.Logger
	seq int

	state    fleet.DrainState
	message  string
	final    bool             // decided
	outcome  fleet.DrainEvent // once final
	failure  error
	cordoned bool
	evicted  int

	in      chan func()
	answers chan func() // of evictions, with room for all that are under way
	wg      sync.WaitGroup
	work    context.Context // of the goroutines, for the life of run

	held     bool
	heldFrom time.Time
	release  <-chan struct{}    // closed when held may have changed
	turn     context.Context    // of evictions that were not sent yet; ends with work, or when they have to wait
	recall   context.CancelFunc // of turn

	node    *corev1.Node
	pods    map[types.UID]*pod
	gone    []fleet.PodProgress
	live    bool // the watch of the pods is open
	owners  map[name]*lookup
	returns map[types.UID]bool // owners whose pods come back although the node is cordoned, and were evicted once

	intended map[types.UID]bool // pods whose eviction was announced
	makers   map[types.UID]name // controllers of what was to be evicted

	match         matcher // of the budgets
	budgetsKnown  bool
	budgetsDenied bool
	busy          map[string]bool // budgets that an eviction of this node waits for or is under

	began     bool // every pod was looked at and none was blocked
	flying    int  // evictions under way
	verifying bool
	verified  bool
	deadline  time.Time

	detach   *detach
	replace  *replacing
	wake     time.Time // when to look again without being told
	nextRead time.Time // when the verifying list may be tried again
}

// pod is one pod of the node.
type pod struct {
	obj   *corev1.Pod
	class fleet.PodClass
	at    fleet.PodProgress // as last told
	state fleet.PodState
	late  bool // came after the drain had begun

	flying   bool
	retry    time.Time // of a refusal, by the clock
	patience time.Duration
	asked    string // versions of its budgets when it was tried
	accepted time.Time
}

// lookup is what is known of a DaemonSet.
type lookup struct {
	found Presence
	busy  bool
	retry time.Time
}

// detach is the wait for volumes.
type detach struct {
	unknown  time.Time       // until when to wait for knowing what is attached
	until    time.Time       // until when to wait for it to go, once that is known
	keep     map[string]bool // volumes that pods which stay use
	ready    bool            // keep is known
	attached map[string]*storagev1.VolumeAttachment
	seen     bool
	denied   bool // and will not be known
}

func newDrain(job Job) *drain {
	log := job.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &drain{
		job: job, log: log,
		in: make(chan func()), answers: make(chan func(), inFlight),
		pods: map[types.UID]*pod{}, owners: map[name]*lookup{}, returns: map[types.UID]bool{},
		intended: map[types.UID]bool{}, makers: map[types.UID]name{},
		match: newMatcher(nil), busy: map[string]bool{},
		deadline: time.Now().Add(job.Options.Timeout),
	}
}

// run evicts and waits. The goroutines that it starts end before it returns.
func (d *drain) run(ctx context.Context) {
	work, cancel := context.WithCancel(ctx)
	d.work = work
	d.turn, d.recall = context.WithCancel(work)
	defer func() { d.recall() }()
	d.live = false
	d.hold()
	d.enter(fleet.DrainEvicting, "")
	d.wg.Go(func() { follow(work, podsOf(d.job.Watch, d.job.Node.Name), d.podListener()) })
	d.wg.Go(func() { follow(work, nodesOf(d.job.Watch, d.job.Node.Name), d.nodeListener()) })
	d.wg.Go(func() { follow(work, budgetsOf(d.job.Watch), d.budgetListener()) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for !d.final {
		select {
		case f := <-d.in:
			f()
		case f := <-d.answers:
			f()
		case <-timer.C:
		case <-d.release:
		case <-ctx.Done():
			d.end(fleet.DrainCancelled, "", ctx.Err())
		}
		if !d.final {
			d.hold()
			d.wake = d.deadline
			if d.held {
				d.wake = time.Now().Add(DefaultTimeout) // what changes is told
			}
			d.step(time.Now())
			timer.Reset(max(0, time.Until(d.wake)))
		}
	}
	// The end: nothing is begun any more, and what is under way is waited for.
	cancel()
	d.wg.Wait()
	for {
		select {
		case f := <-d.answers:
			f()
		default:
			return
		}
	}
}

// hold learns whether evictions have to wait. Those that wait for their turn are called back, and the deadline moves by
// the time that they waited.
func (d *drain) hold() {
	if d.job.Held == nil {
		return
	}
	held, changed := d.job.Held()
	d.release = changed
	switch now := time.Now(); {
	case held == d.held:
		return
	case held:
		d.heldFrom = now
		d.recall()
	default:
		d.deadline = d.deadline.Add(now.Sub(d.heldFrom))
		d.turn, d.recall = context.WithCancel(d.work)
	}
	d.held = held
}

// waiting tells whether an eviction that is about to be sent has to wait after all.
func (d *drain) waiting(turn context.Context) bool {
	if turn.Err() != nil {
		return true
	}
	if d.job.Held == nil {
		return false
	}
	held, _ := d.job.Held() // the loop may not have heard of it yet
	return held
}

// send hands something to the loop, unless the drain is over.
func (d *drain) send(f func()) {
	select {
	case d.in <- f:
	case <-d.work.Done():
	}
}

// end decides what the drain came to; the first decision stands. It is told when nothing is under way any more.
func (d *drain) end(s fleet.DrainState, message string, err error) {
	if d.final {
		return
	}
	d.final, d.outcome, d.failure = true, fleet.DrainEvent{NodeState: s, Message: message}, err
}

// at has the loop look again then.
func (d *drain) at(t time.Time) {
	if t.Before(d.wake) {
		d.wake = t
	}
}

// step does all that can be done now. It may be called at any time.
func (d *drain) step(now time.Time) {
	if !d.held && !now.Before(d.deadline) {
		if d.state == fleet.DrainReplacing {
			d.drained(d.missing())
			return
		}
		d.end(fleet.DrainTimedOut, d.standing(), fmt.Errorf("not done after %s: %s: %w", d.job.Options.Timeout, d.standing(), fleet.ErrBlocked))
		return
	}
	d.lookUp(now)
	if !d.begin() {
		return
	}
	d.age(now)
	if d.live && !d.held {
		d.evict(now)
	}
	d.finish(now)
}

// begin tells whether evictions may start: everything is seen anew, after the cordon (DR-18), and no pod is blocked.
func (d *drain) begin() bool {
	if d.began {
		return true
	}
	if !d.live || d.node == nil || !d.budgetsKnown {
		return false
	}
	for _, p := range d.pods {
		if p.state == fleet.PodPending {
			return false
		}
	}
	if d.blocked() {
		return false
	}
	d.began = true
	return true
}

// lookUp asks for DaemonSets that pods name and nobody has looked for.
func (d *drain) lookUp(now time.Time) {
	for _, p := range d.pods {
		key, ok := daemonSetOf(p.obj)
		if !ok || p.state != fleet.PodPending {
			continue
		}
		l := d.owners[key]
		if l == nil {
			l = &lookup{}
			d.owners[key] = l
		}
		if l.busy || l.found != Unknown {
			continue
		}
		if now.Before(l.retry) {
			d.at(l.retry)
			continue
		}
		l.busy = true
		d.wg.Go(func() {
			found, err := daemonSet(d.work, d.job.Watch, key)
			d.send(func() {
				l.busy, l.found = false, found
				if err != nil {
					l.retry = time.Now().Add(firstRetry)
					d.log.Warn("looking for a DaemonSet", "daemonset", key.String(), "node", d.job.Node.String(), "err", err)
				}
				for _, p := range d.sorted() {
					if p.state == fleet.PodPending {
						d.look(p)
					}
				}
			})
		})
	}
}

// age moves pods that time alone moves.
func (d *drain) age(now time.Time) {
	for _, p := range d.sorted() {
		switch p.state {
		case fleet.PodTerminating:
			if d.stuck(p, now) {
				continue
			}
			end := p.obj.DeletionTimestamp
			if end == nil {
				// Accepted, and the watch does not show it: whatever took it back, ask again.
				if again := p.accepted.Add(overdueAfter); now.Before(again) {
					d.at(again)
				} else if d.live {
					d.set(p, fleet.PodQueued, nil)
				}
				continue
			}
			if late := end.Add(d.job.overdue); now.Before(late) {
				d.at(late)
			} else {
				d.set(p, fleet.PodOverdue, func(at *fleet.PodProgress) { at.Message = d.diagnose(p.obj) })
			}
		case fleet.PodOverdue:
			d.stuck(p, now)
		default:
		}
	}
}

// stuck lets go of a pod that takes longer than the person wants to wait (DR-11).
func (d *drain) stuck(p *pod, now time.Time) bool {
	skip, end := d.job.Options.SkipStuck, p.obj.DeletionTimestamp
	if skip <= 0 || end == nil {
		return false
	}
	if until := end.Add(skip); !now.After(until) {
		d.at(until.Add(time.Millisecond))
		return false
	}
	d.look(p)
	return true
}

// diagnose says what may keep a pod that should have ended (DR-51).
func (d *drain) diagnose(p *corev1.Pod) string {
	var why []string
	if len(p.Finalizers) > 0 {
		why = append(why, "finalizers: "+strings.Join(p.Finalizers, ", "))
	}
	if s := readiness(d.node); s != corev1.ConditionTrue {
		why = append(why, "the node's Ready condition is "+string(s))
	}
	for i := range p.Status.ContainerStatuses {
		if c := &p.Status.ContainerStatuses[i]; c.State.Running != nil {
			why = append(why, "container "+c.Name+" is running")
		}
	}
	return kube.Plain(strings.Join(why, "; "))
}

func readiness(n *corev1.Node) corev1.ConditionStatus {
	if n != nil {
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady {
				return c.Status
			}
		}
	}
	return corev1.ConditionUnknown
}

// sorted are the pods in the order in which they are worked on.
func (d *drain) sorted() []*pod {
	out := make([]*pod, 0, len(d.pods))
	for _, p := range d.pods {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *pod) int {
		return cmp.Or(cmp.Compare(a.obj.Namespace, b.obj.Namespace), cmp.Compare(a.obj.Name, b.obj.Name), cmp.Compare(a.obj.UID, b.obj.UID))
	})
	return out
}

// leaving tells whether a pod has still to go.
func (p *pod) leaving() bool {
	switch p.state {
	case fleet.PodIgnored, fleet.PodBlocked, fleet.PodSkipped, fleet.PodGone:
		return false
	default:
		return true
	}
}

// evict starts the evictions whose turn it is.
func (d *drain) evict(now time.Time) {
	pods := d.sorted()
	turn := int(^uint(0) >> 1)
	for _, p := range pods {
		if p.leaving() {
			turn = min(turn, Order(p.obj, d.job.Options.Policy))
		}
	}
	for _, p := range pods {
		if d.flying >= inFlight {
			return
		}
		if p.flying || !p.evictable() || Order(p.obj, d.job.Options.Policy) != turn {
			continue
		}
		if now.Before(p.retry) {
			d.at(p.retry)
			continue
		}
		d.try(p)
	}
}

// evictable tells whether an eviction is what a pod waits for.
func (p *pod) evictable() bool {
	switch p.state {
	case fleet.PodQueued, fleet.PodBlockedByPDB, fleet.PodBlockedByPDBs, fleet.PodBlockedByHook, fleet.PodThrottled, fleet.PodNamespaceGoing, fleet.PodUnanswered:
		return true
	default:
		return false
	}
}

// keys are what the gate knows the pod's budgets by. Where budgets cannot be read, a namespace is taken for one.
func (d *drain) keys(p *corev1.Pod) []string {
	if d.job.Options.Delete {
		return nil // nobody is asked
	}
	if d.budgetsDenied {
		return []string{p.Namespace + "/"}
	}
	if notGuarded(p) {
		return nil
	}
	var out []string
	for _, b := range d.match.of(p) {
		out = append(out, b.Namespace+"/"+b.Name)
	}
	return out
}

// try sends one eviction.
func (d *drain) try(p *pod) {
	keys := d.keys(p.obj)
	for _, k := range keys {
		if d.busy[k] {
			return // its answer wakes the loop
		}
	}
	for _, k := range keys {
		d.busy[k] = true
	}
	p.flying = true
	d.flying++
	p.at.Attempt++
	p.at.Deleted = d.job.Options.Delete
	p.asked = d.versions(p.obj)
	d.set(p, fleet.PodEvicting, nil)
	e := eviction{pod: p.obj, keys: keys, look: d.known(p.obj), turn: d.turn}
	if d.job.Intend != nil && !d.intended[p.obj.UID] {
		at := p.at
		at.Reasons = slices.Clone(at.Reasons)
		e.intent = &at
	}
	d.wg.Go(func() {
		a := d.evictOne(e)
		d.answers <- func() {
			p.flying = false
			d.flying--
			for _, k := range keys {
				delete(d.busy, k)
			}
			if a.intended {
				d.intended[p.obj.UID] = true
			}
			d.answered(p, a)
		}
	})
}

// eviction is one try, in the hands of the goroutine that makes it.
type eviction struct {
	pod    *corev1.Pod // as the watch has it
	keys   []string    // of the gate
	look   Lookups
	turn   context.Context
	intent *fleet.PodProgress // to be announced before anything is sent, nil if it was
}

// known is the lookups for one pod, usable in another goroutine.
func (d *drain) known(p *corev1.Pod) Lookups {
	found := Unknown
	if key, ok := daemonSetOf(p); ok && d.owners[key] != nil {
		found = d.owners[key].found
	}
	return Lookups{DaemonSet: func(string, string) Presence { return found }}
}

// evictOne waits for its turn, makes sure that the pod is what the watch said, and evicts it. The API server takes from
// the budget of whatever pod has the name before it compares the uid, so that a stale eviction would cost somebody
// else's budget two minutes (DR-31).
func (d *drain) evictOne(e eviction) answer {
	leave, err := d.job.Gate.enter(e.turn, e.keys)
	if err != nil {
		return answer{meaning: meansNever, err: err}
	}
	defer leave()
	live, a := d.fresh(e)
	if live == nil {
		return a
	}
	if e.intent != nil {
		began := time.Now()
		if err := d.job.Intend(d.work, *e.intent); err != nil {
			if d.work.Err() != nil {
				return answer{meaning: meansNever, err: d.work.Err()} // whatever it says, it was cut off
			}
			return answer{meaning: meansUnannounced, message: "not announced: " + kube.Plain(err.Error()), err: err}
		}
		if time.Since(began) > mostStale {
			if live, a = d.fresh(e); live == nil {
				a.intended = true
				return a
			}
		}
	}
	if d.waiting(e.turn) {
		return answer{meaning: meansNever, intended: true}
	}
	a = d.sent(live)
	a.intended = true
	return a
}

// fresh reads a pod just before it is evicted. It is nil if it must not be, and why is in the answer.
func (d *drain) fresh(e eviction) (*corev1.Pod, answer) {
	live, err := getPod(d.work, d.job.Watch, e.pod.Namespace, e.pod.Name)
	switch {
	case d.work.Err() != nil:
		return nil, answer{meaning: meansNever, err: d.work.Err()}
	case errors.Is(err, fleet.ErrNotFound):
		return nil, answer{meaning: meansGone}
	case err != nil:
		a := interpret(err)
		if a.meaning != meansThrottled {
			a.meaning = meansUnanswered
		}
		return nil, a
	case live.UID != e.pod.UID || live.Spec.NodeName != d.job.Node.Name:
		return nil, answer{meaning: meansGone}
	}
	if c := Classify(live, d.job.Options.Policy, e.look, time.Now()); c.Verdict != fleet.VerdictEvict {
		return nil, answer{meaning: meansChanged, live: live}
	}
	return live, answer{}
}

// sent evicts, or deletes where a person chose that, and finds out what came of it.
func (d *drain) sent(live *corev1.Pod) answer {
	var err error
	if d.job.Options.Delete {
		err = remove(d.work, d.job.Ops, live, d.shorter(live))
	} else {
		err = post(d.work, d.job.Ops, live, d.shorter(live), false)
	}
	a := interpret(err)
	if a.meaning == meansThrottled {
		d.job.Gate.throttled(max(a.retry, time.Second))
	}
	if a.meaning == meansConflict || a.meaning == meansUnanswered {
		d.reread(live, &a)
	}
	if a.meaning == meansForbidden {
		// Permissions and admissions refuse in the same words.
		if ok, err := allowed(context.WithoutCancel(d.work), d.job.Ops, d.job.Options.right()); err != nil || ok {
			a.meaning = meansDenied
		}
	}
	return a
}

// shorter is the grace period to ask for, nil for the pod's own.
func (d *drain) shorter(p *corev1.Pod) *int64 {
	if d.job.Options.Grace == nil {
		return nil
	}
	return new(min(*d.job.Options.Grace, grace(p)))
}

// reread finds out what became of an eviction whose answer does not tell.
func (d *drain) reread(p *corev1.Pod, a *answer) {
	live, err := getPod(context.WithoutCancel(d.work), d.job.Watch, p.Namespace, p.Name)
	switch {
	case errors.Is(err, fleet.ErrNotFound), err == nil && live.UID != p.UID:
		a.meaning = meansGone
	case err == nil && live.DeletionTimestamp != nil:
		a.meaning = meansAccepted
	case a.meaning == meansConflict:
		a.meaning = meansUnanswered
	}
}

// answered takes in what came of a try.
func (d *drain) answered(p *pod, a answer) {
	if a.meaning == meansAccepted {
		d.accepted(p)
		if owner := metav1.GetControllerOf(p.obj); owner != nil && toleratesCordon(p.obj) {
			d.returns[owner.UID] = true
		}
	}
	if p.state != fleet.PodEvicting {
		return // the watch was faster
	}
	p.at.HTTP = a.http
	switch a.meaning {
	case meansAccepted:
		p.accepted = time.Now()
		d.set(p, fleet.PodTerminating, nil) // until when, the watch says
	case meansGone:
		d.removePod(p.obj)
	case meansChanged:
		p.state = fleet.PodQueued
		d.putPod(a.live)
	case meansBudget:
		d.refused(p, a, fleet.PodBlockedByPDB)
	case meansSeveral:
		if len(d.match.of(p.obj)) > 1 {
			d.refused(p, a, fleet.PodBlockedByPDBs)
		} else {
			d.refused(p, a, fleet.PodUnanswered)
		}
	case meansThrottled:
		d.refused(p, a, fleet.PodThrottled)
	case meansNamespace:
		d.refused(p, a, fleet.PodNamespaceGoing)
	case meansDenied:
		d.refused(p, a, fleet.PodBlockedByHook)
	case meansForbidden:
		d.refused(p, a, fleet.PodUnanswered)
		d.end(fleet.DrainFailed, a.message, fmt.Errorf("evicting: %w", &kube.ActError{Err: kube.Error(a.err)}))
	case meansNever:
		p.at.Attempt--
		d.set(p, fleet.PodQueued, nil)
	case meansUnannounced:
		p.at.Attempt--
		d.refused(p, a, fleet.PodUnanswered)
		for _, final := range []error{fleet.ErrNotRecorded, fleet.ErrLeaseLost, fleet.ErrAuthorityLost} {
			if errors.Is(a.err, final) {
				d.end(fleet.DrainFailed, a.message, fmt.Errorf("announcing an eviction: %w", a.err))
			}
		}
	case meansConflict, meansUnanswered:
		d.refused(p, a, fleet.PodUnanswered)
	}
}

// accepted counts a pod that the API server took the eviction of. The watch may have been faster, and the pod be gone.
func (d *drain) accepted(p *pod) {
	if p.at.Evicted {
		return
	}
	p.at.Evicted = true
	d.evicted++
	if owner := metav1.GetControllerOf(p.obj); owner != nil {
		d.makers[owner.UID] = name{Namespace: p.obj.Namespace, Name: owner.Kind}
	}
	if p.state == fleet.PodEvicting {
		return // its next transition tells
	}
	for i := range d.gone {
		if d.gone[i].UID == p.at.UID {
			d.gone[i] = p.at
		}
	}
	at := p.at
	d.tell(fleet.DrainEvent{Pod: &at})
}

// refused has a pod wait for another try. A refusal never becomes anything else but another try.
func (d *drain) refused(p *pod, a answer, s fleet.PodState) {
	first := d.job.patience
	p.patience = min(max(first, p.patience*3/2), max(first, lastRetry))
	wait := p.patience + rand.N(p.patience/5) //nolint:gosec // jitter against a herd, no secret
	p.retry = time.Now().Add(max(wait, a.retry))
	if (s == fleet.PodBlockedByPDB || s == fleet.PodBlockedByPDBs) && p.asked != d.versions(p.obj) && d.mayGo(p.obj, map[string]int32{}) {
		p.retry = time.Now() // its budget moved while it was asked, and nobody will say so again
	}
	retry := p.retry.UTC()
	d.set(p, s, func(at *fleet.PodProgress) {
		at.Message, at.Until = a.message, &retry
		if found := d.match.of(p.obj); s == fleet.PodBlockedByPDB && len(found) == 1 {
			at.Needed, at.Healthy = found[0].Status.DesiredHealthy, found[0].Status.CurrentHealthy
		}
	})
}

// versions are those of a pod's budgets, as the watch has them.
func (d *drain) versions(p *corev1.Pod) string {
	var b strings.Builder
	for _, g := range d.match.of(p) {
		b.WriteString(g.Name + " " + g.ResourceVersion + "\n")
	}
	return b.String()
}

// finish ends the drain when there is nothing left to do.
func (d *drain) finish(now time.Time) {
	if d.final {
		return
	}
	var left, asking int
	for _, p := range d.pods {
		if p.leaving() {
			left++
			if p.state != fleet.PodTerminating && p.state != fleet.PodOverdue {
				asking++
			}
		}
	}
	switch {
	case asking > 0:
		d.enter(fleet.DrainEvicting, "")
	case left > 0:
		d.enter(fleet.DrainTerminating, "")
	}
	if left > 0 || d.flying > 0 {
		d.verified = false
		return
	}
	if !d.verified {
		d.verify(now)
		return
	}
	if d.blocked() {
		return
	}
	if !d.detached(now) {
		return
	}
	if !d.replaced() {
		return
	}
	d.drained("")
}

// drained ends a drain that emptied its node. Missing is what was waited for beyond that in vain, "" for nothing.
func (d *drain) drained(missing string) {
	s := fleet.DrainDone
	var out int
	for _, p := range d.pods {
		if p.state == fleet.PodSkipped || p.class.Has(CodeExcluded) || p.class.Has(CodeStuck) && p.state == fleet.PodIgnored {
			out++
		}
	}
	var notes []string
	if out > 0 {
		s = fleet.DrainPartial
		notes = append(notes, fmt.Sprintf("%d pods were left", out))
	}
	if n := len(d.left()); n > 0 {
		notes = append(notes, fmt.Sprintf("%d volumes are still attached", n))
	}
	if d.detach != nil && d.detach.denied {
		notes = append(notes, "whether volumes are still attached could not be read")
	}
	if missing != "" {
		s = fleet.DrainPartial
		notes = append(notes, missing)
	}
	d.end(s, strings.Join(notes, "; "), nil)
}

// verify lists the pods once more: a pod may have been bound while the cordon was on its way to the scheduler (DR-22).
func (d *drain) verify(now time.Time) {
	d.enter(fleet.DrainVerifying, "")
	if d.verifying || !d.live {
		return
	}
	if now.Before(d.nextRead) {
		d.at(d.nextRead)
		return
	}
	d.verifying = true
	d.wg.Go(func() {
		pods, _, err := podsOf(d.job.Watch, d.job.Node.Name).all(d.work)
		d.send(func() {
			d.verifying = false
			if err != nil {
				d.nextRead = time.Now().Add(firstRetry)
				d.log.Warn("listing the pods of a node once more", "node", d.job.Node.String(), "err", err)
				return
			}
			d.verified = true // finish takes it back if this brings a pod that has to go
			for i := range pods {
				d.putPod(&pods[i])
			}
		})
	})
}

// detached tells whether the wait for volumes is over (DR-52).
func (d *drain) detached(now time.Time) bool {
	if readiness(d.node) == corev1.ConditionUnknown {
		return true // nobody is there who would detach them
	}
	if d.detach == nil {
		d.detach = &detach{
			unknown: now.Add(max(d.job.Options.DetachTimeout, time.Minute)),
			keep:    map[string]bool{}, attached: map[string]*storagev1.VolumeAttachment{},
		}
		d.enter(fleet.DrainDetaching, "")
		d.startDetach()
	}
	switch t := d.detach; {
	case t.denied:
		return true
	case !t.ready || !t.seen:
		if !now.Before(t.unknown) {
			t.denied = true
			return true
		}
		d.at(t.unknown)
		return false
	case t.until.IsZero():
		t.until = now.Add(d.job.Options.DetachTimeout)
	}
	if len(d.left()) == 0 || !now.Before(d.detach.until) {
		return true
	}
	d.at(d.detach.until)
	return false
}

// startDetach finds out which volumes the pods that stay use, and follows the attachments.
func (d *drain) startDetach() {
	var claims []name
	for _, p := range d.sorted() {
		for i := range p.obj.Spec.Volumes {
			switch v := &p.obj.Spec.Volumes[i]; {
			case v.PersistentVolumeClaim != nil:
				claims = append(claims, name{Namespace: p.obj.Namespace, Name: v.PersistentVolumeClaim.ClaimName})
			case v.Ephemeral != nil:
				claims = append(claims, name{Namespace: p.obj.Namespace, Name: p.obj.Name + "-" + v.Name})
			}
		}
	}
	d.wg.Go(func() {
		keep, err := d.volumesOf(d.work, claims)
		d.send(func() {
			if err != nil {
				// Without knowing them, what they use would be waited for in vain.
				d.detach.denied = true
				d.log.Warn("reading the volumes of pods that stay", "node", d.job.Node.String(), "err", err)
			}
			d.detach.keep, d.detach.ready = keep, true
		})
	})
	d.wg.Go(func() {
		follow(d.work, attachmentsOf(d.job.Watch), listener[storagev1.VolumeAttachment]{
			replace: func(all []storagev1.VolumeAttachment) {
				d.send(func() {
					clear(d.detach.attached)
					for i := range all {
						d.attach(&all[i])
					}
					d.detach.seen = true
				})
			},
			put:    func(a *storagev1.VolumeAttachment) { d.send(func() { d.attach(a) }) },
			remove: func(a *storagev1.VolumeAttachment) { d.send(func() { delete(d.detach.attached, a.Name) }) },
			lost: func(err error) {
				d.send(func() { d.detach.denied = d.detach.denied || errors.Is(err, fleet.ErrForbidden) })
			},
		})
	})
}

func (d *drain) attach(a *storagev1.VolumeAttachment) {
	if a.Spec.NodeName == d.job.Node.Name {
		d.detach.attached[a.Name] = a
	}
}

// volumesOf are the volumes behind claims.
func (d *drain) volumesOf(ctx context.Context, claims []name) (map[string]bool, error) {
	out := map[string]bool{}
	for _, key := range claims {
		c := &corev1.PersistentVolumeClaim{}
		err := again(ctx, func() error {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			return kube.Error(d.job.Watch.CoreV1().RESTClient().Get().MaxRetries(0).UseProtobufAsDefaultIfPreferred(true).
				Namespace(key.Namespace).Resource("persistentvolumeclaims").Name(key.Name).Do(ctx).Into(c))
		})
		switch {
		case errors.Is(err, fleet.ErrNotFound):
		case err != nil:
			return out, err
		case c.Spec.VolumeName != "":
			out[c.Spec.VolumeName] = true
		}
	}
	return out, nil
}

// left are the volumes that are still attached and should not be.
func (d *drain) left() []string {
	if d.detach == nil {
		return nil
	}
	var out []string
	for _, a := range d.detach.attached {
		volume := a.Name // of an inline volume, which has no other
		if v := a.Spec.Source.PersistentVolumeName; v != nil {
			volume = *v
		}
		if !d.detach.keep[volume] {
			out = append(out, volume)
		}
	}
	slices.Sort(out)
	return out
}

// standing says what stands in the way, for a drain that ran out of time.
func (d *drain) standing() string {
	counts := map[fleet.PodState]int{}
	for _, p := range d.pods {
		if p.leaving() {
			counts[p.state]++
		}
	}
	var out []string
	for s, n := range counts {
		out = append(out, fmt.Sprintf("%d %s", n, s))
	}
	slices.Sort(out)
	if len(out) == 0 {
		return "the node is " + string(d.state)
	}
	return "pods left: " + strings.Join(out, ", ")
}
