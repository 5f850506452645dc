package credentials_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/credentials"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// made is one authority, client certificate and key for all tests.
type made struct{ ca, cert, key, otherKey []byte }

var material = func() made {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ada"}, NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	pkcs8 := func(k *ecdsa.PrivateKey) []byte {
		b, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			panic(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return made{cert, cert, pkcs8(key), pkcs8(other)}
}()

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

const canary = "canary-4c1f9a-never-shown"

// config is a good kubeconfig with lines exchanged: each of cluster and user is what stands in that block.
func config(cluster, user string) string {
	if cluster == "" {
		cluster = "server: https://api.example:6443\n    certificate-authority-data: " + b64(material.ca)
	}
	if user == "" {
		user = "token: " + canary
	}
	return "apiVersion: v1\nkind: Config\ncurrent-context: c\npreferences: {}\n" +
		"clusters:\n- name: k\n  cluster:\n    " + cluster + "\n" +
		"users:\n- name: u\n  user:\n    " + user + "\n" +
		"contexts:\n- name: c\n  context:\n    cluster: k\n    user: u\n    namespace: x\n"
}

func withCluster(line string) string {
	return config("server: https://api.example:6443\n    certificate-authority-data: "+b64(material.ca)+"\n    "+line, "")
}

func withServer(s string) string {
	return config("server: "+s+"\n    certificate-authority-data: "+b64(material.ca), "")
}

func withUser(line string) string { return config("", "token: "+canary+"\n    "+line) }

func pair(cert, key []byte) string {
	return "client-certificate-data: " + b64(cert) + "\n    client-key-data: " + b64(key)
}

func TestDecode_Takes(t *testing.T) {
	t.Parallel()
	flow, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config",
		"clusters": []any{map[string]any{"name": "k", "cluster": map[string]any{"server": "https://api.example:6443", "certificate-authority-data": b64(material.ca)}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": canary}}},
		"contexts": []any{map[string]any{"name": "c", "context": map[string]any{"cluster": "k", "user": "u"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"token":               config("", ""),
		"json":                string(flow), // and the only context
		"certificate":         config("", pair(material.cert, material.key)),
		"extensions":          withCluster("extensions: [{name: x, extension: {a: b}}]"),
		"not insecure":        withCluster("insecure-skip-tls-verify: false"),
		"server name":         withCluster("tls-server-name: kubernetes.default"),
		"comments":            "# mine\n" + config("", ""),
		"path":                withServer("https://rancher.example/k8s/clusters/c-abc"),
		"address":             withServer("https://10.0.0.1:6443"),
		"address of IPv6":     withServer("'https://[2001:db8::1]:6443'"),
		"trailing slash":      withServer("https://api.example:6443/"),
		"ec parameters first": config("", pair(material.cert, append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6}}), material.key...))),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, err := credentials.Decode(fleet.Secret(text), "")
			if err != nil {
				t.Fatal(err)
			}
			if len(a.Authority) == 0 || a.Token == "" && a.Key == "" {
				t.Errorf("%#v", a)
			}
			stored, err := a.Encode()
			if err != nil {
				t.Fatal(err)
			}
			again, err := credentials.Parse(stored)
			if err != nil {
				t.Fatal(err)
			}
			back, err := again.Encode()
			if err != nil || !bytes.Equal(stored, back) {
				t.Errorf("%v: the stored form does not come back as it was", err)
			}
			for _, gone := range []string{"namespace", "extension", "context", "preferences", "insecure"} {
				if bytes.Contains(stored, []byte(gone)) {
					t.Errorf("the stored form holds %q", gone)
				}
			}
		})
	}
}

// refused is every field and form that is not taken, with the path that the answer has to name.
func refused() map[string][2]string {
	long := strings.Repeat("x", credentials.MaxKubeconfig)
	many := func(n int, item string) string { return strings.Repeat(item, n) }
	cases := map[string][2]string{
		"exec":                       {withUser("exec: {apiVersion: client.authentication.k8s.io/v1, command: aws, args: [" + canary + "]}"), "users[0].user.exec (aws)"},
		"exec of gke":                {withUser(`exec: {command: C:\x\gke-gcloud-auth-plugin.exe}`), "users[0].user.exec (gke-gcloud-auth-plugin)"},
		"exec of a stranger":         {withUser("exec: {command: /opt/" + canary + "}"), "users[0].user.exec"},
		"exec null":                  {withUser("exec: null"), "users[0].user.exec"},
		"auth-provider":              {withUser("auth-provider: {name: oidc, config: {idp-certificate-authority: /etc/passwd}}"), "users[0].user.auth-provider"},
		"username":                   {withUser("username: x"), "users[0].user.username"},
		"password":                   {withUser("password: " + canary), "users[0].user.password"},
		"as":                         {withUser("as: system:admin"), "users[0].user.as"},
		"as-uid":                     {withUser("as-uid: 0"), "users[0].user.as-uid"},
		"as-groups":                  {withUser("as-groups: ['system:masters']"), "users[0].user.as-groups"},
		"as-user-extra":              {withUser("as-user-extra: {a: [b]}"), "users[0].user.as-user-extra"},
		"act-as":                     {withUser("act-as: x"), "users[0].user.act-as"},
		"proxy":                      {withCluster("proxy-url: http://evil.test"), "clusters[0].cluster.proxy-url"},
		"socks":                      {withCluster("proxy-url: socks5://evil.test"), "clusters[0].cluster.proxy-url"},
		"insecure":                   {withCluster("insecure-skip-tls-verify: true"), "clusters[0].cluster.insecure-skip-tls-verify"},
		"insecure, shouted":          {withCluster("insecure-skip-tls-verify: TRUE"), "clusters[0].cluster.insecure-skip-tls-verify"},
		"insecure, as a text":        {withCluster("insecure-skip-tls-verify: 'yes'"), "clusters[0].cluster.insecure-skip-tls-verify"},
		"unknown in cluster":         {withCluster("api-version: v1"), "clusters[0].cluster.api-version"},
		"unknown in user":            {withUser("tokenfile: /x"), "users[0].user.tokenfile"},
		"unknown at the top":         {"unknown: 1\n" + config("", ""), "unknown"},
		"a secret as a key":          {withUser(canary + strings.Repeat("k", 40) + ": x"), "users[0].user.(a key)"},
		"no authority":               {config("server: https://api.example", ""), "clusters[0].cluster.certificate-authority-data"},
		"no server":                  {config("certificate-authority-data: "+b64(material.ca), ""), "clusters[0].cluster.server"},
		"no credential":              {config("", "extensions: []"), "users[0].user"},
		"both credentials":           {withUser(pair(material.cert, material.key)), "users[0].user"},
		"certificate without key":    {config("", "client-certificate-data: "+b64(material.cert)), "users[0].user"},
		"key of another":             {config("", pair(material.cert, material.otherKey)), "users[0].user.client-key-data"},
		"two keys":                   {config("", pair(material.cert, append(bytes.Clone(material.key), material.otherKey...))), "users[0].user.client-key-data"},
		"encrypted key":              {config("", pair(material.cert, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}))), "users[0].user.client-key-data"},
		"encrypted key, old":         {config("", pair(material.cert, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"DEK-Info": "x"}, Bytes: []byte("x")}))), "users[0].user.client-key-data"},
		"certificate of 100 KiB":     {config("", pair(bytes.Repeat([]byte("x"), 100<<10), material.key)), "users[0].user.client-certificate-data"},
		"chain of 11":                {config("server: https://a\n    certificate-authority-data: "+b64(bytes.Repeat(material.ca, 11)), ""), "clusters[0].cluster.certificate-authority-data"},
		"authority that is a key":    {config("server: https://a\n    certificate-authority-data: "+b64(material.key), ""), "clusters[0].cluster.certificate-authority-data"},
		"authority with more behind": {config("server: https://a\n    certificate-authority-data: "+b64(append(bytes.Clone(material.ca), canary...)), ""), "clusters[0].cluster.certificate-authority-data"},
		"authority that is garbage":  {config("server: https://a\n    certificate-authority-data: "+b64(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(canary)})), ""), "clusters[0].cluster.certificate-authority-data"},
		"not base64":                 {config("server: https://a\n    certificate-authority-data: '"+canary+"!'", ""), "clusters[0].cluster.certificate-authority-data"},
		"token with a line break":    {config("", `token: "a\r\nX-Evil: 1"`), "users[0].user.token"},
		"token as a list":            {config("", "token: [a]"), "users[0].user.token"},
		"token of 20 KiB":            {config("", "token: "+many(20<<10, "x")), "users[0].user.token"},
		"tls-server-name":            {withCluster("tls-server-name: 'a/b'"), "clusters[0].cluster.tls-server-name"},
		"too large":                  {"# " + long + "\n" + config("", ""), "256"},
		"empty":                      {" \n", ""},
		"binary":                     {"\x00\xff", ""},
		"no YAML":                    {"a: [", ""},
		"a text":                     {canary, "the top"},
		"a list":                     {"[]", "the top"},
		"two documents":              {config("", "") + "---\n" + config("", ""), ""},
		"anchor":                     {strings.Replace(config("", ""), "name: k", "name: &a k", 1), "clusters[0].name"},
		"alias":                      {"preferences: &a [x]\nextensions: *a\n" + config("", ""), ""},
		"merge":                      {withUser("<<: {exec: {command: x}}"), "users[0].user"},
		"tag":                        {withUser("client-certificate-data: !!binary aGk="), "users[0].user.client-certificate-data"},
		"custom tag":                 {strings.Replace(config("", ""), "preferences: {}", "preferences: !x {}", 1), "preferences"},
		"duplicate key":              {withUser("token: other"), "users[0].user.token"},
		"duplicate block":            {strings.Replace(config("", ""), "users:\n", "users:\n- name: u\n  user: {token: other}\n", 1), "users[1].name"},
		"key that is a mapping":      {"? {a: b}\n: c\n" + config("", ""), "the top"},
		"51 contexts":                {strings.Replace(config("", ""), "contexts:\n", "contexts:\n"+numbered(51, "- name: n%d\n  context: {cluster: k, user: u}\n"), 1), "contexts"},
		"51 users":                   {strings.Replace(config("", ""), "users:\n", "users:\n"+numbered(51, "- name: n%d\n  user: {token: t}\n"), 1), "users"},
		"exec of another user":       {strings.Replace(config("", ""), "users:\n", "users:\n- name: b\n  user: {exec: {command: x}}\n", 1), "users[0].user.exec"},
		"deep":                       {"preferences: " + many(30, "[") + many(30, "]") + "\n" + config("", ""), ""},
		"very deep":                  {many(100_000, "["), ""},
		"very deep, indented":        {deepBlock(60) + config("", ""), ""},
		"dashes":                     {many(50_000, "- "), ""},
		"questions":                  {many(50_000, "? "), ""},
		"wide":                       {"preferences: [" + many(50_000, "1,") + "]\n" + config("", ""), "20000"},
		"many keys":                  {"preferences: {" + numbered(15_000, "a%d: 1,") + "}\n" + config("", ""), "20000"},
		"billion laughs":             {"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n" + config("", ""), ""},
		"another kind":               {strings.Replace(config("", ""), "kind: Config", "kind: Secret", 1), "kind"},
		"another version":            {strings.Replace(config("", ""), "v1", "v2", 1), "apiVersion"},
		"user that is missing":       {strings.Replace(config("", ""), "    user: u", "    user: nobody", 1), "contexts[0].context.user"},
		"cluster that is missing":    {strings.Replace(config("", ""), "cluster: k\n    user", "cluster: none\n    user", 1), "contexts[0].context.cluster"},
		"no contexts":                {"apiVersion: v1\nkind: Config\n", ""},
		"block without a name":       {strings.Replace(config("", ""), "- name: u", "- name: ''", 1), "users[0]"},
	}
	for _, server := range []string{
		"http://api.example:6443", "HTTP://api.example", "ftp://api.example", "//api.example", "api.example:6443", "https://", "https:///x",
		"https://u:p@api.example", "https://u@api.example", "https://api.example?x=1", "https://api.example?", "'https://api.example#x'", "'https://api.example#'",
		"https://api.example:0", "https://api.example:99999", "'https://api.example:'", "https://api.example:x", "'https://[fe80::1%25eth0]'",
		"https://api.example/../x", "https://api.example//x", "https://api.example/%2e%2e/x", "'https://api example'", "'https://a\\b'", "https:api.example",
		"unix:///var/run/x.sock", "file:///etc/passwd", "'https://{}'", "https://a..b",
	} {
		cases["server "+server] = [2]string{withServer(server), "clusters[0].cluster.server"}
	}
	for _, field := range []string{"certificate-authority", "tokenFile", "client-certificate", "client-key"} {
		for _, path := range []string{"/etc/passwd", "token", "/proc/self/environ", "../../x", "~/.kube/token", `'\\host\share\x'`} {
			with, at := withUser, "users[0].user."
			if field == "certificate-authority" {
				with, at = withCluster, "clusters[0].cluster."
			}
			cases[field+" "+path] = [2]string{with(field + ": " + path), at + field}
		}
	}
	return cases
}

func numbered(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func deepBlock(n int) string {
	var b strings.Builder
	b.WriteString("preferences:\n")
	for i := range n {
		b.WriteString(strings.Repeat(" ", i+1) + "a:\n")
	}
	return b.String()
}

// Every refusal is about the field kubeconfig, names the offending key by its path, and repeats no value.
func TestDecode_Refuses(t *testing.T) {
	t.Parallel()
	cases := refused()
	t.Logf("%d documents", len(cases))
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := credentials.Decode(fleet.Secret(c[0]), "")
			e, ok := errors.AsType[*fleet.FieldError](err)
			if !ok {
				t.Fatalf("got %v, want a FieldError", err)
			}
			if e.Field != "kubeconfig" || e.Key == "" || strings.Contains(e.Message, "{{") {
				t.Errorf("%+v", e)
			}
			if !views.Has(e.Key) || views.Message("en", e.Key, e.Args, "") != e.Message {
				t.Errorf("the catalogue says %q, and the error %q", views.Message("en", e.Key, e.Args, ""), e.Message)
			}
			if c[1] != "" && e.Args["Part"] != c[1] {
				t.Errorf("names %q, want %q: %s", e.Args["Part"], c[1], e.Message)
			}
			for _, leak := range []string{canary, "passwd", "environ", "evil.test", "x.sock"} {
				if strings.Contains(fmt.Sprintf("%v %+v", err, e), leak) {
					t.Errorf("the refusal repeats %q: %v", leak, err)
				}
			}
		})
	}
}

func TestDecode_ChoosesAContext(t *testing.T) {
	t.Parallel()
	text := strings.Replace(config("", ""), "contexts:\n", "contexts:\n- name: other\n  context: {cluster: k, user: u}\n", 1)
	for _, name := range []string{"", "c", "other"} {
		if _, err := credentials.Decode(fleet.Secret(text), name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for name, text := range map[string]string{"nobody": text, "": strings.Replace(text, "current-context: c", "", 1)} {
		_, err := credentials.Decode(fleet.Secret(text), name)
		if e, ok := errors.AsType[*fleet.FieldError](err); !ok || e.Field != "context" {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// No path of a document is ever opened: a FIFO that nobody writes to would block whoever opens it.
func TestDecode_OpensNoFile(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := mkfifo(fifo); err != nil {
		t.Skip(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(fifo, link); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, path := range []string{fifo, link} {
			for _, text := range []string{
				withUser("tokenFile: " + path), withUser("client-certificate: " + path), withUser("client-key: " + path),
				withCluster("certificate-authority: " + path), config("", "token: "+path), withUser("exec: {command: " + path + "}"),
			} {
				_, _ = credentials.Decode(fleet.Secret(text), "") // whether it is refused is another test's
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatal("a file of the document was opened")
	}
}

// What hostile documents cost. The bound on memory is the one of the specification; time is only told, since other work
// on the machine counts into it.
func TestDecode_HostileIsCheap(t *testing.T) {
	for name, c := range refused() {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		_, _ = credentials.Decode(fleet.Secret(c[0]), "") // see TestDecode_Refuses
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
			t.Errorf("%s allocated %d MiB", name, used>>20)
		}
		if took > 200*time.Millisecond {
			t.Logf("%s took %s", name, took)
		}
	}
}

func TestFacts(t *testing.T) {
	t.Parallel()
	body := base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"system:serviceaccount:knm:knm","exp":4102444800}`))
	jwt := "e30." + body + ".c2ln"
	a, err := credentials.Decode(fleet.Secret(config("", "token: "+jwt)), "")
	if err != nil {
		t.Fatal(err)
	}
	f := a.Facts()
	if f.Kind != "token" || f.User != "system:serviceaccount:knm:knm" || f.ExpiresAt.Year() != 2100 || !strings.HasPrefix(f.Fingerprint, "sha256:") || f.Authority == "" {
		t.Errorf("%+v", f)
	}
	if a, err = credentials.Decode(fleet.Secret(config("", pair(material.cert, material.key))), ""); err != nil {
		t.Fatal(err)
	}
	if f = a.Facts(); f.Kind != "certificate" || f.User != "ada" || f.ExpiresAt.Year() != 2100 || f.Fingerprint != f.Authority { // it is its own authority
		t.Errorf("%+v", f)
	}
	for _, odd := range []string{"a.b.c", "e30.bm90IGpzb24.x", "e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"a\nb","exp":1e300}`)) + ".x"} {
		a, err := credentials.Decode(fleet.Secret(config("", "token: "+odd)), "")
		if err != nil {
			t.Fatal(err)
		}
		if f := a.Facts(); f.User != "" || !f.ExpiresAt.IsZero() {
			t.Errorf("%s: %+v", odd, f)
		}
	}
}

// No way of printing an access shows what it holds.
func TestAccess_NeverShows(t *testing.T) {
	t.Parallel()
	a, err := credentials.Decode(fleet.Secret(config("", "")), "")
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	for _, h := range []slog.Handler{slog.NewJSONHandler(&buf, nil), slog.NewTextHandler(&buf, nil)} {
		slog.New(h).Info("x", "access", a, "token", a.Token, "list", []any{a, &a}, "spec", fleet.ClusterSpec{Kubeconfig: canary})
	}
	j, err := json.Marshal([]any{a, &a, fleet.ClusterSpec{Kubeconfig: canary}, a.Facts()})
	if err != nil {
		t.Fatal(err)
	}
	buf.Write(j)
	fmt.Fprintf(&buf, "%v %+v %#v %s %q %x %v %+v %#v", a, a, a, a, a.Token, a.Token, &a, []any{a}, fleet.ClusterSpec{Kubeconfig: canary})
	for _, leak := range []string{canary, b64([]byte(canary)), fmt.Sprintf("%x", canary)} {
		if strings.Contains(buf.String(), leak) {
			t.Errorf("shows %q in %s", leak, buf.String())
		}
	}
	if stored, err := a.Encode(); err != nil || !bytes.Contains(stored, []byte(canary)) {
		t.Errorf("%v: the stored form lacks the token: this test would prove nothing", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range refused() {
		if len(c[0]) < 8<<10 {
			f.Add(c[0], "")
		}
	}
	f.Add(config("", ""), "c")
	f.Add(config("", pair(material.cert, material.key)), "")
	f.Fuzz(func(t *testing.T, text, contextName string) {
		a, err := credentials.Decode(fleet.Secret(text), contextName)
		if err != nil {
			if _, ok := errors.AsType[*fleet.FieldError](err); !ok {
				t.Fatalf("not a FieldError: %v", err)
			}
			return
		}
		if !strings.HasPrefix(a.Server, "https://") || len(a.Authority) == 0 || (a.Token == "") == (a.Key == "") {
			t.Fatalf("%#v", a)
		}
		stored, err := a.Encode()
		if err != nil {
			t.Fatal(err)
		}
		b, err := credentials.Parse(stored)
		if err != nil {
			t.Fatalf("what was taken does not come back: %v", err)
		}
		if again, err := b.Encode(); err != nil || !bytes.Equal(stored, again) {
			t.Fatalf("%v: another one came back", err)
		}
	})
}
