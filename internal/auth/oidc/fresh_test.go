package oidc

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// TestFinish_Anew: who is asked to sign in anew has to have done so after being sent, by the provider's own word. What the
// browser was sent with is a wish.
func TestFinish_Anew(t *testing.T) {
	t.Parallel()
	x := run(t)
	p := x.provider(t)
	const none = "none"
	for _, tt := range []struct {
		what string
		anew bool
		when any           // auth_time; none for no such claim, a duration is before now
		want time.Duration // before now; negative if it is not known
		err  error
	}{
		{"just now", true, time.Duration(0), 0, nil},
		{"a clock a little behind", true, 50 * time.Second, 50 * time.Second, nil},
		{"a clock ahead", true, -10 * time.Minute, 0, nil},
		{"hours ago", true, 3 * time.Hour, 0, fleet.ErrForbidden},
		{"just before it was asked", true, 90 * time.Second, 0, fleet.ErrForbidden},
		{"it does not say", true, none, 0, fleet.ErrForbidden},
		{"null", true, nil, 0, fleet.ErrForbidden},
		{"zero", true, 0, 0, fleet.ErrForbidden},
		{"a text", true, "now", 0, fleet.ErrUnauthenticated},
		{"before all time", true, -1, 0, fleet.ErrUnauthenticated},
		{"after all time", true, 1e300, 0, fleet.ErrUnauthenticated},
		{"hours ago, of who is not asked", false, 3 * time.Hour, 3 * time.Hour, nil},
		{"a fraction", false, 1.5e9 + 0.25, time.Since(time.Unix(1.5e9, 0)), nil},
		{"it does not say, of who is not asked", false, none, -1, nil},
		{"a text, of who is not asked", false, "now", 0, fleet.ErrUnauthenticated},
	} {
		x.forging(func(c jwt.MapClaims) string {
			delete(c, "auth_time")
			switch when := tt.when.(type) {
			case time.Duration:
				c["auth_time"] = time.Now().Add(-when).Unix()
			default:
				if when != none {
					c["auth_time"] = when
				}
			}
			return x.signed(c, jwt.SigningMethodRS256, x.Keypair.PrivateKey)
		})
		x.QueueUser(ada("sre"))
		target, kept, _, err := p.Begin(t.Context(), redirect, tt.anew)
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		want := map[bool][2]string{true: {"login", "0"}}[tt.anew]
		if q := u.Query(); q.Get("prompt") != want[0] || q.Get("max_age") != want[1] {
			t.Errorf("%s: asked with %v", tt.what, q)
		}
		got, err := p.Finish(t.Context(), redirect, kept, visit(t, target))
		if tt.err != nil {
			_, stale := errors.AsType[*fleet.StaleSignInError](err)
			if !errors.Is(err, tt.err) || stale != errors.Is(tt.err, fleet.ErrForbidden) || got.Subject != "" {
				t.Errorf("%s: %+v, %v", tt.what, got, err)
			}
			continue
		}
		if err != nil || got.Subject != "sub-1" {
			t.Errorf("%s: %+v, %v", tt.what, got, err)
			continue
		}
		if tt.want < 0 {
			if !got.SignedIn.IsZero() {
				t.Errorf("%s: signed in at %s", tt.what, got.SignedIn)
			}
			continue
		}
		if off := time.Since(got.SignedIn) - tt.want; off < -2*time.Second || off > time.Minute {
			t.Errorf("%s: signed in at %s, which is off by %s", tt.what, got.SignedIn, off)
		}
	}
	// A browser that forgets that it was to be anew gets a session that is as old as the provider says.
	x.forging(func(c jwt.MapClaims) string {
		c["auth_time"] = time.Now().Add(-3 * time.Hour).Unix()
		return x.signed(c, jwt.SigningMethodRS256, x.Keypair.PrivateKey)
	})
	x.QueueUser(ada("sre"))
	target, kept, _, err := p.Begin(t.Context(), redirect, true)
	if err != nil {
		t.Fatal(err)
	}
	kept = forgeKept(t, kept, func(was *pending) { was.Since = time.Time{} })
	got, err := p.Finish(t.Context(), redirect, kept, visit(t, target))
	if err != nil || time.Since(got.SignedIn) < 2*time.Hour {
		t.Errorf("%+v, %v", got, err)
	}
}
