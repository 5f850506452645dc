package handlers

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// FuzzTrustedHeader: whatever is sent from wherever, somebody is only named by one header of the exact name, from a trusted
// peer, together with the secret, and then by exactly what it says.
func FuzzTrustedHeader(f *testing.F) {
	for _, s := range [][4]string{
		{"X-Remote-User", "ada", proxySecret, "192.0.2.7:1"},
		{"X_Remote_User", "ada", proxySecret, "192.0.2.7:1"},
		{"X-Remote-User", "ada,bob", proxySecret, "192.0.2.7:1"},
		{"X-Remote-User", "ada\x00", proxySecret, "192.0.2.7:1"},
		{"X-Remote-User", "ada", "a secret", "192.0.2.7:1"},
		{"X-Remote-User", "ada", proxySecret, "198.51.100.7:1"},
		{"x-remote-user", "ada", proxySecret, "192.0.2.7:1"},
		{"X-Remote-Groups", "ops, dev", proxySecret, "[2001:db8::1]:9"},
		{"X-Remote-User", "\u202eada", proxySecret, "[::ffff:192.0.2.7]:1"},
		{"Connection", "x-remote-user", proxySecret, "192.0.2.7:1"},
		{"X-Remote-User ", "ada", proxySecret, "192.0.2.7"},
		{"", "", "", ""},
	} {
		f.Add(s[0], s[1], s[2], s[3])
	}
	var cfg Config
	trusting(&cfg)
	h, err := newProxyHeaders(*cfg.Header)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name, value, secret, peer string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://knm.test/login", nil)
		r.RemoteAddr = peer
		r.Header["X-Proxy-Secret"] = []string{secret}
		r.Header[name] = append(r.Header[name], value)
		who, err := h.check(r)
		if err != nil || who.name == "" {
			if who.name != "" || len(who.groups) > 0 {
				t.Errorf("refused, and named all the same: %+v, %v", who, err)
			}
			return
		}
		at, perr := netip.ParseAddrPort(peer)
		if name != "X-Remote-User" || secret != proxySecret || who.name != value || strings.ContainsAny(value, ",\n\r\x00") || perr != nil ||
			!slices.ContainsFunc(cfg.Header.From, func(p netip.Prefix) bool { return p.Contains(at.Addr().Unmap().WithZone("")) }) {
			t.Errorf("%q: %q with %q from %q names %+v", name, value, secret, peer, who)
		}
	})
}
