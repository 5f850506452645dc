package storetest

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// RunSealed checks what of the sealed secrets of all tables is one to the rotation of their keys.
func RunSealed(t *testing.T, open Open) {
	run(t, open, map[string]func(t *testing.T, one, two *store.Store){
		"Pages":  sealedPages,
		"Rewrap": sealedRewrap,
	})
}

func factor() fleet.Sealed { return fleet.Sealed{Key: "k1", Wrapped: "wf", Data: "sf"} }

// sealedThere has two clusters and the factors of two people, all under the key k1 but one cluster.
func sealedThere(t *testing.T, one *store.Store) {
	t.Helper()
	for _, name := range []string{"a", "b", "c"} {
		c := storedCluster(name)
		if name == "b" {
			c.Key = "k2"
		}
		need(t, one.AddCluster(t.Context(), c, event))
	}
	for _, name := range []string{"ada", "eve"} {
		need(t, one.AddUser(t.Context(), person(name, fleet.RoleAdmin), event))
		need(t, one.SetFactor(t.Context(), "id-"+name, factor()))
	}
}

func sealedPages(t *testing.T, one, two *store.Store) {
	sealedThere(t, one)
	var got []string
	var after fleet.SealedRow
	for {
		page, err := two.Sealed(t.Context(), "k2", after, 1)
		need(t, err)
		if len(page) == 0 {
			break
		}
		after = page[0]
		got = append(got, after.String()+" "+after.Key+" "+after.Wrapped+" "+after.Data+" in "+after.Place().Table+"/"+after.Place().Row)
	}
	want := []string{
		"cluster a k1 w-a s-a in managed_clusters/id-a/a", "cluster c k1 w-c s-c in managed_clusters/id-c/c",
		"second factor of ada k1 wf sf in second_factors/id-ada", "second factor of eve k1 wf sf in second_factors/id-eve",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	all, err := one.Sealed(t.Context(), "", fleet.SealedRow{}, 100)
	need(t, err)
	if len(all) != 5 {
		t.Errorf("%d in all", len(all))
	}
	// Where a secret was sealed is where it is looked for.
	c, err := one.ManagedCluster(t.Context(), "a")
	need(t, err)
	if all[0].Place() != c.Place() || all[3].Place() != fleet.FactorPlace("id-ada") {
		t.Errorf("%+v %+v", all[0].Place(), all[3].Place())
	}
}

func sealedRewrap(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	sealedThere(t, one)
	before := changed(t, one)
	rows, err := one.Sealed(ctx, "k2", fleet.SealedRow{}, 100)
	need(t, err)
	var list []fleet.Rewrapped
	for _, r := range rows {
		list = append(list, fleet.Rewrapped{SealedRow: r, New: fleet.Sealed{Key: "k2", Wrapped: "new", Data: "not written"}})
	}
	list[1].Wrapped = "changed meanwhile" // cluster c
	gone := list[0]
	gone.ID = "id-x"
	n, err := two.Rewrap(ctx, append(list, gone))
	need(t, err)
	if n != 3 {
		t.Errorf("%d rewrapped, want 3", n)
	}
	left, err := one.Sealed(ctx, "k2", fleet.SealedRow{}, 100)
	need(t, err)
	if len(left) != 1 || left[0].Name != "c" || left[0].Wrapped != "w-c" {
		t.Errorf("%+v", left)
	}
	a, err := one.ManagedCluster(ctx, "a")
	need(t, err)
	f, err := one.Factor(ctx, "id-ada")
	need(t, err)
	if a.Sealed != (fleet.Sealed{Key: "k2", Wrapped: "new", Data: "s-a"}) || f.Secret != (fleet.Sealed{Key: "k2", Wrapped: "new", Data: "sf"}) {
		t.Errorf("%+v %+v", a.Sealed, f.Secret)
	}
	if changed(t, two) != before {
		t.Error("a rotation makes everybody connect anew")
	}
	// A secret that is confirmed is the one that was shown, whatever key it is under by then.
	_, err = one.ConfirmFactor(ctx, "id-ada", factor(), 1, nil, "", start, event)
	need(t, err)
	list[0].Table = "users"
	_, err = one.Rewrap(ctx, list[:1])
	is(t, "a table without secrets", err, fleet.ErrInvalid)
	n, err = one.Rewrap(ctx, nil)
	need(t, err)
	if n != 0 {
		t.Errorf("%d of none", n)
	}
}
