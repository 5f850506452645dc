package seal

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// format names the encoding of everything below and is part of what is authenticated. A change needs a new name.
const format = "knm-secret-1"

const (
	keyBytes   = 32
	maxKeyFile = 64 << 10
	maxKeys    = 32
)

// ErrUnreadable says that a sealed secret does not open: it was changed, moved to another row, or sealed with a key that
// only has the same id.
var ErrUnreadable = fmt.Errorf("a sealed secret does not open: %w", fleet.ErrUnavailable)

// UnknownKeyError says that a secret is sealed under a key that we were not given. It is ErrUnavailable.
type UnknownKeyError struct{ ID string }

func (e *UnknownKeyError) Error() string {
	return fmt.Sprintf("it is sealed with the key %s, which is not among those that were given", e.ID)
}

// Is makes every UnknownKeyError an ErrUnavailable.
func (e *UnknownKeyError) Is(target error) bool { return target == fleet.ErrUnavailable }

// Keys are key-encryption keys; the first one seals, all of them open.
type Keys struct{ ring []key }

type key struct {
	id   string
	aead cipher.AEAD
}

// Read reads a file with one key a line, base64 or hex of 32 bytes, the current one first. Empty lines and lines that begin
// with # say nothing. Errors never repeat what is in the file.
func Read(path string) (*Keys, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("reading the key: %s is no key file: %w", path, fleet.ErrTooLarge)
	}
	keys, err := Parse(fleet.Secret(text))
	if err != nil {
		return nil, fmt.Errorf("reading the key in %s: %w", path, err)
	}
	return keys, nil
}

// Parse reads keys as Read does.
func Parse(text fleet.Secret) (*Keys, error) {
	k := &Keys{}
	lines := bufio.NewScanner(strings.NewReader(text.Reveal()))
	lines.Buffer(nil, maxKeyFile+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		raw, ok := keyText(line)
		if !ok {
			return nil, fleet.Invalid("key", "line %d is not 32 bytes in base64 or hex", n)
		}
		one, err := newKey(raw)
		if err != nil {
			return nil, err
		}
		if k.find(one.id) != nil {
			return nil, fleet.Invalid("key", "line %d repeats a key", n)
		}
		if k.ring = append(k.ring, one); len(k.ring) > maxKeys {
			return nil, fleet.Invalid("key", "holds more than %d keys", maxKeys)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	if len(k.ring) == 0 {
		return nil, fleet.Invalid("key", "holds no key")
	}
	return k, nil
}

func keyText(line string) ([]byte, bool) {
	if raw, err := hex.DecodeString(line); err == nil && len(raw) == keyBytes {
		return raw, true
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if raw, err := enc.Strict().DecodeString(line); err == nil && len(raw) == keyBytes {
			return raw, true
		}
	}
	return nil, false
}

func newKey(raw []byte) (key, error) {
	if bytes.Count(raw, raw[:1]) == len(raw) {
		return key{}, fleet.Invalid("key", "is one byte repeated, which anybody would try first")
	}
	aead, err := gcm(raw)
	if err != nil {
		return key{}, err
	}
	// The id tells keys apart, and a wrong key from the right one, without saying anything about either.
	sum := sha256.Sum256(append([]byte(format+" key id\n"), raw...))
	return key{hex.EncodeToString(sum[:6]), aead}, nil
}

// NewKey makes a key, as a line of a key file.
func NewKey() fleet.Secret {
	raw := make([]byte, keyBytes)
	_, _ = rand.Read(raw) // never fails: the program ends if the system has no randomness
	return fleet.Secret(base64.StdEncoding.EncodeToString(raw))
}

// gcm is AES-256-GCM with a random nonce in front of each text. Random nonces are good for 2³² texts of one key; a data
// key seals one, and a wrapping key one for each secret and rotation.
func gcm(raw []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(raw)
	if err != nil {
		return nil, fmt.Errorf("making a cipher: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("making a cipher: %w", err)
	}
	return aead, nil
}

// Current is the id of the key that seals.
func (k *Keys) Current() string { return k.ring[0].id }

// Has tells whether what is sealed under the id can be opened.
func (k *Keys) Has(id string) bool { return k.find(id) != nil }

// IDs names every key, the current one first.
func (k *Keys) IDs() []string {
	ids := make([]string, len(k.ring))
	for i, one := range k.ring {
		ids[i] = one.id
	}
	return ids
}

// String shows which keys they are.
func (k *Keys) String() string { return strings.Join(k.IDs(), ",") }

// LogValue implements slog.LogValuer.
func (k *Keys) LogValue() slog.Value { return slog.AnyValue(k.IDs()) }

func (k *Keys) find(id string) *key {
	for i := range k.ring {
		if k.ring[i].id == id {
			return &k.ring[i]
		}
	}
	return nil
}

// bind is what a ciphertext is authenticated with. Lengths keep two different places from having the same encoding.
func bind(purpose string, p fleet.Place, keyID string) []byte {
	var b bytes.Buffer
	for _, field := range []string{format, purpose, p.Table, p.Row, p.Column, keyID} {
		fmt.Fprintf(&b, "%d:%s\n", len(field), field)
	}
	return b.Bytes()
}

// The purposes keep a wrapped key from being taken for data.
const purposeKey, purposeData = "key", "data"

// Seal encrypts a text for one place, under a new data key.
func (k *Keys) Seal(p fleet.Place, text []byte) (fleet.Sealed, error) {
	data := make([]byte, keyBytes)
	_, _ = rand.Read(data) // never fails
	aead, err := gcm(data)
	if err != nil {
		return fleet.Sealed{}, err
	}
	return fleet.Sealed{
		Key:     k.Current(),
		Wrapped: k.wrap(p, data),
		Data:    base64.StdEncoding.EncodeToString(aead.Seal(nil, nil, text, bind(purposeData, p, ""))), //nolint:gosec // G407: the cipher makes its own nonces
	}, nil
}

func (k *Keys) wrap(p fleet.Place, data []byte) string {
	current := k.ring[0]
	return base64.StdEncoding.EncodeToString(current.aead.Seal(nil, nil, data, bind(purposeKey, p, current.id))) //nolint:gosec // G407: the cipher makes its own nonces
}

func (k *Keys) unwrap(p fleet.Place, s fleet.Sealed) ([]byte, error) {
	one := k.find(s.Key)
	if one == nil {
		return nil, &UnknownKeyError{ID: s.Key}
	}
	return open(one.aead, s.Wrapped, bind(purposeKey, p, one.id))
}

func open(aead cipher.AEAD, text string, bound []byte) ([]byte, error) {
	// Strict: two spellings of the same bytes would make a change of the stored text go unnoticed.
	sealed, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || strings.ContainsAny(text, "\r\n") {
		return nil, ErrUnreadable
	}
	plain, err := aead.Open(nil, nil, sealed, bound)
	if err != nil {
		return nil, ErrUnreadable
	}
	return plain, nil
}

// Open decrypts what was sealed for the place. UnknownKeyError, ErrUnreadable.
func (k *Keys) Open(p fleet.Place, s fleet.Sealed) ([]byte, error) {
	data, err := k.unwrap(p, s)
	if err != nil {
		return nil, err
	}
	if len(data) != keyBytes {
		return nil, ErrUnreadable
	}
	aead, err := gcm(data)
	if err != nil {
		return nil, err
	}
	return open(aead, s.Data, bind(purposeData, p, ""))
}

// Rewrap wraps the data key with the current key. What it seals stays as it is, and is opened once, so that nothing
// unreadable is given a new wrapping and then taken for good.
func (k *Keys) Rewrap(p fleet.Place, s fleet.Sealed) (fleet.Sealed, error) {
	if _, err := k.Open(p, s); err != nil {
		return s, err
	}
	data, err := k.unwrap(p, s)
	if err != nil {
		return s, err
	}
	return fleet.Sealed{Key: k.Current(), Wrapped: k.wrap(p, data), Data: s.Data}, nil
}
