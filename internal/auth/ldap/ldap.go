// Package ldap asks a directory whose name and password somebody has. The connection is TLS or nothing; names are
// escaped; exactly one entry must fit; and the person is who binds, never who is found.
package ldap

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	dialLimit = 5 * time.Second
	callLimit = 5 * time.Second  // for one request
	allLimit  = 12 * time.Second // for all of a sign-in
	groupMost = 1000             // of one person
)

// Config says which directory, and how people and groups are found in it.
type Config struct {
	URL          string         // ldaps://host:port, or ldap://host:port, where StartTLS is demanded
	CAs          *x509.CertPool // nil: those of the system
	BindDN       string         // who searches; "" for nobody in particular
	BindPassword string
	UserBase     string
	UserFilter   string // with {{name}}
	IDAttribute  string // by which a person is known for ever
	GroupBase    string // "": the attribute memberOf of the person
	GroupFilter  string // with {{dn}} or {{name}}
	GroupName    string // attribute of a group; of memberOf, the value of its first part
	Roles        fleet.RoleMap
}

// Directory is one directory. It holds no connection between two sign-ins. Make it with New.
type Directory struct {
	cfg  Config
	host string
}

// New makes a Directory and connects to nothing.
func New(cfg Config) (*Directory, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Hostname() == "" || (u.Scheme != "ldaps" && u.Scheme != "ldap") {
		return nil, fmt.Errorf("the address of the directory is not of the form ldaps://host:port: %w", fleet.ErrInvalid)
	}
	if !strings.Contains(cfg.UserFilter, "{{name}}") {
		return nil, fmt.Errorf("the filter for people has no {{name}}: %w", fleet.ErrInvalid)
	}
	for _, filter := range []string{cfg.UserFilter, cfg.GroupFilter} {
		if _, err := ldap.CompileFilter(fill(filter, "x", "cn=x")); filter != "" && err != nil {
			return nil, fmt.Errorf("the filter %s: %w: %w", filter, fleet.ErrInvalid, err)
		}
	}
	return &Directory{cfg: cfg, host: u.Hostname()}, nil
}

// fill puts a name and an entry into a filter. What they hold means nothing to the directory but themselves.
func fill(filter, name, dn string) string {
	return strings.NewReplacer("{{name}}", ldap.EscapeFilter(name), "{{dn}}", ldap.EscapeFilter(dn)).Replace(filter)
}

// nobody is an entry that is nowhere: to bind as it costs what binding as a person costs.
const nobody = "cn=nobody-of-kube-node-manager"

// Check answers whose name and password these are: ErrUnauthenticated for nobody's, with one search and one bind
// whatever the cause; ErrUnavailable if the directory cannot be asked. With pretend it finds nobody and sends the
// password nowhere.
func (d *Directory) Check(ctx context.Context, name, password string, pretend bool) (_ fleet.Vouched, err error) {
	ctx, cancel := context.WithTimeout(ctx, allLimit)
	defer cancel()
	conn, err := d.dial(ctx)
	if err != nil {
		return fleet.Vouched{}, unavailable("connecting to the directory", err)
	}
	// The library's calls take no context: what ends them is the end of the connection.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		stop()
		_ = conn.Close() // the answer is there, and closing twice is no error
	}()
	if err := d.bind(conn); err != nil {
		return fleet.Vouched{}, unavailable("signing in to the directory to search", err)
	}
	if !nameable(name) {
		name, pretend = "nobody", true
	}
	attributes := []string{d.cfg.IDAttribute}
	if d.cfg.GroupBase == "" {
		attributes = append(attributes, "memberOf")
	}
	// Two would be enough to know that there is not exactly one.
	found, err := d.search(conn, d.cfg.UserBase, fill(d.cfg.UserFilter, name, ""), attributes, 2)
	if err != nil {
		return fleet.Vouched{}, unavailable("searching a person", err)
	}
	dn, id := nobody, ""
	if len(found) == 1 {
		id = identifier(found[0], d.cfg.IDAttribute)
	}
	// To bind without a password succeeds, as nobody: what is empty is never sent.
	good := !pretend && id != "" && password != ""
	if good {
		dn = found[0].DN
	} else {
		password = rand.Text()
	}
	if err := conn.Bind(dn, password); err != nil || !good {
		if err != nil && !refused(err) {
			return fleet.Vouched{}, unavailable("checking a password", err)
		}
		return fleet.Vouched{}, fmt.Errorf("checking a password: %w", fleet.ErrUnauthenticated)
	}
	groups, err := d.groups(conn, found[0], name)
	if err != nil {
		return fleet.Vouched{}, unavailable("searching groups", err)
	}
	who := fleet.Identity{Kind: fleet.PersonLDAP, Issuer: d.cfg.URL, Subject: id}
	return d.cfg.Roles.Vouch(who, name, groups), nil
}

// unavailable keeps the cause for the log. It never answers ErrUnauthenticated: a directory that refuses us says nothing
// of the person.
func unavailable(doing string, err error) error {
	return fmt.Errorf("%s: %w: %w", doing, fleet.ErrUnavailable, err)
}

// refused tells whether the directory took the question and said no to the person.
func refused(err error) bool {
	return ldap.IsErrorAnyOf(err, ldap.LDAPResultInvalidCredentials, ldap.LDAPResultNoSuchObject, ldap.LDAPResultInvalidDNSyntax,
		ldap.LDAPResultInsufficientAccessRights, ldap.LDAPResultUnwillingToPerform, ldap.LDAPResultConstraintViolation,
		ldap.LDAPResultInappropriateAuthentication)
}

// nameable tells whether a name may be asked for at all.
func nameable(name string) bool {
	return name != "" && len(name) <= 256 && utf8.ValidString(name) && !strings.ContainsFunc(name, unicode.IsControl)
}

func (d *Directory) dial(ctx context.Context) (*ldap.Conn, error) {
	secure := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: d.cfg.CAs, ServerName: d.host}
	conn, err := ldap.DialURL(d.cfg.URL, ldap.DialWithDialer(&net.Dialer{Timeout: dialLimit, Deadline: deadline(ctx)}), ldap.DialWithTLSConfig(secure))
	if err != nil {
		return nil, err
	}
	conn.SetTimeout(callLimit)
	if strings.HasPrefix(d.cfg.URL, "ldap://") {
		// Before anything else is said. A directory that cannot is not talked to.
		if err := conn.StartTLS(secure); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	if _, ok := conn.TLSConnectionState(); !ok {
		return nil, errors.Join(errors.New("the connection is not encrypted"), conn.Close())
	}
	return conn, nil
}

func deadline(ctx context.Context) time.Time {
	t, _ := ctx.Deadline()
	return t
}

// bind is who searches.
func (d *Directory) bind(conn *ldap.Conn) error {
	if d.cfg.BindDN == "" {
		return conn.UnauthenticatedBind("")
	}
	return conn.Bind(d.cfg.BindDN, d.cfg.BindPassword)
}

func (d *Directory) search(conn *ldap.Conn, base, filter string, attributes []string, most int) ([]*ldap.Entry, error) {
	res, err := conn.Search(ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, most,
		int(callLimit/time.Second), false, filter, attributes, nil))
	if ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) && res != nil {
		return res.Entries, nil // there are more than we wanted to know of
	}
	if ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
		return nil, nil // nothing below the base, or no base
	}
	if err != nil {
		return nil, err
	}
	return res.Entries, nil
}

// identifier is what an entry is known by for ever; in hexadecimal where it is no text.
func identifier(e *ldap.Entry, attribute string) string {
	values := e.GetRawAttributeValues(attribute)
	if len(values) != 1 || len(values[0]) == 0 {
		return ""
	}
	if id := string(values[0]); utf8.ValidString(id) && !strings.ContainsFunc(id, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return id
	}
	return hex.EncodeToString(values[0])
}

// groups are the names of a person's groups. Who searches asks for them: what the person may see must not matter.
func (d *Directory) groups(conn *ldap.Conn, person *ldap.Entry, name string) ([]string, error) {
	if d.cfg.GroupBase == "" {
		var out []string
		for _, v := range person.GetAttributeValues("memberOf") {
			out = append(out, v) // --ldap-role-map may name the whole entry
			if dn, err := ldap.ParseDN(v); err == nil && len(dn.RDNs) > 0 && len(dn.RDNs[0].Attributes) > 0 {
				out = append(out, dn.RDNs[0].Attributes[0].Value)
			}
		}
		return out, nil
	}
	if err := d.bind(conn); err != nil {
		return nil, err
	}
	found, err := d.search(conn, d.cfg.GroupBase, fill(d.cfg.GroupFilter, name, person.DN), []string{d.cfg.GroupName}, groupMost)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, g := range found {
		out = append(append(out, g.DN), g.GetAttributeValues(d.cfg.GroupName)...)
	}
	return out, nil
}
