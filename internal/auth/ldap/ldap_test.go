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

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.url = "ldap://" + ln.Addr().String()
	if mode == "ldaps" {
		d.url = "ldaps://" + ln.Addr().String()
		ln = tls.NewListener(ln, d.tls)
	}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			open.Go(func() { d.talk(conn, mode == "starttls") })
		}
	})
	t.Cleanup(func() {
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		open.Wait()
	})
	return d
}

// talk answers one client until it goes away.
func (d *directory) talk(conn net.Conn, canTLS bool) {
	defer func() { _ = conn.Close() }() // the client may have done so already
	for {
		p, err := ber.ReadPacket(conn)
		if err != nil || len(p.Children) < 2 {
			return
		}
		id, op := p.Children[0].Value.(int64), p.Children[1]
		switch op.Tag {
		case ldap.ApplicationBindRequest:
			code := d.bind(op.Children[1].Value.(string), op.Children[2].Data.String())
			err = send(conn, id, ldap.ApplicationBindResponse, result(code)...)
		case ldap.ApplicationSearchRequest:
			err = d.search(conn, id, op)
		case ldap.ApplicationExtendedRequest:
			if !canTLS || op.Children[0].Data.String() != "1.3.6.1.4.1.1466.20037" {
				err = send(conn, id, ldap.ApplicationExtendedResponse, result(ldap.LDAPResultProtocolError)...)
				break
			}
			err = send(conn, id, ldap.ApplicationExtendedResponse, result(ldap.LDAPResultSuccess)...)
			conn = tls.Server(conn, d.tls)
		default:
			return
		}
		if err != nil {
			return
		}
	}
}

func text(s string) *ber.Packet {
	return ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, s, "")
}

func result(code uint16) []*ber.Packet {
	return []*ber.Packet{ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, int64(code), ""), text(""), text("")}
}

func group(class ber.Class, tag ber.Tag, children ...*ber.Packet) *ber.Packet {
	p := ber.Encode(class, ber.TypeConstructed, tag, nil, "")
	for _, c := range children {
		p.AppendChild(c)
	}
	return p
}

func send(conn net.Conn, id int64, tag ber.Tag, children ...*ber.Packet) error {
	_, err := conn.Write(group(ber.ClassUniversal, ber.TagSequence,
		ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""), group(ber.ClassApplication, tag, children...)).Bytes())
	return err
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
func (d *directory) bind(dn, password string) uint16 {
	d.note("bind %s with %s", dn, password)
	if d.hang != nil && dn != "cn=us,dc=x" {
		d.hung <- struct{}{}
		<-d.hang
	}
	if password == "" {
		return ldap.LDAPResultSuccess
	}
	for _, e := range d.all {
		if strings.EqualFold(e.dn, dn) && e.password == password {
			return ldap.LDAPResultSuccess
		}
	}
	return ldap.LDAPResultInvalidCredentials
}

// search knows equality and presence, which an unescaped star would be.
func (d *directory) search(conn net.Conn, id int64, op *ber.Packet) error {
	base, most := op.Children[0].Value.(string), op.Children[3].Value.(int64)
	filter, err := ldap.DecompileFilter(op.Children[6])
	if err != nil {
		return send(conn, id, ldap.ApplicationSearchResultDone, result(ldap.LDAPResultProtocolError)...)
	}
	d.note("search %s", filter)
	sent := int64(0)
	for _, e := range d.all {
		if !strings.HasSuffix(e.dn, base) || !fits(e, filter) {
			continue
		}
		if most > 0 && sent == most {
			return send(conn, id, ldap.ApplicationSearchResultDone, result(ldap.LDAPResultSizeLimitExceeded)...)
		}
		sent++
		attributes := group(ber.ClassUniversal, ber.TagSequence)
		for name, values := range e.attributes {
			set := group(ber.ClassUniversal, ber.TagSet)
			for _, v := range values {
				set.AppendChild(text(v))
			}
			attributes.AppendChild(group(ber.ClassUniversal, ber.TagSequence, text(name), set))
		}
		if err := send(conn, id, ldap.ApplicationSearchResultEntry, text(e.dn), attributes); err != nil {
			return err
		}
	}
	return send(conn, id, ldap.ApplicationSearchResultDone, result(ldap.LDAPResultSuccess)...)
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
		Roles: fleet.RoleMap{"sre": {{Role: fleet.RoleOperator}}, "cn=staff,ou=groups,dc=x": {{Role: fleet.RoleViewer}}, "root": {{Role: fleet.RoleAdmin}}},
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
					if !errors.Is(err, fleet.ErrUnauthenticated) || errors.Is(err, fleet.ErrUnavailable) || !cmp.Equal(got, fleet.Vouched{}) {
						t.Errorf("%s: %+v, %v", tt.what, got, err)
					}
					// The same calls whatever the cause, and never a bind without a password.
					if len(asked) != 3 || !strings.HasPrefix(asked[1], "search ") || !strings.HasPrefix(asked[2], "bind ") || strings.HasSuffix(asked[2], "with ") {
						t.Errorf("%s: asked %q", tt.what, asked)
					}
					continue
				}
				want := fleet.Vouched{Identity: fleet.Identity{Kind: fleet.PersonLDAP, Issuer: d.url, Subject: tt.id}, Name: tt.name, Role: tt.role}
				// Which groups these are the role shows.
				if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(fleet.Vouched{}, "Groups")); diff != "" || err != nil {
					t.Errorf("%s: %v %s", tt.what, err, diff)
				}
				if len(got.Groups) == 0 && tt.role != "" {
					t.Errorf("%s: no groups", tt.what)
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
