// Command kubectl is the part of kubectl that drains nodes, built from its own sources: what tests compare a drain and
// its plan with.
package main

import (
	"os"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/kubectl/pkg/cmd/drain"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	root := &cobra.Command{Use: "kubectl", SilenceUsage: true}
	flags := genericclioptions.NewConfigFlags(true)
	flags.AddFlags(root.PersistentFlags())
	factory := cmdutil.NewFactory(cmdutil.NewMatchVersionFlags(flags))
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	root.AddCommand(drain.NewCmdDrain(factory, streams), drain.NewCmdCordon(factory, streams), drain.NewCmdUncordon(factory, streams))
	if err := root.Execute(); err != nil { // which has said why
		os.Exit(1)
	}
}
