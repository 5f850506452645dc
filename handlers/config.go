// Package handlers is the HTTP face: routes, pages, JSON and streams. A handler parses, calls one thing, builds a page
// struct and renders; it holds no rule of its own.
package handlers

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/realtime"
)

// Config lists everything the handlers need. Every field is required unless it says otherwise.
type Config struct {
	Nodes    Nodes
	Clusters Clusters
	Managed  Managed
	Streams  Streams
	Batches  Batches
	// Templates may be nil: then there are none, and nothing about them can be asked.
	Templates Templates
	Auth      Auth
	People    People
	Audit     Audit
	Ready     func(context.Context) error // nil answer: the store answers and the supervisors are started
	Logger    *slog.Logger
	Metrics   prometheus.Registerer
	External  *url.URL       // nil: the origin is taken from the request's own host
	Proxies   []netip.Prefix // peers whose X-Forwarded-For counts; empty: none
	Secure    bool           // TLS here or at the external URL: Secure cookies, HSTS
	Version   string
	Manifest  string // of the service account that a cluster is given for us, YAML
	// Header may be nil: then no header says who somebody is, and such headers mean nothing.
	Header *TrustedHeader
	// FreshSignIn is how old a sign-in may be where a plan needs a fresh one, for pages to say so before it is refused; 0:
	// it is never asked for.
	FreshSignIn time.Duration
}

// Nodes answers from the cache. Nothing here but Pods touches an API server. *realtime.Manager implements it.
type Nodes interface {
	// Window is the page of the query with the cursor it was read at, in one step under one lock.
	Window(q *realtime.Query, lang string) realtime.Window
	// List is every node of the query as JSON, or one page of them, with the cursor it was read at.
	List(q *realtime.Query, paged bool) realtime.List
	// Node returns ErrNotFound for an unknown cluster or node.
	Node(ref fleet.NodeRef) (*fleet.Node, error)
	// FullNode is the whole corev1.Node as cached, as JSON.
	FullNode(ref fleet.NodeRef) ([]byte, error)
	// Row is the node's live row as rendered for lists.
	Row(ref fleet.NodeRef, lang string) ([]byte, error)
	Clusters(sight fleet.Sight) []fleet.Cluster
	// Matching lists the refs of every node the query matches, whatever the page, at most limit.
	Matching(q *realtime.Query, limit int) []fleet.NodeRef
	// Pods reads the pods of a node from the API server, now.
	Pods(ctx context.Context, ref fleet.NodeRef) (fleet.PodList, error)
}

// Clusters steers the connections to clusters. What is done is on record before it is done, or with it.
type Clusters interface {
	// Retry makes a cluster that waits for its next attempt try now.
	Retry(ctx context.Context, by fleet.Caller, cluster string) error
	// Accept takes the identity that was found at the cluster's address; ErrConflict if uid is not that one.
	Accept(ctx context.Context, by fleet.Caller, cluster, uid string) error
}

// Managed are the clusters that came in through the web. Every call of it is checked for authority again, and on record
// before and after it is done. No answer holds a credential.
type Managed interface {
	// Enabled tells whether there is a key to seal credentials with; without one, what changes something is ErrConflict.
	Enabled() bool
	Managed() []fleet.ManagedCluster
	// AddCluster begins to watch a cluster. FieldError; ErrConflict for a name that is taken.
	AddCluster(ctx context.Context, by fleet.Caller, spec fleet.ClusterSpec) (fleet.ManagedCluster, error)
	// ReplaceCluster exchanges address and credential of a cluster that was added. FieldError, ErrNotFound.
	ReplaceCluster(ctx context.Context, by fleet.Caller, spec fleet.ClusterSpec) (fleet.ManagedCluster, error)
	// RemoveCluster forgets a cluster that was added. ErrNotFound.
	RemoveCluster(ctx context.Context, by fleet.Caller, name string) error
	// TestCluster connects once and keeps nothing. Without a kubeconfig it tests what is stored under the name.
	TestCluster(ctx context.Context, by fleet.Caller, spec fleet.ClusterSpec) (fleet.ClusterTest, error)
}

// Streams serves the SSE responses; each call returns when the stream has ended. *realtime.Streamer implements it. An
// error is returned only before the first byte.
type Streams interface {
	Nodes(w http.ResponseWriter, r *http.Request, s realtime.NodeStream) error
	Clusters(w http.ResponseWriter, r *http.Request, s realtime.ClusterStream) error
	Batch(w http.ResponseWriter, r *http.Request, s realtime.BatchStream) error
}

// Batches makes and steers batches. *batch.Engine implements it.
type Batches interface {
	// Submit authorises every node, freezes the list and records the batch. The same idempotency key of the same
	// person answers with the batch it made before. FieldError, ErrForbidden, BusyError, StaleSignInError.
	Submit(ctx context.Context, by fleet.Caller, spec fleet.BatchSpec) (fleet.Batch, error)
	// Batch and all that follows is ErrNotFound for a batch that is about a cluster which the person does not see. What
	// is answered names no other such batch.
	Batch(ctx context.Context, by fleet.Caller, id string) (fleet.Batch, []fleet.Item, error)
	// Sees is ErrNotFound for such a batch too; whether there is one for those who see everything, it does not say.
	Sees(ctx context.Context, by fleet.Caller, id string) error
	// List leaves such batches out.
	List(ctx context.Context, by fleet.Caller, f fleet.BatchFilter) ([]fleet.Batch, error)
	Cancel(ctx context.Context, by fleet.Caller, id string) error
	// Plan says what Submit of the same would do, as far as looking can tell. The errors are those of Submit, but for
	// a missing confirmation.
	Plan(ctx context.Context, by fleet.Caller, spec fleet.BatchSpec) (*fleet.Plan, error)
	// BatchPlan is the plan that a batch was made by, ErrNotFound if it was made without one.
	BatchPlan(ctx context.Context, by fleet.Caller, id string) (*fleet.Plan, error)
	// Events are the transitions of a batch's drains after a sequence number, oldest first, at most limit.
	Events(ctx context.Context, by fleet.Caller, id string, after int64, limit int) ([]fleet.BatchEvent, error)
	// Pause starts no further node and no further eviction until Resume; what is ending ends. Both are ErrConflict where
	// there is nothing to do. Resume also goes on with a batch that waits for a person.
	Pause(ctx context.Context, by fleet.Caller, id string) error
	Resume(ctx context.Context, by fleet.Caller, id string) error
	// Retry makes a new batch of the nodes that failed or were not started, ErrConflict if there are none or the batch
	// is not done. The key is that of Submit.
	Retry(ctx context.Context, by fleet.Caller, id, key string) (fleet.Batch, error)
	// Skip leaves out a node that waits, and lets go of one that is being drained.
	Skip(ctx context.Context, by fleet.Caller, id string, item int) error
}

// Templates keeps named sets of labels and taints. *templates.Book implements it.
type Templates interface {
	Templates(ctx context.Context) ([]fleet.Template, error)
	// Template returns one version, the newest for 0. ErrNotFound.
	Template(ctx context.Context, id string, version int) (fleet.Template, error)
	// SaveTemplate makes a template, or a new version of the one that the ID names; t.Version is the version that was
	// changed, and ErrConflict if that is not the newest. FieldError.
	SaveTemplate(ctx context.Context, by fleet.Caller, t fleet.Template) (fleet.Template, error)
	// DeleteTemplate takes it out of the list; its versions stay readable for what was done with them.
	DeleteTemplate(ctx context.Context, by fleet.Caller, id string) error
}

// Auth knows who is asking.
type Auth interface {
	// SignIn checks name and password and returns a fresh session token with its expiry, and by what the browser is known
	// at the next sign-in; device is what it showed of that. LimitError when throttled; ErrUnauthenticated for every other
	// failure, with the same work done whatever the cause.
	SignIn(ctx context.Context, name, password, device string, from fleet.Caller, userAgent string) (fleet.SignIn, error)
	// SecondStep completes a sign-in that SignIn answered with a fleet.SecondStepError.
	SecondStep(ctx context.Context, half, code, device string, from fleet.Caller, userAgent string) (fleet.SignIn, error)
	// OIDC tells whether there is an identity provider. BeginOIDC answers where the browser has to go and what it has to
	// keep; FinishOIDC signs in who comes back. ErrForbidden for who is known there and may not use this. With anew the
	// provider is to have the person prove who they are; a StaleSignInError if it did not.
	OIDC() bool
	BeginOIDC(ctx context.Context, redirect string, anew bool) (target, kept string, until time.Time, err error)
	FinishOIDC(ctx context.Context, redirect, kept string, answer url.Values, from fleet.Caller, userAgent string) (token string, expires time.Time, err error)
	// SignInByHeader signs in whom a trusted proxy names. ErrForbidden for who may not use this.
	SignInByHeader(ctx context.Context, name string, groups []string, from fleet.Caller, userAgent string) (token string, expires time.Time, err error)
	SignOut(ctx context.Context, token string) error
	// BySession and ByToken return ErrUnauthenticated for what is unknown, expired, revoked or of a disabled person.
	BySession(ctx context.Context, token string) (fleet.Caller, error)
	ByToken(ctx context.Context, bearer string) (fleet.Caller, error)
	// PeekSession is BySession for streams and background polls: it does not count as activity, so that an open tab
	// does not keep a session alive for ever.
	PeekSession(ctx context.Context, token string) (fleet.Caller, error)
	// NeedsSetup tells whether no user exists yet.
	NeedsSetup(ctx context.Context) (bool, error)
	// Setup makes the first admin with the one-time code. Exactly one of two concurrent calls wins.
	Setup(ctx context.Context, code, name, password string) error
	// AcceptInvitation sets the password of whoever was invited, once.
	AcceptInvitation(ctx context.Context, code, password string) error
}

// People is the account and user administration.
type People interface {
	Users(ctx context.Context) ([]fleet.User, error)
	AddUser(ctx context.Context, by fleet.Caller, name string, role fleet.Role, password string) error
	// InviteUser makes a person who sets their own password; Reinvite lets one do so again.
	InviteUser(ctx context.Context, by fleet.Caller, name string, role fleet.Role) (fleet.Invitation, error)
	Reinvite(ctx context.Context, by fleet.Caller, name string) (fleet.Invitation, error)
	SetDisabled(ctx context.Context, by fleet.Caller, name string, disabled bool) error
	SetRole(ctx context.Context, by fleet.Caller, name string, role fleet.Role) error
	// SetGrants makes a list all that a person may do in some clusters beside their role; AddGrant adds one, in place of one
	// of the same scope, and DropGrant takes one away. What follows from groups stays. FieldErrors.
	SetGrants(ctx context.Context, by fleet.Caller, name string, list []fleet.Grant) error
	AddGrant(ctx context.Context, by fleet.Caller, name string, g fleet.Grant) error
	DropGrant(ctx context.Context, by fleet.Caller, name string, scope fleet.Scope) error
	SetPassword(ctx context.Context, by fleet.Caller, name, password string) error
	// Me is the caller with what they may do where.
	Me(ctx context.Context, by fleet.Caller) (fleet.User, error)
	Sessions(ctx context.Context, by fleet.Caller) ([]fleet.Session, error)
	EndSession(ctx context.Context, by fleet.Caller, hash string) error
	Tokens(ctx context.Context, by fleet.Caller) ([]fleet.Token, error)
	// AddToken makes a token of a name and an end, and with a role and a scope that are the most it may do. It returns the
	// secret, which is kept nowhere.
	AddToken(ctx context.Context, by fleet.Caller, want fleet.Token) (secret string, t fleet.Token, err error)
	EndToken(ctx context.Context, by fleet.Caller, id string) error
	SecondFactor(ctx context.Context, by fleet.Caller) (fleet.FactorState, error)
	// ChangePassword is about the caller's own; SetPassword is for admins.
	ChangePassword(ctx context.Context, by fleet.Caller, current, password string) error
	// BeginFactor, ConfirmFactor and DropFactor are about the caller's own second factor; ResetFactor is for admins.
	BeginFactor(ctx context.Context, by fleet.Caller, password string) (fleet.Enrolment, error)
	ConfirmFactor(ctx context.Context, by fleet.Caller, code string) (recovery []string, err error)
	DropFactor(ctx context.Context, by fleet.Caller, code string) error
	ResetFactor(ctx context.Context, by fleet.Caller, name string) error
	// Unblock lets somebody try again whose name is delayed after failures.
	Unblock(ctx context.Context, by fleet.Caller, name string) error
}

// Audit reads the record.
type Audit interface {
	Entries(ctx context.Context, f fleet.AuditFilter) ([]fleet.Entry, error)
	// Export records that it is done, in the words of what, and hands out the entries page by page, oldest first.
	Export(ctx context.Context, by fleet.Caller, what string, f fleet.AuditFilter, each func([]fleet.Entry) error) error
	// Denied records a refusal that a handler decided.
	Denied(ctx context.Context, by fleet.Caller, action, detail string)
}
