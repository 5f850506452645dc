package faultproxy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// ClientToken is the bearer token of the clients of an HTTP proxy. It is good for nothing else: the proxy speaks to the
// API server with a credential of its own, so whoever sees this token was sent it by mistake.
const ClientToken = "token-for-the-fault-proxy-only"

// Kind narrows a rule.
type Kind int

// The kinds of call.
const (
	Any Kind = iota
	Watches
	NotWatches
)

// Rule answers some calls instead of the API server.
type Rule struct {
	Method string // "" for all
	Path   string // exact; "" for all
	Kind   Kind
	Skip   int // the first so many matching calls pass
	Times  int // then so many are answered; 0: all
	Answer Answer
}

// Answer is what a call gets.
type Answer func(h *HTTP, w http.ResponseWriter, r *http.Request)

// Request is one call that the proxy has seen.
type Request struct {
	At     time.Time
	Method string
	Path   string
	Watch  bool
	Token  string // bearer token, "" for none
	Status int    // 0 while it is under way
	Proto  string
}

// maxLog bounds what is remembered of calls; Count goes on.
const maxLog = 10000

// HTTP is a TLS reverse proxy to an API server. Make one with NewHTTP.
type HTTP struct {
	srv    *httptest.Server
	target *url.URL
	up     http.RoundTripper
	idle   func()
	done   chan struct{}
	ca     *authority

	mu      sync.Mutex // guards everything below
	rules   []*ruleState
	log     []Request
	count   int
	flight  int
	most    int
	cert    *tls.Certificate
	swaps   int // how often cert was replaced
	muted   bool
	watches map[*watch]struct{} // open ones
	changed chan struct{}       // closed and replaced when rules or muted change
}

// watch is an open one: ended says that its end is meant to look like one that the server wanted.
type watch struct {
	cancel context.CancelFunc
	ended  bool // guarded by HTTP.mu
}

type ruleState struct {
	Rule
	seen int
}

// Option changes how an HTTP proxy is made.
type Option func(*httptest.Server)

// HTTP1 makes a proxy that does not offer HTTP/2.
func HTTP1() Option { return func(s *httptest.Server) { s.EnableHTTP2 = false } }

// NewHTTP starts a proxy to the API server of cfg, with the credential of cfg, and ends it with the test.
func NewHTTP(tb testing.TB, cfg *rest.Config, opts ...Option) *HTTP {
	tb.Helper()
	h := &HTTP{done: make(chan struct{}), changed: make(chan struct{}), watches: map[*watch]struct{}{}}
	fail := func(err error) {
		if err != nil {
			tb.Fatalf("faultproxy: %v", err)
		}
	}
	var err error
	h.target, err = url.Parse(cfg.Host)
	fail(err)
	tlsCfg, err := rest.TLSConfigFor(cfg)
	fail(err)
	base := &http.Transport{TLSClientConfig: tlsCfg, ForceAttemptHTTP2: true, DisableCompression: true}
	h.idle = base.CloseIdleConnections
	h.up, err = rest.HTTPWrappersForConfig(cfg, base)
	fail(err)
	h.ca, err = newAuthority("fault proxy test CA")
	fail(err)
	h.cert, err = h.ca.issue(Good)
	fail(err)
	h.srv = httptest.NewUnstartedServer(http.HandlerFunc(h.serve))
	h.srv.EnableHTTP2 = true
	h.srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug) // broken handshakes are what it is for
	h.srv.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	h.srv.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		h.mu.Lock()
		defer h.mu.Unlock()
		return context.WithValue(ctx, swapsKey{}, h.swaps)
	}
	for _, o := range opts {
		o(h.srv)
	}
	protos := []string{"h2", "http/1.1"}
	if !h.srv.EnableHTTP2 {
		protos = protos[1:]
	}
	// Asked for each connection: a certificate that is swapped counts from the next one on.
	h.srv.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*h.cert}, NextProtos: protos}, nil
	}
	h.srv.StartTLS()
	tb.Cleanup(func() {
		close(h.done)
		h.srv.CloseClientConnections()
		h.srv.Close()
		h.idle()
	})
	return h
}

// URL is the proxy's address.
func (h *HTTP) URL() string { return h.srv.URL }

// Addr is the proxy's host and port.
func (h *HTTP) Addr() string { return h.srv.Listener.Addr().String() }

// REST is a configuration for clients of the proxy, which trust its first authority.
func (h *HTTP) REST() *rest.Config {
	return &rest.Config{Host: h.srv.URL, BearerToken: ClientToken, TLSClientConfig: rest.TLSClientConfig{CAData: h.ca.pem()}}
}

// Rules replaces the rules; the first that matches a call answers it. Calls that wait in an answer are ended.
func (h *HTTP) Rules(rules ...Rule) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rules = nil
	for _, r := range rules {
		h.rules = append(h.rules, &ruleState{Rule: r})
	}
	h.announce()
}

// Mute stops forwarding of watches that are open and of new ones, which get their header, while everything else is
// answered. Nothing is closed, and what the server sends meanwhile is lost with the connection only.
func (h *HTTP) Mute(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.muted = on
	h.announce()
}

// EndWatches ends the open watches as a server does when their time is over; their connections stay.
func (h *HTTP) EndWatches() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watches {
		w.ended = true
		w.cancel()
	}
}

// follow notes an open watch until done is called, which tells, also a second time, whether EndWatches ended it.
func (h *HTTP) follow(cancel context.CancelFunc) (done func() bool) {
	w := &watch{cancel: cancel}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watches[w] = struct{}{}
	return func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watches, w)
		return w.ended
	}
}

func (h *HTTP) announce() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// CloseConns cuts every connection of clients.
func (h *HTTP) CloseConns() { h.srv.CloseClientConnections() }

// Swap replaces the certificate, and cuts the connections that saw the old one.
func (h *HTTP) Swap(tb testing.TB, k Certificate) {
	tb.Helper()
	cert, err := h.ca.issue(k)
	if err != nil {
		tb.Fatalf("faultproxy: %v", err)
	}
	h.mu.Lock()
	h.cert = cert
	h.swaps++
	h.mu.Unlock()
	h.CloseConns()
}

// swapsKey is what a connection knows of swaps.
type swapsKey struct{}

// Log are the calls seen so far, oldest first.
func (h *HTTP) Log() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.log)
}

// Count is the number of calls so far.
func (h *HTTP) Count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

// MostInFlight is the highest number of calls that were under way at once.
func (h *HTTP) MostInFlight() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.most
}

func isWatch(r *http.Request) bool {
	v := r.URL.Query().Get("watch")
	return v == "true" || v == "1"
}

// enter notes a call and finds its rule.
func (h *HTTP) enter(r *http.Request) (Answer, int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.Context().Value(swapsKey{}) != h.swaps {
		panic(http.ErrAbortHandler) // it was read before its connection was cut, by a handler that is late
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	at := -1
	if len(h.log) < maxLog {
		at = len(h.log)
		h.log = append(h.log, Request{time.Now(), r.Method, r.URL.Path, isWatch(r), token, 0, r.Proto})
	}
	h.count++
	h.flight++
	h.most = max(h.most, h.flight)
	for _, rule := range h.rules {
		if rule.Method != "" && rule.Method != r.Method || rule.Path != "" && rule.Path != r.URL.Path ||
			rule.Kind == Watches && !isWatch(r) || rule.Kind == NotWatches && isWatch(r) {
			continue
		}
		rule.seen++
		if n := rule.seen - rule.Skip; n < 1 || rule.Times > 0 && n > rule.Times {
			continue
		}
		return rule.Answer, at
	}
	return nil, at
}

func (h *HTTP) serve(w http.ResponseWriter, r *http.Request) {
	answer, at := h.enter(r)
	sw := &statusWriter{ResponseWriter: w}
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.flight--
		if at >= 0 {
			h.log[at].Status = sw.status
		}
	}()
	if answer == nil {
		answer = forward
	}
	answer(h, sw, r)
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(code int) {
	w.status = code
	w.ResponseWriter.WriteHeader(code)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// wait blocks until the call, the proxy or the rules end.
func (h *HTTP) wait(r *http.Request) {
	h.mu.Lock()
	changed := h.changed
	h.mu.Unlock()
	select {
	case <-changed:
	case <-r.Context().Done():
	case <-h.done:
	}
}

// open waits until watches are forwarded; false when the call is over.
func (h *HTTP) open(r *http.Request) bool {
	for {
		h.mu.Lock()
		muted, changed := h.muted, h.changed
		h.mu.Unlock()
		if !muted {
			return true
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return false
		case <-h.done:
			return false
		}
	}
}

// forward hands the call to the API server.
func forward(h *HTTP, w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	ended := func() bool { return false }
	if isWatch(r) {
		ended = h.follow(cancel)
		defer ended()
	}
	out := r.Clone(ctx)
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host, out.Host = h.target.Scheme, h.target.Host, h.target.Host
	out.Header.Del("Authorization")
	resp, err := h.up.RoundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler) // the client sees a cut connection, as without a proxy
	}
	defer func() { _ = resp.Body.Close() }() // read to its end, or of no use any more
	for k, v := range resp.Header {
		if k != "Connection" && k != "Transfer-Encoding" {
			w.Header()[k] = v
		}
	}
	w.WriteHeader(resp.StatusCode)
	rc, watching := http.NewResponseController(w), isWatch(r)
	flush := func() bool { return rc.Flush() == nil }
	if !flush() {
		return
	}
	buf := make([]byte, piece)
	for {
		n, err := resp.Body.Read(buf)
		if watching && !h.open(r) {
			return
		}
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil || !flush() {
				return
			}
		}
		if err != nil {
			if !ended() && err != io.EOF {
				panic(http.ErrAbortHandler)
			}
			return
		}
	}
}

// Status answers as an API server does.
func Status(code int) Answer {
	return func(_ *HTTP, w http.ResponseWriter, _ *http.Request) { writeStatus(w, code) }
}

// RetryAfter is Status with the header of that name, in seconds.
func RetryAfter(code, seconds int) Answer {
	return func(_ *HTTP, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
		writeStatus(w, code)
	}
}

var reasons = map[int]metav1.StatusReason{
	401: metav1.StatusReasonUnauthorized, 403: metav1.StatusReasonForbidden, 404: metav1.StatusReasonNotFound,
	410: metav1.StatusReasonExpired, 429: metav1.StatusReasonTooManyRequests, 500: metav1.StatusReasonInternalError,
	503: metav1.StatusReasonServiceUnavailable, 504: metav1.StatusReasonTimeout,
}

func writeStatus(w http.ResponseWriter, code int) {
	body, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: reasons[code],
		Code: int32(code), Message: fmt.Sprintf("the fault proxy says %d", code),
	})
	if err != nil {
		panic(err) // strings and a number cannot fail
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(body) // a client that is gone needs no answer
}

// Body answers 200 with a body of any type.
func Body(contentType, body string) Answer {
	return func(_ *HTTP, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(w, body) // a client that is gone needs no answer
	}
}

// Truncated answers with the beginning of a JSON document and the end of the connection.
func Truncated() Answer {
	return Body("application/json", `{"kind":"NodeList","apiVersion":"v1","items":[{"metadata":{"na`)
}

// WrongType answers with a page for people, as a captive portal does.
func WrongType() Answer { return Body("text/html", "<html><body>Please sign in.</body></html>") }

// Redirect answers 302.
func Redirect(to string) Answer {
	return func(_ *HTTP, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusFound)
	}
}

// Slow forwards after a delay, or not at all if the client leaves before.
func Slow(d time.Duration) Answer {
	return func(h *HTTP, w http.ResponseWriter, r *http.Request) {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			forward(h, w, r)
		case <-r.Context().Done():
		case <-h.done:
		}
	}
}

// Trickle forwards the server's body a few bytes at a time.
func Trickle(bytes int, every time.Duration) Answer {
	return func(h *HTTP, w http.ResponseWriter, r *http.Request) {
		forward(h, &trickler{ResponseWriter: w, h: h, r: r, n: bytes, every: every}, r)
	}
}

type trickler struct {
	http.ResponseWriter
	h     *HTTP
	r     *http.Request
	n     int
	every time.Duration
}

func (w *trickler) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *trickler) Write(b []byte) (int, error) {
	done, rc := 0, http.NewResponseController(w.ResponseWriter)
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for done < len(b) {
		select {
		case <-tick.C:
		case <-w.r.Context().Done():
			return done, w.r.Context().Err()
		case <-w.h.done:
			return done, http.ErrServerClosed
		}
		n, err := w.ResponseWriter.Write(b[done:min(len(b), done+w.n)])
		if done += n; err != nil {
			return done, err
		}
		if err := rc.Flush(); err != nil {
			return done, err
		}
	}
	return done, nil
}

// Stuck sends the header and the beginning of a body, and then nothing.
func Stuck(contentType, beginning string) Answer {
	return func(h *HTTP, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(http.StatusOK)
		if _, err := io.WriteString(w, beginning); err != nil {
			return
		}
		if http.NewResponseController(w).Flush() == nil {
			h.wait(r)
		}
	}
}

// Endless sends bytes for as long as anybody takes them.
func Endless(contentType string) Answer {
	return func(h *HTTP, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(http.StatusOK)
		chunk := []byte(strings.Repeat(" ", 64<<10))
		for {
			select {
			case <-r.Context().Done():
				return
			case <-h.done:
				return
			default:
			}
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
}

// Silent opens a watch and sends nothing of it.
func Silent() Answer { return Stuck("application/json;stream=watch", "") }

// Hang takes the call and never answers.
func Hang() Answer { return func(h *HTTP, _ http.ResponseWriter, r *http.Request) { h.wait(r) } }
