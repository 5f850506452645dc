package handlers

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// F-06: whatever is sent as a batch is a batch in the bounds, or an error with a kind.
func FuzzBatchForm(f *testing.F) {
	for _, h := range hostileBodies() {
		if len(h.body) < 4096 {
			f.Add(h.media == "", h.body)
		}
	}
	for key, body := range bodies {
		if strings.HasSuffix(key, "/batches") || strings.HasSuffix(key, "/plans") {
			f.Add(false, body)
		}
	}
	f.Add(true, `{"action":"drain","nodes":["prod/node-0"],"grace_period_seconds":-1,"timeout_seconds":60,"force":true,"pod_selector":"a=b"}`)
	f.Add(true, `{"action":"apply-template","nodes":"prod/node-0","template":"t1","value":{"a":"b"}}`)
	f.Add(false, "action=taints&nodes=prod%2Fnode-0&taints=a%3Db%3ANoExecute&mode=replace&on_conflict=skip&pause_between=1m30s&canary=1")
	f.Fuzz(func(t *testing.T, asJSON bool, body string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://knm.test/api/v1/batches", strings.NewReader(body))
		r.Header.Set("Content-Type", mediaForm)
		if asJSON {
			r.Header.Set("Content-Type", mediaJSON)
		}
		a, in, err := readAsk(r)
		if err != nil {
			for _, kind := range []error{fleet.ErrInvalid, fleet.ErrUnsupported, fleet.ErrTooLarge} {
				if errors.Is(err, kind) {
					return
				}
			}
			t.Fatalf("%q: an error without a kind: %v", body, err)
		}
		if _, ok := a.spec.Action.Permission(); !ok || a.spec.PauseBetween < 0 || a.spec.MaxConcurrent < 0 || a.spec.Canary < 0 {
			t.Errorf("%q became %+v", body, a.spec)
		}
		for _, values := range in.values {
			for _, v := range values {
				if !utf8.ValidString(v) || strings.Contains(v, "\x00") {
					t.Errorf("%q lets %q through", body, v)
				}
			}
		}
		// The same is understood every time, whatever the order in which a map is walked.
		again := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://knm.test/api/v1/batches", strings.NewReader(body))
		again.Header = r.Header
		b, _, err := readAsk(again)
		one, errOne := json.Marshal(a.spec)
		two, errTwo := json.Marshal(b.spec)
		if err := errors.Join(err, errOne, errTwo); err != nil || string(one) != string(two) {
			t.Errorf("%q: %s, and then %s (%v)", body, one, two, err)
		}
	})
}

// F-09: whatever stands in the header of cookies, a session is one exact text of one cookie, and the answer is a page, a
// way to sign in, or a refusal.
func FuzzSessionCookie(f *testing.F) {
	for _, c := range []string{
		"", "knm=viewer", "knm=viewer; knm=admin", `knm="viewer"`, "knm=", "knm", "=viewer", "__Host-knm=viewer", "knm=viewer,knm=admin",
		"KNM=viewer", "knm =viewer", "knm=%76iewer", "knm=viewer\x00", "knm-half=viewer", "knm=expired", "a=b; knm=nobody", ";;;=;",
	} {
		f.Add(c)
	}
	s, err := newServer(newWorld().config(&safeBuffer{}))
	if err != nil {
		f.Fatal(err)
	}
	if err := s.register(s.routes()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://knm.test/nodes", nil)
		r.Header["Cookie"] = []string{header}
		r.Header.Set("Accept", "text/html")
		token := s.session(r)
		if !strings.Contains(header, token) {
			t.Errorf("the session of %q is %q", header, token)
		}
		w := httptest.NewRecorder()
		s.mux.ServeHTTP(w, r)
		known := map[string]bool{"viewer": true, "operator": true, "admin": true}[token]
		switch {
		case known && w.Code != http.StatusOK, !known && w.Code == http.StatusOK:
			t.Errorf("%q: status %d for the session %q", header, w.Code, token)
		case w.Code != http.StatusOK && w.Code != http.StatusSeeOther && token != "store-down":
			t.Errorf("%q: status %d", header, w.Code)
		}
	})
}

// proxied are the proxies of the tests below.
var proxied = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}

// forwarded are chains of proxies and whom they name.
var forwarded = []struct {
	peer string
	xff  []string
	want string
}{
	{"192.0.2.1:1", nil, "192.0.2.1"},
	{"192.0.2.1:1", []string{"9.9.9.9"}, "192.0.2.1"},
	{"192.0.2.1:1", []string{"10.0.0.1"}, "192.0.2.1"},
	{"192.0.2.1:1", []string{"9.9.9.9, 10.0.0.1"}, "192.0.2.1"},
	{"[2001:db8::1]:1", []string{"9.9.9.9"}, "2001:db8::1"},
	{"[::ffff:192.0.2.1]:1", []string{"9.9.9.9"}, "192.0.2.1"},
	{"127.0.0.1:1", []string{"9.9.9.9"}, "127.0.0.1"},
	{"11.0.0.1:1", []string{"9.9.9.9"}, "11.0.0.1"},
	{"10.0.0.1:1", nil, "10.0.0.1"},
	{"10.0.0.1:1", []string{""}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"9.9.9.9"}, "9.9.9.9"},
	{"10.255.255.255:1", []string{"9.9.9.9"}, "9.9.9.9"},
	{"[::ffff:10.0.0.1]:1", []string{"9.9.9.9"}, "9.9.9.9"},
	{"[fd00::1]:1", []string{"9.9.9.9"}, "9.9.9.9"},
	{"[fd00::1]:1", []string{"2001:db8::7"}, "2001:db8::7"},
	{"10.0.0.1:1", []string{"2001:DB8:0:0::7"}, "2001:db8::7"},
	{"10.0.0.1:1", []string{"1.1.1.1, 9.9.9.9"}, "9.9.9.9"},
	{"10.0.0.1:1", []string{"1.1.1.1,9.9.9.9"}, "9.9.9.9"},
	{"10.0.0.1:1", []string{"1.1.1.1 ,\t9.9.9.9 "}, "9.9.9.9"},
	{"10.0.0.1:1", []string{"1.1.1.1", "9.9.9.9"}, "9.9.9.9"},
	{"10.0.0.1:1", []string{"9.9.9.9", "10.0.0.2"}, "9.9.9.9"},
	{"10.0.0.1:1", []string{"1.1.1.1, 9.9.9.9, 10.0.0.2"}, "9.9.9.9"},
	{"10.0.0.1:1", []string{"1.1.1.1, 9.9.9.9, 10.0.0.2, fd00::3"}, "9.9.9.9"},
	{"10.0.0.1:1", []string{"10.0.0.9, 9.9.9.9"}, "9.9.9.9"},
	{"10.0.0.1:1", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"::ffff:9.9.9.9"}, "9.9.9.9"},
	{"10.0.0.1:1", []string{"9.9.9.9, ::ffff:10.0.0.2"}, "9.9.9.9"},
	{"10.0.0.1:1", []string{"9.9.9.9, nonsense"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"nonsense, 9.9.9.9"}, "9.9.9.9"},
	{"10.0.0.1:1", []string{"9.9.9.9:80"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"[2001:db8::7]"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"9.9.9.9, ,"}, "9.9.9.9"},
	{"10.0.0.1:1", []string{",,,"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"for=9.9.9.9"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"9.9.9.9;1.1.1.1"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"9.9.9.9 1.1.1.1"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"9.9.9"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"9.9.9.09"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"151587081"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"0x9.9.9.9"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"9.9.9.9/8"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"unknown"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"\"9.9.9.9\""}, "10.0.0.1"},
	{"10.0.0.1:1", []string{"fe80::1%eth0"}, "fe80::1"},
	{"10.0.0.1:1", []string{"9.9.9.9\x00"}, "10.0.0.1"},
	{"10.0.0.1:1", []string{strings.Repeat("1.1.1.1, ", 5000) + "9.9.9.9"}, "9.9.9.9"},
}

// addressed answers every request to /addr with the address of its client.
func addressed(t testing.TB) http.Handler {
	t.Helper()
	cfg := newWorld().config(&safeBuffer{})
	cfg.Proxies = proxied
	s, err := newServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.mux.Get("/addr", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, stateOf(r).addr) })
	return s.mux
}

func addressOf(h http.Handler, peer string, xff []string) string {
	r := httptest.NewRequest(http.MethodGet, "http://knm.test/addr", nil)
	r.RemoteAddr = peer
	r.Header["X-Forwarded-For"] = xff
	for _, name := range []string{"X-Real-Ip", "True-Client-Ip", "Cf-Connecting-Ip", "X-Client-Ip", "Forwarded", "X-Cluster-Client-Ip"} {
		r.Header[name] = []string{"6.6.6.6"} // nobody is believed who says it by another name
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Body.String()
}

// T25: whom a chain of proxies names; the limits of sign-ins and of streams count that address.
func TestForwardedFor(t *testing.T) {
	t.Parallel()
	if len(forwarded) < 40 {
		t.Errorf("only %d chains", len(forwarded))
	}
	h := addressed(t)
	for _, tt := range forwarded {
		if got := addressOf(h, tt.peer, tt.xff); got != tt.want {
			t.Errorf("peer %s, chain %.80q: %q, want %q", tt.peer, tt.xff, got, tt.want)
		}
	}
}

// client is the rule in other words than those of the product: from the right, the first that is not a proxy of ours;
// the peer where there is none, or where something is in the way that is no address.
func client(peer netip.Addr, xff string) string {
	trusted := func(a netip.Addr) bool {
		return slices.ContainsFunc(proxied, func(p netip.Prefix) bool { return p.Contains(a.Unmap().WithZone("")) })
	}
	if !trusted(peer) {
		return peer.Unmap().String()
	}
	for _, part := range slices.Backward(strings.Split(xff, ",")) {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		a, err := netip.ParseAddr(part)
		if err != nil {
			break
		}
		if !trusted(a) {
			return a.Unmap().WithZone("").String()
		}
	}
	return peer.String()
}

// F-11: whatever a chain says, it names whom the rule names.
func FuzzForwardedFor(f *testing.F) {
	for _, x := range forwarded {
		f.Add(x.peer, strings.Join(x.xff, ","))
	}
	h := addressed(f)
	f.Fuzz(func(t *testing.T, peer, xff string) {
		at, err := netip.ParseAddrPort(peer)
		if err != nil {
			return
		}
		got, want := addressOf(h, at.String(), []string{xff}), client(at.Addr(), xff)
		a, err := netip.ParseAddr(got)
		if err != nil || got != want && a.Unmap().String() != want {
			t.Errorf("peer %q, chain %q: %q, want %q", peer, xff, got, want)
		}
	})
}
