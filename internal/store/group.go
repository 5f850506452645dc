package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	// groupMost bounds the calls that share a transaction. PostgreSQL keeps the savepoints of a transaction at hand up to
	// 64; beyond, every reader has to look them up.
	groupMost = 32
	// groupFor is for how long a transaction takes further calls in: the first one waits for them.
	groupFor = 50 * time.Millisecond
	// groupGrace is how long a statement may last, and the commit, of a call whose own time is up in the middle of it. It
	// is cut off after that: an engine that says nothing for so long has nothing to say to the others either.
	groupGrace = time.Second
)

// turns lets the calls that write do so one after the other, in the order of asking. Whoever has the turn has the one
// connection that writes, and hands on both together: nobody but the calls themselves is needed to keep it going.
type turns struct {
	mu      sync.Mutex // guards taken, waiting
	taken   bool
	waiting []*turn // one for each goroutine that is in wait
}

// turn is what a call waits for: the transaction that it may take part in, nil if it has to begin one.
type turn chan *group

// wait returns with the turn, and whoever has it must pass it on. With an error it is not had.
func (q *turns) wait(ctx context.Context) (*group, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	q.mu.Lock()
	if !q.taken {
		q.taken = true
		q.mu.Unlock()
		return nil, nil
	}
	mine := make(turn, 1) // so that handing it on never blocks
	q.waiting = append(q.waiting, &mine)
	q.mu.Unlock()
	select {
	case g := <-mine:
		return g, nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	at := slices.Index(q.waiting, &mine)
	if at >= 0 {
		q.waiting = slices.Delete(q.waiting, at, at+1)
	}
	q.mu.Unlock()
	if at < 0 { // it came at the same moment
		return <-mine, nil
	}
	return nil, ctx.Err()
}

// pass gives the turn to whoever waits longest, together with the transaction unless that is ended and g nil. False if
// nobody waits: the transaction, and with it the turn, stays where it is; without one the turn is anybody's.
func (q *turns) pass(g *group) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.taken = g != nil
		return false
	}
	*q.waiting[0] <- g
	q.waiting = slices.Delete(q.waiting, 0, 1)
	return true
}

// group is one transaction of one call or of several. It goes from hand to hand with the turn, so that each call runs
// in its own goroutine, and its own panic is its own. What a call did that failed is undone, up to the savepoint before
// it; the last one commits for all.
type group struct {
	engine engine
	conn   *sqlx.Conn
	tx     *sqlx.Tx
	cut    context.CancelFunc // ends the transaction's context, and with it whatever it is doing
	life   context.Context    //nolint:containedctx // of the transaction, which outlives the call that began it
	began  time.Time
	now    time.Time // when it began, by the clock that leases are measured by
	calls  int
	empty  bool  // the first call failed, and with it all there was
	lost   error // why nothing of it can be kept
	record recordEnd
	uidOf  func(cluster string) string

	done chan struct{} // closed when it is ended
	err  error         // valid then: why nothing was committed
}

// recordEnd is the end of the audit record as far as the transaction has written it. The table is written once, in the end.
type recordEnd struct {
	Seq   int64  `db:"seq"`
	Hash  string `db:"hash"`
	known bool   // read, and true until the end: nobody else writes
	moved bool
}

// begin starts a transaction. It waits for those of other processes, as long as ctx allows.
func (s *Store) begin(ctx context.Context) (_ *group, err error) {
	// The first statements of a new connection to SQLite meet the lock of other processes too.
	var conn *sqlx.Conn
	err = again(ctx, func() (bool, error) {
		var err error
		conn, err = s.write.Connx(ctx)
		return busy(err), err
	})
	if err != nil {
		return nil, kind("beginning a transaction", err)
	}
	g := &group{engine: s.engine, conn: conn, uidOf: s.uidOf, done: make(chan struct{})}
	g.life, g.cut = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			g.release()
			err = kind("beginning a transaction", err)
		}
	}()
	stay := context.AfterFunc(ctx, g.cut)
	g.tx, g.now, err = s.engine.begin(ctx, g.life, conn, s.timeout)
	if !stay() && err == nil {
		_ = g.tx.Rollback() // the context that it was begun in has ended
		err = ctx.Err()
	}
	if err != nil && ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err) // which is why, whatever the driver says
	}
	g.began = time.Now()
	return g, err
}

// open tells whether the transaction takes another call in.
func (g *group) open() bool {
	return g.lost == nil && !g.empty && g.calls < groupMost && time.Since(g.began) < groupFor
}

// run is one call's part of the transaction.
func (g *group) run(ctx context.Context, fn func(*Tx) error) (err error) {
	t := &Tx{ctx: ctx, tx: g.tx, now: g.now, record: &g.record, uidOf: g.uidOf}
	before := g.record
	if g.calls > 0 {
		// What this call may break is not only its own: it is not cut off just because it has ended.
		limit, cancel := context.WithDeadline(g.life, time.Now().Add(leeway(ctx)))
		defer cancel()
		t.ctx = limit
		if t.now, err = g.engine.savepoint(limit, g.conn, g.tx, g.calls > 1); err != nil {
			g.lost = kind("beginning a part of a transaction", err)
			return g.lost
		}
	}
	g.calls++
	kept := false
	defer func() { // on a panic too, which then goes on to whose it is
		if kept {
			return
		}
		g.record = before
		if g.calls == 1 {
			g.empty = true
			return
		}
		if _, err := g.tx.ExecContext(t.ctx, `ROLLBACK TO SAVEPOINT part`); err != nil {
			g.lost = kind("undoing a part of a transaction", err)
		}
	}()
	if err = fn(t); err == nil {
		err = t.failed // what an engine does after a statement that failed is not the same for both
	}
	kept = err == nil
	return err
}

// leeway is how long something may last that others have a part in.
func leeway(ctx context.Context) time.Duration {
	until, ok := ctx.Deadline()
	if !ok {
		return defaultLimit // nobody calls it like that
	}
	return max(time.Until(until), groupGrace)
}

// end commits what is to be kept and lets go of everything. It tells whether anything was committed.
func (g *group) end(ctx context.Context) bool {
	defer close(g.done)
	defer g.release()
	switch {
	case g.lost != nil:
		g.err = g.lost
		_ = g.tx.Rollback() // the engine has done it, or does it as the connection goes away
	case g.empty:
		_ = g.tx.Rollback() // the reason is on its way to the caller
	default:
		g.err = g.commit(ctx)
		return g.err == nil
	}
	return false
}

func (g *group) commit(ctx context.Context) error {
	limit := time.AfterFunc(leeway(ctx), g.cut)
	defer limit.Stop()
	err := g.writeHead()
	if err == nil {
		err = g.tx.Commit()
	}
	switch {
	case err == nil:
		return nil
	case g.life.Err() != nil:
		err = errors.Join(context.DeadlineExceeded, err)
	}
	_ = g.tx.Rollback() // after a commit that failed there is nothing left to undo
	return kind("committing a transaction", err)
}

// writeHead writes down where the audit record ends.
func (g *group) writeHead() error {
	if !g.record.moved {
		return nil
	}
	_, err := g.tx.ExecContext(g.life, g.tx.Rebind(`UPDATE audit_head SET seq = ?, hash = ? WHERE id = 1`), g.record.Seq, g.record.Hash)
	return err
}

// release gives the connection back; one that went bad has said so before.
func (g *group) release() {
	_ = g.conn.Close()
	g.cut()
}

// outcome is what a call is told whose part ended with err. An error may come of what others wrote before it, so that it
// too is true only when that is committed.
func (g *group) outcome(ctx context.Context, err error) error {
	until, _ := ctx.Deadline()
	late := time.NewTimer(time.Until(until))
	defer late.Stop()
	select {
	case <-g.done:
	case <-late.C:
		select {
		case <-g.done:
		default:
			return fmt.Errorf("committing a transaction: it is not known what became of it: %w: %w",
				fleet.ErrUnavailable, context.DeadlineExceeded)
		}
	}
	if g.err != nil {
		return g.err
	}
	return err
}
