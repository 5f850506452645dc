package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kube-node-manager/kube-node-manager/internal/app"
	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

// asProgram makes this test binary be the program: a child that can be killed for real, under the race detector too.
const asProgram = "KNM_E2E_AS_PROGRAM"

func TestMain(m *testing.M) {
	if version := os.Getenv(asProgram); version != "" {
		if err := os.Unsetenv(asProgram); err != nil { // an unknown KNM_ variable is an error of the program
			panic(err)
		}
		if os.Getenv(hooked) != "" {
			if err := os.Unsetenv(hooked); err != nil {
				panic(err)
			}
			serveHook()
		}
		os.Exit(asMain(version))
	}
	goleak.VerifyTestMain(runner{m})
}

// asMain does what the program's main does.
func asMain(version string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg, err := config.Parse(os.Args[1:], os.Environ(), os.Stdout)
	if err == nil {
		err = app.Execute(ctx, cfg, version, app.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube-node-manager:", err)
		return 1
	}
	return 0
}

// runner ends the browser and the shared clusters before leaks are looked for.
type runner struct{ m *testing.M }

func (r runner) Run() int {
	code := storetest.Runner{M: kubetest.Main(r.m)}.Run()
	if chromium.close != nil {
		chromium.close()
	}
	http.DefaultClient.CloseIdleConnections()
	if err := publish(flag.Lookup("test.bench").Value.String() != ""); err != nil {
		fmt.Fprintln(os.Stderr, "writing the results:", err)
		code = max(code, 1)
	}
	return code
}

// program is the command of the product with args.
func program(args ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], args...)
	c.Env = []string{asProgram + "=test", "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	return c
}

// server is the program, serving, with a data directory that outlives it.
type server struct {
	t       testing.TB
	url     string
	listen  string
	dataDir string
	args    []string
	cmd     *exec.Cmd
	ended   chan error
	log     string // file
	hook    *hook
	version string // of the program; "" for test
	tls     bool   // with a certificate that nobody knows

	database string // address of PostgreSQL; "" for SQLite in dataDir

	mu      sync.Mutex        // guards secrets
	secrets map[string]string // that this test has used, and that must not be in the log
}

// used remembers a secret of this server, which nobody may find in its log.
func (s *server) used(what, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.secrets == nil {
		s.secrets = map[string]string{}
	}
	s.secrets[what] = secret
}

// sweepLog looks for every secret that was used in all that the program has printed.
func (s *server) sweepLog() {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Errorf("the log is not to be swept: %v", err)
		return
	}
	for _, found := range leaks(s.secrets, map[string][]byte{"the log": b}) {
		s.t.Error(found)
	}
}

// startServer serves the contexts of the kubeconfigs on a free port until the test ends.
func startServer(t testing.TB, kubeconfigs ...string) *server {
	t.Helper()
	var args []string
	for _, k := range kubeconfigs {
		args = append(args, "--kubeconfig", k)
	}
	return startServerWith(t, args...)
}

func startServerWith(t testing.TB, args ...string) *server {
	t.Helper()
	return startServerOn(t, "", args...)
}

// startServerOn serves with the data in PostgreSQL, "" for SQLite.
func startServerOn(t testing.TB, database string, args ...string) *server {
	t.Helper()
	listen := freePort(t)
	scheme := "http://"
	secure := slices.Contains(args, "--tls-self-signed")
	if secure {
		scheme = "https://"
	}
	s := &server{t: t, url: scheme + listen, tls: secure, listen: listen, dataDir: filepath.Join(t.TempDir(), "data"), args: args, database: database}
	s.log = filepath.Join(t.ArtifactDir(), "server.log")
	s.start()
	t.Cleanup(func() {
		s.stop()
		s.sweepLog()
		if t.Failed() {
			if b, err := os.ReadFile(s.log); err == nil {
				t.Logf("the server's last words:\n%s", lastLines(b, 120))
			}
		}
	})
	return s
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs the program on the same data and the same port as before, and returns when it is ready.
func (s *server) start() {
	s.t.Helper()
	out, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = out.Close() }() // the child has its own
	s.cmd = program(append([]string{"serve", "--listen", s.listen, "--data-dir", s.dataDir, "--metrics-listen", ""}, s.args...)...)
	s.cmd.Stdout, s.cmd.Stderr = out, out
	if s.database != "" {
		s.cmd.Env = append(s.cmd.Env, "KNM_DATABASE_URL="+s.database)
	}
	if s.version != "" {
		s.cmd.Env = append(s.cmd.Env, asProgram+"="+s.version)
	}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	hook, started, err := newHook(s.cmd)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	started()
	s.hook = hook
	s.ended = make(chan error, 1)
	cmd, ended := s.cmd, s.ended
	go func() { ended <- cmd.Wait() }()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if resp, err := s.get("/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-tick.C:
		case err := <-s.ended:
			s.hook.close()
			s.cmd = nil
			b, _ := os.ReadFile(s.log)
			s.t.Fatalf("the server ended at its start: %v\n%s", err, lastLines(b, 120))
		case <-deadline:
			s.t.Fatal("the server was not ready after 30 s")
		}
	}
}

func (s *server) get(path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+path, nil)
	if err != nil {
		return nil, err
	}
	return s.send(req)
}

// send asks the server, whose certificate nobody knows if it has one.
func (s *server) send(req *http.Request) (*http.Response, error) {
	if !s.tls {
		return http.DefaultClient.Do(req)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer tr.CloseIdleConnections()
	return (&http.Client{Transport: tr}).Do(req)
}

// stop asks the program to end and waits until it has.
func (s *server) stop() {
	s.t.Helper()
	s.end(syscall.SIGTERM)
}

// kill is kill -9.
func (s *server) kill() {
	s.t.Helper()
	s.end(syscall.SIGKILL)
}

func (s *server) end(sig syscall.Signal) {
	s.t.Helper()
	if s.cmd == nil {
		return
	}
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Errorf("%v: %v", sig, err)
	}
	select {
	case err := <-s.ended:
		if sig == syscall.SIGTERM && err != nil {
			s.t.Errorf("the server did not end well: %v", err)
		}
	case <-time.After(30 * time.Second):
		s.t.Error("the server did not end within 30 s")
		if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			s.t.Errorf("killing it: %v", err)
		}
		s.t.Logf("killed: %v", <-s.ended)
	}
	s.hook.close()
	s.cmd = nil
}

// run is a command of the program beside the server, on the same data.
func (s *server) run(stdin string, args ...string) string {
	s.t.Helper()
	c := program(append(args, "--data-dir", s.dataDir)...)
	if s.database != "" {
		c.Env = append(c.Env, "KNM_DATABASE_URL="+s.database)
	}
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// addUser adds a person beside the running server and returns the password.
func (s *server) addUser(name, role string) string {
	s.t.Helper()
	password := rand.Text()
	s.used("the password of "+name, password)
	s.run(password, "user", "add", name, "--role", role, "--password-file", "-")
	return password
}

// signIn adds a person and signs in through the page, as people do.
func (s *server) signIn(t testing.TB, name, role string) *tab {
	t.Helper()
	password := s.addUser(name, role)
	tb := newTab(t, s.url)
	tb.visit("/login")
	tb.fill("input[name=username]", name)
	tb.fill("input[name=password]", password)
	tb.click("form[action='/login'] button")
	tb.wait("the node list is shown", `location.pathname === '/nodes'`)
	return tb
}

// client is a person with curl: a cookie jar of one cookie, signed in.
type client struct {
	t      testing.TB
	base   string
	cookie *http.Cookie
	bearer string
}

func (s *server) client(t testing.TB, name, role string) *client {
	t.Helper()
	password := s.addUser(name, role)
	c := &client{t: t, base: s.url}
	c.login(name, password)
	s.used("the session of "+name, c.cookie.Value)
	return c
}

func (c *client) login(name, password string) {
	c.t.Helper()
	form := "username=" + name + "&password=" + password
	resp := c.send("POST", "/login", "application/x-www-form-urlencoded", form)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSeeOther || len(resp.Cookies()) == 0 {
		c.t.Fatalf("signing in: %s, %d cookies", resp.Status, len(resp.Cookies()))
	}
	for _, k := range resp.Cookies() {
		if strings.TrimPrefix(k.Name, "__Host-") == "knm" && k.HttpOnly {
			c.cookie = k
		}
	}
	if c.cookie == nil {
		c.t.Fatalf("no session among the cookies: %v", resp.Cookies())
	}
}

var noRedirect = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (c *client) request(method, path, contentType, body string, header ...string) *http.Request {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.base+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("Accept", "application/json")
	switch {
	case c.bearer != "":
		req.Header.Set("Authorization", "Bearer "+c.bearer)
	default:
		req.Header.Set("Origin", c.base)
		if c.cookie != nil {
			req.AddCookie(c.cookie)
		}
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

// send answers with the raw response; the caller closes its body.
func (c *client) send(method, path, contentType, body string, header ...string) *http.Response {
	c.t.Helper()
	resp, err := noRedirect.Do(c.request(method, path, contentType, body, header...))
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp
}

// json sends and decodes an answer that must have the status.
func (c *client) json(want int, into any, method, path, body string, header ...string) {
	c.t.Helper()
	contentType := ""
	if body != "" {
		contentType = "application/json"
	}
	resp := c.send(method, path, contentType, body, header...)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if resp.StatusCode != want {
		c.t.Fatalf("%s %s: %s, want %d\n%s", method, path, resp.Status, want, got)
	}
	if into != nil {
		if err := json.Unmarshal(got, into); err != nil {
			c.t.Fatalf("%s %s: %v\n%s", method, path, err, got)
		}
	}
}

// event is one message of a stream as a client of our own sees it: parsed by rules written here again, from the
// standard, so that the server's encoder is not its own judge.
type event struct {
	ID, Name string
	Data     string
}

// stream reads events until the test ends, the stream ends, or stop is called.
type stream struct {
	t      testing.TB
	events chan event
	stop   context.CancelFunc
	done   chan struct{}
}

func (c *client) stream(method, path, body string, header ...string) *stream {
	c.t.Helper()
	contentType := ""
	if body != "" {
		contentType = "application/x-www-form-urlencoded"
	}
	req := c.request(method, path, contentType, body, append([]string{"Accept", "text/event-stream"}, header...)...)
	ctx, stop := context.WithCancel(req.Context())
	resp, err := noRedirect.Do(req.WithContext(ctx))
	if err != nil {
		stop()
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(ct, "text/event-stream") {
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		stop()
		c.t.Fatalf("%s %s: %s %s\n%s", method, path, resp.Status, ct, b)
	}
	s := &stream{t: c.t, events: make(chan event, 10000), stop: stop, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer close(s.events)
		defer resp.Body.Close()
		parse(ctx, resp.Body, s.events)
	}()
	c.t.Cleanup(func() { stop(); <-s.done })
	return s
}

func parse(ctx context.Context, r io.Reader, out chan<- event) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 8<<20)
	var e event
	var data []string
	for sc.Scan() {
		line := sc.Text()
		if line == "" {
			if len(data) > 0 {
				e.Data = strings.Join(data, "\n")
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
			}
			e, data = event{ID: e.ID}, nil
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			e.ID = value
		case "event":
			e.Name = value
		case "data":
			data = append(data, value)
		}
	}
}

// until returns the first event that matches; the end of the stream or of patience fails the test.
func (s *stream) until(what string, match func(event) bool) event {
	s.t.Helper()
	timeout := time.After(patience)
	var last []string
	for {
		select {
		case e, ok := <-s.events:
			if !ok {
				s.t.Fatalf("the stream ended before %s; last events: %q", what, last)
			}
			if match(e) {
				return e
			}
			last = append(last, e.Name+" "+e.Data[:min(len(e.Data), 120)])
			if len(last) > 5 {
				last = last[1:]
			}
		case <-timeout:
			s.t.Fatalf("no %s within %s; last events: %q", what, patience, last)
		}
	}
}

// end waits until the server has ended the stream.
func (s *stream) end(within time.Duration) {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(within):
		s.t.Fatalf("the stream is still open after %s", within)
	}
}

func lastLines(b []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}

// batch is the part of the JSON that tests look at.
type batch struct {
	ID, State, Outcome string
	Counts             struct{ Total, Succeeded, Failed, Skipped, Cancelled int }
	Items              []struct{ Cluster, Node, State, Error, Code string }
}

func (b batch) String() string {
	return fmt.Sprintf("%s %s %s %+v", b.ID, b.State, b.Outcome, b.Counts)
}

// batchDone reads the batch's progress stream to its end and returns the batch.
func (c *client) batchDone(id string) batch {
	c.t.Helper()
	e := c.stream("GET", "/api/v1/batches/"+id+"/events", "").until("done", func(e event) bool { return e.Name == "done" })
	var b batch
	if err := json.Unmarshal([]byte(e.Data), &b); err != nil {
		c.t.Fatalf("done: %v\n%s", err, e.Data)
	}
	return b
}

var setupCode = regexp.MustCompile(`enter this code within [^:]*: ([A-Z0-9-]+)`)

// setupCode is the one-time code that the first start prints.
func (s *server) setupCode() string {
	s.t.Helper()
	b, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	code := setupCode.FindSubmatch(b)
	if code == nil {
		s.t.Fatalf("no set-up code in the log:\n%s", lastLines(b, 120))
	}
	return string(code[1])
}
