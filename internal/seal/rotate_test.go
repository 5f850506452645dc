//go:build unix

package seal_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/seal"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// Variables of a test binary that is started as a rotation to be killed.
const (
	childDir  = "SEAL_TEST_DIR"
	childKeys = "SEAL_TEST_KEYS"
	childStep = "SEAL_TEST_STEP"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := rotateAndDie(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// steps kills the process, as kill -9 does, at the given call of the store: before it if the number is even, and after
// it if it is odd.
type steps struct {
	*store.Store
	left int
}

func (s *steps) step() {
	if s.left == 0 {
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			panic(err)
		}
		select {} // the signal is on its way
	}
	s.left--
}

func (s *steps) Sealed(ctx context.Context, except string, after fleet.SealedRow, limit int) ([]fleet.SealedRow, error) {
	s.step()
	defer s.step()
	return s.Store.Sealed(ctx, except, after, limit)
}

func (s *steps) Rewrap(ctx context.Context, rows []fleet.Rewrapped) (int, error) {
	s.step()
	defer s.step()
	return s.Store.Rewrap(ctx, rows)
}

func rotateAndDie(dir string) error {
	step, err := strconv.Atoi(os.Getenv(childStep))
	if err != nil {
		return err
	}
	k, err := seal.Read(os.Getenv(childKeys))
	if err != nil {
		return err
	}
	s, err := store.Open(context.Background(), store.Config{Dir: dir})
	if err != nil {
		return err
	}
	_, err = seal.Rotate(context.Background(), &steps{s, step}, k)
	return errors.Join(err, s.Close())
}

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

const secrets = 120 // three transactions; the middle one has both kinds

// fill makes as many clusters as second factors.
func fill(t *testing.T, s *store.Store, k *seal.Keys) {
	t.Helper()
	for i := range secrets / 2 {
		c := fleet.StoredCluster{ID: store.NewID(), Name: fmt.Sprintf("c%03d", i), AddedBy: "ada"}
		var err error
		if c.Sealed, err = k.Seal(c.Place(), []byte("cluster "+c.Name)); err != nil {
			t.Fatal(err)
		}
		if err := s.AddCluster(t.Context(), c, fleet.Entry{Action: "cluster.add"}); err != nil {
			t.Fatal(err)
		}
		addFactor(t, s, k, fmt.Sprintf("p%03d", i))
	}
}

// addFactor makes a person with the secret of a second factor.
func addFactor(t *testing.T, s *store.Store, k *seal.Keys, name string) {
	t.Helper()
	u := fleet.Account{User: fleet.User{ID: store.NewID(), Name: name, Role: fleet.RoleViewer, Epoch: 1, Kind: fleet.PersonLocal}}
	if err := s.AddUser(t.Context(), u, fleet.Entry{Action: "user.add"}); err != nil {
		t.Fatal(err)
	}
	sealed, err := k.Seal(fleet.FactorPlace(u.ID), []byte("second factor of "+name))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetFactor(t.Context(), u.ID, sealed); err != nil {
		t.Fatal(err)
	}
}

// whole checks that every secret opens, and tells how many are under another key than the current one.
func whole(t *testing.T, s *store.Store, k *seal.Keys) (old int) {
	t.Helper()
	list, err := s.Sealed(t.Context(), "", fleet.SealedRow{}, 2*secrets)
	if err != nil || len(list) != secrets {
		t.Fatalf("%d secrets: %v", len(list), err)
	}
	for _, r := range list {
		if r.Key != k.Current() {
			old++
		}
		plain, err := k.Open(r.Place(), r.Sealed)
		if err != nil || string(plain) != r.String() {
			t.Fatalf("%s opens as %q: %v", r, plain, err)
		}
	}
	return old
}

// Killed at every step of a rotation, nothing is lost, the next call goes on, and the last one leaves nothing behind.
func TestRotate_KilledAtEveryStep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	first := seal.NewKey()
	fill(t, s, keys(t, first))
	ring := []fleet.Secret{first}
	kills := 0
	for round := 0; ; round++ {
		// A new key each time, so that every round has everything to do.
		ring = append([]fleet.Secret{seal.NewKey()}, ring...)
		ring = ring[:min(len(ring), 20)]
		k := keys(t, ring...)
		file := filepath.Join(t.TempDir(), "keys")
		var text strings.Builder
		for _, line := range ring {
			text.WriteString(line.Reveal() + "\n")
		}
		if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir, childKeys+"="+file, childStep+"="+strconv.Itoa(round))
		out, err := cmd.CombinedOutput()
		if err == nil {
			if old := whole(t, s, k); old != 0 {
				t.Errorf("a rotation that ended left %d under older keys", old)
			}
			break // the number is beyond the last step
		}
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("step %d: %v %s", round, err, out)
		}
		kills++
		old := whole(t, s, k)
		done, err := seal.Rotate(t.Context(), s, k)
		if err != nil || done.Rewrapped != old || len(done.Unreadable) > 0 {
			t.Fatalf("step %d: going on with %d: %+v %v", round, old, done, err)
		}
		if old := whole(t, s, k); old != 0 {
			t.Fatalf("step %d: %d are under older keys", round, old)
		}
		if done, err = seal.Rotate(t.Context(), s, k); err != nil || done.Rewrapped != 0 {
			t.Fatalf("step %d: once more: %+v %v", round, done, err)
		}
		ring = []fleet.Secret{ring[0]} // the older ones are not needed any more
	}
	if kills < 14 { // three pages and an empty one, each read and each written, before and after
		t.Errorf("killed %d times only", kills)
	}
	t.Logf("%d secrets, killed at %d steps", secrets, kills)
}

// What does not open is named and left as it is, and keeps nothing else from being rotated.
func TestRotate_Unreadable(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	old, lost, newest := seal.NewKey(), seal.NewKey(), seal.NewKey()
	for i, k := range []*seal.Keys{keys(t, old), keys(t, lost), keys(t, old)} {
		c := fleet.StoredCluster{ID: store.NewID(), Name: fmt.Sprint("c", i)}
		var err error
		if c.Sealed, err = k.Seal(c.Place(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := s.AddCluster(t.Context(), c, fleet.Entry{Action: "cluster.add"}); err != nil {
			t.Fatal(err)
		}
	}
	addFactor(t, s, keys(t, lost), "ada")
	addFactor(t, s, keys(t, old), "bob")
	// What was moved from another row does not open, and is not wrapped anew as if it did.
	moved := fleet.SealedRow{Table: fleet.SealedFactors, ID: "elsewhere"}.Place()
	eve := fleet.Account{User: fleet.User{ID: "eve", Name: "eve", Role: fleet.RoleViewer, Epoch: 1, Kind: fleet.PersonLocal}}
	if err := s.AddUser(t.Context(), eve, fleet.Entry{Action: "user.add"}); err != nil {
		t.Fatal(err)
	}
	theirs, err := keys(t, old).Seal(moved, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetFactor(t.Context(), "eve", theirs); err != nil {
		t.Fatal(err)
	}
	k := keys(t, newest, old)
	done, err := seal.Rotate(t.Context(), s, k)
	var unreadable []string
	for _, r := range done.Unreadable {
		unreadable = append(unreadable, r.String())
	}
	slices.Sort(unreadable)
	if err != nil || done.Rewrapped != 3 || !slices.Equal(unreadable, []string{"cluster c1", "second factor of ada", "second factor of eve"}) {
		t.Errorf("%+v %v", done, err)
	}
	if err := seal.Check(t.Context(), s, keys(t, seal.NewKey())); !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("keys that lack all of them: %v", err)
	}
	err = seal.Check(t.Context(), s, k)
	if e, ok := errors.AsType[*seal.UnknownKeyError](err); !ok || e.ID != keys(t, lost).Current() || !strings.Contains(err.Error(), "cluster c1") {
		t.Errorf("keys that lack one in use: %v", err)
	}
	if err := seal.Check(t.Context(), s, keys(t, lost, old, newest)); err != nil {
		t.Errorf("all keys: %v", err)
	}
	c, err := s.ManagedCluster(t.Context(), "c1")
	if err != nil || c.Key != keys(t, lost).Current() {
		t.Errorf("%+v %v", c, err)
	}
}

// A credential that is replaced while a rotation is under way stays the new one.
func TestRotate_BesideAChange(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	old := seal.NewKey()
	c := fleet.StoredCluster{ID: "id", Name: "c"}
	var err error
	if c.Sealed, err = keys(t, old).Seal(c.Place(), []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := s.AddCluster(t.Context(), c, fleet.Entry{Action: "cluster.add"}); err != nil {
		t.Fatal(err)
	}
	k := keys(t, seal.NewKey(), old)
	done, err := seal.Rotate(t.Context(), &replacing{s, t, keys(t, old)}, k)
	if err != nil || done.Rewrapped != 1 {
		t.Errorf("%+v %v", done, err)
	}
	if c, err = s.ManagedCluster(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	plain, err := k.Open(c.Place(), c.Sealed)
	if err != nil || string(plain) != "new" || c.Key != k.Current() {
		t.Errorf("%q under %s: %v", plain, c.Key, err)
	}
}

// replacing changes the row between the first reading and the first writing.
type replacing struct {
	*store.Store
	t *testing.T
	k *seal.Keys
}

func (r *replacing) Rewrap(ctx context.Context, rows []fleet.Rewrapped) (int, error) {
	if k := r.k; k != nil {
		r.k = nil
		c, err := r.ManagedCluster(ctx, "c")
		if err != nil {
			r.t.Error(err)
		}
		if c.Sealed, err = k.Seal(c.Place(), []byte("new")); err != nil {
			r.t.Error(err)
		}
		if err := r.ReplaceCluster(ctx, c, fleet.Entry{Action: "cluster.replace"}); err != nil {
			r.t.Error(err)
		}
	}
	return r.Store.Rewrap(ctx, rows)
}
