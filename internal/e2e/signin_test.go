package e2e

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/oauth2-proxy/mockoidc"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
	"github.com/kube-node-manager/kube-node-manager/internal/ldaptest"
)

// code is what an authenticator app shows at a moment, by RFC 6238 as it is written, so that the product is not its own
// judge.
func code(t *testing.T, secret string, at time.Time) string {
	t.Helper()
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(secret)
	if err != nil {
		t.Fatalf("the secret %q: %v", secret, err)
	}
	mac := hmac.New(sha1.New, key)
	if err := binary.Write(mac, binary.BigEndian, uint64(at.Unix()/30)); err != nil {
		t.Fatal(err)
	}
	sum := mac.Sum(nil)
	return fmt.Sprintf("%06d", binary.BigEndian.Uint32(sum[sum[19]&15:])&0x7fffffff%1_000_000)
}

// cookies are those that the browser would send to the app, by name.
func (tb *tab) cookies() map[string]string {
	tb.t.Helper()
	out := map[string]string{}
	tb.do("reading cookies", chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		all, err := cdp.Call(ctx, tg, network.GetCookies, network.GetCookiesParams{URLs: []string{tb.base + "/"}})
		if err != nil {
			return err
		}
		for _, c := range all.Cookies {
			out[c.Name] = c.Value
		}
		return nil
	}))
	return out
}

func (tb *tab) setCookie(name, value string, secure bool) {
	tb.t.Helper()
	tb.do("setting a cookie", chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		_, err := cdp.Call(ctx, tg, network.SetCookie, network.SetCookieParams{Name: name, Value: value, URL: tb.base + "/", Path: "/", Secure: &secure})
		return err
	}))
}

// enters types name and password into the sign-in page.
func (tb *tab) enters(name, password string) {
	tb.t.Helper()
	tb.visit("/login")
	tb.fill("input[name=username]", name)
	tb.fill("input[name=password]", password)
	tb.click("form[action='/login'] button")
}

const (
	atNodes   = `location.pathname === '/nodes'`
	atLogin   = `location.pathname === '/login'`
	refused   = `document.querySelector('[role=alert]') !== null`
	signOut   = `form[action="/logout"] button`
	secondWay = `location.pathname === '/login/code'`
)

// From the link of an invitation to a second factor, with TLS and a real browser: what each page keeps from whoever looks
// over the shoulder, that each link and code is good once, and that no step keeps a cookie that was there before it.
func TestSignIn_InvitationAndSecondFactor(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	node := c.Node(t, kubetest.NodeSpec{}).Name
	s := startServerWith(t, "--kubeconfig", c.Kubeconfig, "--tls-self-signed")
	out := s.run("", "user", "add", "ada", "--role", "operator", "--invite", "--external-url", s.url)
	link, err := url.Parse(regexp.MustCompile(`https://\S+`).FindString(out))
	if err != nil || link.Fragment == "" {
		t.Fatalf("%v: %s", err, out)
	}
	const cookie, invited, password = "__Host-knm", "correct horse battery", "a battery of stables"
	ada := newTab(t, s.url)
	ada.trust()

	// Somebody has put a cookie into the browser and waits for it to become a session.
	const planted = "bm90LWEtc2Vzc2lvbi1idXQtdGhlLWF0dGFja2VyLWtub3dz"
	ada.setCookie(cookie, planted, true)
	ada.visit("/nodes")
	ada.wait("it is no session", atLogin)
	seen := []string{planted}
	// The session of now; it is none that the browser has had before.
	session := func(when string) string {
		t.Helper()
		got := ada.cookies()[cookie]
		if got == "" || slices.Contains(seen, got) {
			t.Fatalf("%s, the session is %q: the browser had %d before", when, got, len(seen))
		}
		seen = append(seen, got)
		return got
	}

	ada.visit(link.Path + "#" + link.Fragment)
	ada.wait("the code is in the form and not in the address any more",
		`document.querySelector('input[name=code]').value === `+quote(link.Fragment)+` && location.hash === ''`)
	ada.fill("input[name=password]", "short")
	ada.click("form[action='/invite'] button")
	ada.wait("a short password is refused beside its field", there("input[name=password][aria-invalid]"))
	ada.fill("input[name=password]", invited)
	ada.click("form[action='/invite'] button")
	ada.wait("the way leads to the sign-in", atLogin)
	again := newTab(t, s.url)
	again.trust()
	again.visit(link.Path + "#" + link.Fragment)
	again.wait("the code is in the form", `document.querySelector('input[name=code]').value !== ''`)
	again.fill("input[name=password]", "another correct horse")
	again.click("form[action='/invite'] button")
	again.wait("the link is good once", refused+` && location.pathname === '/invite'`)

	ada.enters("ada", invited)
	ada.wait("signed in", atNodes)
	session("after the password")

	// Another password.
	ada.visit("/account")
	change := func(current string) {
		ada.fill("input[name=current_password]", current)
		ada.fill("input[name=new_password]", password)
		ada.click("form[action='/api/v1/password'] button")
	}
	change("not the password")
	ada.wait("a session alone is not enough", refused)
	change(invited)
	ada.wait("it ends the session", atLogin)
	ada.enters("ada", invited)
	ada.wait("the old one is good no longer", refused)
	ada.enters("ada", password)
	ada.wait("signed in with the new one", atNodes)
	session("after another password")

	// The second factor.
	ada.visit("/account")
	begin := func(pw string) {
		ada.fill("form[action='/api/v1/second-factor'] input[name=password]", pw)
		ada.click("form[action='/api/v1/second-factor'] button")
	}
	begin("not the password")
	ada.wait("a session alone is not enough", refused)
	begin(password)
	ada.wait("the secret", there("code.secret"))
	secret := eval[string](ada, `document.querySelector('code.secret').innerText`)
	if corners := eval[[]bool](ada, corners); !slices.Equal(corners, []bool{true, true, true, false}) {
		t.Errorf("the picture has the marks of a QR code in the corners: %v", corners)
	}
	ada.screenshot("second-factor")
	confirm := func(code string) {
		ada.fill("form[action='/api/v1/second-factor/confirm'] input[name=code]", code)
		ada.click("form[action='/api/v1/second-factor/confirm'] button")
	}
	confirm(code(t, secret, time.Now().Add(time.Hour)))
	ada.wait("a code of another time is refused", refused)
	// The code of the period before leaves that of now for the sign-in. It is taken in the period after its own only, so
	// that at the turn of one there is another try.
	for try := range 3 {
		eval[bool](ada, `document.querySelectorAll('[role=alert]').forEach(e => e.remove()), true`)
		confirm(code(t, secret, time.Now().Add(-30*time.Second)))
		ada.wait("an answer", there(".recovery")+` || `+refused)
		if eval[bool](ada, there(".recovery")) {
			break
		}
		if try == 2 {
			t.Fatalf("no code is taken: %s", ada.text("main"))
		}
	}
	recovery := eval[[]string](ada, `[...document.querySelectorAll('.recovery li')].map(e => e.innerText.trim())`)
	if len(recovery) != 10 {
		t.Fatalf("%d recovery codes", len(recovery))
	}
	ada.visit("/account")
	if strings.Contains(eval[string](ada, `document.documentElement.outerHTML`), secret) || strings.Contains(eval[string](ada, `document.documentElement.outerHTML`), recovery[0]) {
		t.Error("what is shown once is shown twice")
	}

	half := func(when string) {
		t.Helper()
		ada.click(signOut)
		ada.wait("signed out "+when, atLogin)
		ada.enters("ada", password)
		ada.wait("the code is asked for "+when, secondWay)
		if got := ada.cookies()[cookie]; got != "" {
			t.Errorf("%s, with half a sign-in there is a session: %q", when, got)
		}
		ada.visit("/nodes")
		ada.wait("and it opens nothing", atLogin)
		ada.visit("/login/code")
	}
	enter := func(code string) {
		ada.fill("input[name=code]", code)
		ada.click("form[action='/login/code'] button")
	}
	half("the first time")
	enter("000000x")
	ada.wait("nonsense is refused", refused)
	used := time.Now()
	enter(code(t, secret, used))
	ada.wait("signed in with a code", atNodes)
	session("after the code")

	half("the second time")
	enter(code(t, secret, used))
	ada.wait("a code is good once", refused)
	enter(recovery[3])
	ada.wait("signed in with a recovery code", atNodes)
	last := session("after the recovery code")

	half("the third time")
	enter(recovery[3])
	ada.wait("a recovery code is good once", refused)
	enter(strings.ToLower(recovery[4]))
	ada.wait("signed in with another one", atNodes+` && `+there(row(c.Name, node)))
	current := session("after another recovery code")

	// What the attacker planted, and every session before the last, is nobody; a change of role leaves none.
	for i, token := range seen {
		if status := s.asCookie(cookie, token); (status == http.StatusOK) != (token == current) {
			t.Errorf("cookie %d of %d: %d", i, len(seen), status)
		}
	}
	if last == current {
		t.Error("one session for two sign-ins")
	}
	root := s.addUser("root", "admin")
	admin := newTab(t, s.url)
	admin.trust()
	admin.enters("root", root)
	admin.wait("signed in", atNodes)
	status := eval[int](admin, `fetch('/api/v1/users/ada', {method: 'PATCH', headers: {'Content-Type': 'application/json'}, body: '{"role":"viewer"}'}).then(r => r.status)`)
	if status != http.StatusNoContent {
		t.Fatalf("the change of the role: %d", status)
	}
	if status := s.asCookie(cookie, current); status != http.StatusUnauthorized {
		t.Errorf("after the change of the role the old session answers %d", status)
	}
	ada.wait("the open page says so", there(`#live-bar a[href^="/login"]`))
}

// corners tells for the corners of the picture, the lower right one last, whether the mark is there that every reader of
// QR codes looks for: a dark square of seven with a light one of five and a dark one of three in it.
const corners = `(() => {
	const svg = document.querySelector('svg.qr'), path = svg.querySelector('path'), n = svg.viewBox.baseVal.width, quiet = 4;
	const dark = (x, y) => path.isPointInFill(new DOMPoint(x + .5, y + .5));
	const mark = (left, top) => {
		for (let y = 0; y < 7; y++) for (let x = 0; x < 7; x++) {
			const ring = Math.max(Math.abs(x - 3), Math.abs(y - 3));
			if (dark(left + x, top + y) !== (ring !== 2)) return false;
		}
		return true;
	};
	const far = n - quiet - 7;
	return [mark(quiet, quiet), mark(far, quiet), mark(quiet, far), mark(far, far)];
})()`

// asCookie is what the JSON of the nodes answers to a cookie.
func (s *server) asCookie(name, value string) int {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+"/api/v1/nodes", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json")
	req.AddCookie(&http.Cookie{Name: name, Value: value})
	resp, err := s.send(req)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// After the sign-out the back button, and going forward again, show nothing of what was there; the pages of before are not
// in any cache.
func TestSignOut_BackShowsNothing(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	node := c.Node(t, kubetest.NodeSpec{}).Name
	s := startServer(t, c.Kubeconfig)
	ada := s.signIn(t, "ada", "viewer")
	ada.visit("/nodes?q=" + node)
	ada.wait("the node", there(row(c.Name, node)))
	ada.visit("/clusters/" + c.Name + "/nodes/" + node)
	ada.wait("its page", in("h1", node))
	ada.visit("/nodes?q=" + node)
	ada.wait("the node", there(row(c.Name, node)))
	ada.click(signOut)
	ada.wait("signed out", atLogin+` && `+there("input[name=password]"))
	for range 3 {
		ada.do("going back", chromedp.NavigateBack())
		// A page from a cache would be whole by now, and one that was kept alive would be there at once.
		ada.wait("a page", `document.readyState === 'complete'`)
		if got := eval[string](ada, `document.documentElement.outerHTML`); strings.Contains(got, node) && !strings.Contains(got, `name="password"`) {
			t.Errorf("%s is shown after the sign-out: %s", node, ada.text("body"))
		}
		if !eval[bool](ada, there("input[name=password]")) {
			t.Errorf("going back leads to %s: %s", eval[string](ada, `location.href`), ada.text("body"))
		}
		if text := ada.text("body"); strings.Contains(text, node) {
			t.Errorf("somebody reads %s: %s", node, text)
		}
	}
}

// No address that somebody puts behind the sign-in leads a browser to another site. Browsers read addresses in more ways
// than servers do: this one is the judge.
func TestSignIn_HostileNext(t *testing.T) {
	t.Parallel()
	s := startServerWith(t)
	elsewhere := http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("somebody came to %s", r.URL)
	})}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- elsewhere.Serve(l) }()
	t.Cleanup(func() {
		if err := elsewhere.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	host := l.Addr().String()
	password := s.addUser("ada", "viewer")
	ada := newTab(t, s.url)
	for i, next := range []string{
		"http://" + host + "/", "//" + host + "/", `/\` + host + "/", `\\` + host + "/", "/\t/" + host + "/", "/\n/" + host, "///" + host, `/./\` + host, "/.//" + host,
		"/nodes/..//" + host, "http:" + host, "/%2f" + host, "/%5c" + host, "/ /" + host, "javascript:location='//" + host + "'", "data:text/html,x", "@" + host, "/nodes@" + host + "/..//" + host,
	} {
		at := "/login?" + url.Values{"next": {next}}.Encode()
		ada.visit(at)
		if i < 2 { // once through the form, then as somebody who is signed in already
			ada.fill("input[name=username]", "ada")
			ada.fill("input[name=password]", password)
			ada.click("form[action='/login'] button")
			ada.wait("signed in", atNodes)
			if i == 0 {
				ada.click(signOut)
				ada.wait("signed out", atLogin)
			}
			continue
		}
		ada.wait(fmt.Sprintf("%q leads nowhere else", next), `location.origin === `+quote(s.url)+` && document.readyState === 'complete'`)
		if eval[bool](ada, atLogin) {
			t.Errorf("%q: still at the sign-in", next)
		}
	}
	ada.visit("/login?next=%2Fbatches%3Fpage%3D1")
	ada.wait("our own pages are still reached", `location.pathname === '/batches'`)
}

// idp is an identity provider of another site: what it calls 127.0.0.1 the browser knows the app as localhost. It asks
// whoever comes to press a button, so that the way back is begun by a page of its own.
func idp(t *testing.T) *mockoidc.MockOIDC {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	m, err := mockoidc.NewServer(key)
	if err != nil {
		t.Fatal(err)
	}
	consent := template.Must(template.New("").Parse(`<!doctype html><title>provider</title><a id="consent" href="{{.}}">go on</a>`))
	err = m.AddMiddleware(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != mockoidc.AuthorizationEndpoint || r.URL.Query().Has("consent") {
				next.ServeHTTP(w, r)
				return
			}
			if err := consent.Execute(w, r.URL.RequestURI()+"&consent=yes"); err != nil {
				t.Error(err)
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(l, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Server.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// A person goes from the button to the provider and back, over the border between two sites, and is signed in. Somebody
// whose groups are not known reads why not; and an answer that belongs to somebody else's browser signs nobody in.
func TestSignIn_OIDC(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	m := idp(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(m.ClientSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServerWith(t, "--kubeconfig", c.Kubeconfig, "--oidc-issuer", m.Issuer(), "--oidc-client-id", m.ClientID,
		"--oidc-client-secret-file", secret, "--oidc-role-map", "sre=operator")
	_, port, err := net.SplitHostPort(s.listen)
	if err != nil {
		t.Fatal(err)
	}
	base := "http://localhost:" + port
	user := func(name, group string) *mockoidc.MockUser {
		return &mockoidc.MockUser{Subject: "sub-" + name, PreferredUsername: name, Groups: []string{group}}
	}
	through := func(tb *tab, u *mockoidc.MockUser, next string) {
		t.Helper()
		m.QueueUser(u)
		tb.visit("/login?" + url.Values{"next": {next}}.Encode())
		tb.click(`a[href^="/login/oidc"]`)
		tb.wait("the provider, of another site", `location.hostname === '127.0.0.1' && `+there("#consent"))
		tb.click("#consent")
	}

	ada := newTab(t, base)
	const planted = "cGxhbnRlZC1ieS1zb21lYm9keS1lbHNlLWJlZm9yZS1pdA"
	ada.setCookie("knm", planted, false)
	through(ada, user("ada", "sre"), "/batches")
	ada.wait("signed in, where the way had begun", `location.origin === `+quote(base)+` && location.pathname === '/batches'`)
	if got := ada.cookies(); got["knm"] == "" || got["knm"] == planted || got["knm-oidc"] != "" {
		t.Errorf("cookies %v", got)
	}
	if got := eval[string](ada, `location.search + document.referrer`); strings.Contains(got, "code=") || strings.Contains(got, "state=") {
		t.Errorf("the page knows the answer of the provider: %s", got)
	}
	// This provider does not say when somebody signed in there: that will not do for who has to sign in anew.
	session := ada.cookies()["knm"]
	m.QueueUser(user("ada", "sre"))
	ada.visit("/login?again=1")
	ada.click(`a[href^="/login/oidc"]`)
	ada.wait("the provider, asked to have her sign in", there("#consent")+` && location.search.includes('prompt=login') && location.search.includes('max_age=0')`)
	ada.click("#consent")
	ada.wait("words for who was not asked", in("main", "did not have you sign in anew"))
	if ada.cookies()["knm"] != session {
		t.Error("there is another session")
	}
	ada.visit("/account")
	ada.wait("as who they are there, with the role of their group", in("main .sub", "ada")+` && `+in("main .sub", "perator"))
	ada.click(signOut)
	ada.wait("signed out", atLogin)

	through(ada, user("ada", "sre"), "//127.0.0.1:1/evil")
	ada.wait("home, whatever the address said", `location.origin === `+quote(base)+` && `+atNodes)
	ada.click(signOut)
	ada.wait("signed out", atLogin)

	eve := newTab(t, base)
	through(eve, user("eve", "sales"), "/nodes")
	eve.wait("words for who may not", in("main", "none of your groups may use this program"))
	eve.screenshot("oidc-refused")
	if got := eve.cookies(); got["knm"] != "" || got["knm-oidc"] != "" {
		t.Errorf("cookies of who was refused: %v", got)
	}
	eve.visit("/nodes")
	eve.wait("not signed in", atLogin)

	// Eve is let in now, keeps the answer of the provider to herself, and has Ada's browser open it.
	m.QueueUser(user("eve", "sre"))
	mallory := &client{t: t, base: base}
	resp := mallory.send("GET", "/login/oidc", "", "", "Accept", "text/html")
	resp.Body.Close()
	where, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, where.String()+"&consent=yes", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err = noRedirect.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	trap, err := resp.Location()
	if err != nil || !strings.HasPrefix(trap.String(), base+"/login/oidc/callback?") {
		t.Fatalf("%v %v", trap, err)
	}
	ada.visit(trap.RequestURI())
	ada.wait("the answer of another browser is refused", in("main", "did not work"))
	if got := ada.cookies()["knm"]; got != "" {
		t.Errorf("ada is signed in as eve: %q", got)
	}
}

// The flags for a directory, with a real one behind them: who is in it signs in through the page with the role of their
// group; while it is away people of ours still do, and who is not let in reads something that helps.
func TestSignIn_Directory(t *testing.T) {
	t.Parallel()
	ada := "uid=ada," + ldaptest.People
	d := ldaptest.Start(t, ldaptest.Person(ada, "Ada Lovelace", "correct horse battery", "ada"),
		ldaptest.Person("uid=eve,"+ldaptest.People, "Eve", "eves password", "eve"), ldaptest.Group("sre", ada))
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(d.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServerWith(t, "--ldap-url", d.StartTLS, "--ldap-ca-file", d.CAFile, "--ldap-bind-dn", ldaptest.Searcher,
		"--ldap-bind-password-file", secret, "--ldap-user-base", ldaptest.People, "--ldap-group-base", ldaptest.Groups, "--ldap-role-map", "sre=operator")
	root := s.addUser("root", "admin")
	tb := newTab(t, s.url)
	tb.enters("ada", "correct horse batter")
	tb.wait("a wrong password is refused", refused)
	tb.enters("eve", "eves password")
	tb.wait("who is in no group is refused", refused)
	tb.enters("Ada", "correct horse battery")
	tb.wait("signed in", atNodes)
	tb.visit("/account")
	tb.wait("with the role of the group", in("main .sub", "ada")+` && `+in("main .sub", "perator"))
	tb.click(signOut)
	tb.wait("signed out", atLogin)

	d.Kill()
	tb.enters("ada", "correct horse battery")
	tb.wait("the directory is away: that is what the form says", in("main", "the directory or the database does not answer")+` && `+there("input[name=password]"))
	tb.screenshot("directory-away")
	tb.enters("root", root)
	tb.wait("people of ours sign in all the same", atNodes)
	tb.click(signOut)
	tb.wait("signed out", atLogin)
	d.Restart()
	tb.enters("ada", "correct horse battery")
	tb.wait("signed in again", atNodes)
}
