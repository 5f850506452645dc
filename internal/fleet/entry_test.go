package fleet_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// What was hashed once must keep its hash for as long as the record is kept: these were calculated by another program,
// from the description of Sum.
func TestEntry_SumIsWhatItAlwaysWas(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ uid, as, want string }{
		{"", "", "cfe5fa35c17250c7509e9662d53354819fda98f5def06fce3081d3d0e24e5b3f"},
		{"c1", "ada@idp", "03085911a44a9ebd6e78d00525fb5d2b883159a9adf162e7b4317e2b512a7de7"},
		{"", "ada@idp", "c3c68f3041e6864963ce8e4c02fc21370bcac827b4d2b8708d1b2f21de4fea23"},
		{"c1", "", "9bbd0d59cade4acfc93e90450fb82275d48e062e18d149971934043f06f0d638"},
	} {
		e := fleet.Entry{
			Seq: 7, At: time.UnixMicro(1767225600123456), Actor: "ada", Via: "session", Session: "s1", Addr: "192.0.2.1",
			Action: "cordon", Phase: "intent", Cluster: "prod", Node: "n1", NodeUID: "u1", Batch: "b1", Outcome: "succeeded",
			Reason: "disk é", Detail: "{}", Prev: "ab", ClusterUID: tt.uid, As: tt.as,
		}
		if got := e.Sum(); got != tt.want {
			t.Errorf("with %q and %q: %s, want %s", tt.uid, tt.as, got, tt.want)
		}
	}
}

// TestEntry_SumCoversEveryField: whatever of an entry is changed changes its hash, a field that is yet to come too.
func TestEntry_SumCoversEveryField(t *testing.T) {
	t.Parallel()
	whole := fleet.Entry{Seq: 7, At: time.Unix(1, 0)}
	v := reflect.ValueOf(&whole).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.String {
			f.SetString("x" + v.Type().Field(i).Name)
		}
	}
	seen := map[string]string{whole.Sum(): "nothing"}
	for i := range v.NumField() {
		name, changed := v.Type().Field(i).Name, whole
		if name == "Hash" {
			continue // it is the sum
		}
		switch f := reflect.ValueOf(&changed).Elem().Field(i); name {
		case "Seq":
			f.SetInt(8)
		case "At":
			changed.At = changed.At.Add(time.Microsecond)
		default:
			f.SetString(f.String() + "y")
		}
		if other, taken := seen[changed.Sum()]; taken {
			t.Errorf("an entry with another %s has the hash of one with another %s", name, other)
		}
		seen[changed.Sum()] = name
	}
	// What moves from the end of a field to the beginning of the next is another entry.
	moved := whole
	moved.Action, moved.Phase = whole.Action+"xP", "hase"
	if moved.Sum() == whole.Sum() {
		t.Error("fields run into each other")
	}
}
