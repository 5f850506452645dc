package e2e

import (
	"os"
	"strconv"
	"testing"
)

// The benchmarks are the numbers of docs/benchmarks.md: `make bench` runs them all, `make bench-quick` all of them in
// small. The program is a process of its own in front of a real API server with kubelet heartbeats; the clients are in
// this process. Latencies are those of a client, from the moment before the change was sent; beside them stands a raw
// watch of the same API server in the same run.
//
//	KNM_BENCH_OUT       a file that the table is written to as well
//	KNM_BENCH_PROFILES  a directory for profiles of the program
//	KNM_BENCH_SCALE     divides the numbers of nodes and clients

// scaled is n divided by KNM_BENCH_SCALE, and no less than least.
func scaled(b *testing.B, n, least int) int {
	b.Helper()
	v := os.Getenv("KNM_BENCH_SCALE")
	if v == "" {
		return n
	}
	by, err := strconv.Atoi(v)
	if err != nil || by < 1 {
		b.Fatalf("KNM_BENCH_SCALE=%q: a number of at least 1", v)
	}
	return max(n/by, least)
}

// BenchmarkSmall has 1,000 nodes.
func BenchmarkSmall(b *testing.B) {
	nodes := scaled(b, 1000, 20)
	c := control(b, nodes)
	b.Run("pages", func(b *testing.B) { pages(b, c, nodes, scaled(b, 200, 20)) })
	b.Run("changes", func(b *testing.B) { changesTo(b, c, nodes, 10, scaled(b, 200, 30), 10) })
	b.Run("batch", func(b *testing.B) { batches(b, c, nodes, 10) })
	b.Run("fleet", func(b *testing.B) { whole(b, c, nodes, 20) })
	for _, n := range []int{1000, 5000, 10000} {
		streams := scaled(b, n, 50)
		b.Run("held-"+strconv.Itoa(streams), func(b *testing.B) { held(b, c, nodes, streams, scaled(b, 20, 5)) })
	}
}

// BenchmarkLarge has 5,000 nodes in one cluster.
func BenchmarkLarge(b *testing.B) {
	nodes := scaled(b, 5000, 20)
	c := control(b, nodes)
	b.Run("pages", func(b *testing.B) { pages(b, c, nodes, scaled(b, 200, 20)) })
	b.Run("changes", func(b *testing.B) { changesTo(b, c, nodes, 10, scaled(b, 200, 30), 10) })
	viewers, n := scaled(b, 1000, 40), scaled(b, 200, 30)
	b.Run("crowd", func(b *testing.B) { crowded(b, c, nodes, viewers, 1, n, 10, false) })
	b.Run("crowd-odd", func(b *testing.B) { crowded(b, c, nodes, viewers, 1, n, 10, true) })
	b.Run("crowd-views", func(b *testing.B) { crowded(b, c, nodes, viewers, scaled(b, 100, 10), n, 10, false) })
	b.Run("burst", func(b *testing.B) { burst(b, c, nodes, scaled(b, 100, 10)) })
}

// BenchmarkDrain has 50 nodes with 20 pods each.
func BenchmarkDrain(b *testing.B) {
	nodes := scaled(b, 50, 6)
	c := control(b, nodes)
	b.Run("drain", func(b *testing.B) { drains(b, c, nodes, 20, 8) })
}

// BenchmarkDown is the start while nothing answers.
func BenchmarkDown(b *testing.B) { down(b, 20) }
