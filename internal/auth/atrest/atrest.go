// Package atrest keeps the secrets of second factors encrypted: AES-256-GCM with a key from a file that lies beside the
// database and not in it, so that a copy of the database alone is of no use. What a secret is for is part of what is
// authenticated: a ciphertext that is moved to another row does not open.
package atrest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	keyBytes = 32
	// version begins every sealed text, and is authenticated with it.
	version = "v1."
)

// Key seals and opens. Make one with Load or Ensure.
type Key struct{ aead cipher.AEAD }

// Load reads the key of a file: 32 bytes in hexadecimal or base64 on its first line.
func Load(file string) (*Key, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	key, err := decode(strings.TrimSpace(line))
	if err != nil {
		return nil, fmt.Errorf("reading the key in %s: %w", file, err) // the text itself is not repeated
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("reading the key in %s: %w", file, err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("reading the key in %s: %w", file, err)
	}
	return &Key{aead: aead}, nil
}

var errKey = errors.New("it is not 32 bytes in hexadecimal or base64")

func decode(text string) ([]byte, error) {
	if b, err := hex.DecodeString(text); err == nil && len(b) == keyBytes {
		return b, nil
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if b, err := enc.DecodeString(text); err == nil && len(b) == keyBytes {
			return b, nil
		}
	}
	return nil, errKey
}

// Ensure is Load of a file that is made, readable by its owner alone, if it is missing. Of two processes that make it at
// once both get the same key.
func Ensure(file string) (*Key, error) {
	if _, err := os.Lstat(file); err == nil {
		return Load(file)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("looking for the key: %w", err)
	}
	if err := create(file); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return Load(file)
}

// create writes a file aside and links it into place, so that nobody ever reads half a key. It fails with ErrExist if
// there is one.
func create(file string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	var key [keyBytes]byte
	_, _ = rand.Read(key[:]) // never fails: the program ends if the system has no randomness
	_, err = f.WriteString(hex.EncodeToString(key[:]) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), file)
}

// Seal encrypts a secret. About says whose and what it is; only the same words open it again.
func (k *Key) Seal(secret []byte, about string) string {
	nonce := make([]byte, k.aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	return version + base64.RawStdEncoding.EncodeToString(k.aead.Seal(nonce, nonce, secret, []byte(version+about)))
}

// Open decrypts what Seal made. ErrUnavailable if it was sealed with another key or for something else, or was changed.
func (k *Key) Open(sealed, about string) ([]byte, error) {
	text, ok := strings.CutPrefix(sealed, version)
	b, err := base64.RawStdEncoding.DecodeString(text)
	if !ok || err != nil || len(b) < k.aead.NonceSize() {
		return nil, fmt.Errorf("opening a secret: it is in no form that is known: %w", fleet.ErrUnavailable)
	}
	n := k.aead.NonceSize()
	secret, err := k.aead.Open(nil, b[:n], b[n:], []byte(version+about))
	if err != nil {
		return nil, fmt.Errorf("opening a secret: it was changed, or this is not its key: %w", fleet.ErrUnavailable)
	}
	return secret, nil
}
