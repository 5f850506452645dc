package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

// kubeconfigOf is what a person would paste.
func kubeconfigOf(t *testing.T, cfg *rest.Config) string {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["k"] = &clientcmdapi.Cluster{Server: cfg.Host, CertificateAuthorityData: cfg.CAData}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: cfg.BearerToken, ClientCertificateData: cfg.CertData, ClientKeyData: cfg.KeyData}
	config.Contexts["c"] = &clientcmdapi.Context{Cluster: "k", AuthInfo: "u", Namespace: "default"}
	config.CurrentContext = "c"
	b, err := clientcmd.Write(*config)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func object(t *testing.T, fields ...string) string {
	t.Helper()
	m := map[string]string{}
	for i := 0; i+1 < len(fields); i += 2 {
		m[fields[i]] = fields[i+1]
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func keyFile(t *testing.T) string {
	t.Helper()
	out, err := program("key", "new").Output()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// webArgs start a server that takes clusters through the web, those of this host too.
func webArgs(keys string) []string {
	return []string{"--key-file", keys, "--cluster-address-allow", "127.0.0.0/8", "--cluster-address-allow", "::1"}
}

func (c *client) clusterIs(what, name, want string, live *stream) {
	c.t.Helper()
	live.until(what, func(e event) bool {
		return slices.ContainsFunc(strings.Split(e.Data, "<tr "), func(row string) bool {
			return strings.Contains(row, `data-state="`+want+`"`) && strings.Contains(row, `>`+name+`</a>`)
		})
	})
}

type clusterTest struct {
	Outcome, Version, UID string
	Warnings              []string
	Credential            struct{ User, Fingerprint, Kind string }
	Permissions           []struct {
		Verb, Resource, Subresource string
		Needed, Allowed             bool
	}
}

// A cluster comes in through the web, with the real API server behind it: tested, added, live on every page, its
// credential replaced under open streams, kept over a restart and a rotation of the key, and removed. Its secrets are
// nowhere: not in an answer, not in the log, not in a byte of the database.
func TestWebCluster_WholeLife(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	node := k.Node(t, kubetest.NodeSpec{}).Name
	user := kubetest.Name(t, "web")
	k.Grant(t, user, kubetest.Rule("", "nodes", "get", "list", "watch", "patch"), kubetest.Rule("", "namespaces", "get"))
	narrow, wide := k.User(t, user), k.REST()
	keys := keyFile(t)
	s := startServerWith(t, webArgs(keys)...)
	root, vic := s.client(t, "root", "admin"), s.client(t, "vic", "viewer")

	var got clusterTest
	root.json(200, &got, "POST", "/api/v1/clusters/test", object(t, "kubeconfig", kubeconfigOf(t, wide)))
	if got.Outcome != "ok" || !slices.Equal(got.Warnings, []string{"cluster_admin"}) || got.Version == "" || got.UID == "" || got.Credential.Kind != "token" {
		t.Errorf("the administrator: %+v", got)
	}
	root.json(200, &got, "POST", "/api/v1/clusters/test", object(t, "kubeconfig", kubeconfigOf(t, narrow)))
	if got.Outcome != "ok" || !slices.Contains(got.Warnings, "missing") || slices.Contains(got.Warnings, "cluster_admin") || slices.Contains(got.Warnings, "wide") || got.Credential.User != user {
		t.Errorf("a narrow user: %+v", got)
	}
	for _, p := range got.Permissions {
		if want := p.Resource == "nodes" && p.Subresource == "" && p.Needed; p.Allowed != want {
			t.Errorf("%s %s/%s: allowed %t", p.Verb, p.Resource, p.Subresource, p.Allowed)
		}
	}
	nobody := *wide
	nobody.BearerToken = "nobody-knows-this-canary-token"
	root.json(200, &got, "POST", "/api/v1/clusters/test", object(t, "kubeconfig", kubeconfigOf(t, &nobody)))
	if got.Outcome != "unauthorized" {
		t.Errorf("a stranger: %+v", got)
	}
	vic.json(403, nil, "POST", "/api/v1/clusters", object(t, "name", "web", "kubeconfig", kubeconfigOf(t, narrow)))

	live := vic.stream("GET", "/clusters/stream", "")
	all := vic.stream("GET", "/api/v1/nodes/events", "")
	all.until("the state to be complete", func(e event) bool { return e.Name == "synced" })
	var added struct {
		Name       string
		Credential struct{ User, Fingerprint string }
	}
	root.json(201, &added, "POST", "/api/v1/clusters", object(t, "name", "web", "kubeconfig", kubeconfigOf(t, narrow)))
	if added.Name != "web" || added.Credential.User != user || added.Credential.Fingerprint == "" {
		t.Errorf("%+v", added)
	}
	vic.clusterIs("the cluster to be live", "web", "live", live)
	all.until("the node", func(e event) bool { return e.Name == "node_add" && strings.Contains(e.Data, node) })
	root.json(409, nil, "POST", "/api/v1/clusters", object(t, "name", "web", "kubeconfig", kubeconfigOf(t, narrow)))

	// Replaced under an open stream, by one that is refused, and back by the administrator's.
	nodes := vic.stream("GET", "/api/v1/nodes/events?cluster=web", "")
	nodes.until("the node", func(e event) bool { return e.Name == "node_add" && strings.Contains(e.Data, node) })
	root.json(200, nil, "PUT", "/api/v1/clusters/web", object(t, "kubeconfig", kubeconfigOf(t, &nobody)))
	vic.clusterIs("the refusal", "web", "unauthorized", live)
	root.json(200, nil, "PUT", "/api/v1/clusters/web", object(t, "kubeconfig", kubeconfigOf(t, wide)))
	vic.clusterIs("the new credential", "web", "live", live)
	k.Cordon(t, node)
	nodes.until("the cordon on the stream from before", func(e event) bool {
		return e.Name == "node_update" && strings.Contains(e.Data, node) && strings.Contains(e.Data, `"schedulable":false`)
	})

	// A new key, with the server running; the server then starts with the new one alone.
	fresh := keyFile(t)
	both := filepath.Join(t.TempDir(), "both")
	if err := os.WriteFile(both, append(read(t, fresh), read(t, keys)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := s.run("", "key", "rotate", "--key-file", both); !strings.HasPrefix(out, "1 secrets rewrapped") {
		t.Errorf("rotate: %s", out)
	}
	if out := s.run("", "key", "rotate", "--key-file", both); !strings.HasPrefix(out, "0 secrets rewrapped") {
		t.Errorf("rotate again: %s", out)
	}
	s.stop()
	wrong := program("serve", "--listen", s.listen, "--data-dir", s.dataDir, "--metrics-listen", "", "--key-file", keys)
	out, err := wrong.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "which is not among those that were given") {
		t.Errorf("a start with the old key: %v %s", err, out)
	}
	s.args = webArgs(fresh)
	s.start()
	nodes = vic.stream("GET", "/api/v1/nodes/events?cluster=web", "")
	nodes.until("the node after a restart", func(e event) bool { return strings.Contains(e.Data, node) })

	// The page shows whose credential it is; the form that removes wants the name.
	resp := root.send("GET", "/clusters", "", "", "Accept", "text/html")
	page, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !strings.Contains(string(page), "sha256:") || !strings.Contains(string(page), "/api/v1/clusters/web/delete") {
		t.Errorf("the page lacks the cluster: %v", err)
	}
	form := func(confirm string) int {
		resp := root.send("POST", "/api/v1/clusters/web/delete", "application/x-www-form-urlencoded", url.Values{"confirm": {confirm}}.Encode(), "Accept", "text/html")
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := form("wbe"); got != http.StatusUnprocessableEntity {
		t.Errorf("removed by another name: %d", got)
	}
	if got := form("web"); got != http.StatusSeeOther {
		t.Errorf("remove: %d", got)
	}
	nodes.until("the end", func(e event) bool { return e.Name == "bye" })
	vic.json(404, nil, "GET", "/api/v1/nodes?cluster_name=web", "")
	root.json(404, nil, "DELETE", "/api/v1/clusters/web", "")

	// The record has every step, intent before result.
	resp = root.send("GET", "/api/v1/audit?cluster=web&limit=1000", "", "", "Accept", "application/x-ndjson")
	record, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, action := range []string{"cluster.add", "cluster.replace", "cluster.remove"} {
		for _, phase := range []string{"intent", "result"} {
			if !strings.Contains(string(record), `"action":"`+action+`","phase":"`+phase+`"`) {
				t.Errorf("%s %s is not on record", action, phase)
			}
		}
	}
	if out := s.run("", "audit", "verify"); !strings.Contains(out, "the chain is whole") {
		t.Errorf("audit verify: %s", out)
	}
	secrets := map[string]string{
		"the administrator's token": wide.BearerToken, "the stranger's token": nobody.BearerToken,
		"the private key": string(narrow.KeyData), "the key of the credentials": strings.TrimSpace(string(read(t, keys))),
	}
	hunt(t, secrets, map[string][]byte{"the page": page, "the record": record, "the log": read(t, s.log)})
	huntFiles(t, secrets, s.dataDir)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// forms are the writings of a secret that count as the secret.
func forms(secret string) []string {
	j, err := json.Marshal(secret)
	if err != nil {
		panic(err)
	}
	out := []string{secret, strings.Trim(string(j), `"`), url.QueryEscape(secret), hex.EncodeToString([]byte(secret))}
	for shift := range 3 { // base64 of it, wherever it begins in a longer text
		b := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + secret))
		out = append(out, b[4:len(b)-4])
	}
	return out
}

// leaks says which secret is where.
func leaks(secrets map[string]string, places map[string][]byte) (found []string) {
	for where, b := range places {
		for what, secret := range secrets {
			if slices.ContainsFunc(forms(secret), func(form string) bool { return strings.Contains(string(b), form) }) {
				found = append(found, what+" is in "+where)
			}
		}
	}
	return found
}

func hunt(t *testing.T, secrets map[string]string, places map[string][]byte) {
	t.Helper()
	for what, secret := range secrets {
		if len(secret) < 16 {
			t.Fatalf("%s is no secret to look for", what)
		}
		for _, form := range forms(secret) { // a leak that was planted is found
			if len(leaks(map[string]string{what: secret}, map[string][]byte{"here": []byte("\x00SQLite" + form + "\x00")})) != 1 {
				t.Fatalf("%s would not be found as %q", what, form)
			}
		}
	}
	for _, found := range leaks(secrets, places) {
		t.Error(found)
	}
}

func huntFiles(t *testing.T, secrets map[string]string, dir string) {
	t.Helper()
	places := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		places[path], err = os.ReadFile(path)
		return err
	})
	if err != nil || len(places) == 0 {
		t.Fatalf("%d files: %v", len(places), err)
	}
	hunt(t, secrets, places)
}

// A copy of the database taken while a credential is in it does not hold it.
func TestWebCluster_CopyOfTheDatabase(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	cfg := k.REST()
	keys := keyFile(t)
	s := startServerWith(t, webArgs(keys)...)
	root := s.client(t, "root", "admin")
	user := k.User(t, kubetest.Name(t, "web"))
	for name, cfg := range map[string]*rest.Config{"token": cfg, "certificate": user} {
		root.json(201, nil, "POST", "/api/v1/clusters", object(t, "name", name, "kubeconfig", kubeconfigOf(t, cfg)))
	}
	s.kill() // the copy is what was on the disk, log of the database and all
	secrets := map[string]string{"the token": cfg.BearerToken, "the private key": string(user.KeyData), "the key of the credentials": strings.TrimSpace(string(read(t, keys)))}
	huntFiles(t, secrets, s.dataDir)
	hunt(t, secrets, map[string][]byte{"the log": read(t, s.log)})
	s.start()
}

// What is refused is refused at every door, by name, before anything is connected to; without a key every door is shut.
func TestWebCluster_Refused(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	cfg := k.REST()
	good := kubeconfigOf(t, cfg)
	s := startServerWith(t, append(webArgs(keyFile(t)), "--kubeconfig", k.Kubeconfig)...)
	root := s.client(t, "root", "admin")
	root.json(201, nil, "POST", "/api/v1/clusters", object(t, "name", "test", "kubeconfig", good)) // the name of a route
	canary := filepath.Join(t.TempDir(), "made-by-the-plugin")
	for field, text := range map[string]string{
		"exec":                     strings.Replace(good, "    token:", "    exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/touch, args: ['"+canary+"'], interactiveMode: Never}\n    token:", 1),
		"tokenFile":                strings.Replace(good, "    token:", "    tokenFile: /proc/self/environ\n    token:", 1),
		"proxy-url":                strings.Replace(good, "    server:", "    proxy-url: http://127.0.0.1:1\n    server:", 1),
		"insecure-skip-tls-verify": strings.Replace(good, "    server:", "    insecure-skip-tls-verify: true\n    server:", 1),
		"server":                   strings.Replace(good, "https://", "http://", 1),
	} {
		for _, door := range [][2]string{
			{"POST", "/api/v1/clusters"}, {"POST", "/api/v1/clusters/test"}, {"PUT", "/api/v1/clusters/test"}, {"POST", "/api/v1/clusters/test/replace"},
		} {
			body := []string{"kubeconfig", text}
			if door[1] == "/api/v1/clusters" {
				body = append(body, "name", "new")
			}
			var problem struct{ Field, Detail string }
			root.json(422, &problem, door[0], door[1], object(t, body...))
			if problem.Field != "kubeconfig" || !strings.Contains(problem.Detail, field) || strings.Contains(problem.Detail, cfg.BearerToken) {
				t.Errorf("%v with %s: %+v", door, field, problem)
			}
		}
	}
	if _, err := os.Stat(canary); !os.IsNotExist(err) {
		t.Errorf("the plugin ran: %v", err)
	}
	for _, host := range []string{"169.254.169.254", "[::ffff:169.254.169.254]", "0.0.0.0", "[fe80::1]"} {
		var problem struct{ Field string }
		u, err := url.Parse(cfg.Host)
		if err != nil {
			t.Fatal(err)
		}
		root.json(422, &problem, "POST", "/api/v1/clusters", object(t, "name", "new", "kubeconfig", strings.Replace(good, u.Hostname(), host, 1)))
		if problem.Field != "kubeconfig" {
			t.Errorf("%s: %+v", host, problem)
		}
	}
	// A cluster of the host's files is neither replaced nor removed nor shadowed from here.
	root.json(409, nil, "POST", "/api/v1/clusters", object(t, "name", k.Name, "kubeconfig", good))
	root.json(409, nil, "PUT", "/api/v1/clusters/"+k.Name, object(t, "kubeconfig", good))
	root.json(409, nil, "DELETE", "/api/v1/clusters/"+k.Name, "")
	var problem struct{ Field string }
	root.json(422, &problem, "POST", "/api/v1/clusters", object(t, "name", "a b", "kubeconfig", good))
	if problem.Field != "name" {
		t.Errorf("%+v", problem)
	}
	root.json(422, nil, "POST", "/api/v1/clusters", object(t, "name", "new", "kubeconfig", good, "identity", "x"))
	root.json(204, nil, "DELETE", "/api/v1/clusters/test", "")

	// On PostgreSQL nobody makes a key: each replica would have another one.
	off := startServerOn(t, storetest.Postgres(t).Database(t), "--kubeconfig", k.Kubeconfig)
	admin := off.client(t, "root", "admin")
	for _, door := range [][2]string{{"POST", "/api/v1/clusters"}, {"POST", "/api/v1/clusters/test"}} {
		var problem struct{ Detail string }
		admin.json(409, &problem, door[0], door[1], object(t, "name", "x", "kubeconfig", good))
		if !strings.Contains(problem.Detail, "--key-file") {
			t.Errorf("%v: %+v", door, problem)
		}
	}
}

// Replicas on one database learn of each other's clusters within five seconds.
func TestWebCluster_TwoReplicas(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	db := storetest.Postgres(t).Database(t)
	keys := keyFile(t)
	a, b := startServerOn(t, db, webArgs(keys)...), startServerOn(t, db, webArgs(keys)...)
	root := a.client(t, "root", "admin")
	there := &client{t: t, base: b.url, cookie: root.cookie}
	live := there.stream("GET", "/clusters/stream", "")
	began := time.Now()
	root.json(201, nil, "POST", "/api/v1/clusters", object(t, "name", "web", "kubeconfig", kubeconfigOf(t, k.REST())))
	there.clusterIs("the other replica's cluster", "web", "live", live)
	t.Logf("known to the other replica, and live there, after %s", time.Since(began))
	nodes := there.stream("GET", "/api/v1/nodes/events?cluster=web", "")
	nodes.until("the state to be complete", func(e event) bool { return e.Name == "synced" })
	began = time.Now()
	root.json(204, nil, "DELETE", "/api/v1/clusters/web", "")
	nodes.until("the end", func(e event) bool { return e.Name == "bye" })
	if d := time.Since(began); d > 10*time.Second { // the promise is five; half of this is the machine's
		t.Errorf("removed at the other replica after %s", d)
	}
	there.json(404, nil, "GET", "/api/v1/nodes?cluster_name=web", "")
}
