package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

func newSigner(t *testing.T) *audit.Signer {
	t.Helper()
	s, err := audit.LoadSigner(filepath.Join(t.TempDir(), "audit.key"), "installation-1")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// head signs the record as it is now.
func head(t *testing.T, s *store.Store, by *audit.Signer) fleet.AuditHead {
	t.Helper()
	seq, hash, err := s.EntriesHead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return by.Sign(seq, hash, time.Now())
}

func TestSigner_KeyIsMadeOnceAndKept(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "audit.key")
	first, err := audit.LoadSigner(file, "i")
	if err != nil {
		t.Fatal(err)
	}
	again, err := audit.LoadSigner(file, "i")
	if err != nil || first.Public() != again.Public() {
		t.Errorf("%s and %s, %v", first.Public(), again.Public(), err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.LoadSigner(file, "i"); err == nil || !strings.Contains(err.Error(), "0600") {
		t.Errorf("a key that others can read: %v", err)
	}
	bad := filepath.Join(t.TempDir(), "bad.key")
	if err := os.WriteFile(bad, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.LoadSigner(bad, "i"); err == nil {
		t.Error("nonsense is taken for a key")
	}
}

func TestCheckHead(t *testing.T) {
	t.Parallel()
	by, other := newSigner(t), newSigner(t)
	good := by.Sign(7, "abc", time.Now())
	if err := errors.Join(audit.CheckHead(good, ""), audit.CheckHead(good, by.Public())); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*fleet.AuditHead){
		"number":       func(h *fleet.AuditHead) { h.Seq++ },
		"hash":         func(h *fleet.AuditHead) { h.Hash = "abd" },
		"time":         func(h *fleet.AuditHead) { h.At = h.At.Add(time.Microsecond) },
		"installation": func(h *fleet.AuditHead) { h.Installation = "installation-2" },
		"key":          func(h *fleet.AuditHead) { h.Key = other.Public() },
		"signature":    func(h *fleet.AuditHead) { h.Signature = "" },
		"no key":       func(h *fleet.AuditHead) { h.Key = "AAAA" },
	} {
		h := good
		change(&h)
		if audit.CheckHead(h, "") == nil {
			t.Errorf("a head with another %s is good", name)
		}
	}
	if audit.CheckHead(good, other.Public()) == nil {
		t.Error("a head by another key than the one asked for is good")
	}
}

// Whoever owns the database can rewrite all of it so that the chain is whole. A head that was kept elsewhere tells.
func TestVerifyHeads_TellsWhatTheChainCannot(t *testing.T) {
	t.Parallel()
	copied := filled(t, 20)
	for name, harm := range map[string]func(*testing.T, *sqlx.DB){
		"": func(*testing.T, *sqlx.DB) {},
		"the end is cut off": func(t *testing.T, db *sqlx.DB) {
			db.MustExec(`DELETE FROM audit WHERE seq > 15`)
			db.MustExec(`UPDATE audit_head SET seq = 15, hash = (SELECT hash FROM audit WHERE seq = 15)`)
		},
		"all of it is written anew": func(t *testing.T, db *sqlx.DB) { rewrite(t, db) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, s, db := openLog(t, copied())
			by := newSigner(t)
			kept := []fleet.AuditHead{head(t, s, by)}
			harm(t, db)
			if n, err := l.Verify(t.Context()); err != nil {
				t.Fatalf("the chain alone tells already, after %d entries: %v", n, err)
			}
			good, _, err := l.VerifyHeads(t.Context(), kept, by.Public())
			if broken := errors.As(err, new(*audit.BrokenError)); broken != (name != "") || broken == (good == 1) {
				t.Errorf("%d good heads, %v", good, err)
			}
		})
	}
}

// rewrite changes the first entry and makes every hash after it fit.
func rewrite(t *testing.T, db *sqlx.DB) {
	t.Helper()
	var prev string
	for seq := int64(1); seq <= 20; seq++ {
		var row struct {
			At                                         int64
			Actor, Action, Node, Reason, Phase, Detail string
		}
		if err := db.Get(&row, `SELECT at, actor, action, node, reason, phase, detail FROM audit WHERE seq = ?`, seq); err != nil {
			t.Fatal(err)
		}
		e := fleet.Entry{
			Seq: seq, At: time.UnixMicro(row.At).UTC(), Actor: row.Actor, Action: row.Action, Node: row.Node, Reason: row.Reason, Prev: prev,
		}
		if seq == 1 {
			e.Actor = "eve"
		}
		e.Hash = e.Sum()
		db.MustExec(`UPDATE audit SET actor = ?, prev = ?, hash = ? WHERE seq = ?`, e.Actor, e.Prev, e.Hash, seq)
		prev = e.Hash
	}
	db.MustExec(`UPDATE audit_head SET hash = ?`, prev)
}

// What retention removes leaves a chain that is whole from there on; what somebody else removes does not.
func TestKeeper_RetentionKeepsTheChainWhole(t *testing.T) {
	t.Parallel()
	l, s, db := newLog(t)
	by := newSigner(t)
	old := time.Now().Add(-48 * time.Hour)
	err := s.Tx(t.Context(), func(tx *store.Tx) error {
		for i := range 620 {
			e := fleet.Entry{Actor: "ada", Action: "cordon"}
			if i < 600 {
				e.At = old
			}
			if _, err := tx.AppendEntry(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	before := head(t, s, by)
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan fleet.AuditHead, 10)
	k := audit.NewKeeper(l, audit.KeeperConfig{
		Signer: by, Emit: func(_ context.Context, h fleet.AuditHead) { told <- h }, Retention: 24 * time.Hour, Logger: slog.New(slog.DiscardHandler),
	})
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	<-told
	deadline := time.Now().Add(30 * time.Second)
	for {
		anchor, err := s.AuditAnchor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if anchor.Seq == 600 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the record begins after entry %d", anchor.Seq)
		}
		if n, err := l.Verify(t.Context()); err != nil { // beside the removal
			t.Fatalf("verify: %d, %v", n, err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n, err := l.Verify(t.Context()); n != 20 || err != nil {
		t.Errorf("verify: %d, %v", n, err)
	}
	later := by.Sign(3, "of an entry that is gone", time.Now())
	if good, older, err := l.VerifyHeads(t.Context(), []fleet.AuditHead{later, before}, by.Public()); good != 1 || older != 1 || err != nil {
		t.Errorf("heads: %d, %d, %v", good, older, err)
	}

	// The same by somebody who has the database and not the key.
	eve := newSigner(t)
	var hash string
	if err := db.Get(&hash, `SELECT hash FROM audit WHERE seq = 610`); err != nil {
		t.Fatal(err)
	}
	forged := eve.Sign(610, hash, time.Now())
	db.MustExec(`DELETE FROM audit WHERE seq <= 610`)
	if _, err := l.Verify(t.Context()); !errors.As(err, new(*audit.BrokenError)) {
		t.Errorf("entries are gone and verify says %v", err)
	}
	db.MustExec(`UPDATE audit_anchor SET seq = 610, hash = ?, at = ?, signing_key = ?, signature = ?`,
		hash, forged.At.UnixMicro(), forged.Key, forged.Signature)
	if _, _, err := l.VerifyHeads(t.Context(), []fleet.AuditHead{before}, ""); !errors.As(err, new(*audit.BrokenError)) {
		t.Errorf("the beginning is signed by a stranger, and the heads say %v", err)
	}
	db.MustExec(`UPDATE audit_anchor SET signature = ''`)
	if _, err := l.Verify(t.Context()); !errors.As(err, new(*audit.BrokenError)) {
		t.Errorf("the beginning is not signed and verify says %v", err)
	}
}

// paper is a record that is only as long as it says.
type paper struct {
	mu  sync.Mutex // guards the rest
	seq int64
	err error
}

func (p *paper) is(seq int64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seq, p.err = seq, err
}

func (p *paper) EntriesHead(context.Context) (int64, string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seq, "h", p.err
}

func (p *paper) AppendEntry(context.Context, fleet.Entry) (fleet.Entry, error) {
	return fleet.Entry{}, errors.ErrUnsupported
}

func (p *paper) Entries(context.Context, fleet.AuditFilter) ([]fleet.Entry, error) {
	return nil, errors.ErrUnsupported
}

func (p *paper) EntriesAfter(context.Context, int64, int) ([]fleet.Entry, error) {
	return nil, errors.ErrUnsupported
}

func (p *paper) AuditAnchor(context.Context) (fleet.AuditHead, error) { return fleet.AuditHead{}, nil }

func (p *paper) CutEntries(context.Context, int64, fleet.AuditHead) error {
	return errors.ErrUnsupported
}

func TestKeeper_TellsEveryMinuteAndEveryThousand(t *testing.T) {
	t.Parallel()
	by := newSigner(t)
	synctest.Test(t, func(t *testing.T) {
		p := &paper{seq: 5}
		var (
			mu   sync.Mutex // guards told
			told []int64
		)
		logger := slog.New(slog.DiscardHandler)
		k := audit.NewKeeper(audit.New(p, logger), audit.KeeperConfig{
			Signer: by, Logger: logger, Emit: func(_ context.Context, h fleet.AuditHead) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, h.Seq)
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		at := func(d time.Duration, want ...int64) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got, _ := json.Marshal(told); string(got) != jsonOf(want) {
				t.Errorf("told %s, want %s", got, jsonOf(want))
			}
		}
		at(0, 5)
		at(2*time.Minute, 5) // nothing happened
		p.is(6, nil)
		at(10*time.Second, 5, 6) // more than a minute after the last one
		p.is(900, nil)
		at(30*time.Second, 5, 6) // too early
		p.is(1006, nil)
		at(10*time.Second, 5, 6, 1006) // a thousand
		p.is(1007, fleet.ErrUnavailable)
		at(5*time.Minute, 5, 6, 1006)
		p.is(1007, nil)
		at(10*time.Second, 5, 6, 1006, 1007)
		p.is(1008, nil)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		at(0, 5, 6, 1006, 1007, 1008) // the last word
	})
}

func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestReadHeads(t *testing.T) {
	t.Parallel()
	h := newSigner(t).Sign(3, "abc", time.Now())
	log := jsonOf(h) + "\nnot JSON\n\n" + `{"msg":"something else"}` + "\n" + jsonOf(map[string]any{"msg": "head of the record", "head": h}) + "\n"
	got, err := audit.ReadHeads(strings.NewReader(log))
	if err != nil || len(got) != 2 || got[0] != got[1] || audit.CheckHead(got[0], "") != nil {
		t.Errorf("%+v, %v", got, err)
	}
}
