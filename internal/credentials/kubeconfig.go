package credentials

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Limits of a kubeconfig that comes from the web.
const (
	MaxKubeconfig = 256 << 10
	maxDepth      = 20
	maxNodes      = 20_000 // keys and values
	maxContexts   = 50
	maxToken      = 16 << 10
	maxName       = 1024
)

// kubeconfigField and contextField are what errors are about.
const kubeconfigField, contextField = "kubeconfig", "context"

// refuse says what is wrong with the kubeconfig, where, and what to do instead. The part is a path of keys; no value of
// the document is ever repeated, since any of them may be a secret.
func refuse(key, part, english string) error {
	return &fleet.FieldError{
		Field: kubeconfigField, Key: "kubeconfig." + key, Args: map[string]string{"Part": part},
		Message: strings.ReplaceAll(english, "{{.Part}}", part),
	}
}

// Decode reads one context of a kubeconfig. Every block of the document is held to the allow-list, chosen or not: what
// is not for us should not be sent to us. Errors are FieldErrors.
func Decode(text fleet.Secret, contextName string) (Access, error) {
	doc, err := parse([]byte(text.Reveal()))
	if err != nil {
		return Access{}, err
	}
	top, err := fields(doc, "", map[string]string{
		"apiVersion": keep, "kind": keep, "clusters": keep, "users": keep, "contexts": keep, "current-context": keep,
		"preferences": drop, "extensions": drop,
	})
	if err != nil {
		return Access{}, err
	}
	for name, want := range map[string]string{"apiVersion": "v1", "kind": "Config"} {
		got, err := text1(top[name], name)
		if err != nil {
			return Access{}, err
		}
		if got != "" && got != want {
			return Access{}, refuse("kind", name, "is no kubeconfig: its {{.Part}} says otherwise")
		}
	}
	clusters, err := named(top["clusters"], "clusters", "cluster", clusterKeys)
	if err != nil {
		return Access{}, err
	}
	users, err := named(top["users"], "users", "user", userKeys)
	if err != nil {
		return Access{}, err
	}
	contexts, err := named(top["contexts"], "contexts", "context", contextKeys)
	if err != nil {
		return Access{}, err
	}
	chosen, err := choose(contexts, top["current-context"], contextName)
	if err != nil {
		return Access{}, err
	}
	c, err := chosen.refers("cluster", clusters)
	if err != nil {
		return Access{}, err
	}
	u, err := chosen.refers("user", users)
	if err != nil {
		return Access{}, err
	}
	return access(c, u)
}

// What is done about a key: keep it, drop it as harmless, or refuse it, with the key of the sentence that says why.
const keep, drop = "keep", "drop"

// The allow-lists. What is in none of them is refused as unknown.
var (
	clusterKeys = map[string]string{
		"server": keep, "certificate-authority-data": keep, "tls-server-name": keep, "insecure-skip-tls-verify": keep,
		"disable-compression": drop, "extensions": drop,
		"certificate-authority": "file", "proxy-url": "proxy",
	}
	userKeys = map[string]string{
		"token": keep, "client-certificate-data": keep, "client-key-data": keep, "extensions": drop,
		"tokenFile": "file", "client-certificate": "file", "client-key": "file",
		"exec": "exec", "auth-provider": "auth_provider",
		"username": "basic", "password": "basic",
		"as": "act_as", "as-uid": "act_as", "as-groups": "act_as", "as-user-extra": "act_as",
		"act-as": "act_as", "act-as-uid": "act_as", "act-as-groups": "act_as", "act-as-user-extra": "act_as",
	}
	contextKeys = map[string]string{"cluster": keep, "user": keep, "namespace": drop, "extensions": drop}
)

// sentences say in English why a key is refused and what to do instead; the catalogue has them in every language.
var sentences = map[string]string{
	"file": "{{.Part}} names a file, and files of the server are not read: put the content itself there, " +
		"as `kubectl config view --raw --flatten --minify` does",
	"proxy": "{{.Part}} is refused: connections to clusters go straight to the address of the server",
	"exec": "{{.Part}} runs a program to sign in, which is refused: make a service account in the cluster instead, " +
		"with the manifest on the page of clusters, and give its token",
	"auth_provider": "{{.Part}} is a sign-in plugin, which is refused: make a service account in the cluster instead, " +
		"with the manifest on the page of clusters, and give its token",
	"basic":  "{{.Part}} is refused: use a token or a client certificate, not a password",
	"act_as": "{{.Part}} is refused: whom to act as is not for a kubeconfig to say",
}

// parse reads one YAML document as a tree, without resolving anything in it.
func parse(text []byte) (*yaml.Node, error) {
	switch {
	case len(text) > MaxKubeconfig:
		return nil, refuse("large", strconv.Itoa(MaxKubeconfig>>10), "is larger than {{.Part}} KiB")
	case len(bytes.TrimSpace(text)) == 0:
		return nil, refuse("empty", "", "must not be empty")
	case !utf8.Valid(text), bytes.IndexByte(text, 0) >= 0:
		return nil, refuse("yaml", "", "is neither YAML nor JSON")
	case bytes.Count(text, []byte(":"))+bytes.Count(text, []byte(","))+bytes.Count(text, []byte("\n")) > maxNodes:
		return nil, refuse("many", strconv.Itoa(maxNodes), "holds more than {{.Part}} values") // before the parser sees them
	case tooDeep(text):
		return nil, refuse("deep", "", "is nested too deep")
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, second yaml.Node
	if err := decode(dec, &doc); err != nil {
		return nil, refuse("yaml", "", "is neither YAML nor JSON")
	}
	if err := decode(dec, &second); !errors.Is(err, io.EOF) {
		return nil, refuse("documents", "", "holds more than one document")
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, refuse("yaml", "", "is neither YAML nor JSON")
	}
	left := maxNodes
	if err := plain(doc.Content[0], "", 0, &left); err != nil {
		return nil, err
	}
	return doc.Content[0], nil
}

// decode makes a panic of the parser an error: it is fed by strangers.
func decode(dec *yaml.Decoder, into *yaml.Node) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the parser panicked: %v", p)
		}
	}()
	return dec.Decode(into)
}

// tooDeep looks for what nests before the parser does: brackets, and dashes in one line. Indentation nests too, but
// costs as many bytes as its depth squared, and is counted in the tree.
func tooDeep(text []byte) bool {
	for line := range bytes.Lines(text) {
		if bytes.Count(line, []byte("- - ")) > maxDepth || bytes.Count(line, []byte("? ")) > 10*maxDepth {
			return true
		}
	}
	// Brackets inside of texts count too: base64 and names have none.
	depth := 0
	for _, c := range text {
		switch c {
		case '[', '{':
			if depth++; depth > 10*maxDepth {
				return true
			}
		case ']', '}':
			depth--
		}
	}
	return false
}

// plain refuses everything of YAML that JSON does not have, and what is too much of it.
func plain(n *yaml.Node, at string, depth int, left *int) error {
	if *left--; *left < 0 {
		return refuse("many", strconv.Itoa(maxNodes), "holds more than {{.Part}} values")
	}
	switch {
	case depth > maxDepth:
		return refuse("deep", "", "is nested too deep")
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return refuse("alias", where(at), "uses an anchor or an alias at {{.Part}}: write the value out")
	case n.Style&yaml.TaggedStyle != 0:
		return refuse("tag", where(at), "uses a tag at {{.Part}}: write a plain value")
	}
	if n.Kind == yaml.ScalarNode || len(n.Content) == 0 {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		for i, c := range n.Content {
			if err := plain(c, at+"["+strconv.Itoa(i)+"]", depth+1, left); err != nil {
				return err
			}
		}
		return nil
	}
	seen := make(map[string]bool, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if err := plain(k, at, depth+1, left); err != nil {
			return err
		}
		below := under(at, k.Value)
		switch {
		case k.Kind != yaml.ScalarNode, k.Value == "<<":
			return refuse("keys", where(at), "has a key at {{.Part}} that is not a plain word")
		case seen[k.Value]:
			return refuse("duplicate", below, "has {{.Part}} twice")
		}
		seen[k.Value] = true
		if err := plain(v, below, depth+1, left); err != nil {
			return err
		}
	}
	return nil
}

func where(at string) string {
	if at == "" {
		return "the top"
	}
	return at
}

// under is the path of a key as it may be shown. Keys that are no key of a kubeconfig could be anything, a secret in the
// wrong column too.
func under(at, key string) string {
	if len(key) > 40 || strings.ContainsFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_'
	}) {
		key = "(a key)"
	}
	if at == "" {
		return key
	}
	return at + "." + key
}

// fields is a mapping by its keys, each of which the list has to allow.
func fields(n *yaml.Node, at string, allowed map[string]string) (map[string]*yaml.Node, error) {
	out := map[string]*yaml.Node{}
	if n == nil || null(n) {
		return out, nil
	}
	if n.Kind != yaml.MappingNode {
		return nil, refuse("mapping", where(at), "has something else than fields at {{.Part}}")
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i].Value, n.Content[i+1]
		switch what, known := allowed[k]; {
		case !known:
			return nil, refuse("unknown", under(at, k), "has {{.Part}}, which no kubeconfig needs: remove it")
		case what == keep:
			out[k] = v
		case what == drop:
		case what == "exec":
			return nil, refusePlugin(under(at, k), v)
		default:
			return nil, refuse(what, under(at, k), sentences[what])
		}
	}
	return out, nil
}

// refusePlugin names the program where its name can be told: a person knows their plugin by it. Its arguments and its
// environment are nobody's business.
func refusePlugin(at string, n *yaml.Node) error {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value != "command" {
			continue
		}
		name := path.Base(strings.ReplaceAll(n.Content[i+1].Value, `\`, "/"))
		if known, ok := strings.CutSuffix(name, ".exe"); ok {
			name = known
		}
		switch name { // the plugins of the great providers; any other text could be anything
		case "aws", "aws-iam-authenticator", "gke-gcloud-auth-plugin", "gcloud", "kubelogin", "az", "doctl", "oci", "tsh",
			"kubectl-oidc_login", "kubectl", "ibmcloud", "aliyun", "tccli", "linode-cli", "yc", "rancher", "pinniped", "tanzu":
			return refuse("exec", at+" ("+name+")", sentences["exec"])
		}
	}
	return refuse("exec", at, sentences["exec"])
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// text1 is one plain text, "" if it is absent.
func text1(n *yaml.Node, at string) (string, error) {
	if n == nil || null(n) {
		return "", nil
	}
	if n.Kind != yaml.ScalarNode {
		return "", refuse("text", at, "has something else than a text at {{.Part}}")
	}
	return n.Value, nil
}

// entry is one named block.
type entry struct {
	at     string
	fields map[string]*yaml.Node
}

// named reads a list of named blocks.
func named(n *yaml.Node, list, block string, allowed map[string]string) (map[string]entry, error) {
	out := map[string]entry{}
	if n == nil || null(n) {
		return out, nil
	}
	if n.Kind != yaml.SequenceNode {
		return nil, refuse("list", list, "has something else than a list at {{.Part}}")
	}
	if len(n.Content) > maxContexts {
		return nil, refuse("contexts", list, "has more than 50 {{.Part}}: give one context, as `kubectl config view --raw --flatten --minify` does")
	}
	for i, item := range n.Content {
		at := list + "[" + strconv.Itoa(i) + "]"
		outer, err := fields(item, at, map[string]string{"name": keep, block: keep})
		if err != nil {
			return nil, err
		}
		name, err := text1(outer["name"], at+".name")
		if err != nil {
			return nil, err
		}
		if name == "" || len(name) > maxName {
			return nil, refuse("name", at, "has no usable name at {{.Part}}")
		}
		if _, dup := out[name]; dup {
			return nil, refuse("duplicate", at+".name", "has {{.Part}} twice")
		}
		inner, err := fields(outer[block], at+"."+block, allowed)
		if err != nil {
			return nil, err
		}
		out[name] = entry{at + "." + block, inner}
	}
	return out, nil
}

// choose is the context by name, or the current one, or the only one.
func choose(contexts map[string]entry, current *yaml.Node, name string) (entry, error) {
	if name == "" {
		var err error
		if name, err = text1(current, "current-context"); err != nil {
			return entry{}, err
		}
		if name == "" && len(contexts) == 1 {
			for only := range contexts {
				name = only
			}
		}
	}
	if c, ok := contexts[name]; ok {
		return c, nil
	}
	if len(contexts) == 0 {
		return entry{}, refuse("nocontext", "", "has no contexts")
	}
	return entry{}, &fleet.FieldError{
		Field: contextField, Key: "kubeconfig.choose", Message: "must name one of the contexts of the kubeconfig",
	}
}

func (e entry) refers(key string, to map[string]entry) (entry, error) {
	name, err := text1(e.fields[key], e.at+"."+key)
	if err != nil {
		return entry{}, err
	}
	if found, ok := to[name]; ok {
		return found, nil
	}
	return entry{}, refuse("reference", e.at+"."+key, "names something at {{.Part}} that is not in it")
}

func (e entry) text(key string) (string, error) { return text1(e.fields[key], e.at+"."+key) }

// bytes is what a field holds in base64.
func (e entry) bytes(key string) ([]byte, error) {
	s, err := e.text(key)
	if err != nil || s == "" {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s))
	if err != nil {
		return nil, refuse("base64", e.at+"."+key, "has something else than base64 at {{.Part}}")
	}
	return b, nil
}

// access takes what is allowed out of a cluster and a user.
func access(c, u entry) (Access, error) {
	var a Access
	skip, err := c.text("insecure-skip-tls-verify")
	if err != nil {
		return a, err
	}
	if skip != "" && skip != "false" {
		return a, refuse("insecure", c.at+".insecure-skip-tls-verify",
			"{{.Part}} would let anybody be the server, which is refused: give the authority in certificate-authority-data")
	}
	server, err := c.text("server")
	if err != nil {
		return a, err
	}
	if a.Server, err = address(server, c.at+".server"); err != nil {
		return a, err
	}
	if a.ServerName, err = c.text("tls-server-name"); err != nil {
		return a, err
	}
	if a.ServerName != "" && !hostname(a.ServerName) {
		return a, refuse("hostname", c.at+".tls-server-name", "has no name of a host at {{.Part}}")
	}
	ca, err := c.bytes("certificate-authority-data")
	if err != nil {
		return a, err
	}
	if a.Authority, err = authority(ca, c.at+".certificate-authority-data"); err != nil {
		return a, err
	}
	return a, credential(&a, u)
}

func credential(a *Access, u entry) error {
	token, err := u.text("token")
	if err != nil {
		return err
	}
	cert, err := u.bytes("client-certificate-data")
	if err != nil {
		return err
	}
	key, err := u.bytes("client-key-data")
	if err != nil {
		return err
	}
	hasCert := len(cert) > 0 || len(key) > 0
	switch {
	case token == "" && !hasCert:
		return refuse("nocredential", u.at, "has no credential at {{.Part}}: it needs a token, or client-certificate-data with client-key-data")
	case token != "" && hasCert:
		return refuse("both", u.at, "has both a token and a client certificate at {{.Part}}: give one of them")
	case token != "":
		if !bearer(token) {
			return refuse("token", u.at+".token", "has something else than a bearer token at {{.Part}}")
		}
		a.Token = fleet.Secret(token)
		return nil
	}
	a.Certificate, a.Key, err = keyPair(cert, key, u.at)
	return err
}

// bearer tells whether s can be sent in a header as it is: RFC 6750's b64token and what else static tokens are made of.
func bearer(s string) bool {
	return len(s) <= maxToken && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// address checks what can be told of an address from its text. Where it leads is decided when it is dialed.
func address(server, at string) (string, error) {
	if server == "" {
		return "", refuse("noserver", at, "has no address at {{.Part}}")
	}
	u, err := url.Parse(server)
	switch {
	case err != nil, u.Scheme == "", u.Opaque != "", u.Hostname() == "":
		return "", refuse("server", at, "has something else at {{.Part}} than an address like https://host:6443")
	case u.Scheme != "https":
		return "", refuse("http", at, "has an address at {{.Part}} that is not https, over which anybody on the way could read the credential")
	case u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "", strings.Contains(server, "#"):
		return "", refuse("server", at, "has something else at {{.Part}} than an address like https://host:6443")
	}
	host := u.Hostname()
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return "", refuse("server", at, "has something else at {{.Part}} than an address like https://host:6443")
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return "", refuse("server", at, "has something else at {{.Part}} than an address like https://host:6443")
	}
	// No zone: which interface of ours a connection leaves by is not for others to say.
	if net.ParseIP(host) == nil && !hostname(host) {
		return "", refuse("server", at, "has something else at {{.Part}} than an address like https://host:6443")
	}
	if p := u.EscapedPath(); p != "" && p != "/" && (p != path.Clean(p) && p != path.Clean(p)+"/" || strings.ContainsAny(p, `%\`)) {
		return "", refuse("server", at, "has something else at {{.Part}} than an address like https://host:6443")
	}
	return (&url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host), Path: strings.TrimSuffix(u.Path, "/")}).String(), nil
}

func hostname(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) {
			return false
		}
	}
	return true
}
