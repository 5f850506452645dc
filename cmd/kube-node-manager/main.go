// Command kube-node-manager shows the nodes of Kubernetes clusters live and changes them safely.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/kube-node-manager/kube-node-manager/internal/app"
	"github.com/kube-node-manager/kube-node-manager/internal/config"
)

// version is set when a release is built.
var version = "dev"

func main() {
	os.Exit(run(os.Args[1:], os.Environ(), app.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}

// run is 0 for success, 1 for failure and 2 for a command line or an environment that makes no sense.
func run(args, environ []string, std app.Stdio) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks, a second one kills: from then on it has its usual effect.
	defer context.AfterFunc(ctx, stop)()

	std = std.Inert() // what is wrong is told in words of others too
	cfg, err := config.Parse(args, environ, std.Out)
	if errors.Is(err, config.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(std.Err, "kube-node-manager:", err)
		return 2
	}
	if err := app.Execute(ctx, cfg, version, std); err != nil {
		fmt.Fprintln(std.Err, "kube-node-manager:", err)
		return 1
	}
	return 0
}
