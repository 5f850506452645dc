package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/app"
)

func TestRun(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "data", "file")
	for _, tt := range []struct {
		name     string
		args     []string
		env      []string
		code     int
		out, err string
	}{
		{name: "version", args: []string{"version"}, out: "dev\n"},
		{name: "help", args: []string{"--help"}, out: "Usage: kube-node-manager"},
		{name: "unknown flag", args: []string{"serve", "--nope"}, code: 2, err: "--nope"},
		{name: "unknown variable", args: []string{"version"}, env: []string{"KNM_NOPE=1"}, code: 2, err: "KNM_NOPE"},
		{name: "failure", args: []string{"serve", "--data-dir", file + "-serve", "--kubeconfig", file, "--listen", "127.0.0.1:0"}, code: 1, err: file},
		{name: "people", args: []string{"user", "list", "--data-dir", file}, out: "NAME"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			code := run(tt.args, tt.env, app.Stdio{In: strings.NewReader(""), Out: &out, Err: &errs})
			if code != tt.code || !strings.Contains(out.String(), tt.out) || !strings.Contains(errs.String(), tt.err) {
				t.Errorf("code %d, out %q, err %q", code, &out, &errs)
			}
		})
	}
}
