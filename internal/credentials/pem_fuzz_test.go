package credentials

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// FuzzPEM: whatever is given as certificates and key, what is kept is certificates and one key that belong together,
// written anew, within the limits; what is refused is refused by name.
func FuzzPEM(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ada"}, NotAfter: time.Unix(4e9, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})
	f.Add(cert, private)
	f.Add(bytes.Repeat(cert, maxChain), append([]byte("# mine\n"), private...))
	f.Add(bytes.Repeat(cert, maxChain+1), append(private, private...))
	f.Add(append(cert, private...), cert)
	f.Add(append([]byte("x\n"), cert...), append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), private...))
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		refused := func(err error) bool {
			field, ok := errors.AsType[*fleet.FieldError](err)
			if err != nil && (!ok || field.Field != kubeconfigField) {
				t.Fatalf("refused as %v", err)
			}
			return err != nil
		}
		kept, err := authority(cert, "authority")
		if !refused(err) {
			onlyCertificates(t, kept)
			again, err := authority(kept, "authority")
			if err != nil || !bytes.Equal(again, kept) {
				t.Fatalf("what was kept is not taken again: %v\n%s", err, kept)
			}
		}
		chain, secret, err := keyPair(cert, key, "user")
		if !refused(err) {
			onlyCertificates(t, chain)
			if _, err := tls.X509KeyPair(chain, []byte(secret.Reveal())); err != nil {
				t.Fatalf("they do not belong together: %v", err)
			}
			if rest := bytes.Count([]byte(secret.Reveal()), []byte("-----BEGIN")); rest != 1 {
				t.Fatalf("%d blocks are kept as the key", rest)
			}
		}
	})
}

func onlyCertificates(t *testing.T, text []byte) {
	t.Helper()
	n := 0
	for rest := text; len(rest) > 0; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" || len(block.Headers) > 0 {
			t.Fatalf("something else is kept: %q", text)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	if n == 0 || n > maxChain {
		t.Fatalf("%d certificates are kept", n)
	}
}
