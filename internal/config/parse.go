package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// EnvPrefix starts the name of every variable that is ours.
const EnvPrefix = "KNM_"

// The variables without a flag: a secret on a command line shows in the list of processes.
const (
	tokenEnv = EnvPrefix + "TOKEN"
	keyEnv   = EnvPrefix + "KEY"
)

// database are the flags of every command that opens the store.
type database struct {
	DataDir     string `name:"data-dir" default:"./data" placeholder:"DIR" help:"Directory of the database; made if missing (${default})."`
	DatabaseURL string `name:"database-url" placeholder:"postgres://…" help:"PostgreSQL instead of SQLite in the data directory; better in the variable, as others see the command line."`
}

// secretsKey is the flag of every command that opens or seals secrets.
type secretsKey struct {
	KeyFile string `placeholder:"FILE" help:"Keys that seal the secrets in the database, one a line, the current one first; or the variable KNM_KEY. By default seal.key in the data directory, made if missing; with PostgreSQL no cluster can be added through the web and no second factor set up without it."`
}

type clusterAddresses struct {
	ClusterAddressAllow []string `placeholder:"CIDR" help:"Loopback or link-local addresses that clusters added through the web may lead to all the same; repeatable."`
}

// clusterTerms are how clusters are dealt with.
type clusterTerms struct {
	ClusterIdentity   []string `sep:"none" placeholder:"NAME=WHO" help:"Who makes changes in a cluster: impersonate for the person who asked, whom its own permissions and audit log then know, or shared for our credential; NAME may have * for any text. Repeatable, the first that fits counts, without one it is shared. In the variable, several are divided by semicolons."`
	ImpersonatePrefix string   `default:"knm:" placeholder:"PREFIX" help:"What the names and groups of people begin with in clusters that know them (${default})."`
	ClusterLabels     []string `sep:"none" placeholder:"NAME:KEY=VALUE,…" help:"Labels of a cluster, by which permissions can be given; NAME may have * for any text. Repeatable; in the variable divided by semicolons."`
}

type serveCmd struct {
	database
	secretsKey
	clusterAddresses
	clusterTerms
	Listen        string   `default:"127.0.0.1:8080" placeholder:"ADDR" help:"Address to serve on (${default})."`
	Kubeconfig    []string `sep:"none" placeholder:"FILE" help:"Watch every context of this file; repeatable. In the variable, several are divided as in PATH."`
	InCluster     bool     `help:"Watch the cluster this process runs in, with its service account."`
	ExternalURL   string   `name:"external-url" placeholder:"https://…" help:"Address that browsers use, when a proxy is in front."`
	TrustedProxy  []string `placeholder:"CIDR" help:"Peers whose X-Forwarded-For is believed; repeatable."`
	TLSCert       string   `name:"tls-cert" placeholder:"FILE" help:"Certificate chain, PEM. Read again when it changes."`
	TLSKey        string   `name:"tls-key" placeholder:"FILE" help:"Private key, PEM."`
	TLSSelfSigned bool     `name:"tls-self-signed" help:"Serve TLS with a certificate made at the start."`
	InsecureHTTP  bool     `name:"insecure-http" help:"Allow plain HTTP on an address that others can reach: passwords and sessions can then be read on the way."`
	MetricsListen string   `default:"127.0.0.1:9090" placeholder:"ADDR" help:"Address of /metrics; empty for none (${default})."`
	streams
	connections
	CacheMaxBytes int64 `name:"cache-max-bytes" default:"268435456" placeholder:"BYTES" help:"Nodes and their rendered rows held; beyond it, clusters that nobody looks at are put to sleep (${default})."`
	oidcFlags
	ldapFlags
	headerFlags
	FreshSignIn    time.Duration `default:"15m" placeholder:"DURATION" help:"How old a sign-in may be before a large drain, what else deletes pods and has to be confirmed by typing, a new token, and rights for people; 0 to never ask for another (${default})."`
	AuditKeyFile   string        `placeholder:"FILE" help:"Key that heads of the audit record are signed with; made if missing. By default audit.key in the data directory; with PostgreSQL a key that is forgotten at the end."`
	AuditRetention time.Duration `default:"0" placeholder:"DURATION" help:"How long entries of the audit record are kept, like 8760h; 0 for ever."`
	BatchRetention time.Duration `default:"2160h" placeholder:"DURATION" help:"How long batches are kept after their end; 0 for ever (${default})."`
	EventRetention time.Duration `default:"720h" placeholder:"DURATION" help:"How long the events of drains are kept after the end of their batch; 0 for as long as the batch (${default})."`
	LeaseNamespace string        `default:"kube-node-manager" placeholder:"NAMESPACE" help:"Where the Leases of nodes that are being drained are, in each cluster; without it a node is kept from other tools by its annotation alone (${default})."`
	Pod            string        `placeholder:"NAMESPACE/NAME" help:"The pod that this process runs in: a drain evicts it last."`
	LogFormat      string        `default:"json" enum:"json,text" help:"json or text."`
	LogLevel       string        `default:"info" enum:"debug,info,warn,error" help:"debug, info, warn or error."`
}

// oidcFlags are of the identity provider.
type oidcFlags struct {
	OIDCIssuer           string   `name:"oidc-issuer" placeholder:"https://…" help:"Identity provider that people may sign in with; none without it. Register <address>/login/oidc/callback there."`
	OIDCClientID         string   `name:"oidc-client-id" placeholder:"ID" help:"Who we are to the identity provider."`
	OIDCClientSecretFile string   `name:"oidc-client-secret-file" placeholder:"FILE" help:"File with our secret there."`
	OIDCCAFile           string   `name:"oidc-ca-file" placeholder:"FILE" help:"Certificates that the identity provider's may be signed with, PEM; without it those of the system."`
	OIDCScopes           []string `name:"oidc-scopes" default:"profile,groups" placeholder:"SCOPE,…" help:"Asked for beside openid (${default})."`
	OIDCGroupsClaim      string   `name:"oidc-groups-claim" default:"groups" placeholder:"CLAIM" help:"Claim of the ID token with the groups (${default})."`
	OIDCNameClaim        string   `name:"oidc-name-claim" default:"preferred_username" placeholder:"CLAIM" help:"Claim of the ID token with the name; who somebody is follows from issuer and subject alone (${default})."`
	OIDCRoleMap          []string `name:"oidc-role-map" sep:"none" placeholder:"GROUP=ROLE[@SCOPE]" help:"What a group may do, everywhere or in the clusters that the scope names, like ops=operator@prod-*; repeatable. The most counts; who is in none of them is refused."`
}

// ldapFlags are of the directory.
type ldapFlags struct {
	LDAPURL          string   `name:"ldap-url" placeholder:"ldaps://…" help:"Directory that checks the passwords of people; none without it. With ldap:// StartTLS is demanded."`
	LDAPCAFile       string   `name:"ldap-ca-file" placeholder:"FILE" help:"Certificates that the directory's may be signed with, PEM; without it those of the system."`
	LDAPBindDN       string   `name:"ldap-bind-dn" placeholder:"DN" help:"Who searches the directory; without it nobody in particular."`
	LDAPPasswordFile string   `name:"ldap-bind-password-file" placeholder:"FILE" help:"File with the password of who searches."`
	LDAPUserBase     string   `name:"ldap-user-base" placeholder:"DN" help:"Below which people are."`
	LDAPUserFilter   string   `name:"ldap-user-filter" default:"(uid={{name}})" placeholder:"FILTER" help:"Finds exactly one person by name (${default})."`
	LDAPIDAttribute  string   `name:"ldap-id-attribute" default:"entryUUID" placeholder:"ATTRIBUTE" help:"By which a person is known for ever, objectGUID in Active Directory (${default})."`
	LDAPGroupBase    string   `name:"ldap-group-base" placeholder:"DN" help:"Below which groups are; without it those of the attribute memberOf count."`
	LDAPGroupFilter  string   `name:"ldap-group-filter" default:"(member={{dn}})" placeholder:"FILTER" help:"Finds the groups of a person (${default})."`
	LDAPGroupName    string   `name:"ldap-group-name" default:"cn" placeholder:"ATTRIBUTE" help:"Of a group, as --ldap-role-map names it (${default})."`
	LDAPRoleMap      []string `name:"ldap-role-map" sep:"none" placeholder:"GROUP=ROLE[@SCOPE]" help:"What a group may do, everywhere or in the clusters that the scope names, like ops=operator@prod-*; repeatable. The most counts; who is in none of them is refused."`
}

// headerFlags are of a proxy that signs people in.
type headerFlags struct {
	TrustedHeaderUser       string   `placeholder:"HEADER" help:"Header with the name of whoever a trusted proxy has signed in; nobody is signed in so without it. Needs all the other --trusted-header flags."`
	TrustedHeaderGroups     string   `placeholder:"HEADER" help:"Header with their groups, commas between them."`
	TrustedHeaderFrom       []string `placeholder:"CIDR" help:"Addresses of the proxy itself, as the peer of the connection; repeatable. From anybody else these headers are refused."`
	TrustedHeaderSecretFile string   `placeholder:"FILE" help:"File with a secret of at least 16 characters that the proxy sends along."`
	TrustedHeaderSecretName string   `placeholder:"HEADER" help:"Header with that secret."`
	TrustedHeaderRole       []string `sep:"none" placeholder:"GROUP=ROLE[@SCOPE]" help:"What a group may do; repeatable, as --oidc-role-map."`
}

// headerName are the names that no server or proxy takes for another one: an underscore is a dash to some.
var headerName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*$`)

// meantOtherwise are headers that mean something to us or to the protocol already.
var meantOtherwise = []string{"authorization", "connection", "cookie", "forwarded", "host", "origin", "x-forwarded-for"}

func (f headerFlags) config(p *problems) TrustedHeader {
	given := map[string]bool{
		"trusted-header-user": f.TrustedHeaderUser != "", "trusted-header-groups": f.TrustedHeaderGroups != "",
		"trusted-header-from": len(f.TrustedHeaderFrom) > 0, "trusted-header-secret-file": f.TrustedHeaderSecretFile != "",
		"trusted-header-secret-name": f.TrustedHeaderSecretName != "", "trusted-header-role": len(f.TrustedHeaderRole) > 0,
	}
	if !slices.Contains(slices.Collect(maps.Values(given)), true) {
		return TrustedHeader{}
	}
	for _, flag := range slices.Sorted(maps.Keys(given)) {
		if !given[flag] {
			p.add(flag, "is missing: signing in by a header needs all of --trusted-header-user, -groups, -from, -secret-file, -secret-name and -role")
		}
	}
	cfg := TrustedHeader{
		User: f.TrustedHeaderUser, Groups: f.TrustedHeaderGroups, SecretName: f.TrustedHeaderSecretName, SecretFile: f.TrustedHeaderSecretFile,
	}
	seen := map[string]bool{}
	for _, h := range []struct{ flag, name string }{
		{"trusted-header-user", cfg.User}, {"trusted-header-groups", cfg.Groups}, {"trusted-header-secret-name", cfg.SecretName},
	} {
		switch low := strings.ToLower(h.name); {
		case h.name == "":
		case !headerName.MatchString(h.name):
			p.add(h.flag, "%q is not the name of a header: letters, digits and single dashes", h.name)
		case slices.Contains(meantOtherwise, low):
			p.add(h.flag, "%q has a meaning of its own", h.name)
		case seen[low]:
			p.add(h.flag, "%q is there twice: each is a header of its own", h.name)
		default:
			seen[low] = true
		}
	}
	for _, c := range f.TrustedHeaderFrom {
		prefix, err := parsePrefix(c)
		switch {
		case err != nil:
			p.add("trusted-header-from", "%q is neither a CIDR like 10.0.0.0/8 nor an address", c)
		case prefix.Bits() == 0:
			p.add("trusted-header-from", "%q is everybody: name the proxy", c)
		default:
			cfg.From = append(cfg.From, prefix)
		}
	}
	if given["trusted-header-role"] {
		cfg.Roles = roleMap(p, "trusted-header-role", f.TrustedHeaderRole)
	}
	return cfg
}

func (f oidcFlags) config(p *problems) OIDC {
	if f.OIDCIssuer == "" {
		if f.OIDCClientID != "" || len(f.OIDCRoleMap) > 0 {
			p.add("oidc-issuer", "is missing: without it there is no identity provider")
		}
		return OIDC{}
	}
	u, err := url.Parse(f.OIDCIssuer)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		p.add("oidc-issuer", "%q is not an https URL", redactURL(f.OIDCIssuer))
	case u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
		p.add("oidc-issuer", "%q is not an https URL: whoever is in between could be anybody", redactURL(f.OIDCIssuer))
	}
	if f.OIDCClientID == "" {
		p.add("oidc-client-id", "is missing")
	}
	return OIDC{
		Issuer: f.OIDCIssuer, ClientID: f.OIDCClientID, SecretFile: f.OIDCClientSecretFile, CAFile: f.OIDCCAFile, Scopes: f.OIDCScopes,
		GroupsClaim: f.OIDCGroupsClaim, NameClaim: f.OIDCNameClaim, Roles: roleMap(p, "oidc-role-map", f.OIDCRoleMap),
	}
}

func (f ldapFlags) config(p *problems) LDAP {
	if f.LDAPURL == "" {
		if f.LDAPUserBase != "" || len(f.LDAPRoleMap) > 0 {
			p.add("ldap-url", "is missing: without it there is no directory")
		}
		return LDAP{}
	}
	if u, err := url.Parse(f.LDAPURL); err != nil || (u.Scheme != "ldaps" && u.Scheme != "ldap") || u.Hostname() == "" || u.User != nil ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		p.add("ldap-url", "%q is not of the form ldaps://host:port", redactURL(f.LDAPURL))
	}
	if f.LDAPUserBase == "" {
		p.add("ldap-user-base", "is missing")
	}
	if !strings.Contains(f.LDAPUserFilter, "{{name}}") {
		p.add("ldap-user-filter", "has no {{name}}: everybody would be the same person")
	}
	if f.LDAPGroupBase != "" && !strings.Contains(f.LDAPGroupFilter, "{{dn}}") && !strings.Contains(f.LDAPGroupFilter, "{{name}}") {
		p.add("ldap-group-filter", "has neither {{dn}} nor {{name}}: everybody would be in the same groups")
	}
	if f.LDAPIDAttribute == "" {
		p.add("ldap-id-attribute", "must not be empty")
	}
	if (f.LDAPBindDN == "") != (f.LDAPPasswordFile == "") {
		p.add("ldap-bind-dn", "--ldap-bind-dn and --ldap-bind-password-file go together")
	}
	return LDAP{
		URL: f.LDAPURL, CAFile: f.LDAPCAFile, BindDN: f.LDAPBindDN, PasswordFile: f.LDAPPasswordFile, UserBase: f.LDAPUserBase,
		UserFilter: f.LDAPUserFilter, IDAttribute: f.LDAPIDAttribute, GroupBase: f.LDAPGroupBase, GroupFilter: f.LDAPGroupFilter,
		GroupName: f.LDAPGroupName, Roles: roleMap(p, "ldap-role-map", f.LDAPRoleMap),
	}
}

// groupRole is group=role or group=role@scope. The first role in it counts, so that a scope may hold an equals sign, which
// only one by labels can; a group's name may hold one too.
var groupRole = regexp.MustCompile(`^(.+?)=(viewer|operator|admin)(?:@(label:\S+|[^=\s]+))?$`)

func roleMap(p *problems, flag string, pairs []string) []GroupRole {
	var out []GroupRole
	for _, pair := range pairs {
		m := groupRole.FindStringSubmatch(pair)
		if m == nil {
			p.add(flag, "%q is not of the form group=viewer, group=operator or group=admin, with @ and the clusters if it is not all", pair)
			continue
		}
		r := GroupRole{Group: m[1], Role: m[2], Scope: m[3]}
		if slices.ContainsFunc(out, func(o GroupRole) bool { return o.Group == r.Group && o.Scope == r.Scope }) {
			p.add(flag, "the group %q is there twice", r.Group)
		}
		out = append(out, r)
	}
	if len(pairs) == 0 {
		p.add(flag, "is missing: nobody could sign in")
	}
	return out
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// minRetention keeps a slip of the finger from emptying what is kept.
const minRetention = 24 * time.Hour

// minCache is less than one small cluster needs; a number below it was meant in other units.
const minCache = 1 << 20

// streams are the limits of live streams.
type streams struct {
	PerSession int `name:"streams-per-session" default:"16" placeholder:"N" help:"Live streams of one session (${default})."`
	PerPerson  int `name:"streams-per-person" default:"32" placeholder:"N" help:"Live streams of one person (${default})."`
	PerAddress int `name:"streams-per-address" default:"256" placeholder:"N" help:"Live streams of one client address (${default})."`
	Total      int `name:"streams" default:"12000" placeholder:"N" help:"Live streams in all (${default})."`
}

// connections are the limits of connections.
type connections struct {
	ConnectionsPerAddress int `name:"connections-per-address" default:"0" placeholder:"N" help:"Connections of one address, or of one /64, that is not a --trusted-proxy; 0: four times --streams-per-address."`
	Connections           int `name:"connections" default:"0" placeholder:"N" help:"Connections in all; 0: a third more than --streams. Fewer where the limit of open files is lower."`
}

type userNameCmd struct {
	database
	Name string `arg:"" help:"Sign-in name."`
}

type cli struct {
	Serve serveCmd `cmd:"" help:"Run the server."`
	User  struct {
		Add struct {
			userNameCmd
			Invite       bool   `help:"Print an invitation, with which the person sets the password, instead of a password."`
			ExternalURL  string `name:"external-url" placeholder:"https://…" help:"Address that browsers use, for the link of the invitation."`
			Role         string `required:"" enum:"none,viewer,operator,admin" help:"viewer, operator or admin everywhere, or none for who is given something in some clusters only."`
			PasswordFile string `placeholder:"FILE|-" help:"File with the password, - for standard input. Without it one is made up and printed."`
		} `cmd:"" help:"Add a person."`
		List    struct{ database } `cmd:"" help:"List the people."`
		Disable userNameCmd        `cmd:"" help:"Keep a person out; ends sessions and streams."`
		Enable  userNameCmd        `cmd:"" help:"Let a disabled person in again."`
		Grant   struct {
			userNameCmd
			Scope string   `required:"" placeholder:"SCOPE" help:"Which clusters: a name, a pattern with *, or label:key=value."`
			Role  string   `required:"" enum:"viewer,operator,admin" help:"viewer, operator or admin, in these clusters."`
			Also  []string `placeholder:"PERMISSION,…" help:"Permissions beside those of the role: node.cordon, node.drain, node.edit, node.no_execute, node.drain_past_budget, node.protected_labels."`
		} `cmd:"" help:"Let a person do something in some clusters, in place of an earlier grant of the same scope; ends sessions and streams."`
		Revoke struct {
			userNameCmd
			Scope string `required:"" placeholder:"SCOPE" help:"Of the grant, as it was given."`
		} `cmd:"" help:"Take a grant from a person; ends sessions and streams."`
		Unblock     userNameCmd `cmd:"" help:"Let a person try again whose sign-ins are delayed after failures."`
		ResetTotp   userNameCmd `cmd:"" name:"reset-totp" help:"Take away a person's second factor; ends sessions and tokens."`
		SetPassword struct {
			userNameCmd
			PasswordFile string `placeholder:"FILE|-" help:"File with the password, - for standard input. Without it one is made up and printed."`
		} `cmd:"" help:"Set a person's password; ends sessions and streams."`
	} `cmd:"" help:"Manage people, beside a running server or without one."`
	Audit struct {
		Verify struct {
			database
			Heads string `placeholder:"FILE|-" help:"Check it against signed heads too: a file of log lines, - for standard input."`
			Key   string `name:"audit-key" placeholder:"BASE64" help:"Public key that the heads must be signed by; without it, whichever they name."`
		} `cmd:"" help:"Check the chain of the whole record."`
	} `cmd:"" help:"The audit record."`
	Key struct {
		Rotate struct {
			database
			secretsKey
		} `cmd:"" help:"Wrap every secret in the database with the first key of the file. It can be stopped and run again."`
		New struct{} `cmd:"" help:"Print a new key, as a line of a key file."`
	} `cmd:"" help:"The keys that seal the secrets in the database."`
	Watch struct {
		Server    string `default:"http://127.0.0.1:8080" placeholder:"URL" help:"The server to follow (${default})."`
		Cluster   string `placeholder:"NAME" help:"Only this cluster."`
		TokenFile string `placeholder:"FILE" help:"File with an API token; or the variable KNM_TOKEN."`
	} `cmd:"" help:"Print node events as they come, one JSON object a line."`
	Version struct{} `cmd:"" help:"Print the version."`
}

// ErrHelp is returned when help was asked for and written.
var ErrHelp = errors.New("help was shown")

// Parse reads args (without the program's name) and environ (as os.Environ has it). Help goes to out. All problems that
// can be told at once are in the error, joined.
func Parse(args, environ []string, out io.Writer) (Config, error) {
	env := ours(environ)
	var (
		c     cli
		asked bool
	)
	parser, err := kong.New(&c,
		kong.Name("kube-node-manager"),
		kong.Description("See the nodes of all your Kubernetes clusters live, and change them safely."),
		kong.Writers(out, out),
		// Help calls Exit in the middle of parsing; it may not end the process, and what follows is of no interest.
		kong.Exit(func(int) { asked = true }),
		kong.Resolvers(resolver(env)),
	)
	if err != nil {
		return Config{}, fmt.Errorf("building the command line: %w", err)
	}
	if err := unknown(env, parser.Model); err != nil {
		return Config{}, err
	}
	kctx, err := parser.Parse(args)
	if asked {
		return Config{}, ErrHelp
	}
	if err != nil {
		return Config{}, err
	}
	return c.config(Command(commandName(kctx)), env)
}

// commandName is the path of commands without the arguments: "user add", not "user add <name>".
func commandName(kctx *kong.Context) string {
	var names []string
	for _, p := range kctx.Path {
		if p.Command != nil {
			names = append(names, p.Command.Name)
		}
	}
	return strings.Join(names, " ")
}

// ours are the variables that start with our prefix.
func ours(environ []string) map[string]string {
	m := map[string]string{}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(k, EnvPrefix) {
			m[k] = v
		}
	}
	return m
}

func envName(flag string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// resolver gives kong the value of a flag's variable. An empty variable counts as set, so that a default can be taken
// back; for a list it is the empty list.
func resolver(env map[string]string) kong.ResolverFunc {
	return func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
		v, ok := env[envName(flag.Name)]
		if !ok {
			return nil, nil //nolint:nilnil // kong: nil means not resolved
		}
		switch flag.Name {
		case "kubeconfig":
			return list(filepath.SplitList(v)), nil
		case "trusted-proxy", "cluster-address-allow", "oidc-scopes", "trusted-header-from", "also":
			return list(strings.Split(v, ",")), nil
		case "cluster-identity", "cluster-labels":
			return list(strings.Split(v, ";")), nil
		case "oidc-role-map", "ldap-role-map", "trusted-header-role":
			return list(strings.Split(v, ";")), nil // a group may be the name of an entry, with commas in it
		}
		return v, nil
	}
}

func list(parts []string) []any {
	out := []any{}
	for _, p := range parts {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

// unknown names every variable with our prefix that no flag of any command reads.
func unknown(env map[string]string, model *kong.Application) error {
	known := map[string]bool{tokenEnv: true, keyEnv: true}
	var walk func(n *kong.Node)
	walk = func(n *kong.Node) {
		for _, f := range n.Flags {
			if f.Name != "help" {
				known[envName(f.Name)] = true
			}
		}
		for _, child := range n.Children {
			walk(child)
		}
	}
	walk(model.Node)
	var errs []error
	for name := range env {
		if !known[name] {
			errs = append(errs, fmt.Errorf("environment: %s is not a setting of kube-node-manager", name))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

func (c *cli) config(cmd Command, env map[string]string) (Config, error) {
	cfg := Config{Command: cmd}
	p := &problems{}
	switch cmd {
	case CommandServe:
		cfg.Serve = c.Serve.config(p, env)
	case CommandUserAdd:
		a := c.User.Add
		cfg.User = User{Database: a.config(p), Name: a.Name, Role: a.Role, PasswordFile: a.PasswordFile, Invite: a.Invite}
		if a.Invite && a.PasswordFile != "" {
			p.add("invite", "not together with --password-file: the person sets the password")
		}
		if a.ExternalURL != "" {
			cfg.User.External = origin(p, "external-url", a.ExternalURL)
		}
	case CommandSetPassword:
		s := c.User.SetPassword
		cfg.User = User{Database: s.config(p), Name: s.Name, PasswordFile: s.PasswordFile}
	case CommandUserDisable:
		cfg.User = User{Database: c.User.Disable.config(p), Name: c.User.Disable.Name}
	case CommandUserUnblock:
		cfg.User = User{Database: c.User.Unblock.config(p), Name: c.User.Unblock.Name}
	case CommandResetTOTP:
		cfg.User = User{Database: c.User.ResetTotp.config(p), Name: c.User.ResetTotp.Name}
	case CommandUserEnable:
		cfg.User = User{Database: c.User.Enable.config(p), Name: c.User.Enable.Name}
	case CommandUserGrant:
		g := c.User.Grant
		cfg.User = User{Database: g.config(p), Name: g.Name, Role: g.Role, Scope: g.Scope, Also: g.Also}
	case CommandUserRevoke:
		cfg.User = User{Database: c.User.Revoke.config(p), Name: c.User.Revoke.Name, Scope: c.User.Revoke.Scope}
	case CommandUserList:
		cfg.User = User{Database: c.User.List.config(p)}
	case CommandAuditVerify:
		v := c.Audit.Verify
		cfg.Audit = Audit{Database: v.config(p), Heads: v.Heads, Key: v.Key}
	case CommandWatch:
		cfg.Watch = c.watch(p, env)
	case CommandKeyRotate:
		r := c.Key.Rotate
		db := r.database.config(p)
		cfg.Rotate = Rotate{Database: db, Key: r.secretsKey.config(p, env, db)}
		if cfg.Rotate.Key == (Key{}) {
			p.add("key-file", "must be given with PostgreSQL, or the variable %s", keyEnv)
		}
	case CommandVersion, CommandKeyNew:
	default:
		p.add("command", "%q has no meaning", string(cmd))
	}
	return cfg, errors.Join(p.errs...)
}

// problems collects what is wrong, so that a person sees all of it at once.
type problems struct{ errs []error }

func (p *problems) add(flag, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
}

func (d database) config(p *problems) Database {
	if d.DatabaseURL != "" {
		// The address holds a password and is not repeated. It may name several hosts, which is no URL to net/url.
		if !strings.HasPrefix(d.DatabaseURL, "postgres://") && !strings.HasPrefix(d.DatabaseURL, "postgresql://") {
			p.add("database-url", "is not an address like postgres://user:password@host:5432/database?sslmode=verify-full")
		}
	}
	if d.DataDir == "" && d.DatabaseURL == "" {
		p.add("data-dir", "must not be empty")
	}
	return Database{Dir: d.DataDir, URL: fleet.Secret(d.DatabaseURL)}
}

// config is where the keys are: where the flag or the variable says, or beside the database if that is SQLite.
func (k secretsKey) config(p *problems, env map[string]string, db Database) Key {
	text := strings.TrimSpace(env[keyEnv])
	switch {
	case k.KeyFile != "" && text != "":
		p.add("key-file", "not together with the variable %s", keyEnv)
	case k.KeyFile == "" && text == "" && db.URL == "":
		return Key{File: filepath.Join(db.Dir, "seal.key"), Ours: true}
	}
	return Key{File: k.KeyFile, Text: fleet.Secret(text)}
}

func (s serveCmd) config(p *problems, env map[string]string) Serve {
	db := s.database.config(p)
	cfg := Serve{
		Database:       db,
		Listen:         s.Listen,
		Kubeconfigs:    s.Kubeconfig,
		InCluster:      s.InCluster,
		TLSCert:        s.TLSCert,
		TLSKey:         s.TLSKey,
		TLSSelfSigned:  s.TLSSelfSigned,
		InsecureHTTP:   s.InsecureHTTP,
		MetricsListen:  s.MetricsListen,
		LogFormat:      s.LogFormat,
		Streams:        s.streams.config(p),
		Connections:    s.connections.config(p),
		CacheBytes:     s.CacheMaxBytes,
		LeaseNamespace: s.LeaseNamespace,
		FreshSignIn:    s.FreshSignIn,
		AuditKeyFile:   s.AuditKeyFile,
		AuditRetention: s.AuditRetention,
		BatchRetention: s.BatchRetention,
		EventRetention: s.EventRetention,
		Identities:     s.identities(p), ImpersonatePrefix: s.ImpersonatePrefix, Labels: s.labels(p),
		Key:    s.secretsKey.config(p, env, db),
		OIDC:   s.oidcFlags.config(p),
		LDAP:   s.ldapFlags.config(p),
		Header: s.headerFlags.config(p),
	}
	switch {
	case s.AuditKeyFile == "" && s.DatabaseURL == "":
		cfg.AuditKeyFile = filepath.Join(s.DataDir, "audit.key")
	case s.AuditKeyFile == "" && s.AuditRetention > 0:
		p.add("audit-retention", "needs --audit-key-file with PostgreSQL: where the record begins is signed, and all replicas must use one key")
	}
	for _, r := range []struct {
		flag string
		kept time.Duration
	}{{"audit-retention", s.AuditRetention}, {"batch-retention", s.BatchRetention}, {"event-retention", s.EventRetention}} {
		if r.kept < 0 || r.kept > 0 && r.kept < minRetention {
			p.add(r.flag, "%s is neither 0 nor at least %s", r.kept, minRetention)
		}
	}
	if s.FreshSignIn < 0 {
		p.add("fresh-sign-in", "%s is neither 0 nor a time", s.FreshSignIn)
	}
	for _, c := range s.ClusterAddressAllow {
		prefix, err := parsePrefix(c)
		if err != nil {
			p.add("cluster-address-allow", "%q is neither a CIDR like 127.0.0.0/8 nor an address", c)
			continue
		}
		cfg.AddressAllow = append(cfg.AddressAllow, prefix)
	}
	if !namespaceName.MatchString(s.LeaseNamespace) {
		p.add("lease-namespace", "%q is not the name of a namespace", s.LeaseNamespace)
	}
	if s.Pod != "" {
		namespace, name, ok := strings.Cut(s.Pod, "/")
		if !ok || !namespaceName.MatchString(namespace) || !podName.MatchString(name) {
			p.add("pod", "%q is not of the form namespace/name", s.Pod)
		}
		cfg.Pod = Pod{Namespace: namespace, Name: name}
	}
	if s.CacheMaxBytes < minCache {
		p.add("cache-max-bytes", "must be at least %d", minCache)
	}
	if err := cfg.LogLevel.UnmarshalText([]byte(s.LogLevel)); err != nil {
		p.add("log-level", "%q is not a level", s.LogLevel)
	}
	for _, f := range s.Kubeconfig {
		if f == "" {
			p.add("kubeconfig", "a file name must not be empty")
		}
	}
	if s.ExternalURL != "" {
		cfg.External = origin(p, "external-url", s.ExternalURL)
	}
	for _, c := range s.TrustedProxy {
		prefix, err := parsePrefix(c)
		if err != nil {
			p.add("trusted-proxy", "%q is neither a CIDR like 10.0.0.0/8 nor an address", c)
			continue
		}
		cfg.Proxies = append(cfg.Proxies, prefix)
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		p.add("tls-cert", "--tls-cert and --tls-key go together")
	}
	if s.TLSSelfSigned && s.TLSCert != "" {
		p.add("tls-self-signed", "not together with --tls-cert")
	}
	loopback := checkListen(p, "listen", s.Listen)
	if s.MetricsListen != "" {
		checkListen(p, "metrics-listen", s.MetricsListen)
	}
	if !loopback && !cfg.Secure() && !s.InsecureHTTP {
		p.add("listen", "plain HTTP on %s lets others read passwords and sessions: use --tls-cert and --tls-key, --tls-self-signed, "+
			"an https --external-url when a proxy ends TLS, or --insecure-http if you accept that", s.Listen)
	}
	return cfg
}

// The grammar of what is said of clusters. A prefix may not make one of the cluster's own names.
var (
	prefixName = regexp.MustCompile(`^[!-~]{0,64}$`)
	labelKey   = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_./]{0,251}[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)
)

func (t clusterTerms) identities(p *problems) []ClusterIdentity {
	if !prefixName.MatchString(t.ImpersonatePrefix) || strings.HasPrefix(strings.ToLower(t.ImpersonatePrefix), "system:") {
		p.add("impersonate-prefix", "%q must be at most 64 letters without blanks, and not begin with system:", t.ImpersonatePrefix)
	}
	var out []ClusterIdentity
	for _, s := range t.ClusterIdentity {
		i := strings.LastIndex(s, "=") // a name may have one too
		if i < 1 || !clusterPattern(s[:i]) || s[i+1:] != "impersonate" && s[i+1:] != "shared" {
			p.add("cluster-identity", "%q is not of the form name=impersonate or name=shared", s)
			continue
		}
		out = append(out, ClusterIdentity{Pattern: s[:i], Impersonate: s[i+1:] == "impersonate"})
	}
	return out
}

func (t clusterTerms) labels(p *problems) []ClusterLabels {
	var out []ClusterLabels
	for _, s := range t.ClusterLabels {
		i := strings.LastIndex(s, ":")
		if i < 1 || !clusterPattern(s[:i]) {
			p.add("cluster-labels", "%q is not of the form name:key=value,key=value", s)
			continue
		}
		l := ClusterLabels{Pattern: s[:i], Labels: map[string]string{}}
		for pair := range strings.SplitSeq(s[i+1:], ",") {
			k, v, ok := strings.Cut(pair, "=")
			if _, twice := l.Labels[k]; !ok || twice || !labelKey.MatchString(k) || !labelValue.MatchString(v) {
				p.add("cluster-labels", "%q in %q is not a label like key=value", pair, s)
				continue
			}
			l.Labels[k] = v
		}
		out = append(out, l)
	}
	return out
}

// clusterPattern refuses what a scope takes for something else than a name.
func clusterPattern(s string) bool {
	return !strings.HasPrefix(s, "label:") && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// namespaceName and podName are what the API server accepts.
var (
	namespaceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	podName       = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`)
)

func (s streams) config(p *problems) Streams {
	for _, limit := range []struct {
		flag string
		n    int
	}{
		{"streams-per-session", s.PerSession},
		{"streams-per-person", s.PerPerson},
		{"streams-per-address", s.PerAddress},
		{"streams", s.Total},
	} {
		if limit.n < 1 {
			p.add(limit.flag, "%d is not a positive number", limit.n)
		}
	}
	return Streams(s)
}

func (c connections) config(p *problems) Connections {
	if c.ConnectionsPerAddress < 0 {
		p.add("connections-per-address", "%d is less than 0", c.ConnectionsPerAddress)
	}
	if c.Connections < 0 {
		p.add("connections", "%d is less than 0", c.Connections)
	}
	return Connections{PerAddress: c.ConnectionsPerAddress, Total: c.Connections}
}

// checkListen reports whether addr can only be reached from this host.
func checkListen(p *problems, flag, addr string) (loopback bool) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		p.add(flag, "%q is not of the form host:port", addr)
		return true // one problem is enough
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		p.add(flag, "%q has no valid port", addr)
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func parsePrefix(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// origin parses an absolute http or https URL that is nothing but scheme, host and port.
func origin(p *problems, flag, raw string) *url.URL {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"):
		p.add(flag, "%q is not an http or https URL", redactURL(raw))
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/"):
		p.add(flag, "%q must be only scheme, host and port", redactURL(raw))
	default:
		return &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host)}
	}
	return nil
}

func (c *cli) watch(p *problems, env map[string]string) Watch {
	w := Watch{Cluster: c.Watch.Cluster, Server: origin(p, "server", c.Watch.Server)}
	if token := strings.TrimSpace(env[tokenEnv]); token != "" {
		w.Token = fleet.Secret(token)
	}
	if f := c.Watch.TokenFile; f != "" {
		if w.Token != "" {
			p.add("token-file", "not together with the variable %s", tokenEnv)
			return w
		}
		b, err := os.ReadFile(f)
		if err != nil {
			p.errs = append(p.errs, fmt.Errorf("--token-file: %w", err))
			return w
		}
		if w.Token = fleet.Secret(strings.TrimSpace(string(b))); w.Token == "" {
			p.add("token-file", "%s is empty", f)
		}
	}
	return w
}

// Logger writes records as the configuration says.
func (s Serve) Logger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: s.LogLevel}
	if s.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}
