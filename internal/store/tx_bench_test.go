package store_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

// BenchmarkTx is what entries cost that one, ten and fifty writers append at once: each waits for the disk.
func BenchmarkTx(b *testing.B) {
	for _, engine := range []string{"sqlite", "postgres"} {
		for _, writers := range []int{1, 10, 50} {
			b.Run(fmt.Sprintf("%s-%d", engine, writers), func(b *testing.B) {
				cfg := store.Config{Timeout: time.Minute}
				if engine == "postgres" {
					cfg.URL = storetest.Postgres(b).Database(b)
				} else {
					cfg.Dir = b.TempDir()
				}
				s, err := store.Open(b.Context(), cfg)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() {
					if err := s.Close(); err != nil {
						b.Error(err)
					}
				})
				var left atomic.Int64
				left.Store(int64(b.N))
				b.ResetTimer()
				var all sync.WaitGroup
				for range writers {
					all.Go(func() {
						for left.Add(-1) >= 0 {
							e := fleet.Entry{Actor: "ada", Action: "cordon", Phase: "intent", Cluster: "prod", Node: "n1", Reason: "disk swap"}
							if _, err := s.AppendEntry(b.Context(), e); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				all.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
			})
		}
	}
}
