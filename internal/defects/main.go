package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// limit is for the tests of one defect, without the time to build them. One that hangs has noticed.
const limit = "3m"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "defects:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("defects", flag.ContinueOnError)
	only := flags.String("run", "", "only the defects whose id, trust id or package matches")
	verbose := flags.Bool("v", false, "show the output of the tests that notice nothing")
	if err := flags.Parse(args); err != nil {
		return err
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	var chosen []defect
	for _, d := range defects {
		if pattern.MatchString(d.id) || pattern.MatchString(d.trust) || pattern.MatchString(d.pkg) {
			chosen = append(chosen, d)
		}
	}
	if err := sound(ctx, root, chosen, out); err != nil {
		return err
	}
	var missed []string
	for _, d := range chosen {
		began := time.Now()
		v, err := plant(ctx, root, d)
		if err != nil {
			return err
		}
		word, by := "caught", strings.Join(v.failed, ", ")
		switch {
		case v.unbuilt:
			word, by = "UNBUILT", "a compiler is no test"
		case !v.caught():
			word, by = "MISSED", "by "+strings.Join(d.tests, ", ")
		case by == "":
			by = "the end of the package"
		}
		if !v.caught() {
			missed = append(missed, d.id)
		}
		fmt.Fprintf(out, "%-8s %-28s %-10s %4.0fs  %s\n", word, d.id, d.trust, time.Since(began).Seconds(), by)
		if !v.caught() && *verbose {
			fmt.Fprintln(out, v.output)
		}
	}
	fmt.Fprintf(out, "%d of %d defects caught\n", len(chosen)-len(missed), len(chosen))
	if len(missed) > 0 {
		return fmt.Errorf("not caught: %s", strings.Join(missed, ", "))
	}
	return nil
}

// sound makes sure that the tests pass where nothing was planted, each of them.
func sound(ctx context.Context, root string, chosen []defect, out io.Writer) error {
	tests := map[string][]string{}
	var pkgs []string
	for _, d := range chosen {
		if tests[d.pkg] == nil {
			pkgs = append(pkgs, d.pkg)
		}
		tests[d.pkg] = append(tests[d.pkg], d.tests...)
	}
	for _, pkg := range pkgs {
		slices.Sort(tests[pkg])
		names := slices.Compact(tests[pkg])
		v, err := test(ctx, root, "", pkg, names)
		if err != nil {
			return err
		}
		if v.unbuilt || v.broken || len(v.failed) > 0 {
			return fmt.Errorf("%s does not pass as it is: %s\n%s", pkg, strings.Join(v.failed, ", "), v.output)
		}
		for _, name := range names {
			if !slices.Contains(v.passed, name) {
				return fmt.Errorf("%s of %s did not pass: it was skipped or is not there", name, pkg)
			}
		}
		fmt.Fprintf(out, "sound    %s: %d tests\n", pkg, len(names))
	}
	return nil
}

// plant runs the tests of a defect with the defect.
func plant(ctx context.Context, root string, d defect) (v verdict, err error) {
	dir, err := os.MkdirTemp("", "defect-*")
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	overlay, err := d.overlay(root, dir)
	if err != nil {
		return v, err
	}
	return test(ctx, root, overlay, d.pkg, d.tests)
}

func test(ctx context.Context, root, overlay, pkg string, names []string) (verdict, error) {
	args := []string{"test", "-json", "-vet=off", "-timeout", limit, "-run", "^(" + strings.Join(names, "|") + ")$"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	c := exec.CommandContext(ctx, "go", append(args, "./"+pkg)...)
	c.Dir = filepath.Clean(root)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	runErr := c.Run()
	if ctx.Err() != nil {
		return verdict{}, context.Cause(ctx)
	}
	v, err := judge(&stdout)
	if err != nil {
		return v, fmt.Errorf("%s: %w\n%s", pkg, err, stderr.Bytes())
	}
	if _, exited := errors.AsType[*exec.ExitError](runErr); runErr != nil && (!exited || !v.unbuilt && !v.broken) {
		return v, fmt.Errorf("%s: %w\n%s", pkg, runErr, stderr.Bytes())
	}
	return v, nil
}
