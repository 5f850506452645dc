package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// sessionStore is the part of the store that sessions need.
type sessionStore interface {
	AddSession(ctx context.Context, n fleet.NewSession, undo []fleet.AttemptKey, rec fleet.Entry) error
	Session(ctx context.Context, hash string, now time.Time) (fleet.Credential, error)
	TouchSession(ctx context.Context, hash, data string, seen, idle time.Time) (bool, error)
	EndSession(ctx context.Context, hash, owner, why string, at time.Time, rec fleet.Entry) (userID string, err error)
	Sessions(ctx context.Context, userID string, now time.Time) ([]fleet.Session, error)
	Credentials(ctx context.Context, now time.Time) ([]fleet.CredentialKey, error)
	WhyEnded(ctx context.Context, hash string) (string, error)
	DropExpired(ctx context.Context, now, quiet time.Time) error
}

// call is what one use of the session manager is about: the manager hands the store a token and bytes, and the store
// has to know more than that.
type call struct {
	issue *issue           // a sign-in: the only thing that may insert a row
	found fleet.Credential // what Find found
	ok    bool             // whether the last step met a session that is good
	rec   fleet.Entry      // of the end of a session
}

type issue struct {
	session fleet.NewSession // without what the manager decides: hash, data, idle deadline
	proven  time.Time        // when the person proved who they are
	undo    []fleet.AttemptKey
	knows   string // the name that the browser is to be known for; "" for none
	shown   string // what it showed to be known by until now
	rec     fleet.Entry
}

type callKey struct{}

func withCall(ctx context.Context, c *call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// managerStore is what the session manager reads and writes. Tokens arrive here hashed.
type managerStore struct{ store sessionStore }

var (
	_ scs.CtxStore = managerStore{}

	errNoCall = errors.New("the session manager was used without a call")
)

func callOf(ctx context.Context) (*call, error) {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return nil, errNoCall
	}
	return c, nil
}

// FindCtx finds a session that is good now, read with its person.
func (m managerStore) FindCtx(ctx context.Context, hash string) ([]byte, bool, error) {
	c, err := callOf(ctx)
	if err != nil {
		return nil, false, err
	}
	found, err := m.store.Session(ctx, hash, time.Now())
	if errors.Is(err, fleet.ErrUnauthenticated) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	c.found, c.ok = found, true
	return []byte(found.Data), true, nil
}

// CommitCtx inserts for a sign-in and otherwise updates what is still good. The manager marks every session that it
// loads as modified; an upsert here would bring back what was ended since.
func (m managerStore) CommitCtx(ctx context.Context, hash string, data []byte, idle time.Time) error {
	c, err := callOf(ctx)
	if err != nil {
		return err
	}
	if c.issue != nil {
		n := c.issue.session
		n.Hash, n.Data, n.IdleAt = hash, string(data), idle
		return m.store.AddSession(ctx, n, c.issue.undo, c.issue.rec)
	}
	c.ok, err = m.store.TouchSession(ctx, hash, string(data), time.Now(), idle)
	return err
}

// DeleteCtx ends a session. What has ended already is no error to the manager.
func (m managerStore) DeleteCtx(ctx context.Context, hash string) error {
	c, err := callOf(ctx)
	if err != nil {
		return err
	}
	_, err = m.store.EndSession(ctx, hash, "", ReasonLogout, time.Now(), c.rec)
	if errors.Is(err, fleet.ErrNotFound) {
		c.ok = false
		return nil
	}
	return err
}

// Find, Commit and Delete belong to the interface; the manager prefers the methods with a context, which alone know
// what the call is about.
func (managerStore) Find(string) ([]byte, bool, error) { return nil, false, errNoCall }

// Commit is never called.
func (managerStore) Commit(string, []byte, time.Time) error { return errNoCall }

// Delete is never called.
func (managerStore) Delete(string) error { return errNoCall }

// codec writes a session as JSON and keeps only strings and integers: what is read back is what was put in, and no
// session can make the program build a type of its choice.
type codec struct{}

type encoded struct {
	Deadline int64          `json:"deadline"` // microseconds since 1970
	Values   map[string]any `json:"values"`
}

// Encode implements scs.Codec.
func (codec) Encode(deadline time.Time, values map[string]any) ([]byte, error) {
	for k, v := range values {
		switch v.(type) {
		case string, int, int64:
		default:
			return nil, fmt.Errorf("session value %q is a %T: only strings and integers are kept", k, v)
		}
	}
	return json.Marshal(encoded{Deadline: deadline.UnixMicro(), Values: values})
}

// Decode implements scs.Codec. Every integer comes back as an int64.
func (codec) Decode(b []byte) (time.Time, map[string]any, error) {
	var e encoded
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&e); err != nil {
		return time.Time{}, nil, fmt.Errorf("reading a session: %w", err)
	}
	values := make(map[string]any, len(e.Values))
	for k, v := range e.Values {
		switch v := v.(type) {
		case string:
			values[k] = v
		case json.Number:
			n, err := v.Int64()
			if err != nil {
				return time.Time{}, nil, fmt.Errorf("reading session value %q: %w", k, err)
			}
			values[k] = n
		default:
			return time.Time{}, nil, fmt.Errorf("session value %q is a %T", k, v)
		}
	}
	return time.UnixMicro(e.Deadline).UTC(), values, nil
}
