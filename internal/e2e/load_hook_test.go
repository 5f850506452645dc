package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"
)

// hooked makes the program under test listen to the test on two pipes: it is this binary, so that the product needs no
// door for profiles.
const hooked = "KNM_E2E_HOOK"

// The pipes' numbers in the child.
const hookAsks, hookAnswers = 3, 4

// order is what a test asks of the program under test.
type order struct {
	Do   string `json:"do"`             // stats, heap, cpu, stop
	File string `json:"file,omitempty"` // where a profile goes
}

// innards is what the program under test says of itself, after a collection.
type innards struct {
	Error      string `json:"error,omitempty"`
	Heap       uint64 `json:"heap"`  // live bytes
	Stack      uint64 `json:"stack"` // bytes
	Objects    uint64 `json:"objects"`
	Goroutines int    `json:"goroutines"`
}

// serveHook answers the test until the process ends.
func serveHook() {
	asks, answers := os.NewFile(hookAsks, "asks"), os.NewFile(hookAnswers, "answers")
	go func() { // ends with the test's end of the pipe, at the latest with the process
		lines := bufio.NewScanner(asks)
		for lines.Scan() {
			var o order
			var in innards
			err := json.Unmarshal(lines.Bytes(), &o)
			if err == nil {
				in, err = o.obey()
			}
			if err != nil {
				in.Error = err.Error()
			}
			b, err := json.Marshal(in)
			if err == nil {
				_, err = answers.Write(append(b, '\n'))
			}
			if err != nil {
				return // nobody asks any more
			}
		}
	}()
}

func (o order) obey() (innards, error) {
	switch o.Do {
	case "cpu":
		f, err := os.Create(o.File)
		if err != nil {
			return innards{}, err
		}
		return innards{}, pprof.StartCPUProfile(f) // the file stays open until the process ends
	case "stop":
		pprof.StopCPUProfile()
		return innards{}, nil
	}
	runtime.GC()
	runtime.GC() // what the first one's finalizers let go
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	in := innards{Heap: m.HeapAlloc, Stack: m.StackInuse, Objects: m.HeapObjects, Goroutines: runtime.NumGoroutine()}
	switch o.Do {
	case "trim":
		debug.FreeOSMemory()
	case "heap":
		f, err := os.Create(o.File)
		if err != nil {
			return in, err
		}
		return in, errors.Join(pprof.Lookup("heap").WriteTo(f, 0), f.Close())
	}
	return in, nil
}

// hook is the test's side.
type hook struct {
	asks    *os.File
	answers *bufio.Reader
	close   func()
}

// newHook gives the command its ends of the pipes. The caller calls started once the command runs.
func newHook(cmd *exec.Cmd) (h *hook, started func(), err error) {
	askR, askW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	ansR, ansW, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, askR.Close(), askW.Close())
	}
	cmd.ExtraFiles = []*os.File{askR, ansW}
	cmd.Env = append(cmd.Env, hooked+"=1")
	h = &hook{asks: askW, answers: bufio.NewReader(ansR), close: func() { _ = askW.Close(); _ = ansR.Close() }}
	return h, func() { _ = askR.Close(); _ = ansW.Close() }, nil
}

func (h *hook) ask(o order) (innards, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return innards{}, err
	}
	if _, err := h.asks.Write(append(b, '\n')); err != nil {
		return innards{}, err
	}
	line, err := h.answers.ReadBytes('\n')
	if err != nil {
		return innards{}, err
	}
	var in innards
	if err := json.Unmarshal(line, &in); err != nil {
		return innards{}, err
	}
	if in.Error != "" {
		return in, errors.New(in.Error)
	}
	return in, nil
}

// innards asks the program under test what it holds.
func (s *server) innards(tb testing.TB) innards {
	tb.Helper()
	in, err := s.hook.ask(order{Do: "stats"})
	if err != nil {
		tb.Fatalf("asking the program under test: %v", err)
	}
	return in
}

// profile writes a heap profile of the program under test into the directory that KNM_BENCH_PROFILES names, if any.
func (s *server) profile(tb testing.TB, name string) {
	tb.Helper()
	path := profilePath(tb, name+".heap.pprof")
	if path == "" {
		return
	}
	if _, err := s.hook.ask(order{Do: "heap", File: path}); err != nil {
		tb.Fatalf("heap profile: %v", err)
	}
}

// cpuProfile profiles the program under test until the returned function is called, if profiles are wanted.
func (s *server) cpuProfile(tb testing.TB, name string) (stop func()) {
	tb.Helper()
	path := profilePath(tb, name+".cpu.pprof")
	if path == "" {
		return func() {}
	}
	if _, err := s.hook.ask(order{Do: "cpu", File: path}); err != nil {
		tb.Fatalf("CPU profile: %v", err)
	}
	return func() {
		tb.Helper()
		if _, err := s.hook.ask(order{Do: "stop"}); err != nil {
			tb.Fatalf("CPU profile: %v", err)
		}
	}
}

// profilesEnv names a directory for profiles of the program under test.
const profilesEnv = "KNM_BENCH_PROFILES"

// profilePath is where a profile goes, "" if none are wanted.
func profilePath(tb testing.TB, name string) string {
	tb.Helper()
	dir := os.Getenv(profilesEnv)
	if dir == "" {
		return ""
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// usage is what the kernel says of a process.
type usage struct {
	at   time.Time
	cpu  time.Duration // user and system
	rss  float64       // MiB, with the pages of the program's file that are in use
	anon float64       // MiB of rss that belong to no file
	peak float64       // MiB, since the start or the last reset
}

// usage reads what the program under test takes.
func (s *server) usage(tb testing.TB) usage {
	tb.Helper()
	u, err := usageOf(s.cmd.Process.Pid)
	if err != nil {
		tb.Fatalf("reading the program's usage: %v", err)
	}
	return u
}

// clockTicks is USER_HZ, 100 on every Linux.
const clockTicks = 100

func usageOf(pid int) (usage, error) {
	u := usage{at: time.Now()}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		into := map[string]*float64{"VmRSS": &u.rss, "RssAnon": &u.anon, "VmHWM": &u.peak}[name]
		if into == nil {
			continue
		}
		kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
		if err != nil {
			return u, fmt.Errorf("%s: %w", name, err)
		}
		*into = kb / 1024
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// The name, in parentheses, may hold anything; after it come the state and ten more before the times.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return u, io.ErrUnexpectedEOF
	}
	for _, f := range fields[11:13] {
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(ticks) * time.Second / clockTicks
	}
	return u, nil
}

// resetPeak makes the kernel forget the highest resident size so far.
func (s *server) resetPeak(tb testing.TB) {
	tb.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.cmd.Process.Pid), []byte("5"), 0); err != nil {
		tb.Logf("the peak is that since the start: %v", err)
	}
}
