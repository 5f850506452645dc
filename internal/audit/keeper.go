package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	// headEvery and headEntries are when the next head is told, whichever comes first.
	headEvery   = time.Minute
	headEntries = 1000
	// lookEvery is how often the record is asked how far it is.
	lookEvery = 5 * time.Second
	// forgetEvery is how often entries are looked for that are older than they have to be kept, cutSize how many go in one
	// transaction.
	forgetEvery = time.Hour
	cutSize     = 500
	callTimeout = 10 * time.Second
)

// KeeperConfig says what a Keeper does.
type KeeperConfig struct {
	Signer *Signer
	// Emit takes each head to a place outside of the database.
	Emit func(context.Context, fleet.AuditHead)
	// Retention is how long entries are kept; 0 is for ever.
	Retention time.Duration
	Logger    *slog.Logger
}

// Keeper tells the heads of a record and removes what need not be kept any more.
type Keeper struct {
	log *Log
	cfg KeeperConfig

	told   int64 // number of the last head
	toldAt time.Time
}

// NewKeeper makes a Keeper, which begins with Run.
func NewKeeper(l *Log, cfg KeeperConfig) *Keeper { return &Keeper{log: l, cfg: cfg} }

// Run works until ctx ends, and then tells the last head.
func (k *Keeper) Run(ctx context.Context) error {
	look, forget := time.NewTicker(lookEvery), time.NewTicker(forgetEvery)
	defer look.Stop()
	defer forget.Stop()
	k.tell(ctx, time.Time{})
	k.forget(ctx)
	for {
		select {
		case <-ctx.Done():
			k.tell(context.WithoutCancel(ctx), time.Time{})
			return nil
		case now := <-look.C:
			k.tell(ctx, now)
		case <-forget.C:
			k.forget(ctx)
		}
	}
}

// tell emits the head if it moved and it is time; a zero time is always right.
func (k *Keeper) tell(ctx context.Context, now time.Time) {
	rctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	seq, hash, err := k.log.store.EntriesHead(rctx)
	switch {
	case err != nil:
		if ctx.Err() == nil {
			k.cfg.Logger.WarnContext(ctx, "reading the head of the record", "err", err)
		}
		return
	case seq == k.told:
		return
	case !now.IsZero() && seq-k.told < headEntries && now.Sub(k.toldAt) < headEvery:
		return
	}
	k.told, k.toldAt = seq, time.Now()
	k.cfg.Emit(ctx, k.cfg.Signer.Sign(seq, hash, k.toldAt))
}

// forget removes entries that are older than they have to be kept. The last of them stays known by number and hash,
// signed, so that the chain is whole from there on.
func (k *Keeper) forget(ctx context.Context) {
	if k.cfg.Retention <= 0 {
		return
	}
	before := time.Now().Add(-k.cfg.Retention)
	for ctx.Err() == nil {
		n, err := k.cut(ctx, before)
		if err != nil {
			if ctx.Err() == nil {
				k.cfg.Logger.ErrorContext(ctx, "removing old entries of the record", "err", err)
			}
			return
		}
		if n < cutSize {
			return
		}
	}
}

// cut removes the oldest entries, at most cutSize, up to the first one that is to be kept.
func (k *Keeper) cut(ctx context.Context, before time.Time) (int, error) {
	rctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	anchor, err := k.log.store.AuditAnchor(rctx)
	if err != nil {
		return 0, err
	}
	page, err := k.log.store.EntriesAfter(rctx, anchor.Seq, cutSize)
	if err != nil {
		return 0, err
	}
	n := 0
	for n < len(page) && page[n].At.Before(before) {
		n++
	}
	if n == 0 {
		return 0, nil
	}
	last := page[n-1]
	err = k.log.store.CutEntries(rctx, anchor.Seq, k.cfg.Signer.Sign(last.Seq, last.Hash, time.Now()))
	if errors.Is(err, fleet.ErrConflict) {
		return 0, nil // another replica does it
	}
	if err != nil {
		return 0, fmt.Errorf("up to entry %d: %w", last.Seq, err)
	}
	k.cfg.Logger.InfoContext(ctx, "old entries of the record removed", "entries", n, "up_to", last.Seq)
	return n, nil
}
