package realtime

import (
	"context"
	randtext "crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	sse "github.com/r3labs/sse/v2"
	"golang.org/x/time/rate"

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
	beats   beats
	closing chan struct{}
	streams sync.WaitGroup

	mu        sync.Mutex // guards everything below
	closed    bool
	conns     map[*conn]struct{}
	bySession map[string]int
	byUser    map[string]int
	byAddr    map[string]int
	plain     map[string]int // lasting HTML streams over HTTP/1.x, by session
	briefs    map[string]int // brief streams, by session
	admission *rate.Limiter

	batchMu sync.Mutex // guards batches and the boards' users
	batches map[string]*batchBoard
}

// conn is one open stream.
type conn struct {
	hop
	kind   string
	viewer Viewer
	plain  bool        // an HTML page's stream over HTTP/1.x
	brief  bool        // says what changed, and when to come back
	build  bool        // the page is of another build
	bye    chan string // reason of the last event
	end    context.CancelCauseFunc
}

// The kinds of stream.
const (
	kindNodes    = "nodes"
	kindNode     = "node"
	kindClusters = "clusters"
	kindBatch    = "batch"
)

// The reasons of a stream's last event.
const (
	byeCluster = "cluster-removed"
)

// NewStreamer returns a Streamer that serves what the manager sees.
func NewStreamer(cfg StreamerConfig) *Streamer {
	cfg.Heartbeat = or(cfg.Heartbeat, 20*time.Second)
	cfg.WriteTimeout = or(cfg.WriteTimeout, 10*time.Second)
	cfg.BatchPoll = or(cfg.BatchPoll, 2*time.Second)
	cfg.PerSession = or(cfg.PerSession, 16)
	cfg.PerUser = or(cfg.PerUser, 32)
	cfg.PerAddr = or(cfg.PerAddr, 256)
	cfg.Total = or(cfg.Total, 12000)
	cfg.Admit = or(cfg.Admit, 500)
	cfg.Plain = or(cfg.Plain, 4)
	log := cfg.Logger.With("component", "streams")
	s := &Streamer{
		cfg: cfg, m: cfg.Manager, r3: newServer(), log: log,
		render:    &renderer{Renderer: cfg.Render, log: log},
		closing:   make(chan struct{}),
		rate:      20,
		conns:     map[*conn]struct{}{},
		bySession: map[string]int{}, byUser: map[string]int{}, byAddr: map[string]int{}, plain: map[string]int{}, briefs: map[string]int{},
		admission: rate.NewLimiter(rate.Limit(cfg.Admit), cfg.Admit),
		batches:   map[string]*batchBoard{},
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

// admit counts a stream, or says that there are too many. Browsers open six connections to a host over HTTP/1.x, and
// a stream that lasts holds one: so only some pages of a session get a lasting one. The others are served briefly and
// come back every few seconds, and all of them load and follow. What is brief has a limit of its own, or it would be
// refused where it is meant to help, and takes none of the places for those who come back after a restart.
func (s *Streamer) admit(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := c.viewer
	c.brief = c.plain && v.Session != "" && s.plain[v.Session] >= s.cfg.Plain
	switch {
	case s.closed:
		return s.later(reasonClosing, "the server is shutting down")
	case len(s.conns) >= s.cfg.Total:
		return s.refuse(reasonProcess, "streams of this server")
	case c.brief && s.briefs[v.Session] >= s.cfg.PerSession, !c.brief && v.Session != "" && s.bySession[v.Session] >= s.cfg.PerSession:
		return s.refuse(reasonSession, "streams of one session")
	case !c.brief && v.UserID != "" && s.byUser[v.UserID] >= s.cfg.PerUser:
		return s.refuse(reasonPerson, "streams of one person")
	case v.Addr != "" && s.byAddr[v.Addr] >= s.cfg.PerAddr:
		return s.refuse(reasonAddress, "streams of one address")
	case !c.brief && !s.admission.Allow():
		return s.later(reasonAdmission, "too many new streams at once")
	}
	s.conns[c] = struct{}{}
	if c.brief {
		s.briefs[v.Session]++
	} else {
		s.bySession[v.Session]++
		s.byUser[v.UserID]++
		if c.plain {
			s.plain[v.Session]++
		}
	}
	s.byAddr[v.Addr]++
	s.streams.Add(1)
	s.metrics.admit(c)
	return nil
}

// refuse is for those who have too much: one of their streams has to end first.
func (s *Streamer) refuse(reason, what string) error {
	s.metrics.refused.WithLabelValues(reason).Inc()
	return &fleet.LimitError{What: what, Retry: 5*time.Second + rand.N(10*time.Second)}
}

// later is for those who came at the wrong moment. The time to come back is scattered, or they would come together
// again.
func (s *Streamer) later(reason, what string) error {
	s.metrics.refused.WithLabelValues(reason).Inc()
	return &fleet.LaterError{What: what, Retry: time.Second + rand.N(15*time.Second)}
}

func (s *Streamer) release(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if c.brief {
		decrement(s.briefs, c.viewer.Session)
	} else {
		decrement(s.bySession, c.viewer.Session)
		decrement(s.byUser, c.viewer.UserID)
		if c.plain {
			decrement(s.plain, c.viewer.Session)
		}
	}
	decrement(s.byAddr, c.viewer.Addr)
	s.metrics.release(c)
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
	page := v.Format == HTML && r.Method == http.MethodGet
	c := &conn{
		kind: kind, viewer: v, bye: make(chan string, 1), end: cancel,
		plain: page && r.ProtoMajor < 2, build: page && otherBuild(v.Since, s.m.cfg.Epoch),
	}
	c.hop = hop{r3: s.r3, id: strconv.FormatUint(s.seq.Add(1), 36), w: &creditWriter{
		ResponseWriter: w, rc: http.NewResponseController(w), timeout: s.cfg.WriteTimeout,
		ack: make(chan struct{}, 1), cancel: cancel, sent: s.metrics.wrote,
	}}
	w.Header().Add("Vary", "Accept-Encoding")
	if err := s.admit(c); err != nil {
		return err
	}
	defer s.release(c)
	defer c.w.release()
	if acceptsGzip(r.Header) {
		w.Header().Set("Content-Encoding", "gzip")
		c.w.gz = &gzipStream{}
	}
	opened := time.Now()
	s.log.Debug("stream opened", "kind", kind, "user", v.UserID, "addr", v.Addr, "brief", c.brief)

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
	c.w.finish()
	switch {
	case errors.Is(c.w.failed, errSlow):
		s.metrics.cut.WithLabelValues(cutSlow).Inc()
	case c.w.failed != nil:
		s.metrics.cut.WithLabelValues(cutGone).Inc()
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
	var looked time.Time // when it was last up to date; zero: it has not been yet
	for {
		now := time.Now()
		frames, next, done := step()
		if c.build && len(frames) > 0 {
			// What the page shows is right again; only the page itself is old.
			frames, c.build = append(slices.Clip(frames), event(id(), "reload", []byte(buildOf(s.m.cfg.Epoch)))), false
		}
		if c.brief && !done {
			frames, done = append(slices.Clip(frames), comeBack(id())), true
		}
		for i, f := range frames {
			if err := c.send(ctx, f, i < len(frames)-1); err != nil {
				return err
			}
			s.metrics.delivered(f, looked)
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
		looked = now
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

// comeBack ends a brief stream: it says in how many milliseconds to ask again.
func comeBack(id string) frame {
	return event(id, "poll", strconv.AppendInt(nil, 2000+rand.Int64N(1000), 10))
}

// beats are the heartbeats of this second. Those who stand at the same place get the same one, so that they stay in
// step with each other and their next message is compressed once.
type beats struct {
	mu     sync.Mutex // guards everything below
	second int64
	frames map[beat]frame
}

type beat struct {
	id     string
	format Format
}

// maxBeats bounds the heartbeats that are shared; one more is made for one stream alone.
const maxBeats = 1024

func (s *Streamer) heartbeat(c *conn, id string) frame {
	now := time.Now().UTC()
	s.beats.mu.Lock()
	defer s.beats.mu.Unlock()
	if s.beats.second != now.Unix() || s.beats.frames == nil {
		s.beats.second, s.beats.frames = now.Unix(), map[beat]frame{}
	}
	key := beat{id, c.viewer.Format}
	f, ok := s.beats.frames[key]
	if !ok {
		f = newHeartbeat(key, now)
		if len(s.beats.frames) < maxBeats {
			s.beats.frames[key] = f
		}
	}
	return f
}

func newHeartbeat(k beat, now time.Time) frame {
	if k.format == JSON {
		return jsonEvent(k.id, message{Type: typePing, Time: now})
	}
	b := append([]byte(`{"cursor":`), appendString(nil, k.id)...)
	b = append(b, `,"time":"`...)
	b = now.AppendFormat(b, time.RFC3339)
	return event(k.id, "hb", append(b, `"}`...))
}

// An epoch made by Epoch is the build and then a random part.
const (
	buildLen  = 8
	randomLen = 10
)

// Epoch names a process that runs a build: in cursors it tells whether a page is of another process, and whether that
// one was of another build.
func Epoch(build string) string {
	sum := sha256.Sum256([]byte(build))
	return hex.EncodeToString(sum[:])[:buildLen] + strings.ToLower(randtext.Text()[:randomLen])
}

// buildOf is the build in an epoch, "" in one that Epoch did not make.
func buildOf(epoch string) string {
	if len(epoch) != buildLen+randomLen {
		return ""
	}
	return epoch[:buildLen]
}

// otherBuild tells whether a cursor was given out by another build than the one of this epoch.
func otherBuild(cursor, epoch string) bool {
	theirs, _, found := strings.Cut(cursor, ".")
	a, b := buildOf(theirs), buildOf(epoch)
	return found && a != "" && b != "" && a != b
}
