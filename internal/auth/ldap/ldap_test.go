package ldap

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/jimlambrt/gldap"
	"go.uber.org/goleak"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// entry is one of the directory.
type entry struct {
	dn, password string
	attributes   map[string][]string
}

// directory is a server that speaks LDAP, over TLS or with StartTLS, and notes what it is asked.
type directory struct {
	url  string
	cas  *x509.CertPool
	tls  *tls.Config
	mu   sync.Mutex // guards what follows
	all  []entry
	log  []string
	hang chan struct{} // if not nil, binds of people say so in hung and wait for it
	hung chan struct{}
}

func people() []entry {
	return []entry{
		{"cn=us,dc=x", "our password", nil},
		{"uid=ada,ou=people,dc=x", "correct horse", map[string][]string{
			"uid": {"ada", "countess"}, "entryUUID": {"u-1"}, "memberOf": {"cn=sre,ou=groups,dc=x", "cn=staff,ou=groups,dc=x"},
		}},
		{"uid=bob,ou=people,dc=x", "bobs password", map[string][]string{"uid": {"bob"}, "entryUUID": {"u-2"}}},
		{"uid=twin,ou=a,dc=x", "twins password", map[string][]string{"uid": {"twin"}, "entryUUID": {"u-3"}}},
		{"uid=twin,ou=b,dc=x", "twins password", map[string][]string{"uid": {"twin"}, "entryUUID": {"u-4"}}},
		{"uid=ghost,ou=people,dc=x", "ghosts password", map[string][]string{"uid": {"ghost"}}},
		{"uid=raw,ou=people,dc=x", "raws password", map[string][]string{"uid": {"raw"}, "entryUUID": {"\x00\xff\x01"}}},
		{"cn=sre,ou=groups,dc=x", "", map[string][]string{"cn": {"sre"}, "member": {"uid=ada,ou=people,dc=x"}}},
		{"cn=root,ou=groups,dc=x", "", map[string][]string{"cn": {"root"}, "member": {"uid=raw,ou=people,dc=x"}}},
	}
}

// serve runs a directory until the test ends. Mode is "ldaps", "starttls" or "plain".
func serve(t *testing.T, mode string) *directory {
	t.Helper()
	d := &directory{all: people()}
	d.tls, d.cas = certificate(t)
	s, err := gldap.NewServer(gldap.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		t.Fatal(err)
	}
	mux, err := gldap.NewMux()
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(mux.Bind(d.bind), mux.Search(d.search), mux.Unbind(func(*gldap.ResponseWriter, *gldap.Request) {}))
	if mode == "starttls" {
		err = errors.Join(err, mux.ExtendedOperation(func(w *gldap.ResponseWriter, r *gldap.Request) {
			resp := r.NewExtendedResponse(gldap.WithResponseCode(gldap.ResultSuccess))
			resp.SetResponseName(gldap.ExtendedOperationStartTLS)
			if err := w.Write(resp); err == nil {
				_ = r.StartTLS(d.tls) // a client that goes away meanwhile is one of the cases
			}
		}, gldap.ExtendedOperationStartTLS))
	}
	if err = errors.Join(err, s.Router(mux)); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil { // the server wants to listen itself
		t.Fatal(err)
	}
	var opts []gldap.Option
	d.url = "ldap://" + addr
	if mode == "ldaps" {
		opts, d.url = append(opts, gldap.WithTLSConfig(d.tls)), "ldaps://"+addr
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(addr, opts...) }()
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); !s.Ready(); {
		if time.Now().After(deadline) {
			t.Fatal("the directory does not start")
		}
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err == nil {
			_ = c.Close()
		}
	}
	return d
}

func certificate(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "directory"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
}

func (d *directory) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, fmt.Sprintf(format, args...))
}

// asked takes what the directory was asked since.
func (d *directory) asked() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.log
	d.log = nil
	return out
}

// bind does what directories do with an empty password: it succeeds, as nobody.
func (d *directory) bind(w *gldap.ResponseWriter, r *gldap.Request) {
	resp := r.NewBindResponse(gldap.WithResponseCode(gldap.ResultInvalidCredentials))
	defer func() { _ = w.Write(resp) }()
	m, err := r.GetSimpleBindMessage()
	if err != nil {
		return
	}
	d.note("bind %s with %s", m.UserName, m.Password)
	if d.hang != nil && m.UserName != "cn=us,dc=x" {
		d.hung <- struct{}{}
		<-d.hang
	}
	if m.Password == "" {
		resp.SetResultCode(gldap.ResultSuccess)
	}
	for _, e := range d.all {
		if strings.EqualFold(e.dn, m.UserName) && e.password != "" && e.password == string(m.Password) {
			resp.SetResultCode(gldap.ResultSuccess)
		}
	}
}

// search knows equality and presence, which an unescaped star would be.
func (d *directory) search(w *gldap.ResponseWriter, r *gldap.Request) {
	done := r.NewSearchDoneResponse(gldap.WithResponseCode(gldap.ResultSuccess))
	defer func() { _ = w.Write(done) }()
	m, err := r.GetSearchMessage()
	if err != nil {
		done.SetResultCode(gldap.ResultProtocolError)
		return
	}
	d.note("search %s", m.Filter)
	sent := int64(0)
	for _, e := range d.all {
		if !strings.HasSuffix(e.dn, m.BaseDN) || !fits(e, m.Filter) {
			continue
		}
		if m.SizeLimit > 0 && sent == m.SizeLimit {
			done.SetResultCode(gldap.ResultSizeLimitExceeded)
			return
		}
		sent++
		resp := r.NewSearchResponseEntry(e.dn)
		for k, v := range e.attributes {
			resp.AddAttribute(k, v)
		}
		if err := w.Write(resp); err != nil {
			return
		}
	}
}

func fits(e entry, filter string) bool {
	name, value, ok := strings.Cut(strings.Trim(filter, "()"), "=")
	if !ok {
		return false
	}
	return slices.ContainsFunc(e.attributes[name], func(have string) bool {
		return value == "*" || strings.EqualFold(ldap.EscapeFilter(have), value)
	})
}

func (d *directory) config() Config {
	return Config{
		URL: d.url, CAs: d.cas, BindDN: "cn=us,dc=x", BindPassword: "our password", UserBase: "dc=x", UserFilter: "(uid={{name}})",
		IDAttribute: "entryUUID", GroupFilter: "(member={{dn}})", GroupName: "cn",
		Roles: map[string]fleet.Role{"sre": fleet.RoleOperator, "cn=staff,ou=groups,dc=x": fleet.RoleViewer, "root": fleet.RoleAdmin},
	}
}

func opened(t *testing.T, cfg Config) *Directory {
	t.Helper()
	x, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"ldaps", "starttls"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			d := serve(t, mode)
			byAttribute := opened(t, d.config())
			cfg := d.config()
			cfg.GroupBase = "ou=groups,dc=x"
			bySearch := opened(t, cfg)
			for _, tt := range []struct {
				what, name, password string
				x                    *Directory
				id                   string // "" for nobody
				role                 fleet.Role
			}{
				{"right", "ada", "correct horse", byAttribute, "u-1", fleet.RoleOperator},
				{"right, groups by search", "ada", "correct horse", bySearch, "u-1", fleet.RoleOperator},
				{"an alias is the same person", "countess", "correct horse", byAttribute, "u-1", fleet.RoleOperator},
				{"no group", "bob", "bobs password", byAttribute, "u-2", ""},
				{"no group by search", "bob", "bobs password", bySearch, "u-2", ""},
				{"an id that is no text", "raw", "raws password", bySearch, "00ff01", fleet.RoleAdmin},
				{"wrong password", "ada", "correct house", byAttribute, "", ""},
				{"empty password", "ada", "", byAttribute, "", ""},
				{"unknown", "eve", "correct horse", byAttribute, "", ""},
				{"two of that name", "twin", "twins password", byAttribute, "", ""},
				{"nothing to be known by", "ghost", "ghosts password", byAttribute, "", ""},
				{"a star", "*", "correct horse", byAttribute, "", ""},
				{"part of a name", "ad*", "correct horse", byAttribute, "", ""},
				{"a filter", "x)(|(uid=ada)", "correct horse", byAttribute, "", ""},
				{"a filter that closes", "ada)", "correct horse", byAttribute, "", ""},
				{"a zero", "ada\x00", "correct horse", byAttribute, "", ""},
				{"no name", "", "correct horse", byAttribute, "", ""},
				{"an entry", "uid=ada,ou=people,dc=x", "correct horse", byAttribute, "", ""},
			} {
				d.asked()
				got, err := tt.x.Check(t.Context(), tt.name, tt.password, false)
				asked := d.asked()
				if tt.id == "" {
					if !errors.Is(err, fleet.ErrUnauthenticated) || errors.Is(err, fleet.ErrUnavailable) || got != (fleet.Vouched{}) {
						t.Errorf("%s: %+v, %v", tt.what, got, err)
					}
					// The same calls whatever the cause, and never a bind without a password.
					if len(asked) != 3 || !strings.HasPrefix(asked[1], "search ") || !strings.HasPrefix(asked[2], "bind ") || strings.HasSuffix(asked[2], "with ") {
						t.Errorf("%s: asked %q", tt.what, asked)
					}
					continue
				}
				want := fleet.Vouched{Identity: fleet.Identity{Kind: fleet.PersonLDAP, Issuer: d.url, Subject: tt.id}, Name: tt.name, Role: tt.role}
				if diff := cmp.Diff(want, got); diff != "" || err != nil {
					t.Errorf("%s: %v %s", tt.what, err, diff)
				}
			}
			d.asked()
			if _, err := byAttribute.Check(t.Context(), "ada", "correct horse", true); !errors.Is(err, fleet.ErrUnauthenticated) {
				t.Errorf("pretending: %v", err)
			}
			if asked := d.asked(); len(asked) != 3 || strings.Contains(asked[2], "correct horse") || strings.Contains(asked[2], "uid=ada") {
				t.Errorf("pretending asked %q", asked)
			}
		})
	}
}

// TestCheck_NoTLSNoTalk: what cannot be encrypted, or is not who it should be, hears no password, not even ours.
func TestCheck_NoTLSNoTalk(t *testing.T) {
	t.Parallel()
	plain, good := serve(t, "plain"), serve(t, "ldaps")
	_, others := certificate(t)
	untrusted := good.config()
	untrusted.CAs = others
	elsewhere := good.config()
	elsewhere.URL = strings.Replace(good.url, "127.0.0.1", "localhost", 1)
	for what, x := range map[string]*Directory{
		"no StartTLS": opened(t, plain.config()), "another's certificate": opened(t, untrusted), "another name": opened(t, elsewhere),
	} {
		if _, err := x.Check(t.Context(), "ada", "correct horse", false); !errors.Is(err, fleet.ErrUnavailable) || errors.Is(err, fleet.ErrUnauthenticated) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if asked := slices.Concat(plain.asked(), good.asked()); len(asked) != 0 {
		t.Errorf("asked %q", asked)
	}
}

// TestCheck_Unavailable: that we are refused, or that nobody answers, is not the person's fault.
func TestCheck_Unavailable(t *testing.T) {
	t.Parallel()
	d := serve(t, "ldaps")
	wrong := d.config()
	wrong.BindPassword = "old password"
	closed := d.config()
	closed.URL = "ldaps://127.0.0.1:1"
	for what, cfg := range map[string]Config{"our password is wrong": wrong, "nobody listens": closed} {
		if _, err := opened(t, cfg).Check(t.Context(), "ada", "correct horse", false); !errors.Is(err, fleet.ErrUnavailable) || errors.Is(err, fleet.ErrUnauthenticated) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A directory that says nothing holds nobody longer than they want to wait.
	d.hang, d.hung = make(chan struct{}), make(chan struct{}, 1)
	defer close(d.hang)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := opened(t, d.config()).Check(ctx, "ada", "correct horse", false)
		result <- err
	}()
	<-d.hung
	cancel()
	if err := <-result; !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("gave up: %v", err)
	}
}

func TestNew_Refuses(t *testing.T) {
	t.Parallel()
	good := Config{URL: "ldaps://x", UserFilter: "(uid={{name}})"}
	for what, change := range map[string]func(*Config){
		"http": func(c *Config) { c.URL = "https://x" }, "no host": func(c *Config) { c.URL = "ldaps://" },
		"no name": func(c *Config) { c.UserFilter = "(uid=x)" }, "no filter": func(c *Config) { c.UserFilter = "(uid={{name}}" },
		"bad groups": func(c *Config) { c.GroupFilter = "member={{dn}})" },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}
