package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
)

func parse(t *testing.T, env []string, args ...string) (Config, error) {
	t.Helper()
	var out bytes.Buffer
	return Parse(args, env, &out)
}

func TestParse_Defaults(t *testing.T) {
	t.Parallel()
	got, err := parse(t, []string{"HOME=/x", "NOT_KNM_X=1"}, "serve")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Command: CommandServe, Serve: Serve{
		Database: Database{Dir: "./data"}, Listen: "127.0.0.1:8080", MetricsListen: "127.0.0.1:9090", LogFormat: "json",
		LogLevel: slog.LevelInfo, Streams: Streams{PerSession: 16, PerPerson: 32, PerAddress: 256, Total: 12000}, CacheBytes: 256 << 20, LeaseNamespace: "kube-node-manager", ImpersonatePrefix: "knm:",
		AuditKeyFile: filepath.Join("data", "audit.key"), Key: Key{File: filepath.Join("data", "seal.key"), Ours: true}, BatchRetention: 90 * 24 * time.Hour, EventRetention: 30 * 24 * time.Hour,
		FreshSignIn: 15 * time.Minute,
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParse_Commands(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want Config
	}{
		{[]string{"version"}, Config{Command: CommandVersion}},
		{
			[]string{"user", "add", "ada", "--role", "admin", "--password-file", "-", "--data-dir", "d"},
			Config{Command: CommandUserAdd, User: User{Database: Database{Dir: "d"}, Name: "ada", Role: "admin", PasswordFile: "-"}},
		},
		{[]string{"user", "list"}, Config{Command: CommandUserList, User: User{Database: Database{Dir: "./data"}}}},
		{[]string{"user", "disable", "ada"}, Config{Command: CommandUserDisable, User: User{Database: Database{Dir: "./data"}, Name: "ada"}}},
		{[]string{"user", "unblock", "ada"}, Config{Command: CommandUserUnblock, User: User{Database: Database{Dir: "./data"}, Name: "ada"}}},
		{[]string{"user", "enable", "ada"}, Config{Command: CommandUserEnable, User: User{Database: Database{Dir: "./data"}, Name: "ada"}}},
		{
			[]string{"user", "set-password", "ada", "--password-file=p"},
			Config{Command: CommandSetPassword, User: User{Database: Database{Dir: "./data"}, Name: "ada", PasswordFile: "p"}},
		},
		{
			[]string{"key", "rotate", "--key-file", "k"},
			Config{Command: CommandKeyRotate, Rotate: Rotate{Database: Database{Dir: "./data"}, Key: Key{File: "k"}}},
		},
		{
			[]string{"key", "rotate", "--data-dir", "d"},
			Config{Command: CommandKeyRotate, Rotate: Rotate{Database: Database{Dir: "d"}, Key: Key{File: filepath.Join("d", "seal.key"), Ours: true}}},
		},
		{[]string{"key", "new"}, Config{Command: CommandKeyNew}},
		{[]string{"audit", "verify"}, Config{Command: CommandAuditVerify, Audit: Audit{Database: Database{Dir: "./data"}}}},
	} {
		got, err := parse(t, nil, tt.args...)
		if err != nil {
			t.Errorf("%q: %v", tt.args, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%q: %s", tt.args, diff)
		}
	}
}

// Every flag of every command is reached by its variable: the value that the variable gives must show in the result.
func TestParse_EveryFlagHasAVariable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tokenFile := filepath.Join(dir, "token")
	if err := os.WriteFile(tokenFile, []byte("knm_from_file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	values := map[string]string{
		"data-dir": "elsewhere", "listen": "127.0.0.2:1234", "kubeconfig": "a" + string(os.PathListSeparator) + "b,c", "in-cluster": "true",
		"external-url": "https://nodes.example", "trusted-proxy": "10.0.0.0/8, 192.0.2.7", "tls-cert": "c.pem", "tls-key": "k.pem",
		"tls-self-signed": "true", "database-url": "postgres://u:hunter2@a:5432,b:5432/d?sslmode=verify-full", "insecure-http": "true", "metrics-listen": "", "log-format": "text", "log-level": "debug",
		"streams-per-session": "3", "streams-per-person": "4", "streams-per-address": "5", "streams": "6",
		"connections-per-address": "7", "connections": "8",
		"key-file": "k2", "cluster-address-allow": "127.0.0.0/8",
		"cluster-identity": "arn:x=y/*=impersonate; *=shared", "impersonate-prefix": "", "cluster-labels": "arn:x:1:env=prod,team=a;*:env=test",
		"cache-max-bytes": "2000000", "lease-namespace": "kube-system", "pod": "ops/knm-0",
		"audit-key-file": "a.key", "audit-retention": "720h", "batch-retention": "0", "event-retention": "48h", "fresh-sign-in": "0", "heads": "-", "audit-key": "AAAA",
		"invite":      "true",
		"oidc-issuer": "https://idp.example/realm", "oidc-client-id": "us", "oidc-client-secret-file": "s", "oidc-ca-file": "ca", "oidc-scopes": "a,b",
		"oidc-groups-claim": "teams", "oidc-name-claim": "nick", "oidc-role-map": "cn=a,dc=b=admin;sre=operator@prod-*",
		"ldap-url": "ldaps://dir.example", "ldap-ca-file": "ca", "ldap-bind-dn": "cn=us", "ldap-bind-password-file": "p", "ldap-user-base": "dc=b",
		"ldap-user-filter": "(cn={{name}})", "ldap-id-attribute": "objectGUID", "ldap-group-base": "ou=g", "ldap-group-filter": "(m={{dn}})",
		"ldap-group-name": "ou", "ldap-role-map": "cn=a,dc=b=admin;sre=operator",
		"trusted-header-user": "X-User", "trusted-header-groups": "X-Groups", "trusted-header-from": "192.0.2.7, 10.0.0.0/8",
		"trusted-header-secret-file": "s2", "trusted-header-secret-name": "X-Secret", "trusted-header-role": "a=viewer;b=admin@label:x=y",
		"scope": "prod-*", "also": "node.cordon,node.drain",
		"role": "operator", "password-file": "-", "server": "https://knm.example:8443", "cluster": "prod", "token-file": tokenFile,
	}
	// Some flags are good only together with another one.
	also := map[string][]string{
		"database-url":    {"KNM_KEY_FILE=k"},
		"audit-retention": {"KNM_AUDIT_KEY_FILE=a.key"}, "tls-cert": {"KNM_TLS_KEY=k.pem"}, "tls-key": {"KNM_TLS_CERT=c.pem"},
	}
	oidc := []string{"KNM_OIDC_ISSUER=https://idp.example", "KNM_OIDC_CLIENT_ID=x", "KNM_OIDC_ROLE_MAP=a=viewer"}
	ldap := []string{"KNM_LDAP_URL=ldap://dir.example:389", "KNM_LDAP_USER_BASE=dc=x", "KNM_LDAP_ROLE_MAP=a=viewer"}
	header := []string{
		"KNM_TRUSTED_HEADER_USER=X-A", "KNM_TRUSTED_HEADER_GROUPS=X-B", "KNM_TRUSTED_HEADER_FROM=127.0.0.1", "KNM_TRUSTED_HEADER_SECRET_FILE=s",
		"KNM_TRUSTED_HEADER_SECRET_NAME=X-C", "KNM_TRUSTED_HEADER_ROLE=a=viewer",
	}
	for name := range values {
		more, own := []string(nil), envName(name)+"="
		switch {
		case strings.HasPrefix(name, "oidc-"):
			more = oidc
		case strings.HasPrefix(name, "ldap-"):
			more = ldap
		case strings.HasPrefix(name, "trusted-header-"):
			more = header
		}
		for _, kv := range more {
			if !strings.HasPrefix(kv, own) {
				also[name] = append(also[name], kv)
			}
		}
	}
	also["ldap-bind-dn"] = append(also["ldap-bind-dn"], "KNM_LDAP_BIND_PASSWORD_FILE=p")
	also["ldap-bind-password-file"] = append(also["ldap-bind-password-file"], "KNM_LDAP_BIND_DN=cn=x")
	also["ldap-group-filter"] = append(also["ldap-group-filter"], "KNM_LDAP_GROUP_BASE=ou=g")
	base := map[string][]string{
		"serve": {"serve"}, "add": {"user", "add", "x"}, "list": {"user", "list"}, "disable": {"user", "disable", "x"},
		"enable": {"user", "enable", "x"}, "set-password": {"user", "set-password", "x"}, "reset-totp": {"user", "reset-totp", "x"}, "grant": {"user", "grant", "x"}, "revoke": {"user", "revoke", "x"}, "unblock": {"user", "unblock", "x"}, "verify": {"audit", "verify"}, "watch": {"watch"}, "rotate": {"key", "rotate"},
	}
	parser, err := kong.New(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, leaf := range parser.Model.Leaves(false) {
		for _, f := range leaf.Flags {
			if f.Name == "help" {
				continue
			}
			v, ok := values[f.Name]
			if !ok {
				t.Errorf("flag --%s of %s has no value in this test", f.Name, leaf.Name)
				continue
			}
			seen++
			args := base[leaf.Name]
			if (leaf.Name == "add" || leaf.Name == "grant") && f.Name != "role" {
				args = append(slices.Clip(args), "--role=viewer")
			}
			if (leaf.Name == "grant" || leaf.Name == "revoke") && f.Name != "scope" {
				args = append(slices.Clip(args), "--scope=x")
			}
			before := Config{}
			if f.Name != "role" && f.Name != "scope" {
				if before, err = parse(t, also[f.Name], args...); err != nil && also[f.Name] == nil {
					t.Errorf("%s: %v", leaf.Name, err)
				}
			}
			after, err := parse(t, append([]string{envName(f.Name) + "=" + v}, also[f.Name]...), args...)
			if err != nil {
				t.Errorf("%s with %s: %v", leaf.Name, envName(f.Name), err)
			}
			if reflect.DeepEqual(before, after) {
				t.Errorf("%s: %s=%s changes nothing", leaf.Name, envName(f.Name), v)
			}
		}
	}
	if seen < len(values) {
		t.Errorf("only %d flags seen", seen)
	}

	got, err := parse(t, []string{"KNM_KUBECONFIG=" + values["kubeconfig"], "KNM_TRUSTED_PROXY=" + values["trusted-proxy"]}, "serve")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b,c"}, got.Serve.Kubeconfigs); diff != "" {
		t.Error(diff)
	}
	if got, want := fmt.Sprint(got.Serve.Proxies), "[10.0.0.0/8 192.0.2.7/32]"; got != want {
		t.Errorf("proxies %s, want %s", got, want)
	}
}

func TestParse_CommandLineWins(t *testing.T) {
	t.Parallel()
	got, err := parse(t, []string{"KNM_LISTEN=127.0.0.1:1", "KNM_KUBECONFIG=env"}, "serve", "--listen", "127.0.0.1:2", "--kubeconfig", "a", "--kubeconfig", "b,c")
	if err != nil {
		t.Fatal(err)
	}
	if got.Serve.Listen != "127.0.0.1:2" {
		t.Errorf("listen = %s", got.Serve.Listen)
	}
	if diff := cmp.Diff([]string{"a", "b,c"}, got.Serve.Kubeconfigs); diff != "" {
		t.Error(diff)
	}
}

// headers are all that signing in by a header needs.
var headers = []string{
	"serve", "--trusted-header-user", "X-A", "--trusted-header-groups", "X-B", "--trusted-header-from", "127.0.0.1", "--trusted-header-secret-file", "s",
	"--trusted-header-secret-name", "X-C", "--trusted-header-role", "a=viewer",
}

func TestParse_GroupRoles(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pair string
		want GroupRole // zero for what is refused
	}{
		{"a=viewer", GroupRole{Group: "a", Role: "viewer"}},
		{"cn=a,dc=b=admin", GroupRole{Group: "cn=a,dc=b", Role: "admin"}},
		{"cn=admin,dc=b=viewer", GroupRole{Group: "cn=admin,dc=b", Role: "viewer"}},
		{"cn=admin@corp=viewer", GroupRole{Group: "cn=admin@corp", Role: "viewer"}},
		{"a@b=operator@prod-*", GroupRole{Group: "a@b", Role: "operator", Scope: "prod-*"}},
		{"ops=operator@label:env=prod,x=admin", GroupRole{Group: "ops", Role: "operator", Scope: "label:env=prod,x=admin"}},
		{"with blanks=operator@*", GroupRole{Group: "with blanks", Role: "operator", Scope: "*"}},
		{"a=operator@", GroupRole{}},
		{"=viewer", GroupRole{}},
		{"a=root", GroupRole{}},
		{"a=none@x", GroupRole{}},
		{"a", GroupRole{}},
		{"a=viewer@x y", GroupRole{}},
		{"a=viewer@x=y", GroupRole{}},
		{"a=Viewer", GroupRole{}},
	} {
		got, err := parse(t, nil, "serve", "--oidc-issuer=https://idp.example", "--oidc-client-id=x", "--oidc-role-map="+tt.pair)
		if (err == nil) != (tt.want != GroupRole{}) {
			t.Errorf("%q: %v", tt.pair, err)
			continue
		}
		if err == nil && (len(got.Serve.OIDC.Roles) != 1 || got.Serve.OIDC.Roles[0] != tt.want) {
			t.Errorf("%q is %+v, want %+v", tt.pair, got.Serve.OIDC.Roles, tt.want)
		}
	}
}

func TestParse_Problems(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		env  []string
		args []string
		want []string // each must be in the error
	}{
		{"unknown variable", []string{"KNM_LISTN=x", "KNM_FOO=y"}, []string{"serve"}, []string{"KNM_LISTN", "KNM_FOO"}},
		{"unknown variable for another command", []string{"KNM_LISTN=x"}, []string{"version"}, []string{"KNM_LISTN"}},
		{
			"several at once", nil,
			[]string{"serve", "--listen", "nonsense", "--tls-cert", "c", "--trusted-proxy", "ten", "--external-url", "ftp://x"},
			[]string{"--listen", `"nonsense"`, "--tls-cert and --tls-key", `"ten"`, "--external-url"},
		},
		{"plain http for everybody", nil, []string{"serve", "--listen", "0.0.0.0:8080"}, []string{"--listen", "--insecure-http"}},
		{"plain http for everybody, no host", nil, []string{"serve", "--listen", ":8080"}, []string{"--insecure-http"}},
		{"http external url is not enough", nil, []string{"serve", "--listen", ":8080", "--external-url", "http://x.example"}, []string{"--insecure-http"}},
		{"external url with path", nil, []string{"serve", "--external-url", "https://x/y"}, []string{"--external-url"}},
		{"self-signed and files", nil, []string{"serve", "--tls-self-signed", "--tls-cert", "c", "--tls-key", "k"}, []string{"--tls-self-signed"}},
		{"bad port", nil, []string{"serve", "--metrics-listen", "127.0.0.1:99999"}, []string{"--metrics-listen"}},
		{"role", nil, []string{"user", "add", "x", "--role", "root"}, []string{"role"}},
		{"no role", nil, []string{"user", "add", "x"}, []string{"--role"}},
		{
			"a slip of the finger empties nothing", nil,
			[]string{"serve", "--batch-retention", "90s", "--event-retention=-720h", "--audit-retention", "1h"},
			[]string{"--batch-retention: 1m30s", "--event-retention: -720h", "--audit-retention: 1h"},
		},
		{"no time", nil, []string{"serve", "--fresh-sign-in=-1s"}, []string{"--fresh-sign-in: -1s"}},
		{"level", []string{"KNM_LOG_LEVEL=loud"}, []string{"serve"}, []string{"log-level"}},
		{"unknown flag", nil, []string{"serve", "--nope"}, []string{"--nope"}},
		{"no command", nil, nil, []string{"serve"}},
		{"another database", nil, []string{"serve", "--database-url", "mysql://u:hunter2@h/d"}, []string{"--database-url"}},
		{"no url", nil, []string{"user", "list", "--database-url", "host=h password=hunter2"}, []string{"--database-url"}},
		{"no place for data", nil, []string{"serve", "--data-dir", ""}, []string{"--data-dir"}},
		{"token twice", []string{"KNM_TOKEN=x"}, []string{"watch", "--token-file", "f"}, []string{"--token-file"}},
		{"token file missing", nil, []string{"watch", "--token-file", "does-not-exist"}, []string{"--token-file"}},
		{"no keys to rotate to", nil, []string{"key", "rotate", "--database-url", "postgres://h/d"}, []string{"--key-file", "KNM_KEY"}},
		{"keys twice", []string{"KNM_KEY=hunter2"}, []string{"serve", "--key-file", "f"}, []string{"--key-file", "KNM_KEY"}},
		{"identity of what", nil, []string{"serve", "--cluster-identity", "prod=root", "--cluster-identity", "=shared"}, []string{"--cluster-identity", `"prod=root"`, `"=shared"`}},
		{"prefix of the cluster's own", nil, []string{"serve", "--impersonate-prefix", "System:"}, []string{"--impersonate-prefix"}},
		{"labels of what", nil, []string{"serve", "--cluster-labels", "prod", "--cluster-labels", "prod:env", "--cluster-labels", "p:a=b c"}, []string{"--cluster-labels", `"prod"`, `"env"`, `"a=b c"`}},
		{"open to what", nil, []string{"serve", "--cluster-address-allow", "lo"}, []string{"--cluster-address-allow", `"lo"`}},
		{"some of the headers", nil, []string{"serve", "--trusted-header-user", "X-User"}, []string{
			"--trusted-header-groups", "--trusted-header-from", "--trusted-header-secret-file", "--trusted-header-secret-name", "--trusted-header-role",
		}},
		{"a secret alone", []string{"KNM_TRUSTED_HEADER_SECRET_FILE=f"}, []string{"serve"}, []string{"--trusted-header-user"}},
		{"headers that are none", nil, append(slices.Clip(headers), "--trusted-header-user", "X_User"), []string{"--trusted-header-user", `"X_User"`}},
		{"headers of somebody else", nil, append(slices.Clip(headers), "--trusted-header-user", "Authorization"), []string{"--trusted-header-user"}},
		{"one header for two", nil, append(slices.Clip(headers), "--trusted-header-user", "x-b"), []string{"there twice"}},
		{"headers of everybody", nil, append(slices.Clip(headers), "--trusted-header-from", "0.0.0.0/0"), []string{"--trusted-header-from"}},
		{"headers from where", nil, append(slices.Clip(headers), "--trusted-header-from", "proxy"), []string{`"proxy"`}},
		{"a role of no role", nil, append(slices.Clip(headers), "--trusted-header-role", "a=none"), []string{"--trusted-header-role"}},
		{"a group twice", nil, append(slices.Clip(headers), "--trusted-header-role", "b=viewer@x", "--trusted-header-role", "b=admin@x"), []string{"twice"}},
		{"a grant of none", nil, []string{"user", "grant", "x", "--scope", "a", "--role", "none"}, []string{"role"}},
		{"a grant of nowhere", nil, []string{"user", "grant", "x", "--role", "viewer"}, []string{"--scope"}},
		{"server with path", nil, []string{"watch", "--server", "http://x/y"}, []string{"--server"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := parse(t, tt.env, tt.args...)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not name %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error shows a password: %q", err)
			}
		})
	}
}

func TestParse_PlainHTTP(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--listen", "127.0.0.1:0"},
		{"--listen", "[::1]:0"},
		{"--listen", "localhost:8080"},
		{"--listen", ":8080", "--insecure-http"},
		{"--listen", ":8080", "--tls-self-signed"},
		{"--listen", ":8080", "--tls-cert", "c", "--tls-key", "k"},
		{"--listen", ":8080", "--external-url", "https://x.example"},
	} {
		if _, err := parse(t, nil, append([]string{"serve"}, args...)...); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestParse_Help(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--help"}, {"serve", "--help"}, {"user", "add", "--help"}} {
		var out bytes.Buffer
		_, err := Parse(args, nil, &out)
		if !errors.Is(err, ErrHelp) {
			t.Errorf("%q: err = %v", args, err)
		}
		if !strings.Contains(out.String(), "Usage: kube-node-manager") {
			t.Errorf("%q: no usage in %q", args, out.String())
		}
	}
}

func TestSecret_NeverShows(t *testing.T) {
	t.Parallel()
	got, err := parse(t, []string{"KNM_TOKEN=knm_hunter2"}, "watch")
	if err != nil {
		t.Fatal(err)
	}
	if got.Watch.Token.Reveal() != "knm_hunter2" {
		t.Errorf("token = %q", got.Watch.Token.Reveal())
	}
	serve := Serve{Database: Database{URL: "postgres://u:hunter2@h/d?password=hunter2"}}
	var buf bytes.Buffer
	for _, h := range []slog.Handler{slog.NewJSONHandler(&buf, nil), slog.NewTextHandler(&buf, nil)} {
		slog.New(h).Info("x", "watch", got.Watch, "token", got.Watch.Token, "serve", serve)
	}
	j, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	buf.Write(j)
	fmt.Fprintf(&buf, "%v %+v %#v %s %v %#v", got, got, got, got.Watch.Token, serve, serve)
	if strings.Contains(buf.String(), "hunter2") {
		t.Errorf("secret shows: %s", buf.String())
	}
	if !strings.Contains(buf.String(), "postgres://h/d") {
		t.Errorf("database is not named: %s", buf.String())
	}
}

func FuzzParse(f *testing.F) {
	f.Add("127.0.0.1:8080", "https://x", "10.0.0.0/8")
	f.Add(":8080", "http://u:p@x/y?z", "::1")
	f.Fuzz(func(t *testing.T, listen, external, proxy string) {
		cfg, err := Parse([]string{"serve", "--listen=" + listen, "--external-url=" + external, "--trusted-proxy=" + proxy}, nil, &bytes.Buffer{})
		if err != nil {
			return
		}
		if s := cfg.Serve; s.External != nil && (s.External.Path != "" || s.External.User != nil || s.External.Host == "") {
			t.Errorf("external = %#v", s.External)
		}
	})
}

func TestParse_Terms(t *testing.T) {
	t.Parallel()
	got, err := parse(t, []string{"KNM_CLUSTER_LABELS=arn:aws:eks:eu:1:cluster/a:env=prod,region=eu; *:env="}, "serve",
		"--cluster-identity", "user@a=b=impersonate", "--cluster-identity", "*=shared")
	if err != nil {
		t.Fatal(err)
	}
	want := []ClusterIdentity{{"user@a=b", true}, {"*", false}}
	if diff := cmp.Diff(want, got.Serve.Identities); diff != "" {
		t.Error(diff)
	}
	labels := []ClusterLabels{
		{"arn:aws:eks:eu:1:cluster/a", map[string]string{"env": "prod", "region": "eu"}}, {"*", map[string]string{"env": ""}},
	}
	if diff := cmp.Diff(labels, got.Serve.Labels); diff != "" {
		t.Error(diff)
	}
}
