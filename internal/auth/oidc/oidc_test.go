package oidc

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/oauth2-proxy/mockoidc"
	"go.uber.org/goleak"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const redirect = "http://127.0.0.1:8080/login/oidc/callback"

// idp is a provider that runs, and what it does to the tokens that it gives.
type idp struct {
	*mockoidc.MockOIDC
	t *testing.T

	mu    sync.Mutex // guards forge
	forge func(claims jwt.MapClaims) string
}

func run(t *testing.T) *idp {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	m, err := mockoidc.NewServer(key)
	if err != nil {
		t.Fatal(err)
	}
	x := &idp{MockOIDC: m, t: t}
	if err := m.AddMiddleware(x.tamper); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(ln, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// tamper replaces the ID token of an answer by one that the test makes of the same claims.
func (x *idp) tamper(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x.mu.Lock()
		forge := x.forge
		x.mu.Unlock()
		if forge == nil || !strings.HasSuffix(r.URL.Path, "/token") {
			next.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		var body map[string]any
		if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil || body["id_token"] == nil {
			w.WriteHeader(rec.Code)
			return
		}
		claims := jwt.MapClaims{}
		if _, _, err := jwt.NewParser().ParseUnverified(body["id_token"].(string), claims); err != nil {
			x.t.Error(err)
		}
		body["id_token"] = forge(claims)
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(body); err != nil {
			x.t.Error(err)
		}
	})
}

func (x *idp) forging(f func(jwt.MapClaims) string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.forge = f
}

// signed is a token of these claims by a key, with the provider's key id.
func (x *idp) signed(claims jwt.MapClaims, method jwt.SigningMethod, key any) string {
	tok := jwt.NewWithClaims(method, claims)
	kid, err := x.Keypair.KeyID()
	if err != nil {
		x.t.Error(err)
	}
	tok.Header["kid"] = kid
	s, err := tok.SignedString(key)
	if err != nil {
		x.t.Error(err)
	}
	return s
}

func (x *idp) provider(t *testing.T) *Provider {
	t.Helper()
	p := New(Config{
		Issuer: x.Issuer(), ClientID: x.ClientID, ClientSecret: x.ClientSecret, Scopes: []string{"profile", "groups"},
		GroupsClaim: "groups", NameClaim: "preferred_username",
		Roles: fleet.RoleMap{
			"sre": {{Role: fleet.RoleOperator}}, "staff": {{Role: fleet.RoleViewer}}, "root": {{Role: fleet.RoleAdmin}},
			"edge": {{Role: fleet.RoleOperator, Scope: "edge-*"}},
		},
	})
	t.Cleanup(p.Close)
	return p
}

func ada(groups ...string) *mockoidc.MockUser {
	return &mockoidc.MockUser{Subject: "sub-1", Email: "ada@example.org", PreferredUsername: "ada", Groups: groups}
}

// visit goes to the provider as a browser does and answers what it is sent back with.
func visit(t *testing.T, target string) url.Values {
	t.Helper()
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	back, err := resp.Location()
	if err != nil || !strings.HasPrefix(back.String(), redirect) {
		t.Fatalf("sent to %v, %v (status %d)", back, err, resp.StatusCode)
	}
	return back.Query()
}

func begin(t *testing.T, p *Provider) (kept string, answer url.Values) {
	t.Helper()
	target, kept, until, err := p.Begin(t.Context(), redirect, false)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if q.Get("code_challenge_method") != "S256" || q.Get("nonce") == "" || q.Get("state") == "" || q.Get("response_type") != "code" || !until.After(time.Now()) {
		t.Errorf("asked with %v", q)
	}
	return kept, visit(t, target)
}

func TestFinish(t *testing.T) {
	t.Parallel()
	x := run(t)
	p := x.provider(t)
	for _, tt := range []struct {
		groups []string
		want   fleet.Role
		grants []fleet.Grant
	}{
		{[]string{"sre"}, fleet.RoleOperator, nil},
		{[]string{"staff", "root", "sre"}, fleet.RoleAdmin, nil},
		{[]string{"Root", "root2", ""}, "", nil},
		{[]string{"edge"}, "", []fleet.Grant{{Scope: "edge-*", Role: fleet.RoleOperator, From: fleet.PersonOIDC}}},
		{nil, "", nil},
	} {
		x.QueueUser(ada(tt.groups...))
		kept, answer := begin(t, p)
		got, err := p.Finish(t.Context(), redirect, kept, answer)
		want := fleet.Vouched{
			Identity: fleet.Identity{Kind: fleet.PersonOIDC, Issuer: x.Issuer(), Subject: "sub-1"}, Name: "ada", Role: tt.want,
			Grants: tt.grants, Groups: tt.groups,
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v: %v %s", tt.groups, err, diff)
		}
		_, err = p.Finish(t.Context(), redirect, kept, answer)
		if !errors.Is(err, fleet.ErrUnauthenticated) {
			t.Errorf("the code again: %v", err)
		}
	}
}

// TestFinish_ProvesNothing: everything that is not the answer to this browser's question is refused.
func TestFinish_ProvesNothing(t *testing.T) {
	t.Parallel()
	x := run(t)
	p := x.provider(t)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	resign := func(change func(jwt.MapClaims)) func(jwt.MapClaims) string {
		return func(c jwt.MapClaims) string {
			change(c)
			return x.signed(c, jwt.SigningMethodRS256, x.Keypair.PrivateKey)
		}
	}
	asIs := func(kept string, v url.Values) (string, url.Values) { return kept, v }
	edit := func(f func(url.Values)) func(string, url.Values) (string, url.Values) {
		return func(kept string, v url.Values) (string, url.Values) { f(v); return kept, v }
	}
	foreignKept, _ := begin(t, p)
	for _, tt := range []struct {
		what  string
		forge func(jwt.MapClaims) string
		edit  func(string, url.Values) (string, url.Values)
		good  bool
	}{
		{"nothing changed, signed again", resign(func(jwt.MapClaims) {}), asIs, true},
		{"azp is ours", resign(func(c jwt.MapClaims) { c["azp"] = x.ClientID }), asIs, true},
		{"wrong nonce", resign(func(c jwt.MapClaims) { c["nonce"] = "of another browser" }), asIs, false},
		{"no nonce", resign(func(c jwt.MapClaims) { delete(c, "nonce") }), asIs, false},
		{"expired", resign(func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-time.Minute).Unix() }), asIs, false},
		{"another issuer", resign(func(c jwt.MapClaims) { c["iss"] = "https://evil.test" }), asIs, false},
		{"another audience", resign(func(c jwt.MapClaims) { c["aud"] = "somebody" }), asIs, false},
		{"several audiences", resign(func(c jwt.MapClaims) { c["aud"] = []string{x.ClientID, "somebody"} }), asIs, false},
		{"asked for by another", resign(func(c jwt.MapClaims) { c["azp"] = "somebody" }), asIs, false},
		{"no subject", resign(func(c jwt.MapClaims) { c["sub"] = "" }), asIs, false},
		{"groups are no texts", resign(func(c jwt.MapClaims) { c["groups"] = 7 }), asIs, false},
		{"alg none", func(c jwt.MapClaims) string {
			return x.signed(c, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType)
		}, asIs, false},
		{"alg HS256 with the public key", func(c jwt.MapClaims) string {
			return x.signed(c, jwt.SigningMethodHS256, x.Keypair.PrivateKey.N.Bytes())
		}, asIs, false},
		{"another key", func(c jwt.MapClaims) string { return x.signed(c, jwt.SigningMethodRS256, other) }, asIs, false},
		{"no token", func(jwt.MapClaims) string { return "" }, asIs, false},
		{"wrong state", nil, edit(func(v url.Values) { v.Set("state", "x") }), false},
		{"no state", nil, edit(func(v url.Values) { v.Del("state") }), false},
		{"issuer of the answer", nil, edit(func(v url.Values) { v.Set("iss", "https://evil.test") }), false},
		{"another code", nil, edit(func(v url.Values) { v.Set("code", "x") }), false},
		{"no code", nil, edit(func(v url.Values) { v.Del("code") }), false},
		{"an error", nil, edit(func(v url.Values) { v.Set("error", "access_denied") }), false},
		{"another browser", nil, func(_ string, v url.Values) (string, url.Values) { return foreignKept, v }, false},
		{"another browser with the state of this one", nil, func(kept string, v url.Values) (string, url.Values) {
			return forgeKept(t, kept, func(was *pending) { was.Verifier = strings.Repeat("v", 43) }), v
		}, false},
		{"another nonce in the browser", nil, func(kept string, v url.Values) (string, url.Values) {
			return forgeKept(t, kept, func(was *pending) { was.Nonce = "n" }), v
		}, false},
		{"too late", nil, func(kept string, v url.Values) (string, url.Values) {
			return forgeKept(t, kept, func(was *pending) { was.Until = time.Now() }), v
		}, false},
		{"nothing kept", nil, func(_ string, v url.Values) (string, url.Values) { return "", v }, false},
		{"empty kept", nil, func(_ string, v url.Values) (string, url.Values) { v.Set("state", ""); return "e30", v }, false},
	} {
		x.forging(tt.forge)
		x.QueueUser(ada("sre"))
		kept, answer := begin(t, p)
		kept, answer = tt.edit(kept, answer)
		got, err := p.Finish(t.Context(), redirect, kept, answer)
		if tt.good {
			if err != nil || got.Role != fleet.RoleOperator {
				t.Errorf("%s: %+v, %v", tt.what, got, err)
			}
			continue
		}
		if !errors.Is(err, fleet.ErrUnauthenticated) || !cmp.Equal(got, fleet.Vouched{}) {
			t.Errorf("%s: %+v, %v", tt.what, got, err)
		}
	}
}

func forgeKept(t *testing.T, kept string, change func(*pending)) string {
	t.Helper()
	var was pending
	b, err := decodeKept(kept)
	if err == nil {
		err = json.Unmarshal(b, &was)
	}
	if err != nil {
		t.Fatal(err)
	}
	change(&was)
	out, err := encodeKept(was)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestProvider_IsDown: a provider that is down delays nobody and is asked with growing pauses; when it is back, so are we.
func TestProvider_IsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Issuer: "https://idp.test"})
		var asked atomic.Int64
		up := false
		p.client.Transport = tripper(func(r *http.Request) (*http.Response, error) {
			asked.Add(1)
			time.Sleep(time.Second) // of the bubble
			if !up {
				return nil, errors.New("connection refused")
			}
			rec := httptest.NewRecorder()
			rec.Header().Set("Content-Type", "application/json")
			_, _ = rec.Body.WriteString(`{"issuer":"https://idp.test","authorization_endpoint":"https://idp.test/a","token_endpoint":"https://idp.test/t","jwks_uri":"https://idp.test/k"}`)
			return rec.Result(), nil
		})
		var wg sync.WaitGroup
		for range 20 { // at once: one asks
			wg.Go(func() {
				if _, _, _, err := p.Begin(t.Context(), redirect, false); !errors.Is(err, fleet.ErrUnavailable) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times at once", n)
		}
		for range 600 { // somebody tries each second for ten minutes
			_, _, _, err := p.Begin(t.Context(), redirect, false)
			if !errors.Is(err, fleet.ErrUnavailable) {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if n := asked.Load(); n < 8 || n > 20 {
			t.Errorf("asked %d times in ten minutes", n)
		}
		up = true
		time.Sleep(lastDelay)
		target, _, _, err := p.Begin(t.Context(), redirect, false)
		if err != nil || !strings.HasPrefix(target, "https://idp.test/a?") {
			t.Errorf("%q, %v", target, err)
		}
		// Whoever gives up waiting does not wait.
		p.found, up = nil, false
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { _, _, _, _ = p.Begin(t.Context(), redirect, false) })
		synctest.Wait()
		cancel()
		if _, _, _, err := p.Begin(ctx, redirect, false); !errors.Is(err, context.Canceled) {
			t.Errorf("gave up: %v", err)
		}
		wg.Wait()
	})
}

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestClient_Bounds: no redirect is followed, and no answer without end is read.
func TestClient_Bounds(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int64
	decoy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer decoy.Close()
	mode := "redirect"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if mode == "redirect" {
			http.Redirect(w, r, decoy.URL, http.StatusFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		for range 64 {
			if _, err := w.Write(bytes.Repeat([]byte(" "), 64<<10)); err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	for _, mode = range []string{"redirect", "endless"} {
		p := New(Config{Issuer: srv.URL})
		_, _, _, err := p.Begin(t.Context(), redirect, false)
		p.Close()
		want := map[string]error{"redirect": errRedirect, "endless": errTooLong}[mode]
		if !errors.Is(err, fleet.ErrUnavailable) || !strings.Contains(err.Error(), want.Error()) {
			t.Errorf("%s: %v", mode, err)
		}
	}
	if elsewhere.Load() != 0 {
		t.Error("a redirect was followed")
	}
}
