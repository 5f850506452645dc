package realtime

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// BatchCursor is where a batch's stream goes on after a page that shows b.
func BatchCursor(b fleet.Batch) string { return "v" + strconv.FormatInt(b.Version, 10) }

// noCursor is the id of messages that are part of a step; whoever comes back with it gets the whole batch again.
const noCursor = "start"

// parseBatchCursor returns -1 for anything that is no cursor. Versions live in the store, so a cursor outlives the
// process that gave it out.
func parseBatchCursor(s string) int64 {
	digits, ok := strings.CutPrefix(s, "v")
	if !ok {
		return -1
	}
	v, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || v < 0 {
		return -1
	}
	return v
}

// batchBoard is what everybody who follows a batch reads. It lives from the first viewer to the last, and so does its
// one goroutine, which is the only reader of the store.
type batchBoard struct {
	id    string
	kick  chan struct{} // something changed; capacity 1
	ready chan struct{} // closed after the first reading
	done  chan struct{} // closed when the goroutine has ended
	stop  context.CancelFunc
	users int // guarded by Streamer.batchMu

	mu    sync.Mutex // guards everything below
	batch fleet.Batch
	items []itemSeen // in order of Seq
	err   error      // of the first reading
	sig   chan struct{}
}

type itemSeen struct {
	fleet.Item
	rows *byLang
}

// Least distance of two readings of one batch, and the deadline of one.
const (
	batchGap     = 50 * time.Millisecond
	batchTimeout = 5 * time.Second
)

// BatchChanged says that a batch may have changed. It never blocks; a batch that nobody follows costs nothing.
func (s *Streamer) BatchChanged(id string) {
	s.batchMu.Lock()
	b := s.batches[id]
	s.batchMu.Unlock()
	if b != nil {
		b.hint()
	}
}

func (b *batchBoard) hint() {
	select {
	case b.kick <- struct{}{}:
	default: // a reading is due already
	}
}

// follow returns the board of a batch, read at least once.
func (s *Streamer) follow(ctx context.Context, id string) (*batchBoard, error) {
	s.batchMu.Lock()
	b := s.batches[id]
	if b == nil {
		ctx, cancel := context.WithCancel(context.Background()) // its life is that of its viewers, see unfollow
		b = &batchBoard{
			id: id, kick: make(chan struct{}, 1), ready: make(chan struct{}), done: make(chan struct{}), stop: cancel,
			sig: make(chan struct{}),
		}
		s.batches[id] = b
		go s.readBatch(ctx, b)
	} else {
		b.hint() // the newcomer's page may be newer than what was read last
	}
	b.users++
	s.batchMu.Unlock()
	select {
	case <-b.ready:
	case <-ctx.Done():
		s.unfollow(b)
		return nil, context.Cause(ctx)
	}
	if err := b.failure(); err != nil {
		s.unfollow(b)
		return nil, err
	}
	return b, nil
}

func (b *batchBoard) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// unfollow lets go of a board; the last viewer ends its goroutine and waits for it.
func (s *Streamer) unfollow(b *batchBoard) {
	s.batchMu.Lock()
	b.users--
	last := b.users == 0
	if last && s.batches[b.id] == b {
		delete(s.batches, b.id)
	}
	s.batchMu.Unlock()
	if last {
		b.stop()
		<-b.done
	}
}

// readBatch keeps a board up to date: at once after a hint, and slowly without one, should a hint be lost.
func (s *Streamer) readBatch(ctx context.Context, b *batchBoard) {
	defer close(b.done)
	err := s.readOnce(ctx, b)
	if err != nil {
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
		// Nobody else may find a board that failed.
		s.batchMu.Lock()
		if s.batches[b.id] == b {
			delete(s.batches, b.id)
		}
		s.batchMu.Unlock()
	}
	close(b.ready)
	if err != nil {
		return
	}
	poll := time.NewTimer(s.cfg.BatchPoll)
	defer poll.Stop()
	gap := time.NewTimer(0)
	defer gap.Stop()
	for !b.over() {
		select {
		case <-ctx.Done():
			return
		case <-b.kick:
		case <-poll.C:
		}
		gap.Reset(batchGap)
		if err := s.readOnce(ctx, b); err != nil && ctx.Err() == nil {
			s.log.Warn("batch not readable", "batch", b.id, "err", err)
		}
		poll.Reset(s.cfg.BatchPoll)
		select {
		case <-ctx.Done():
			return
		case <-gap.C:
		}
	}
}

func (b *batchBoard) over() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.batch.State == fleet.BatchDone
}

// readOnce reads what changed since the last time. The store is asked outside of the lock.
func (s *Streamer) readOnce(ctx context.Context, b *batchBoard) error {
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	b.mu.Lock()
	version := b.batch.Version
	if b.items == nil {
		version = -1
	}
	b.mu.Unlock()
	batch, items, err := s.cfg.Batches.BatchSince(ctx, b.id, version)
	if err != nil {
		return fmt.Errorf("reading batch %s: %w", b.id, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.items != nil && batch.Version <= b.batch.Version {
		return nil
	}
	if b.items == nil {
		b.items = make([]itemSeen, 0, len(items))
	}
	for _, item := range items {
		seen := itemSeen{item, &byLang{}}
		i, ok := slices.BinarySearchFunc(b.items, item.Seq, func(have itemSeen, seq int) int { return have.Seq - seq })
		if ok {
			b.items[i] = seen
		} else {
			b.items = slices.Insert(b.items, i, seen)
		}
	}
	b.batch = batch
	close(b.sig)
	b.sig = make(chan struct{})
	return nil
}

// since is the batch and the items that changed after a version, in order of Seq; for a negative one all of them.
func (b *batchBoard) since(version int64) (batch fleet.Batch, items []itemSeen, next <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, i := range b.items {
		if version < 0 || i.Version > version {
			items = append(items, i)
		}
	}
	return b.batch, items, b.sig
}

func (b *batchBoard) all() []fleet.Item {
	b.mu.Lock()
	defer b.mu.Unlock()
	items := make([]fleet.Item, len(b.items))
	for i := range b.items {
		items[i] = b.items[i].Item
	}
	return items
}

// Batch serves the progress of a batch until it is done. ErrNotFound for an unknown one.
func (s *Streamer) Batch(w http.ResponseWriter, r *http.Request, bs BatchStream) error {
	if s.cfg.Batches == nil {
		return fmt.Errorf("batch %s: %w", bs.Batch, fleet.ErrNotFound)
	}
	b, err := s.follow(r.Context(), bs.Batch)
	if err != nil {
		return err
	}
	defer s.unfollow(b)
	return s.serve(w, r, bs.Viewer, kindBatch, func(ctx context.Context, c *conn) error { return s.pumpBatch(ctx, c, b, bs) })
}

func (s *Streamer) pumpBatch(ctx context.Context, c *conn, b *batchBoard, bs BatchStream) error {
	cur := parseBatchCursor(c.viewer.Since)
	s.metrics.began(c, cur >= 0)
	opened := len(bs.Open) == 0 || c.viewer.Format == JSON
	started := false
	id := func() string {
		if cur < 0 {
			return noCursor
		}
		return "v" + strconv.FormatInt(cur, 10)
	}
	pace := s.pace()
	if c.viewer.Format == JSON {
		pace = &pacer{}
	}
	return s.loop(ctx, c, pace, id, func() ([]frame, <-chan struct{}, bool) {
		batch, items, next := b.since(cur)
		var frames []frame
		if !opened {
			panel := partialEnd(append(partialStart(nil, "#batch-panel", "innerHTML"), oneLine(bs.Open)...))
			frames, opened = append(frames, event(id(), "", panel)), true
		}
		over := batch.State == fleet.BatchDone
		if batch.Version < cur {
			if !over { // the page was newer than our last reading; the next one is under way
				return frames, next, false
			}
			cur = -1 // the store was restored, and the client saw what is no more
			batch, items, next = b.since(cur)
		}
		if bs.Shown != nil {
			bs.Shown(&batch)
		}
		if batch.Version == cur && started {
			return frames, next, false
		}
		if batch.Version != cur || !started && cur < 0 || over {
			if c.viewer.Format == JSON {
				frames = append(frames, s.batchMessages(b, batch, items, id())...)
			} else {
				frames = append(frames, s.batchRows(batch, items, id(), c.viewer.Lang)...)
			}
		}
		cur, started = batch.Version, true
		return frames, next, over
	})
}

// batchRows are the rows that changed, the progress, and the end if it has come.
func (s *Streamer) batchRows(batch fleet.Batch, items []itemSeen, before, lang string) []frame {
	var frames []frame
	var data []byte
	rows := 0
	for _, i := range items {
		if rows == maxRows || len(data) >= maxBytes {
			frames, data, rows = append(frames, event(before, "", data).holding(rows)), nil, 0
		}
		data = appendRow(data, s.batchRow(i, lang))
		rows++
	}
	data = append(data, oneLine(s.render.safely("batch progress", func() []byte { return s.render.BatchProgress(batch, lang) }))...)
	frames = append(frames, event(BatchCursor(batch), "", data).holding(rows))
	if batch.State == fleet.BatchDone {
		frames = append(frames, s.batchEvent("done", batch, nil))
	}
	return frames
}

func (s *Streamer) batchRow(i itemSeen, lang string) []byte {
	return i.rows.get(lang, func() []byte {
		return oneLine(s.render.safely("batch item", func() []byte { return s.render.BatchItem(i.Item, lang) }))
	})
}

func (s *Streamer) batchMessages(b *batchBoard, batch fleet.Batch, items []itemSeen, before string) []frame {
	var frames []frame
	for _, i := range items {
		data, err := fleet.ItemBriefJSON(i.Item)
		if err != nil {
			s.log.Error("batch item not encodable", "batch", batch.ID, "node", i.Ref.String(), "err", err)
			continue
		}
		frames = append(frames, event(before, "item", data).holding(1))
	}
	frames = append(frames, s.batchEvent("progress", batch, nil))
	if batch.State == fleet.BatchDone {
		frames = append(frames, s.batchEvent("done", batch, b.all()))
	}
	return frames
}

func (s *Streamer) batchEvent(name string, batch fleet.Batch, items []fleet.Item) frame {
	data, err := fleet.BatchBriefJSON(batch, items)
	if err != nil {
		s.log.Error("batch not encodable", "batch", batch.ID, "err", err)
		data = []byte(`{}`)
	}
	return event(BatchCursor(batch), name, data)
}
