package auth

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"
	"go.uber.org/goleak"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/seal"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "correct horse battery"

// cheap costs next to nothing: what a computation costs is not what these tests are about.
var cheap = argon2id.Params{Memory: 8, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32}

// host is the person at the command line.
var host = fleet.Caller{Name: "root", Role: fleet.RoleAdmin, Via: "cli"}

// from is where sign-ins come from.
var from = fleet.Caller{Addr: "192.0.2.7"}

// house is a service over a store in a directory, with all it said.
type house struct {
	*Service
	dir   string
	store *store.Store
	log   *audit.Log
	said  *buffer

	mu   sync.Mutex // guards ends
	ends []End
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// enter opens the house in dir. wrap, if not nil, stands between the service and the store.
func enter(t *testing.T, dir string, wrap func(*store.Store) Store) *house {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{dir: dir, store: s, said: &buffer{}}
	logger := slog.New(slog.NewTextHandler(h.said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.log = audit.New(s, logger)
	var seen Store = s
	if wrap != nil {
		seen = wrap(s)
	}
	file := filepath.Join(dir, "seal.key")
	if err := seal.Create(file); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	key, err := seal.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	h.Service = New(Config{Store: seen, Audit: h.log, Logger: logger, Hash: &cheap, Sealer: key, Labels: envOf})
	h.OnEnd(func(e End) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.ends = append(h.ends, e)
	})
	return h
}

// envOf are the labels of the clusters of these tests: prod-1 is of the environment prod.
func envOf(cluster string) map[string]string {
	return map[string]string{"env": strings.TrimSuffix(cluster, "-1")}
}

func (h *house) close(t *testing.T) {
	t.Helper()
	if err := h.store.Close(); err != nil {
		t.Error(err)
	}
}

// build is a house with one admin, ada, that is closed with the test.
func build(t *testing.T, wrap func(*store.Store) Store) *house {
	t.Helper()
	h := enter(t, t.TempDir(), wrap)
	t.Cleanup(func() { h.close(t) })
	h.add(t, "ada", fleet.RoleAdmin)
	return h
}

func (h *house) add(t *testing.T, name string, role fleet.Role) {
	t.Helper()
	if err := h.AddUser(t.Context(), host, name, role, secret); err != nil {
		t.Fatal(err)
	}
}

// SignIn and SecondStep are those of a browser that is not known.
func (h *house) SignIn(ctx context.Context, name, password string, from fleet.Caller, userAgent string) (string, time.Time, error) {
	in, err := h.Service.SignIn(ctx, name, password, "", from, userAgent)
	return in.Token, in.Expires, err
}

func (h *house) SecondStep(ctx context.Context, half, code string, from fleet.Caller, userAgent string) (string, time.Time, error) {
	in, err := h.Service.SecondStep(ctx, half, code, "", from, userAgent)
	return in.Token, in.Expires, err
}

func (h *house) in(t *testing.T, name string) (token string, c fleet.Caller) {
	t.Helper()
	token, _, err := h.SignIn(t.Context(), name, secret, from, "test")
	if err != nil {
		t.Fatal(err)
	}
	c, err = h.PeekSession(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return token, c
}

// announced takes the ends that were announced since it was asked last.
func (h *house) announced() []End {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.ends
	h.ends = nil
	return out
}

// wants fails unless err is of the kind.
func wants(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got %v, want %v", what, err, kind)
	}
}

// run runs the service until the returned function is called, which waits for it.
func (h *house) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func after(d time.Duration) time.Time { return time.Now().Add(d) }

// pass lets time go by in a bubble of synctest, where nobody waits for it.
func pass(d time.Duration) {
	time.Sleep(d)
}
