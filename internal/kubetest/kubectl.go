package kubetest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// kubectlProgram is built once in a test binary.
var kubectlProgram = sync.OnceValues(func() (string, error) {
	ctx := context.Background() // not the first test's: the others need it too
	src, err := source(ctx)
	if err != nil {
		return "", fmt.Errorf("finding deploy/devcluster: %w", err)
	}
	cmd := exec.CommandContext(ctx, "sh", filepath.Join(src, "kubectl", "build.sh"))
	cmd.Stderr = os.Stderr // it tells what takes so long
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("building deploy/devcluster/kubectl (try its build.sh by hand): %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "kubectl"), nil
})

// Kubectl runs the real kubectl against the cluster, as its administrator, and returns what it printed; err is that of
// its exit. It knows drain, cordon and uncordon only, and is of the version of the control plane.
func (c *Cluster) Kubectl(tb testing.TB, args ...string) (stdout, stderr string, err error) {
	tb.Helper()
	program, err := kubectlProgram()
	if err != nil {
		tb.Fatalf("kubetest: %v", err)
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(tb.Context(), program, append([]string{"--kubeconfig", c.Kubeconfig}, args...)...) //nolint:gosec // the arguments are the test's
	cmd.Stdout, cmd.Stderr = &out, &said
	err = cmd.Run()
	return out.String(), said.String(), err
}
