package config

import (
	"log/slog"
	"net/netip"
	"net/url"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Config is one parsed and checked invocation. Exactly one of the command fields is set, the one that Command names.
type Config struct {
	Command Command
	Serve   Serve
	User    User
	Audit   Audit
	Watch   Watch
	Rotate  Rotate
}

// Command names what is to be done.
type Command string

// The commands.
const (
	CommandServe       Command = "serve"
	CommandUserAdd     Command = "user add"
	CommandUserList    Command = "user list"
	CommandUserDisable Command = "user disable"
	CommandUserEnable  Command = "user enable"
	CommandUserGrant   Command = "user grant"
	CommandUserRevoke  Command = "user revoke"
	CommandUserUnblock Command = "user unblock"
	CommandResetTOTP   Command = "user reset-totp"
	CommandSetPassword Command = "user set-password"
	CommandAuditVerify Command = "audit verify"
	CommandWatch       Command = "watch"
	CommandVersion     Command = "version"
	CommandKeyRotate   Command = "key rotate"
	CommandKeyNew      Command = "key new"
)

// Database says where the people, batches and the record are kept.
type Database struct {
	Dir string       // directory of the SQLite files; made if missing; "" for one of this process alone
	URL fleet.Secret // of PostgreSQL, postgres://… or postgresql://…; "" for SQLite in Dir
}

// Serve is the server.
type Serve struct {
	Database
	Listen        string
	Kubeconfigs   []string // every context of each becomes a cluster
	InCluster     bool     // watch the cluster this process runs in, with its service account
	External      *url.URL // scheme and host under which browsers reach us; nil when that is Listen
	Proxies       []netip.Prefix
	TLSCert       string
	TLSKey        string
	TLSSelfSigned bool
	InsecureHTTP  bool   // plain HTTP on an address that others can reach, on purpose
	MetricsListen string // "" for none
	LogFormat     string // json or text
	LogLevel      slog.Level
	Streams       Streams
	Connections   Connections
	CacheBytes    int64 // for nodes and their rendered rows

	AuditKeyFile   string        // of the key that heads of the record are signed with; made if missing
	AuditRetention time.Duration // how long entries of the record are kept; 0 for ever
	BatchRetention time.Duration // how long batches are kept after their end; 0 for ever
	EventRetention time.Duration // how long the events of a batch are kept after its end; 0 for as long as the batch
	LeaseNamespace string        // where the leases of nodes that are drained are, in each cluster
	Pod            Pod           // that this process runs in; zero outside of a cluster

	Key          Key
	AddressAllow []netip.Prefix // of this host and its neighbours, where clusters added through the web may lead all the same

	Identities        []ClusterIdentity // the first whose pattern holds a cluster counts; none: shared
	ImpersonatePrefix string            // of the names and groups of people in clusters
	Labels            []ClusterLabels   // those of every pattern that holds a cluster; of one key the first

	OIDC OIDC // Issuer "" for none
	LDAP LDAP // URL "" for none

	Header TrustedHeader // User "" for none

	FreshSignIn time.Duration // how old a sign-in may be before what cannot be taken back; 0: it is never asked for
}

// TrustedHeader is how a proxy in front vouches for people. All of it is given, or none.
type TrustedHeader struct {
	User, Groups, SecretName string // names of headers
	SecretFile               string
	From                     []netip.Prefix // peers that may send them
	Roles                    []GroupRole
}

// GroupRole says what a group may do.
type GroupRole struct {
	Group, Role string
	Scope       string // which clusters; "" for all, and for what is not of one cluster
}

// ClusterIdentity says who makes changes in the clusters of a pattern.
type ClusterIdentity struct {
	Pattern     string // a name, in which * stands for any text
	Impersonate bool   // the person who asked, and not our own credential
}

// ClusterLabels are the labels of the clusters of a pattern.
type ClusterLabels struct {
	Pattern string
	Labels  map[string]string
}

// OIDC is an identity provider that people sign in with.
type OIDC struct {
	Issuer, ClientID       string
	SecretFile, CAFile     string // "" for none
	Scopes                 []string
	GroupsClaim, NameClaim string
	Roles                  []GroupRole
}

// LDAP is a directory that checks the passwords of people.
type LDAP struct {
	URL                               string // ldaps://, or ldap:// with StartTLS
	CAFile, BindDN, PasswordFile      string
	UserBase, UserFilter, IDAttribute string
	GroupBase, GroupFilter, GroupName string
	Roles                             []GroupRole
}

// Pod names the pod of this process.
type Pod struct {
	Namespace, Name string
}

// Streams bounds the live streams that may be open at once; all are positive.
type Streams struct {
	PerSession, PerPerson, PerAddress, Total int
}

// Connections bounds the connections that may be open at once; 0 stands for a default that follows from Streams.
type Connections struct {
	PerAddress, Total int
}

// TLS tells whether our own listener speaks TLS.
func (s Serve) TLS() bool { return s.TLSSelfSigned || s.TLSCert != "" }

// Secure tells whether browsers reach us over TLS, here or at a proxy: cookies are then Secure.
func (s Serve) Secure() bool { return s.TLS() || (s.External != nil && s.External.Scheme == "https") }

// User is one of the user commands.
type User struct {
	Database
	Name         string
	Role         string
	Scope        string   // of a grant
	Also         []string // permissions of a grant beside the role
	PasswordFile string   // "-" for standard input, "" to have one made up and printed
	Invite       bool     // instead of a password: the person sets it
	External     *url.URL // of the server, for the link of an invitation; nil for none
}

// Audit is one of the audit commands.
type Audit struct {
	Database
	Heads string // file of signed heads to check the record against, "-" for standard input; "" for none
	Key   string // public key that they must be signed by, base64; "" for whichever they name
}

// Rotate is the command that wraps secrets with another key.
type Rotate struct {
	Database
	Key Key
}

// Key says where the keys are that seal secrets in the database. At most one of File and Text is set; with neither, no
// cluster can be added through the web and no second factor set up.
type Key struct {
	File string
	Text fleet.Secret // what such a file holds
	Ours bool         // nobody named the file: it is made if it is missing
}

// Watch is the command that follows the events of a server.
type Watch struct {
	Server  *url.URL
	Cluster string       // "" for all
	Token   fleet.Secret // bearer token; "" for none
}

// LogValue shows what the server was started with. The database's address loses its password.
func (s Serve) LogValue() slog.Value {
	database := s.Dir
	if s.URL != "" {
		database = redactURL(s.URL.Reveal())
	}
	external := ""
	if s.External != nil {
		external = s.External.String()
	}
	return slog.GroupValue(
		slog.String("listen", s.Listen),
		slog.String("database", database),
		slog.Any("kubeconfig", s.Kubeconfigs),
		slog.Bool("in_cluster", s.InCluster),
		slog.String("external_url", external),
		slog.Any("trusted_proxy", s.Proxies),
		slog.Bool("tls", s.TLS()),
		slog.String("metrics_listen", s.MetricsListen),
		slog.Any("streams", s.Streams),
		slog.Any("connections", s.Connections),
		slog.Int64("cache_max_bytes", s.CacheBytes),
		slog.Bool("secrets", s.Key != Key{}),
		slog.Any("cluster_address_allow", s.AddressAllow),
		slog.Any("cluster_identity", s.Identities),
		slog.String("impersonate_prefix", s.ImpersonatePrefix),
		slog.Any("cluster_labels", s.Labels),
	)
}

// redactURL drops user information and query, where passwords live. What does not parse is not shown at all.
func redactURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "[redacted]"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// ShutdownTimeout bounds the whole teardown. Kubernetes kills after 30 s by default.
const ShutdownTimeout = 20 * time.Second
