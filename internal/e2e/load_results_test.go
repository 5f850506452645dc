package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// result is one line of the table.
type result struct {
	scenario, what, unit string
	value                float64
	bar, goal            string // as the mission says it; "" where it says nothing
}

// results are those of this process, in order.
var results struct {
	mu   sync.Mutex // guards list
	list []result
}

// score keeps a number for the table and gives it to the benchmark. Unit may be "" for plain numbers.
type score struct {
	tb       testing.TB
	scenario string
}

func scoreOf(tb testing.TB, scenario string) score {
	tb.Helper()
	return score{tb, scenario}
}

func (s score) add(what string, value float64, unit string, bars ...string) {
	s.tb.Helper()
	r := result{scenario: s.scenario, what: what, value: value, unit: unit}
	if len(bars) > 0 {
		r.bar = bars[0]
	}
	if len(bars) > 1 {
		r.goal = bars[1]
	}
	results.mu.Lock()
	results.list = append(results.list, r)
	results.mu.Unlock()
	if b, ok := s.tb.(*testing.B); ok {
		metric := strings.ReplaceAll(what, " ", "-")
		if unit != "" {
			metric += "-" + strings.ReplaceAll(unit, " ", "-")
		}
		b.ReportMetric(value, metric)
	} else {
		s.tb.Logf("%s: %s %s %s", s.scenario, what, number(value), unit)
	}
}

// done ends a benchmark's scenario: the time it took means nothing.
func (s score) done() {
	if b, ok := s.tb.(*testing.B); ok {
		b.ReportMetric(0, "ns/op")
	}
}

// quantile of durations.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// number prints three digits that count.
func number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 100 || v <= -100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// table writes the results as Markdown.
func table(w io.Writer) error {
	results.mu.Lock()
	defer results.mu.Unlock()
	if len(results.list) == 0 {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s · %s · %s · %s/%s\n\n", time.Now().UTC().Format(time.DateOnly), machine(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	b.WriteString("| scenario | what | measured | bar | goal |\n|---|---|---|---|---|\n")
	last := ""
	for _, r := range results.list {
		name := r.scenario
		if name == last {
			name = ""
		}
		last = r.scenario
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", name, r.what, strings.TrimSpace(number(r.value)+" "+r.unit), r.bar, r.goal)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// outEnv names a file that the table is written to beside standard output.
const outEnv = "KNM_BENCH_OUT"

// publish writes the table once all benchmarks have run.
func publish(benchmarks bool) error {
	if !benchmarks {
		return nil
	}
	err := table(os.Stdout)
	if path := os.Getenv(outEnv); path != "" {
		f, ferr := os.Create(path)
		if ferr != nil {
			return errors.Join(err, ferr)
		}
		err = errors.Join(err, table(f), f.Close())
	}
	return err
}

// machine says what this ran on.
func machine() string {
	model, memory := "unknown processor", ""
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.Join(strings.Fields(v), " ")
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "MemTotal:"); ok {
				if kb, err := strconv.ParseFloat(strings.Fields(v)[0], 64); err == nil {
					memory = fmt.Sprintf(", %.0f GiB", kb/(1<<20))
				}
			}
		}
	}
	return fmt.Sprintf("%d cores, %s%s", runtime.NumCPU(), model, memory)
}
