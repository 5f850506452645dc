package oidc

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// FuzzClaims: whatever a token says that the provider has signed, a role comes from a group of the map, word for word,
// and from nothing else; who somebody is, is issuer and subject. The claims are read here again, in another way.
func FuzzClaims(f *testing.F) {
	for _, claims := range []string{
		`{"iss":"https://idp","aud":"us","sub":"1","groups":["sre","staff"],"preferred_username":"ada"}`,
		`{"iss":"https://idp","aud":"us","sub":"1","groups":"root"}`,
		`{"iss":"https://idp","aud":["us","them"],"sub":"1","groups":["root"]}`,
		`{"iss":"https://idp","aud":["us","them"],"azp":"us","sub":"1","groups":["root"]}`,
		`{"iss":"https://idp","aud":"us","azp":"them","sub":"1","groups":["root"]}`,
		`{"iss":"https://idp","aud":"us","sub":"","groups":["root"]}`,
		`{"iss":"https://idp","aud":"us","sub":"1","groups":["Root","root ","sre,root","*",""]}`,
		`{"iss":"https://idp","aud":"us","sub":"1","groups":[["root"]]}`,
		`{"iss":"https://idp","aud":"us","sub":"1","groups":{"root":true},"roles":["root"]}`,
		`{"iss":"https://idp","aud":"us","sub":"1","Groups":["root"],"groups":null}`,
		`{"iss":"https://idp","aud":"us","sub":"1","groups":["sre"],"groups":["staff"]}`,
		`{"iss":"https://idp","aud":"us","sub":"1","preferred_username":["ada"]}`,
	} {
		f.Add([]byte(claims))
	}
	roles := fleet.RoleMap{"sre": {{Role: fleet.RoleOperator}}, "staff": {{Role: fleet.RoleViewer}}, "root": {{Role: fleet.RoleAdmin}}}
	p := New(Config{Issuer: "https://idp", ClientID: "us", GroupsClaim: "groups", NameClaim: "preferred_username", Roles: roles})
	verifier := oidc.NewVerifier("https://idp", nil, &oidc.Config{ClientID: "us", SkipExpiryCheck: true, InsecureSkipSignatureCheck: true})
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256"}`))
	f.Fuzz(func(t *testing.T, claims []byte) {
		token, err := verifier.Verify(t.Context(), header+"."+base64.RawURLEncoding.EncodeToString(claims)+".eA")
		if err != nil {
			return // the library refuses it
		}
		got, err := p.vouched(token)
		if err != nil {
			if !errors.Is(err, fleet.ErrUnauthenticated) || !cmp.Equal(got, fleet.Vouched{}) {
				t.Fatalf("refused as %v, with %+v", err, got)
			}
			return
		}
		if got.Kind != fleet.PersonOIDC || got.Issuer != "https://idp" || got.Subject == "" || got.Subject != token.Subject {
			t.Fatalf("it is %+v", got.Identity)
		}
		var said map[string]any
		if err := json.Unmarshal(claims, &said); err != nil {
			t.Fatal(err)
		}
		if len(token.Audience) > 1 && said["azp"] != "us" {
			t.Fatalf("a token for %q that %v asked for", token.Audience, said["azp"])
		}
		var groups []any
		switch g := said["groups"].(type) {
		case string:
			groups = []any{g}
		case []any:
			groups = g
		}
		want := fleet.Role("")
		for _, group := range []string{"staff", "sre", "root"} { // from least to most
			if slices.Contains(groups, any(group)) {
				want = roles[group][0].Role
			}
		}
		if got.Role != want {
			t.Fatalf("the groups %q make a %q, want %q", groups, got.Role, want)
		}
	})
}
