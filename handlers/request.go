package handlers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Keys of the log records.
const (
	keyRequest = "request_id"
	keyMethod  = "method"
	keyRoute   = "route"
	keyPath    = "path"
	keyStatus  = "status"
	keyDur     = "dur"
	keyBytes   = "bytes"
	keyUser    = "user"
	keyAddr    = "addr"
	keyErr     = "err"
	keyStack   = "stack"
)

const levelWarn = slog.LevelWarn

func errAttr(err error) slog.Attr { return slog.Any(keyErr, err) }

// state is what is known of one request. It is made at the beginning, filled on the way and logged at the end; only the
// goroutine of the request touches it.
type state struct {
	id      string
	nonce   string
	addr    string
	caller  fleet.Caller // zero until somebody is signed in
	vouched vouchedFor   // whom a trusted proxy names
	route   route
	err     error // what the answer came from, for the log
}

type stateKey struct{}

// stateOf never returns nil: begin is the first of our middlewares.
func stateOf(r *http.Request) *state { return r.Context().Value(stateKey{}).(*state) }

// callerOf is who asks; its zero value on public routes.
func callerOf(r *http.Request) fleet.Caller { return stateOf(r).caller }

// begin gives the request its id, its nonce and the address of its client. The id is always ours: one from outside
// could be anybody's.
func (s *server) begin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		st := &state{id: rand.Text(), nonce: rand.Text(), addr: middleware.GetClientIP(r.Context())}
		if st.addr == "" {
			// A garbled X-Forwarded-For leaves none: then the peer itself is all that is known.
			if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
				st.addr = host
			}
		}
		w.Header().Set("X-Request-Id", st.id)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), stateKey{}, st)))
	})
}

// record writes one line per request, at its end, and counts it.
func (s *server) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		defer func() {
			st, status, dur := stateOf(r), ww.Status(), time.Since(start)
			if status == 0 {
				status = http.StatusOK
				if r.Context().Err() != nil {
					status = statusClientGone
				}
			}
			pattern := chi.RouteContext(r.Context()).RoutePattern()
			if st.route.path == "" && !strings.HasPrefix(pattern, "/static/") {
				pattern = "none" // unknown paths must not become labels
			}
			s.requests.WithLabelValues(r.Method, pattern, strconv.Itoa(status)).Inc()
			if st.route.kind != stream {
				s.seconds.WithLabelValues(pattern).Observe(dur.Seconds())
			}
			level := slog.LevelInfo
			switch {
			case status >= 500 && status != http.StatusServiceUnavailable:
				level = slog.LevelError
			case status == http.StatusServiceUnavailable:
				level = slog.LevelWarn
			case st.route.kind == probe || strings.HasPrefix(pattern, "/static/"):
				level = slog.LevelDebug
			}
			attrs := []slog.Attr{
				slog.String(keyRequest, st.id), slog.String(keyMethod, r.Method), slog.String(keyRoute, pattern),
				slog.String(keyPath, r.URL.EscapedPath()), slog.Int(keyStatus, status), slog.Duration(keyDur, dur),
				slog.Int(keyBytes, ww.BytesWritten()), slog.String(keyUser, st.caller.Name), slog.String(keyAddr, st.addr),
			}
			if st.err != nil {
				attrs = append(attrs, errAttr(st.err))
			}
			s.cfg.Logger.LogAttrs(r.Context(), level, "request", attrs...)
		}()
		next.ServeHTTP(ww, r)
	})
}

// statusClientGone is what the log and the metrics say of a request whose client left before an answer; nobody sees it.
const statusClientGone = 499

// errPanic is the error of a request whose handler panicked.
var errPanic = errors.New("panic")

// recovered turns a panic into a 500, or, once the answer has begun, into a cut connection: half a page must not look
// like a whole one.
func (s *server) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(http.ErrAbortHandler)
			}
			s.cfg.Logger.LogAttrs(r.Context(), slog.LevelError, "panic", slog.String(keyRequest, stateOf(r).id),
				slog.String(keyErr, fmt.Sprint(p)), slog.String(keyStack, string(debug.Stack())))
			if begun(w) {
				panic(http.ErrAbortHandler)
			}
			s.fail(w, r, errPanic)
		}()
		next.ServeHTTP(w, r)
	})
}

// begun tells whether the header of the answer has been written.
func begun(w http.ResponseWriter) bool {
	for {
		switch v := w.(type) {
		case middleware.WrapResponseWriter:
			return v.Status() != 0
		case interface{ Unwrap() http.ResponseWriter }:
			w = v.Unwrap()
		default:
			return false
		}
	}
}

// headers sets what every answer carries, errors and files included. Handlers overwrite Cache-Control where it differs.
func (s *server) headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy(stateOf(r).nonce))
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		// same-origin and not no-referrer: the latter makes browsers send "Origin: null" with our own forms.
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
		h.Set("Cache-Control", "no-store")
		if s.cfg.Secure {
			h.Set("Strict-Transport-Security", "max-age=63072000; includeSubDomains")
		}
		next.ServeHTTP(w, r)
	})
}

// policy allows the scripts that carry the nonce and what they import, and htmx's own Trusted Types policy; nothing
// inline, nothing evaluated, nothing from elsewhere.
func policy(nonce string) string {
	return "default-src 'none'; script-src 'nonce-" + nonce + "'; style-src 'self'; font-src 'self'; connect-src 'self'; " +
		"img-src 'self' data:; base-uri 'none'; object-src 'none'; frame-ancestors 'none'; form-action 'self'; " +
		"require-trusted-types-for 'script'; trusted-types htmx"
}

// limitBody bounds what a request may send, and refuses what nobody here could read. A compressed body could be any size
// once unpacked; what a form with files in it leaves on the disk is nobody's to count.
func limitBody(w http.ResponseWriter, r *http.Request, limit int64) error {
	if err := legible(r.URL); err != nil {
		return err
	}
	if len(r.Header.Values("Content-Encoding")) > 0 {
		return say(fleet.ErrUnsupported, "error.encoded", "a request body must not be compressed")
	}
	if limit == 0 {
		limit = bodyLimit
	}
	if r.ContentLength > limit {
		return tooLarge(limit)
	}
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	if r.ContentLength != 0 { // over HTTP/2 there is a reader where there is no body
		if _, err := mediaOf(r); err != nil {
			return err
		}
	}
	r.Body = http.MaxBytesReader(w, r.Body, limit)
	return nil
}

// maxParams is how many parameters an address may have.
const maxParams = 1000

// legible refuses an address that is no text: databases do not take it, and no name that we know has it.
func legible(u *url.URL) error {
	if !isText(u.Path) {
		return say(fleet.ErrNotFound, "error.page_unknown", "there is no such page")
	}
	if strings.Count(u.RawQuery, "&") >= maxParams {
		return say(fleet.ErrInvalid, "error.values", "the request may have at most {{.Part}} values", "Part", strconv.Itoa(maxParams))
	}
	return textOnly(u.Query())
}

// textOnly refuses values that are no text, and names the field where its name is text.
func textOnly(v url.Values) error {
	for _, name := range slices.Sorted(maps.Keys(v)) {
		if !isText(name) {
			return say(fleet.ErrInvalid, "error.text", "the request has bytes in it that are no text")
		}
		if !isText(strings.Join(v[name], "")) {
			return &fleet.FieldError{Field: name, Key: "error.text", Message: "has bytes in it that are no text"}
		}
	}
	return nil
}

// isText tells whether s is UTF-8 without the one character that PostgreSQL has no place for.
func isText(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

func tooLarge(limit int64) error {
	return say(fleet.ErrTooLarge, "error.body", "the request may have at most {{.Part}} bytes", "Part", strconv.FormatInt(limit, 10))
}

func (s *server) registerMetrics(reg prometheus.Registerer) error {
	s.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "knm_handlers_requests_total", Help: "Requests answered; a stream counts when it ends.",
	}, []string{"method", "route", "status"})
	s.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "knm_handlers_request_seconds", Help: "Time to answer, streams left out.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"route"})
	for _, c := range []prometheus.Collector{s.requests, s.seconds} {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("handlers: registering metrics: %w", err)
		}
	}
	return nil
}
