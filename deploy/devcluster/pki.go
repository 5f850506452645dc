package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// The files of a cluster's keys, in its pki directory.
const (
	caCert         = "ca.crt"
	caKey          = "ca.key" // of the authority for clients: tests sign people's certificates with it
	frontProxyCert = "front-proxy-ca.crt"
	servingCert    = "serving.crt"
	servingKey     = "serving.key"
	accountKey     = "service-account.key"
	accountPub     = "service-account.pub"
	adminToken     = "admin.token"
)

// writePKI makes the keys of a cluster, unless an earlier run left them: what
// is signed with them (service account tokens) outlives a restart.
func writePKI(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, adminToken)); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	write := func(name string, data []byte) error {
		return os.WriteFile(filepath.Join(dir, name), data, 0o600)
	}
	block := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}

	ca, signer, err := newCertificate("devcluster-ca", nil, nil)
	if err != nil {
		return err
	}
	frontProxy, _, err := newCertificate("devcluster-front-proxy-ca", nil, nil)
	if err != nil {
		return err
	}
	serving, key, err := newCertificate("devcluster", ca, signer)
	if err != nil {
		return err
	}
	caKeyDER, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	account, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	accountPubDER, err := x509.MarshalPKIXPublicKey(&account.PublicKey)
	if err != nil {
		return err
	}
	token := make([]byte, 16)
	if _, err := rand.Read(token); err != nil {
		return err
	}
	return errors.Join(
		write(caCert, block("CERTIFICATE", ca.Raw)),
		write(caKey, block("PRIVATE KEY", caKeyDER)),
		write(frontProxyCert, block("CERTIFICATE", frontProxy.Raw)),
		write(servingCert, block("CERTIFICATE", serving.Raw)),
		write(servingKey, block("PRIVATE KEY", keyDER)),
		write(accountKey, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(account))),
		write(accountPub, block("PUBLIC KEY", accountPubDER)),
		write(adminToken, []byte(hex.EncodeToString(token))), // last: it says that all is there
	)
}

// newCertificate makes a serving certificate for loopback signed by the parent,
// or a certificate authority when there is no parent.
func newCertificate(name string, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(10, 0, 0),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
	}
	if parent == nil {
		template.IsCA = true
		template.KeyUsage |= x509.KeyUsageCertSign
		parent, parentKey = template, key
	} else {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		template.DNSNames = []string{"localhost", "kubernetes.default.svc"}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}
