package auth

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// TestCommonList: the list is what ASVS asks for, each of it is refused, and none could not be typed.
func TestCommonList(t *testing.T) {
	t.Parallel()
	list := strings.Split(strings.TrimSuffix(commonList, "\n"), "\n")
	if len(list) < 3000 || !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
		t.Fatalf("%d lines, sorted %t", len(list), slices.IsSorted(list))
	}
	for _, p := range list {
		if utf8.RuneCountInString(p) < passwordLeast || strings.ToLower(norm.NFKC.String(p)) != p {
			t.Errorf("%q can be no password that is looked up", p)
		}
	}
	for i := 0; i < len(list); i += 97 {
		if !common(list[i]) {
			t.Errorf("%q is on the list", list[i])
		}
	}
	for _, p := range []string{list[0], list[len(list)-1]} {
		if !common(p) {
			t.Errorf("%q is on the list", p)
		}
	}
}

func TestCommon(t *testing.T) {
	t.Parallel()
	for _, p := range []string{
		"qwertyuiop", "QwertyUiop", " qwertyuiop ", "ｑｗｅｒｔｙｕｉｏｐ", "basketball", "Basketball!", "basketball1999!?", "password123", // listed
		"Password2026!", "Kubernetes1!", "kube-node-manager", "Kube_Node_Manager_2", "!!!admin!!!!", "ADMINISTRATOR1", // our words
		"4567890-=12", "lkjhgfdsa'", "][poiuytrewq", "abcdefghijklm", "zyxwvutsrqp", "9876543210987", "ghijklmnopq", // rows
		"aaaaaaaaaa", "121212121212", "abcabcabcabcabc", "          ", "-_-_-_-_-_", "ääääääääää", // few
	} {
		if !common(p) {
			t.Errorf("%q is not refused", p)
		}
	}
	for _, p := range []string{
		secret, "correct horse battery staple", "kubernetes is for sailors", "qwertyuiop-basketball", "xbasketball", "7#kQ!x2-mZ",
		"basketball 99 monkeys", "hunter2hunter3", "十个汉字组成的好密码", "\xff\xfe and so on",
	} {
		if common(p) {
			t.Errorf("%q is refused", p)
		}
	}
}

// TestPassword_CommonIsRefused: wherever a password is set, by whomever, it is not one that everybody knows; and one that
// was set before goes on being good.
func TestPassword_CommonIsRefused(t *testing.T) {
	t.Parallel()
	const bad = "Basketball23"
	h := enter(t, t.TempDir(), nil)
	t.Cleanup(func() { h.close(t) })
	ctx := t.Context()
	code, ok, err := h.EnsureSetupCode(ctx)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	refused := func(what string, err error, field ...string) {
		t.Helper()
		if e, ok := errors.AsType[*fleet.FieldError](err); !ok || e.Field != append(field, "password")[0] || e.Key != "error.password_common" || strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("set-up", h.Setup(ctx, code, "ada", bad))
	if err := h.Setup(ctx, code, "ada", secret); err != nil {
		t.Fatal(err)
	}
	inv, err := h.InviteUser(ctx, host, "eve", fleet.RoleViewer)
	if err != nil {
		t.Fatal(err)
	}
	refused("an invitation", h.AcceptInvitation(ctx, inv.Code, bad))
	if err := h.AcceptInvitation(ctx, inv.Code, secret); err != nil {
		t.Errorf("the invitation is still good: %v", err)
	}
	_, ada := h.in(t, "ada")
	refused("their own", h.ChangePassword(ctx, ada, secret, bad), "new_password")
	refused("from the host", h.SetPassword(ctx, host, "eve", bad))
	refused("from the host, somebody new", h.AddUser(ctx, host, "ivo", fleet.RoleViewer, bad))

	hash, err := h.newHash(ctx, bad)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.store.ChangeUser(ctx, "eve", fleet.UserChange{Password: &hash}, after(0), func(_, _ fleet.User) fleet.Entry { return fleet.Entry{Action: "x"} }); err != nil {
		t.Fatal(err)
	}
	if err := h.try(t, "eve", bad, addrNo(1)); err != nil {
		t.Errorf("a password of before: %v", err)
	}
}

func BenchmarkCommon(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if common(secret) {
			b.Fatal(secret)
		}
	}
}
