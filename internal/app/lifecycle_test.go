package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func marshalKey(c tls.Certificate) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(c.PrivateKey) }

func TestEnds_LastFirst(t *testing.T) {
	t.Parallel()
	var e ends
	var got []string
	boom := errors.New("boom")
	for _, name := range []string{"database", "listener", "streams"} {
		e.push(name, func(context.Context) error {
			got = append(got, name)
			if name != "database" {
				return boom
			}
			return nil
		})
	}
	err := e.run(t.Context())
	if diff := cmp.Diff([]string{"streams", "listener", "database"}, got); diff != "" {
		t.Error(diff)
	}
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), "streams: boom") || !strings.Contains(err.Error(), "listener: boom") {
		t.Errorf("err = %v", err)
	}
	if err := e.run(t.Context()); err != nil || len(got) != 3 {
		t.Errorf("a second run did something: %v %v", err, got)
	}
}

func TestGroup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, e := newGroup(t.Context()), &ends{}
		g.start(e, "steady", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		g.start(e, "early", func(context.Context) error { return nil })
		if err := <-g.failed; !errors.Is(err, errEnded) || !strings.Contains(err.Error(), "early") {
			t.Errorf("failed = %v", err)
		}
		if err := e.run(t.Context()); err != nil {
			t.Errorf("err = %v", err)
		}
	})
}

// The end of the program's context alone ends nothing: the order is the stack's.
func TestGroup_OutlivesTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g, e := newGroup(ctx), &ends{}
		ended := false
		g.start(e, "steady", func(ctx context.Context) error { <-ctx.Done(); ended = true; return ctx.Err() })
		cancel()
		synctest.Wait()
		if ended {
			t.Error("it ended with the context")
		}
		if err := e.run(t.Context()); err != nil || !ended {
			t.Errorf("err = %v, ended %t", err, ended)
		}
	})
}

// Something that does not end is named, and does not hold the end for ever.
func TestGroup_Stuck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, e := newGroup(t.Context()), &ends{}
		release := make(chan struct{})
		e.push("database", func(context.Context) error { close(release); return nil })
		g.start(e, "stuck", func(context.Context) error { <-release; return nil })
		bound, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		began := time.Now()
		err := e.run(bound)
		if err == nil || !strings.Contains(err.Error(), "stopping stuck: still running") || time.Since(began) != 20*time.Second {
			t.Errorf("err = %v after %s", err, time.Since(began))
		}
	})
}
