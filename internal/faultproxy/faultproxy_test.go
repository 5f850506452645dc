package faultproxy

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/client-go/rest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers every line with itself.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

type client struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, p *TCP) *client {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) say(line string) {
	c.t.Helper()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) hear(want string) {
	c.t.Helper()
	if got, err := c.in.ReadString('\n'); err != nil || got != want+"\n" {
		c.t.Fatalf("heard %q, %v; want %q", got, err, want)
	}
}

// quiet fails if anything arrives within an instant: that much is all that can be said of what must not happen.
func (c *client) quiet() {
	c.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		c.t.Fatal(err)
	}
	if b, err := c.in.Peek(1); err == nil {
		c.t.Fatalf("heard %q", b)
	} else if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
		c.t.Fatalf("not quiet but over: %v", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) over() {
	c.t.Helper()
	if _, err := c.in.ReadString('\n'); err == nil {
		c.t.Fatal("the connection lives")
	} else if !errors.Is(err, syscall.ECONNRESET) {
		c.t.Fatalf("ended with %v, want a reset", err)
	}
}

// isReset is for connections that are reset at once, which the dialer may see already.
func isReset(t *testing.T, p *TCP) {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("dialing: %v", err)
		}
		return
	}
	t.Cleanup(func() { _ = c.Close() })
	(&client{t, c, bufio.NewReader(c)}).over()
}

func TestTCP(t *testing.T) {
	t.Parallel()
	to := echo(t)
	tests := map[string]func(t *testing.T, p *TCP){
		"pass": func(t *testing.T, p *TCP) {
			c := dial(t, p)
			c.say("a")
			c.hear("a")
		},
		"refuse and again": func(t *testing.T, p *TCP) {
			old := dial(t, p)
			old.say("a")
			old.hear("a")
			p.Set(t, Fault{Accept: Refuse})
			if _, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("dialing: %v", err)
			}
			old.say("b") // what is open stays open
			old.hear("b")
			p.Set(t, Fault{})
			c := dial(t, p)
			c.say("c")
			c.hear("c")
		},
		"reset": func(t *testing.T, p *TCP) {
			p.Set(t, Fault{Accept: Reset})
			isReset(t, p)
		},
		"cut": func(t *testing.T, p *TCP) {
			c := dial(t, p)
			c.say("a")
			c.hear("a")
			p.Cut()
			c.over()
		},
		"silence": func(t *testing.T, p *TCP) {
			p.Set(t, Fault{Accept: Silence})
			c := dial(t, p)
			c.say("a")
			c.quiet()
		},
		"half-open and back": func(t *testing.T, p *TCP) {
			c := dial(t, p)
			c.say("a")
			c.hear("a")
			p.Set(t, HalfOpen)
			c.say("b")
			c.quiet()
			p.Set(t, Fault{})
			c.hear("b")
		},
		"pause of one connection": func(t *testing.T, p *TCP) {
			one := dial(t, p)
			one.say("a")
			one.hear("a")
			two := dial(t, p)
			p.Conns()[0].Set(Paused)
			one.say("b")
			one.quiet()
			two.say("c")
			two.hear("c")
			p.Conns()[0].Set(Fault{})
			one.hear("b")
		},
		"cut after bytes": func(t *testing.T, p *TCP) {
			p.Set(t, Fault{CutAfter: 3})
			c := dial(t, p)
			c.say("abcdef")
			b, err := io.ReadAll(c)
			if !strings.HasPrefix("abc", string(b)) || err == nil { // a reset may take what was not read yet
				t.Errorf("got %q, %v", b, err)
			}
		},
		"latency": func(t *testing.T, p *TCP) {
			p.Set(t, Fault{Latency: 30 * time.Millisecond, Jitter: 10 * time.Millisecond})
			c := dial(t, p)
			began := time.Now()
			c.say("a")
			c.hear("a")
			if d := time.Since(began); d < 60*time.Millisecond {
				t.Errorf("there and back in %s", d)
			}
		},
		"rate": func(t *testing.T, p *TCP) {
			p.Set(t, Fault{Rate: 10000})
			c := dial(t, p)
			began := time.Now()
			c.say(strings.Repeat("x", 1000))
			c.hear(strings.Repeat("x", 1000))
			if d := time.Since(began); d < 100*time.Millisecond {
				t.Errorf("1,000 bytes in %s", d)
			}
		},
		"retarget": func(t *testing.T, p *TCP) {
			p.Retarget("127.0.0.1:1")
			isReset(t, p)
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, NewTCP(t, to, 1))
		})
	}
}

// upstream is a little API server.
func upstream(t *testing.T) *rest.Config {
	t.Helper()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer upstream" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "line\n")
		if isWatch(r) {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}))
	t.Cleanup(srv.Close)
	return &rest.Config{Host: srv.URL, BearerToken: "upstream", TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

func site(t *testing.T, opts ...Option) (*HTTP, *http.Client) {
	t.Helper()
	h := NewHTTP(t, upstream(t), opts...)
	c, err := rest.HTTPClientFor(h.REST())
	if err != nil {
		t.Fatal(err)
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(c.CloseIdleConnections)
	return h, c
}

func get(t *testing.T, h *HTTP, c *http.Client, path string) (*http.Response, string, error) {
	t.Helper()
	resp, err := c.Get(h.URL() + path)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func TestHTTP_Rules(t *testing.T) {
	t.Parallel()
	h, c := site(t)
	status := func(path string, want int) *http.Response {
		t.Helper()
		resp, _, err := get(t, h, c, path)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
		return resp
	}
	if _, body, err := get(t, h, c, "/x"); err != nil || body != "line\n" {
		t.Fatalf("forwarded: %q, %v", body, err)
	}
	h.Rules(Rule{Path: "/a", Skip: 1, Times: 1, Answer: RetryAfter(429, 7)}, Rule{Path: "/b", Answer: Status(403)}, Rule{Path: "/c", Answer: Redirect("https://elsewhere.example/")})
	status("/a", 200)
	if got := status("/a", 429).Header.Get("Retry-After"); got != "7" {
		t.Errorf("Retry-After: %q", got)
	}
	status("/a", 200)
	status("/b", 403)
	status("/b", 403)
	status("/c", 302)
	status("/x", 200)
	h.Rules(Rule{Path: "/t", Answer: Truncated()}, Rule{Path: "/w", Answer: WrongType()}, Rule{Path: "/s", Answer: Trickle(1, time.Millisecond)})
	if _, body, err := get(t, h, c, "/t"); err != nil || !strings.HasPrefix(body, `{"kind":"NodeList"`) {
		t.Errorf("truncated: %q, %v", body, err)
	}
	if got := status("/w", 200).Header.Get("Content-Type"); got != "text/html" {
		t.Errorf("type %s", got)
	}
	if _, body, err := get(t, h, c, "/s"); err != nil || body != "line\n" {
		t.Errorf("trickled: %q, %v", body, err)
	}
	if h.Count() != len(h.Log()) || h.Count() != 11 || h.Log()[0].Token != ClientToken || h.Log()[2].Status != 429 {
		t.Errorf("%d calls, %+v", h.Count(), h.Log())
	}
}

func TestHTTP_Watches(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]Option{"http2": nil, "http1": {HTTP1()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, c := site(t, opts...)
			resp, err := c.Get(h.URL() + "/nodes?watch=1")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			in := bufio.NewReader(resp.Body)
			if line, err := in.ReadString('\n'); err != nil || line != "line\n" {
				t.Fatalf("%q, %v", line, err)
			}
			if major := resp.ProtoMajor; (major == 2) != (opts == nil) {
				t.Errorf("HTTP/%d", major)
			}
			h.EndWatches()
			if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
				t.Errorf("the end: %q, %v", rest, err)
			}
			h.Mute(true)
			muted, err := c.Get(h.URL() + "/nodes?watch=1")
			if err != nil {
				t.Fatal(err)
			}
			defer muted.Body.Close()
			if _, body, err := get(t, h, c, "/x"); err != nil || body != "line\n" {
				t.Errorf("beside a muted watch: %q, %v", body, err)
			}
			h.Mute(false)
			if line, err := bufio.NewReader(muted.Body).ReadString('\n'); err != nil || line != "line\n" {
				t.Errorf("afterwards: %q, %v", line, err)
			}
		})
	}
}

func TestHTTP_Certificates(t *testing.T) {
	t.Parallel()
	h, _ := site(t)
	for _, tt := range []struct {
		kind Certificate
		good bool
	}{{Good, true}, {NewCA, false}, {Expired, false}, {WrongHost, false}, {Good, true}} {
		h.Swap(t, tt.kind)
		// A client of its own: one that has a connection need not have heard of its end yet.
		cfg := h.REST()
		cfg.Dial = (&net.Dialer{}).DialContext
		c, err := rest.HTTPClientFor(cfg)
		if err != nil {
			t.Fatal(err)
		}
		before := h.Count()
		_, _, err = get(t, h, c, "/x")
		c.CloseIdleConnections()
		var bad *tls.CertificateVerificationError
		if tt.good != (err == nil) || !tt.good && !errors.As(err, &bad) {
			t.Errorf("certificate %d: %v", tt.kind, err)
		}
		if sent := h.Count() - before; (sent == 1) != tt.good {
			t.Errorf("certificate %d: %d calls", tt.kind, sent)
		}
	}
}

// Whatever an answer is busy with, the end of its connection ends it, and goleak sees that it did.
func TestHTTP_Ends(t *testing.T) {
	t.Parallel()
	h, c := site(t)
	h.Rules(Rule{Path: "/hang", Answer: Hang()}, Rule{Path: "/silent", Answer: Silent()}, Rule{Path: "/slow", Answer: Slow(time.Hour)}, Rule{Answer: Endless("text/plain")})
	var all sync.WaitGroup
	for _, path := range []string{"/hang", "/silent", "/slow", "/endless"} {
		all.Go(func() {
			resp, err := c.Get(h.URL() + path)
			if err == nil {
				_, err = io.CopyN(io.Discard, resp.Body, 1<<20)
				resp.Body.Close()
			}
			if path != "/endless" && err == nil {
				t.Errorf("%s was answered", path)
			}
		})
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for h.Count() < 4 {
		<-tick.C
	}
	h.CloseConns()
	all.Wait()
}
