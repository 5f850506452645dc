package atrest

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func ensured(t *testing.T) *Key {
	t.Helper()
	k, err := Ensure(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealOpen(t *testing.T) {
	t.Parallel()
	k, other := ensured(t), ensured(t)
	secret := "canary-secret-canary"
	sealed := k.Seal([]byte(secret), "row 1")
	if strings.Contains(sealed, secret) || sealed == k.Seal([]byte(secret), "row 1") {
		t.Errorf("sealed: %s", sealed)
	}
	got, err := k.Open(sealed, "row 1")
	if string(got) != secret || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for what, try := range map[string]func() ([]byte, error){
		"another row": func() ([]byte, error) { return k.Open(sealed, "row 2") },
		"another key": func() ([]byte, error) { return other.Open(sealed, "row 1") },
		"nothing":     func() ([]byte, error) { return k.Open("", "row 1") },
		"too short":   func() ([]byte, error) { return k.Open("v1.AAAA", "row 1") },
		"no version":  func() ([]byte, error) { return k.Open(strings.TrimPrefix(sealed, "v1."), "row 1") },
	} {
		if b, err := try(); !errors.Is(err, fleet.ErrUnavailable) || b != nil {
			t.Errorf("%s: %q, %v", what, b, err)
		}
	}
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimPrefix(sealed, "v1."))
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			if _, err := k.Open("v1."+base64.RawStdEncoding.EncodeToString(raw), "row 1"); err == nil {
				t.Fatalf("bit %d of byte %d may be flipped", bit, i)
			}
			raw[i] ^= 1 << bit
		}
	}
}

// Processes that start at once make one key; the file is their owner's alone.
func TestEnsure_Race(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "key")
	keys := make([]*Key, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			k, err := Ensure(file)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = k
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	sealed := keys[0].Seal([]byte("x"), "y")
	for _, k := range keys {
		if _, err := k.Open(sealed, "y"); err != nil {
			t.Error(err)
		}
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for text, good := range map[string]bool{
		strings.Repeat("ab", 32) + "\n":                     true,
		base64.StdEncoding.EncodeToString(make([]byte, 32)): true,
		"": false, "password": false, strings.Repeat("ab", 31): false, strings.Repeat("canary", 20): false,
	} {
		file := filepath.Join(dir, "k")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(file)
		if (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
		if err != nil && text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("the key is in the error: %v", err)
		}
	}
	if _, err := Load(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}
