// Command devcluster runs real Kubernetes control planes on loopback, without a
// container engine, for the tests, the benchmarks and the demo.
//
// One binary holds everything but the kubelets: called with the name of a
// component as its first argument (etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler) it is that component, called with
// "run" it starts clusters made of copies of itself and of KWOK, which plays
// the kubelets. See README.md for the flags and the control protocol.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // as the upstream main packages do
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	name := os.Args[1]
	switch name {
	case etcd, kubeAPIServer, kubeControllerManager, kubeScheduler:
		os.Args = os.Args[1:]
	}
	switch name {
	case etcd:
		etcdmain.Main(os.Args)
	case kubeAPIServer:
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case kubeControllerManager:
		os.Exit(cli.Run(controllers.NewControllerManagerCommand()))
	case kubeScheduler:
		os.Exit(cli.Run(scheduler.NewSchedulerCommand()))
	case "run":
		os.Exit(runMain(os.Args[2:]))
	default:
		usage()
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: devcluster run --dir DIR --cluster NAME[:NODES[:PROFILE]] … (run -h lists the flags)")
	os.Exit(2)
}

func runMain(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, args, os.Stdin, os.Stdout, os.Stderr)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		return 2
	default:
		fmt.Fprintln(os.Stderr, "devcluster:", err)
		return 1
	}
}
