//go:build unix

package credentials_test

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

	"github.com/kube-node-manager/kube-node-manager/internal/credentials"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// Variables of a test binary that is started as a rotation to be killed.
const (
	childDir  = "CREDENTIALS_TEST_DIR"
	childKeys = "CREDENTIALS_TEST_KEYS"
	childStep = "CREDENTIALS_TEST_STEP"
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

func (s *steps) ClustersNotUnder(ctx context.Context, key, after string, limit int) ([]fleet.StoredCluster, error) {
	s.step()
	defer s.step()
	return s.Store.ClustersNotUnder(ctx, key, after, limit)
}

func (s *steps) RewrapClusters(ctx context.Context, rows []fleet.Rewrapped) (int, error) {
	s.step()
	defer s.step()
	return s.Store.RewrapClusters(ctx, rows)
}

func rotateAndDie(dir string) error {
	step, err := strconv.Atoi(os.Getenv(childStep))
	if err != nil {
		return err
	}
	k, err := credentials.ReadKeyFile(os.Getenv(childKeys))
	if err != nil {
		return err
	}
	s, err := store.Open(context.Background(), store.Config{Dir: dir})
	if err != nil {
		return err
	}
	_, err = credentials.Rotate(context.Background(), &steps{s, step}, k)
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

const secrets = 120 // three transactions

func fill(t *testing.T, s *store.Store, k *credentials.Keys) {
	t.Helper()
	for i := range secrets {
		c := fleet.StoredCluster{ID: store.NewID(), Name: fmt.Sprintf("c%03d", i), AddedBy: "ada"}
		var err error
		if c.SealedCredential, err = k.Seal(credentials.ClusterPlace(c), []byte(c.Name)); err != nil {
			t.Fatal(err)
		}
		if err := s.AddCluster(t.Context(), c, fleet.Entry{Action: "cluster.add"}); err != nil {
			t.Fatal(err)
		}
	}
}

// whole checks that every secret opens, and tells how many are under another key than the current one.
func whole(t *testing.T, s *store.Store, k *credentials.Keys) (old int) {
	t.Helper()
	list, _, err := s.ManagedClusters(t.Context())
	if err != nil || len(list) != secrets {
		t.Fatalf("%d clusters: %v", len(list), err)
	}
	for _, c := range list {
		if c.Key != k.Current() {
			old++
		}
		plain, err := k.Open(credentials.ClusterPlace(c), c.SealedCredential)
		if err != nil || string(plain) != c.Name {
			t.Fatalf("%s opens as %q: %v", c.Name, plain, err)
		}
	}
	return old
}

// Killed at every step of a rotation, nothing is lost, the next call goes on, and the last one leaves nothing behind.
func TestRotate_KilledAtEveryStep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	first := credentials.NewKey()
	fill(t, s, keys(t, first))
	ring := []fleet.Secret{first}
	kills := 0
	for round := 0; ; round++ {
		// A new key each time, so that every round has everything to do.
		ring = append([]fleet.Secret{credentials.NewKey()}, ring...)
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
		done, err := credentials.Rotate(t.Context(), s, k)
		if err != nil || done.Rewrapped != old || len(done.Unreadable) > 0 {
			t.Fatalf("step %d: going on with %d: %+v %v", round, old, done, err)
		}
		if old := whole(t, s, k); old != 0 {
			t.Fatalf("step %d: %d are under older keys", round, old)
		}
		if done, err = credentials.Rotate(t.Context(), s, k); err != nil || done.Rewrapped != 0 {
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
	old, lost := credentials.NewKey(), credentials.NewKey()
	for i, k := range []*credentials.Keys{keys(t, old), keys(t, lost), keys(t, old)} {
		c := fleet.StoredCluster{ID: store.NewID(), Name: fmt.Sprint("c", i)}
		var err error
		if c.SealedCredential, err = k.Seal(credentials.ClusterPlace(c), []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := s.AddCluster(t.Context(), c, fleet.Entry{Action: "cluster.add"}); err != nil {
			t.Fatal(err)
		}
	}
	k := keys(t, credentials.NewKey(), old)
	done, err := credentials.Rotate(t.Context(), s, k)
	if err != nil || done.Rewrapped != 2 || !slices.Equal(done.Unreadable, []string{"c1"}) {
		t.Errorf("%+v %v", done, err)
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
	old := credentials.NewKey()
	c := fleet.StoredCluster{ID: "id", Name: "c"}
	var err error
	if c.SealedCredential, err = keys(t, old).Seal(credentials.ClusterPlace(c), []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := s.AddCluster(t.Context(), c, fleet.Entry{Action: "cluster.add"}); err != nil {
		t.Fatal(err)
	}
	k := keys(t, credentials.NewKey(), old)
	done, err := credentials.Rotate(t.Context(), &replacing{s, t, keys(t, old)}, k)
	if err != nil || done.Rewrapped != 1 {
		t.Errorf("%+v %v", done, err)
	}
	if c, err = s.ManagedCluster(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	plain, err := k.Open(credentials.ClusterPlace(c), c.SealedCredential)
	if err != nil || string(plain) != "new" || c.Key != k.Current() {
		t.Errorf("%q under %s: %v", plain, c.Key, err)
	}
}

// replacing changes the row between the first reading and the first writing.
type replacing struct {
	*store.Store
	t *testing.T
	k *credentials.Keys
}

func (r *replacing) RewrapClusters(ctx context.Context, rows []fleet.Rewrapped) (int, error) {
	if k := r.k; k != nil {
		r.k = nil
		c, err := r.ManagedCluster(ctx, "c")
		if err != nil {
			r.t.Error(err)
		}
		if c.SealedCredential, err = k.Seal(credentials.ClusterPlace(c), []byte("new")); err != nil {
			r.t.Error(err)
		}
		if err := r.ReplaceCluster(ctx, c, fleet.Entry{Action: "cluster.replace"}); err != nil {
			r.t.Error(err)
		}
	}
	return r.Store.RewrapClusters(ctx, rows)
}
