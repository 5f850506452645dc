package ldap

import (
	"testing"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// FuzzFilter: whatever name and entry stand in a filter, the directory is asked for exactly them: the filter has the
// shape that it has with harmless ones, and the values that it compares with are theirs, byte for byte.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{"ada", "*", "ada)(uid=*", `\2a`, `a\`, "(|(uid=*))", "ä\x00\xff", "{{name}}", "{{dn}}", ""} {
		f.Add(s, "cn="+s+",dc=x")
	}
	const template = "(&(objectClass=person)(|(uid={{name}})(mail={{name}}))(member={{dn}}))"
	shape, err := ldap.CompileFilter(fill(template, "x", "cn=x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name, dn string) {
		filled := fill(template, name, dn)
		got, err := ldap.CompileFilter(filled)
		if err != nil {
			t.Fatalf("%q does not compile: %v", filled, err)
		}
		same(t, shape, got, name, dn)
	})
}

// same compares two filters, in which x and cn=x stand for the name and the entry.
func same(t *testing.T, want, got *ber.Packet, name, dn string) {
	t.Helper()
	if want.Tag != got.Tag || want.ClassType != got.ClassType || len(want.Children) != len(got.Children) {
		t.Fatalf("another filter: %+v, want %+v", got, want)
	}
	for i := range want.Children {
		same(t, want.Children[i], got.Children[i], name, dn)
	}
	if len(want.Children) > 0 {
		return
	}
	text := want.Data.String()
	switch text {
	case "x":
		text = name
	case "cn=x":
		text = dn
	}
	if got.Data.String() != text {
		t.Fatalf("it asks for %q, want %q", got.Data.String(), text)
	}
}
