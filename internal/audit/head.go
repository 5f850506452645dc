package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// keyType is the PEM block of a signing key; its content is the 32 bytes of the seed.
const keyType = "KUBE-NODE-MANAGER AUDIT KEY"

// maxHeadLine bounds a line of a file of heads, which may be a whole log.
const maxHeadLine = 1 << 20

// Signer signs heads of the record. It is safe for use by many goroutines.
type Signer struct {
	key          ed25519.PrivateKey
	installation string
}

// NewSigner makes a signer whose key ends with the process: its heads say what was between them, and not who wrote them.
func NewSigner(installation string) *Signer {
	_, key, _ := ed25519.GenerateKey(nil) // never fails with the system's randomness
	return &Signer{key: key, installation: installation}
}

// LoadSigner reads the signing key, and makes one where there is none. The file must be for its owner alone.
func LoadSigner(file, installation string) (*Signer, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = makeKey(file)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key of the record: %w", err)
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("reading the key of the record: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the key of the record, %s, can be read by others: give it mode 0600", file)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != keyType || len(block.Bytes) != ed25519.SeedSize {
		return nil, fmt.Errorf("%s is not a key of the record", file)
	}
	return &Signer{key: ed25519.NewKeyFromSeed(block.Bytes), installation: installation}, nil
}

// makeKey writes a new key so that of two processes that make one at once both use the same.
func makeKey(file string) ([]byte, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed) // never fails
	b := pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: seed})
	tmp, err := os.CreateTemp(filepath.Dir(file), ".audit-key-*") // 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // the other name of it stays
	if _, err := tmp.Write(b); err != nil {
		return nil, errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(tmp.Name(), file); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.ReadFile(file)
}

// Public is the key by which others check what was signed.
func (s *Signer) Public() string {
	return base64.StdEncoding.EncodeToString(s.key.Public().(ed25519.PublicKey)) //nolint:forcetypeassert // documented
}

// Sign makes a head of an entry.
func (s *Signer) Sign(seq int64, hash string, at time.Time) fleet.AuditHead {
	h := fleet.AuditHead{Seq: seq, Hash: hash, At: at.UTC().Truncate(time.Microsecond), Installation: s.installation, Key: s.Public()}
	h.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(s.key, h.Text()))
	return h
}

// CheckHead tells whether a head was signed by the key; "" accepts whichever key the head names.
func CheckHead(h fleet.AuditHead, key string) error {
	if key != "" && h.Key != key {
		return fmt.Errorf("head %d is signed by another key than %s", h.Seq, key)
	}
	public, err := base64.StdEncoding.DecodeString(h.Key)
	if err != nil || len(public) != ed25519.PublicKeySize {
		return fmt.Errorf("head %d names no key", h.Seq)
	}
	signature, err := base64.StdEncoding.DecodeString(h.Signature)
	if err != nil || !ed25519.Verify(public, h.Text(), signature) {
		return fmt.Errorf("the signature of head %d is not good", h.Seq)
	}
	return nil
}

// ReadHeads finds heads in lines of JSON, as the program logs them: every line that is an object with a signature.
func ReadHeads(r io.Reader) ([]fleet.AuditHead, error) {
	var out []fleet.AuditHead
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxHeadLine)
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 || line[0] != '{' || !bytes.Contains(line, []byte(`"signature"`)) {
			continue
		}
		var h struct {
			fleet.AuditHead
			Head *fleet.AuditHead `json:"head"` // of a log record
		}
		if err := json.Unmarshal(line, &h); err != nil {
			return nil, fmt.Errorf("reading heads: %w", err)
		}
		if h.Head != nil {
			h.AuditHead = *h.Head
		}
		out = append(out, h.AuditHead)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading heads: %w", err)
	}
	return out, nil
}

// VerifyHeads checks heads that were kept elsewhere against the record, which Verify has found whole: each signature,
// and that the entry of that number still has that hash. A head of an entry that retention has removed since says
// nothing, and is counted apart. The error is a *BrokenError for the first one that does not fit.
func (l *Log) VerifyHeads(ctx context.Context, heads []fleet.AuditHead, key string) (good, older int, err error) {
	anchor, err := l.store.AuditAnchor(ctx)
	if err != nil {
		return 0, 0, err
	}
	// Whoever rewrites the record may sign a beginning of his own, but not with the key of the heads.
	known := func(h fleet.AuditHead) bool { return h.Key == anchor.Key }
	if anchor.Seq > 0 && (key != "" && key != anchor.Key || len(heads) > 0 && !slices.ContainsFunc(heads, known)) {
		return 0, 0, &BrokenError{Seq: anchor.Seq, What: "is where the record begins, and is signed by another key"}
	}
	for _, h := range heads {
		if err := CheckHead(h, key); err != nil {
			return good, older, &BrokenError{Seq: h.Seq, What: err.Error()}
		}
		hash := anchor.Hash
		switch {
		case h.Seq < anchor.Seq:
			older++
			continue
		case h.Seq > anchor.Seq:
			page, err := l.store.EntriesAfter(ctx, h.Seq-1, 1)
			if err != nil {
				return good, older, err
			}
			if len(page) == 0 || page[0].Seq != h.Seq {
				return good, older, &BrokenError{Seq: h.Seq, What: "is missing, and a signed head names it"}
			}
			hash = page[0].Hash
		}
		if hash != h.Hash {
			return good, older, &BrokenError{Seq: h.Seq, What: "is not what a signed head says it was"}
		}
		good++
	}
	return good, older, nil
}
