// Command demo starts two local clusters with fake nodes, the app in front of them, and prints where to sign in. It
// ends all of it on Ctrl-C. It is what `make demo` runs.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const user = "demo"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type options struct {
	app, devcluster, listen string
	trickle                 float64
	clusters                []string
	dir                     string // working files; removed at the end
}

func run() error {
	var o options
	flag.StringVar(&o.app, "app", "bin/kube-node-manager", "the app's binary")
	flag.StringVar(&o.devcluster, "devcluster", "", "the local control plane's binary")
	flag.StringVar(&o.listen, "listen", "127.0.0.1:8080", "address of the app; another port is taken if it is in use")
	flag.Float64Var(&o.trickle, "trickle", 0.5, "changes a second in the clusters; 0 turns them off")
	clusters := flag.String("clusters", "production:120:fleet,staging:30:fleet", "NAME:NODES:SEED, comma separated")
	flag.Parse()
	o.clusters = strings.Split(*clusters, ",")

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "kube-node-manager-demo-")
	if err != nil {
		return err
	}
	o.dir = dir
	err = demo(ctx, o)
	return errors.Join(ignoreInterrupt(ctx, err), os.RemoveAll(dir))
}

// ignoreInterrupt: what fails because the person pressed Ctrl-C is not a failure.
func ignoreInterrupt(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // it is what was asked for
	}
	return err
}

func demo(ctx context.Context, o options) (err error) {
	fmt.Println("starting two local clusters (etcd, API server, controllers, scheduler, fake nodes) …")
	fleet, err := startClusters(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fleet.stop()) }()

	listen, err := freeAddress(ctx, o.listen)
	if err != nil {
		return err
	}
	password := rand.Text()[:16]
	add := exec.CommandContext(ctx, o.app, "user", "add", user, "--role", "admin", "--password-file", "-", "--data-dir", filepath.Join(o.dir, "data"))
	add.Stdin = strings.NewReader(password + "\n")
	if out, err := add.CombinedOutput(); err != nil {
		return fmt.Errorf("adding the demo's user: %w: %s", err, out)
	}
	appCtx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	app := command(appCtx, o.app, "serve", "--listen", listen, "--data-dir", filepath.Join(o.dir, "data"),
		"--kubeconfig", fleet.kubeconfig, "--metrics-listen", "127.0.0.1:0", "--log-format", "text", "--log-level", "warn")
	app.Stdout, app.Stderr = os.Stdout, os.Stderr
	if err := app.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	var appErr error
	go func() {
		defer close(ended)
		appErr = app.Wait()
	}()
	if err := waitReady(ctx, "http://"+listen+"/readyz", ended); err != nil {
		giveUp()
		<-ended
		return errors.Join(err, appErr)
	}
	fmt.Printf("\n  kube-node-manager  http://%s\n  sign in with       %s  %s\n  kubectl            KUBECONFIG=%s\n\n  t + Enter          turn the trickle of changes off and on\n  Ctrl-C             end everything\n\n",
		listen, user, password, fleet.kubeconfig)
	go fleet.toggleOnInput(o.trickle)
	<-ended // Ctrl-C reaches the app through its context
	return appErr
}

// command is exec.CommandContext that asks with SIGTERM before it kills, and starts in a process group of its own: a
// Ctrl-C in the terminal must reach the app through us, so that the clusters are still there while it says goodbye.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 25 * time.Second
	return c
}

// clusters is the running devcluster program.
type clusters struct {
	cmd        *exec.Cmd
	in         io.WriteCloser
	replies    *bufio.Scanner
	kubeconfig string
}

func startClusters(ctx context.Context, o options) (*clusters, error) {
	args := []string{"run", "--stdin", "--dir", filepath.Join(o.dir, "clusters"), "--trickle", strconv.FormatFloat(o.trickle, 'f', -1, 64)}
	for _, c := range o.clusters {
		args = append(args, "--cluster", c)
	}
	// Not bound to ctx: it is ended by closing its input, after the app has gone.
	cmd := command(context.WithoutCancel(ctx), o.devcluster, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &clusters{cmd: cmd, in: in, replies: bufio.NewScanner(out)}
	stopEarly := context.AfterFunc(ctx, func() { _ = in.Close() }) // the only thing a Ctrl-C during start can do
	defer stopEarly()
	if !c.replies.Scan() {
		return nil, errors.Join(errors.New("the clusters did not start"), c.stop())
	}
	var ready struct {
		Event, Kubeconfig string
	}
	if err := json.Unmarshal(c.replies.Bytes(), &ready); err != nil || ready.Event != "ready" {
		return nil, errors.Join(fmt.Errorf("unexpected word of the clusters: %q", c.replies.Text()), err, c.stop())
	}
	c.kubeconfig = ready.Kubeconfig
	return c, nil
}

func (c *clusters) stop() error {
	return errors.Join(ignoreClosed(c.in.Close()), c.cmd.Wait())
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// toggleOnInput turns the trickle off and on for each line with a t. It ends with the program: a read of the terminal
// cannot be interrupted.
func (c *clusters) toggleOnInput(rate float64) {
	on := rate > 0
	if rate == 0 {
		rate = 0.5
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if strings.TrimSpace(in.Text()) != "t" {
			continue
		}
		on = !on
		set := 0.0
		if on {
			set = rate
		}
		if _, err := fmt.Fprintf(c.in, `{"cmd":"trickle","rate":%g}`+"\n", set); err != nil || !c.replies.Scan() {
			return // the clusters are going
		}
		fmt.Printf("  changes a second: %g\n", set)
	}
}

// freeAddress is addr, or the same host with a free port if addr is taken.
func freeAddress(ctx context.Context, addr string) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		host, _, splitErr := net.SplitHostPort(addr)
		if splitErr != nil {
			return "", splitErr
		}
		if l, err = lc.Listen(ctx, "tcp", net.JoinHostPort(host, "0")); err != nil {
			return "", err
		}
	}
	return l.Addr().String(), l.Close()
}

func waitReady(ctx context.Context, url string, ended <-chan struct{}) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ended:
			return errors.New("the app ended")
		case <-deadline:
			return errors.New("the app was not ready after 30 s")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
