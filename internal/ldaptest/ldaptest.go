// Package ldaptest gives tests a real directory: OpenLDAP's slapd with an organisation in it, over LDAPS and over LDAP with
// StartTLS, on ports of its own. It refuses every bind that is not encrypted, lets nobody but Searcher search, and takes an
// empty password for nobody in particular, as directories do by default. A machine without slapd fails the test:
// deploy/install-slapd.sh installs it.
package ldaptest

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/kube-node-manager/kube-node-manager/internal/faultproxy"
)

// binEnv names slapd where it is somewhere unusual.
const binEnv = "KNM_TEST_SLAPD"

const missing = `the tests of directories need OpenLDAP's server, which is not here: make slapd installs it where it can
(Debian, Ubuntu: apt-get install slapd · Fedora: dnf install openldap-servers · macOS: brew install openldap).
If it lives somewhere unusual, name it: KNM_TEST_SLAPD=/path/to/slapd`

// startLimit is what the server is given to start or to stop on a busy machine.
const startLimit = time.Minute

// The organisation.
const (
	Base     = "dc=example,dc=org"
	People   = "ou=people," + Base
	Groups   = "ou=groups," + Base
	Searcher = "cn=searcher," + Base // who may search
)

// admin may do everything; tests have no business with it.
const admin = "cn=admin," + Base

// Directory is a server that runs until the test ends.
type Directory struct {
	StartTLS, LDAPS string // addresses
	CAFile          string
	CAs             *x509.CertPool
	Password        string // of Searcher

	tb       testing.TB
	bin, dir string
	cmd      *exec.Cmd
	gone     chan error
}

// Start runs a directory with these entries in it, in order, beside Base, People, Groups and Searcher. The server itself
// notes at each person which groups they are in.
func Start(tb testing.TB, entries ...Entry) *Directory {
	tb.Helper()
	bin, err := binary()
	if err != nil {
		tb.Fatal(err)
	}
	d := &Directory{tb: tb, bin: bin, dir: tb.TempDir(), Password: rand.Text()}
	tb.Cleanup(func() { d.end(syscall.SIGTERM) })
	rootPassword := rand.Text()
	if err := errors.Join(d.certificate(), d.configure(rootPassword)); err != nil {
		tb.Fatal(err)
	}
	d.Restart()
	all := append([]Entry{
		{Base, Is{"objectClass": {"dcObject", "organization"}, "o": {"Example"}}},
		{People, Is{"objectClass": {"organizationalUnit"}}},
		{Groups, Is{"objectClass": {"organizationalUnit"}}},
		{Searcher, Is{"objectClass": {"organizationalRole", "simpleSecurityObject"}, "userPassword": {d.Password}}},
	}, entries...)
	if err := d.add(rootPassword, all); err != nil {
		tb.Fatalf("filling the directory: %v\n%s", err, d.words())
	}
	return d
}

// Entry is one entry of a directory.
type Entry struct {
	DN string
	Is Is
}

// Is are the attributes of an entry.
type Is map[string][]string

// Person is an entry with a password; uid may have several values.
func Person(dn, cn, password string, uid ...string) Entry {
	is := Is{"objectClass": {"inetOrgPerson"}, "cn": {cn}, "sn": {cn}, "uid": uid}
	if password != "" {
		is["userPassword"] = []string{password}
	}
	return Entry{dn, is}
}

// Group is a group of some entries.
func Group(cn string, members ...string) Entry {
	return Entry{"cn=" + cn + "," + Groups, Is{"objectClass": {"groupOfNames"}, "member": members}}
}

func binary() (string, error) {
	if path := os.Getenv(binEnv); path != "" {
		return path, nil
	}
	for _, name := range []string{"slapd", "/usr/sbin/slapd", "/usr/local/libexec/slapd", "/opt/homebrew/opt/openldap/libexec/slapd"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New(missing)
}

// schema is the directory of the schemas.
func schema() (string, error) {
	for _, dir := range []string{"/etc/ldap/schema", "/etc/openldap/schema", "/opt/homebrew/etc/openldap/schema"} {
		if _, err := os.Stat(filepath.Join(dir, "inetorgperson.schema")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("slapd is here, and its schemas are not")
}

func (d *Directory) configure(rootPassword string) error {
	schemas, err := schema()
	if err != nil {
		return err
	}
	var modules string
	if _, err := os.Stat("/usr/lib/ldap/back_mdb.so"); err == nil { // Debian has them apart
		modules = "modulepath /usr/lib/ldap\nmoduleload back_mdb\nmoduleload memberof\n"
	}
	data := filepath.Join(d.dir, "data")
	return errors.Join(os.Mkdir(data, 0o700), os.WriteFile(filepath.Join(d.dir, "slapd.conf"), fmt.Appendf(nil, `
include %[1]s/core.schema
include %[1]s/cosine.schema
include %[1]s/inetorgperson.schema
%[2]sTLSCertificateFile %[3]s/cert.pem
TLSCertificateKeyFile %[3]s/key.pem
TLSCACertificateFile %[3]s/cert.pem
TLSVerifyClient never
security simple_bind=128
allow bind_anon_cred bind_anon_dn
database mdb
suffix "%[4]s"
rootdn "%[5]s"
rootpw %[6]s
directory %[7]s
dbnosync
overlay memberof
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="%[8]s" read by * none
`, schemas, modules, d.dir, Base, admin, rootPassword, data, Searcher), 0o600))
}

func (d *Directory) certificate() error {
	text, key, err := faultproxy.SelfSigned("directory of the tests")
	if err != nil {
		return err
	}
	d.CAFile, d.CAs = filepath.Join(d.dir, "cert.pem"), x509.NewCertPool()
	d.CAs.AppendCertsFromPEM(text)
	return errors.Join(os.WriteFile(d.CAFile, text, 0o600),
		os.WriteFile(filepath.Join(d.dir, "key.pem"), key, 0o600))
}

// Restart starts the server, again on the same ports, and returns when it answers.
func (d *Directory) Restart() {
	d.tb.Helper()
	if d.LDAPS == "" {
		var ports [2]string
		for i := range ports {
			l, err := (&net.ListenConfig{}).Listen(d.tb.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				d.tb.Fatal(err)
			}
			defer l.Close()
			ports[i] = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
			if err := l.Close(); err != nil {
				d.tb.Fatal(err)
			}
		}
		d.StartTLS, d.LDAPS = "ldap://127.0.0.1:"+ports[0], "ldaps://127.0.0.1:"+ports[1]
	}
	log, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.tb.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the server has its own
	// With a level of debugging it stays in the foreground.
	c := exec.Command(d.bin, "-d", "stats", "-h", d.StartTLS+"/ "+d.LDAPS+"/", "-f", filepath.Join(d.dir, "slapd.conf")) //nolint:noctx // it lives until it is stopped
	c.SysProcAttr, c.Dir, c.Stdout, c.Stderr = attributes(), d.dir, log, log
	if err := c.Start(); err != nil {
		d.tb.Fatal(err)
	}
	gone := make(chan error, 1)
	d.cmd, d.gone = c, gone
	go func() { gone <- c.Wait() }()
	limit := time.After(startLimit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := d.dial()
		if err == nil {
			if err := conn.Close(); err != nil {
				d.tb.Fatal(err)
			}
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			d.tb.Fatalf("slapd does not answer: %v\n%s", err, d.words())
		case end := <-gone:
			d.cmd = nil
			d.tb.Fatalf("slapd ended: %v\n%s", end, d.words())
		}
	}
}

func (d *Directory) dial() (*ldap.Conn, error) {
	conn, err := ldap.DialURL(d.LDAPS, ldap.DialWithDialer(&net.Dialer{Timeout: startLimit}),
		ldap.DialWithTLSConfig(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: d.CAs}))
	if err == nil {
		conn.SetTimeout(startLimit)
	}
	return conn, err
}

func (d *Directory) add(rootPassword string, entries []Entry) (err error) {
	conn, err := d.dial()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.Bind(admin, rootPassword); err != nil {
		return err
	}
	for _, e := range entries {
		req := ldap.NewAddRequest(e.DN, nil)
		for name, values := range e.Is {
			req.Attribute(name, values)
		}
		if err := conn.Add(req); err != nil {
			return fmt.Errorf("%s: %w", e.DN, err)
		}
	}
	return nil
}

// Log is what the server said of connections and what was asked on them; no password is in it.
func (d *Directory) Log() string {
	d.tb.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, "log"))
	if err != nil {
		d.tb.Fatal(err)
	}
	return string(b)
}

func (d *Directory) words() string {
	b, err := os.ReadFile(filepath.Join(d.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-3000):])
}

// Freeze stops the server in the middle of whatever it does; its sockets stay open.
func (d *Directory) Freeze() {
	d.tb.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		d.tb.Fatal(err)
	}
}

// Kill is kill -9.
func (d *Directory) Kill() {
	d.tb.Helper()
	d.end(syscall.SIGKILL)
}

func (d *Directory) end(sig syscall.Signal) {
	d.tb.Helper()
	if d.cmd == nil {
		return
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.tb.Errorf("%v: %v", sig, err)
	}
	select {
	case end := <-d.gone:
		if sig == syscall.SIGTERM && end != nil {
			d.tb.Errorf("slapd did not end well: %v\n%s", end, d.words())
		}
	case <-time.After(startLimit):
		d.tb.Errorf("slapd does not end: %v, %v", d.cmd.Process.Kill(), <-d.gone)
	}
	d.cmd = nil
}
