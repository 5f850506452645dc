package app

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
)

// unchecked is a client that takes any certificate: its test is about what is spoken, or about which certificate is shown,
// and ours is signed by nobody.
func unchecked(c *tls.Config) *tls.Config {
	c.InsecureSkipVerify = true
	return c
}

// writeCertificate writes a certificate and its key, as of a moment.
func writeCertificate(t *testing.T, cfg config.Serve, at time.Time) []byte {
	t.Helper()
	cert, err := selfSigned(cfg, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := marshalKey(cert)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		cfg.TLSCert: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, cfg.TLSKey: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := errors.Join(os.WriteFile(name, pem.EncodeToMemory(block), 0o600), os.Chtimes(name, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	return cert.Certificate[0]
}

// T36: which handshakes our own listener takes. What is weak is refused, whoever offers it.
func TestTLS_Handshakes(t *testing.T) {
	t.Parallel()
	cfg := serveConfig(t)
	cfg.TLSSelfSigned = true
	r := start(t, cfg)
	var weak, strong []uint16
	for _, s := range tls.InsecureCipherSuites() {
		weak = append(weak, s.ID)
	}
	for _, s := range tls.CipherSuites() {
		if slices.Contains(s.SupportedVersions, tls.VersionTLS12) {
			strong = append(strong, s.ID)
		}
	}
	const ecdsa, forward = "ECDSA", "ECDHE" // our certificate has a key of that kind
	for _, tt := range []struct {
		name    string
		client  *tls.Config
		version uint16 // 0: refused
		proto   string
	}{
		{"SSL 3.0", &tls.Config{MinVersion: tls.VersionSSL30, MaxVersion: tls.VersionSSL30}, 0, ""}, //nolint:staticcheck // SA1019: that it is refused is the point
		{"TLS 1.0", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}, 0, ""},
		{"TLS 1.1", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, 0, ""},
		{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12}, tls.VersionTLS12, ""},
		{"TLS 1.3", &tls.Config{MinVersion: tls.VersionTLS13}, tls.VersionTLS13, ""},
		{"whatever is best", &tls.Config{MinVersion: tls.VersionTLS10}, tls.VersionTLS13, ""},
		{"HTTP/2", &tls.Config{NextProtos: []string{"h2", "http/1.1"}}, tls.VersionTLS13, "h2"},
		{"HTTP/1.1", &tls.Config{NextProtos: []string{"http/1.1"}}, tls.VersionTLS13, "http/1.1"},
		{"no protocol of ours", &tls.Config{NextProtos: []string{"spdy/3"}}, 0, ""},
		{"weak ciphers", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: weak}, 0, ""},
	} {
		conn, err := tls.Dial("tcp", r.Addr(), unchecked(tt.client))
		if err != nil {
			if tt.version != 0 {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		st := conn.ConnectionState()
		if st.Version != tt.version || st.NegotiatedProtocol != tt.proto && tt.proto != "" {
			t.Errorf("%s: %s, %q, %s", tt.name, tls.VersionName(st.Version), st.NegotiatedProtocol, tls.CipherSuiteName(st.CipherSuite))
		}
		_ = conn.Close() // nothing was said
	}
	taken := 0
	for _, id := range slices.Concat(weak, strong) {
		name := tls.CipherSuiteName(id)
		conn, err := tls.Dial("tcp", r.Addr(), unchecked(&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{id}}))
		want := slices.Contains(strong, id) && strings.Contains(name, ecdsa) && strings.Contains(name, forward)
		if (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			taken++
			_ = conn.Close()
		}
	}
	if taken == 0 || len(weak) < 8 {
		t.Errorf("%d of %d and %d suites were taken", taken, len(weak), len(strong))
	}
	// net/http answers plain HTTP on a TLS port with 400; what it must not do is serve.
	resp, err := http.Get("http://" + r.Addr() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("plain HTTP on the TLS port: status %d", resp.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
}

// A renewal with streams open: none of them is dropped, and whoever connects anew sees the new certificate.
func TestTLS_RenewalKeepsStreams(t *testing.T) {
	t.Parallel()
	const streams = 100
	cfg := serveConfig(t)
	dir := t.TempDir()
	cfg.TLSCert, cfg.TLSKey = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cfg.Streams.PerSession, cfg.Streams.PerPerson = streams, streams
	first := writeCertificate(t, cfg, time.Now().Add(-time.Hour))
	r := startWith(t, cfg, func(a *App) { a.certificates.every = time.Millisecond }, fakeCluster(t, "prod"))
	insecure := unchecked(&tls.Config{})
	p := r.person(&http.Transport{TLSClientConfig: insecure, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}) // a connection each
	r.setUp(p)
	var live []<-chan event
	for range streams {
		ch := p.events(p.request(t.Context(), "GET", "/api/v1/nodes/events", nil))
		until(t, ch, "synced")
		live = append(live, ch)
	}
	served := func() []byte {
		t.Helper()
		conn, err := tls.Dial("tcp", r.Addr(), insecure)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		return conn.ConnectionState().PeerCertificates[0].Raw
	}
	if string(served()) != string(first) {
		t.Error("another certificate than the one in the file")
	}
	second := writeCertificate(t, cfg, time.Now())
	waitFor(t, func() bool { return string(served()) == string(second) })
	// Something happens, and all of them see it.
	if status, body := p.do("POST", "/api/v1/batches", url.Values{"action": {"cordon"}, "nodes": {"prod/node-1"}}, "Accept", "application/json"); status != http.StatusAccepted {
		t.Fatalf("%d %s", status, body)
	}
	for i, ch := range live {
		if e := until(t, ch, "node_update"); !strings.Contains(e[len(e)-1].data, "node-1") {
			t.Errorf("stream %d: %v", i, e)
		}
	}
}

// T15 behind a proxy that ends TLS and calls us by another host: with the external URL, forms work, the cookie is for
// TLS only, and what another site sends is refused.
func TestApp_BehindAProxy(t *testing.T) {
	t.Parallel()
	cfg := serveConfig(t)
	cfg.External = &url.URL{Scheme: "https", Host: "nodes.example"}
	r := start(t, cfg, fakeCluster(t, "prod"))
	target := &url.URL{Scheme: "http", Host: r.Addr()}
	front := httptest.NewTLSServer(&httputil.ReverseProxy{
		Rewrite:       func(pr *httputil.ProxyRequest) { pr.SetURL(target) }, // the Host becomes ours
		FlushInterval: -1,
	})
	t.Cleanup(front.Close)
	p := r.person(&http.Transport{
		TLSClientConfig: unchecked(&tls.Config{}),
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, front.Listener.Addr().String())
		},
	})
	if p.base != "https://nodes.example" {
		t.Fatalf("people are sent to %s", p.base)
	}
	r.setUp(p)
	if c := p.client.Jar.Cookies(cfg.External); len(c) != 2 || c[0].Name != "__Host-knm" || c[1].Name != "__Host-knm_device" {
		t.Errorf("cookies %v", c)
	}
	resp := p.request(t.Context(), "POST", "/api/v1/batches", url.Values{"action": {"cordon"}, "nodes": {"prod/node-0"}}, "Accept", "text/event-stream")
	until(t, p.events(resp), "done")
	if resp.Header.Get("Strict-Transport-Security") == "" {
		t.Error("no HSTS")
	}
	for _, origin := range []string{"https://evil.example", "http://nodes.example", "https://nodes.example.evil.example", "http://" + r.Addr(), "null", ""} {
		if status, _ := p.do("POST", "/logout", url.Values{}, "Origin", origin); status != http.StatusForbidden {
			t.Errorf("from %q: status %d", origin, status)
		}
	}
	if status, _ := p.do("POST", "/logout", url.Values{}); status != http.StatusSeeOther {
		t.Errorf("from our own pages: status %d", status)
	}
}
