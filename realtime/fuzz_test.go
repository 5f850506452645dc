package realtime

import (
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// FuzzCursor: what a client sends back as the place where it stands leads to one that this process has given out and has
// already passed, or to a fresh start. What is taken is written again in the same way.
func FuzzCursor(f *testing.F) {
	for _, s := range []string{
		"", "e1.0", "e1.7", "e1.42", "e1.43", "e1.42p", "e1.42-7", "e1.42-43", "e1.7-7", "e1.-1", "e1.+1", "e1.1-", "e1.18446744073709551615", "e1.18446744073709551616",
		"e1.0x1", "e1.1_0", "e2.7", "E1.7", "e1", ".7", "e1..7", "e1.7.7", " e1.7", "e1.7\n", "e1.７", "v7", "v0", "v-1", "v9223372036854775808", "start", "\x00", "e1.007", "e1.7~t", "e1.42-7~t", "e1.7~", "e1.7~u", "~t", "e1.7~t~t",
	} {
		f.Add(s)
	}
	m := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}, Epoch: "e1"})
	m.clock.Store(42)
	f.Fuzz(func(t *testing.T, s string) {
		for _, tag := range []string{"", "t"} { // of whoever sees everything, and of somebody else
			rev, base, ok := m.parseCursor(s, tag)
			if !ok {
				continue
			}
			number, of, _ := strings.Cut(s, "~")
			if rev > 42 || base > rev || !strings.HasPrefix(number, "e1.") || strings.Trim(number[3:], "0123456789-") != "" || of != tag {
				t.Errorf("%q is taken for %d since %d, of %q", s, rev, base, tag)
			}
			if again := m.between(rev, base, tag); again != s {
				r, b, ok := m.parseCursor(again, tag)
				if !ok || r != rev || b != base {
					t.Errorf("%q is written %q, which is read as %d since %d", s, again, r, b)
				}
			}
		}
		version := parseBatchCursor(s)
		if version < -1 || version >= 0 && !strings.HasPrefix(s, "v") {
			t.Errorf("%q is taken for version %d", s, version)
		}
		if version >= 0 && parseBatchCursor(BatchCursor(fleet.Batch{Version: version})) != version {
			t.Errorf("version %d is not read as it is written", version)
		}
	})
}
