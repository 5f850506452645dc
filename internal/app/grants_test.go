package app

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// on runs a command beside the server.
func (r *running) on(cmd config.Command, u config.User) (string, error) {
	r.t.Helper()
	u.Database = r.cfg.Database
	var out bytes.Buffer
	err := Execute(r.t.Context(), config.Config{Command: cmd, User: u}, "test", Stdio{In: strings.NewReader(password), Out: &out, Err: io.Discard})
	return out.String(), err
}

// A grant that is taken away in the middle of a batch stops it: of what comes after nothing reaches the API server. It
// is taken on the host, while the server is in the middle of the first node.
func TestApp_GrantTakenAwayStopsTheBatch(t *testing.T) {
	t.Parallel()
	var (
		r       *running
		patches atomic.Int32
		taken   = make(chan error, 1)
	)
	cluster := fakeClusterWith(t, "prod-1", "node-", func(req *http.Request) {
		if req.Method == http.MethodPatch && patches.Add(1) == 1 {
			_, err := r.on(config.CommandUserRevoke, config.User{Name: "vic", Scope: "prod-*"})
			taken <- err
		}
	})
	r = start(t, serveConfig(t), cluster)
	p := r.person(nil)
	r.setUp(p)
	for _, c := range []struct {
		cmd config.Command
		u   config.User
		say string
	}{
		{config.CommandUserAdd, config.User{Name: "vic", Role: "none", PasswordFile: "-"}, "added vic as none\n"},
		{config.CommandUserGrant, config.User{Name: "vic", Scope: "prod-*", Role: "viewer", Also: []string{"node.cordon"}}, "granted vic viewer+node.cordon in prod-*; their sessions have ended\n"},
		{config.CommandUserGrant, config.User{Name: "vic", Scope: "lab", Role: "viewer"}, "granted vic viewer in lab; their sessions have ended\n"},
	} {
		if out, err := r.on(c.cmd, c.u); err != nil || out != c.say {
			t.Fatalf("%s: %q, %v", c.cmd, out, err)
		}
	}
	if list, err := r.on(config.CommandUserList, config.User{}); err != nil || !strings.Contains(list, "viewer+node.cordon in prod-*; viewer in lab") {
		t.Errorf("%s%v", list, err)
	}
	for _, u := range []config.User{
		{Name: "vic", Scope: "a b", Role: "viewer"}, {Name: "vic", Scope: "lab", Role: "viewer", Also: []string{"users.admin"}}, {Name: "nobody", Scope: "lab", Role: "viewer"},
	} {
		if _, err := r.on(config.CommandUserGrant, u); err == nil {
			t.Errorf("granted %+v", u)
		}
	}
	vic := r.person(nil)
	r.signIn(vic, "vic")
	users, err := r.auth.Users(t.Context())
	i := slices.IndexFunc(users, func(u fleet.User) bool { return u.Name == "vic" })
	if err != nil || i < 0 {
		t.Fatal(users, err)
	}
	by, err := r.auth.Caller(t.Context(), users[i].ID)
	if err != nil {
		t.Fatal(err)
	}
	spec := fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionCordon}, Rollout: fleet.Rollout{MaxConcurrent: 1}}
	for _, n := range []string{"node-0", "node-1", "node-2"} {
		ref := fleet.NodeRef{Cluster: "prod-1", Name: n}
		spec.Nodes = append(spec.Nodes, ref)
		waitFor(t, func() bool { _, err := r.manager.Node(ref); return err == nil })
	}
	b, err := r.engine.Submit(t.Context(), by, spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
	var items []fleet.Item
	waitFor(t, func() bool {
		b, items, err = r.engine.Batch(t.Context(), onHost(), b.ID)
		return err != nil || b.State == fleet.BatchDone
	})
	if err != nil || b.Outcome != fleet.OutcomeCancelled || b.Counts.Succeeded != 1 || patches.Load() != 1 {
		t.Errorf("%d writes: %+v, %v", patches.Load(), b, err)
	}
	if !slices.ContainsFunc(items, func(it fleet.Item) bool { return it.Code == fleet.CodeAuthorityLost }) {
		t.Errorf("no node says why: %+v", items)
	}
	// And with the grant went what was signed in.
	waitFor(t, func() bool {
		status, _ := vic.do("GET", "/account", nil, "Accept", "application/json")
		return status == http.StatusUnauthorized
	})
}

// A proxy that is trusted signs people in, what they may do follows from their groups, and from elsewhere the same
// request is refused and on record.
func TestApp_TrustedHeader(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	header := []string{"X-User", "Eve", "X-Groups", "staff,ops", "X-Secret", "0123456789abcdef", "Accept", "text/html"}
	with := func(from string) config.Serve {
		cfg := serveConfig(t)
		cfg.Header = config.TrustedHeader{
			User: "x-user", Groups: "X-Groups", SecretName: "X-Secret", SecretFile: secret, From: []netip.Prefix{netip.MustParsePrefix(from)},
			Roles: []config.GroupRole{{Group: "ops", Role: "operator", Scope: "prod-*"}},
		}
		return cfg
	}
	r := start(t, with("127.0.0.1/32"))
	ada, eve := r.person(nil), r.person(nil)
	r.setUp(ada)
	if status, body := eve.do("GET", "/login?next=/account", nil, header...); status != http.StatusSeeOther {
		t.Fatalf("status %d: %s", status, body)
	}
	if status, body := eve.do("GET", "/account", nil, "Accept", "text/html"); status != http.StatusOK || !strings.Contains(body, "<code>prod-*</code>") {
		t.Errorf("status %d: %s", status, body)
	}
	_, users := ada.do("GET", "/api/v1/users", nil)
	if want := `"kind":"oidc","second_factor":false,"grants":[{"scope":"prod-*","role":"operator","from":"oidc"}],"groups":["ops","staff"]`; !strings.Contains(users, want) {
		t.Errorf("people are %s", users)
	}
	if status, _ := r.person(nil).do("GET", "/login", nil, append(slices.Clone(header), "X-Groups", "staff")...); status != http.StatusForbidden {
		t.Errorf("in no group of ours: status %d", status)
	}

	r = start(t, with("192.0.2.1/32"))
	ada = r.person(nil)
	r.setUp(ada)
	for range 3 {
		if status, _ := r.person(nil).do("GET", "/login", nil, append(slices.Clone(header), "X-Forwarded-For", "192.0.2.1")...); status != http.StatusForbidden {
			t.Errorf("from somebody else: status %d", status)
		}
	}
	_, entries := ada.do("GET", "/api/v1/audit?action=signin", nil)
	if n := strings.Count(entries, `"via":"header"`); n != 1 || !strings.Contains(entries, "a peer that is not trusted") || !strings.Contains(entries, `"addr":"127.0.0.1"`) {
		t.Errorf("%d on record: %s", n, entries)
	}

	for what, change := range map[string]func(*config.Serve){
		"a short secret": func(c *config.Serve) {
			c.Header.SecretFile = filepath.Join(t.TempDir(), "short")
			if err := os.WriteFile(c.Header.SecretFile, []byte("0123456789abcde\n\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"no secret":         func(c *config.Serve) { c.Header.SecretFile = "does-not-exist" },
		"no scope that is":  func(c *config.Serve) { c.Header.Roles[0].Scope = "label:x" },
		"no header of ours": func(c *config.Serve) { c.Header.Groups = "" },
	} {
		cfg := with("127.0.0.1/32")
		change(&cfg)
		if _, err := New(t.Context(), cfg, Options{Logger: slog.New(slog.DiscardHandler), Notice: io.Discard}); err == nil {
			t.Errorf("%s: it starts", what)
		}
	}
}
