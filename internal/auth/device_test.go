package auth

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// remembered signs somebody in and answers by what the browser is known from then on.
func (h *house) remembered(t *testing.T, name, device string) string {
	t.Helper()
	in, err := h.Service.SignIn(t.Context(), name, secret, device, from, "")
	if err != nil {
		t.Fatal(err)
	}
	if in.Device == "" || in.Device == device || in.Device == in.Token || !in.DeviceUntil.After(in.Expires) {
		t.Fatalf("the browser got %+v", in)
	}
	return in.Device
}

// tryKnown is one sign-in in a browser that shows something.
func (h *house) tryKnown(t *testing.T, name, password, device, addr string) error {
	t.Helper()
	_, err := h.Service.SignIn(t.Context(), name, password, device, fleet.Caller{Addr: addr}, "")
	return err
}

// failElsewhere makes so many attempts on a name from as many addresses and answers how long the name has to wait then.
func (h *house) failElsewhere(t *testing.T, name string, times int) (wait time.Duration) {
	t.Helper()
	for i := range times {
		err := h.try(t, name, "wrong", addrNo(i))
		switch e, ok := errors.AsType[*fleet.LimitError](err); {
		case ok:
			wait = e.Retry
		case !errors.Is(err, fleet.ErrUnauthenticated):
			t.Fatal(err)
		}
	}
	return wait
}

// TestDevice_FailuresElsewhere: a thousand failures in the admin's name keep everybody out but the admin, in a browser in
// which they have signed in before.
func TestDevice_FailuresElsewhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		h.add(t, "eve", fleet.RoleViewer)
		ada, eve := h.remembered(t, "ada", ""), h.remembered(t, "eve", "")
		for h.failElsewhere(t, "ada", 10) < delayMost { // and every time that it is let in again
			pass(delayMost)
		}
		wait := h.failElsewhere(t, "ada", 1000)
		// In a browser that is not known, or for somebody else, the right password is not even looked at.
		for what, device := range map[string]string{
			"none": "", "nonsense": "x", "made up": newSecret(), "of somebody else": eve, "a session": h.account0(t, "ada").ID,
			"its hash": digest("device", ada), "in capitals": strings.ToUpper(ada),
		} {
			before := h.hasher.computed.Load()
			limited(t, what, h.tryKnown(t, "ada", secret, device, addrNo(1<<20)), wait)
			if h.hasher.computed.Load() != before {
				t.Errorf("%s: the password was looked at", what)
			}
		}
		if err := h.tryKnown(t, "ADA ", secret, ada, addrNo(1<<20)); err != nil {
			t.Fatalf("at the first try: %v", err)
		}
		limited(t, "the name is no freer for it", h.try(t, "ada", secret, addrNo(1<<20)), wait)
		limited(t, "what was shown is replaced", h.tryKnown(t, "ada", secret, ada, addrNo(1<<20)), wait)
	})
}

// TestDevice_NobodyElseKeepsItOut: neither whoever shares the address, nor who fails in everybody's name, nor who takes all
// places before the computation and the turn of the name.
func TestDevice_NobodyElseKeepsItOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		ada := h.remembered(t, "ada", "")
		for i := range addrMost {
			wants(t, "the same address", h.try(t, fmt.Sprint("n", i), "wrong", from.Addr), fleet.ErrUnauthenticated)
		}
		limited(t, "at the address", h.try(t, "ada", secret, from.Addr), addrWindow)
		ada = h.remembered(t, "ada", ada)
		if err := h.store.CountAttempt(t.Context(), addrKeys("")[:1], func([]fleet.Attempts) ([]fleet.Attempts, error) {
			return []fleet.Attempts{{Count: allMost, Since: time.Now()}}, nil
		}); err != nil {
			t.Fatal(err)
		}
		limited(t, "everybody", h.try(t, "ada", secret, addrNo(1<<20)), allWindow)
		ada = h.remembered(t, "ada", ada)

		pass(allWindow)
		for range hashAtOnce + hashQueue {
			leave, err := h.hasher.enter(nameKey("ada"))
			if err != nil {
				t.Fatal(err)
			}
			defer leave()
		}
		next, err := h.turns.take(t.Context(), nameKey("ada").Subject)
		if err != nil {
			t.Fatal(err)
		}
		defer next()
		limited(t, "no place", h.try(t, "ada", secret, addrNo(1<<20)), time.Second)
		h.remembered(t, "ada", ada)
	})
}

// TestDevice_DelaysItself: a known browser has no more guesses than a name, and they delay it and not the name.
func TestDevice_DelaysItself(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		stolen, other := h.remembered(t, "ada", ""), h.remembered(t, "ada", "")
		for i := range nameFree {
			wants(t, "free", h.tryKnown(t, "ada", "wrong", stolen, addrNo(i)), fleet.ErrUnauthenticated)
		}
		wait := time.Second
		for i := 0; wait < delayMost; i++ {
			limited(t, "the browser", h.tryKnown(t, "ada", secret, stolen, addrNo(100+i)), wait)
			if err := h.try(t, "ada", secret, addrNo(200)); err != nil {
				t.Fatalf("the name: %v", err)
			}
			pass(wait)
			wants(t, "in time", h.tryKnown(t, "ada", "wrong", stolen, addrNo(100+i)), fleet.ErrUnauthenticated)
			wait *= 2
		}
		limited(t, "it stops doubling", h.tryKnown(t, "ada", secret, stolen, addrNo(300)), delayMost)
		other = h.remembered(t, "ada", other)
		pass(delayMost)
		stolen = h.remembered(t, "ada", stolen)
		for i := range nameFree { // a success begins anew
			wants(t, "anew", h.tryKnown(t, "ada", "wrong", stolen, addrNo(400+i)), fleet.ErrUnauthenticated)
		}
		limited(t, "anew", h.tryKnown(t, "ada", secret, stolen, addrNo(500)), time.Second)
		log, err := h.log.Entries(t.Context(), fleet.AuditFilter{Action: "signin", Outcome: "failed"})
		if err != nil || len(log) == 0 || !strings.Contains(log[0].Detail, "in this browser") || strings.Contains(fmt.Sprintf("%+v", log), stolen) {
			t.Errorf("%+v, %v", log, err)
		}
		if said := h.said.String(); strings.Contains(said, stolen) || strings.Contains(said, other) {
			t.Errorf("the log says by what browsers are known:\n%s", said)
		}
	})
}

// TestCount_KnownBrowser: the address and everybody count it, at whatever number they are.
func TestCount_KnownBrowser(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	have := []fleet.Attempts{{Count: allMost, Since: now}, {Count: addrMost + 7, Since: now}, {}}
	next, err := count(attemptKeys(fleet.AttemptKey{Scope: fleet.AttemptDevice, Subject: "d"}, "192.0.2.1"), have, now)
	if err != nil || next[0].Count != allMost+1 || next[1].Count != addrMost+8 || next[2].Count != 1 {
		t.Errorf("%+v, %v", next, err)
	}
	if _, err := count(attemptKeys(nameKey("ada"), "192.0.2.1"), next, now); !errors.Is(err, fleet.ErrTooMany) {
		t.Errorf("somebody else at the address: %v", err)
	}
}

// TestDevice_EndsWith: what ends all sessions of a person ends what their browsers are known by.
func TestDevice_EndsWith(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		ctx := t.Context()
		for what, end := range map[string]func() error{
			"a new password": func() error { return h.SetPassword(ctx, host, "ada", secret) },
			"an invitation that is used": func() error {
				inv, err := h.Reinvite(ctx, host, "ada")
				if err != nil {
					return err
				}
				return h.AcceptInvitation(ctx, inv.Code, secret)
			},
			"shutting out": func() error {
				return errors.Join(h.SetDisabled(ctx, host, "ada", true), h.SetDisabled(ctx, host, "ada", false))
			},
			"time": func() error { pass(deviceLife); return nil },
		} {
			device := h.remembered(t, "ada", "")
			device = h.remembered(t, "ada", device)
			wait := h.failElsewhere(t, "ada", nameFree+1)
			device = h.remembered(t, "ada", device)
			if err := end(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			h.failElsewhere(t, "ada", nameFree+1)
			limited(t, what, h.tryKnown(t, "ada", secret, device, addrNo(1<<20)), wait)
			if err := h.Unblock(ctx, host, "ada"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestDevice_SecondStep: with a second factor a browser is known once both steps are done, and codes are counted as
// passwords are.
func TestDevice_SecondStep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		_, ada := h.in(t, "ada")
		a, _ := h.enrol(t, ada)
		first := func(device string) string {
			t.Helper()
			in, err := h.Service.SignIn(t.Context(), "ada", secret, device, from, "")
			e, ok := errors.AsType[*fleet.SecondStepError](err)
			if !ok || in != (fleet.SignIn{}) {
				t.Fatalf("the first step gives %+v, %v", in, err)
			}
			return e.Token
		}
		pass(30 * time.Second)
		in, err := h.Service.SecondStep(t.Context(), first(""), a.code(time.Now()), "", from, "")
		if err != nil || in.Device == "" {
			t.Fatalf("%+v, %v", in, err)
		}
		half := first(in.Device)
		wait := h.failElsewhere(t, "ada", nameFree+1)
		pass(30 * time.Second)
		h.failElsewhere(t, "ada", 2)
		_, err = h.Service.SecondStep(t.Context(), half, a.code(time.Now()), "", from, "")
		if e, ok := errors.AsType[*fleet.LimitError](err); !ok || e.Retry < wait {
			t.Errorf("not known: %v", err)
		}
		again, err := h.Service.SecondStep(t.Context(), first(in.Device), a.code(time.Now()), in.Device, from, "")
		if err != nil || again.Device == "" || again.Device == in.Device {
			t.Fatalf("known: %+v, %v", again, err)
		}
		// The right password does not make the counter of the codes start afresh here either.
		for range nameFree - 1 {
			_, err := h.Service.SecondStep(t.Context(), first(again.Device), "999-wrong", again.Device, from, "")
			wants(t, "a wrong code", err, fleet.ErrUnauthenticated)
		}
		half = first(again.Device)
		_, err = h.Service.SecondStep(t.Context(), half, "999-wrong", again.Device, from, "")
		wants(t, "a wrong code", err, fleet.ErrUnauthenticated)
		_, err = h.Service.SecondStep(t.Context(), half, a.code(time.Now()), again.Device, from, "")
		wants(t, "one too many", err, fleet.ErrTooMany)
	})
}

// TestDevice_Directory: people of a directory are known in their browsers too, by each name that the directory knows them
// by, until their groups are others.
func TestDevice_Directory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		const password = "directory password"
		e := &elsewhere{vouched: vouchedFor(fleet.PersonLDAP, "l", "", fleet.RoleOperator)}
		h.directory = e
		in := func(name, device string) string {
			t.Helper()
			got, err := h.Service.SignIn(t.Context(), name, password, device, from, "")
			if err != nil || got.Device == "" {
				t.Fatalf("%s: %+v, %v", name, got, err)
			}
			return got.Device
		}
		lou, alias := in("lou", ""), in("lou@example.org", "")
		wait := h.failElsewhere(t, "lou", nameFree+1)
		h.failElsewhere(t, "lou@example.org", nameFree+1)
		limited(t, "not known", h.try(t, "lou", password, addrNo(100)), wait)
		limited(t, "known by another name", h.tryKnown(t, "lou", password, alias, addrNo(100)), wait)
		lou, alias = in("lou", lou), in("lou@example.org", alias)
		e.say(vouchedFor(fleet.PersonLDAP, "l", "", fleet.RoleViewer), nil)
		lou = in("lou", lou) // known still, and from now on as who they have become
		in("lou", lou)
		limited(t, "known as who they were", h.tryKnown(t, "lou@example.org", password, alias, addrNo(100)), wait)
	})
}

// TestDevice_SaysNothing: with something that makes a browser known or without, a failure is one computation and the same
// words, whoever it is of.
func TestDevice_SaysNothing(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.add(t, "gone", fleet.RoleViewer)
	ada, gone := h.remembered(t, "ada", ""), h.remembered(t, "gone", "")
	if err := h.SetDisabled(t.Context(), host, "gone", true); err != nil {
		t.Fatal(err)
	}
	words := map[string]bool{}
	n := 0
	for _, device := range []string{"", "x", newSecret(), ada, gone} {
		for _, name := range []string{"ada", "gone", "nobody", "a b\x00"} {
			n++
			before := h.hasher.computed.Load()
			err := h.tryKnown(t, name, "wrong", device, addrNo(n))
			wants(t, name, err, fleet.ErrUnauthenticated)
			words[err.Error()] = true
			if got := h.hasher.computed.Load() - before; got != 1 {
				t.Errorf("%s with %q: %d computations", name, device, got)
			}
		}
	}
	if len(words) != 1 {
		t.Errorf("failures say different things: %v", words)
	}
}

// TestUnblock: an admin lets somebody try again, on record; others may not.
func TestUnblock(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.add(t, "vic", fleet.RoleViewer)
	_, ada := h.in(t, "ada")
	_, vic := h.in(t, "vic")
	device := h.remembered(t, "vic", "")
	h.failElsewhere(t, "vic", nameFree+1)
	for i := range nameFree {
		wants(t, "in the browser", h.tryKnown(t, "vic", "wrong", device, addrNo(100+i)), fleet.ErrUnauthenticated)
	}
	list, err := h.Users(t.Context())
	if err != nil || !list[0].DelayedUntil.IsZero() || !list[1].DelayedUntil.After(list[1].CreatedAt) {
		t.Fatalf("%+v, %v", list, err)
	}
	wants(t, "a viewer", h.Unblock(t.Context(), vic, "vic"), fleet.ErrForbidden)
	wants(t, "nobody", h.Unblock(t.Context(), ada, "nobody"), fleet.ErrNotFound)
	wants(t, "no name", h.Unblock(t.Context(), ada, "a b"), fleet.ErrInvalid)
	if err := h.Unblock(t.Context(), ada, " VIC"); err != nil {
		t.Fatal(err)
	}
	if list, err = h.Users(t.Context()); err != nil || !list[1].DelayedUntil.IsZero() {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := h.try(t, "vic", secret, addrNo(200)); err != nil {
		t.Error(err)
	}
	h.remembered(t, "vic", device)
	got, err := h.log.Entries(t.Context(), fleet.AuditFilter{Action: "user.unblock"})
	if err != nil || len(got) != 2 || got[0].Actor != "ada" || got[0].Detail != "vic" || got[1].Actor != "vic" {
		t.Errorf("%+v, %v", got, err)
	}
}
