package seal_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/seal"
)

const canary = "canary-4c1f9a-never-shown"

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func keys(t *testing.T, lines ...fleet.Secret) *seal.Keys {
	t.Helper()
	var text strings.Builder
	for _, l := range lines {
		text.WriteString(l.Reveal() + "\n")
	}
	k, err := seal.Parse(fleet.Secret(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestParse(t *testing.T) {
	t.Parallel()
	one, two := seal.NewKey(), seal.NewKey()
	raw, err := base64.StdEncoding.DecodeString(one.Reveal())
	if err != nil || len(raw) != 32 {
		t.Fatalf("%v: %d bytes", err, len(raw))
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("# the new one\n\n  "+two.Reveal()+"  \r\n"+hex.EncodeToString(raw)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := seal.Read(path)
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
		_, err := seal.Parse(fleet.Secret(text))
		if !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), one.Reveal())) {
			t.Errorf("%s: the error repeats what is in the file: %v", name, err)
		}
	}
	if _, err := seal.Read(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for _, shown := range []string{fmt.Sprintf("%v %+v %s", k, k, k), one.String()} {
		if strings.Contains(shown, one.Reveal()) || strings.Contains(shown, hex.EncodeToString(raw)) {
			t.Errorf("shows a key: %s", shown)
		}
	}
}

// Processes that start at once make one key; the file is their owner's alone, and nothing is left beside it.
func TestCreate(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "key")
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			switch err := seal.Create(file); {
			case err == nil:
				made.Add(1)
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
			if k, err := seal.Read(file); err != nil || len(k.IDs()) != 1 {
				t.Errorf("%v %v", k, err)
			}
		})
	}
	wg.Wait()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if made.Load() != 1 || info.Mode().Perm() != 0o600 {
		t.Errorf("%d made it, with mode %v", made.Load(), info.Mode())
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := seal.Create(filepath.Join(t.TempDir(), "no", "directory")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nowhere: %v", err)
	}
}

var here = fleet.StoredCluster{ID: "row-1", Name: "prod"}.Place()

func sealed(t *testing.T, k *seal.Keys) fleet.Sealed {
	t.Helper()
	s, err := k.Seal(here, []byte(canary))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSeal(t *testing.T) {
	t.Parallel()
	k := keys(t, seal.NewKey())
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
	k := keys(t, seal.NewKey())
	s, other := sealed(t, k), sealed(t, k)
	elsewhere, err := k.Seal(fleet.StoredCluster{ID: "row-2", Name: "prod"}.Place(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	factor, err := k.Seal(fleet.FactorPlace("row-1/prod"), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for name, place := range map[string]fleet.Place{
		"another row":    {Table: here.Table, Row: "row-2", Column: here.Column},
		"another name":   fleet.StoredCluster{ID: "row-1", Name: "lab"}.Place(),
		"another table":  {Table: "users", Row: here.Row, Column: here.Column},
		"another column": {Table: here.Table, Row: here.Row, Column: "server"},
		"shifted":        {Table: here.Table + "5:", Row: here.Row, Column: here.Column},
	} {
		if _, err := k.Open(place, s); !errors.Is(err, seal.ErrUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	loose := strings.TrimRight(s.Data, "=") // the same bytes, with other bits where base64 has more than it needs
	if loose == s.Data {
		t.Fatal("no spare bits: the text of this test has the wrong length")
	}
	loose = loose[:len(loose)-1] + string(loose[len(loose)-1]+1) + s.Data[len(loose):]
	for name, mixed := range map[string]fleet.Sealed{
		"another spelling":        {Key: s.Key, Wrapped: s.Wrapped, Data: loose},
		"data of another":         {Key: s.Key, Wrapped: s.Wrapped, Data: other.Data},
		"key of another":          {Key: s.Key, Wrapped: other.Wrapped, Data: s.Data},
		"all of another row":      elsewhere,
		"all of another table":    factor,
		"the wrapped key as data": {Key: s.Key, Wrapped: s.Wrapped, Data: s.Wrapped},
		"the data as key":         {Key: s.Key, Wrapped: s.Data, Data: s.Data},
		"empty":                   {Key: s.Key},
		"no base64":               {Key: s.Key, Wrapped: "!", Data: s.Data},
		"a line break":            {Key: s.Key, Wrapped: s.Wrapped + "\n", Data: s.Data},
	} {
		if _, err := k.Open(here, mixed); !errors.Is(err, seal.ErrUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stranger := keys(t, seal.NewKey())
	_, err = stranger.Open(here, s)
	if e, ok := errors.AsType[*seal.UnknownKeyError](err); !ok || e.ID != k.Current() || !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("another key: %v", err)
	}
	forged := s
	forged.Key = stranger.Current()
	if _, err := stranger.Open(here, forged); !errors.Is(err, seal.ErrUnreadable) {
		t.Errorf("another key under its own name: %v", err)
	}
}

// Every bit of what is stored is guarded.
func TestOpen_EveryBit(t *testing.T) {
	t.Parallel()
	k := keys(t, seal.NewKey())
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
			if _, err := k.Open(here, s); !errors.Is(err, seal.ErrUnreadable) {
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
	k, err := seal.Parse(seal.NewKey())
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
		plain, err := k.Open(here, fleet.Sealed{Key: s.Key, Wrapped: wrapped, Data: data})
		if err == nil && (wrapped != s.Wrapped || data != s.Data) {
			t.Errorf("a forgery opens as %q", plain)
		}
	})
}
