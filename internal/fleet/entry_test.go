package fleet

import (
	"reflect"
	"testing"
	"time"
)

// TestEntry_SumCoversEveryField: whatever of an entry is changed changes its hash, a field that is yet to come too.
func TestEntry_SumCoversEveryField(t *testing.T) {
	t.Parallel()
	whole := Entry{Seq: 7, At: time.Unix(1, 0)}
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
