package app

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// klog flushes for as long as the process lives.
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
	)
}

// running is a server in this process.
type running struct {
	*App
	t      *testing.T
	notice *lockedBuffer
	logs   *lockedBuffer
	stop   func() error // ends it and answers what Run said; may be called twice
}

type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func serveConfig(t *testing.T) config.Serve {
	t.Helper()
	return config.Serve{
		Database: config.Database{Dir: filepath.Join(t.TempDir(), "data")}, Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0",
		LogLevel: slog.LevelDebug,
	}
}

func start(t *testing.T, cfg config.Serve, clusters ...kube.Cluster) *running {
	t.Helper()
	return startWith(t, cfg, func(*App) {}, clusters...)
}

// startWith lets change see the app before it runs.
func startWith(t *testing.T, cfg config.Serve, change func(*App), clusters ...kube.Cluster) *running {
	t.Helper()
	r := &running{t: t, notice: &lockedBuffer{}, logs: &lockedBuffer{}}
	ctx, cancel := context.WithCancel(t.Context())
	app, err := New(ctx, cfg, Options{
		Version: "test", Notice: r.notice, Clusters: clusters,
		Logger: slog.New(slog.NewJSONHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	change(app)
	r.App = app
	done := make(chan error, 1)
	go func() { done <- app.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", r.logs)
		}
	})
	return r
}

// person is a browser without scripts.
type person struct {
	t      *testing.T
	base   string
	client *http.Client
}

func (r *running) person(transport http.RoundTripper) *person {
	r.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if transport == nil {
		transport = &http.Transport{}
	}
	p := &person{t: r.t, base: r.URL(), client: &http.Client{
		Transport: transport, Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	r.t.Cleanup(p.client.CloseIdleConnections)
	return p
}

func (p *person) request(ctx context.Context, method, path string, form url.Values, header ...string) *http.Response {
	p.t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, p.base+path, body)
	if err != nil {
		p.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Origin", p.base)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := p.client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp
}

func (p *person) do(method, path string, form url.Values, header ...string) (status int, body string) {
	p.t.Helper()
	resp := p.request(p.t.Context(), method, path, form, header...)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

const password = "correct horse battery staple"

// setUp makes the first admin with the printed code and signs in.
func (r *running) setUp(p *person) {
	r.t.Helper()
	if status, _ := p.do("GET", "/readyz", nil); status != http.StatusOK { // the listener is open before anything is printed
		waitFor(r.t, func() bool { s, _ := p.do("GET", "/readyz", nil); return s == http.StatusOK })
	}
	m := regexp.MustCompile(`code within 30 minutes: (\S+)`).FindStringSubmatch(r.notice.String())
	if m == nil {
		r.t.Fatalf("no code in %q", r.notice)
	}
	if status, body := p.do("POST", "/setup", url.Values{"code": {m[1]}, "username": {"ada"}, "password": {password}}); status != http.StatusSeeOther {
		r.t.Fatalf("set-up: %d %s", status, body)
	}
	r.signIn(p, "ada")
}

func (r *running) signIn(p *person, name string) {
	r.t.Helper()
	if status, body := p.do("POST", "/login", url.Values{"username": {name}, "password": {password}}); status != http.StatusSeeOther {
		r.t.Fatalf("sign-in: %d %s", status, body)
	}
}

// waitFor asks again and again, under the test's own deadline.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("it did not come to pass")
		}
	}
}

// event is one event of a stream.
type event struct{ name, data string }

// events reads a stream until it ends; the channel is closed then.
func (p *person) events(resp *http.Response) <-chan event {
	p.t.Helper()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		b, _ := io.ReadAll(resp.Body)
		p.t.Fatalf("no stream: %d %s", resp.StatusCode, b)
	}
	out := make(chan event, 1024)
	go func() {
		defer close(out)
		defer resp.Body.Close()
		sc := bufio.NewScanner(resp.Body)
		sc.Buffer(nil, 4<<20)
		var e event
		for sc.Scan() {
			switch name, value, _ := strings.Cut(sc.Text(), ": "); name {
			case "event":
				e.name = value
			case "data":
				e.data = value
			case "":
				if e != (event{}) {
					out <- e
				}
				e = event{}
			}
		}
	}()
	return out
}

// until reads events up to the one with the name.
func until(t *testing.T, ch <-chan event, name string) []event {
	t.Helper()
	var all []event
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for {
		select {
		case e, ok := <-ch:
			if !ok {
				t.Fatalf("the stream ended before %q: %v", name, all)
			}
			if all = append(all, e); e.name == name {
				return all
			}
		case <-deadline.C:
			t.Fatalf("no %q: %v", name, all)
		}
	}
}

// From an empty directory to a batch that is done, as a person with curl goes.
func TestApp_WholeWay(t *testing.T) {
	t.Parallel()
	r := start(t, serveConfig(t), fakeCluster(t, "prod"), fakeCluster(t, "arn:aws:eks:eu/test"))
	p := r.person(nil)
	r.setUp(p)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	live := p.events(p.request(ctx, "GET", "/api/v1/nodes/events", nil))
	adds := map[string]bool{}
	for len(adds) < 6 {
		for _, e := range until(t, live, "node_add") {
			if e.name == "node_add" {
				adds[e.data] = true
			}
		}
	}
	status, body := p.do("GET", "/nodes", nil, "Accept", "text/html")
	if status != http.StatusOK || strings.Count(body, `data-ref="prod/node-`) != 3 {
		t.Errorf("/nodes: %d, %d rows", status, strings.Count(body, `data-ref="prod/node-`))
	}

	resp := p.request(ctx, "POST", "/api/v1/batches", url.Values{
		"action": {"cordon"}, "nodes": {"prod/node-0\nprod/node-1\nprod/gone"}, "reason": {"disk swap"},
	}, "Accept", "text/event-stream")
	var done struct {
		ID, Outcome string
		CreatedBy   string `json:"created_by"`
		Counts      struct{ Succeeded, Failed int }
	}
	all := until(t, p.events(resp), "done")
	if err := json.Unmarshal([]byte(all[len(all)-1].data), &done); err != nil {
		t.Fatal(err)
	}
	if done.Outcome != "partial" || done.Counts.Succeeded != 2 || done.Counts.Failed != 1 || done.CreatedBy != "ada" {
		t.Errorf("%+v", done)
	}
	// The writer's next look shows what was written.
	var n struct {
		Schedulable bool
		Cordon      struct{ By, Reason string }
	}
	status, body = p.do("GET", "/api/v1/nodes/prod/node-0", nil)
	if err := json.Unmarshal([]byte(body), &n); err != nil || n.Schedulable || n.Cordon.By != "ada" || n.Cordon.Reason != "disk swap" {
		t.Errorf("%d %s", status, body)
	}
	for range 2 {
		es := until(t, live, "node_update")
		if e := es[len(es)-1]; !strings.Contains(e.data, `"Schedulable"`) {
			t.Errorf("%+v", e)
		}
	}
	if status, body = p.do("GET", "/batches/"+done.ID, nil, "Accept", "text/html"); status != http.StatusOK || !strings.Contains(body, "disk swap") {
		t.Errorf("the batch's page: %d", status)
	}
	cancel()

	metrics, err := http.Get("http://" + r.MetricsAddr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer metrics.Body.Close()
	text, err := io.ReadAll(metrics.Body)
	if err != nil || !strings.Contains(string(text), `knm_handlers_requests_total{method="POST",route="/api/v1/batches",status="200"} 1`) {
		t.Errorf("metrics: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
	if strings.Contains(r.logs.String(), password) {
		t.Error("the password is in the log")
	}

	// What it leaves behind verifies.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cfg := config.Config{Command: config.CommandAuditVerify, Audit: config.Audit{Database: r.cfg.Database}}
	if err := Execute(t.Context(), cfg, "test", Stdio{Out: &out, Err: io.Discard}); err != nil || !strings.Contains(out.String(), "the chain is whole") {
		t.Errorf("audit verify: %v %s", err, &out)
	}
	// Its log, kept elsewhere, holds signed heads that fit what it left; another key's do not.
	out.Reset()
	cfg.Audit.Heads = "-"
	if err := Execute(t.Context(), cfg, "test", Stdio{In: strings.NewReader(r.logs.String()), Out: &out, Err: io.Discard}); err != nil || !strings.Contains(out.String(), "signed heads fit") {
		t.Errorf("audit verify --heads: %v %s", err, &out)
	}
	cfg.Audit.Key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	if err := Execute(t.Context(), cfg, "test", Stdio{In: strings.NewReader(r.logs.String()), Out: &out, Err: io.Discard}); err == nil {
		t.Errorf("audit verify --heads with another key: %s", &out)
	}
}

// A command beside the running server ends a person's streams within five seconds.
func TestApp_DisabledFromTheHost(t *testing.T) {
	t.Parallel()
	r := start(t, serveConfig(t), fakeCluster(t, "prod"))
	p := r.person(nil)
	r.setUp(p)
	command := func(cmd config.Command, u config.User, in string) string {
		t.Helper()
		u.Database = r.cfg.Database
		var out bytes.Buffer
		err := Execute(t.Context(), config.Config{Command: cmd, User: u}, "test", Stdio{In: strings.NewReader(in), Out: &out, Err: io.Discard})
		if err != nil {
			t.Fatalf("%s: %v", cmd, err)
		}
		return out.String()
	}
	command(config.CommandUserAdd, config.User{Name: "vic", Role: "viewer", PasswordFile: "-"}, password+"\n")
	vic := r.person(nil)
	r.signIn(vic, "vic")
	live := vic.events(vic.request(t.Context(), "GET", "/api/v1/nodes/events", nil))
	until(t, live, "synced")
	ada := p.events(p.request(t.Context(), "GET", "/api/v1/nodes/events", nil))
	until(t, ada, "synced")

	command(config.CommandUserDisable, config.User{Name: "vic"}, "")
	began := time.Now()
	for range live { // until it ends
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the stream ended after %s", d)
	}
	if status, _ := vic.do("GET", "/api/v1/nodes", nil); status != http.StatusUnauthorized {
		t.Errorf("status %d", status)
	}
	if list := command(config.CommandUserList, config.User{}, ""); !strings.Contains(list, "vic") || !strings.Contains(list, "disabled") {
		t.Error(list)
	}
	select {
	case e, ok := <-ada:
		if !ok {
			t.Errorf("another person's stream ended: %v", e)
		}
	default:
	}
	command(config.CommandUserEnable, config.User{Name: "vic"}, "")
	if out := command(config.CommandUserUnblock, config.User{Name: "VIC"}, ""); !strings.Contains(out, "may try again") {
		t.Error(out)
	}
	if out := command(config.CommandSetPassword, config.User{Name: "vic"}, ""); !regexp.MustCompile(`password: \S{20,}`).MatchString(out) {
		t.Errorf("no password was made up: %q", out)
	}
}

// Signing out ends the streams of that session, at once.
func TestApp_SignOutEndsStreams(t *testing.T) {
	t.Parallel()
	r := start(t, serveConfig(t), fakeCluster(t, "prod"))
	p := r.person(nil)
	r.setUp(p)
	live := p.events(p.request(t.Context(), "GET", "/api/v1/nodes/events", nil))
	until(t, live, "synced")
	began := time.Now()
	if status, _ := p.do("POST", "/logout", url.Values{}); status != http.StatusSeeOther {
		t.Errorf("status %d", status)
	}
	for range live { // until it ends
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("the stream ended after %s", d)
	}
}

// The end with many streams open: all are told, nothing is left behind, and it is quick.
func TestApp_EndWithStreams(t *testing.T) {
	t.Parallel()
	cfg := serveConfig(t)
	cfg.Streams.PerSession = 8
	r := start(t, cfg, fakeCluster(t, "prod"))
	p := r.person(nil)
	r.setUp(p)
	var streams []<-chan event
	for range cfg.Streams.PerSession {
		live := p.events(p.request(t.Context(), "GET", "/api/v1/nodes/events", nil))
		until(t, live, "synced")
		streams = append(streams, live)
	}
	if resp := p.request(t.Context(), "GET", "/api/v1/nodes/events", nil); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("the ninth stream of a session: %d", resp.StatusCode)
	} else {
		resp.Body.Close()
	}
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
	for _, live := range streams {
		var last event
		for e := range live {
			last = e
		}
		if last.name != "restart" {
			t.Errorf("the last event was %q", last.name)
		}
	}
	if _, err := net.Dial("tcp", r.Addr()); err == nil {
		t.Error("the port is still open")
	}
}

// A cluster that does not answer delays nothing: not the start, not the others, not the readiness.
func TestApp_DeadCluster(t *testing.T) {
	t.Parallel()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	silent, err := kube.New("silent", &rest.Config{Host: "https://" + ln.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, serveConfig(t), silent, kube.Cluster{Name: "broken", Fault: errors.New("exec plugin is missing")}, fakeCluster(t, "prod"))
	p := r.person(nil)
	r.setUp(p)
	live := p.events(p.request(t.Context(), "GET", "/api/v1/nodes/events?cluster=prod", nil))
	until(t, live, "synced")
	if status, _ := p.do("GET", "/readyz", nil); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	_, body := p.do("GET", "/api/v1/clusters", nil)
	for _, want := range []string{`"silent"`, `"broken"`, `exec plugin is missing`} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is not in %s", want, body)
		}
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

func TestNew_OneServerPerDirectory(t *testing.T) {
	t.Parallel()
	cfg := serveConfig(t)
	start(t, cfg)
	_, err := New(t.Context(), cfg, Options{Logger: slog.New(slog.DiscardHandler), Notice: io.Discard})
	if !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a second server on the same data: %v", err)
	}
}

// Replicas that share a database must not take each other for themselves: one would take the other's batches away.
func TestHolder(t *testing.T) {
	t.Parallel()
	replica := func() string {
		return (&App{cfg: config.Serve{Database: config.Database{URL: "postgres://knm@db.example/knm"}}}).holder()
	}
	if a, b := replica(), replica(); a == b || a == "" {
		t.Errorf("two replicas are both %q", a)
	}
}

// A start that fails gives back what it had taken.
func TestNew_FailureUndoes(t *testing.T) {
	t.Parallel()
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := serveConfig(t)
	cfg.MetricsListen = taken.Addr().String()
	opts := Options{Logger: slog.New(slog.DiscardHandler), Notice: io.Discard}
	for range 2 { // the second time fails for the same reason, not because the database is still held
		if _, err := New(t.Context(), cfg, opts); err == nil || errors.Is(err, fleet.ErrConflict) || !strings.Contains(err.Error(), cfg.MetricsListen) {
			t.Fatalf("err = %v", err)
		}
	}
	cfg.MetricsListen = ""
	for name, change := range map[string]func(*config.Serve, *Options){
		"kubeconfig": func(c *config.Serve, _ *Options) { c.Kubeconfigs = []string{"does-not-exist"} },
		"name":       func(_ *config.Serve, o *Options) { o.Clusters = []kube.Cluster{fakeCluster(t, "..")} },
		"twice": func(_ *config.Serve, o *Options) {
			o.Clusters = []kube.Cluster{fakeCluster(t, "a"), fakeCluster(t, "a")}
		},
		"cert": func(c *config.Serve, _ *Options) { c.TLSCert, c.TLSKey = "does-not-exist", "does-not-exist" },
	} {
		c, o := cfg, opts
		change(&c, &o)
		if _, err := New(t.Context(), c, o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	a, err := New(t.Context(), cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestApp_SelfSigned(t *testing.T) {
	t.Parallel()
	cfg := serveConfig(t)
	cfg.TLSSelfSigned = true
	r := start(t, cfg, fakeCluster(t, "prod"))
	p := r.person(&http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   unchecked(&tls.Config{}), // the certificate is checked by hand below
	})
	r.setUp(p)
	resp := p.request(t.Context(), "GET", "/nodes", nil, "Accept", "text/html")
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK || resp.Header.Get("Strict-Transport-Security") == "" {
		t.Errorf("%s %d %v", resp.Proto, resp.StatusCode, resp.Header)
	}
	leaf := resp.TLS.PeerCertificates[0]
	if err := leaf.VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
	u, err := url.Parse(p.base)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(p.client.Jar.Cookies(u), func(c *http.Cookie) bool { return c.Name == "__Host-knm" }) {
		t.Errorf("cookies %v", p.client.Jar.Cookies(u))
	}
	live := p.events(p.request(t.Context(), "GET", "/api/v1/nodes/events", nil))
	until(t, live, "synced")
	if _, err := tls.Dial("tcp", r.Addr(), unchecked(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// A renewed certificate is served without a restart, and a broken one does not take its place.
func TestCertFiles_Renewed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := config.Serve{TLSCert: filepath.Join(dir, "cert.pem"), TLSKey: filepath.Join(dir, "key.pem"), Listen: "127.0.0.1:0"}
	first := writeCertificate(t, cfg, time.Now().Add(-2*time.Hour))
	f := &certFiles{cert: cfg.TLSCert, key: cfg.TLSKey, logger: slog.New(slog.DiscardHandler)}
	if err := f.load(); err != nil {
		t.Fatal(err)
	}
	serves := func(want []byte, what string) {
		t.Helper()
		f.mu.Lock()
		f.checked = time.Time{} // the time to look again has come
		f.mu.Unlock()
		got, err := f.get(nil)
		if err != nil || !bytes.Equal(got.Certificate[0], want) {
			t.Errorf("%s: another certificate is served (%v)", what, err)
		}
	}
	serves(first, "unchanged")
	second := writeCertificate(t, cfg, time.Now().Add(-time.Hour))
	serves(second, "renewed")
	if err := os.WriteFile(cfg.TLSKey, []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	serves(second, "broken")
	if err := os.Remove(cfg.TLSKey); err != nil {
		t.Fatal(err)
	}
	serves(second, "missing")
	third := writeCertificate(t, cfg, time.Now())
	serves(third, "repaired")
}
