package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"
)

// EnvPrefix starts the name of every variable that is ours.
const EnvPrefix = "KNM_"

// tokenEnv is the one variable without a flag: a secret on a command line shows in the list of processes.
const tokenEnv = EnvPrefix + "TOKEN"

// database are the flags of every command that opens the store.
type database struct {
	DataDir     string `name:"data-dir" default:"./data" placeholder:"DIR" help:"Directory of the database; made if missing (${default})."`
	DatabaseURL string `name:"database-url" placeholder:"postgres://…" help:"PostgreSQL instead of SQLite in the data directory; better in the variable, as others see the command line."`
}

type serveCmd struct {
	database
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
	CacheMaxBytes      int64  `name:"cache-max-bytes" default:"268435456" placeholder:"BYTES" help:"Nodes and their rendered rows held; beyond it, clusters that nobody looks at are put to sleep (${default})."`
	CredentialsKeyFile string `placeholder:"FILE" help:"File with 32 bytes in hexadecimal or base64, which secrets in the database are encrypted with. Beside SQLite one is made; with PostgreSQL there are no second factors without it."`
	LeaseNamespace     string `default:"kube-node-manager" placeholder:"NAMESPACE" help:"Where the Leases of nodes that are being drained are, in each cluster; without it a node is kept from other tools by its annotation alone (${default})."`
	Pod                string `placeholder:"NAMESPACE/NAME" help:"The pod that this process runs in: a drain evicts it last."`
	LogFormat          string `default:"json" enum:"json,text" help:"json or text."`
	LogLevel           string `default:"info" enum:"debug,info,warn,error" help:"debug, info, warn or error."`
}

// minCache is less than one small cluster needs; a number below it was meant in other units.
const minCache = 1 << 20

// streams are the limits of live streams.
type streams struct {
	PerSession int `name:"streams-per-session" default:"16" placeholder:"N" help:"Live streams of one session (${default})."`
	PerPerson  int `name:"streams-per-person" default:"32" placeholder:"N" help:"Live streams of one person (${default})."`
	PerAddress int `name:"streams-per-address" default:"256" placeholder:"N" help:"Live streams of one client address (${default})."`
	Total      int `name:"streams" default:"12000" placeholder:"N" help:"Live streams in all (${default})."`
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
			Role         string `required:"" enum:"viewer,operator,admin" help:"viewer, operator or admin."`
			PasswordFile string `placeholder:"FILE|-" help:"File with the password, - for standard input. Without it one is made up and printed."`
		} `cmd:"" help:"Add a person."`
		List        struct{ database } `cmd:"" help:"List the people."`
		Disable     userNameCmd        `cmd:"" help:"Keep a person out; ends sessions and streams."`
		Enable      userNameCmd        `cmd:"" help:"Let a disabled person in again."`
		ResetTotp   userNameCmd        `cmd:"" name:"reset-totp" help:"Take away a person's second factor; ends sessions and tokens."`
		SetPassword struct {
			userNameCmd
			PasswordFile string `placeholder:"FILE|-" help:"File with the password, - for standard input. Without it one is made up and printed."`
		} `cmd:"" help:"Set a person's password; ends sessions and streams."`
	} `cmd:"" help:"Manage people, beside a running server or without one."`
	Audit struct {
		Verify struct{ database } `cmd:"" help:"Check the chain of the whole record."`
	} `cmd:"" help:"The audit record."`
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
		case "trusted-proxy":
			return list(strings.Split(v, ",")), nil
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
	known := map[string]bool{tokenEnv: true}
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
		cfg.Serve = c.Serve.config(p)
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
	case CommandResetTOTP:
		cfg.User = User{Database: c.User.ResetTotp.config(p), Name: c.User.ResetTotp.Name}
	case CommandUserEnable:
		cfg.User = User{Database: c.User.Enable.config(p), Name: c.User.Enable.Name}
	case CommandUserList:
		cfg.User = User{Database: c.User.List.config(p)}
	case CommandAuditVerify:
		cfg.Audit = Audit{Database: c.Audit.Verify.config(p)}
	case CommandWatch:
		cfg.Watch = c.watch(p, env)
	case CommandVersion:
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
	return Database{Dir: d.DataDir, URL: Secret(d.DatabaseURL)}
}

func (s serveCmd) config(p *problems) Serve {
	cfg := Serve{
		Database:       s.database.config(p),
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
		CacheBytes:     s.CacheMaxBytes,
		LeaseNamespace: s.LeaseNamespace,

		CredentialsKeyFile: s.CredentialsKeyFile,
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
		w.Token = Secret(token)
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
		if w.Token = Secret(strings.TrimSpace(string(b))); w.Token == "" {
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
