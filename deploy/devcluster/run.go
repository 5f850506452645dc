package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// settings are the parsed flags of run.
type settings struct {
	options
	clusters   []clusterSpec
	kubeconfig string
	trickle    float64
	stdin      bool
	remove     bool
}

func parse(args []string, stderr io.Writer) (*settings, error) {
	s := &settings{options: options{args: map[string][]string{}}}
	fs := flag.NewFlagSet("devcluster run", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&s.dir, "dir", "", "directory for data, keys and logs, one subdirectory per cluster; an earlier run's data is used again")
	fs.Func("cluster", "`NAME[:NODES[:PROFILE]]` of a cluster, repeatable; profiles: "+strings.Join(profiles, ", ")+" (default fleet, or none without nodes)", func(v string) error {
		spec, err := parseCluster(v)
		s.clusters = append(s.clusters, spec)
		return err
	})
	fs.StringVar(&s.kubeconfig, "kubeconfig", "", "file to write with a context per cluster (default DIR/kubeconfig)")
	fs.StringVar(&s.kwok, "kwok", "", "KWOK's program (default: kwok beside this one)")
	fs.StringVar(&s.nodePrefix, "node-prefix", "", "prefix of seeded node names (default: the cluster's name)")
	fs.Float64Var(&s.trickle, "trickle", 0, "changes per second made to each seeded cluster, as by colleagues and machines")
	fs.BoolVar(&s.remove, "rm", false, "remove the directory in the end")
	fs.BoolVar(&s.stdin, "stdin", false, "read commands from standard input, end when it does")
	fs.Func("token", "`TOKEN:USER[:GROUP,GROUP]` accepted by the API servers besides the administrator's, repeatable", func(v string) error {
		t, err := parseToken(v)
		s.tokens = append(s.tokens, t)
		return err
	})
	fs.Func("arg", "`COMPONENT=ARGUMENT` passed to a component in every cluster, repeatable", func(v string) error {
		name, arg, ok := strings.Cut(v, "=")
		if !ok || !slices.Contains(components, name) {
			return errors.New("want COMPONENT=ARGUMENT")
		}
		s.args[name] = append(s.args[name], arg)
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return nil, flag.ErrHelp // reported by the flag set already
	}
	switch {
	case fs.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case s.dir == "":
		return nil, errors.New("--dir is missing")
	case len(s.clusters) == 0:
		return nil, errors.New("--cluster is missing")
	}
	seen := map[string]bool{}
	for _, c := range s.clusters {
		if seen[c.name] {
			return nil, fmt.Errorf("two clusters named %q", c.name)
		}
		seen[c.name] = true
	}
	var err error
	if s.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if s.kwok == "" {
		s.kwok = filepath.Join(filepath.Dir(s.self), kwok)
	}
	if s.dir, err = filepath.Abs(s.dir); err != nil {
		return nil, err
	}
	if s.kubeconfig == "" {
		s.kubeconfig = filepath.Join(s.dir, "kubeconfig")
	}
	return s, nil
}

func parseCluster(v string) (clusterSpec, error) {
	parts := strings.Split(v, ":")
	spec := clusterSpec{name: parts[0], profile: "none"}
	if spec.name == "" || strings.ContainsAny(spec.name, "/\\ ") || spec.name == "." || spec.name == ".." || len(parts) > 3 {
		return spec, errors.New("want NAME[:NODES[:PROFILE]]")
	}
	if len(parts) > 1 {
		n, err := strconv.Atoi(parts[1])
		if err != nil || n < 0 {
			return spec, fmt.Errorf("%q is not a number of nodes", parts[1])
		}
		if spec.nodes = n; n > 0 {
			spec.profile = "fleet"
		}
	}
	if len(parts) > 2 {
		spec.profile = parts[2]
	}
	if !slices.Contains(profiles, spec.profile) {
		return spec, fmt.Errorf("no profile %q", spec.profile)
	}
	return spec, nil
}

func parseToken(v string) (token, error) {
	parts := strings.Split(v, ":")
	if len(parts) < 2 || parts[0] == "" || parts[1] == "" {
		return token{}, errors.New("want TOKEN:USER[:GROUP,GROUP]")
	}
	t := token{value: parts[0], user: parts[1]}
	if len(parts) > 2 { // a group may hold colons, as system:masters does
		t.groups = strings.Split(strings.Join(parts[2:], ":"), ",")
	}
	return t, nil
}

// readyEvent is the one line that run prints when all clusters are up.
type readyEvent struct {
	Event      string         `json:"event"`
	Kubeconfig string         `json:"kubeconfig"`
	Clusters   []readyCluster `json:"clusters"`
	Seconds    float64        `json:"seconds"`
}

type readyCluster struct {
	Name       string `json:"name"`
	Server     string `json:"server"`
	Kubeconfig string `json:"kubeconfig"`
	AuditLog   string `json:"audit_log"`
	CA         string `json:"ca"`
	CAKey      string `json:"ca_key"`
	Token      string `json:"token"`
	Nodes      int    `json:"nodes"`
}

// run is the program: it starts the clusters, says so, obeys commands, and
// takes everything down when ctx or the standard input ends.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	begin := time.Now()
	s, err := parse(args, stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// Reading begins at once: the end of input must end a slow start as well.
	var commands <-chan string
	if s.stdin {
		commands = lines(stdin, func() { cancel(errEndOfInput) })
	}

	if s.remove {
		defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	}
	sp := newSpawner()
	f := &fleet{}
	for _, spec := range s.clusters {
		c, err := newCluster(spec, &s.options, sp)
		if err != nil {
			return fmt.Errorf("cluster %s: %w", spec.name, err)
		}
		f.clusters = append(f.clusters, c)
	}
	defer f.down()
	if err := f.up(ctx); err != nil {
		return err
	}
	if err := f.writeKubeconfig(s.kubeconfig); err != nil {
		return fmt.Errorf("writing kubeconfig: %w", err)
	}
	if f.trickle, err = newTrickle(f.clusters); err != nil {
		return fmt.Errorf("preparing trickle: %w", err)
	}
	defer f.trickle.set(0)
	f.trickle.set(s.trickle)

	ready := readyEvent{Event: "ready", Kubeconfig: s.kubeconfig, Seconds: time.Since(begin).Round(time.Millisecond).Seconds()}
	for _, c := range f.clusters {
		ready.Clusters = append(ready.Clusters, readyCluster{
			Name: c.name, Server: c.server(), Kubeconfig: c.kubeconfig(), AuditLog: c.auditLog(),
			CA: c.pki(caCert), CAKey: c.pki(caKey), Token: c.admin, Nodes: c.nodes,
		})
	}
	if err := json.NewEncoder(stdout).Encode(ready); err != nil {
		return err
	}
	return f.serve(ctx, commands, stdout)
}

var errEndOfInput = errors.New("end of input")

// lines sends what is read, and calls end when there is no more of it. The
// reader cannot be interrupted; it ends with the program.
func lines(r io.Reader, end func()) <-chan string {
	ch := make(chan string)
	go func() {
		defer end()
		for scanner := bufio.NewScanner(r); scanner.Scan(); {
			ch <- scanner.Text()
		}
	}()
	return ch
}

// fleet is all clusters of a run.
type fleet struct {
	clusters []*cluster
	trickle  *trickle
}

func (f *fleet) up(ctx context.Context) error {
	var starts []func() error
	for _, c := range f.clusters {
		starts = append(starts, func() error {
			if err := c.up(ctx); err != nil {
				return err
			}
			return c.seed(ctx)
		})
	}
	return parallel(starts...)
}

func (f *fleet) down() {
	var stops []func() error
	for _, c := range f.clusters {
		stops = append(stops, func() error { c.down(); return nil })
	}
	_ = parallel(stops...) // stopping returns no errors
}

func (f *fleet) writeKubeconfig(path string) error {
	config := clientcmdapi.NewConfig()
	for _, c := range f.clusters {
		if err := c.kubeconfigEntry(config, c.admin); err != nil {
			return err
		}
	}
	return clientcmd.WriteToFile(*config, path)
}
