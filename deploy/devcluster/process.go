package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is one component as a child process. It is used by one goroutine at
// a time, except for done, which anybody may wait on.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the child has been reaped; err is set by then
	err  error
}

// spawner starts every child from one thread that lives as long as the
// program: the kernel sends the parent-death signal when the *thread* that
// forked the child ends, and Go ends idle threads as it likes.
type spawner struct{ requests chan func() }

func newSpawner() *spawner {
	s := &spawner{requests: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for f := range s.requests {
			f()
		}
	}()
	return s
}

// start runs the command with its output appended to the log file.
func (s *spawner) start(path string, args []string, log string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the child has its own copy
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = childAttr()
	started := make(chan error)
	s.requests <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// stop asks the child to end, and kills it when it has not ended after grace.
// It returns when the child is gone.
func (p *process) stop(grace time.Duration) {
	if !p.running() {
		return
	}
	_ = p.signal(syscall.SIGCONT) // a paused child would not see the next signal
	_ = p.signal(syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.kill()
	}
}

func (p *process) kill() {
	if p.running() {
		_ = p.signal(syscall.SIGKILL)
		<-p.done
	}
}

// waitReady asks the probe until it says nil; it gives up when the child ends
// or ctx does, and then says what the child last wrote to its log.
func (p *process) waitReady(ctx context.Context, name string, probe func(context.Context) error) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return &startError{component: name, cause: fmt.Errorf("exited: %v", p.err), log: p.log}
		case <-ctx.Done():
			return &startError{component: name, cause: fmt.Errorf("%w; last answer: %v", context.Cause(ctx), err), log: p.log}
		case <-tick.C:
		}
	}
}

// startError says which component did not come up, with the end of its log.
type startError struct {
	component string
	cause     error
	log       string
}

func (e *startError) Unwrap() error { return e.cause }

func (e *startError) Error() string {
	return fmt.Sprintf("starting %s: %v; the end of %s:\n%s", e.component, e.cause, e.log, tail(e.log, 20))
}

// portTaken reports whether the component ended because another process got
// one of its ports first.
func (e *startError) portTaken() bool {
	return strings.Contains(tail(e.log, 20), "address already in use")
}

func tail(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// parallel runs the functions at once and joins their errors.
func parallel(fs ...func() error) error {
	errs := make([]error, len(fs))
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}
