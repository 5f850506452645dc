package auth

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

func TestSignIn_AnswersWhoItIs(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	before := time.Now()
	token, expires, err := h.SignIn(t.Context(), "  ADA ", secret, from, strings.Repeat("é", 1000))
	if err != nil {
		t.Fatal(err)
	}
	if d := expires.Sub(before); d < 12*time.Hour || d > 12*time.Hour+time.Minute {
		t.Errorf("session lasts %v", d)
	}
	for name, ask := range map[string]func(context.Context, string) (fleet.Caller, error){
		"BySession": h.BySession, "PeekSession": h.PeekSession,
	} {
		got, err := ask(t.Context(), token)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := fleet.Caller{UserID: got.UserID, Name: "ada", Role: fleet.RoleAdmin, Session: got.Session, Via: "session", SignedIn: got.SignedIn}
		if diff := cmp.Diff(want, got); diff != "" || got.UserID == "" || len(got.Session) < 43 || got.Session == token {
			t.Errorf("%s (-want +got):\n%s%+v", name, diff, got)
		}
	}
	c, err := h.BySession(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	list, err := h.Sessions(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	want := []fleet.Session{{Hash: c.Session, Addr: from.Addr, UserAgent: strings.Repeat("é", 128), Current: true}}
	if diff := cmp.Diff(want, list, cmpopts.IgnoreTypes(time.Time{})); diff != "" {
		t.Errorf("sessions (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "x", token[1:], token + "A", c.Session, strings.Repeat("A", 1<<16)} {
		_, err := h.BySession(t.Context(), bad)
		wants(t, "another token", err, fleet.ErrUnauthenticated)
	}
}

// TestSignIn_Fixation: what a browser brought along never becomes a session, and what it had ends.
func TestSignIn_Fixation(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	old, c := h.in(t, "ada")
	seen := map[string]bool{old: true}
	for range 3 {
		token, _, err := h.SignIn(t.Context(), "ada", secret, fleet.Caller{Addr: from.Addr, Session: c.Session, UserID: c.UserID}, "")
		if err != nil {
			t.Fatal(err)
		}
		if seen[token] {
			t.Fatal("a token was given twice")
		}
		seen[token] = true
		_, err = h.BySession(t.Context(), old)
		wants(t, "the session before", err, fleet.ErrUnauthenticated)
		if diff := cmp.Diff([]End{{Session: c.Session, UserID: c.UserID, Reason: ReasonReplaced}}, h.announced()); diff != "" {
			t.Errorf("ends (-want +got):\n%s", diff)
		}
		if c, err = h.BySession(t.Context(), token); err != nil {
			t.Fatal(err)
		}
		old = token
	}
}

// between lets a test act between the moment a session was read and the moment its activity is written.
type between struct {
	Store
	touched atomic.Int64
	mu      sync.Mutex // guards found
	found   func()
}

func (b *between) Session(ctx context.Context, hash string, now time.Time) (fleet.Credential, error) {
	c, err := b.Store.Session(ctx, hash, now)
	c.SeenAt = c.SeenAt.Add(-2 * touchEvery) // every request is due to write
	b.mu.Lock()
	found := b.found
	b.found = nil
	b.mu.Unlock()
	if found != nil {
		found()
	}
	return c, err
}

func (b *between) TouchSession(ctx context.Context, hash, data string, seen, idle time.Time) (bool, error) {
	b.touched.Add(1)
	return b.Store.TouchSession(ctx, hash, data, seen, idle)
}

// TestSession_IsNotRevived: a request in flight, whose activity is due, must not bring back a session that was ended
// meanwhile. Half of the interleavings are forced into the gap between read and write, half are left to chance.
func TestSession_IsNotRevived(t *testing.T) {
	t.Parallel()
	const rounds = 1000
	gap := &between{}
	h := build(t, func(s *store.Store) Store { gap.Store = s; return gap })
	acct, err := h.store.Account(t.Context(), "ada")
	if err != nil {
		t.Fatal(err)
	}
	for i := range rounds {
		in, err := h.issue(t.Context(), issue{session: fleet.NewSession{UserID: acct.ID, Epoch: acct.Epoch}}, from, "")
		if err != nil {
			t.Fatal(err)
		}
		token := in.Token
		hash := hashOf(t, h, token)
		if i%2 == 0 {
			gap.mu.Lock()
			gap.found = func() {
				if err := h.SignOut(t.Context(), token); err != nil {
					t.Error(err)
				}
			}
			gap.mu.Unlock()
			_, err = h.BySession(t.Context(), token)
			wants(t, "the request in flight", err, fleet.ErrUnauthenticated)
		} else {
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := h.BySession(t.Context(), token); err != nil && !errors.Is(err, fleet.ErrUnauthenticated) {
					t.Error(err)
				}
			})
			wg.Go(func() {
				if err := h.SignOut(t.Context(), token); err != nil {
					t.Error(err)
				}
			})
			wg.Wait()
		}
		if _, err := h.PeekSession(t.Context(), token); !errors.Is(err, fleet.ErrUnauthenticated) {
			t.Fatalf("round %d: after sign-out: %v", i, err)
		}
		if why, err := h.store.WhyEnded(t.Context(), hash); err != nil || why != ReasonLogout {
			t.Fatalf("round %d: the tombstone says %q, %v", i, why, err)
		}
	}
	list, err := h.Sessions(t.Context(), fleet.Caller{UserID: acct.ID})
	if err != nil || len(list) != 0 {
		t.Errorf("%d sessions are left, %v", len(list), err)
	}
	if n := gap.touched.Load(); n < rounds/2 || strings.Contains(h.said.String(), "activity not recorded") {
		t.Errorf("activity was written %d times: the test did not test what it says\n%s", n, h.said)
	}
}

// hashOf is what the store calls the token.
func hashOf(t *testing.T, h *house, token string) string {
	t.Helper()
	c := &call{}
	if _, err := h.sessions.Load(withCall(t.Context(), c), token); err != nil || !c.ok {
		t.Fatalf("%v, %v", c.ok, err)
	}
	return c.found.Hash
}

func TestSession_IdleAndAbsoluteToTheSecond(t *testing.T) {
	t.Parallel()
	const tick = time.Millisecond
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, h *house, token string)
	}{
		{"untouched", func(t *testing.T, h *house, token string) {
			pass(30*time.Minute - tick)
			alive(t, h, token, true)
			pass(tick)
			alive(t, h, token, false)
		}},
		{"peeking is no activity", func(t *testing.T, h *house, token string) {
			for range 1799 {
				pass(time.Second)
				alive(t, h, token, true)
			}
			pass(time.Second)
			alive(t, h, token, false)
		}},
		{"activity", func(t *testing.T, h *house, token string) {
			pass(29 * time.Minute)
			active(t, h, token)
			pass(30*time.Minute - tick)
			alive(t, h, token, true)
			pass(tick)
			alive(t, h, token, false)
		}},
		{"activity is written once a minute", func(t *testing.T, h *house, token string) {
			pass(59 * time.Second)
			active(t, h, token)
			pass(30*time.Minute - 59*time.Second)
			alive(t, h, token, false)
		}},
		{"absolute", func(t *testing.T, h *house, token string) {
			for range 12*6 - 1 {
				pass(10 * time.Minute)
				active(t, h, token)
			}
			pass(10*time.Minute - tick)
			active(t, h, token)
			pass(tick)
			alive(t, h, token, false)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				h := enter(t, dir, nil)
				defer h.close(t)
				h.add(t, "ada", fleet.RoleAdmin)
				token, _ := h.in(t, "ada")
				tt.do(t, h, token)
			})
		})
	}
}

func alive(t *testing.T, h *house, token string, want bool) {
	t.Helper()
	_, err := h.PeekSession(t.Context(), token)
	if got := err == nil; got != want || err != nil && !errors.Is(err, fleet.ErrUnauthenticated) {
		t.Fatalf("alive is %v (%v), want %v", got, err, want)
	}
}

func active(t *testing.T, h *house, token string) {
	t.Helper()
	if _, err := h.BySession(t.Context(), token); err != nil {
		t.Fatal(err)
	}
}

// stuck is a store that cannot write activity.
type stuck struct{ Store }

func (stuck) TouchSession(context.Context, string, string, time.Time, time.Time) (bool, error) {
	return false, fleet.ErrUnavailable
}

func TestBySession_AFullDatabaseLocksNobodyOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, func(s *store.Store) Store { return stuck{s} })
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		token, _ := h.in(t, "ada")
		pass(2 * time.Minute)
		active(t, h, token)
		if !strings.Contains(h.said.String(), "activity not recorded") {
			t.Errorf("nothing said: %q", h.said)
		}
	})
}

func TestSignOut_TwiceAndUnknown(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	token, c := h.in(t, "ada")
	for _, tok := range []string{token, token, "", "never was"} {
		if err := h.SignOut(t.Context(), tok); err != nil {
			t.Errorf("%q: %v", tok, err)
		}
	}
	if diff := cmp.Diff([]End{{Session: c.Session, UserID: c.UserID, Reason: ReasonLogout}}, h.announced()); diff != "" {
		t.Errorf("ends (-want +got):\n%s", diff)
	}
	got, err := h.log.Entries(t.Context(), fleet.AuditFilter{Action: "signout"})
	if err != nil || len(got) != 1 || got[0].Actor != "ada" || got[0].Session != c.Session {
		t.Errorf("record: %+v, %v", got, err)
	}
}

func TestEndSession_OwnOrAdmin(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.add(t, "vic", fleet.RoleViewer)
	adaToken, ada := h.in(t, "ada")
	vicToken, vic := h.in(t, "vic")
	wants(t, "a viewer ends another's session", h.EndSession(t.Context(), vic, ada.Session), fleet.ErrNotFound)
	alive(t, h, adaToken, true)
	wants(t, "nobody ends a session", h.EndSession(t.Context(), fleet.Caller{}, ada.Session), fleet.ErrForbidden)
	if err := h.EndSession(t.Context(), ada, vic.Session); err != nil {
		t.Fatal(err)
	}
	alive(t, h, vicToken, false)
	wants(t, "again", h.EndSession(t.Context(), ada, vic.Session), fleet.ErrNotFound)
	if diff := cmp.Diff([]End{{Session: vic.Session, UserID: vic.UserID, Reason: ReasonRevoked}}, h.announced()); diff != "" {
		t.Errorf("ends (-want +got):\n%s", diff)
	}
	if list, err := h.Sessions(t.Context(), vic); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// overtaken changes the person between the check of the password and the session.
type overtaken struct {
	Store
	mu   sync.Mutex // guards then
	then func()
}

func (o *overtaken) Account(ctx context.Context, name string) (fleet.Account, error) {
	a, err := o.Store.Account(ctx, name)
	o.mu.Lock()
	then := o.then
	o.then = nil
	o.mu.Unlock()
	if then != nil {
		then()
	}
	return a, err
}

func TestSignIn_DoesNotOvertakeARevocation(t *testing.T) {
	t.Parallel()
	o := &overtaken{}
	h := build(t, func(s *store.Store) Store { o.Store = s; return o })
	h.add(t, "vic", fleet.RoleViewer)
	for name, change := range map[string]func() error{
		"password": func() error { return h.SetPassword(t.Context(), host, "vic", "another long phrase") },
		"role":     func() error { return h.SetRole(t.Context(), host, "vic", fleet.RoleOperator) },
		"disable":  func() error { return h.SetDisabled(t.Context(), host, "vic", true) },
	} {
		if err := errors.Join(h.SetDisabled(t.Context(), host, "vic", false),
			h.SetPassword(t.Context(), host, "vic", secret), h.SetRole(t.Context(), host, "vic", fleet.RoleViewer)); err != nil {
			t.Fatal(err)
		}
		o.mu.Lock()
		o.then = func() {
			if err := change(); err != nil {
				t.Error(err)
			}
		}
		o.mu.Unlock()
		_, _, err := h.SignIn(t.Context(), "vic", secret, from, "")
		wants(t, name, err, fleet.ErrUnauthenticated)
	}
}

func TestCodec(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	b, err := codec{}.Encode(at, map[string]any{"s": "x", "i": 7, "big": int64(1) << 62})
	if err != nil {
		t.Fatal(err)
	}
	deadline, values, err := codec{}.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"s": "x", "i": int64(7), "big": int64(1) << 62}
	if diff := cmp.Diff(want, values); diff != "" || !deadline.Equal(at) {
		t.Errorf("%v (-want +got):\n%s", deadline, diff)
	}
	for _, bad := range []any{true, 1.5, []string{"a"}, nil, struct{}{}} {
		if _, err := (codec{}).Encode(at, map[string]any{"k": bad}); err == nil {
			t.Errorf("%T was kept", bad)
		}
	}
	for _, bad := range []string{``, `x`, `{"values":{"k":1.5}}`, `{"values":{"k":[1]}}`, `{"values":{"k":true}}`} {
		if _, _, err := (codec{}).Decode([]byte(bad)); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}
