package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// The components of a cluster, by the names of their programs.
const (
	etcd                  = "etcd"
	kubeAPIServer         = "kube-apiserver"
	kubeControllerManager = "kube-controller-manager"
	kubeScheduler         = "kube-scheduler"
	kwok                  = "kwok"
)

// components is the order of stopping.
var components = []string{kwok, kubeScheduler, kubeControllerManager, kubeAPIServer, etcd}

// offlineLabel on a node makes KWOK leave it alone: its kubelet is gone.
const offlineLabel = "devcluster/offline"

// The users that the audit policy leaves out, and the trickle's.
const (
	kwokUser    = "devcluster:kwok"
	seedUser    = "devcluster:seed"
	trickleUser = "devcluster:trickle"
)

const (
	startTimeout = 2 * time.Minute // generous: two cores may be busy with a build
	stopGrace    = 10 * time.Second
)

//go:embed audit.yaml
var auditPolicy []byte

//go:embed stages.yaml
var stages []byte

// clusterSpec is one --cluster flag.
type clusterSpec struct {
	name    string
	nodes   int
	profile string
}

// options are what all clusters of a run have in common.
type options struct {
	dir        string
	self       string // this program
	kwok       string // KWOK's
	tokens     []token
	args       map[string][]string // further arguments by component
	nodePrefix string
	seed       bool
}

// token is one line of the API server's token file.
type token struct {
	value, user string
	groups      []string
}

// cluster is one control plane and its simulated kubelets. It is driven by one
// goroutine at a time.
type cluster struct {
	clusterSpec
	opts    *options
	spawner *spawner
	dir     string
	admin   string // bearer token
	row     *portRange
	ports   map[string]int // those of row
	probes  *http.Client

	mu    sync.Mutex // guards procs: the watcher of unasked exits reads it
	procs map[string]*process
}

func newCluster(spec clusterSpec, opts *options, sp *spawner) (*cluster, error) {
	c := &cluster{
		clusterSpec: spec,
		opts:        opts,
		spawner:     sp,
		dir:         filepath.Join(opts.dir, spec.name),
		procs:       map[string]*process{},
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	if err := writePKI(c.pki("")); err != nil {
		return nil, fmt.Errorf("writing keys: %w", err)
	}
	admin, err := os.ReadFile(c.pki(adminToken))
	if err != nil {
		return nil, err
	}
	c.admin = string(admin)
	ca, err := os.ReadFile(c.pki(caCert))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	c.probes = &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true},
	}
	return c, errors.Join(
		os.WriteFile(c.path("audit-policy.yaml"), auditPolicy, 0o644),
		os.WriteFile(c.path("stages.yaml"), stages, 0o644),
		os.WriteFile(c.path("tokens.csv"), c.tokenFile(), 0o600),
	)
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }
func (c *cluster) pki(name string) string  { return filepath.Join(c.dir, "pki", name) }

func (c *cluster) kubeconfig() string { return c.path("kubeconfig") }
func (c *cluster) auditLog() string   { return c.path("audit.log") }
func (c *cluster) server() string     { return fmt.Sprintf("https://127.0.0.1:%d", c.ports[kubeAPIServer]) }

// userToken is the token of one of our own users.
func (c *cluster) userToken(user string) string {
	return c.admin + "-" + strings.ReplaceAll(user, ":", "-")
}

func (c *cluster) tokenFile() []byte {
	const masters = "system:masters"
	tokens := []token{{c.admin, "admin", []string{masters}}}
	for _, user := range []string{"system:kube-controller-manager", "system:kube-scheduler", kwokUser, seedUser, trickleUser} {
		tokens = append(tokens, token{c.userToken(user), user, []string{masters}})
	}
	var b strings.Builder
	for _, t := range append(tokens, c.opts.tokens...) {
		fmt.Fprintf(&b, "%s,%s,%s,%q\n", t.value, t.user, t.user, strings.Join(t.groups, ","))
	}
	return []byte(b.String())
}

// config is a client configuration acting as one of the users in our token file.
func (c *cluster) config(tok string) *rest.Config {
	return &rest.Config{
		Host:            c.server(),
		BearerToken:     tok,
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.pki(caCert)},
		ContentConfig:   rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf"},
		QPS:             -1, // the server's own fairness is enough
	}
}

func (c *cluster) client(user string) (*kubernetes.Clientset, error) {
	return kubernetes.NewForConfig(c.config(c.userToken(user)))
}

// kubeconfigEntry adds this cluster, with its administrator, to a kubeconfig.
func (c *cluster) kubeconfigEntry(config *clientcmdapi.Config, tok string) error {
	ca, err := os.ReadFile(c.pki(caCert))
	if err != nil {
		return err
	}
	config.Clusters[c.name] = &clientcmdapi.Cluster{Server: c.server(), CertificateAuthorityData: ca}
	config.AuthInfos[c.name+"-admin"] = &clientcmdapi.AuthInfo{Token: tok}
	config.Contexts[c.name] = &clientcmdapi.Context{Cluster: c.name, AuthInfo: c.name + "-admin"}
	if config.CurrentContext == "" {
		config.CurrentContext = c.name
	}
	return nil
}

func (c *cluster) writeKubeconfig(path, tok string) error {
	config := clientcmdapi.NewConfig()
	if err := c.kubeconfigEntry(config, tok); err != nil {
		return err
	}
	return clientcmd.WriteToFile(*config, path)
}

// up starts everything, on new ports when another process was quicker to take
// one of those picked.
func (c *cluster) up(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := c.tryUp(ctx)
		if err == nil {
			return nil
		}
		c.down()
		if e, ok := errors.AsType[*startError](err); !ok || !e.portTaken() || attempt == 5 {
			return fmt.Errorf("cluster %s: %w", c.name, err)
		}
	}
}

func (c *cluster) tryUp(ctx context.Context) error {
	var err error
	if c.row, err = reservePorts("etcd-peer", etcd, kubeAPIServer, kubeControllerManager, kubeScheduler, kwok); err != nil {
		return err
	}
	c.ports = c.row.ports
	err = errors.Join(
		c.writeKubeconfig(c.kubeconfig(), c.admin),
		c.writeKubeconfig(c.pki(kubeControllerManager+".kubeconfig"), c.userToken("system:kube-controller-manager")),
		c.writeKubeconfig(c.pki(kubeScheduler+".kubeconfig"), c.userToken("system:kube-scheduler")),
		c.writeKubeconfig(c.pki(kwok+".kubeconfig"), c.userToken(kwokUser)),
	)
	if err != nil {
		return err
	}
	for _, name := range []string{etcd, kubeAPIServer} {
		if err := c.startComponent(ctx, name); err != nil {
			return err
		}
	}
	return parallel(
		func() error { return c.startComponent(ctx, kubeControllerManager) },
		func() error { return c.startComponent(ctx, kubeScheduler) },
		func() error { return c.startComponent(ctx, kwok) },
	)
}

// down stops everything in order.
func (c *cluster) down() {
	_ = parallel( // stopping returns no errors
		func() error { c.stopComponent(kwok); return nil },
		func() error { c.stopComponent(kubeScheduler); return nil },
		func() error { c.stopComponent(kubeControllerManager); return nil },
	)
	c.stopComponent(kubeAPIServer)
	c.stopComponent(etcd)
	if c.row != nil {
		c.row.release()
		c.row = nil
	}
}

func (c *cluster) process(name string) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.procs[name]
}

// startComponent starts one component on its port and returns when it is ready
// to serve. A component that runs is left alone.
func (c *cluster) startComponent(ctx context.Context, name string) error {
	if !slices.Contains(components, name) {
		return fmt.Errorf("no component %q", name)
	}
	if c.process(name).running() {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("not ready in time"))
	defer cancel()
	if name == kwok {
		if err := c.freeLeases(ctx); err != nil {
			return err
		}
	}
	path, args := c.opts.self, append([]string{name}, c.args(name)...)
	if name == kwok {
		path, args = c.opts.kwok, args[1:]
	}
	p, err := c.spawner.start(path, append(args, c.opts.args[name]...), c.path(name+".log"))
	if err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	c.mu.Lock()
	c.procs[name] = p
	c.mu.Unlock()
	return p.waitReady(ctx, name, func(ctx context.Context) error { return c.probe(ctx, name) })
}

func (c *cluster) stopComponent(name string) {
	if p := c.process(name); p != nil {
		p.stop(stopGrace)
	}
}

// freeLeases takes the nodes' leases from a KWOK that is no more: the next one
// has a new identity and would wait for each of them to run out.
func (c *cluster) freeLeases(ctx context.Context) error {
	client, err := c.client(seedUser)
	if err != nil {
		return err
	}
	err = client.CoordinationV1().Leases("kube-node-lease").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("freeing node leases: %w", err)
	}
	return nil
}

func (c *cluster) signalComponent(name string, sig syscall.Signal) error {
	p := c.process(name)
	if !p.running() {
		return fmt.Errorf("%s does not run", name)
	}
	if sig == syscall.SIGKILL {
		p.kill()
		return nil
	}
	return p.signal(sig)
}

// probe asks a component whether it is ready.
func (c *cluster) probe(ctx context.Context, name string) error {
	url := fmt.Sprintf("https://127.0.0.1:%d/", c.ports[name])
	switch name {
	case etcd:
		url = fmt.Sprintf("http://127.0.0.1:%d/readyz", c.ports[name])
	case kubeAPIServer, kubeScheduler:
		url += "readyz"
	case kubeControllerManager:
		url += "healthz"
	case kwok:
		url = fmt.Sprintf("http://127.0.0.1:%d/healthz", c.ports[name])
	}
	if err := c.get(ctx, url); err != nil || name != kubeAPIServer {
		return err
	}
	// What everybody takes for granted is made by the server after it is ready.
	return errors.Join(
		c.get(ctx, c.server()+"/api/v1/namespaces/default"),
		c.get(ctx, c.server()+"/api/v1/namespaces/kube-node-lease"),
	)
}

func (c *cluster) get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.userToken(seedUser))
	resp, err := c.probes.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // only for the message
		return fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return nil
}

// args are the arguments of a component.
func (c *cluster) args(name string) []string {
	port := func(name string) string { return strconv.Itoa(c.ports[name]) }
	secure := []string{
		"--bind-address=127.0.0.1",
		"--secure-port=" + port(name),
		"--tls-cert-file=" + c.pki(servingCert),
		"--tls-private-key-file=" + c.pki(servingKey),
	}
	switch name {
	case etcd:
		client, peer := "http://127.0.0.1:"+port(etcd), "http://127.0.0.1:"+port("etcd-peer")
		return []string{
			"--name=devcluster",
			"--data-dir=" + c.path("etcd"),
			"--unsafe-no-fsync",
			"--listen-client-urls=" + client,
			"--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer,
			"--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=devcluster=" + peer,
			"--quota-backend-bytes=" + strconv.Itoa(8<<30),
			"--log-level=warn",
		}
	case kubeAPIServer:
		return append(secure,
			"--advertise-address=127.0.0.1",
			"--etcd-servers=http://127.0.0.1:"+port(etcd),
			"--client-ca-file="+c.pki(caCert),
			"--requestheader-client-ca-file="+c.pki(frontProxyCert),
			"--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file="+c.pki(accountPub),
			"--service-account-signing-key-file="+c.pki(accountKey),
			"--token-auth-file="+c.path("tokens.csv"),
			"--authorization-mode=Node,RBAC",
			"--disable-admission-plugins=ServiceAccount",
			"--service-cluster-ip-range=10.96.0.0/16",
			"--endpoint-reconciler-type=none",
			"--audit-policy-file="+c.path("audit-policy.yaml"),
			"--audit-log-path="+c.auditLog(),
			"--audit-log-mode=blocking",   // what was answered is in the log
			"--audit-log-maxsize=1000000", // MB: never rotated, so that an offset stays one
			"--allow-privileged",
		)
	case kubeControllerManager:
		args := append(secure,
			"--kubeconfig="+c.pki(kubeControllerManager+".kubeconfig"),
			"--leader-elect=false",
			// It would write to every node whenever a cluster has grown past some size.
			"--controllers=*,-ttl-controller",
			"--service-account-private-key-file="+c.pki(accountKey),
			"--root-ca-file="+c.pki(caCert),
			"--kube-api-qps=1000",
			"--kube-api-burst=2000",
		)
		if d := c.leaseDuration(); d > 40 {
			args = append(args, fmt.Sprintf("--node-monitor-grace-period=%ds", d+10))
		}
		return args
	case kubeScheduler:
		return append(secure,
			"--kubeconfig="+c.pki(kubeScheduler+".kubeconfig"),
			"--leader-elect=false",
			"--kube-api-qps=1000",
			"--kube-api-burst=2000",
		)
	case kwok:
		return []string{
			"--kubeconfig=" + c.pki(kwok+".kubeconfig"),
			"--config=" + c.path("stages.yaml"),
			"--server-address=127.0.0.1:" + port(kwok),
			"--manage-nodes-with-label-selector=!" + offlineLabel,
			"--node-lease-duration-seconds=" + strconv.Itoa(c.leaseDuration()),
			"--cidr=10.244.0.0/16",
			"--node-ip=127.0.0.1",
		}
	}
	return nil
}

// leaseDuration is the kubelet's default; it is longer in a big cluster, so that
// there are never more than some 30 renewals per second, and two cores have time
// for what is to be tried.
func (c *cluster) leaseDuration() int { return max(40, c.nodes/8) }

// portRange is a row of ports that belongs to one cluster.
type portRange struct {
	guard net.Listener // on the first port: another devcluster finds the row taken
	ports map[string]int
}

// reservePorts finds a port for each name. They lie below those that kernels
// give to outgoing connections, so that a stopped component finds its port free
// when it is started again.
func reservePorts(names ...string) (*portRange, error) {
	const first, rows = 20000, 1200
	for attempt := 1; ; attempt++ {
		base := first + 10*rand.IntN(rows)
		r, err := reserveRow(base, names)
		if err == nil {
			return r, nil
		}
		if attempt == 100 {
			return nil, fmt.Errorf("finding free ports: %w", err)
		}
	}
}

func reserveRow(base int, names []string) (*portRange, error) {
	listen := func(port int) (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)) }
	guard, err := listen(base)
	if err != nil {
		return nil, err
	}
	r := &portRange{guard: guard, ports: map[string]int{}}
	for i, name := range names {
		l, err := listen(base + 1 + i)
		if err != nil {
			r.release()
			return nil, err
		}
		_ = l.Close() // nothing was served on it
		r.ports[name] = base + 1 + i
	}
	return r, nil
}

func (r *portRange) release() { _ = r.guard.Close() } // nothing was served on it
