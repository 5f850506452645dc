package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oauth2-proxy/mockoidc"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kube-node-manager/kube-node-manager/internal/auth/totp"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// dragnet keeps everything that the program says to anybody, and the secrets that must not be in it.
type dragnet struct {
	t    *testing.T
	base string

	mu     sync.Mutex        // guards what follows
	places map[string][]byte // what was said, and where
	shown  map[string][]string
	secret map[string]string
}

func newDragnet(t *testing.T) *dragnet {
	return &dragnet{t: t, places: map[string][]byte{}, shown: map[string][]string{}, secret: map[string]string{}}
}

// keep adds a secret. The places are those that show it on purpose, each once.
func (s *dragnet) keep(what, secret string, places ...string) string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.secret[what]; taken || len(secret) < 16 {
		s.t.Fatalf("%s is no secret to look for: %q", what, secret)
	}
	s.secret[what], s.shown[what] = secret, places
	return secret
}

// canary makes up a secret.
func (s *dragnet) canary(what string) string {
	s.t.Helper()
	return s.keep(what, "canary-"+rand.Text())
}

func (s *dragnet) said(where string, b []byte) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	where = fmt.Sprintf("%03d %s", len(s.places), where)
	s.places[where] = b
	return where
}

// writings are the forms of a secret that count as the secret, with those of HTML.
func writings(secret string) []string {
	out := append(forms(secret), html.EscapeString(secret), url.PathEscape(secret), base64.URLEncoding.EncodeToString([]byte(secret)))
	slices.Sort(out)
	return slices.Compact(out)
}

// found is where each secret is.
func (s *dragnet) found() map[string][]string {
	out := map[string][]string{}
	for what, secret := range s.secret {
		all := writings(secret)
		for where, b := range s.places {
			if slices.ContainsFunc(all, func(form string) bool { return bytes.Contains(b, []byte(form)) }) {
				out[what] = append(out[what], where)
			}
		}
		slices.Sort(out[what])
	}
	return out
}

// judge compares where secrets are with where they are shown on purpose.
func (s *dragnet) judge() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.found()
	for what := range s.secret {
		if want := slices.Sorted(slices.Values(s.shown[what])); !slices.Equal(found[what], want) {
			s.t.Errorf("%s is in %q, want %q", what, found[what], want)
		}
	}
	// What is not found now would not have been: each form of each secret is, once it is planted.
	clean := maps.Clone(s.places)
	for what, secret := range s.secret {
		for _, form := range writings(secret) {
			s.places = map[string][]byte{"here": []byte("<td title=\"x\">" + form + "</td>")}
			if !slices.Contains(s.found()[what], "here") {
				s.t.Fatalf("%s would not be found as %q", what, form)
			}
		}
	}
	s.places = clean
}

// answer is what the server said.
type answer struct {
	status int
	header http.Header
	body   []byte
	where  string
}

func (a answer) cookie(suffix string) string {
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		if c.Name == "knm"+suffix {
			return c.Value
		}
	}
	return ""
}

// ask sends a request, keeps every byte of the answer and returns it. Of a stream it keeps what comes before enough says
// that it is.
func (s *dragnet) ask(enough func([]byte) bool, cookies, method, path, contentType, body string, header ...string) answer {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.base+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Origin", s.base)
	req.Header.Set("Accept", "application/json")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if cookies != "" {
		req.Header.Set("Cookie", cookies)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := noRedirect.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	head, err := httputil.DumpResponse(resp, false)
	if err != nil {
		s.t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header}
	streamed := strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream")
	for buf := make([]byte, 32<<10); ; {
		n, err := resp.Body.Read(buf)
		a.body = append(a.body, buf[:n]...)
		if err == io.EOF || streamed && enough(a.body) {
			break
		}
		if err != nil {
			s.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	route, _, _ := strings.Cut(path, "?")
	a.where = s.said(fmt.Sprintf("%s %s (%d)", method, route, a.status), append(head, a.body...))
	return a
}

// must is ask for an answer with a status.
func (s *dragnet) must(status int, cookies, method, path string, fields url.Values, header ...string) answer {
	s.t.Helper()
	contentType, body := "", ""
	if fields != nil {
		contentType, body = "application/x-www-form-urlencoded", fields.Encode()
	}
	a := s.ask(anything, cookies, method, path, contentType, body, header...)
	if a.status != status {
		s.t.Fatalf("%s %s: %d, want %d\n%s", method, path, a.status, status, a.body)
	}
	return a
}

func anything(b []byte) bool { return bytes.Contains(b, []byte("\n\n")) }

// json reads an answer.
func (a answer) json(t *testing.T, into any) {
	t.Helper()
	if err := json.Unmarshal(a.body, into); err != nil {
		t.Fatalf("%s: %v\n%s", a.where, err, a.body)
	}
}

// signIn keeps the session as a secret that is shown once, in the answer that makes it.
func (s *dragnet) signIn(name, password string) (cookie string) {
	s.t.Helper()
	a := s.must(http.StatusSeeOther, "", "POST", "/login", url.Values{"username": {name}, "password": {password}})
	s.keep("the session of "+name, a.cookie(""), a.where)
	s.keep("by what the browser of "+name+" is known", a.cookie("_device"), a.where)
	return "knm=" + a.cookie("")
}

// command runs a command of the program and keeps what it says.
func (s *dragnet) command(c *exec.Cmd, stdin string) string {
	s.t.Helper()
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		s.t.Fatal(err)
	}
	s.said("the command "+strings.Join(c.Args[1:], " "), out)
	return string(out)
}

// routesOf reads the table of routes out of its source, so that a route that is added is swept too.
func routesOf(t *testing.T) (out [][2]string) {
	t.Helper()
	source := string(read(t, "../../handlers/server.go"))
	words := map[string]string{"get": "GET", "post": "POST", "put": "PUT", "patch": "PATCH", "del": "DELETE", "http.MethodPut": "PUT"}
	parts := map[string]string{"oidcCallback": "/login/oidc/callback", "signedInPage": "/login/done"}
	for _, m := range regexp.MustCompile(`(?m)^\s+(\w+)\s+= "([^"]*)"$`).FindAllStringSubmatch(source, -1) {
		parts[m[1]] = m[2]
	}
	for _, m := range regexp.MustCompile(`\{method: ([\w.]+), path: ([^,]+),`).FindAllStringSubmatch(source, -1) {
		var path strings.Builder
		for part := range strings.SplitSeq(m[2], "+") {
			part = strings.TrimSpace(part)
			text, known := parts[part]
			if quoted := strings.Trim(part, `"`); quoted != part {
				text, known = quoted, true
			}
			if !known {
				t.Fatalf("the path %s: what is %s?", m[2], part)
			}
			path.WriteString(text)
		}
		method, known := words[m[1]]
		if !known {
			t.Fatalf("what is the method %s?", m[1])
		}
		out = append(out, [2]string{method, path.String()})
	}
	if len(out) < 70 || strings.Count(source, "{method: ") != len(out) {
		t.Fatalf("%d routes were read of %d", len(out), strings.Count(source, "{method: "))
	}
	return out
}

// TestSweep_SecretsAreNowhere starts the program with canaries for every secret that it is given, has it make every
// secret that it makes, asks every route as everybody in every form, and looks for all of them in every byte that came
// out: answers and their headers, streams, metrics, the log at its most talkative, what commands print, the database and
// a copy of it. What is shown on purpose is shown in one place.
func TestSweep_SecretsAreNowhere(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	node := k.Node(t, kubetest.NodeSpec{}).Name
	w := newDragnet(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := func(what string) string {
		t.Helper()
		var b [32]byte
		_, _ = rand.Read(b[:]) // never fails
		return w.keep(what, base64.StdEncoding.EncodeToString(b[:]))
	}

	// What the host gives.
	admin, person := k.REST(), k.User(t, kubetest.Name(t, "person"))
	w.keep("the token of the host's kubeconfig", admin.BearerToken)
	stranger := w.canary("the stranger's token")
	keyOf := func(what string, pem []byte) {
		w.keep("the private key of "+what, string(pem))
		w.keep("a line of the private key of "+what, strings.Split(string(pem), "\n")[1])
	}
	keyOf("the person", person.KeyData)
	config := clientcmdapi.NewConfig()
	config.Clusters["k"] = &clientcmdapi.Cluster{Server: admin.Host, CertificateAuthorityData: admin.CAData}
	for name, user := range map[string]*clientcmdapi.AuthInfo{
		"good": {Token: admin.BearerToken}, "stranger": {Token: stranger},
		"basic": {Username: "u", Password: w.canary("the password of the host's kubeconfig")},
	} {
		config.AuthInfos[name], config.Contexts[name] = user, &clientcmdapi.Context{Cluster: "k", AuthInfo: name}
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		t.Fatal(err)
	}
	idp, err := mockoidc.NewServer(nil)
	if err != nil {
		t.Fatal(err)
	}
	idp.ClientSecret = w.canary("the client secret")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := idp.Start(ln, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := idp.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	metrics := freePort(t)
	s := startServerWith(t, append(webArgs(file("credentials", key("the key of the credentials")+"\n")),
		"--kubeconfig", kubeconfig, "--log-level", "debug", "--metrics-listen", metrics, "--lease-namespace", "default",
		"--audit-key-file", filepath.Join(dir, "audit.key"),
		"--oidc-issuer", idp.Issuer(), "--oidc-client-id", idp.ClientID, "--oidc-client-secret-file", file("oidc", idp.ClientSecret),
		"--oidc-role-map", "sre=operator",
		"--ldap-url", "ldaps://127.0.0.1:1", "--ldap-bind-dn", "cn=us", "--ldap-bind-password-file", file("ldap", w.canary("the password of who searches")),
		"--ldap-user-base", "dc=x", "--ldap-role-map", "sre=operator")...)
	w.base = s.url
	w.keep("the key of the record", strings.Split(string(read(t, filepath.Join(dir, "audit.key"))), "\n")[1])

	// People, and all that they sign in with.
	password := w.canary("the first admin's password")
	code := s.setupCode()
	w.must(http.StatusUnprocessableEntity, "", "POST", "/setup", url.Values{"code": {w.canary("a wrong set-up code")}, "username": {"ada"}, "password": {password}})
	w.must(http.StatusSeeOther, "", "POST", "/setup", url.Values{"code": {code}, "username": {"ada"}, "password": {password}})
	w.keep("the set-up code without dashes", strings.ReplaceAll(code, "-", ""))
	// The directory does not answer, which is what everybody is told who is not local.
	w.must(http.StatusServiceUnavailable, "", "POST", "/login", url.Values{"username": {"ada"}, "password": {w.canary("a wrong password")}})
	w.ask(anything, "", "POST", "/login", "application/x-www-form-urlencoded", url.Values{"username": {w.canary("a password in the field of the name")}, "password": {"x"}}.Encode())
	ada := w.signIn("ada", password)
	vic := w.canary("the viewer's password")
	w.must(http.StatusCreated, ada, "POST", "/api/v1/users", url.Values{"name": {"vic"}, "role": {"viewer"}, "password": {vic}})
	viewer := w.signIn("vic", vic)
	w.must(http.StatusUnprocessableEntity, ada, "POST", "/api/v1/users", url.Values{"name": {"eve"}, "role": {"nobody"}, "password": {w.canary("the password of a mistake")}}, "Accept", "text/html")

	var invitation struct{ Link, URL string }
	a := w.must(http.StatusCreated, ada, "POST", "/api/v1/users", url.Values{"name": {"ines"}, "role": {"operator"}, "invite": {"true"}})
	a.json(t, &invitation)
	_, invite, ok := strings.Cut(string(a.body), "/invite#")
	invite, _, _ = strings.Cut(invite, `"`)
	if !ok {
		t.Fatalf("no invitation in %s", a.body)
	}
	w.keep("the invitation", invite, a.where)
	ines := w.canary("the password of who was invited")
	w.must(http.StatusUnprocessableEntity, "", "POST", "/invite", url.Values{"code": {w.canary("a wrong invitation")}, "password": {ines}})
	w.must(http.StatusSeeOther, "", "POST", "/invite", url.Values{"code": {invite}, "password": {ines}})
	operator := w.signIn("ines", ines)

	a = w.must(http.StatusCreated, operator, "POST", "/api/v1/tokens", url.Values{"name": {"ci"}})
	var token struct{ Token string }
	a.json(t, &token)
	w.keep("the API token", token.Token, a.where)
	w.keep("half of the API token", token.Token[8:32], a.where)
	bearer := []string{"Authorization", "Bearer " + token.Token}
	w.must(http.StatusOK, "", "GET", "/api/v1/nodes", nil, bearer...)
	w.must(http.StatusUnauthorized, "", "GET", "/api/v1/nodes", nil, "Authorization", "Bearer knm_"+w.canary("a wrong token"))

	a = w.must(http.StatusOK, operator, "POST", "/api/v1/second-factor", url.Values{"password": {ines}})
	var factor struct{ Secret, URI string }
	a.json(t, &factor)
	w.keep("the secret of the second factor", factor.Secret, a.where)
	secret, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(factor.Secret)
	if err != nil {
		t.Fatal(err)
	}
	w.keep("the same in hexadecimal", hex.EncodeToString(secret))
	var codes struct {
		Recovery []string `json:"recovery_codes"`
	}
	a = w.must(http.StatusOK, operator, "POST", "/api/v1/second-factor/confirm", url.Values{"code": {totp.Code(secret, totp.Step(time.Now()))}})
	a.json(t, &codes)
	for i, c := range codes.Recovery {
		w.keep(fmt.Sprintf("recovery code %d", i), c, a.where)
		w.keep(fmt.Sprintf("recovery code %d without dashes", i), strings.ReplaceAll(c, "-", ""))
	}
	a = w.must(http.StatusUnauthorized, "", "POST", "/login", url.Values{"username": {"ines"}, "password": {ines}})
	w.keep("the first half of a sign-in", a.cookie("-half"), a.where)
	half := "knm-half=" + a.cookie("-half")
	w.must(http.StatusUnauthorized, half, "POST", "/login/code", url.Values{"code": {w.canary("a wrong recovery code")}})
	a = w.must(http.StatusSeeOther, half, "POST", "/login/code", url.Values{"code": {codes.Recovery[0]}})
	w.keep("the session of both halves", a.cookie(""), a.where)
	known := "knm_device=" + w.keep("by what the browser is known after both", a.cookie("_device"), a.where)
	w.must(http.StatusServiceUnavailable, known, "POST", "/login", url.Values{"username": {"ines"}, "password": {w.canary("a wrong password in a known browser")}})

	// Through the provider, there and back.
	idp.QueueUser(&mockoidc.MockUser{Subject: "sub-1", PreferredUsername: "otto", Groups: []string{"sre"}})
	a = w.must(http.StatusSeeOther, "", "GET", "/login/oidc", nil)
	began := "knm-oidc=" + a.cookie("-oidc")
	w.keep("what the browser keeps of a sign-in at the provider", a.cookie("-oidc"), a.where)
	there, err := noRedirect.Get(a.header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	there.Body.Close()
	back, err := there.Location()
	if err != nil {
		t.Fatalf("the provider answers %s: %v", there.Status, err)
	}
	w.keep("the code of the provider", back.Query().Get("code")+back.Query().Get("state"))
	w.must(http.StatusUnauthorized, began, "GET", "/login/oidc/callback?code="+w.canary("a wrong code of the provider")+"&state=x", nil)
	a = w.must(http.StatusSeeOther, began, "GET", back.RequestURI(), nil)
	w.keep("the session of otto", a.cookie(""), a.where)

	// Clusters through the web, good and bad.
	add := func(status int, method, path, name, text string) {
		t.Helper()
		fields := url.Values{"kubeconfig": {text}}
		if name != "" {
			fields.Set("name", name)
		}
		w.must(status, ada, method, path, fields)
	}
	byToken, byKey := kubeconfigOf(t, admin), kubeconfigOf(t, person)
	add(http.StatusCreated, "POST", "/api/v1/clusters", "web-token", byToken)
	add(http.StatusCreated, "POST", "/api/v1/clusters", "web-key", byKey)
	add(http.StatusOK, "POST", "/api/v1/clusters/test", "", byKey)
	add(http.StatusOK, "PUT", "/api/v1/clusters/web-key", "", strings.Replace(byToken, admin.BearerToken, w.canary("the token that replaces"), 1))
	for what, text := range map[string]string{
		"exec":     "    exec: {command: aws, args: [CANARY], env: [{name: T, value: CANARY}]}\n    token:",
		"password": "    password: CANARY\n    token:",
		"file":     "    tokenFile: /CANARY\n    token:",
		"unknown":  "    CANARY: CANARY\n    token:",
		"broken":   "    CANARY: [\n    token:",
		"act-as":   "    as: CANARY\n    token:",
	} {
		text = strings.Replace(byToken, "    token:", strings.ReplaceAll(text, "CANARY", w.canary("what "+what+" of a kubeconfig holds")), 1)
		for _, door := range [][3]string{{"POST", "/api/v1/clusters", "new"}, {"POST", "/api/v1/clusters/test", ""}, {"PUT", "/api/v1/clusters/web-key", ""}} {
			add(http.StatusUnprocessableEntity, door[0], door[1], door[2], text)
		}
	}

	// Operations, and a batch to look at.
	var made batch
	a = w.must(http.StatusAccepted, ada, "POST", "/api/v1/batches", url.Values{"action": {"labels"}, "nodes": {"good/" + node}, "labels": {"example.com/swept=yes"}, "reason": {"a sweep"}})
	a.json(t, &made)
	done := func(b []byte) bool { return bytes.Contains(b, []byte("event: done")) }
	if a = w.ask(done, ada, "GET", "/api/v1/batches/"+made.ID+"/events", "", "", "Accept", "text/event-stream"); !done(a.body) {
		t.Errorf("the batch: %s", a.body)
	}

	// Every route, as everybody, in every form.
	fill := strings.NewReplacer("{cluster}", "good", "{node}", node, "{seq}", "0")
	wrong := w.canary("whatever stands in a field")
	asked := 0
	for _, rt := range routesOf(t) {
		method, path := rt[0], fill.Replace(rt[1])
		id := made.ID
		if method != "GET" || !strings.Contains(path, "/batches/") {
			id = "none-of-that-name"
		}
		path = strings.NewReplacer("{id}", id, "{name}", "none-of-that-name").Replace(path)
		if path == "/logout" {
			continue // the last of all
		}
		code := wrong
		if path == "/invite" {
			code = "x" // the form gives back what its person pasted, so that they need not do it again
		}
		for _, cookies := range []string{ada, viewer, ""} {
			for _, accept := range []string{"application/json", "text/html"} {
				bodies := [][2]string{{"", ""}}
				if method != "GET" && cookies != viewer {
					bodies = [][2]string{
						{"application/json", object(t, "password", wrong, "code", code, "kubeconfig", wrong, "token", wrong)},
						{"application/x-www-form-urlencoded", url.Values{"password": {wrong}, "code": {code}}.Encode()},
						{"application/json", `{"password":"` + wrong},
						{"text/plain", wrong},
					}
				}
				for _, body := range bodies {
					w.ask(anything, cookies, method, path, body[0], body[1], "Accept", accept)
					asked++
				}
			}
		}
	}
	t.Logf("%d requests beside those of features, %d secrets", asked, len(w.secret))
	w.must(http.StatusOK, ada, "GET", "/api/v1/audit?limit=1000", nil, "Accept", "application/x-ndjson")
	resp, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	all, err := httputil.DumpResponse(resp, true)
	resp.Body.Close()
	if err != nil || !bytes.Contains(all, []byte("knm_handlers_requests_total")) {
		t.Errorf("metrics: %v\n%.200s", err, all)
	}
	w.said("the metrics", all)

	// Commands beside it, and a start that fails.
	own := []string{"--data-dir", s.dataDir}
	w.command(program(append([]string{"user", "add", "carl", "--role", "viewer", "--password-file", "-"}, own...)...), w.canary("carl's password"))
	w.command(program(append([]string{"user", "set-password", "carl", "--password-file", "-"}, own...)...), w.canary("carl's next password"))
	w.command(program(append([]string{"user", "list"}, own...)...), "")
	if out := w.command(program(append([]string{"audit", "verify"}, own...)...), ""); !strings.Contains(out, "the chain is whole") {
		t.Errorf("audit verify: %s", out)
	}
	for what, address := range map[string]string{"an address": "postgres://knm:%s@127.0.0.1:1/knm?sslmode=disable", "a bad address": "postgres://knm:%s@127.0.0.1:port/knm"} {
		c := program("user", "list")
		c.Env = append(c.Env, "KNM_DATABASE_URL="+fmt.Sprintf(address, w.canary("the password in "+what+" of a database")))
		if out := w.command(c, ""); !strings.Contains(out, "kube-node-manager:") {
			t.Errorf("%s: %s", what, out)
		}
	}
	c := program("watch", "--server", s.url, "--cluster", "none")
	c.Env = append(c.Env, "KNM_TOKEN="+w.canary("the token of a command"))
	w.command(c, "")

	w.must(http.StatusSeeOther, viewer, "POST", "/logout", url.Values{})
	s.kill() // a copy is what is on the disk, log of the database and all
	keepAll := func(dir string) {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(files) < 2 {
			t.Fatalf("%q: %v", files, err)
		}
		for _, f := range files {
			w.said("the file "+filepath.Base(f), read(t, f))
		}
	}
	keepAll(s.dataDir)
	s.start()
	w.must(http.StatusOK, ada, "GET", "/api/v1/nodes", nil)
	s.stop()
	keepAll(s.dataDir) // without the log of the database
	w.keep("the set-up code", code, w.said("the log", read(t, s.log)))
	if len(w.secret) < 25 {
		t.Errorf("%d secrets are fewer than there are", len(w.secret))
	}
	w.judge()
}
