package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
)

// tlsConfig is nil when the listener speaks plain HTTP. The files are those that a certificate is read from, if it is.
func tlsConfig(cfg config.Serve, logger *slog.Logger) (*tls.Config, *certFiles, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	switch {
	case cfg.TLSSelfSigned:
		cert, err := selfSigned(cfg, time.Now())
		if err != nil {
			return nil, nil, fmt.Errorf("making a certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	case cfg.TLSCert != "":
		files := &certFiles{cert: cfg.TLSCert, key: cfg.TLSKey, logger: logger, every: certEvery}
		if err := files.load(); err != nil {
			return nil, nil, err
		}
		c.GetCertificate = files.get
		return c, files, nil
	default:
		return nil, nil, nil
	}
	return c, nil, nil
}

// certFiles serves a certificate from files and reads them again after they have changed, so that a renewal needs no
// restart. A pair that cannot be read leaves the one before in service.
type certFiles struct {
	cert, key string
	logger    *slog.Logger
	every     time.Duration // between two looks at the files

	mu      sync.Mutex // guards what follows
	current *tls.Certificate
	stamp   [2]time.Time
	checked time.Time
}

// certEvery bounds how often the files are looked at.
const certEvery = 10 * time.Second

func (f *certFiles) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	cert, due := f.current, time.Since(f.checked) >= f.every
	if due {
		f.checked = time.Now() // the others do not wait for this one's reading
	}
	f.mu.Unlock()
	if !due {
		return cert, nil
	}
	if err := f.load(); err != nil {
		f.logger.LogAttrs(context.Background(), slog.LevelError, "certificate not renewed", slog.Any("err", err))
		return cert, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current, nil
}

func (f *certFiles) load() error {
	var stamp [2]time.Time
	for i, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name)
		if err != nil {
			return fmt.Errorf("reading the certificate: %w", err)
		}
		stamp[i] = info.ModTime()
	}
	f.mu.Lock()
	same := f.current != nil && stamp == f.stamp
	f.mu.Unlock()
	if same {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("reading the certificate: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current, f.stamp, f.checked = &pair, stamp, time.Now()
	return nil
}

// selfSigned makes a certificate for every name this server is likely to be called by.
func selfSigned(cfg config.Serve, now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "kube-node-manager (self-signed)"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	if host, _, err := net.SplitHostPort(cfg.Listen); err == nil {
		names = append(names, host)
	}
	if cfg.External != nil {
		names = append(names, cfg.External.Hostname())
	}
	slices.Sort(names)
	for _, n := range slices.Compact(names) {
		switch ip := net.ParseIP(n); {
		case ip != nil && !ip.IsUnspecified():
			t.IPAddresses = append(t.IPAddresses, ip)
		case ip == nil && n != "":
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
