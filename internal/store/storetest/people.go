package storetest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// Open returns two handles, as two processes have them, of one empty database. It closes them with the test.
type Open func(t *testing.T) (one, two *store.Store)

// RunPeople checks people, sessions, tokens, attempts and set-up.
func RunPeople(t *testing.T, open Open) {
	run(t, open, map[string]func(t *testing.T, one, two *store.Store){
		"Users":                usersAreKept,
		"ChangeUser":           changeUser,
		"LastAdmin":            lastAdmin,
		"LastAdminRace":        lastAdminRace,
		"SessionLife":          sessionLife,
		"SessionNeverRevived":  sessionNeverRevived,
		"SessionInFlight":      sessionInFlight,
		"SessionNeedsEpoch":    sessionNeedsEpoch,
		"TokenLife":            tokenLife,
		"TokenNeedsItsSession": tokenNeedsItsSession,
		"Credentials":          credentials,
		"AttemptsAreExact":     attemptsAreExact,
		"AttemptsTakenBack":    attemptsTakenBack,
		"SetupOnce":            setupOnce,
		"DropExpired":          dropExpired,
		"NoChangeUnrecorded":   noChangeUnrecorded,
		"SecondStep":           secondStep,
		"ProofsAreUsedUp":      proofsAreUsedUp,
		"HalfTakesBackOne":     halfTakesBackOne,
		"Invitations":          invitations,
		"Identities":           vouchedIdentities,
		"GrantsAndGroups":      grantsAndGroups,
		"GrantsRace":           grantsRace,
		"TokenLimits":          tokenLimits,
		"Devices":              devices,
		"DevicesAreSwept":      devicesAreSwept,
		"ClearAttempts":        clearing,
	})
}

// RunRecord checks the audit record.
func RunRecord(t *testing.T, open Open) {
	run(t, open, map[string]func(t *testing.T, one, two *store.Store){
		"Chain":     chain,
		"ChainRace": chainRace,
		"Storable":  storable,
		"Filters":   filters,
	})
}

func run(t *testing.T, open Open, tests map[string]func(t *testing.T, one, two *store.Store)) {
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			one, two := open(t)
			test(t, one, two)
		})
	}
}

// need ends the test on an error.
func need(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// is fails unless err is of the kind.
func is(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got %v, want %v", what, err, kind)
	}
}

func person(name string, role fleet.Role) fleet.Account {
	return fleet.Account{
		User:     fleet.User{ID: "id-" + name, Name: name, Role: role, Epoch: 1, CreatedAt: start, Kind: fleet.PersonLocal},
		Password: "hash-" + name,
	}
}

func session(name, hash string) fleet.NewSession {
	return fleet.NewSession{
		Session: fleet.Session{
			Hash: hash, Addr: "192.0.2.1", UserAgent: "agent", CreatedAt: start, SeenAt: start, ExpiresAt: start.Add(12 * time.Hour),
		},
		UserID: "id-" + name, Epoch: 1, Data: "data", IdleAt: start.Add(30 * time.Minute),
	}
}

func token(id string) fleet.Token {
	return fleet.Token{ID: id, Name: "ci", CreatedAt: start, ExpiresAt: start.Add(time.Hour)}
}

var (
	event  = fleet.Entry{Action: "event"}
	change = func(_, _ fleet.User) fleet.Entry { return event }
)

func usersAreKept(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	if has, err := two.HasUsers(ctx); has || err != nil {
		t.Errorf("an empty store has users: %v", err)
	}
	_, err := two.Account(ctx, "ada")
	is(t, "unknown", err, fleet.ErrNotFound)
	ada, bob := person("ada", fleet.RoleAdmin), person("bob", fleet.RoleViewer)
	need(t, one.AddUser(ctx, bob, event))
	need(t, one.AddUser(ctx, ada, event))
	got, err := two.Account(ctx, "ada")
	need(t, err)
	if diff := cmp.Diff(ada, got); diff != "" {
		t.Errorf("account (-want +got):\n%s", diff)
	}
	list, err := two.Users(ctx)
	need(t, err)
	if diff := cmp.Diff([]fleet.User{ada.User, bob.User}, list); diff != "" {
		t.Errorf("users (-want +got):\n%s", diff)
	}
	again := person("ada", fleet.RoleViewer)
	again.ID = "other"
	is(t, "same name", two.AddUser(ctx, again, event), fleet.ErrConflict)
	if has, err := two.HasUsers(ctx); !has || err != nil {
		t.Errorf("no users: %v", err)
	}
	need(t, one.Rehash(ctx, ada.ID, "not the old one", "x"))
	need(t, one.Rehash(ctx, bob.ID, bob.Password, "fresh"))
	for name, want := range map[string]string{"ada": ada.Password, "bob": "fresh"} {
		if got, err := two.Account(ctx, name); err != nil || got.Password != want || got.Epoch != 1 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func changeUser(t *testing.T, one, two *store.Store) {
	ctx, at := t.Context(), start.Add(time.Minute)
	for _, tt := range []struct {
		name      string
		change    fleet.UserChange
		changed   bool
		tokenGood bool
		why       string
	}{
		{"same-role", fleet.UserChange{Role: new(fleet.RoleOperator)}, false, true, ""},
		{"same-state", fleet.UserChange{Disabled: new(false)}, false, true, ""},
		{"role", fleet.UserChange{Role: new(fleet.RoleViewer)}, true, true, "role"},
		{"password", fleet.UserChange{Password: new("new")}, true, false, "password"},
		{"disabled", fleet.UserChange{Disabled: new(true)}, true, false, "disabled"},
	} {
		before := person(tt.name, fleet.RoleOperator)
		need(t, one.AddUser(ctx, before, event))
		need(t, one.AddSession(ctx, session(tt.name, "s-"+tt.name), nil, event))
		need(t, one.AddToken(ctx, "t-"+tt.name, token(tt.name), before.ID, "", 9, event))
		head, _, err := one.EntriesHead(ctx)
		need(t, err)
		var seen [2]fleet.User
		after, changed, err := one.ChangeUser(ctx, tt.name, tt.change, at, func(b, a fleet.User) fleet.Entry {
			seen = [2]fleet.User{b, a}
			return fleet.Entry{Action: "change", Detail: tt.name}
		})
		need(t, err)
		if changed != tt.changed {
			t.Errorf("%s: changed is %v", tt.name, changed)
		}
		wantHead, wantEpoch := head, int64(1)
		if tt.changed {
			wantHead, wantEpoch = head+1, 2
			if seen[0].Epoch != 1 || !cmp.Equal(seen[1], after) {
				t.Errorf("%s: the record saw %+v", tt.name, seen)
			}
		}
		if got, _, err := two.EntriesHead(ctx); got != wantHead || err != nil {
			t.Errorf("%s: %d entries, want %d (%v)", tt.name, got, wantHead, err)
		}
		acct, err := two.Account(ctx, tt.name)
		need(t, err)
		if acct.Epoch != wantEpoch || after.Epoch != wantEpoch || (tt.why == "password") != (acct.Password == "new") ||
			acct.Disabled != (tt.why == "disabled") || (acct.Role == fleet.RoleViewer) != (tt.why == "role") {
			t.Errorf("%s: %+v", tt.name, acct)
		}
		_, err = two.Session(ctx, "s-"+tt.name, at)
		if (err == nil) == tt.changed {
			t.Errorf("%s: session: %v", tt.name, err)
		}
		if _, err = two.Token(ctx, "t-"+tt.name, at); (err == nil) != tt.tokenGood {
			t.Errorf("%s: token: %v", tt.name, err)
		}
		if why, err := two.WhyEnded(ctx, "s-"+tt.name); why != tt.why || err != nil {
			t.Errorf("%s: ended for %q, %v", tt.name, why, err)
		}
	}
	_, _, err := one.ChangeUser(ctx, "nobody", fleet.UserChange{}, at, change)
	is(t, "nobody", err, fleet.ErrNotFound)
	// Coming back does not bring back what was ended.
	_, _, err = one.ChangeUser(ctx, "disabled", fleet.UserChange{Disabled: new(false)}, at, change)
	need(t, err)
	_, err = two.Session(ctx, "s-disabled", at)
	is(t, "session of before", err, fleet.ErrUnauthenticated)
	_, err = two.Token(ctx, "t-disabled", at)
	is(t, "token of before", err, fleet.ErrUnauthenticated)
}

func lastAdmin(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	for _, ch := range []fleet.UserChange{
		{Disabled: new(true), KeepAdmin: true}, {Role: new(fleet.RoleViewer), KeepAdmin: true},
	} {
		_, _, err := two.ChangeUser(ctx, "ada", ch, start, change)
		is(t, "last admin", err, fleet.ErrConflict)
	}
	if _, _, err := two.ChangeUser(ctx, "ada", fleet.UserChange{Password: new("x"), KeepAdmin: true}, start, change); err != nil {
		t.Error(err)
	}
	if _, changed, err := two.ChangeUser(ctx, "ada", fleet.UserChange{Disabled: new(true)}, start, change); !changed || err != nil {
		t.Errorf("not told to keep: %v, %v", changed, err)
	}
}

func lastAdminRace(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	need(t, one.AddUser(ctx, person("bea", fleet.RoleAdmin), event))
	for range 20 {
		var wg sync.WaitGroup
		for i, s := range []*store.Store{one, two} {
			wg.Go(func() {
				_, _, err := s.ChangeUser(ctx, []string{"ada", "bea"}[i], fleet.UserChange{Role: new(fleet.RoleViewer), KeepAdmin: true},
					start, change)
				if err != nil && !errors.Is(err, fleet.ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		users, err := one.Users(ctx)
		need(t, err)
		admins := 0
		for _, u := range users {
			if u.Role == fleet.RoleAdmin {
				admins++
			}
		}
		if admins != 1 {
			t.Fatalf("%d admins are left", admins)
		}
		for _, name := range []string{"ada", "bea"} {
			_, _, err := one.ChangeUser(ctx, name, fleet.UserChange{Role: new(fleet.RoleAdmin)}, start, change)
			need(t, err)
		}
	}
}

func sessionLife(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	ada := person("ada", fleet.RoleAdmin)
	need(t, one.AddUser(ctx, ada, event))
	need(t, one.AddSession(ctx, session("ada", "a"), nil, event))
	ada.LastSignIn = start
	want := fleet.Credential{
		Hash: "a", User: ada.User, Data: "data", SeenAt: start, IdleAt: start.Add(30 * time.Minute), ExpiresAt: start.Add(12 * time.Hour),
	}
	got, err := two.Session(ctx, "a", start)
	need(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("session (-want +got):\n%s", diff)
	}
	_, err = two.Session(ctx, "a", want.IdleAt.Add(-time.Microsecond))
	need(t, err)
	_, err = two.Session(ctx, "a", want.IdleAt)
	is(t, "idle", err, fleet.ErrUnauthenticated)
	ok, err := two.TouchSession(ctx, "a", "more", start.Add(time.Minute), start.Add(24*time.Hour))
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	_, err = one.Session(ctx, "a", want.ExpiresAt.Add(-time.Microsecond))
	need(t, err)
	_, err = one.Session(ctx, "a", want.ExpiresAt)
	is(t, "expired", err, fleet.ErrUnauthenticated)

	next := session("ada", "b")
	next.Replaces = "a"
	need(t, one.AddSession(ctx, next, nil, event))
	_, err = two.Session(ctx, "a", start)
	is(t, "replaced", err, fleet.ErrUnauthenticated)
	if why, err := one.WhyEnded(ctx, "a"); why != "replaced" || err != nil {
		t.Errorf("replaced by the same person: %q, %v", why, err)
	}
	is(t, "same token twice", one.AddSession(ctx, session("ada", "b"), nil, event), fleet.ErrConflict)
	list, err := two.Sessions(ctx, ada.ID, start)
	need(t, err)
	if diff := cmp.Diff([]fleet.Session{next.Session}, list); diff != "" {
		t.Errorf("sessions (-want +got):\n%s", diff)
	}
	_, err = two.EndSession(ctx, "b", "somebody", "revoked", start, event)
	is(t, "another's", err, fleet.ErrNotFound)
	if owner, err := two.EndSession(ctx, "b", ada.ID, "revoked", start, event); owner != ada.ID || err != nil {
		t.Errorf("ended %q, %v", owner, err)
	}
	_, err = two.EndSession(ctx, "b", "", "revoked", start, event)
	is(t, "again", err, fleet.ErrNotFound)
	if why, err := one.WhyEnded(ctx, "b"); why != "revoked" || err != nil {
		t.Errorf("%q, %v", why, err)
	}
}

func sessionNeverRevived(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	need(t, one.AddUser(ctx, person("vic", fleet.RoleViewer), event))
	for _, hash := range []string{"ended", "idle", "expired"} {
		need(t, one.AddSession(ctx, session("ada", hash), nil, event))
	}
	need(t, one.AddSession(ctx, session("vic", "disabled"), nil, event))
	_, err := one.EndSession(ctx, "ended", "", "logout", start, event)
	need(t, err)
	_, _, err = one.ChangeUser(ctx, "vic", fleet.UserChange{Disabled: new(true)}, start, change)
	need(t, err)
	for hash, at := range map[string]time.Time{
		"ended": start, "idle": start.Add(30 * time.Minute), "expired": start.Add(12 * time.Hour), "disabled": start, "never was": start,
	} {
		if ok, err := two.TouchSession(ctx, hash, "x", at, at.Add(time.Hour)); ok || err != nil {
			t.Errorf("%s: touched: %v, %v", hash, ok, err)
		}
		_, err := two.Session(ctx, hash, at)
		is(t, hash, err, fleet.ErrUnauthenticated)
	}
}

// sessionInFlight: a request that was let in before the end of its session, and writes what it did after or during it,
// brings nothing back, in this process or another. A thousand times, in each of the ways in which sessions end.
func sessionInFlight(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	const waves, each = 25, 40
	need(t, one.AddUser(ctx, person("root", fleet.RoleAdmin), event)) // whoever is disabled must not be the last admin
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	all := func(do func(i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range each {
			wg.Go(func() {
				if err := do(i); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	changes := []*fleet.UserChange{nil, {Revoke: true}, {Role: new(fleet.RoleViewer)}, {Disabled: new(true)}} // nil: signed out
	in, out := new(atomic.Int64), new(atomic.Int64)                                                           // requests that came before the end, and after
	for wave := range waves {
		acct, err := one.Account(ctx, "ada")
		need(t, err)
		hash := func(i int) string { return fmt.Sprintf("%d-%d", wave, i) }
		all(func(i int) error {
			n := session("ada", hash(i))
			n.Epoch = acct.Epoch
			return one.AddSession(ctx, n, nil, event)
		})
		all(func(i int) error { // the requests are let in
			_, err := two.Session(ctx, hash(i), start)
			return err
		})
		if t.Failed() {
			return
		}
		change := changes[wave%len(changes)]
		ended := make(chan struct{})
		var end sync.WaitGroup
		end.Go(func() {
			defer close(ended)
			if change != nil {
				if _, _, err := one.ChangeUser(ctx, "ada", *change, start, func(_, _ fleet.User) fleet.Entry { return event }); err != nil {
					t.Error(err)
				}
				return
			}
			all(func(i int) error { _, err := one.EndSession(ctx, hash(i), "", "logout", start, event); return err })
		})
		all(func(i int) error {
			if i%4 == 0 { // some are slow; the others come when they come
				<-ended
			}
			ok, err := two.TouchSession(ctx, hash(i), "done", start.Add(time.Minute), start.Add(time.Hour))
			if ok {
				in.Add(1)
			} else {
				out.Add(1)
			}
			if ok && i%4 == 0 {
				err = errors.Join(err, fmt.Errorf("%s was touched after its end", hash(i)))
			}
			return err
		})
		end.Wait()
		all(func(i int) error {
			if _, err := two.Session(ctx, hash(i), start); !errors.Is(err, fleet.ErrUnauthenticated) {
				return fmt.Errorf("%s is back: %w", hash(i), err)
			}
			return nil
		})
		if left, err := one.Sessions(ctx, acct.ID, start); err != nil || len(left) != 0 {
			t.Fatalf("wave %d: %d sessions are left, %v", wave, len(left), err)
		}
		back := fleet.UserChange{Role: new(fleet.RoleAdmin), Disabled: new(false)}
		_, _, err = one.ChangeUser(ctx, "ada", back, start, func(_, _ fleet.User) fleet.Entry { return event })
		need(t, err)
	}
	if out.Load() < waves*each/4 {
		t.Errorf("%d requests came after the end", out.Load())
	}
	t.Logf("%d requests were written before the end of their session, %d not any more", in.Load(), out.Load())
}

func sessionNeedsEpoch(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	_, _, err := two.ChangeUser(ctx, "ada", fleet.UserChange{Password: new("x")}, start, change)
	need(t, err)
	is(t, "old epoch", one.AddSession(ctx, session("ada", "a"), nil, event), fleet.ErrUnauthenticated)
	is(t, "nobody", one.AddSession(ctx, session("nobody", "a"), nil, event), fleet.ErrUnauthenticated)
	now := session("ada", "a")
	now.Epoch = 2
	need(t, one.AddSession(ctx, now, nil, event))
	_, _, err = two.ChangeUser(ctx, "ada", fleet.UserChange{Disabled: new(true)}, start, change)
	need(t, err)
	now.Hash, now.Epoch = "b", 3
	is(t, "disabled", one.AddSession(ctx, now, nil, event), fleet.ErrUnauthenticated)
}

func tokenLife(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	vic := person("vic", fleet.RoleViewer)
	need(t, one.AddUser(ctx, vic, event))
	need(t, one.AddToken(ctx, "h1", token("t1"), vic.ID, "", 2, event))
	need(t, one.AddToken(ctx, "h2", token("t2"), vic.ID, "", 2, event))
	is(t, "too many", one.AddToken(ctx, "h3", token("t3"), vic.ID, "", 2, event), fleet.ErrTooMany)
	is(t, "nobody's", one.AddToken(ctx, "h3", token("t3"), "nobody", "", 2, event), fleet.ErrUnauthenticated)
	want := fleet.Credential{Hash: "h1", User: vic.User, ExpiresAt: start.Add(time.Hour)}
	got, err := two.Token(ctx, "h1", start)
	need(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("token (-want +got):\n%s", diff)
	}
	need(t, two.TouchToken(ctx, "h1", start.Add(time.Minute)))
	t1, t2 := token("t1"), token("t2")
	t1.UsedAt = start.Add(time.Minute)
	list, err := one.Tokens(ctx, vic.ID, start)
	need(t, err)
	if diff := cmp.Diff([]fleet.Token{t1, t2}, list); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
	_, err = two.Token(ctx, "h1", start.Add(time.Hour))
	is(t, "expired", err, fleet.ErrUnauthenticated)
	_, err = two.EndToken(ctx, "t1", "somebody", "revoked", start, event)
	is(t, "another's", err, fleet.ErrNotFound)
	if key, err := two.EndToken(ctx, "t1", vic.ID, "revoked", start, event); err != nil || key.Hash != "h1" || key.UserID != vic.ID {
		t.Errorf("ended %+v, %v", key, err)
	}
	_, err = one.Token(ctx, "h1", start)
	is(t, "ended", err, fleet.ErrUnauthenticated)
	_, err = two.EndToken(ctx, "t1", "", "revoked", start, event)
	is(t, "again", err, fleet.ErrNotFound)
	need(t, one.AddToken(ctx, "h3", token("t3"), vic.ID, "", 2, event)) // what ended makes room
}

func tokenNeedsItsSession(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	need(t, one.AddUser(ctx, person("vic", fleet.RoleViewer), event))
	need(t, one.AddSession(ctx, session("vic", "s"), nil, event))
	need(t, one.AddToken(ctx, "h1", token("t1"), "id-vic", "s", 9, event))
	is(t, "another's session", one.AddToken(ctx, "h2", token("t2"), "id-ada", "s", 9, event), fleet.ErrUnauthenticated)
	_, err := two.EndSession(ctx, "s", "", "logout", start, event)
	need(t, err)
	is(t, "ended session", one.AddToken(ctx, "h2", token("t2"), "id-vic", "s", 9, event), fleet.ErrUnauthenticated)
}

func key(hash, user string, epoch int64) fleet.CredentialKey {
	return fleet.CredentialKey{Hash: hash, UserID: user, Epoch: epoch}
}

func credentials(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	need(t, one.AddUser(ctx, person("vic", fleet.RoleViewer), event))
	need(t, one.AddSession(ctx, session("ada", "s1"), nil, event))
	need(t, one.AddSession(ctx, session("ada", "s2"), nil, event))
	need(t, one.AddSession(ctx, session("vic", "s3"), nil, event))
	need(t, one.AddToken(ctx, "t1", token("t1"), "id-ada", "", 9, event))
	need(t, one.AddToken(ctx, "t2", token("t2"), "id-vic", "", 9, event))
	_, err := one.EndSession(ctx, "s2", "", "logout", start, event)
	need(t, err)
	_, _, err = one.ChangeUser(ctx, "vic", fleet.UserChange{Role: new(fleet.RoleOperator)}, start, change)
	need(t, err)
	for _, tt := range []struct {
		at   time.Time
		want []fleet.CredentialKey
	}{
		{start, []fleet.CredentialKey{key("s1", "id-ada", 1), key("t1", "id-ada", 1), key("t2", "id-vic", 2)}},
		{start.Add(30 * time.Minute), []fleet.CredentialKey{key("t1", "id-ada", 1), key("t2", "id-vic", 2)}},
		{start.Add(time.Hour), nil},
	} {
		got, err := two.Credentials(ctx, tt.at)
		need(t, err)
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty(), cmpopts.SortSlices(func(a, b fleet.CredentialKey) bool {
			return a.Hash < b.Hash
		})); diff != "" {
			t.Errorf("at %v (-want +got):\n%s", tt.at, diff)
		}
	}
}

var attemptKeys = []fleet.AttemptKey{{Scope: fleet.AttemptAll, Subject: "all"}, {Scope: fleet.AttemptName, Subject: "n"}}

// attemptsAreExact: what is counted at once through two handles is counted as if one after the other.
func attemptsAreExact(t *testing.T, one, two *store.Store) {
	const most = 10
	ctx := t.Context()
	refused := &fleet.LimitError{What: "x", Retry: time.Second}
	var mu sync.Mutex
	passed := 0
	var wg sync.WaitGroup
	for i := range 3 * most {
		wg.Go(func() {
			err := []*store.Store{one, two}[i%2].CountAttempt(ctx, attemptKeys, func(have []fleet.Attempts) ([]fleet.Attempts, error) {
				if have[0].Count != have[1].Count {
					return nil, fmt.Errorf("counters went apart: %+v", have)
				}
				if have[0].Count >= most {
					return nil, refused
				}
				next := fleet.Attempts{Count: have[0].Count + 1, Since: start, Blocked: start.Add(time.Second)}
				return []fleet.Attempts{next, next}, nil
			})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				passed++
			case !errors.Is(err, fleet.ErrTooMany):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if passed != most {
		t.Errorf("%d passed, want %d", passed, most)
	}
	var seen []fleet.Attempts
	err := two.CountAttempt(ctx, attemptKeys, func(have []fleet.Attempts) ([]fleet.Attempts, error) {
		seen = append([]fleet.Attempts(nil), have...)
		return nil, refused
	})
	is(t, "reading", err, fleet.ErrTooMany)
	last := fleet.Attempts{Count: most, Since: start, Blocked: start.Add(time.Second)}
	if diff := cmp.Diff([]fleet.Attempts{last, last}, seen); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

func attemptsTakenBack(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	set := func(have []fleet.Attempts) ([]fleet.Attempts, error) {
		return []fleet.Attempts{{Count: 7, Since: start}, {Count: 3, Since: start}}, nil
	}
	need(t, one.CountAttempt(ctx, attemptKeys, set))
	need(t, one.AddSession(ctx, session("ada", "s"), attemptKeys, event))
	var seen []fleet.Attempts
	need(t, two.CountAttempt(ctx, attemptKeys, func(have []fleet.Attempts) ([]fleet.Attempts, error) {
		seen = append([]fleet.Attempts(nil), have...)
		return have, nil
	}))
	if diff := cmp.Diff([]fleet.Attempts{{Count: 6, Since: start}, {}}, seen); diff != "" {
		t.Errorf("after a success (-want +got):\n%s", diff)
	}
}

func setupOnce(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	set := func(hash string, want bool) {
		t.Helper()
		if ok, err := one.SetSetupCode(ctx, hash, start.Add(time.Hour)); ok != want || err != nil {
			t.Errorf("%s: %v, %v", hash, ok, err)
		}
	}
	good := func(hash string, at time.Time, want bool) {
		t.Helper()
		if ok, err := two.SetupCode(ctx, hash, at); ok != want || err != nil {
			t.Errorf("%s: %v, %v", hash, ok, err)
		}
	}
	set("h1", true)
	set("h2", true)
	good("h1", start, false)
	good("h2", start, true)
	good("h2", start.Add(time.Hour), false)
	is(t, "wrong", one.UseSetupCode(ctx, "h1", start, person("ada", fleet.RoleAdmin), event), fleet.ErrUnauthenticated)
	is(t, "late", one.UseSetupCode(ctx, "h2", start.Add(time.Hour), person("ada", fleet.RoleAdmin), event), fleet.ErrUnauthenticated)
	errs := make(chan error, 2)
	for i, s := range []*store.Store{one, two} {
		go func() { errs <- s.UseSetupCode(ctx, "h2", start, person(fmt.Sprint("p", i), fleet.RoleAdmin), event) }()
	}
	a, b := <-errs, <-errs
	if (a == nil) == (b == nil) {
		t.Errorf("%v, %v", a, b)
	}
	is(t, "the other", errors.Join(a, b), fleet.ErrConflict)
	set("h3", false)
	good("h2", start, false)
}

func dropExpired(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	need(t, one.AddSession(ctx, session("ada", "s"), nil, event))
	need(t, one.AddToken(ctx, "t", token("t"), "id-ada", "", 9, event))
	_, err := one.EndSession(ctx, "s", "", "logout", start, event)
	need(t, err)
	need(t, one.CountAttempt(ctx, attemptKeys, func([]fleet.Attempts) ([]fleet.Attempts, error) {
		return []fleet.Attempts{{Count: 1, Since: start}, {Count: 9, Since: start, Blocked: start.Add(2 * time.Hour)}}, nil
	}))
	counts := func() []fleet.Attempts {
		var seen []fleet.Attempts
		err := two.CountAttempt(ctx, attemptKeys, func(have []fleet.Attempts) ([]fleet.Attempts, error) {
			seen = append([]fleet.Attempts(nil), have...)
			return nil, fleet.ErrTooMany
		})
		is(t, "reading", err, fleet.ErrTooMany)
		return seen
	}
	need(t, one.DropExpired(ctx, start.Add(time.Hour-1*time.Microsecond), start.Add(-time.Hour)))
	_, err = two.Token(ctx, "t", start)
	need(t, err)
	if got := counts(); got[0].Count != 1 || got[1].Count != 9 {
		t.Errorf("too early: %+v", got)
	}
	need(t, one.DropExpired(ctx, start.Add(12*time.Hour-time.Microsecond), start.Add(time.Hour)))
	_, err = two.Token(ctx, "t", start)
	is(t, "token", err, fleet.ErrUnauthenticated)
	if why, err := two.WhyEnded(ctx, "s"); why != "logout" || err != nil {
		t.Errorf("the tombstone went early: %q, %v", why, err)
	}
	if got := counts(); got[0].Count != 0 || got[1].Count != 9 {
		t.Errorf("what still blocks stays: %+v", got)
	}
	need(t, one.DropExpired(ctx, start.Add(12*time.Hour), start.Add(2*time.Hour)))
	if why, err := two.WhyEnded(ctx, "s"); why != "" || err != nil {
		t.Errorf("the tombstone is still there: %q, %v", why, err)
	}
	if got := counts(); got[1].Count != 0 {
		t.Errorf("counters: %+v", got)
	}
}

// noChangeUnrecorded: where the entry cannot be written, the change is not made.
func noChangeUnrecorded(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddUser(ctx, person("ada", fleet.RoleAdmin), event))
	need(t, one.AddUser(ctx, person("vic", fleet.RoleViewer), event))
	need(t, one.AddSession(ctx, session("ada", "s"), nil, event))
	need(t, one.AddToken(ctx, "t", token("t"), "id-ada", "", 9, event))
	// The head says that the next entry has a number that is taken.
	need(t, one.Tx(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE audit_head SET seq = seq - 1 WHERE id = 1`)
		return err
	}))
	for name, err := range map[string]error{
		"AddUser":       one.AddUser(ctx, person("eve", fleet.RoleViewer), event),
		"AddSession":    one.AddSession(ctx, session("ada", "s2"), nil, event),
		"ClearAttempts": one.ClearAttempts(ctx, "id-ada", "name-ada", event),
		"AddToken":      one.AddToken(ctx, "t2", token("t2"), "id-ada", "", 9, event),
	} {
		is(t, name, err, fleet.ErrConflict)
	}
	_, _, err := one.ChangeUser(ctx, "vic", fleet.UserChange{Role: new(fleet.RoleAdmin)}, start, change)
	is(t, "ChangeUser", err, fleet.ErrConflict)
	_, err = one.EndSession(ctx, "s", "", "logout", start, event)
	is(t, "EndSession", err, fleet.ErrConflict)
	_, err = one.EndToken(ctx, "t", "", "revoked", start, event)
	is(t, "EndToken", err, fleet.ErrConflict)

	users, err := two.Users(ctx)
	need(t, err)
	if len(users) != 2 || users[1].Role != fleet.RoleViewer || users[1].Epoch != 1 {
		t.Errorf("users: %+v", users)
	}
	keys, err := two.Credentials(ctx, start)
	need(t, err)
	if len(keys) != 2 {
		t.Errorf("credentials: %+v", keys)
	}
}

func chain(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	seq, hash, err := one.EntriesHead(ctx)
	if seq != 0 || hash != "" || err != nil {
		t.Errorf("head of nothing: %d %q %v", seq, hash, err)
	}
	prev := ""
	for i, s := range []*store.Store{one, two, one} {
		e, err := s.AppendEntry(ctx, []fleet.Entry{
			{Action: "x"}, {Action: "x", Cluster: "c", ClusterUID: "u", As: "ada"}, {Action: "x", Detail: "d"},
		}[i])
		need(t, err)
		if e.Seq != int64(i+1) || e.Prev != prev || e.Hash != e.Sum() || e.At.IsZero() {
			t.Errorf("entry %+v", e)
		}
		prev = e.Hash
		seq, hash, err := two.EntriesHead(ctx)
		if seq != e.Seq || hash != e.Hash || err != nil {
			t.Errorf("head: %d %q %v", seq, hash, err)
		}
		read, err := two.EntriesAfter(ctx, e.Seq-1, 10)
		need(t, err)
		if diff := cmp.Diff([]fleet.Entry{e}, read); diff != "" {
			t.Errorf("read back (-want +got):\n%s", diff)
		}
	}
}

func chainRace(t *testing.T, one, two *store.Store) {
	const each = 25
	ctx := t.Context()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range each {
				if _, err := []*store.Store{one, two}[i%2].AppendEntry(ctx, event); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	all, err := one.EntriesAfter(ctx, 0, 1000)
	need(t, err)
	if len(all) != 4*each {
		t.Fatalf("%d entries", len(all))
	}
	prev := ""
	for i, e := range all {
		if e.Seq != int64(i+1) || e.Prev != prev || e.Hash != e.Sum() {
			t.Fatalf("entry %d: %+v", i, e)
		}
		prev = e.Hash
	}
}

// filters: each narrows, all together narrow more, and the pages go both ways.
func filters(t *testing.T, one, two *store.Store) {
	at := func(h int) time.Time { return start.Add(time.Duration(h) * time.Hour) }
	for _, e := range []fleet.Entry{
		{At: at(1), Actor: "ada", Action: "cordon", Cluster: "a", Node: "n1", Batch: "b1", Session: "s1", Outcome: "succeeded"},
		{At: at(2), Actor: "ada", Action: "cordon", Cluster: "a", Node: "n2", Batch: "b1", Session: "s1", Outcome: "failed"},
		{At: at(3), Actor: "bob", Action: "signin", Session: "s2", Outcome: "denied"},
		{At: at(4), Actor: "bob", Action: "drain", Cluster: "b", Node: "n1", Batch: "b2", Session: "s2"},
	} {
		_, err := one.AppendEntry(t.Context(), e)
		need(t, err)
	}
	for _, tt := range []struct {
		f    fleet.AuditFilter
		want []int64
	}{
		{fleet.AuditFilter{}, []int64{4, 3, 2, 1}},
		{fleet.AuditFilter{Oldest: true}, []int64{1, 2, 3, 4}},
		{fleet.AuditFilter{User: "ada"}, []int64{2, 1}},
		{fleet.AuditFilter{Cluster: "a"}, []int64{2, 1}},
		{fleet.AuditFilter{Node: "n1"}, []int64{4, 1}},
		{fleet.AuditFilter{Node: "n1", Cluster: "a"}, []int64{1}},
		{fleet.AuditFilter{Action: "cordon"}, []int64{2, 1}},
		{fleet.AuditFilter{Outcome: "failed"}, []int64{2}},
		{fleet.AuditFilter{Batch: "b1"}, []int64{2, 1}},
		{fleet.AuditFilter{Session: "s2"}, []int64{4, 3}},
		{fleet.AuditFilter{Since: at(2), Until: at(4)}, []int64{3, 2}},
		{fleet.AuditFilter{BeforeSeq: 4, AfterSeq: 1}, []int64{3, 2}},
		{fleet.AuditFilter{AfterSeq: 1, Oldest: true, Limit: 2}, []int64{2, 3}},
		{fleet.AuditFilter{BeforeSeq: 4, Limit: 2}, []int64{3, 2}},
		{fleet.AuditFilter{User: "ada", Cluster: "a", Node: "n2", Action: "cordon", Outcome: "failed", Batch: "b1", Session: "s1", Since: at(2)}, []int64{2}},
		{fleet.AuditFilter{User: "ada", Session: "s2"}, nil},
		{fleet.AuditFilter{Batch: "b1' OR '1'='1"}, nil},
	} {
		got, err := two.Entries(t.Context(), tt.f)
		need(t, err)
		var seqs []int64
		for _, e := range got {
			seqs = append(seqs, e.Seq)
		}
		if diff := cmp.Diff(tt.want, seqs); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.f, diff)
		}
	}
}

// storable: whatever comes in comes back as it was hashed.
func storable(t *testing.T, one, two *store.Store) {
	for _, text := range []string{
		"", "plain", "\x00", "\xff\xfe", "a\xc3", "é", strings.Repeat("x", 5000), strings.Repeat("é", 5000), strings.Repeat("🙂", 5000),
		strings.Repeat("x", 4095) + "é", "<b>'\"\\\n", "\u202e",
	} {
		e, err := one.AppendEntry(t.Context(), fleet.Entry{Action: text, Actor: text, Detail: text})
		need(t, err)
		got, err := two.EntriesAfter(t.Context(), e.Seq-1, 1)
		need(t, err)
		if diff := cmp.Diff([]fleet.Entry{e}, got); diff != "" || got[0].Sum() != e.Hash {
			t.Errorf("%.20q (-want +got):\n%s", text, diff)
		}
		if len(e.Detail) > 4100 {
			t.Errorf("%.20q: %d bytes kept", text, len(e.Detail))
		}
		if keeps := len(text) <= 4096 && strings.ToValidUTF8(text, "") == text && !strings.Contains(text, "\x00"); keeps && e.Detail != text {
			t.Errorf("%.20q became %.20q", text, e.Detail)
		}
	}
}
