package credentials_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/credentials"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func keys(t *testing.T, lines ...fleet.Secret) *credentials.Keys {
	t.Helper()
	var text strings.Builder
	for _, l := range lines {
		text.WriteString(l.Reveal() + "\n")
	}
	k, err := credentials.ParseKeys(fleet.Secret(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestParseKeys(t *testing.T) {
	t.Parallel()
	one, two := credentials.NewKey(), credentials.NewKey()
	raw, err := base64.StdEncoding.DecodeString(one.Reveal())
	if err != nil || len(raw) != 32 {
		t.Fatalf("%v: %d bytes", err, len(raw))
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("# the new one\n\n  "+two.Reveal()+"  \r\n"+hex.EncodeToString(raw)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := credentials.ReadKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := keys(t, one).Current(); k.Current() == want || !k.Has(want) || len(k.IDs()) != 2 {
		t.Errorf("%s: the id is that of the key, in base64 and hex alike, and the first is current", k)
	}
	for name, text := range map[string]string{
		"none": "# nothing\n", "short": "c2hvcnQ=", "a passphrase": "correct horse battery staple",
		"twice": one.Reveal() + "\n" + one.Reveal(), "zeroes": base64.StdEncoding.EncodeToString(make([]byte, 32)),
		"one byte": hex.EncodeToString(bytes.Repeat([]byte{7}, 32)), "too long": hex.EncodeToString(make([]byte, 33)),
		"one good, one bad": one.Reveal() + "\n" + canary,
	} {
		_, err := credentials.ParseKeys(fleet.Secret(text))
		if !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), one.Reveal())) {
			t.Errorf("%s: the error repeats what is in the file: %v", name, err)
		}
	}
	if _, err := credentials.ReadKeyFile(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for _, shown := range []string{fmt.Sprintf("%v %+v %s", k, k, k), one.String()} {
		if strings.Contains(shown, one.Reveal()) || strings.Contains(shown, hex.EncodeToString(raw)) {
			t.Errorf("shows a key: %s", shown)
		}
	}
}

var here = credentials.ClusterPlace(fleet.StoredCluster{ID: "row-1", Name: "prod"})

func sealed(t *testing.T, k *credentials.Keys) fleet.SealedCredential {
	t.Helper()
	s, err := k.Seal(here, []byte(canary))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSeal(t *testing.T) {
	t.Parallel()
	k := keys(t, credentials.NewKey())
	s, other := sealed(t, k), sealed(t, k)
	plain, err := k.Open(here, s)
	if err != nil || string(plain) != canary {
		t.Fatalf("%v: %q", err, plain)
	}
	if s.Data == other.Data || s.Wrapped == other.Wrapped {
		t.Error("two seals of the same text are alike")
	}
	all := fmt.Sprint(s)
	for _, leak := range []string{canary, b64([]byte(canary)), hex.EncodeToString([]byte(canary))} {
		if strings.Contains(all, leak) {
			t.Errorf("%q is in what is stored", leak)
		}
	}
}

// What is stored opens in its own place only, and not after any change.
func TestOpen_Nowhere(t *testing.T) {
	t.Parallel()
	k := keys(t, credentials.NewKey())
	s, other := sealed(t, k), sealed(t, k)
	elsewhere, err := k.Seal(credentials.ClusterPlace(fleet.StoredCluster{ID: "row-2", Name: "prod"}), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for name, place := range map[string]credentials.Place{
		"another row":    {Table: here.Table, Row: "row-2", Column: here.Column},
		"another name":   credentials.ClusterPlace(fleet.StoredCluster{ID: "row-1", Name: "lab"}),
		"another table":  {Table: "users", Row: here.Row, Column: here.Column},
		"another column": {Table: here.Table, Row: here.Row, Column: "server"},
		"shifted":        {Table: here.Table + "5:", Row: here.Row, Column: here.Column},
	} {
		if _, err := k.Open(place, s); !errors.Is(err, credentials.ErrUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	loose := strings.TrimRight(s.Data, "=") // the same bytes, with other bits where base64 has more than it needs
	if loose == s.Data {
		t.Fatal("no spare bits: the text of this test has the wrong length")
	}
	loose = loose[:len(loose)-1] + string(loose[len(loose)-1]+1) + s.Data[len(loose):]
	for name, mixed := range map[string]fleet.SealedCredential{
		"another spelling":        {Key: s.Key, Wrapped: s.Wrapped, Data: loose},
		"data of another":         {Key: s.Key, Wrapped: s.Wrapped, Data: other.Data},
		"key of another":          {Key: s.Key, Wrapped: other.Wrapped, Data: s.Data},
		"all of another row":      elsewhere,
		"the wrapped key as data": {Key: s.Key, Wrapped: s.Wrapped, Data: s.Wrapped},
		"the data as key":         {Key: s.Key, Wrapped: s.Data, Data: s.Data},
		"empty":                   {Key: s.Key},
		"no base64":               {Key: s.Key, Wrapped: "!", Data: s.Data},
		"a line break":            {Key: s.Key, Wrapped: s.Wrapped + "\n", Data: s.Data},
	} {
		if _, err := k.Open(here, mixed); !errors.Is(err, credentials.ErrUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stranger := keys(t, credentials.NewKey())
	_, err = stranger.Open(here, s)
	if e, ok := errors.AsType[*credentials.UnknownKeyError](err); !ok || e.ID != k.Current() || !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("another key: %v", err)
	}
	forged := s
	forged.Key = stranger.Current()
	if _, err := stranger.Open(here, forged); !errors.Is(err, credentials.ErrUnreadable) {
		t.Errorf("another key under its own name: %v", err)
	}
}

// Every bit of what is stored is guarded.
func TestOpen_EveryBit(t *testing.T) {
	t.Parallel()
	k := keys(t, credentials.NewKey())
	s := sealed(t, k)
	flipped := 0
	for _, part := range []*string{&s.Wrapped, &s.Data} {
		was := *part
		raw, err := base64.StdEncoding.DecodeString(was)
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(raw) * 8 {
			bad := bytes.Clone(raw)
			bad[i/8] ^= 1 << (i % 8)
			*part = base64.StdEncoding.EncodeToString(bad)
			if _, err := k.Open(here, s); !errors.Is(err, credentials.ErrUnreadable) {
				t.Fatalf("bit %d: %v", i, err)
			}
			flipped++
		}
		*part = was
	}
	if _, err := k.Open(here, s); err != nil {
		t.Errorf("unchanged, it does not open: %v", err)
	}
	t.Logf("%d bits flipped, one at a time", flipped)
}

func FuzzOpen(f *testing.F) {
	k, err := credentials.ParseKeys(credentials.NewKey())
	if err != nil {
		f.Fatal(err)
	}
	s, err := k.Seal(here, []byte(canary))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Wrapped, s.Data)
	f.Add("", "AA==")
	f.Fuzz(func(t *testing.T, wrapped, data string) {
		plain, err := k.Open(here, fleet.SealedCredential{Key: s.Key, Wrapped: wrapped, Data: data})
		if err == nil && (wrapped != s.Wrapped || data != s.Data) {
			t.Errorf("a forgery opens as %q", plain)
		}
	})
}
