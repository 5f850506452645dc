package auth

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func countOf(s, part string) int { return strings.Count(s, part) }

func TestPeople_OnlyAdminsAndOnRecord(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.add(t, "oz", fleet.RoleOperator)
	h.add(t, "vic", fleet.RoleViewer)
	_, oz := h.in(t, "oz")
	_, vic := h.in(t, "vic")
	denied := 0
	for _, by := range []fleet.Caller{oz, vic, {}, {Name: "root", Via: "cli"}} {
		for action, do := range map[string]func() error{
			"user.add":      func() error { return h.AddUser(t.Context(), by, "eve", fleet.RoleAdmin, secret) },
			"user.disable":  func() error { return h.SetDisabled(t.Context(), by, "ada", true) },
			"user.enable":   func() error { return h.SetDisabled(t.Context(), by, "ada", false) },
			"user.role":     func() error { return h.SetRole(t.Context(), by, "vic", fleet.RoleAdmin) },
			"user.password": func() error { return h.SetPassword(t.Context(), by, "ada", secret+"!") },
		} {
			wants(t, action+" by "+by.Name, do(), fleet.ErrForbidden)
			denied++
			got, err := h.log.Entries(t.Context(), fleet.AuditFilter{Limit: 1})
			if err != nil {
				t.Fatal(err)
			}
			want := fleet.Entry{Actor: by.Name, Via: by.Via, Session: by.Session, Action: action, Phase: "denied", Outcome: "denied"}
			if diff := cmp.Diff(want, got[0], cmpopts.IgnoreFields(fleet.Entry{}, "Seq", "At", "Detail", "Prev", "Hash")); diff != "" {
				t.Errorf("%s by %s (-want +got):\n%s", action, by.Name, diff)
			}
		}
	}
	h.in(t, "ada")
	if users, err := h.Users(t.Context()); err != nil || len(users) != 3 {
		t.Errorf("%v, %v", users, err)
	}
}

func TestPeople_Record(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	_, ada := h.in(t, "ada")
	ada.Addr = "192.0.2.9"
	before, _, err := h.store.EntriesHead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		h.AddUser(t.Context(), ada, "Vic", fleet.RoleViewer, secret),
		h.SetRole(t.Context(), ada, "VIC", fleet.RoleOperator),
		h.SetRole(t.Context(), ada, "vic", fleet.RoleOperator), // is so already
		h.SetDisabled(t.Context(), ada, "vic", true),
		h.SetDisabled(t.Context(), ada, "vic", true),
		h.SetDisabled(t.Context(), ada, "vic", false),
		h.SetPassword(t.Context(), ada, "vic", secret+"!"),
	); err != nil {
		t.Fatal(err)
	}
	got, err := h.store.EntriesAfter(t.Context(), before, 100)
	if err != nil {
		t.Fatal(err)
	}
	var want []fleet.Entry
	for _, w := range [][2]string{
		{"user.add", "vic as viewer"},
		{"user.role", "vic: viewer → operator"},
		{"user.disable", "vic"},
		{"user.enable", "vic"},
		{"user.password", "vic"},
	} {
		want = append(want, fleet.Entry{
			Actor: "ada", Via: "session", Session: ada.Session, Addr: "192.0.2.9", Action: w[0], Phase: "event",
			Outcome: "succeeded", Detail: w[1],
		})
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(fleet.Entry{}, "Seq", "At", "Prev", "Hash")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n, err := h.log.Verify(t.Context()); err != nil || n != int(before)+len(want) {
		t.Errorf("verified %d, %v", n, err)
	}
}

func TestPeople_ChangesEndCredentials(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		do        func(t *testing.T, h *house) error
		reason    string
		tokenGood bool
	}{
		{"role", func(t *testing.T, h *house) error { return h.SetRole(t.Context(), host, "vic", fleet.RoleViewer) }, ReasonRole, true},
		{"password", func(t *testing.T, h *house) error { return h.SetPassword(t.Context(), host, "vic", secret) }, ReasonPassword, false},
		{"disabled", func(t *testing.T, h *house) error { return h.SetDisabled(t.Context(), host, "vic", true) }, ReasonDisabled, false},
		{"disabled and enabled", func(t *testing.T, h *house) error {
			return errors.Join(h.SetDisabled(t.Context(), host, "vic", true), h.SetDisabled(t.Context(), host, "vic", false))
		}, ReasonDisabled, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := build(t, nil)
			h.add(t, "vic", fleet.RoleOperator)
			one, vic := h.in(t, "vic")
			two, _ := h.in(t, "vic")
			bystander, _ := h.in(t, "ada")
			bearer, _, err := h.AddToken(t.Context(), vic, fleet.Token{Name: "ci", ExpiresAt: after(time.Hour)})
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.do(t, h); err != nil {
				t.Fatal(err)
			}
			if got := h.announced(); len(got) == 0 || got[0] != (End{UserID: vic.UserID, Reason: tt.reason}) {
				t.Errorf("announced %+v", got)
			}
			alive(t, h, one, false)
			alive(t, h, two, false)
			alive(t, h, bystander, true)
			if _, err := h.ByToken(t.Context(), bearer); (err == nil) != tt.tokenGood {
				t.Errorf("token: %v", err)
			}
		})
	}
}

// TestChangePassword: everybody changes their own, from a session, and with the one they have: who finds a tab open must not
// be able to make it theirs.
func TestChangePassword(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.add(t, "vic", fleet.RoleViewer)
	token, vic := h.in(t, "vic")
	bearer, _, err := h.AddToken(t.Context(), vic, fleet.Token{Name: "ci", ExpiresAt: after(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	byToken, err := h.ByToken(t.Context(), bearer)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "from a token", h.ChangePassword(t.Context(), byToken, secret, "a phrase of mine"), fleet.ErrForbidden)
	wants(t, "as admins do", h.SetPassword(t.Context(), vic, "vic", "a phrase of mine"), fleet.ErrForbidden)
	for _, tt := range []struct{ current, password, field string }{
		{secret + "?", "a phrase of mine", "current_password"},
		{"", "a phrase of mine", "current_password"},
		{secret, "short", "new_password"},
		{secret, "password123", "new_password"},
	} {
		var wrong *fleet.FieldError
		if err := h.ChangePassword(t.Context(), vic, tt.current, tt.password); !errors.As(err, &wrong) || wrong.Field != tt.field {
			t.Errorf("%q for %q: %v, want something about %s", tt.password, tt.current, err, tt.field)
		}
	}
	alive(t, h, token, true)
	if err := h.ChangePassword(t.Context(), vic, secret, "a phrase of mine"); err != nil {
		t.Fatal(err)
	}
	alive(t, h, token, false)
	if _, err := h.ByToken(t.Context(), bearer); !errors.Is(err, fleet.ErrUnauthenticated) {
		t.Errorf("the token is still good: %v", err)
	}
	wants(t, "old password", h.try(t, "vic", secret, from.Addr), fleet.ErrUnauthenticated)
	if err := h.try(t, "vic", "a phrase of mine", from.Addr); err != nil {
		t.Error(err)
	}
	wants(t, "nobody", h.SetPassword(t.Context(), host, "nobody", secret), fleet.ErrNotFound)
}

// TestPassword_SameOnEveryKeyboard: composed and decomposed letters are one password.
func TestPassword_SameOnEveryKeyboard(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	if err := h.AddUser(t.Context(), host, "zoe", fleet.RoleViewer, "caf\u00e9 au lait"); err != nil {
		t.Fatal(err)
	}
	if err := h.try(t, "zoe", "cafe\u0301 au lait", from.Addr); err != nil {
		t.Error(err)
	}
	wants(t, "another letter", h.try(t, "zoe", "cafe au lait", from.Addr), fleet.ErrUnauthenticated)
}

func TestAddUser_Refuses(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	for _, tt := range []struct {
		name, role, password, field string
	}{
		{"", "viewer", secret, "name"},
		{"a b", "viewer", secret, "name"},
		{"eve", "owner", secret, "role"},
		{"eve", "", secret, "role"},
		{"eve", "viewer", "123456789", "password"},
		{"eve", "viewer", "ééééééééé", "password"}, // nine characters in eighteen bytes
		{"eve", "viewer", strings.Repeat("x", 257), "password"},
		{"evelyn.long.name", "viewer", "Evelyn.Long.Name", "password"},
	} {
		before := h.hasher.computed.Load()
		err := h.AddUser(t.Context(), host, tt.name, fleet.Role(tt.role), tt.password)
		if e, ok := errors.AsType[*fleet.FieldError](err); !ok || e.Field != tt.field {
			t.Errorf("%+v: %v", tt, err)
		}
		if h.hasher.computed.Load() != before {
			t.Errorf("%+v cost a computation", tt)
		}
	}
	wants(t, "taken", h.AddUser(t.Context(), host, "ＡＤＡ", fleet.RoleViewer, secret), fleet.ErrConflict)
}

func TestPeople_LastAdminStays(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	_, ada := h.in(t, "ada")
	wants(t, "disable", h.SetDisabled(t.Context(), ada, "ada", true), fleet.ErrConflict)
	wants(t, "demote", h.SetRole(t.Context(), ada, "ada", fleet.RoleViewer), fleet.ErrConflict)
	wants(t, "nobody", h.SetDisabled(t.Context(), ada, "nobody", true), fleet.ErrNotFound)
	h.add(t, "bea", fleet.RoleAdmin)
	if err := h.SetDisabled(t.Context(), ada, "bea", true); err != nil {
		t.Fatal(err)
	}
	wants(t, "the other is disabled", h.SetRole(t.Context(), ada, "ada", fleet.RoleViewer), fleet.ErrConflict)
	if err := h.SetDisabled(t.Context(), ada, "bea", false); err != nil {
		t.Fatal(err)
	}
	if err := h.SetRole(t.Context(), ada, "ada", fleet.RoleViewer); err != nil {
		t.Fatal(err)
	}
	if err := h.SetDisabled(t.Context(), host, "bea", true); err != nil { // the host can make another
		t.Error(err)
	}
	if needs, err := h.NeedsSetup(t.Context()); needs || err != nil {
		t.Errorf("shutting out the last admin opens set-up: %v", err)
	}
}

func TestToken_Life(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := enter(t, dir, nil)
		defer h.close(t)
		h.add(t, "ada", fleet.RoleAdmin)
		h.add(t, "vic", fleet.RoleViewer)
		session, vic := h.in(t, "vic")
		_, ada := h.in(t, "ada")
		for _, tt := range []struct {
			name, field string
			in          time.Duration
		}{
			{"", "name", time.Hour},
			{" \t", "name", time.Hour},
			{"a\nb", "name", time.Hour},
			{strings.Repeat("x", 65), "name", time.Hour},
			{"ci", "expires", 0},
			{"ci", "expires", -time.Hour},
			{"ci", "expires", tokenLife + time.Second},
		} {
			_, _, err := h.AddToken(t.Context(), vic, fleet.Token{Name: tt.name, ExpiresAt: after(tt.in)})
			if e, ok := errors.AsType[*fleet.FieldError](err); !ok || e.Field != tt.field {
				t.Errorf("%+v: %v", tt, err)
			}
		}
		bearer, tok, err := h.AddToken(t.Context(), vic, fleet.Token{Name: " ci ", ExpiresAt: after(tokenLife)})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(bearer, "knm_") || len(bearer) != 47 {
			t.Errorf("secret is %q", bearer)
		}
		by, err := h.ByToken(t.Context(), bearer)
		want := fleet.Caller{UserID: vic.UserID, Name: "vic", Role: fleet.RoleViewer, Session: by.Session, Via: "token"}
		if diff := cmp.Diff(want, by); diff != "" || err != nil || by.Session == "" || strings.Contains(bearer, by.Session) {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		for _, bad := range []string{"", "knm_", bearer[4:], bearer + "A", bearer[:46], by.Session, strings.ToLower(bearer), session} {
			_, err := h.ByToken(t.Context(), bad)
			wants(t, bad, err, fleet.ErrUnauthenticated)
		}
		_, err = h.BySession(t.Context(), bearer)
		wants(t, "as a session", err, fleet.ErrUnauthenticated)

		_, _, err = h.AddToken(t.Context(), by, fleet.Token{Name: "more", ExpiresAt: after(time.Hour)})
		wants(t, "a token makes a token", err, fleet.ErrForbidden)
		if err := h.SignOut(t.Context(), session); err != nil {
			t.Fatal(err)
		}
		_, _, err = h.AddToken(t.Context(), vic, fleet.Token{Name: "late", ExpiresAt: after(time.Hour)})
		wants(t, "a session that was ended makes a token", err, fleet.ErrUnauthenticated)

		tok.UsedAt = tok.CreatedAt // ByToken above was its first use
		list, err := h.Tokens(t.Context(), vic)
		if diff := cmp.Diff([]fleet.Token{tok}, list); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		pass(tokenLife / 2)
		used := time.Now()
		if _, err := h.ByToken(t.Context(), bearer); err != nil {
			t.Error(err)
		}
		if list, err = h.Tokens(t.Context(), vic); err != nil || len(list) != 1 || !list[0].UsedAt.Equal(used.Truncate(time.Microsecond)) {
			t.Errorf("%+v, %v", list, err)
		}
		wants(t, "nobody ends it", h.EndToken(t.Context(), fleet.Caller{}, tok.ID), fleet.ErrForbidden)
		pass(tokenLife/2 - time.Millisecond)
		if _, err := h.ByToken(t.Context(), bearer); err != nil {
			t.Error(err)
		}
		pass(time.Millisecond)
		_, err = h.ByToken(t.Context(), bearer)
		wants(t, "expired", err, fleet.ErrUnauthenticated)
		wants(t, "ending what expired", h.EndToken(t.Context(), ada, tok.ID), fleet.ErrNotFound)
	})
}

func TestToken_EndAndMost(t *testing.T) {
	t.Parallel()
	h := build(t, nil)
	h.add(t, "vic", fleet.RoleViewer)
	_, vic := h.in(t, "vic")
	_, ada := h.in(t, "ada")
	var ids, secrets []string
	for range tokensMost {
		secret, tok, err := h.AddToken(t.Context(), vic, fleet.Token{Name: "ci", ExpiresAt: after(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		ids, secrets = append(ids, tok.ID), append(secrets, secret)
	}
	_, _, err := h.AddToken(t.Context(), vic, fleet.Token{Name: "one more", ExpiresAt: after(time.Hour)})
	wants(t, "one more", err, fleet.ErrTooMany)
	adaSecret, adaTok, err := h.AddToken(t.Context(), ada, fleet.Token{Name: "hers", ExpiresAt: after(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "another's", h.EndToken(t.Context(), vic, adaTok.ID), fleet.ErrNotFound)
	if _, err := h.ByToken(t.Context(), adaSecret); err != nil {
		t.Error(err)
	}
	for i, by := range []fleet.Caller{vic, ada} { // own, and by an admin
		c, err := h.ByToken(t.Context(), secrets[i])
		if err != nil {
			t.Fatal(err)
		}
		h.announced()
		if err := h.EndToken(t.Context(), by, ids[i]); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]End{{Session: c.Session, UserID: vic.UserID, Reason: ReasonRevoked}}, h.announced()); diff != "" {
			t.Errorf("ends (-want +got):\n%s", diff)
		}
		_, err = h.ByToken(t.Context(), secrets[i])
		wants(t, "ended", err, fleet.ErrUnauthenticated)
		wants(t, "again", h.EndToken(t.Context(), by, ids[i]), fleet.ErrNotFound)
	}
	if _, err := h.ByToken(t.Context(), secrets[2]); err != nil {
		t.Error(err)
	}
}

// TestCanary: nothing that opens a door is in the database, in its log or in what the program says. That the sweep
// would find it is shown with what must be there.
func TestCanary(t *testing.T) {
	t.Parallel()
	h := enter(t, t.TempDir(), nil)
	code, ok, err := h.EnsureSetupCode(t.Context())
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	const password, typo, field = "canary-password-one", "canary-password-two", "canary.password.in.the.name.field"
	if err := h.Setup(t.Context(), code, "ada", password); err != nil {
		t.Fatal(err)
	}
	in, err := h.Service.SignIn(t.Context(), "ada", password, "", from, "canary-agent")
	if err != nil {
		t.Fatal(err)
	}
	session := in.Token
	wants(t, "typo in a known browser", h.tryKnown(t, "ada", typo, in.Device, from.Addr), fleet.ErrUnauthenticated)
	wants(t, "typo", h.try(t, "ada", typo, from.Addr), fleet.ErrUnauthenticated)
	wants(t, "name field", h.try(t, field, "", from.Addr), fleet.ErrUnauthenticated)
	c, err := h.BySession(t.Context(), session)
	if err != nil {
		t.Fatal(err)
	}
	bearer, tok, err := h.AddToken(t.Context(), c, fleet.Token{Name: "canary-token-name", ExpiresAt: after(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ByToken(t.Context(), bearer); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.ChangePassword(t.Context(), c, password, typo+"-new"), h.SignOut(t.Context(), session)); err != nil {
		t.Fatal(err)
	}
	sweep := func() string {
		all := h.said.String()
		if err := filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			all += string(b)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return all
	}
	for i, all := range []string{sweep(), func() string { h.close(t); return sweep() }()} { // with and without the write-ahead log
		for what, canary := range map[string]string{
			"password": password, "wrong password": typo, "password in the name field": field, "session": session,
			"what makes the browser known": in.Device,
			"token":                        bearer, "half a token": bearer[4:26], "set-up code": code, "set-up code without dashes": strings.ReplaceAll(code, "-", ""),
		} {
			if strings.Contains(all, canary) {
				t.Errorf("sweep %d: the %s is there", i, what)
			}
		}
		for _, there := range []string{"canary-agent", "canary-token-name", c.Session, tok.ID, "$argon2id$"} {
			if !strings.Contains(all, there) {
				t.Errorf("sweep %d does not find %s", i, there)
			}
		}
	}
}
