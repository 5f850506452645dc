package credentials

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Limits of what is in PEM.
const (
	maxPEM   = 64 << 10
	maxChain = 10
	maxRSA   = 8192
)

// ErrUnreadable says that what is stored is no Access.
var ErrUnreadable = fmt.Errorf("the credential cannot be read: %w", fleet.ErrUnavailable)

// Access is everything there is to know of the way to a cluster and the credential for it, and nothing else. No way of
// printing it shows a secret.
type Access struct {
	Server      string // URL, https
	ServerName  string // whose certificate is expected; "" for the host of Server
	Authority   []byte // PEM
	Token       fleet.Secret
	Certificate []byte // PEM, with Key
	Key         fleet.Secret
}

// String names the server.
func (a Access) String() string { return "access to " + a.Server }

// GoString keeps %#v from showing the certificates.
func (a Access) GoString() string { return a.String() }

// LogValue implements slog.LogValuer.
func (a Access) LogValue() slog.Value { return slog.StringValue(a.String()) }

// accessJSON is the stored form. It is sealed before it goes anywhere.
type accessJSON struct {
	Server      string `json:"server"`
	ServerName  string `json:"tls_server_name,omitempty"`
	Authority   string `json:"authority"`
	Token       string `json:"token,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	Key         string `json:"key,omitempty"`
}

// Encode is the stored form of an Access, secrets included: to be sealed.
func (a Access) Encode() ([]byte, error) {
	return json.Marshal(accessJSON{
		a.Server, a.ServerName, string(a.Authority), a.Token.Reveal(), string(a.Certificate), a.Key.Reveal(),
	})
}

// Parse reads what Encode wrote, and holds it to the rules of today: they may have become stricter since.
func Parse(stored []byte) (Access, error) {
	dec := json.NewDecoder(bytes.NewReader(stored))
	dec.DisallowUnknownFields()
	var j accessJSON
	if err := dec.Decode(&j); err != nil {
		return Access{}, ErrUnreadable // and not the decoder's words, which hold pieces of the text
	}
	a := Access{ServerName: j.ServerName}
	var err error
	if a.Server, err = address(j.Server, "server"); err != nil {
		return Access{}, err
	}
	if a.Authority, err = authority([]byte(j.Authority), "authority"); err != nil {
		return Access{}, err
	}
	switch {
	case j.Token != "":
		if !bearer(j.Token) {
			return Access{}, ErrUnreadable
		}
		a.Token = fleet.Secret(j.Token)
	default:
		if a.Certificate, a.Key, err = keyPair([]byte(j.Certificate), []byte(j.Key), "user"); err != nil {
			return Access{}, err
		}
	}
	return a, nil
}

// certificates reads a chain of at most maxChain, and nothing but certificates.
func certificates(text []byte, at string) ([]*x509.Certificate, error) {
	if len(text) > maxPEM {
		return nil, refuse("pem_large", at, "has more than 64 KiB at {{.Part}}")
	}
	var out []*x509.Certificate
	rest := text
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, refuse("pem", at, "has something else than certificates in PEM at {{.Part}}")
		}
		if len(out) == maxChain {
			return nil, refuse("chain", at, "has more than 10 certificates at {{.Part}}")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || !reasonable(c.PublicKey) {
			return nil, refuse("certificate", at, "has a certificate at {{.Part}} that cannot be used")
		}
		out = append(out, c)
	}
	if len(out) == 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, refuse("pem", at, "has something else than certificates in PEM at {{.Part}}")
	}
	return out, nil
}

// reasonable refuses keys whose size makes each check of a signature expensive.
func reasonable(public any) bool {
	if k, ok := public.(*rsa.PublicKey); ok {
		return k.N.BitLen() <= maxRSA
	}
	return true
}

// written is certificates in PEM, without what else was around them.
func written(chain []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range chain {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

func authority(text []byte, at string) ([]byte, error) {
	if len(text) == 0 {
		return nil, refuse("noauthority", at, "has no authority at {{.Part}}: without it nobody can tell the server from another one")
	}
	chain, err := certificates(text, at)
	if err != nil {
		return nil, err
	}
	return written(chain), nil
}

// keyPair checks that the two belong together.
func keyPair(cert, key []byte, at string) ([]byte, fleet.Secret, error) {
	if len(cert) == 0 || len(key) == 0 {
		return nil, "", refuse("pair", at, "needs both client-certificate-data and client-key-data that belong together at {{.Part}}")
	}
	chain, err := certificates(cert, at+".client-certificate-data")
	if err != nil {
		return nil, "", err
	}
	at += ".client-key-data"
	if len(key) > maxPEM {
		return nil, "", refuse("pem_large", at, "has more than 64 KiB at {{.Part}}")
	}
	var block *pem.Block
	for rest := key; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type == "EC PARAMETERS" { // openssl writes them before the key
			continue
		}
		if block != nil || b.Type != "PRIVATE KEY" && b.Type != "RSA PRIVATE KEY" && b.Type != "EC PRIVATE KEY" || len(b.Headers) > 0 {
			return nil, "", refuse("key", at, "has something else than one unencrypted private key in PEM at {{.Part}}")
		}
		block = b
	}
	if block == nil {
		return nil, "", refuse("key", at, "has something else than one unencrypted private key in PEM at {{.Part}}")
	}
	chainPEM, keyPEM := written(chain), pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})
	if _, err := tls.X509KeyPair(chainPEM, keyPEM); err != nil {
		return nil, "", refuse("pair", at, "needs both client-certificate-data and client-key-data that belong together at {{.Part}}")
	}
	return chainPEM, fleet.Secret(keyPEM), nil
}

// Facts say which credential it is without being able to use it. What a token says of itself is shown and never relied
// on.
func (a Access) Facts() fleet.CredentialFacts {
	f := fleet.CredentialFacts{Server: a.Server, ServerName: a.ServerName}
	if block, _ := pem.Decode(a.Authority); block != nil {
		f.Authority = fingerprint(block.Bytes)
	}
	if a.Token != "" {
		f.Kind, f.Fingerprint = "token", fingerprint([]byte(a.Token.Reveal()))
		f.User, f.ExpiresAt = claims(a.Token.Reveal())
		return f
	}
	f.Kind = "certificate"
	if block, _ := pem.Decode(a.Certificate); block != nil {
		f.Fingerprint = fingerprint(block.Bytes)
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			f.User, f.ExpiresAt = shown(c.Subject.CommonName), c.NotAfter.UTC()
		}
	}
	return f
}

// fingerprint is 64 bits of SHA-256: enough to tell two apart, and far from what it was made of.
func fingerprint(b []byte) string {
	sum := sha256.Sum256(b)
	parts := make([]string, 8)
	for i := range parts {
		parts[i] = hex.EncodeToString(sum[i : i+1])
	}
	return "sha256:" + strings.Join(parts, ":")
}

// claims are the subject and the end of a token that is a JWT.
func claims(token string) (user string, expires time.Time) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", time.Time{}
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", time.Time{}
	}
	var c struct {
		Subject string  `json:"sub"`
		Expires float64 `json:"exp"`
	}
	if json.Unmarshal(body, &c) != nil {
		return "", time.Time{}
	}
	if c.Expires > 0 && c.Expires < 1e11 {
		expires = time.Unix(int64(c.Expires), 0).UTC()
	}
	return shown(c.Subject), expires
}

// shown is a stranger's text as a page may show it.
func shown(s string) string {
	if !utf8.ValidString(s) || len(s) > 253 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return ""
	}
	return s
}

var (
	_ fmt.Stringer   = Access{}
	_ slog.LogValuer = Access{}
)
