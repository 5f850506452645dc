package kubetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// User returns a configuration that acts as somebody, known to the API server
// by a client certificate, who may do nothing but what [Cluster.Grant] allows.
func (c *Cluster) User(tb testing.TB, name string, groups ...string) *rest.Config {
	tb.Helper()
	cert, key, err := c.sign(name, groups)
	if err != nil {
		tb.Fatalf("kubetest: signing certificate of %s: %v", name, err)
	}
	return &rest.Config{
		Host:            c.Server,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.ca, CertData: cert, KeyData: key},
	}
}

// UserKubeconfig writes a kubeconfig for somebody as [Cluster.User] does.
func (c *Cluster) UserKubeconfig(tb testing.TB, name string, groups ...string) string {
	tb.Helper()
	user := c.User(tb, name, groups...)
	config := clientcmdapi.NewConfig()
	config.Clusters[c.Name] = &clientcmdapi.Cluster{Server: c.Server, CertificateAuthorityData: c.ca}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: user.CertData, ClientKeyData: user.KeyData}
	config.Contexts[c.Name] = &clientcmdapi.Context{Cluster: c.Name, AuthInfo: name}
	config.CurrentContext = c.Name
	path := filepath.Join(tb.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		tb.Fatalf("kubetest: writing kubeconfig: %v", err)
	}
	return path
}

// Grant allows a user the rules in the whole cluster until the test ends.
func (c *Cluster) Grant(tb testing.TB, user string, rules ...rbacv1.PolicyRule) {
	tb.Helper()
	meta := metav1.ObjectMeta{Name: Name(tb, "grant")}
	rbac := c.client.RbacV1()
	_, err := rbac.ClusterRoles().Create(tb.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatalf("kubetest: granting to %s: %v", user, err)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}
	if _, err := rbac.ClusterRoleBindings().Create(tb.Context(), binding, metav1.CreateOptions{}); err != nil {
		tb.Fatalf("kubetest: granting to %s: %v", user, err)
	}
	cleanup(tb, rbac.ClusterRoleBindings().Delete, meta.Name)
	cleanup(tb, rbac.ClusterRoles().Delete, meta.Name)
}

// Rule is short for a policy rule: Rule("", "nodes", "get", "list").
func Rule(group, resource string, verbs ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
}

// sign makes a client certificate with the cluster's own authority.
func (c *Cluster) sign(name string, groups []string) (certPEM, keyPEM []byte, err error) {
	ca, err := x509.ParseCertificate(decodePEM(c.ca))
	if err != nil {
		return nil, nil, err
	}
	data, err := os.ReadFile(c.caKeyFile)
	if err != nil {
		return nil, nil, err
	}
	caKey, err := x509.ParsePKCS8PrivateKey(decodePEM(data))
	if err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name, Organization: groups},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

func decodePEM(data []byte) []byte {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil // parsing it says what is wrong
	}
	return block.Bytes
}
