package store

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// socketsGrace is what calls in flight are given when the store is closed.
	socketsGrace = time.Second
	// socketsLimit bounds the wait for what was cut.
	socketsLimit = 5 * time.Second
)

// sockets are the connections to the server. When a call ends before its answer is there, the driver leaves its
// connection to a goroutine that tells the server and says goodbye, for up to 15 seconds if the server is silent. The
// store is their owner: its end is theirs.
type sockets struct {
	dial pgconn.DialFunc
	life context.Context //nolint:containedctx // of the connections, which outlive the calls that they are made for
	end  context.CancelFunc

	mu   sync.Mutex // guards open, none
	open map[*socket]struct{}
	none chan struct{} // closed when there is none; nil until somebody waits
}

type socket struct {
	net.Conn
	of *sockets
}

func newSockets(dial pgconn.DialFunc) *sockets {
	s := &sockets{dial: dial, open: make(map[*socket]struct{})}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// dialContext is a pgconn.DialFunc.
func (s *sockets) dialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	conn, err := s.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &socket{conn, s}
	s.mu.Lock()
	s.open[c] = struct{}{}
	s.mu.Unlock()
	return c, nil
}

// Close implements net.Conn.
func (c *socket) Close() error {
	err := c.Conn.Close()
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	delete(c.of.open, c)
	if c.of.none != nil && len(c.of.open) == 0 {
		close(c.of.none)
		c.of.none = nil
	}
	return err
}

// close waits for the connections to be closed by whoever has them, and cuts those that are not closed in time.
func (s *sockets) close() error {
	none := make(chan struct{})
	s.mu.Lock()
	if len(s.open) == 0 {
		close(none)
	} else {
		s.none = none
	}
	s.mu.Unlock()
	if within(none, socketsGrace) {
		s.end()
		return nil
	}
	s.end()
	s.mu.Lock()
	left := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	for _, c := range left {
		_ = c.Conn.Close() // whoever has it sees that, and closes it as well
	}
	if !within(none, socketsLimit) {
		return fmt.Errorf("connections to the database were not closed within %s", socketsLimit)
	}
	return nil
}

func within(done <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
