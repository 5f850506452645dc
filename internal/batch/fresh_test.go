package batch_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/batch"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// TestEngine_FreshSignIn: what ends many pods needs a person who has proven lately who they are, when it is made and when
// it is made again, and never while it goes on. What was refused has left nothing but a line of the record.
func TestEngine_FreshSignIn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = 15 * time.Minute
		f := newFixture(t)
		p := &planner{}
		var denied []string
		e := f.draining(newDrains(1, time.Second), func(c *batch.Config) {
			c.Planner, c.FreshSignIn = p, limit
			c.Denied = func(_ context.Context, by fleet.Caller, action, detail string) {
				denied = append(denied, fmt.Sprintf("%s by %s: %s", action, by.Name, detail))
			}
		})
		now := time.Now()
		n := 0
		ask := func(by fleet.Caller, why ...string) (fleet.BatchSpec, error) {
			n++
			s := drainSpec(1, fmt.Sprintf("n%d", n))
			s.IdempotencyKey = fmt.Sprintf("key-%d", n)
			if p.plan = (fleet.Plan{Digest: "d"}); len(why) > 0 {
				p.plan.Confirm, p.plan.Why, s.Confirm = "prod", why, "prod"
			}
			_, err := e.Submit(t.Context(), by, s)
			return s, err
		}
		for _, tt := range []struct {
			name string
			age  time.Duration // of the sign-in; negative for none
			why  []string
			want bool // refused
		}{
			{"as old as it may be", limit, []string{fleet.ConfirmManyNodes}, false},
			{"a second too old", limit + time.Second, []string{fleet.ConfirmManyNodes}, true},
			{"no sign-in of ours", -1, []string{fleet.ConfirmManyNodes}, false},
			{"nobody knows", now.Sub(fleet.SignInUnknown()), []string{fleet.ConfirmManyNodes}, true},
			{"NoExecute", time.Hour, []string{fleet.ConfirmNoExecute}, true},
			{"past budgets", time.Hour, []string{fleet.ConfirmDelete}, true},
			{"the control plane", time.Hour, []string{fleet.ConfirmControlNode}, true},
			{"the last nodes", time.Hour, []string{fleet.ConfirmLastNodes}, true},
			{"protected labels and the last nodes", time.Hour, []string{fleet.ConfirmProtected, fleet.ConfirmLastNodes}, true},
			{"protected labels", time.Hour, []string{fleet.ConfirmProtected}, false},
			{"nothing to confirm", time.Hour, nil, false},
		} {
			by := ada
			if tt.age >= 0 {
				by.SignedIn = now.Add(-tt.age)
			}
			s, err := ask(by, tt.why...)
			stale, ok := errors.AsType[*fleet.StaleSignInError](err)
			if ok != tt.want || !ok && err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			if !ok {
				continue
			}
			if !errors.Is(err, fleet.ErrForbidden) || stale.Limit != limit {
				t.Errorf("%s: %v", tt.name, err)
			}
			if _, err := f.store.MadeBatch(t.Context(), by.UserID, s.IdempotencyKey, "any"); !errors.Is(err, fleet.ErrNotFound) {
				t.Errorf("%s: the key was used up: %v", tt.name, err)
			}
		}
		if want := "batch.create by ada: drain 1 nodes: this needs a sign-in of the last 15m0s, and yours is 15m1s old: sign in again"; len(denied) != 7 || denied[0] != want {
			t.Errorf("on record: %q", denied)
		}

		// What lacks a confirmation or a permission is told so first, and is not asked to sign in for nothing.
		p.plan = fleet.Plan{Digest: "d", Confirm: "prod", Why: []string{fleet.ConfirmManyNodes}}
		old := ada
		old.SignedIn = now.Add(-time.Hour)
		var wrong *fleet.FieldError
		if _, err := e.Submit(t.Context(), old, drainSpec(1, "other")); !errors.As(err, &wrong) || wrong.Field != "confirm" {
			t.Errorf("without a confirmation: %v", err)
		}

		// A batch that was made goes on however old the sign-in gets, and the same request again is answered with it.
		fresh := ada
		fresh.SignedIn = now
		s, err := ask(fresh, fleet.ConfirmManyNodes)
		if err != nil {
			t.Fatal(err)
		}
		fresh.SignedIn = now.Add(-limit - time.Minute)
		first, err := e.Submit(t.Context(), fresh, s)
		if err != nil || first.CreatedByID != fresh.UserID {
			t.Fatalf("the same request again: %+v, %v", first, err)
		}
		f.must(e.Pause(t.Context(), fresh, first.ID))
		f.must(e.Resume(t.Context(), fresh, first.ID))
		f.must(e.Cancel(t.Context(), fresh, first.ID))
		f.run(e)
		f.wait(first.ID)

		// To repeat it ends as many pods as to make it.
		denied = nil
		if _, err := e.Retry(t.Context(), fresh, first.ID, ""); !errors.Is(err, fleet.ErrForbidden) || len(denied) != 1 {
			t.Errorf("repeated with the old sign-in: %v, on record %q", err, denied)
		}
		fresh.SignedIn = now
		again, err := e.Retry(t.Context(), fresh, first.ID, "again")
		if err != nil {
			t.Fatalf("repeated with a new sign-in: %v", err)
		}
		fresh.SignedIn = now.Add(-time.Hour)
		if same, err := e.Retry(t.Context(), fresh, first.ID, "again"); err != nil || same.ID != again.ID {
			t.Errorf("the same repetition again: %s, %v; want %s", same.ID, err, again.ID)
		}
	})
}

// TestEngine_FreshSignInOff: nobody is asked where it is not wanted, and nobody has to be told.
func TestEngine_FreshSignInOff(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := &planner{plan: fleet.Plan{Digest: "d", Confirm: "prod", Why: []string{fleet.ConfirmManyNodes}}}
	e := f.engine(func(c *batch.Config) { c.Planner = p })
	by := ada
	by.SignedIn = time.Now().Add(-time.Hour)
	s := drainSpec(1, "n0")
	s.Confirm = "prod"
	b, err := e.Submit(t.Context(), by, s)
	if d := cmp.Diff("ada", b.CreatedBy); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
}
