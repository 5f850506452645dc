package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Where a connection may not go, in every writing of it, and where it may.
func TestAddresses_Check(t *testing.T) {
	t.Parallel()
	refused := []string{
		"0.0.0.0", "0.1.2.3", "::", "127.0.0.1", "127.255.255.254", "::1", "169.254.1.1", "169.254.169.254", "169.254.170.2", "fe80::1", "fe80::1%eth0",
		"fec0::1", "224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1", "240.0.0.1", "255.255.255.255", "100.100.100.200", "168.63.129.16",
		"192.0.0.192", "fd00:ec2::254", "fd20:ce::254",
		// The same, written in IPv6.
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0", "::ffff:224.0.0.1", "::ffff:168.63.129.16", "::127.0.0.1", "::169.254.169.254",
		"::ffff:0:127.0.0.1", "::ffff:0:169.254.169.254", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b::a9fe:a9fe",
		"64:ff9b:1::169.254.169.254", "64:ff9b:1:2:3:4:127.0.0.1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1",
		"2001:0:102:304:0:0:5601:5601", "fe80::5efe:169.254.169.254",
	}
	allowed := []string{
		"10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "8.8.8.8", "2001:db8::1", "2a00:1450::1", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::8.8.8.8",
		"2002:808:808::1", "169.253.0.1", "128.0.0.1",
	}
	for _, a := range refused {
		err := (Addresses{}).Check(netip.MustParseAddr(a))
		if _, ok := errors.AsType[*AddressError](err); !ok || !errors.Is(err, fleet.ErrUnavailable) {
			t.Errorf("%s: %v", a, err)
		}
		if strings.Contains(a, "%") {
			continue
		}
		if (Addresses{}).CheckHost("["+a+"]") == nil {
			t.Errorf("%s is good as the host of a URL", a)
		}
	}
	for _, a := range allowed {
		if err := (Addresses{}).Check(netip.MustParseAddr(a)); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
	if (Addresses{}).Check(netip.Addr{}) == nil {
		t.Error("no address is an address")
	}
	if err := (Addresses{}).CheckHost("api.example"); err != nil {
		t.Errorf("a name is nothing yet: %v", err)
	}

	// What an operator of the host opens is open, and metadata services never are.
	open := Addresses{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}
	for _, a := range []string{"127.0.0.1", "::ffff:127.0.0.1", "169.254.1.1", "::1", "fe80::1"} {
		if err := open.Check(netip.MustParseAddr(a)); err != nil {
			t.Errorf("opened, %s: %v", a, err)
		}
	}
	for _, a := range []string{"169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "fd00:ec2::254", "0.0.0.0", "224.0.0.1", "255.255.255.255"} {
		if open.Check(netip.MustParseAddr(a)) == nil {
			t.Errorf("opened, %s is open too", a)
		}
	}
	t.Logf("%d spellings refused, %d allowed", len(refused), len(allowed))
}

// decoy is a listener that counts who comes and keeps what they say.
type decoy struct {
	net.Listener
	came atomic.Int32
}

func newDecoy(t *testing.T, address string) *decoy {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip(err) // no IPv6 here
	}
	d := &decoy{Listener: ln}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d.came.Add(1)
			c.Close()
		}
	})
	t.Cleanup(func() { ln.Close(); all.Wait() })
	return d
}

// nameServer answers each question for addresses of IPv4 with the next address, the last one again and again.
func nameServer(t *testing.T, answers ...string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				a := netip.MustParseAddr(answers[0]).As4()
				if len(answers) > 1 {
					answers = answers[1:]
				}
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: &dnsmessage.AResource{A: a},
				}}
			}
			out, err := m.Pack()
			if err != nil {
				continue
			}
			_, _ = conn.WriteTo(out, from) // a resolver that is gone asks no more
		}
	})
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		all.Wait()
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func restricted(t *testing.T, server string, to Addresses) Cluster {
	t.Helper()
	c, err := Restricted("web", Access{Server: server, Authority: serverCA(t), Token: "canary-token"}, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.End)
	return c
}

// serverCA is the authority of every httptest server.
func serverCA(t *testing.T) []byte {
	t.Helper()
	ts := httptest.NewUnstartedServer(nil)
	ts.StartTLS()
	defer ts.Close()
	return pemOf(ts.Certificate().Raw)
}

// A name that leads to a good address when it is looked at, and to this host when it is connected to, leads nowhere:
// what counts is the address of each connection.
func TestRestricted_Rebinding(t *testing.T) {
	t.Parallel()
	d := newDecoy(t, "127.0.0.1:0")
	_, port, err := net.SplitHostPort(d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resolver := nameServer(t, "192.0.2.1", "127.0.0.1")
	if got, err := resolver.LookupNetIP(t.Context(), "ip4", "api.test."); err != nil || got[0].String() != "192.0.2.1" {
		t.Fatalf("the first look: %v %v", got, err)
	}
	c := restricted(t, "https://api.test:"+port, Addresses{Resolver: resolver})
	for range 3 {
		got := Try(t.Context(), c, "ns", fleet.Terms{})
		if got.Outcome != fleet.TestAddress {
			t.Errorf("%+v", got)
		}
	}
	if n := d.came.Load(); n != 0 {
		t.Errorf("%d connections reached the decoy", n)
	}
	// The same name and decoy are reached where loopback is open: otherwise this test would prove nothing.
	c = restricted(t, "https://api.test:"+port, Addresses{Resolver: resolver, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	Try(t.Context(), c, "ns", fleet.Terms{})
	if d.came.Load() == 0 {
		t.Error("the decoy is not reached with loopback open")
	}
}

// Every writing of this host that the system understands leads nowhere.
func TestRestricted_Spellings(t *testing.T) {
	t.Parallel()
	d := newDecoy(t, "127.0.0.1:0")
	_, port, err := net.SplitHostPort(d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{
		"127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0",
		"[::1]", "[::]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "[::127.0.0.1]",
	} {
		c, err := Restricted("web", Access{Server: "https://" + host + ":" + port, Authority: serverCA(t), Token: "canary-token"}, Addresses{})
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if got := Try(ctx, c, "ns", fleet.Terms{}); got.Outcome == fleet.TestOK {
			t.Errorf("%s: %+v", host, got)
		}
		cancel()
		c.End()
	}
	if n := d.came.Load(); n != 0 {
		t.Errorf("%d connections reached the decoy", n)
	}
}

var loopback = Addresses{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}

// What a server says that is no API server is repeated to nobody, whatever it says and however.
func TestRestricted_IsDiscreet(t *testing.T) {
	t.Parallel()
	const secret = "canary-of-the-inner-network"
	for name, answer := range map[string]http.HandlerFunc{
		"200":      func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(secret)) },
		"200 json": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"a":"` + secret + `"}`)) },
		"401":      func(w http.ResponseWriter, _ *http.Request) { http.Error(w, secret, http.StatusUnauthorized) },
		"403":      func(w http.ResponseWriter, _ *http.Request) { http.Error(w, secret, http.StatusForbidden) },
		"404":      func(w http.ResponseWriter, _ *http.Request) { http.Error(w, secret, http.StatusNotFound) },
		"500":      func(w http.ResponseWriter, _ *http.Request) { http.Error(w, secret, http.StatusInternalServerError) },
		"json error": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(500)
			_, _ = w.Write([]byte(`{"message":"` + secret + `"}`))
		},
		"warning": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Warning", `299 - "`+secret+`"`)
			w.WriteHeader(500)
		},
		"redirect": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://x/"+secret)
			w.WriteHeader(302)
		},
		"huge": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = w.Write([]byte(strings.Repeat(secret, 10_000)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ts := httptest.NewTLSServer(answer)
			t.Cleanup(ts.Close)
			c := restricted(t, ts.URL, loopback)
			got := Try(t.Context(), c, "ns", fleet.Terms{})
			if got.Outcome == fleet.TestOK || strings.Contains(got.Reason+got.Version+got.UID, secret) {
				t.Errorf("%+v", got)
			}
			_, err := UID(t.Context(), c.Ops)
			if err == nil || strings.Contains(err.Error(), secret) || strings.Contains(Reason(err), secret) {
				t.Errorf("%v", err)
			}
		})
	}
}

// The words of an API server itself pass: they are what helps a person.
func TestRestricted_StatusPasses(t *testing.T) {
	t.Parallel()
	ts := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"nodes is forbidden to eve"}`))
	}))
	t.Cleanup(ts.Close)
	_, err := UID(t.Context(), restricted(t, ts.URL, loopback).Ops)
	if !errors.Is(err, fleet.ErrForbidden) || Reason(err) != "nodes is forbidden to eve" {
		t.Errorf("%v: %s", err, Reason(err))
	}
}

// The token goes nowhere but to the server: not to where it redirects, not to a server whose certificate does not fit, and not in the clear.
func TestRestricted_TokenStays(t *testing.T) {
	t.Parallel()
	var leaked atomic.Int32
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		leaked.Add(1)
		t.Errorf("%s %s reached the other server with %q", r.Method, r.URL, r.Header.Get("Authorization"))
	}))
	t.Cleanup(elsewhere.Close)
	for _, code := range []int{301, 302, 303, 307, 308} {
		var reached atomic.Int32
		ts := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			reached.Add(1)
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, code)
		}))
		c := restricted(t, ts.URL, loopback)
		if got := Try(t.Context(), c, "ns", fleet.Terms{}); got.Outcome != fleet.TestRedirect {
			t.Errorf("%d: %+v", code, got)
		}
		if _, err := May(t.Context(), c.Ops, fleet.TestedRight{Verb: "watch", Resource: "nodes"}); err == nil { // a POST
			t.Errorf("%d: a POST was answered", code)
		}
		if reached.Load() == 0 {
			t.Error("nothing reached the server: this test proves nothing")
		}
		c.End()
		ts.Close()
	}
	// Another authority: the handshake fails before anything is said.
	stranger := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leaked.Add(1) }))
	stranger.TLS = &tls.Config{Certificates: []tls.Certificate{strangerCertificate(t)}}
	stranger.StartTLS()
	t.Cleanup(stranger.Close)
	if got := Try(t.Context(), restricted(t, stranger.URL, loopback), "ns", fleet.Terms{}); got.Outcome != fleet.TestUntrusted || got.Reason == "" {
		t.Errorf("%+v", got)
	}
	// An old protocol.
	old := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leaked.Add(1) }))
	old.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	old.StartTLS()
	t.Cleanup(old.Close)
	if got := Try(t.Context(), restricted(t, old.URL, loopback), "ns", fleet.Terms{}); got.Outcome != fleet.TestUnreachable {
		t.Errorf("TLS 1.1: %+v", got)
	}
	if leaked.Load() != 0 {
		t.Errorf("%d requests reached a server they must not reach", leaked.Load())
	}
	for _, server := range []string{"http://api.example", "https://", "https://u:p@api.example", ""} {
		if _, err := Restricted("x", Access{Server: server, Authority: []byte("x")}, Addresses{}); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%q: %v", server, err)
		}
	}
	if _, err := Restricted("x", Access{Server: "https://a"}, Addresses{}); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("without an authority: %v", err)
	}
}

// A proxy of the environment is none for these clusters. (It is one for those of the host's own files, which is what
// shows that this test finds the transport it is about.)
func TestRestricted_NoProxy(t *testing.T) {
	t.Parallel()
	below := func(c Cluster) *http.Transport {
		t.Helper()
		rt := c.transport
		for {
			switch x := rt.(type) {
			case *http.Transport:
				return x
			case utilnet.RoundTripperWrapper:
				rt = x.WrappedRoundTripper()
			default:
				t.Fatalf("no transport below %T", rt)
			}
		}
	}
	environment := reflect.ValueOf(http.ProxyFromEnvironment).Pointer()
	host, err := New("host", &rest.Config{Host: "https://api.example"})
	if err != nil {
		t.Fatal(err)
	}
	if reflect.ValueOf(below(host).Proxy).Pointer() != environment {
		t.Error("a cluster of the host's files does not go through its proxy")
	}
	web := below(restricted(t, "https://api.example", Addresses{}))
	if reflect.ValueOf(web.Proxy).Pointer() == environment {
		t.Error("a cluster added through the web goes through the proxy of the environment")
	}
	if u, err := web.Proxy(httptest.NewRequest(http.MethodGet, "https://api.example/", nil)); u != nil || err != nil {
		t.Errorf("%v %v", u, err)
	}
	if web.TLSClientConfig.MinVersion < tls.VersionTLS12 || web.TLSClientConfig.InsecureSkipVerify {
		t.Errorf("TLS from %x on, unverified %t", web.TLSClientConfig.MinVersion, web.TLSClientConfig.InsecureSkipVerify)
	}
}

// A name that is gone and a port where nobody listens are told apart from a server that refuses.
func TestTry_Unreachable(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if got := Try(t.Context(), restricted(t, "https://"+ln.Addr().String(), loopback), "ns", fleet.Terms{}); got.Outcome != fleet.TestUnreachable || got.Reason != "connection refused" {
		t.Errorf("%+v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if got := Try(ctx, restricted(t, "https://"+silent.Addr().String(), loopback), "ns", fleet.Terms{}); got.Outcome != fleet.TestTimeout {
		t.Errorf("%+v", got)
	}
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// strangerCertificate is good for this host, from an authority that nobody trusts.
func strangerCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stranger"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// An address of IPv4 that is refused is refused in every writing of IPv6, and one that is allowed is in those that are
// nothing but writings.
func FuzzAddresses(f *testing.F) {
	for _, a := range []string{"127.0.0.1", "169.254.169.254", "10.0.0.1", "8.8.8.8", "0.0.0.0", "255.255.255.255", "168.63.129.16", "224.0.0.1"} {
		v4 := netip.MustParseAddr(a).As4()
		f.Add(v4[:])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) != 4 {
			t.Skip()
		}
		v4 := netip.AddrFrom4([4]byte(raw))
		refused := (Addresses{}).Check(v4) != nil
		for _, prefix := range []string{"::ffff:0:0", "64:ff9b::", "64:ff9b:1::", "::ffff:0:0:0"} {
			b := netip.MustParseAddr(prefix).As16()
			copy(b[12:], raw)
			a := netip.AddrFrom16(b)
			if got := (Addresses{}).Check(a) != nil; got != refused {
				t.Errorf("%s is refused: %t, and %s: %t", v4, refused, a, got)
			}
		}
		b := netip.MustParseAddr("2002::1").As16()
		copy(b[2:], raw)
		if a := netip.AddrFrom16(b); refused && (Addresses{}).Check(a) == nil {
			t.Errorf("%s is refused, and %s is not", v4, a)
		}
		if everything := (Addresses{Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}); metadata[v4] && everything.Check(v4) == nil {
			t.Errorf("%s can be opened", v4)
		}
	})
}
