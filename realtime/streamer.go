package realtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	sse "github.com/r3labs/sse/v2"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Streamer serves the event streams. It starts nothing by itself: a stream's goroutines belong to its request.
type Streamer struct {
	cfg     StreamerConfig
	m       *Manager
	r3      *sse.Server
	render  *renderer
	log     *slog.Logger
	metrics *streamMetrics
	seq     atomic.Uint64
	rate    float64 // messages a second that an HTML stream may send without being slowed down
	closing chan struct{}
	streams sync.WaitGroup

	mu        sync.Mutex // guards everything below
	closed    bool
	conns     map[*conn]struct{}
	bySession map[string]int
	byUser    map[string]int

	batchMu sync.Mutex // guards batches and the boards' users
	batches map[string]*batchBoard
}

// conn is one open stream.
type conn struct {
	hop
	viewer Viewer
	bye    chan string // reason of the last event
	end    context.CancelCauseFunc
}

// The reasons of a stream's last event.
const (
	byeCluster = "cluster-removed"
)

// NewStreamer returns a Streamer that serves what the manager sees.
func NewStreamer(cfg StreamerConfig) *Streamer {
	cfg.Heartbeat = or(cfg.Heartbeat, 20*time.Second)
	cfg.WriteTimeout = or(cfg.WriteTimeout, 10*time.Second)
	cfg.BatchPoll = or(cfg.BatchPoll, 2*time.Second)
	cfg.PerSession = or(cfg.PerSession, 8)
	cfg.PerUser = or(cfg.PerUser, 32)
	cfg.Total = or(cfg.Total, 12000)
	log := cfg.Logger.With("component", "streams")
	s := &Streamer{
		cfg: cfg, m: cfg.Manager, r3: newServer(), log: log,
		render:    &renderer{Renderer: cfg.Render, log: log},
		closing:   make(chan struct{}),
		rate:      20,
		conns:     map[*conn]struct{}{},
		bySession: map[string]int{}, byUser: map[string]int{},
		batches: map[string]*batchBoard{},
	}
	s.metrics = newStreamMetrics(cfg.Metrics, s)
	return s
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// End sends a last event to every stream whose viewer matches, and ends it within a second, whether its client reads
// or not.
func (s *Streamer) End(match func(Viewer) bool, reason string) {
	s.mu.Lock()
	var hit []*conn
	for c := range s.conns {
		if match(c.viewer) {
			hit = append(hit, c)
		}
	}
	s.mu.Unlock()
	for _, c := range hit {
		select {
		case c.bye <- reason:
		default: // it has one already
		}
		c.w.limit(time.Now().Add(lastWord))
	}
}

// lastWord is how long a client that is being sent away has for taking the last event.
const lastWord = 500 * time.Millisecond

// Close tells every client to come back a little later, ends all streams and waits for them. New ones are refused.
func (s *Streamer) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.w.limit(time.Now().Add(4 * lastWord))
	}
	done := make(chan struct{})
	go func() { // ends with the last stream, at the latest when every write has met its limit
		s.streams.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		for _, c := range conns {
			c.w.limit(time.Now())
			c.end(ctx.Err())
		}
		<-done
		return fmt.Errorf("closing streams: %w", context.Cause(ctx))
	}
}

// admit counts a stream, or says that there are too many.
func (s *Streamer) admit(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := c.viewer
	switch {
	case s.closed:
		return fmt.Errorf("the server is shutting down: %w", fleet.ErrUnavailable)
	case len(s.conns) >= s.cfg.Total:
		return s.refuse("streams of this server")
	case v.Session != "" && s.bySession[v.Session] >= s.cfg.PerSession:
		return s.refuse("streams of one session")
	case v.UserID != "" && s.byUser[v.UserID] >= s.cfg.PerUser:
		return s.refuse("streams of one person")
	}
	s.conns[c] = struct{}{}
	s.bySession[v.Session]++
	s.byUser[v.UserID]++
	s.streams.Add(1)
	return nil
}

func (s *Streamer) refuse(what string) error {
	s.metrics.refused.Inc()
	return &fleet.LimitError{What: what, Retry: 5*time.Second + rand.N(10*time.Second)}
}

func (s *Streamer) release(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	decrement(s.bySession, c.viewer.Session)
	decrement(s.byUser, c.viewer.UserID)
	s.streams.Done()
}

func decrement(m map[string]int, key string) {
	if m[key]--; m[key] <= 0 {
		delete(m, key)
	}
}

func (s *Streamer) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// serve runs one stream: pump in a goroutine of its own, r3labs in this one. It returns when both have ended.
func (s *Streamer) serve(w http.ResponseWriter, r *http.Request, v Viewer, kind string, pump func(context.Context, *conn) error) error {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	c := &conn{viewer: v, bye: make(chan string, 1), end: cancel}
	c.hop = hop{r3: s.r3, id: strconv.FormatUint(s.seq.Add(1), 36), w: &creditWriter{
		ResponseWriter: w, rc: http.NewResponseController(w), timeout: s.cfg.WriteTimeout,
		ack: make(chan struct{}, 1), cancel: cancel,
		sent: func(n int) { s.metrics.bytes.Add(float64(n)); s.metrics.events.Inc() },
	}}
	if err := s.admit(c); err != nil {
		return err
	}
	defer s.release(c)
	opened := time.Now()
	s.log.Debug("stream opened", "kind", kind, "user", v.UserID, "addr", v.Addr)

	// The client names no stream, and r3labs answers 400 to ids that are no numbers.
	r2 := r.Clone(ctx)
	r2.Header.Del("Last-Event-ID")
	r2.URL.RawQuery = "stream=" + c.id
	s.r3.CreateStream(c.id)
	pumped := make(chan error, 1)
	go func() {
		err := errors.New("the pump panicked")
		defer func() {
			if p := recover(); p != nil {
				s.log.Error("stream panicked", "kind", kind, "panic", p, "stack", stack())
			}
			cancel(err)
			pumped <- err
		}()
		if err = c.ready(ctx); err == nil {
			err = pump(ctx, c)
		}
	}()
	// It returns only when ctx has ended and the one subscriber is off the stream: only then may the stream go, or
	// r3labs would leave a goroutine behind.
	s.r3.ServeHTTP(c.w, r2)
	cancel(nil)
	err := <-pumped
	s.r3.RemoveStream(c.id)
	if errors.Is(err, errGone) {
		s.metrics.slow.Inc()
	}
	s.log.Debug("stream ended", "kind", kind, "user", v.UserID, "dur", time.Since(opened), "err", err)
	return nil
}

// pacer spaces the messages of one stream. A stream that was quiet sends at once; one that sends more than rate a
// second is made to wait longer and longer, so that what changes meanwhile comes as one message.
type pacer struct {
	rate   float64 // messages a second that are free
	most   time.Duration
	credit float64
	gap    time.Duration
	last   time.Time
}

// wait says how long to wait before the next message.
func (p *pacer) wait(now time.Time) time.Duration {
	if p.rate == 0 {
		return 0
	}
	if p.last.IsZero() {
		p.credit = p.rate
	} else {
		// Only time in which there was nothing to send counts: waiting out the gap does not earn anything.
		idle := max(0, now.Sub(p.last)-p.gap)
		p.credit = min(p.rate, p.credit+idle.Seconds()*p.rate)
	}
	p.last = now
	if p.credit >= 1 {
		p.credit--
		if p.credit > p.rate/2 {
			p.gap = 0
		}
		return p.gap
	}
	p.gap = min(max(50*time.Millisecond, p.gap*3/2), p.most)
	return p.gap
}

// pace is the pacer of an HTML stream: people read it, and every message costs their browser a layout.
func (s *Streamer) pace() *pacer {
	p := &pacer{rate: s.rate, most: 250 * time.Millisecond}
	if s.open() > 2000 {
		p.most = time.Second
	}
	return p
}

// loop is the pump of every stream. step returns what there is to send now and what to wait for when it was nothing or
// when it is sent; id is the cursor that heartbeats carry. done ends the stream after what step returned.
func (s *Streamer) loop(ctx context.Context, c *conn, p *pacer, id func() string, step func() (frames []frame, next <-chan struct{}, done bool)) error {
	beat := time.NewTimer(s.cfg.Heartbeat)
	defer beat.Stop()
	gap := time.NewTimer(0)
	defer gap.Stop()
	for {
		frames, next, done := step()
		for i, f := range frames {
			if err := c.send(ctx, f, i < len(frames)-1); err != nil {
				return err
			}
			select { // a long catch-up does not keep anybody here; its last id says how far it came
			case why := <-c.bye:
				return c.send(ctx, bye(string(f.ev.ID), why), false)
			case <-s.closing:
				return c.send(ctx, restart(string(f.ev.ID)), false)
			default:
			}
		}
		if done {
			return nil
		}
		if len(frames) > 0 {
			beat.Reset(s.cfg.Heartbeat)
			if d := p.wait(time.Now()); d > 0 {
				gap.Reset(d)
				if ended, err := s.rest(ctx, c, id, gap.C); ended {
					return err
				}
			}
		}
		select {
		case <-next:
			continue
		default:
		}
		select {
		case <-next:
		case <-beat.C:
			if err := c.send(ctx, s.heartbeat(c, id()), false); err != nil {
				return err
			}
			beat.Reset(s.cfg.Heartbeat)
		case why := <-c.bye:
			return c.send(ctx, bye(id(), why), false)
		case <-s.closing:
			return c.send(ctx, restart(id()), false)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// rest waits for a channel, and for everything that may end the stream.
func (s *Streamer) rest(ctx context.Context, c *conn, id func() string, until <-chan time.Time) (ended bool, err error) {
	select {
	case <-until:
		return false, nil
	case why := <-c.bye:
		return true, c.send(ctx, bye(id(), why), false)
	case <-s.closing:
		return true, c.send(ctx, restart(id()), false)
	case <-ctx.Done():
		return true, context.Cause(ctx)
	}
}

func bye(id, reason string) frame { return event(id, "bye", []byte(reason)) }

// restart tells clients when to come back: all at once would be a storm.
func restart(id string) frame {
	f := event(id, "restart", []byte("1"))
	f.ev.Retry = strconv.AppendInt(nil, 500+rand.Int64N(7500), 10)
	return f
}

func (s *Streamer) heartbeat(c *conn, id string) frame {
	now := time.Now().UTC()
	if c.viewer.Format == JSON {
		return jsonEvent(id, message{Type: typePing, Time: now})
	}
	b := append([]byte(`{"cursor":`), appendString(nil, id)...)
	b = append(b, `,"time":"`...)
	b = now.AppendFormat(b, time.RFC3339)
	return event(id, "hb", append(b, `"}`...))
}
