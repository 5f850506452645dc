package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// TestSignIn_OneComputationWhateverTheCause: neither the work nor the words tell names from passwords.
func TestSignIn_OneComputationWhateverTheCause(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.add(t, "gone", fleet.RoleViewer)
	if err := h.SetDisabled(t.Context(), host, "gone", true); err != nil {
		t.Fatal(err)
	}
	words := map[string]bool{}
	entries := 0
	for i, tt := range []struct {
		what, name, password string
		ok                   bool
	}{
		{"right", "ada", secret, true},
		{"wrong password", "ada", "correct horse batterz", false},
		{"unknown name", "bob", secret, false},
		{"impossible name", "a b\x00c", secret, false},
		{"disabled, right password", "gone", secret, false},
		{"disabled, wrong password", "gone", "x", false},
		{"empty password", "ada", "", false},
		{"endless password", "ada", secret + strings.Repeat("x", 1<<20), false},
		{"password with a known beginning", "ada", secret + strings.Repeat(" ", 300), false},
	} {
		before := h.hasher.computed.Load()
		token, _, err := h.SignIn(t.Context(), tt.name, tt.password, fleet.Caller{Addr: fmt.Sprintf("192.0.2.%d", i)}, "")
		if n := h.hasher.computed.Load() - before; n != 1 {
			t.Errorf("%s: %d computations", tt.what, n)
		}
		if (err == nil) != tt.ok || (token != "") != tt.ok {
			t.Errorf("%s: %q, %v", tt.what, token, err)
		}
		if !tt.ok {
			wants(t, tt.what, err, fleet.ErrUnauthenticated)
			words[err.Error()] = true
		}
		log, err := h.log.Entries(t.Context(), fleet.AuditFilter{Action: "signin"})
		if err != nil {
			t.Fatal(err)
		}
		if entries++; len(log) != entries || (log[0].Outcome == "succeeded") != tt.ok {
			t.Errorf("%s: %d entries, the last %+v", tt.what, len(log), log[0])
		}
	}
	if len(words) != 1 {
		t.Errorf("failures say different things: %v", words)
	}
}

// TestHasher_DummyCostsWhatAPasswordCosts: the computation that is made for nobody has the parameters of the others.
func TestHasher_DummyCostsWhatAPasswordCosts(t *testing.T) {
	t.Parallel()
	h := newHasher(argon2id.Params{Memory: 64, Iterations: 3, Parallelism: 2, SaltLength: 16, KeyLength: 32})
	got, salt, key, err := argon2id.DecodeHash(h.dummy)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&h.params, got); diff != "" || len(salt) != 16 || len(key) != 32 {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if ok, _, err := h.matches(t.Context(), "", h.dummy); ok || err != nil {
		t.Errorf("the dummy matches: %v, %v", ok, err)
	}
	if p := New(Config{Logger: discard()}).hasher.params; p.Memory < 19*1024 || p.Iterations < 2 {
		t.Errorf("default cost is %+v", p)
	}
}

func TestHasher_Bounds(t *testing.T) {
	t.Parallel()
	h := newHasher(cheap)
	var leaves []func()
	for range hashAtOnce + hashQueue {
		leave, err := h.enter(fleet.AttemptKey{})
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leave)
	}
	_, err := h.enter(fleet.AttemptKey{})
	if e, ok := errors.AsType[*fleet.LimitError](err); !ok || e.Retry <= 0 {
		t.Errorf("beyond the queue: %v", err)
	}
	leaves[0]()
	if _, err := h.enter(fleet.AttemptKey{}); err != nil {
		t.Errorf("a place was given back: %v", err)
	}
	for range hashAtOnce {
		if _, err := h.slot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = h.matches(gone, secret, h.dummy)
	wants(t, "a fifth computation at once", err, context.Canceled)
	if n := h.computed.Load(); n != 0 {
		t.Errorf("%d computations", n)
	}
}

func TestSignIn_RehashesWhatIsWeaker(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	weak := h.account0(t, "ada").Password
	h.hasher = newHasher(argon2id.Params{Memory: 16, Iterations: 2, Parallelism: 1, SaltLength: 16, KeyLength: 32})
	token, _ := h.in(t, "ada")
	strong := h.account0(t, "ada").Password
	if strong == weak || !strings.HasPrefix(strong, "$argon2id$v=19$m=16,t=2,p=1$") {
		t.Errorf("hash is %s", strong)
	}
	alive(t, h, token, true) // a renewed hash is no new password
	h.in(t, "ada")
	if h.account0(t, "ada").Password != strong {
		t.Error("a hash of today was renewed")
	}
}

func (h *house) account0(t *testing.T, name string) fleet.Account {
	t.Helper()
	a, err := h.store.Account(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// try is one sign-in from an address of its own.
func (h *house) try(t *testing.T, name, password, addr string) error {
	t.Helper()
	_, _, err := h.SignIn(t.Context(), name, password, fleet.Caller{Addr: addr}, "")
	return err
}

func addrNo(i int) string {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()
}

// limited fails unless err says to come back after wait.
func limited(t *testing.T, what string, err error, wait time.Duration) {
	t.Helper()
	e, ok := errors.AsType[*fleet.LimitError](err)
	if !ok || e.Retry != wait {
		t.Fatalf("%s: got %v, want a limit with %v", what, err, wait)
	}
}

func TestSignIn_DelaysAName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer func() { h.close(t) }()
		h.add(t, "ada", fleet.RoleAdmin)
		n := 0
		fail := func(name string) error {
			n++
			return h.try(t, name, "wrong", addrNo(n))
		}
		// Every spelling is the same name.
		for _, name := range []string{"ada", "ADA", " ada\t", "ａｄａ", "Ada"} {
			wants(t, name, fail(name), fleet.ErrUnauthenticated)
		}
		wait := time.Second
		for wait < delayMost {
			limited(t, "after the failures", fail("ada"), wait)
			limited(t, "with the right password", h.try(t, "ada", secret, addrNo(1<<20)), wait)
			// Names that nobody has do not push the counter out, and another process knows it too.
			for range 5 {
				wants(t, "others", fail(fmt.Sprint("other", n)), fleet.ErrUnauthenticated)
			}
			h.close(t)
			h = enter(t, dir, nil)
			pass(wait - time.Millisecond)
			limited(t, "a moment early", fail("ada"), time.Second)
			pass(time.Millisecond)
			wants(t, "in time", fail("ada"), fleet.ErrUnauthenticated)
			wait *= 2
		}
		limited(t, "it stops doubling", fail("ada"), delayMost)
		pass(delayMost)
		if err := h.try(t, "ada", secret, addrNo(1<<20)); err != nil {
			t.Fatalf("never for ever: %v", err)
		}
		for range nameFree { // and a success begins anew
			wants(t, "anew", fail("ada"), fleet.ErrUnauthenticated)
		}
		limited(t, "anew", fail("ada"), time.Second)
		pass(time.Second + delayMost) // as does good time without a failure
		for range nameFree {
			wants(t, "after a rest", fail("ada"), fleet.ErrUnauthenticated)
		}
	})
}

// TestSignIn_ManyNamesDoNotHideOne: counters are bounded by time and by nothing that an attacker could fill.
func TestSignIn_ManyNamesDoNotHideOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		var until time.Time
		for i := 0; ; i++ {
			err := h.try(t, "ada", "wrong", addrNo(i))
			if e, ok := errors.AsType[*fleet.LimitError](err); ok {
				if e.Retry == delayMost {
					until = after(e.Retry)
					break
				}
				pass(e.Retry)
			}
		}
		stop := h.run(t) // cleans at once and every ten minutes
		for i, names := 0, 0; names < allMost+100; i++ {
			err := h.try(t, fmt.Sprint("name", i), "wrong", addrNo(i))
			if e, ok := errors.AsType[*fleet.LimitError](err); ok { // of everybody
				pass(e.Retry)
				continue
			}
			wants(t, "another name", err, fleet.ErrUnauthenticated)
			names++
		}
		stop()
		if left := time.Until(until); left < time.Minute {
			t.Fatalf("the test took too long to say anything: %v left", left)
		}
		limited(t, "the victim", h.try(t, "ada", secret, addrNo(1<<20)), time.Until(until))
	})
}

func TestSignIn_LimitsAnAddress(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		for _, tt := range []struct{ first, same, other string }{
			{"192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"},
			{"2001:db8::1", "2001:db8::ffff:1:2:3", "2001:db8:0:1::1"},
			{"fe80::1%eth0", "fe80::1%eth1", "fe80:0:0:1::1"},
			{"", "nonsense", "192.0.2.9"},
		} {
			for i := range addrMost {
				wants(t, tt.first, h.try(t, fmt.Sprint("n", i, tt.first), "wrong", tt.first), fleet.ErrUnauthenticated)
			}
			limited(t, tt.same, h.try(t, "ada", secret, tt.same), addrWindow)
			if err := h.try(t, "ada", secret, tt.other); err != nil {
				t.Errorf("%s: %v", tt.other, err)
			}
			pass(addrWindow)
			for range 3 * addrMost { // what turns out well does not count
				if err := h.try(t, "ada", secret, tt.first); err != nil {
					t.Fatalf("%s: %v", tt.first, err)
				}
			}
		}
	})
}

func TestCount_Everybody(t *testing.T) {
	t.Parallel()
	keys := attemptKeys(nameKey("ada"), "192.0.2.1")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	have := []fleet.Attempts{{Count: allMost - 1, Since: now}, {}, {}}
	next, err := count(keys, have, now.Add(time.Second))
	if err != nil || next[0].Count != allMost {
		t.Fatalf("%+v, %v", next, err)
	}
	_, err = count(keys, []fleet.Attempts{next[0], {}, {}}, now.Add(10*time.Second))
	limited(t, "one more", err, 50*time.Second)
	if next, err = count(keys, []fleet.Attempts{next[0], {}, {}}, now.Add(allWindow)); err != nil || next[0].Count != 1 {
		t.Errorf("a new minute: %+v, %v", next, err)
	}
}

// TestSignIn_AtOnceGetsNoFurther: guesses made at the same time are as few as guesses made one after the other, and
// the right password from many programs at the same time is no guess.
func TestSignIn_AtOnceGetsNoFurther(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	try := func(password string) (good, wrong, limited int) {
		before := h.hasher.computed.Load()
		errs := make(chan error, hashAtOnce+hashQueue)
		var wg sync.WaitGroup
		for i := range cap(errs) {
			wg.Go(func() {
				_, _, err := h.SignIn(t.Context(), "ada", password, fleet.Caller{Addr: addrNo(i)}, "")
				errs <- err
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			switch {
			case err == nil:
				good++
			case errors.Is(err, fleet.ErrUnauthenticated):
				wrong++
			case errors.Is(err, fleet.ErrTooMany):
				limited++
			default:
				t.Error(err)
			}
		}
		if n := int(h.hasher.computed.Load() - before); n != good+wrong {
			t.Errorf("%d computations for %d answers", n, good+wrong)
		}
		return good, wrong, limited
	}
	if good, wrong, limited := try(secret); good != hashAtOnce+hashQueue {
		t.Errorf("right password: %d in, %d wrong, %d limited", good, wrong, limited)
	}
	if good, wrong, limited := try("wrong"); good != 0 || wrong != nameFree {
		t.Errorf("wrong password: %d in, %d wrong, %d limited", good, wrong, limited)
	}
	if len(h.turns.of) != 0 {
		t.Errorf("%d turns are left", len(h.turns.of))
	}
}

// TestSignIn_HangingUpIsNoWayRound: whoever goes away before the answer has still tried.
func TestSignIn_HangingUpIsNoWayRound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := build(t, nil)
		for range hashAtOnce {
			if _, err := h.hasher.slot(t.Context()); err != nil { // all computing: the attempt has to wait
				t.Fatal(err)
			}
		}
		for range nameFree {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			_, _, err := h.SignIn(ctx, "ada", "wrong", from, "")
			cancel()
			wants(t, "hung up", err, context.DeadlineExceeded)
		}
		_, _, err := h.SignIn(t.Context(), "ada", "wrong", from, "")
		wants(t, "one more", err, fleet.ErrTooMany)
	})
}

func FuzzNormalName(f *testing.F) {
	for _, s := range []string{
		"ada", " ADA ", "ａｄａ", "İ", "ß", "ﬁ", "a\u0301", "\u1e9b\u0323", "x@y.z", "..", "", "a b", "\xff", "a\x00", "ΑΣ", "Ⅷ",
		strings.Repeat("a", 64), strings.Repeat("a", 65), strings.Repeat("ﷺ", 4), "K", "ª", "①",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := normalName(s)
		if err != nil {
			if got != "" || !errors.Is(err, fleet.ErrInvalid) {
				t.Errorf("%q: %q, %v", s, got, err)
			}
			return
		}
		if n := len([]rune(got)); n < 1 || n > nameMost {
			t.Errorf("%q has %d characters", got, n)
		}
		for _, again := range []string{got, " " + got + "\n", strings.ToUpper(got)} {
			next, err := normalName(again)
			// Upper case may have other letters (ß, ŉ): then it is another name or none, but never a wrong spelling of this.
			if again == strings.ToUpper(got) && strings.ToLower(again) != got {
				continue
			}
			if err != nil || next != got {
				t.Errorf("%q is spelled %q, but %q %q, %v", s, got, again, next, err)
			}
		}
	})
}

func TestNormalName(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Ada": "ada", "  ada\n": "ada", "ａｄａ": "ada", "ADA.L_1-x@Example.ORG": "ada.l_1-x@example.org", "张伟": "张伟", "É": "é", "E\u0301": "é",
	} {
		if got, err := normalName(in); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", " ", ".", "..", "@", "a b", "a/b", "a\\b", "a\x00", "a\u202eb", "a\u200bb", "<b>", "a'", "\xff", "a\u0338",
		strings.Repeat("a", 65), strings.Repeat("a", 1<<20),
	} {
		got, err := normalName(in)
		if e, ok := errors.AsType[*fleet.FieldError](err); !ok || e.Field != "name" || got != "" {
			t.Errorf("%.20q: %q, %v", in, got, err)
		}
	}
}

// TestSignIn_FailureIsRecordedAfterHangUp: whoever goes away between the check and the answer is on record.
func TestSignIn_FailureIsRecordedAfterHangUp(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	wants(t, "hung up", h.signInFailed(gone, "ada", from, "wrong password", attempt{blocked: fleet.AttemptName}), fleet.ErrUnauthenticated)
	got, err := h.log.Entries(t.Context(), fleet.AuditFilter{Action: "signin"})
	if err != nil || len(got) != 1 || got[0].Actor != "ada" || got[0].Outcome != "failed" || got[0].Addr != from.Addr {
		t.Errorf("%+v, %v", got, err)
	}
}

// BenchmarkBySession is what every request pays.
func BenchmarkBySession(b *testing.B) {
	s, err := store.Open(b.Context(), store.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	}()
	svc := New(Config{Store: s, Audit: audit.New(s, discard()), Logger: discard(), Hash: &cheap})
	if err := svc.AddUser(b.Context(), host, "ada", fleet.RoleAdmin, secret); err != nil {
		b.Fatal(err)
	}
	in, err := svc.SignIn(b.Context(), "ada", secret, "", from, "")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := svc.BySession(b.Context(), in.Token); err != nil {
			b.Fatal(err)
		}
	}
}
