package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/kube-node-manager/kube-node-manager/handlers"
	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/credentials"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/seal"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

const (
	// webClustersEvery is how often a replica looks whether another one has changed a cluster.
	webClustersEvery = 2 * time.Second
	// testTimeout bounds a test: a person waits for it.
	testTimeout = 10 * time.Second
	// maxTests is how many tests may be under way at once: each holds a connection to wherever somebody said.
	maxTests = 4
	// expiresSoon is when a test warns that a credential ends.
	expiresSoon = 30 * 24 * time.Hour
	maxCluster  = 253
)

// webClusters are the clusters that came in through the web. The database is the truth about them; the manager is made
// to follow it, by this process for its own changes at once and by every other replica within seconds.
type webClusters struct {
	store   webStore
	keys    *seal.Keys // nil: none can be added, and what is stored cannot be read
	to      kube.Addresses
	version string
	leases  string
	manager watchedSet
	record  *audit.Log
	logger  *slog.Logger
	every   time.Duration

	turn  chan struct{} // capacity 1: whoever holds it makes the manager follow, and owns seq and behind
	tests chan struct{} // tests under way

	seq    int64 // of the database, as it is followed
	behind bool  // something could not be followed and is tried again

	mu    sync.Mutex // guards known
	known map[string]webCluster
}

// webCluster is what is followed of one row.
type webCluster struct {
	version int64
	watched bool // the manager has it from us
	fleet.ManagedCluster
}

type webStore interface {
	AddCluster(ctx context.Context, c fleet.StoredCluster, e fleet.Entry) error
	ReplaceCluster(ctx context.Context, c fleet.StoredCluster, e fleet.Entry) error
	RemoveCluster(ctx context.Context, name string, e fleet.Entry) error
	ManagedCluster(ctx context.Context, name string) (fleet.StoredCluster, error)
	ManagedClusters(ctx context.Context) ([]fleet.StoredCluster, int64, error)
	ManagedClustersSeq(ctx context.Context) (int64, error)
}

type watchedSet interface {
	clusterSet
	Clusters(sight fleet.Sight) []fleet.Cluster
}

func newWebClusters(a *App, record *audit.Log, keys *seal.Keys) *webClusters {
	return &webClusters{
		store: a.store, keys: keys, to: kube.Addresses{Allow: a.cfg.AddressAllow}, version: a.opts.Version,
		leases: a.cfg.LeaseNamespace, manager: a.manager, record: record, logger: a.component("clusters"),
		every: cmp.Or(a.opts.WebClustersEvery, webClustersEvery),
		turn:  make(chan struct{}, 1), tests: make(chan struct{}, maxTests), known: map[string]webCluster{},
	}
}

// load makes the stored clusters known for the first time.
func (w *webClusters) load(ctx context.Context) {
	if err := w.follow(ctx); err != nil {
		// One name that a kubeconfig has taken meanwhile keeps nobody else from starting.
		w.logger.Error("a cluster added through the web is not watched", "err", err)
	}
}

// run follows the database until ctx ends.
func (w *webClusters) run(ctx context.Context) error {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		err := w.look(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			last = ""
		case err.Error() != last: // once for each trouble, not every few seconds
			last = err.Error()
			w.logger.Error("clusters added through the web are not followed; those that are known go on", "err", err)
		}
	}
}

// look follows if there is something new.
func (w *webClusters) look(ctx context.Context) error {
	seq, err := w.store.ManagedClustersSeq(ctx)
	if err != nil {
		return err
	}
	if err := w.take(ctx); err != nil {
		return err
	}
	defer w.release()
	if seq == w.seq && !w.behind {
		return nil
	}
	return w.catchUp(ctx)
}

// follow makes the manager what the database says.
func (w *webClusters) follow(ctx context.Context) error {
	if err := w.take(ctx); err != nil {
		return err
	}
	defer w.release()
	return w.catchUp(ctx)
}

func (w *webClusters) take(ctx context.Context) error {
	select {
	case w.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for a turn to follow clusters: %w", ctx.Err())
	}
}

func (w *webClusters) release() { <-w.turn }

// catchUp is what follow does with the turn.
func (w *webClusters) catchUp(ctx context.Context) error {
	list, seq, err := w.store.ManagedClusters(ctx)
	if err != nil {
		return err
	}
	was := w.snapshot()
	now := make(map[string]webCluster, len(list))
	var errs []error
	for _, c := range list {
		k := webCluster{version: c.Version, ManagedCluster: fleet.ManagedCluster{
			Name: c.Name, Credential: fleet.CredentialFacts{Server: c.Server},
			AddedBy: c.AddedBy, AddedAt: c.AddedAt, ChangedBy: c.ChangedBy, ChangedAt: c.ChangedAt,
		}}
		old := was[c.Name]
		delete(was, c.Name)
		if old.watched && old.version == c.Version {
			now[c.Name] = old
			continue
		}
		k.watched = old.watched
		if err := w.watch(ctx, c, &k); err != nil {
			k.version = 0 // and is tried again
			k.Fault = trouble(err)
			errs = append(errs, err)
		}
		now[c.Name] = k
	}
	for name, gone := range was {
		if !gone.watched {
			continue
		}
		if err := w.manager.Remove(name); err != nil && !errors.Is(err, fleet.ErrNotFound) {
			errs = append(errs, err)
			now[name] = gone
			continue
		}
		w.logger.Info("cluster removed", "cluster", name)
	}
	w.mu.Lock()
	w.known = now
	w.mu.Unlock()
	w.seq, w.behind = seq, len(errs) > 0
	return errors.Join(errs...)
}

// watch hands a row to the manager. A credential that cannot be read makes a cluster that says so.
func (w *webClusters) watch(ctx context.Context, c fleet.StoredCluster, k *webCluster) error {
	var made kube.Cluster
	access, err := w.open(c)
	if err == nil {
		k.Credential = access.Facts()
		made, err = kube.Restricted(c.Name, kube.Access(access), w.to, kube.WithVersion(w.version))
	}
	if err != nil {
		k.Fault = trouble(err)
		w.logger.Error("credential of a cluster cannot be used", "cluster", c.Name, "err", err)
		made = kube.Cluster{Name: c.Name, Server: c.Server, Fault: err}
	}
	if k.watched {
		err = w.manager.Edit(ctx, made)
	} else {
		err = w.manager.Add(made)
	}
	if err != nil {
		made.End()
		return err
	}
	w.logger.Info("cluster follows the database", "cluster", c.Name, "new", !k.watched)
	k.watched = true
	return nil
}

// trouble is an error as admins may see it.
func trouble(err error) string {
	switch {
	case errors.Is(err, fleet.ErrConflict):
		return fleet.FaultName
	case errors.Is(err, credentials.ErrUnreadable), errors.Is(err, seal.ErrUnreadable):
		return fleet.FaultUnreadable
	}
	if _, ok := errors.AsType[*seal.UnknownKeyError](err); ok {
		return fleet.FaultKey
	}
	return fleet.FaultOther
}

// open decrypts what is stored.
func (w *webClusters) open(c fleet.StoredCluster) (credentials.Access, error) {
	if w.keys == nil {
		return credentials.Access{}, &seal.UnknownKeyError{ID: c.Key}
	}
	text, err := w.keys.Open(c.Place(), c.Sealed)
	if err != nil {
		return credentials.Access{}, err
	}
	return credentials.Parse(text)
}

func (w *webClusters) snapshot() map[string]webCluster {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.known)
}

// Enabled implements handlers.Managed.
func (w *webClusters) Enabled() bool { return w.keys != nil }

// Managed implements handlers.Managed.
func (w *webClusters) Managed() []fleet.ManagedCluster {
	all := w.snapshot()
	out := make([]fleet.ManagedCluster, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[name].ManagedCluster)
	}
	return out
}

// AddCluster implements handlers.Managed.
func (w *webClusters) AddCluster(ctx context.Context, by fleet.Caller, spec fleet.ClusterSpec) (fleet.ManagedCluster, error) {
	access, err := w.check(by, spec)
	if err != nil {
		return fleet.ManagedCluster{}, err
	}
	if w.taken(spec.Name) {
		return fleet.ManagedCluster{}, fmt.Errorf("cluster %q: %w", spec.Name, fleet.ErrConflict)
	}
	c := fleet.StoredCluster{ID: store.NewID(), Name: spec.Name, Server: access.Server, AddedBy: by.Name, ChangedBy: by.Name}
	return w.change(ctx, by, "cluster.add", c, &access, w.store.AddCluster)
}

// ReplaceCluster implements handlers.Managed.
func (w *webClusters) ReplaceCluster(ctx context.Context, by fleet.Caller, spec fleet.ClusterSpec) (fleet.ManagedCluster, error) {
	access, err := w.check(by, spec)
	if err != nil {
		return fleet.ManagedCluster{}, err
	}
	c, err := w.store.ManagedCluster(ctx, spec.Name)
	if err != nil {
		return fleet.ManagedCluster{}, err
	}
	c.Server, c.ChangedBy = access.Server, by.Name
	return w.change(ctx, by, "cluster.replace", c, &access, w.store.ReplaceCluster)
}

// RemoveCluster implements handlers.Managed.
func (w *webClusters) RemoveCluster(ctx context.Context, by fleet.Caller, name string) error {
	if !by.May(fleet.PermClusterAdmin, name) {
		return fmt.Errorf("removing cluster %q: %w", name, fleet.ErrForbidden)
	}
	c, err := w.store.ManagedCluster(ctx, name)
	if err != nil {
		return err
	}
	_, err = w.change(ctx, by, "cluster.remove", c, nil, func(ctx context.Context, c fleet.StoredCluster, e fleet.Entry) error {
		return w.store.RemoveCluster(ctx, c.Name, e)
	})
	return err
}

// change records the intent, seals the access if there is one, writes the row with the result, and follows.
func (w *webClusters) change(
	ctx context.Context, by fleet.Caller, action string, c fleet.StoredCluster, access *credentials.Access,
	write func(context.Context, fleet.StoredCluster, fleet.Entry) error,
) (fleet.ManagedCluster, error) {
	e := audit.By(by)
	e.Action, e.Phase, e.Cluster = action, "intent", c.Name
	e.Detail = "server " + c.Server
	if access != nil {
		e.Detail = describe(access.Facts())
	}
	if _, err := w.record.Append(ctx, e); err != nil {
		return fleet.ManagedCluster{}, err
	}
	done := e
	done.Phase, done.Outcome = "result", "succeeded"
	err := func() error {
		if access != nil {
			text, err := access.Encode()
			if err != nil {
				return fmt.Errorf("encoding the credential: %w", err)
			}
			if c.Sealed, err = w.keys.Seal(c.Place(), text); err != nil {
				return fmt.Errorf("sealing the credential: %w", err)
			}
		}
		return write(ctx, c, done)
	}()
	if err != nil {
		done.Outcome = "failed"
		_, lost := w.record.Append(context.WithoutCancel(ctx), done)
		return fleet.ManagedCluster{}, errors.Join(err, lost)
	}
	// It is done, whatever becomes of the following: the next look makes up for it.
	if err := w.follow(ctx); err != nil {
		w.logger.Warn("cluster is followed later", "cluster", c.Name, "err", err)
	}
	return w.snapshot()[c.Name].ManagedCluster, nil
}

// describe is a credential as the record keeps it.
func describe(f fleet.CredentialFacts) string {
	s := fmt.Sprintf("server %s, authority %s, %s of %q, %s", f.Server, f.Authority, f.Kind, f.User, f.Fingerprint)
	if !f.ExpiresAt.IsZero() {
		s += ", good until " + f.ExpiresAt.Format(time.RFC3339)
	}
	return s
}

// taken tells whether a name is in use, by a kubeconfig of the host too.
func (w *webClusters) taken(name string) bool {
	return slices.ContainsFunc(w.manager.Clusters(fleet.SeesAll()), func(c fleet.Cluster) bool { return c.Name == name })
}

// check decides what can be decided of a spec without touching anything.
func (w *webClusters) check(by fleet.Caller, spec fleet.ClusterSpec) (credentials.Access, error) {
	if !by.May(fleet.PermClusterAdmin, spec.Name) {
		return credentials.Access{}, fmt.Errorf("cluster %q: %w", spec.Name, fleet.ErrForbidden)
	}
	if w.keys == nil {
		return credentials.Access{}, fmt.Errorf("clusters through the web are switched off: %w", fleet.ErrConflict)
	}
	if err := clusterName(spec.Name); err != nil {
		return credentials.Access{}, err
	}
	return w.decode(spec)
}

func (w *webClusters) decode(spec fleet.ClusterSpec) (credentials.Access, error) {
	access, err := credentials.Decode(spec.Kubeconfig, spec.Context)
	if err != nil {
		return credentials.Access{}, err
	}
	u, err := url.Parse(access.Server)
	if err != nil {
		return credentials.Access{}, fmt.Errorf("reading the address: %w", err) // Decode has read it before
	}
	// What can be told of an address that is written out is told at once; the rest is decided at each connection.
	if err := w.to.CheckHost(u.Hostname()); err != nil {
		return credentials.Access{}, &fleet.FieldError{
			Field: "kubeconfig", Message: "leads to an address that is refused: " + err.Error(),
			Key: "kubeconfig.address", Args: map[string]string{"Part": u.Hostname()},
		}
	}
	return access, nil
}

func clusterName(name string) error {
	bad := func(key, english string) error {
		return &fleet.FieldError{Field: "name", Message: english, Key: "clustername." + key}
	}
	switch {
	case name == "":
		return bad("empty", "must not be empty")
	case len(name) > maxCluster:
		return bad("long", "must not be longer than 253 bytes")
	case nameable(name) != nil, !utf8.ValidString(name), slices.ContainsFunc([]rune(name), unprintable):
		return bad("chars", "must be text that can be shown, without blanks, and not . or ..")
	}
	return nil
}

// unprintable is what makes two names look like one, or a line like two.
func unprintable(r rune) bool {
	return r <= ' ' || r > '~' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
}

// TestCluster implements handlers.Managed.
func (w *webClusters) TestCluster(ctx context.Context, by fleet.Caller, spec fleet.ClusterSpec) (fleet.ClusterTest, error) {
	access, err := w.subject(ctx, by, spec)
	if err != nil {
		return fleet.ClusterTest{}, err
	}
	select {
	case w.tests <- struct{}{}:
		defer func() { <-w.tests }()
	default:
		return fleet.ClusterTest{}, &fleet.LimitError{What: "tests of clusters", Retry: testTimeout}
	}
	facts := access.Facts()
	e := audit.By(by)
	e.Action, e.Phase, e.Cluster, e.Detail = "cluster.test", "intent", spec.Name, describe(facts)
	if _, err := w.record.Append(ctx, e); err != nil {
		return fleet.ClusterTest{}, err
	}
	c, err := kube.Restricted(cmp.Or(spec.Name, "test"), kube.Access(access), w.to, kube.WithVersion(w.version))
	if err != nil {
		return fleet.ClusterTest{}, err
	}
	defer c.End()
	bound, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	t := kube.Try(bound, c, w.leases)
	t.Credential = facts
	if !facts.ExpiresAt.IsZero() && time.Until(facts.ExpiresAt) < expiresSoon {
		t.Warnings = append(t.Warnings, fleet.WarnExpires)
	}
	e.Phase, e.Outcome, e.Detail = "result", "succeeded", e.Detail+": "+t.Outcome
	if t.Outcome != fleet.TestOK {
		e.Outcome = "failed"
	}
	if _, err := w.record.Append(context.WithoutCancel(ctx), e); err != nil {
		return fleet.ClusterTest{}, err
	}
	return t, nil
}

// subject is what a test is about: a kubeconfig that is handed in, or without one the stored credential of the name.
func (w *webClusters) subject(ctx context.Context, by fleet.Caller, spec fleet.ClusterSpec) (credentials.Access, error) {
	switch {
	case !by.May(fleet.PermClusterAdmin, spec.Name):
		return credentials.Access{}, fmt.Errorf("testing cluster %q: %w", spec.Name, fleet.ErrForbidden)
	case w.keys == nil:
		return credentials.Access{}, fmt.Errorf("clusters through the web are switched off: %w", fleet.ErrConflict)
	case spec.Kubeconfig != "" || spec.Name == "":
		if spec.Name != "" {
			if err := clusterName(spec.Name); err != nil {
				return credentials.Access{}, err
			}
		}
		return w.decode(spec)
	}
	c, err := w.store.ManagedCluster(ctx, spec.Name)
	if err != nil {
		return credentials.Access{}, err
	}
	return w.open(c)
}

var _ handlers.Managed = (*webClusters)(nil)
