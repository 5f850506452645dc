package ldap

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/ldaptest"
)

const pw = "correct horse battery"

// organisation is what real directories have in them: several names for one person, one name for several, an alias, names
// that mean something in a filter or in a DN, somebody without a password, and somebody in no group.
func organisation() []ldaptest.Entry {
	const (
		ada    = "uid=ada," + ldaptest.People
		comma  = `cn=Lovelace\2C Ada (x*)\5C,` + ldaptest.People
		zoe    = "uid=zoe," + ldaptest.People
		nested = "ou=abroad," + ldaptest.People
	)
	return []ldaptest.Entry{
		ldaptest.Person(ada, "Ada Lovelace", pw, "ada", "countess"),
		ldaptest.Person("uid=bob,"+ldaptest.People, "Bob", "bobs password", "bob"),
		ldaptest.Person(comma, `Lovelace, Ada (x*)\`, "commas password", "comma"),
		ldaptest.Person(zoe, "Zoë 王", "zoes password", "zoe"),
		ldaptest.Person("uid=nopassword,"+ldaptest.People, "No Password", "", "nopassword"),
		{DN: nested, Is: ldaptest.Is{"objectClass": {"organizationalUnit"}}},
		ldaptest.Person("uid=twin,"+ldaptest.People, "Sam Twin", "twins password", "twin"),
		ldaptest.Person("uid=twin2,"+nested, "Sam Twin", "twins password", "twin2"),
		{DN: "uid=shadow," + ldaptest.People, Is: ldaptest.Is{"objectClass": {"alias", "extensibleObject"}, "uid": {"shadow"}, "aliasedObjectName": {ada}}},
		ldaptest.Person("uid=outsider,"+ldaptest.Base, "Outsider", pw, "outsider"),
		{DN: "uid=door," + ldaptest.People, Is: ldaptest.Is{"objectClass": {"alias", "extensibleObject"}, "uid": {"door"}, "aliasedObjectName": {"uid=outsider," + ldaptest.Base}}},
		ldaptest.Group("sre", ada, comma),
		ldaptest.Group("staff", ada, zoe, "uid=twin,"+ldaptest.People),
	}
}

func realConfig(d *ldaptest.Directory, url string) Config {
	return Config{
		URL: url, CAs: d.CAs, BindDN: ldaptest.Searcher, BindPassword: d.Password, UserBase: ldaptest.People, UserFilter: "(uid={{name}})",
		IDAttribute: "entryUUID", GroupFilter: "(member={{dn}})", GroupName: "cn",
		Roles: fleet.RoleMap{"sre": {{Role: fleet.RoleOperator}}, "cn=staff," + ldaptest.Groups: {{Role: fleet.RoleViewer}}},
	}
}

// TestCheck_RealDirectory asks OpenLDAP what TestCheck asks our own: what is escaped has to mean nothing to a server that
// somebody else wrote.
func TestCheck_RealDirectory(t *testing.T) {
	t.Parallel()
	d := ldaptest.Start(t, organisation()...)
	check := func(x *Directory, name, password string) (fleet.Vouched, error) {
		return x.Check(t.Context(), name, password, false)
	}
	nobody := func(what string, got fleet.Vouched, err error) {
		t.Helper()
		if !errors.Is(err, fleet.ErrUnauthenticated) || errors.Is(err, fleet.ErrUnavailable) || !cmp.Equal(got, fleet.Vouched{}) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
	ids := map[string]string{} // of one person over both ways, both kinds of groups and all names
	for way, url := range map[string]string{"ldaps": d.LDAPS, "starttls": d.StartTLS} {
		byAttribute := opened(t, realConfig(d, url))
		cfg := realConfig(d, url)
		cfg.GroupBase = ldaptest.Groups
		bySearch := opened(t, cfg)
		cfg.UserFilter = "(&(objectClass=inetOrgPerson)(cn={{name}}))"
		byCN := opened(t, cfg)
		for _, tt := range []struct {
			name, password, person string
			x                      *Directory
			role                   fleet.Role
		}{
			{"ada", pw, "ada", byAttribute, fleet.RoleOperator},
			{"ada", pw, "ada", bySearch, fleet.RoleOperator},
			{"ADA", pw, "ada", bySearch, fleet.RoleOperator}, // the directory knows no case: the same person
			{"countess", pw, "ada", bySearch, fleet.RoleOperator},
			{"Ada Lovelace", pw, "ada", byCN, fleet.RoleOperator},
			{"bob", "bobs password", "bob", byAttribute, ""},
			{"bob", "bobs password", "bob", bySearch, ""},
			{`Lovelace, Ada (x*)\`, "commas password", "comma", byCN, fleet.RoleOperator},
			{"comma", "commas password", "comma", bySearch, fleet.RoleOperator},
			{"comma", "commas password", "comma", byAttribute, fleet.RoleOperator},
			{"Zoë 王", "zoes password", "zoe", byCN, fleet.RoleViewer},
			{"twin", "twins password", "twin", bySearch, fleet.RoleViewer},
		} {
			got, err := check(tt.x, tt.name, tt.password)
			if err != nil || got.Role != tt.role || got.Issuer != url || len(got.Subject) != 36 {
				t.Errorf("%s, %s: %+v, %v", way, tt.name, got, err)
				continue
			}
			if before := ids[tt.person]; before != "" && before != got.Subject {
				t.Errorf("%s, %s is %s, and was %s under another name", way, tt.name, got.Subject, before)
			}
			ids[tt.person] = got.Subject
		}
		for what, tt := range map[string]struct {
			name, password string
			x              *Directory
		}{
			"wrong password": {"ada", "correct house", byAttribute}, "another's password": {"ada", "bobs password", byAttribute},
			"empty password": {"ada", "", byAttribute}, "unknown": {"eve", pw, byAttribute}, "empty name": {"", pw, byAttribute},
			"no password there": {"nopassword", "x", byAttribute}, "none, none there": {"nopassword", "", byAttribute},
			"two of that name": {"Sam Twin", "twins password", byCN}, "an alias": {"shadow", pw, byAttribute},
			"who is elsewhere": {"outsider", pw, byAttribute}, "by an alias": {"door", pw, byAttribute},
			"a star": {"*", pw, byAttribute}, "a part": {"ad*", pw, byAttribute}, "a part of a name": {"Ada*", pw, byCN},
			"a filter": {"x)(|(uid=ada)", pw, byAttribute}, "a filter that closes": {"ada)(objectClass=*", pw, byCN},
			"an escape": {`\61da`, pw, byAttribute}, "half an escape": {`ada\`, pw, byAttribute}, "a zero": {"ada\x00", pw, byAttribute},
			"an entry": {"uid=ada," + ldaptest.People, pw, byAttribute}, "who searches": {"searcher", d.Password, byCN},
		} {
			got, err := check(tt.x, tt.name, tt.password)
			nobody(way+", "+what, got, err)
		}
	}
	if len(ids) != 5 {
		t.Errorf("%d people: %v", len(ids), ids)
	}
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id] {
			t.Errorf("two people are %s", id)
		}
		seen[id] = true
	}

	// Who it is not, or who does not believe that it is we, says nothing of the person.
	strange := realConfig(d, d.LDAPS)
	strange.CAs = x509.NewCertPool()
	for way, url := range map[string]string{"ldaps": d.LDAPS, "starttls": d.StartTLS} {
		strange.URL = url
		_, err := opened(t, strange).Check(t.Context(), "ada", pw, false)
		if !errors.Is(err, fleet.ErrUnavailable) || errors.Is(err, fleet.ErrUnauthenticated) || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("%s, an authority that nobody knows: %v", way, err)
		}
	}
	for what, change := range map[string]func(*Config){
		"our password is wrong":   func(c *Config) { c.BindPassword = "old" },
		"TLS where there is none": func(c *Config) { c.URL = strings.Replace(d.StartTLS, "ldap:", "ldaps:", 1) },
		"none where there is TLS": func(c *Config) { c.URL = strings.Replace(d.LDAPS, "ldaps:", "ldap:", 1) },
	} {
		cfg := realConfig(d, d.LDAPS)
		change(&cfg)
		if _, err := opened(t, cfg).Check(t.Context(), "ada", pw, false); !errors.Is(err, fleet.ErrUnavailable) || errors.Is(err, fleet.ErrUnauthenticated) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Who may not search finds nobody, whatever the directory calls that.
	anonymous := realConfig(d, d.LDAPS)
	anonymous.BindDN, anonymous.BindPassword = "", ""
	if got, err := opened(t, anonymous).Check(t.Context(), "ada", pw, false); err == nil {
		t.Errorf("searching as nobody: %+v", got)
	}
	log := d.Log()
	if !strings.Contains(log, `BIND dn="uid=ada,`) || !strings.Contains(log, "STARTTLS") || !strings.Contains(log, " err=49 ") {
		t.Errorf("the directory does not say what it was asked:\n%s", log)
	}
	if strings.Contains(log, " err=13 ") { // confidentiality required
		t.Error("a password was sent without encryption")
	}
}

// TestCheck_DirectoryDies: a directory that is killed while people sign in refuses nobody and takes nobody for another;
// when it is back, so is the sign-in.
func TestCheck_DirectoryDies(t *testing.T) {
	t.Parallel()
	d := ldaptest.Start(t, organisation()...)
	x := opened(t, realConfig(d, d.LDAPS))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	const people = 4
	var working, broken, all sync.WaitGroup
	working.Add(people)
	broken.Add(people)
	for range people {
		all.Go(func() {
			before, after := false, false
			for !after {
				got, err := x.Check(ctx, "ada", pw, false)
				switch {
				case err == nil && got.Role == fleet.RoleOperator:
					if !before {
						before = true
						working.Done()
					}
				case errors.Is(err, fleet.ErrUnavailable) && !errors.Is(err, fleet.ErrUnauthenticated) && before:
					after = true
					broken.Done()
				default:
					t.Errorf("%+v, %v", got, err)
					if !before {
						working.Done()
					}
					broken.Done()
					return
				}
			}
		})
	}
	working.Wait() // everybody has signed in and is about to do so again
	d.Kill()
	broken.Wait()
	all.Wait()
	d.Restart()
	if _, err := x.Check(t.Context(), "ada", pw, false); err != nil {
		t.Errorf("after the restart: %v", err)
	}

	// One that hangs is dead too, at the latest when the person has had enough.
	d.Freeze()
	hung := make(chan error, 1)
	go func() {
		_, err := x.Check(ctx, "ada", pw, false)
		hung <- err
	}()
	d.Kill()
	if err := <-hung; !errors.Is(err, fleet.ErrUnavailable) || errors.Is(err, fleet.ErrUnauthenticated) {
		t.Errorf("killed while it hung: %v", err)
	}
}
