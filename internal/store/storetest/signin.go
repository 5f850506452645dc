package storetest

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

func half(hash string) fleet.HalfSignIn {
	return fleet.HalfSignIn{Hash: hash, UserID: "id-ada", Epoch: 1, ExpiresAt: start.Add(5 * time.Minute)}
}

// withFactor is ada with a second factor of step 10 and two recovery codes.
func withFactor(t *testing.T, one *store.Store) {
	t.Helper()
	need(t, one.AddUser(t.Context(), person("ada", fleet.RoleAdmin), event))
	need(t, one.SetFactor(t.Context(), "id-ada", factor()))
	ended, err := one.ConfirmFactor(t.Context(), "id-ada", factor(), 10, []string{"r1", "r2"}, "", start, event)
	need(t, err)
	if len(ended) != 0 {
		t.Errorf("ended %v", ended)
	}
}

// completed is a session that the half sign-in of this hash and a proof make.
func completed(hash, halfHash string, p fleet.Proof) fleet.NewSession {
	n := session("ada", hash)
	n.Half, n.Proof = halfHash, p
	return n
}

// secondStep: where there is a second factor, no session is made without a half sign-in and a proof, whoever asks.
func secondStep(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	need(t, one.AddSession(ctx, session("ada", "before"), nil, event))
	need(t, one.AddSession(ctx, session("ada", "asks"), nil, event))
	need(t, one.SetFactor(ctx, "id-ada", fleet.Sealed{Data: "first"}))
	need(t, one.SetFactor(ctx, "id-ada", factor()))
	_, err := two.ConfirmFactor(ctx, "id-ada", fleet.Sealed{Data: "first"}, 10, nil, "asks", start, event)
	is(t, "a secret that was replaced", err, fleet.ErrConflict)
	need(t, one.AddSession(ctx, session("ada", "unconfirmed"), nil, event))
	ended, err := two.ConfirmFactor(ctx, "id-ada", factor(), 10, []string{"r1", "r2"}, "asks", start, event)
	need(t, err)
	if len(ended) != 2 {
		t.Errorf("ended %v", ended)
	}
	_, err = one.Session(ctx, "before", start)
	is(t, "a session from before", err, fleet.ErrUnauthenticated)
	_, err = one.Session(ctx, "asks", start)
	need(t, err)
	_, err = one.ConfirmFactor(ctx, "id-ada", factor(), 20, nil, "", start, event)
	is(t, "confirmed already", err, fleet.ErrConflict)
	is(t, "begun while there is one", one.SetFactor(ctx, "id-ada", fleet.Sealed{Data: "x"}), fleet.ErrConflict)

	is(t, "no half", two.AddSession(ctx, session("ada", "s1"), nil, event), fleet.ErrUnauthenticated)
	is(t, "a half that is not there", two.AddSession(ctx, completed("s2", "none", fleet.Proof{Step: 11}), nil, event), fleet.ErrUnauthenticated)
	need(t, one.AddHalf(ctx, half("h1"), nil, fleet.Attempts{}, fleet.Attempts{}))
	is(t, "no proof", two.AddSession(ctx, completed("s3", "h1", fleet.Proof{}), nil, event), fleet.ErrUnauthenticated)
	_, _, err = two.Half(ctx, "h1", start)
	need(t, err) // a step that failed leaves it good
	need(t, two.AddSession(ctx, completed("s4", "h1", fleet.Proof{Step: 11}), nil, event))
	is(t, "the half again", two.AddSession(ctx, completed("s5", "h1", fleet.Proof{Step: 12}), nil, event), fleet.ErrUnauthenticated)

	need(t, one.AddHalf(ctx, half("h2"), nil, fleet.Attempts{}, fleet.Attempts{}))
	_, _, err = two.Half(ctx, "h2", start.Add(5*time.Minute))
	is(t, "late", err, fleet.ErrUnauthenticated)
	no := true
	_, _, err = one.ChangeUser(ctx, "ada", fleet.UserChange{NoFactor: no, Proof: &fleet.Proof{Recovery: "r9"}}, start, change)
	is(t, "dropped with a code that is not good", err, fleet.ErrUnauthenticated)
	u, changed, err := one.ChangeUser(ctx, "ada", fleet.UserChange{NoFactor: no, Proof: &fleet.Proof{Recovery: "r1"}}, start, change)
	need(t, err)
	if !changed || !u.SecondFactor.IsZero() {
		t.Errorf("%+v, %v", u, changed)
	}
	_, _, err = two.Half(ctx, "h2", start)
	is(t, "a half from before the change", err, fleet.ErrUnauthenticated)
	_, err = two.Factor(ctx, "id-ada")
	is(t, "the secret", err, fleet.ErrNotFound)
	if n, err := two.RecoveryCodes(ctx, "id-ada"); n != 0 || err != nil {
		t.Errorf("%d codes are left, %v", n, err)
	}
	if _, changed, err := one.ChangeUser(ctx, "ada", fleet.UserChange{NoFactor: no}, start, change); changed || err != nil {
		t.Errorf("dropped twice: %v, %v", changed, err)
	}
}

// proofsAreUsedUp: of two processes that come with one code at once, one makes a session.
func proofsAreUsedUp(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	withFactor(t, one)
	for what, p := range map[string]fleet.Proof{"code": {Step: 11}, "recovery code": {Recovery: "r1"}} {
		var wg sync.WaitGroup
		var in atomic.Int64
		for i, s := range []*store.Store{one, two, one, two} {
			h := what + string(rune('a'+i))
			need(t, s.AddHalf(ctx, half(h), nil, fleet.Attempts{}, fleet.Attempts{}))
			wg.Go(func() {
				err := s.AddSession(ctx, completed("s-"+h, h, p), nil, event)
				if err == nil {
					in.Add(1)
					return
				}
				is(t, what, err, fleet.ErrUnauthenticated)
			})
		}
		wg.Wait()
		if in.Load() != 1 {
			t.Errorf("%d sessions with one %s", in.Load(), what)
		}
	}
	need(t, one.AddHalf(ctx, half("h"), nil, fleet.Attempts{}, fleet.Attempts{}))
	is(t, "an earlier step", two.AddSession(ctx, completed("s", "h", fleet.Proof{Step: 9}), nil, event), fleet.ErrUnauthenticated)
}

// halfTakesBackOne: the right password takes its own attempt back and leaves what others had counted.
func halfTakesBackOne(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	withFactor(t, one)
	keys := []fleet.AttemptKey{{Scope: fleet.AttemptAll, Subject: "all"}, {Scope: fleet.AttemptName, Subject: "ada"}}
	set := func(count int, blocked time.Time) {
		need(t, one.CountAttempt(ctx, keys, func(have []fleet.Attempts) ([]fleet.Attempts, error) {
			next := make([]fleet.Attempts, len(have))
			for i := range next {
				next[i] = fleet.Attempts{Count: count, Since: start}
			}
			next[1].Blocked = blocked
			return next, nil
		}))
	}
	read := func() (out []fleet.Attempts) {
		need(t, two.CountAttempt(ctx, keys, func(have []fleet.Attempts) ([]fleet.Attempts, error) {
			out = append([]fleet.Attempts(nil), have...)
			return have, nil
		}))
		return out
	}
	before, after := fleet.Attempts{Count: 6, Blocked: start}, fleet.Attempts{Count: 7, Blocked: start.Add(time.Minute)}
	set(7, after.Blocked)
	need(t, two.AddHalf(ctx, half("h1"), keys, before, after))
	if got := read(); got[0].Count != 6 || got[1].Count != 6 || !got[1].Blocked.Equal(start) {
		t.Errorf("counted %+v", got)
	}
	// Somebody else failed meanwhile: their delay stays.
	later := start.Add(time.Hour)
	set(8, later)
	need(t, two.AddHalf(ctx, half("h2"), keys, before, after))
	if got := read(); got[1].Count != 7 || !got[1].Blocked.Equal(later) {
		t.Errorf("counted %+v", got)
	}
}

func invitations(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	eve := person("eve", fleet.RoleViewer)
	eve.Password, eve.Invitation, eve.InvitedUntil = "", "i1", start.Add(time.Hour)
	need(t, one.AddUser(ctx, eve, event))
	u, err := two.Invited(ctx, "i1", start)
	need(t, err)
	if u.Name != "eve" || !u.InvitedUntil.Equal(start.Add(time.Hour)) {
		t.Errorf("%+v", u)
	}
	_, err = two.Invited(ctx, "i1", start.Add(time.Hour))
	is(t, "late", err, fleet.ErrUnauthenticated)
	need(t, two.SetInvitation(ctx, "eve", "i2", start.Add(time.Hour), event))
	_, err = one.Invited(ctx, "i1", start)
	is(t, "replaced", err, fleet.ErrUnauthenticated)

	var wg sync.WaitGroup
	var used atomic.Int64
	for _, s := range []*store.Store{one, two, one, two} {
		wg.Go(func() {
			_, err := s.UseInvitation(ctx, "i2", "new hash", start, func(fleet.User) fleet.Entry { return event })
			if err == nil {
				used.Add(1)
				return
			}
			is(t, "used", err, fleet.ErrUnauthenticated)
		})
	}
	wg.Wait()
	if used.Load() != 1 {
		t.Errorf("used %d times", used.Load())
	}
	acct, err := two.Account(ctx, "eve")
	need(t, err)
	if acct.Password != "new hash" || acct.Epoch != 2 || !acct.InvitedUntil.IsZero() {
		t.Errorf("%+v", acct)
	}
	need(t, two.SetInvitation(ctx, "eve", "i3", start.Add(time.Hour), event))
	yes := true
	_, _, err = one.ChangeUser(ctx, "eve", fleet.UserChange{Disabled: &yes}, start, change)
	need(t, err)
	_, err = one.Invited(ctx, "i3", start)
	is(t, "of who is disabled", err, fleet.ErrUnauthenticated)
	is(t, "for who is disabled", one.SetInvitation(ctx, "eve", "i4", start.Add(time.Hour), event), fleet.ErrConflict)
	is(t, "for nobody", one.SetInvitation(ctx, "bob", "i4", start.Add(time.Hour), event), fleet.ErrNotFound)
	need(t, one.DropExpired(ctx, start.Add(2*time.Hour), start))
}

// vouchedIdentities: kind, issuer and subject together are one person, and all three count.
func vouchedIdentities(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	id := fleet.Identity{Kind: fleet.PersonOIDC, Issuer: "https://a", Subject: "1"}
	add := func(name string, id fleet.Identity) error {
		p := person(name, fleet.RoleViewer)
		p.Password, p.Kind, p.Issuer, p.Subject = "", id.Kind, id.Issuer, id.Subject
		return one.AddUser(ctx, p, event)
	}
	need(t, add("ada", id))
	is(t, "the identity again", add("eve", id), fleet.ErrConflict)
	for i, other := range []fleet.Identity{
		{Kind: fleet.PersonLDAP, Issuer: id.Issuer, Subject: id.Subject},
		{Kind: id.Kind, Issuer: "https://b", Subject: id.Subject},
		{Kind: id.Kind, Issuer: id.Issuer, Subject: "2"},
	} {
		_, err := two.AccountOf(ctx, other)
		is(t, "nobody's", err, fleet.ErrNotFound)
		need(t, add("other"+string(rune('a'+i)), other))
	}
	acct, err := two.AccountOf(ctx, id)
	need(t, err)
	if acct.Name != "ada" || acct.Kind != fleet.PersonOIDC || acct.Issuer != "https://a" || acct.Subject != "1" {
		t.Errorf("%+v", acct)
	}
	_, err = two.AccountOf(ctx, fleet.Identity{Kind: fleet.PersonLocal})
	is(t, "local people have none", err, fleet.ErrNotFound)
	is(t, "a second factor", one.SetFactor(ctx, "id-ada", fleet.Sealed{Data: "x"}), fleet.ErrConflict)
	is(t, "an invitation", one.SetInvitation(ctx, "ada", "i", start.Add(time.Hour), event), fleet.ErrConflict)
	// People who have no password here are no less admins.
	need(t, one.AddSession(ctx, session("ada", "s"), nil, event))
	_, changed, err := two.ChangeUser(ctx, "ada", fleet.UserChange{Revoke: true}, start, change)
	need(t, err)
	_, serr := one.Session(ctx, "s", start)
	if is(t, "revoked", serr, fleet.ErrUnauthenticated); !changed {
		t.Error("nothing was revoked")
	}
}
