package kubetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// The components of a cluster, for Stop and its kin.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	KWOK              = "kwok"
)

// Options say which clusters to start. The zero value means one empty cluster
// named "test".
type Options struct {
	// Clusters are started at the same time.
	Clusters []Spec
	// Tokens are accepted by every API server, besides the administrator's.
	Tokens []Token
	// Args are passed on to a component, by its name.
	Args map[string][]string
	// Trickle is the rate of random changes per second in seeded clusters.
	Trickle float64
	// KeepDir leaves data and logs behind when the clusters are closed.
	KeepDir bool
}

// Spec describes one cluster.
type Spec struct {
	Name string
	// Nodes to seed; none by default.
	Nodes int
	// Profile is what to seed: "fleet" (believable, with workloads), "bare"
	// (healthy nodes, nothing else) or "none". Empty means fleet if there are
	// nodes.
	Profile string
}

// Token is a bearer token for a person with few rights.
type Token struct {
	Value  string
	User   string
	Groups []string
}

// Devcluster is a running set of clusters.
type Devcluster struct {
	// Kubeconfig is a file with a context per cluster, named as it is.
	Kubeconfig string
	// Clusters are in the order of the options.
	Clusters []*Cluster
	// Dir holds a directory per cluster with the components' logs.
	Dir string

	cmd   *exec.Cmd
	close func() error

	mu     sync.Mutex // guards the conversation with the process
	stdin  *os.File
	stdout *os.File
	rest   []byte // read but not consumed
}

// Launch builds the control plane if need be and starts clusters, which run
// until they are closed or this process ends. Tests call [Start] or [Shared].
func Launch(ctx context.Context, opts Options) (*Devcluster, error) {
	bin, err := Build(ctx)
	if err != nil {
		return nil, err
	}
	if len(opts.Clusters) == 0 {
		opts.Clusters = []Spec{{Name: "test"}}
	}
	dir, err := os.MkdirTemp("", "kubetest-")
	if err != nil {
		return nil, err
	}
	d := &Devcluster{Dir: dir}
	d.close = sync.OnceValue(func() error { return d.shutdown(opts.KeepDir) })
	ready, err := d.launch(ctx, bin, opts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting clusters: %w", err), d.Close())
	}
	d.Kubeconfig = ready.Kubeconfig
	for _, c := range ready.Clusters {
		cluster, err := newCluster(d, c)
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		d.Clusters = append(d.Clusters, cluster)
	}
	return d, nil
}

// Cluster returns the cluster of that name, or nil.
func (d *Devcluster) Cluster(name string) *Cluster {
	for _, c := range d.Clusters {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// SetTrickle changes the rate of random changes per second; 0 ends them.
func (d *Devcluster) SetTrickle(rate float64) error {
	_, err := d.command(command{Cmd: "trickle", Rate: rate})
	return err
}

// Close ends all clusters, in order, and waits for it.
func (d *Devcluster) Close() error { return d.close() }

// readyEvent is the program's first line.
type readyEvent struct {
	Kubeconfig string         `json:"kubeconfig"`
	Clusters   []readyCluster `json:"clusters"`
}

type readyCluster struct {
	Name       string `json:"name"`
	Server     string `json:"server"`
	Kubeconfig string `json:"kubeconfig"`
	AuditLog   string `json:"audit_log"`
	CA         string `json:"ca"`
	CAKey      string `json:"ca_key"`
	Token      string `json:"token"`
}

type command struct {
	Cmd       string  `json:"cmd"`
	Cluster   string  `json:"cluster,omitempty"`
	Component string  `json:"component,omitempty"`
	Rate      float64 `json:"rate,omitempty"`
}

type reply struct {
	OK    bool           `json:"ok"`
	Error string         `json:"error"`
	PIDs  map[string]int `json:"pids"`
}

func (d *Devcluster) launch(ctx context.Context, bin string, opts Options) (*readyEvent, error) {
	args := []string{"run", "--stdin", "--dir", d.Dir}
	if !opts.KeepDir {
		args = append(args, "--rm")
	}
	for _, s := range opts.Clusters {
		v := fmt.Sprintf("%s:%d", s.Name, s.Nodes)
		if s.Profile != "" {
			v += ":" + s.Profile
		}
		args = append(args, "--cluster", v)
	}
	for _, t := range opts.Tokens {
		v := t.Value + ":" + t.User
		if len(t.Groups) > 0 {
			v += ":" + strings.Join(t.Groups, ",")
		}
		args = append(args, "--token", v)
	}
	for component, list := range opts.Args {
		for _, arg := range list {
			args = append(args, "--arg", component+"="+arg)
		}
	}
	if opts.Trickle > 0 {
		args = append(args, "--trickle", fmt.Sprint(opts.Trickle))
	}

	// Pipes of our own, so that no goroutine has to copy: tests look for
	// goroutines left behind. The log is a file, because "go test" waits for
	// whoever holds its own standard error.
	childIn, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = childIn.Close() }() // the child has its own, as of the next two
	d.stdin = stdin
	stdout, childOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = childOut.Close() }()
	d.stdout = stdout
	log, err := os.Create(filepath.Join(d.Dir, "devcluster.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()

	cmd := exec.Command(filepath.Join(bin, "devcluster"), args...) //nolint:noctx // it outlives the context of its start
	cmd.Stdin, cmd.Stdout, cmd.Stderr = childIn, childOut, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d.cmd = cmd

	line, err := d.readLine(ctx)
	if err != nil {
		said, _ := os.ReadFile(log.Name()) // only for the message
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(said))
	}
	var ready readyEvent
	if err := json.Unmarshal(line, &ready); err != nil {
		return nil, fmt.Errorf("reading %q: %w", line, err)
	}
	return &ready, nil
}

// command sends one command and waits for its reply.
func (d *Devcluster) command(c command) (*reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := json.NewEncoder(d.stdin).Encode(c); err != nil {
		return nil, fmt.Errorf("%s %s: %w", c.Cmd, c.Component, err)
	}
	line, err := d.readLine(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", c.Cmd, c.Component, err)
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, fmt.Errorf("reading %q: %w", line, err)
	}
	if !r.OK {
		return nil, fmt.Errorf("%s %s: %s", c.Cmd, c.Component, r.Error)
	}
	return &r, nil
}

// readLine reads one line of the program's output.
func (d *Devcluster) readLine(ctx context.Context) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = d.stdout.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 4096)
	for {
		if line, rest, ok := bytes.Cut(d.rest, []byte("\n")); ok {
			d.rest = rest
			return line, nil
		}
		n, err := d.stdout.Read(buf)
		d.rest = append(d.rest, buf[:n]...)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, io.EOF):
			return nil, errors.New("devcluster ended")
		case err != nil:
			return nil, err
		}
	}
}

func (d *Devcluster) shutdown(keepDir bool) error {
	var errs []error
	if d.stdin != nil {
		errs = append(errs, d.stdin.Close())
	}
	if d.cmd != nil {
		kill := time.AfterFunc(time.Minute, func() { _ = d.cmd.Process.Kill() })
		errs = append(errs, d.cmd.Wait())
		kill.Stop()
	}
	if d.stdout != nil {
		errs = append(errs, d.stdout.Close())
	}
	for _, c := range d.Clusters {
		c.closeIdleConnections()
	}
	if !keepDir {
		errs = append(errs, os.RemoveAll(d.Dir))
	}
	return errors.Join(errs...)
}

// Build builds the control plane unless that was done before, and returns the
// directory of its programs.
func Build(ctx context.Context) (string, error) {
	src, err := source(ctx)
	if err != nil {
		return "", fmt.Errorf("finding deploy/devcluster: %w", err)
	}
	cmd := exec.CommandContext(ctx, "sh", filepath.Join(src, "build.sh"))
	cmd.Stderr = os.Stderr // it tells what takes so long
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("building deploy/devcluster (try deploy/devcluster/build.sh by hand): %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// source is the directory of devcluster's module. The path compiled into this
// file finds it at once; a test binary built with -trimpath has to ask.
func source(ctx context.Context) (string, error) {
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		dir := filepath.Join(filepath.Dir(file), "..", "..", "deploy", "devcluster")
		if _, err := os.Stat(filepath.Join(dir, "build.sh")); err == nil {
			return dir, nil
		}
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(filepath.Dir(strings.TrimSpace(string(out))), "deploy", "devcluster")
	_, err = os.Stat(filepath.Join(dir, "build.sh"))
	return dir, err
}
