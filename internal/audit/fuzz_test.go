package audit_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// texts are the fields of an entry that are hashed as texts.
func texts(e *fleet.Entry) []*string {
	return []*string{
		&e.Actor, &e.Via, &e.Session, &e.Addr, &e.Action, &e.Phase, &e.Cluster, &e.Node, &e.NodeUID, &e.Batch, &e.Outcome, &e.Reason, &e.Detail, &e.Prev,
		&e.ClusterUID, &e.As,
	}
}

// FuzzEntry: no two different entries have the same hash, however their texts are put, and what is exported has the hash
// that was recorded.
func FuzzEntry(f *testing.F) {
	for i, s := range []string{"", "a", "1:a\n", "0:\n0:\n", "knm-audit-2", "\n", "é", "\x00", "\xff", "\u2028<>&", `{"before":"x"}`} {
		f.Add(s, "0:\n", byte(i), byte(i+1), int64(i), int64(1))
	}
	f.Fuzz(func(t *testing.T, a, b string, i, j byte, seq, at int64) {
		var one, two fleet.Entry
		one.Seq, one.At = seq, time.UnixMicro(at%(1<<50)).UTC()
		two.Seq, two.At = one.Seq, one.At
		// The same two texts, in fields of either entry.
		n := byte(len(texts(&one)))
		*texts(&one)[i%n], *texts(&one)[j%n] = a, b
		*texts(&two)[j%n], *texts(&two)[i%n] = a, b
		if same := one == two; same != (one.Sum() == two.Sum()) {
			t.Errorf("%+v and %+v: same %t, hashes %s and %s", one, two, same, one.Sum(), two.Sum())
		}
		// The end of one text moved to the beginning of another.
		two = one
		if x, y := texts(&two)[i%n], texts(&two)[j%n]; x != y && *x != "" {
			*x, *y = (*x)[:len(*x)-1], (*x)[len(*x)-1:]+*y
			if one.Sum() == two.Sum() {
				t.Errorf("%+v and %+v have the same hash", one, two)
			}
		}
		if !utf8.ValidString(a) || !utf8.ValidString(b) {
			return // such texts are not stored
		}
		line, err := json.Marshal(one)
		if err != nil {
			t.Fatal(err)
		}
		var back fleet.Entry
		if err := json.Unmarshal(line, &back); err != nil || back.Sum() != one.Sum() {
			t.Errorf("%+v is exported as %s, %v", one, line, err)
		}
	})
}

// FuzzHeads: of whatever a log holds, only what was signed is good.
func FuzzHeads(f *testing.F) {
	by := audit.NewSigner("i")
	good := by.Sign(7, "abc", time.UnixMicro(1))
	line, err := json.Marshal(map[string]any{"msg": "head of the record", "head": good})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range [][]byte{
		line, bytes.ReplaceAll(line, []byte("7"), []byte("8")), bytes.ReplaceAll(line, []byte("abc"), []byte("abd")), []byte(`{"signature":""}`), []byte(`{"head":null,"signature":1}`),
		[]byte("text\n{\"signature\":\"x\"}\n"), []byte("{"), []byte(`{"signature":"AAAA","key":"AAAA","seq":-1}`), bytes.Repeat([]byte("x"), 100), nil,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		heads, err := audit.ReadHeads(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, h := range heads {
			if audit.CheckHead(h, by.Public()) == nil && (h.Seq != good.Seq || h.Hash != good.Hash || !h.At.Equal(good.At) || h.Installation != good.Installation) {
				t.Errorf("nobody signed %+v", h)
			}
		}
	})
}
