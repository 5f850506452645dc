package app

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// A session ends to the second, idle or not, with a stream and a page that asks by itself open all the time: neither is
// activity. The stream ends with the next look at who is still good.
func TestSessions_EndToTheSecondUnderAStream(t *testing.T) {
	t.Parallel()
	const look = 2 * time.Second // of auth, for what ends by itself
	for _, tt := range []struct {
		name   string
		lasts  time.Duration
		active time.Duration // between two things that a person does; 0 for nothing
	}{
		{"idle", 30 * time.Minute, 0},
		{"absolute", 12 * time.Hour, 29 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := serveConfig(t)
			cfg.MetricsListen = ""
			synctest.Test(t, func(t *testing.T) {
				said := &lockedBuffer{}
				a, err := New(t.Context(), cfg, Options{Version: "test", Notice: said, Logger: slog.New(slog.NewTextHandler(said, nil))})
				if err != nil {
					t.Fatal(err)
				}
				if err := a.auth.AddUser(t.Context(), onHost(), "ada", fleet.RoleViewer, password); err != nil {
					t.Fatal(err)
				}
				ln := newPipes()
				ctx, cancel := context.WithCancel(t.Context())
				var all sync.WaitGroup
				all.Go(func() {
					if err := a.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
						t.Error(err)
					}
				})
				tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return ln.dial("192.0.2.1") }}
				defer func() {
					cancel()
					bound := context.WithoutCancel(t.Context())
					if err := errors.Join(a.streams.Close(bound), a.server.Shutdown(bound)); err != nil {
						t.Error(err)
					}
					tr.CloseIdleConnections()
					all.Wait()
					if err := a.Close(bound); err != nil {
						t.Error(err)
					}
				}()
				r := &running{t: t, App: a}
				p := r.person(tr)
				p.base = "http://" + ln.Addr().String()
				if status, body := p.do("POST", "/login", url.Values{"username": {"ada"}, "password": {password}}); status != http.StatusSeeOther {
					t.Fatalf("signing in: %d %s", status, body)
				}
				began := time.Now()
				resp := p.request(ctx, "GET", "/api/v1/nodes/events", nil, "Accept", "text/event-stream")
				if resp.StatusCode != http.StatusOK {
					t.Fatal(resp.Status)
				}
				beats, over := 0, make(chan time.Time, 1)
				all.Go(func() {
					defer func() { _ = resp.Body.Close() }() // it was read to its end
					for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
						if strings.Contains(lines.Text(), `"ping"`) {
							beats++
						}
					}
					over <- time.Now()
				})
				byItself := func() int {
					status, _ := p.do("GET", "/clusters", nil, "Accept", "text/html", "HX-Request", "true")
					return status
				}
				until := func(at time.Duration) { time.Sleep(at - time.Since(began)) }
				for at := tt.active; tt.active > 0 && at < tt.lasts; at += tt.active {
					until(at)
					if status, _ := p.do("GET", "/clusters", nil, "Accept", "text/html"); status != http.StatusOK {
						t.Fatalf("after %s: %d", at, status)
					}
				}
				// Looking at it every two seconds for all of half a day would only take long.
				until(max(tt.lasts-10*time.Minute, time.Since(began)))
				all.Go(func() {
					if err := a.auth.Run(ctx); err != nil {
						t.Error(err)
					}
				})
				for at := time.Since(began).Truncate(time.Second) + time.Minute; at < tt.lasts; at += time.Minute {
					until(at)
					if status := byItself(); status != http.StatusOK {
						t.Fatalf("after %s the page that asks by itself is told %d", at, status)
					}
				}
				until(tt.lasts - time.Second)
				if status := byItself(); status != http.StatusOK || len(over) != 0 {
					t.Errorf("a second before the end: %d, %d streams have ended", status, len(over))
				}
				until(tt.lasts)
				if status := byItself(); status == http.StatusOK {
					t.Error("the session is good at its end")
				}
				until(tt.lasts + look)
				synctest.Wait()
				select {
				case at := <-over:
					if late := at.Sub(began) - tt.lasts; late < 0 || late > look {
						t.Errorf("the stream ended %s after its session", late)
					}
				default:
					t.Errorf("the stream is open %s after the end of its session", look)
				}
				if want := int(tt.lasts / time.Minute); beats < want {
					t.Errorf("%d heartbeats in %s: the stream was not open all the time", beats, tt.lasts)
				}
			})
		})
	}
}
