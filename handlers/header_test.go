package handlers

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const proxySecret = "a secret of the proxy"

func trusting(cfg *Config) {
	cfg.Proxies = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")} // of X-Forwarded-For; that is another matter
	cfg.Header = &TrustedHeader{
		User: "X-Remote-User", Groups: "x-remote-groups", SecretName: "X-Proxy-Secret", Secret: proxySecret,
		From: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::1/128")},
	}
}

// ask sends headers as they are, names not put into one form, from a peer.
func (s *site) ask(path, peer string, header http.Header) *httptest.ResponseRecorder {
	s.t.Helper()
	r := httptest.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://knm.test"+path, nil)
	r.RemoteAddr = peer
	r.Header.Set("Accept", "text/html")
	for name, values := range header {
		r.Header[name] = slices.Clone(values)
	}
	w := httptest.NewRecorder()
	s.h.ServeHTTP(w, r)
	return w
}

// combination is what a request carries beside nothing.
type combination struct {
	name   string
	header http.Header
	want   string // of a trusted peer: the call that signs in, "" for the form, "refused"
	plain  bool   // has none of the headers: to an untrusted peer it is as good as any
}

func combinations() []combination {
	const user, groups, secret = "X-Remote-User", "X-Remote-Groups", "X-Proxy-Secret"
	h := func(kv ...string) http.Header {
		out := http.Header{}
		for i := 0; i+1 < len(kv); i += 2 {
			out[kv[i]] = append(out[kv[i]], kv[i+1])
		}
		return out
	}
	good := func(kv ...string) http.Header { return h(append([]string{secret, proxySecret}, kv...)...) }
	in := func(name string, groups ...string) string {
		return fmt.Sprintf("SignInByHeader %s %q", name, groups)
	}
	const refused = "refused"
	list := []combination{
		{name: "none", header: h(), plain: true},
		{name: "others", header: h("X-Remote", "ada", "X-Remote-Users", "ada", "X-Remote-User-X", "ada"), plain: true},
		{name: "forwarded for", header: h("X-Forwarded-For", "192.0.2.1"), plain: true},
		{name: "a Connection of others", header: h("Connection", "keep-alive, X-Other"), plain: true},

		{name: "all", header: good(user, "ada", groups, "sre,staff"), want: in("ada", "sre", "staff")},
		{name: "no groups", header: good(user, "ada"), want: in("ada")},
		{name: "empty groups", header: good(user, "ada", groups, ""), want: in("ada")},
		{name: "blanks between groups", header: good(user, "ada", groups, "sre, staff"), want: in("ada", "sre", "staff")},
		{name: "a group with a blank in it", header: good(user, "ada", groups, "the staff"), want: in("ada", "the staff")},
		{name: "a group with =", header: good(user, "ada", groups, "cn=x"), want: in("ada", "cn=x")},
		{name: "a mail address", header: good(user, "ada@example.org"), want: in("ada@example.org")},
		{name: "letters of elsewhere", header: good(user, "阿达", groups, "组"), want: in("阿达", "组")},
		{name: "the longest name", header: good(user, strings.Repeat("a", headerUserMost)), want: in(strings.Repeat("a", headerUserMost))},
		{name: "the longest group", header: good(user, "ada", groups, strings.Repeat("g", headerGroupMost)), want: in("ada", strings.Repeat("g", headerGroupMost))},
		{name: "nobody", header: good()},

		{name: "no secret", header: h(user, "ada", groups, "sre"), want: refused},
		{name: "no secret, no groups", header: h(user, "ada"), want: refused},
		{name: "empty secret", header: h(user, "ada", secret, ""), want: refused},
		{name: "wrong secret", header: h(user, "ada", secret, proxySecret+"x"), want: refused},
		{name: "part of the secret", header: h(user, "ada", secret, proxySecret[:8]), want: refused},
		{name: "the secret in capitals", header: h(user, "ada", secret, strings.ToUpper(proxySecret)), want: refused},
		{name: "the secret with a blank", header: h(user, "ada", secret, " "+proxySecret), want: refused},
		{name: "a list of secrets", header: h(user, "ada", secret, proxySecret+","+proxySecret), want: refused},
		{name: "a wrong secret alone", header: h(secret, "x"), want: refused},
		{name: "groups alone", header: h(groups, "sre"), want: refused},
		{name: "groups of nobody", header: good(groups, "sre"), want: refused},
		{name: "empty groups of nobody", header: good(groups, ""), want: refused},

		{name: "the user twice", header: good(user, "ada", user, "ada"), want: refused},
		{name: "two users", header: good(user, "ada", user, "root"), want: refused},
		{name: "a user and none", header: good(user, "ada", user, ""), want: refused},
		{name: "the groups twice", header: good(user, "ada", groups, "sre", groups, "staff"), want: refused},
		{name: "empty groups twice", header: good(user, "ada", groups, "", groups, ""), want: refused},
		{name: "the secret twice", header: good(user, "ada", secret, proxySecret), want: refused},
		{name: "a wrong secret and the right one", header: h(user, "ada", secret, "x", secret, proxySecret), want: refused},
		{name: "the right secret and a wrong one", header: good(user, "ada", secret, "x"), want: refused},

		{name: "an empty user", header: good(user, ""), want: refused},
		{name: "a blank user", header: good(user, " "), want: refused},
		{name: "a user with a blank before it", header: good(user, " ada"), want: refused},
		{name: "a user with a blank after it", header: good(user, "ada "), want: refused},
		{name: "a list of users", header: good(user, "ada,root"), want: refused},
		{name: "a list of users with a blank", header: good(user, "ada, root"), want: refused},
		{name: "a list of one", header: good(user, "ada,"), want: refused},
		{name: "a user that is too long", header: good(user, strings.Repeat("a", headerUserMost+1)), want: refused},
		{name: "a user of no text", header: good(user, "ada\xff"), want: refused},
		{name: "a user with an invisible character", header: good(user, "ada\u200b"), want: refused},
		{name: "a user that turns what follows round", header: good(user, "\u202eada"), want: refused},
		{name: "an empty group", header: good(user, "ada", groups, "sre,"), want: refused},
		{name: "an empty group in between", header: good(user, "ada", groups, "sre,,staff"), want: refused},
		{name: "only a comma", header: good(user, "ada", groups, ","), want: refused},
		{name: "a group that is too long", header: good(user, "ada", groups, strings.Repeat("g", headerGroupMost+1)), want: refused},
		{name: "too many groups", header: good(user, "ada", groups, strings.TrimSuffix(strings.Repeat("g,", headerGroupsMost+1), ",")), want: refused},
		{name: "a group of no text", header: good(user, "ada", groups, "\xff"), want: refused},
	}
	for what, c := range map[string]string{"zero": "\x00", "newline": "\n", "return": "\r", "tab": "\t", "delete": "\x7f", "next line": "\u0085"} {
		list = append(list,
			combination{name: "a user with a " + what, header: good(user, "ada"+c+"x"), want: refused},
			combination{name: "a group with a " + what, header: good(user, "ada", groups, "sre"+c+"x"), want: refused},
		)
	}
	// What some server or proxy on the way takes for the same header, alone and beside the right one.
	for _, name := range []string{
		"X_remote_user", "X_REMOTE_USER", "X-Remote_user", "x-remote-user", "X-REMOTE-USER", "X.Remote.User", "X Remote User", "X_Proxy_secret", "X-Remote_Groups", "x_remote_groups",
	} {
		list = append(list,
			combination{name: name + " alone", header: h(name, "root"), want: refused},
			combination{name: name + " beside", header: func() http.Header {
				out := good(user, "ada", groups, "sre")
				out[name] = []string{"root"}
				return out
			}(), want: refused},
		)
	}
	for _, connection := range []string{user, "close, " + secret, "keep-alive,x-remote-groups"} {
		list = append(list, combination{name: "Connection: " + connection, header: good(user, "ada", "Connection", connection), want: refused})
	}
	return list
}

// TestTrustedHeader_Combinations: what is not exactly what the trusted proxy sends signs nobody in, and from anybody
// else nothing of it passes.
func TestTrustedHeader_Combinations(t *testing.T) {
	t.Parallel()
	trusted := []string{"192.0.2.1:1234", "[::ffff:192.0.2.9]:1", "[2001:db8::1]:9"}
	others := []string{"198.51.100.1:1234", "[2001:db8::2]:9", "127.0.0.1:1", "not an address", "192.0.2.1"}
	list := combinations()
	if len(list) < 80 {
		t.Errorf("only %d combinations", len(list))
	}
	for _, c := range list {
		for i, peer := range slices.Concat(trusted, others) {
			want, from := c.want, "trusted"
			if i >= len(trusted) {
				from = "other"
				if want = "refused"; c.plain {
					want = ""
				}
			}
			t.Run(from+" "+peer+" "+c.name, func(t *testing.T) {
				t.Parallel()
				s := newSite(t, trusting)
				w := s.ask("/login?next=/batches", peer, c.header)
				switch want {
				case "refused":
					if w.Code != http.StatusForbidden || len(s.calls) != 0 || w.Header().Get("Set-Cookie") != "" {
						t.Errorf("status %d, calls %q", w.Code, s.calls)
					}
					if len(s.denied) != 1 || !strings.HasPrefix(s.denied[0], ": signin: ") {
						t.Errorf("on record %q", s.denied)
					}
					if strings.Contains(w.Body.String()+strings.Join(s.denied, ""), "root") || strings.Contains(s.logs.String(), proxySecret) {
						t.Errorf("what was sent shows: %s %q", w.Body, s.denied)
					}
				case "":
					if w.Code != http.StatusOK || len(s.calls) != 0 || len(s.denied) != 0 {
						t.Errorf("status %d, calls %q, on record %q", w.Code, s.calls, s.denied)
					}
				default:
					if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/batches" || !strings.HasPrefix(w.Header().Get("Set-Cookie"), "knm=operator; ") {
						t.Errorf("status %d: %v", w.Code, w.Header())
					}
					if len(s.calls) != 1 || !strings.HasPrefix(s.calls[0], want+" ") || len(s.denied) != 0 {
						t.Errorf("calls %q, want %q; on record %q", s.calls, want, s.denied)
					}
				}
			})
		}
	}
}

// TestTrustedHeader_Everywhere: a header that is not to be trusted is refused wherever it is sent, and one that is does
// nothing but sign in.
func TestTrustedHeader_Everywhere(t *testing.T) {
	t.Parallel()
	good := http.Header{"X-Remote-User": {"ada"}, "X-Proxy-Secret": {proxySecret}}
	s := newSite(t, trusting)
	for _, path := range []string{"/", "/nodes", "/api/v1/nodes", "/api/v1/nodes/events", "/healthz", "/static/app.css", "/nope", "/account"} {
		if w := s.ask(path, "198.51.100.1:1", good); w.Code != http.StatusForbidden {
			t.Errorf("%s from somebody else: status %d", path, w.Code)
		}
		if w := s.ask(path, "192.0.2.1:1", good); w.Code == http.StatusForbidden {
			t.Errorf("%s from the proxy: status %d", path, w.Code)
		}
	}
	if len(s.calls) != 0 {
		t.Errorf("calls %q", s.calls)
	}
	// Off: such headers mean nothing, to nobody.
	s = newSite(t)
	if w := s.ask("/login", "192.0.2.1:1", good); w.Code != http.StatusOK || len(s.calls) != 0 || len(s.denied) != 0 {
		t.Errorf("status %d, calls %q, on record %q", w.Code, s.calls, s.denied)
	}
}

// TestTrustedHeader_Sessions: who is signed in as that person stays so; a session of somebody else ends with the new one.
func TestTrustedHeader_Sessions(t *testing.T) {
	t.Parallel()
	for cookie, want := range map[string]string{
		"operator": "", "viewer": `SignInByHeader OPERATOR [] 192.0.2.1 hash-viewer`, "expired": `SignInByHeader OPERATOR [] 192.0.2.1 `,
	} {
		s := newSite(t, trusting)
		w := s.ask("/login", "192.0.2.1:1", http.Header{"X-Remote-User": {"OPERATOR"}, "X-Proxy-Secret": {proxySecret}, "Cookie": {"knm=" + cookie}})
		if w.Code != http.StatusSeeOther || strings.Join(s.calls, "") != want || (want == "") != (w.Header().Get("Set-Cookie") == "") {
			t.Errorf("%s: status %d, calls %q", cookie, w.Code, s.calls)
		}
	}
}

// TestTrustedHeader_RecordIsNotFlooded: an address is on record once a minute, with how often; and neither many requests
// nor many addresses fill the record or the memory.
func TestTrustedHeader_RecordIsNotFlooded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, trusting)
		bad := http.Header{"X-Remote-User": {"root"}}
		for range 100 {
			s.ask("/login", "198.51.100.1:1", bad)
			s.ask("/login", "198.51.100.2:1", bad)
		}
		if len(s.denied) != 2 {
			t.Errorf("on record %d: %q", len(s.denied), s.denied)
		}
		time.Sleep(smuggledEvery)
		s.ask("/login", "198.51.100.1:1", bad)
		s.ask("/login", "198.51.100.1:1", bad)
		if len(s.denied) != 3 || !strings.HasSuffix(s.denied[2], "; 99 more since the last entry") {
			t.Errorf("on record %q", s.denied)
		}
	})
	h, err := newProxyHeaders(TrustedHeader{User: "a", Groups: "b", SecretName: "c", Secret: "d", From: []netip.Prefix{{}}})
	if err != nil {
		t.Fatal(err)
	}
	now, told := time.Now(), 0
	for i := range 3 * smuggledMost {
		if _, due := h.due(fmt.Sprint(i), now); due {
			told++
		}
	}
	if told != smuggledMost+1 || len(h.refused) > smuggledMost+1 {
		t.Errorf("%d on record, %d remembered", told, len(h.refused))
	}
	if more, due := h.due("another", now.Add(smuggledEvery)); !due || more != 0 || len(h.refused) > 2 {
		t.Errorf("later: %d, %v, %d remembered", more, due, len(h.refused))
	}
}

func TestTrustedHeader_RefusesIncomplete(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*TrustedHeader){
		"no secret": func(h *TrustedHeader) { h.Secret = "" }, "nobody trusted": func(h *TrustedHeader) { h.From = nil },
		"no user": func(h *TrustedHeader) { h.User = "" }, "no groups": func(h *TrustedHeader) { h.Groups = "" },
		"no name of the secret": func(h *TrustedHeader) { h.SecretName = "" }, "one for two": func(h *TrustedHeader) { h.SecretName = "x-remote-user" },
	} {
		cfg := newWorld().config(&safeBuffer{})
		trusting(&cfg)
		change(cfg.Header)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}
