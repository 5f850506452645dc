package app

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/seal"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// webServer is an API server with a certificate, and the kubeconfig for it.
func webServer(t *testing.T) (kubeconfig string) {
	t.Helper()
	ts := httptest.NewTLSServer(&apiServer{nodes: map[string]map[string]any{}, watchers: map[chan []byte]bool{}, version: 10})
	t.Cleanup(ts.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw})
	return fmt.Sprintf("clusters: [{name: k, cluster: {server: %s, certificate-authority-data: %s}}]\nusers: [{name: u, user: {token: canary-of-the-token}}]\n"+
		"contexts: [{name: c, context: {cluster: k, user: u}}]\n", ts.URL, base64.StdEncoding.EncodeToString(ca))
}

func webConfig(t *testing.T) config.Serve {
	t.Helper()
	cfg := serveConfig(t)
	cfg.Key = config.Key{Text: seal.NewKey()}
	cfg.AddressAllow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	return cfg
}

func (p *person) add(name, kubeconfig string, want int) {
	p.t.Helper()
	if status, body := p.do("POST", "/api/v1/clusters", url.Values{"name": {name}, "kubeconfig": {kubeconfig}}); status != want {
		p.t.Fatalf("adding %s: %d %s", name, status, body)
	}
}

// faults are the managed clusters by why they are not watched.
func (p *person) faults() map[string]string {
	p.t.Helper()
	var list struct {
		Items []struct{ Name, Fault string }
	}
	if status, body := p.do("GET", "/api/v1/clusters/managed", nil); status != http.StatusOK || json.Unmarshal([]byte(body), &list) != nil {
		p.t.Fatalf("%d %s", status, body)
	}
	out := map[string]string{}
	for _, c := range list.Items {
		out[c.Name] = c.Fault
	}
	return out
}

func (p *person) state(name string) string {
	p.t.Helper()
	var list struct {
		Items []struct{ Name, State string }
	}
	if status, body := p.do("GET", "/api/v1/clusters", nil); status != http.StatusOK || json.Unmarshal([]byte(body), &list) != nil {
		p.t.Fatalf("%d %s", status, body)
	}
	for _, c := range list.Items {
		if c.Name == name {
			return c.State
		}
	}
	return ""
}

// Credentials that were exchanged between rows, or are of a key that we do not have, cost their own clusters and no
// other; the clusters say so, and can be repaired from the page.
func TestWebClusters_Unreadable(t *testing.T) {
	t.Parallel()
	cfg, kubeconfig := webConfig(t), webServer(t)
	first := start(t, cfg)
	p := first.person(nil)
	first.setUp(p)
	for _, name := range []string{"a", "b", "c"} {
		p.add(name, kubeconfig, http.StatusCreated)
	}
	waitFor(t, func() bool { return p.state("a") == "live" && p.state("c") == "live" })
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), store.Config{Dir: cfg.Dir})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Tx(t.Context(), func(tx *store.Tx) error {
		var a, b struct {
			Wrapped string `db:"wrapped"`
			Sealed  string `db:"sealed"`
		}
		const get, set = `SELECT wrapped, sealed FROM managed_clusters WHERE name = ?`, `UPDATE managed_clusters SET wrapped = ?, sealed = ? WHERE name = ?`
		if err := errors.Join(tx.Get(&a, get, "a"), tx.Get(&b, get, "b")); err != nil {
			return err
		}
		if _, err := tx.Exec(set, b.Wrapped, b.Sealed, "a"); err != nil {
			return err
		}
		_, err := tx.Exec(set, a.Wrapped, a.Sealed, "b")
		return err
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}

	second := start(t, cfg)
	p = second.person(nil)
	waitFor(t, func() bool { s, _ := p.do("GET", "/readyz", nil); return s == http.StatusOK })
	second.signIn(p, "ada")
	if f := p.faults(); f["a"] != fleet.FaultUnreadable || f["b"] != fleet.FaultUnreadable || f["c"] != "" {
		t.Errorf("%v", f)
	}
	waitFor(t, func() bool { return p.state("c") == "live" })
	if got := p.state("a"); got != "unreachable" && got != "connecting" {
		t.Errorf("a cluster without a credential is %s", got)
	}
	if status, body := p.do("PUT", "/api/v1/clusters/a", url.Values{"kubeconfig": {kubeconfig}}); status != http.StatusOK {
		t.Errorf("repairing: %d %s", status, body)
	}
	waitFor(t, func() bool { return p.state("a") == "live" })
	if f := p.faults(); f["a"] != "" || f["b"] != fleet.FaultUnreadable {
		t.Errorf("%v", f)
	}
	if err := second.stop(); err != nil {
		t.Fatal(err)
	}

	// Without a key it starts and shows them; with another key it does not start.
	other := cfg
	other.Key.Text = seal.NewKey()
	if _, err := New(t.Context(), other, Options{Version: "test", Notice: first.notice, Logger: first.logger}); err == nil {
		t.Error("started with another key")
	} else if e, ok := errors.AsType[*seal.UnknownKeyError](err); !ok || !strings.Contains(err.Error(), e.ID) {
		t.Errorf("another key: %v", err)
	}
	without := cfg
	without.Key = config.Key{}
	third := start(t, without)
	p = third.person(nil)
	waitFor(t, func() bool { s, _ := p.do("GET", "/readyz", nil); return s == http.StatusOK })
	third.signIn(p, "ada")
	if f := p.faults(); f["a"] != fleet.FaultKey || f["c"] != fleet.FaultKey {
		t.Errorf("without a key: %v", f)
	}
	p.add("d", kubeconfig, http.StatusConflict)
	if status, body := p.do("DELETE", "/api/v1/clusters/b", nil); status != http.StatusNoContent || p.state("b") != "" {
		t.Errorf("removing without a key: %d %s", status, body)
	}
	for i, r := range []*running{first, second, third} {
		if strings.Contains(r.logs.String(), "canary-of-the-token") {
			t.Errorf("the token is in the log of start %d", i)
		}
	}
}

// A kubeconfig of the host that comes to have a context of the same name wins, and the start does not fail for it.
func TestWebClusters_NameOfTheHost(t *testing.T) {
	t.Parallel()
	cfg, kubeconfig := webConfig(t), webServer(t)
	first := start(t, cfg)
	p := first.person(nil)
	first.setUp(p)
	p.add("prod", kubeconfig, http.StatusCreated)
	p.add("other", kubeconfig, http.StatusCreated)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	second := start(t, cfg, fakeCluster(t, "prod"))
	p = second.person(nil)
	waitFor(t, func() bool { s, _ := p.do("GET", "/readyz", nil); return s == http.StatusOK })
	second.signIn(p, "ada")
	if f := p.faults(); f["prod"] != fleet.FaultName || f["other"] != "" {
		t.Errorf("%v", f)
	}
	waitFor(t, func() bool { return p.state("prod") == "live" && p.state("other") == "live" })
	if status, body := p.do("GET", "/api/v1/nodes?cluster_name=prod", nil); status != http.StatusOK || strings.Count(body, `"uid-node-`) != 3 {
		t.Errorf("the host's cluster: %d %s", status, body)
	}
	// Removing ours leaves the host's alone.
	if status, _ := p.do("DELETE", "/api/v1/clusters/prod", nil); status != http.StatusNoContent {
		t.Errorf("status %d", status)
	}
	if p.state("prod") != "live" {
		t.Errorf("the host's cluster is %q", p.state("prod"))
	}
}

// Tests hold a connection each, to wherever somebody said: there are only so many at once.
func TestWebClusters_TestsAreBounded(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}, maxTests), make(chan struct{})
	ts := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-release
	}))
	t.Cleanup(ts.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw})
	kubeconfig := fmt.Sprintf("clusters: [{name: k, cluster: {server: %s, certificate-authority-data: %s}}]\nusers: [{name: u, user: {token: t}}]\n"+
		"contexts: [{name: c, context: {cluster: k, user: u}}]\n", ts.URL, base64.StdEncoding.EncodeToString(ca))
	r := start(t, webConfig(t))
	p := r.person(nil)
	r.setUp(p)
	form := url.Values{"kubeconfig": {kubeconfig}}
	answers := make(chan string, maxTests)
	for range maxTests {
		go func() {
			status, body := p.do("POST", "/api/v1/clusters/test", form)
			answers <- strconv.Itoa(status) + body
		}()
	}
	for range maxTests {
		<-arrived
	}
	resp := p.request(t.Context(), "POST", "/api/v1/clusters/test", form)
	resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one more: %s", resp.Status)
	}
	close(release)
	for range maxTests {
		if a := <-answers; !strings.HasPrefix(a, "200") || strings.Contains(a, `"outcome":"ok"`) {
			t.Errorf("%s", a)
		}
	}
}
