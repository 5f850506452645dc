package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// known is a session of a browser that is to be known by this hash, and was known by another.
func known(name, hash, replaces string) fleet.NewSession {
	n := session(name, "s-"+hash)
	n.Device = fleet.NewDevice{Hash: hash, Name: "name-" + name, Replaces: replaces, ExpiresAt: start.Add(90 * 24 * time.Hour), Most: 3}
	return n
}

// knows fails unless a browser is known for a name, or is not.
func knows(t *testing.T, s *store.Store, hash, name string, at time.Time, want bool) {
	t.Helper()
	if got, err := s.Device(t.Context(), hash, name, at); got != want || err != nil {
		t.Errorf("%s for %s: %v, %v, want %v", hash, name, got, err, want)
	}
}

// devices: a browser is known for one name until another takes its place, it expires, or its person changes; and there are
// no more than so many of one person.
func devices(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	for _, name := range []string{"ada", "eve", "ivo"} {
		need(t, one.AddUser(ctx, person(name, fleet.RoleAdmin), event))
	}
	need(t, one.AddSession(ctx, session("ada", "none"), nil, event))
	knows(t, two, "", "", start, false)
	need(t, one.AddSession(ctx, known("ada", "d1", ""), nil, event))
	need(t, one.AddSession(ctx, known("eve", "e1", ""), nil, event))
	end := start.Add(90 * 24 * time.Hour)
	knows(t, two, "d1", "name-ada", end.Add(-time.Microsecond), true)
	knows(t, two, "d1", "name-ada", end, false)
	knows(t, two, "d1", "name-eve", start, false)
	knows(t, two, "e1", "name-ada", start, false)

	need(t, two.AddSession(ctx, known("ada", "d2", "d1"), nil, event))
	knows(t, one, "d1", "name-ada", start, false)
	knows(t, one, "d2", "name-ada", start, true)
	need(t, two.AddSession(ctx, known("ada", "d3", "e1"), nil, event)) // somebody else's is not taken away
	knows(t, one, "e1", "name-eve", start, true)

	for i := range 3 {
		n := known("ada", fmt.Sprint("later", i), "")
		n.CreatedAt = start.Add(time.Duration(i+1) * time.Second)
		need(t, one.AddSession(ctx, n, nil, event))
	}
	for hash, want := range map[string]bool{"d2": false, "d3": false, "later0": true, "later1": true, "later2": true} {
		knows(t, two, hash, "name-ada", start, want)
	}
	knows(t, two, "e1", "name-eve", start, true)

	// A sign-in that does not come about makes nothing known.
	late := known("eve", "late", "e1")
	late.Epoch = 9
	is(t, "of another epoch", one.AddSession(ctx, late, nil, event), fleet.ErrUnauthenticated)
	knows(t, two, "late", "name-eve", start, false)
	knows(t, two, "e1", "name-eve", start, true)

	yes, no, fresh, role := true, false, "a new hash", fleet.RoleViewer
	for what, ch := range map[string]fleet.UserChange{
		"password": {Password: &fresh}, "disabled": {Disabled: &yes}, "role": {Role: &role}, "revoked": {Revoke: true},
	} {
		need(t, one.AddUser(ctx, person(what, fleet.RoleAdmin), event))
		need(t, one.AddSession(ctx, known(what, "d-"+what, ""), nil, event))
		knows(t, two, "d-"+what, "name-"+what, start, true)
		_, _, err := two.ChangeUser(ctx, what, ch, start, change)
		need(t, err)
		knows(t, one, "d-"+what, "name-"+what, start, false)
	}
	_, _, err := two.ChangeUser(ctx, "disabled", fleet.UserChange{Disabled: &no}, start, change)
	need(t, err)
	knows(t, one, "d-disabled", "name-disabled", start, false)
}

// devicesAreSwept: what is known no longer is deleted, and nothing else. What is deleted can be made again.
func devicesAreSwept(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	for _, name := range []string{"ada", "eve"} {
		need(t, one.AddUser(ctx, person(name, fleet.RoleAdmin), event))
	}
	short := known("ada", "short", "")
	short.Device.ExpiresAt = start.Add(time.Hour)
	need(t, one.AddSession(ctx, short, nil, event))
	need(t, one.AddSession(ctx, known("ada", "long", ""), nil, event))
	need(t, one.AddSession(ctx, known("eve", "of eve", ""), nil, event))
	_, _, err := one.ChangeUser(ctx, "eve", fleet.UserChange{Revoke: true}, start, change)
	need(t, err)
	again := func(hash string) error {
		n := known("ada", hash, "")
		n.Hash = "again " + hash
		return two.AddSession(ctx, n, nil, event)
	}
	need(t, one.DropExpired(ctx, start.Add(time.Hour-time.Microsecond), start))
	is(t, "still there", again("short"), fleet.ErrConflict)
	need(t, one.DropExpired(ctx, start.Add(time.Hour), start))
	is(t, "still there", again("long"), fleet.ErrConflict)
	need(t, again("short"))
	need(t, again("of eve"))
}

// clearing: an admin's word clears a name and the browsers that know it, and nobody else's.
func clearing(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	for _, name := range []string{"ada", "eve"} {
		need(t, one.AddUser(ctx, person(name, fleet.RoleAdmin), event))
		need(t, one.AddSession(ctx, known(name, "d-"+name, ""), nil, event))
	}
	alias := known("ada", "d-alias", "")
	alias.Device.Name = "name-alias" // a directory may know somebody by several names
	need(t, one.AddSession(ctx, alias, nil, event))
	keys := []fleet.AttemptKey{
		{Scope: fleet.AttemptAll, Subject: "all"},
		{Scope: fleet.AttemptName, Subject: "name-ada"},
		{Scope: fleet.AttemptName, Subject: "name-alias"},
		{Scope: fleet.AttemptDevice, Subject: "d-ada"},
		{Scope: fleet.AttemptName, Subject: "name-eve"},
		{Scope: fleet.AttemptDevice, Subject: "d-eve"},
	}
	until := start.Add(time.Minute)
	need(t, one.CountAttempt(ctx, keys, func(have []fleet.Attempts) ([]fleet.Attempts, error) {
		for i := range have {
			have[i] = fleet.Attempts{Count: 7, Since: start, Blocked: until}
		}
		return have, nil
	}))
	delayed := func(at time.Time, want ...string) {
		t.Helper()
		got, err := two.Delayed(ctx, at)
		need(t, err)
		all := map[string]time.Time{}
		for _, name := range want {
			all[name] = until
		}
		if diff := cmp.Diff(all, got); diff != "" {
			t.Errorf("delayed (-want +got):\n%s", diff)
		}
	}
	delayed(start, "name-ada", "name-alias", "name-eve")
	delayed(until)
	need(t, two.ClearAttempts(ctx, "id-ada", "name-ada", event))
	delayed(start, "name-eve")
	var counts []int
	need(t, one.CountAttempt(ctx, keys, func(have []fleet.Attempts) ([]fleet.Attempts, error) {
		counts = nil
		for _, a := range have {
			counts = append(counts, a.Count)
		}
		return have, nil
	}))
	if diff := cmp.Diff([]int{7, 0, 0, 0, 7, 7}, counts); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	// A success of a known browser makes its counter start afresh and leaves the name's, which others have counted on.
	need(t, one.TakeBack(ctx, []fleet.AttemptKey{keys[0], keys[5]}))
	need(t, one.CountAttempt(ctx, keys, func(have []fleet.Attempts) ([]fleet.Attempts, error) {
		if have[0].Count != 6 || have[4].Count != 7 || have[5].Count != 0 {
			t.Errorf("after a success: %+v", have)
		}
		return have, nil
	}))
}
