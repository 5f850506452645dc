// Package oidc lets an identity provider vouch for people: the authorization code flow of OpenID Connect with PKCE,
// state and nonce. A person is the issuer and the subject, never a name or a mail address, which change hands.
//
// The provider may be down when the program starts, and at any time after: it is asked for its configuration when
// somebody first wants to sign in, and after a failure not again before a delay that grows.
package oidc

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	timeout     = 10 * time.Second // for one call to the provider
	pendingLife = 10 * time.Minute // for a person at the provider
	answerMost  = 1 << 20          // bytes of one answer of the provider
	firstDelay  = time.Second      // after a failure, doubling to
	lastDelay   = time.Minute
	clockSkew   = time.Minute // that the provider's clock may be behind ours
)

// Config says which provider, who we are to it, and what its groups may do.
type Config struct {
	Issuer       string
	ClientID     string
	ClientSecret string
	Scopes       []string // beside openid
	GroupsClaim  string   // of the ID token: a list of texts, or one text
	NameClaim    string   // of the ID token
	Roles        fleet.RoleMap
	CAs          *x509.CertPool // nil: those of the system
}

// Provider is one identity provider. Make it with New; it starts nothing.
type Provider struct {
	cfg    Config
	client *http.Client

	mu    sync.Mutex // guards what follows; nobody calls the provider under it
	found *oidc.Provider
	trip  *trip // the discovery that is under way; nil for none
	delay time.Duration
	not   time.Time // before which there is no further discovery
}

// trip is one discovery, for all who wait for it.
type trip struct {
	done  chan struct{} // closed when what follows is set
	found *oidc.Provider
	err   error
}

// New makes a Provider.
func New(cfg Config) *Provider {
	return &Provider{cfg: cfg, client: &http.Client{
		Timeout: timeout,
		Transport: bounded{&http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.CAs},
			TLSHandshakeTimeout: timeout, ResponseHeaderTimeout: timeout, IdleConnTimeout: time.Minute,
			MaxConnsPerHost: 8, MaxIdleConnsPerHost: 2, ForceAttemptHTTP2: true,
		}},
		// Whoever can make the provider redirect must not be sent our secret.
		CheckRedirect: func(*http.Request, []*http.Request) error { return errRedirect },
	}}
}

// Close gives idle connections back.
func (p *Provider) Close() { p.client.CloseIdleConnections() }

var (
	errRedirect = errors.New("the identity provider answered with a redirect")
	errTooLong  = errors.New("the identity provider answered with too much")
)

// bounded ends answers that are longer than any honest one.
type bounded struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.Transport.RoundTrip(r)
	if err == nil {
		resp.Body = &boundedBody{ReadCloser: resp.Body, left: answerMost}
	}
	return resp, err
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

// Read implements io.Reader.
func (b *boundedBody) Read(buf []byte) (int, error) {
	n, err := b.ReadCloser.Read(buf)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLong
	}
	return n, err
}

// pending is a sign-in that has begun. It is kept by the browser that began it.
type pending struct {
	State    string    `json:"s"`
	Nonce    string    `json:"n"`
	Verifier string    `json:"v"`
	Until    time.Time `json:"u"`
	Since    time.Time `json:"p,omitzero"` // the person has to prove who they are after it
}

func encodeKept(p pending) (string, error) {
	b, err := json.Marshal(p)
	return base64.RawURLEncoding.EncodeToString(b), err
}

func decodeKept(kept string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(kept) }

// Begin answers where the browser has to go, and what it has to bring back. Anew asks the provider to have the person
// prove who they are, whatever it knows of this browser.
func (p *Provider) Begin(ctx context.Context, redirect string, anew bool) (target, kept string, until time.Time, err error) {
	found, err := p.provider(ctx)
	if err != nil {
		return "", "", time.Time{}, err
	}
	now := pending{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Until: time.Now().Add(pendingLife)}
	options := []oauth2.AuthCodeOption{oidc.Nonce(now.Nonce), oauth2.S256ChallengeOption(now.Verifier)}
	if anew {
		now.Since = time.Now()
		// Both, for providers heed the one or the other; max_age also makes them say in auth_time when it was.
		options = append(options, oauth2.SetAuthURLParam("prompt", "login"), oauth2.SetAuthURLParam("max_age", "0"))
	}
	if kept, err = encodeKept(now); err != nil {
		return "", "", time.Time{}, fmt.Errorf("beginning a sign-in: %w", err)
	}
	target = p.oauth(found, redirect).AuthCodeURL(now.State, options...)
	return target, kept, now.Until, nil
}

func (p *Provider) oauth(found *oidc.Provider, redirect string) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.cfg.ClientID, ClientSecret: p.cfg.ClientSecret, Endpoint: found.Endpoint(), RedirectURL: redirect,
		Scopes: slices.Concat([]string{oidc.ScopeOpenID}, p.cfg.Scopes),
	}
}

// refused is the kind of every answer that proves nothing. The reason is for the log.
func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fleet.ErrUnauthenticated, fmt.Errorf(format, args...))
}

// Finish takes what the browser kept and what the provider sent it back with. ErrUnauthenticated for everything that
// proves nothing, StaleSignInError if the person was to prove anew who they are and the provider does not say that they
// did, ErrUnavailable if it cannot be asked. A role that nothing maps to is "".
func (p *Provider) Finish(ctx context.Context, redirect, kept string, answer url.Values) (fleet.Vouched, error) {
	var was pending
	b, err := decodeKept(kept)
	if err == nil {
		err = json.Unmarshal(b, &was)
	}
	if err != nil || was.State == "" || was.Nonce == "" || was.Verifier == "" {
		return fleet.Vouched{}, refused("this browser began no sign-in")
	}
	if !time.Now().Before(was.Until) {
		return fleet.Vouched{}, refused("it took too long")
	}
	if subtle.ConstantTimeCompare([]byte(was.State), []byte(answer.Get("state"))) != 1 {
		return fleet.Vouched{}, refused("the state is not the one that this browser began with")
	}
	if iss := answer.Get("iss"); iss != "" && iss != p.cfg.Issuer { // RFC 9207
		return fleet.Vouched{}, refused("the answer is of another issuer")
	}
	if answer.Has("error") || answer.Get("code") == "" {
		return fleet.Vouched{}, refused("the provider refused")
	}
	found, err := p.provider(ctx)
	if err != nil {
		return fleet.Vouched{}, err
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, p.client), timeout)
	defer cancel()
	tokens, err := p.oauth(found, redirect).Exchange(ctx, answer.Get("code"), oauth2.VerifierOption(was.Verifier))
	if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok && e.Response.StatusCode < http.StatusInternalServerError {
		return fleet.Vouched{}, refused("the provider does not take the code: status %d", e.Response.StatusCode) // its body is not ours to show
	}
	if err != nil {
		return fleet.Vouched{}, fmt.Errorf("exchanging a code: %w: %w", fleet.ErrUnavailable, err)
	}
	raw, ok := tokens.Extra("id_token").(string)
	if !ok {
		return fleet.Vouched{}, refused("there is no ID token")
	}
	// Issuer, audience, expiry and signature, with the asymmetric algorithms alone; nothing that says "none".
	token, err := found.VerifierContext(oidc.ClientContext(context.WithoutCancel(ctx), p.client), &oidc.Config{
		ClientID: p.cfg.ClientID,
		SupportedSigningAlgs: []string{
			oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA,
		},
	}).Verify(ctx, raw)
	if err != nil {
		return fleet.Vouched{}, refused("the ID token is not good: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(was.Nonce), []byte(token.Nonce)) != 1 {
		return fleet.Vouched{}, refused("the nonce is not the one that this browser began with")
	}
	v, err := p.vouched(token)
	if err == nil && !was.Since.IsZero() && v.SignedIn.Before(was.Since.Add(-clockSkew)) {
		// Prompt and max_age are wishes of a browser that anybody may have in hand: what counts is what came of them.
		return fleet.Vouched{}, fmt.Errorf("the claim auth_time is missing or too old: %w", &fleet.StaleSignInError{})
	}
	return v, err
}

// vouched reads what the token says of its person.
func (p *Provider) vouched(token *oidc.IDToken) (fleet.Vouched, error) {
	var claims map[string]json.RawMessage
	if err := token.Claims(&claims); err != nil {
		return fleet.Vouched{}, refused("the claims cannot be read: %w", err)
	}
	var azp, name string
	if raw, ok := claims["azp"]; ok {
		if err := json.Unmarshal(raw, &azp); err != nil || azp != p.cfg.ClientID {
			return fleet.Vouched{}, refused("the token was made for somebody else")
		}
	} else if len(token.Audience) > 1 {
		return fleet.Vouched{}, refused("the token was made for several and does not say by whom it was asked for")
	}
	if token.Subject == "" {
		return fleet.Vouched{}, refused("the token has no subject")
	}
	if raw, ok := claims[p.cfg.NameClaim]; ok {
		if err := json.Unmarshal(raw, &name); err != nil {
			return fleet.Vouched{}, refused("the claim %s is no text", p.cfg.NameClaim)
		}
	}
	groups, err := texts(claims[p.cfg.GroupsClaim])
	if err != nil {
		return fleet.Vouched{}, refused("the claim %s is no list of texts", p.cfg.GroupsClaim)
	}
	var proven float64 // seconds since 1970; a JSON number, which some providers give a fraction
	if raw, ok := claims["auth_time"]; ok {
		if err := json.Unmarshal(raw, &proven); err != nil || proven < 0 || proven > latestTime {
			return fleet.Vouched{}, refused("the claim auth_time is no time")
		}
	}
	id := fleet.Identity{Kind: fleet.PersonOIDC, Issuer: p.cfg.Issuer, Subject: token.Subject}
	v := p.cfg.Roles.Vouch(id, name, groups)
	if proven > 0 {
		v.SignedIn = time.Unix(int64(proven), 0).UTC()
		if now := time.Now().UTC(); v.SignedIn.After(now) { // by a clock before ours
			v.SignedIn = now
		}
	}
	return v, nil
}

// latestTime is the end of the year 9999 in seconds since 1970: no clock says more.
const latestTime = 253402300799

func texts(raw json.RawMessage) ([]string, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}, nil
	}
	var list []string
	err := json.Unmarshal(raw, &list)
	return list, err
}

// provider is what the provider says of itself, asked for once. Of many who need it one asks, and all wait for that.
func (p *Provider) provider(ctx context.Context) (*oidc.Provider, error) {
	p.mu.Lock()
	if p.found != nil {
		defer p.mu.Unlock()
		return p.found, nil
	}
	if wait := time.Until(p.not); wait > 0 {
		p.mu.Unlock()
		return nil, &fleet.LaterError{What: "the identity provider does not answer", Retry: wait}
	}
	t, mine := p.trip, false
	if t == nil {
		t, mine = &trip{done: make(chan struct{})}, true
		p.trip = t
	}
	p.mu.Unlock()
	if mine {
		p.discover(ctx, t)
	}
	select {
	case <-t.done:
		return t.found, t.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// discover makes the trip. It goes on when whoever asked first goes away, as others wait for it; the client ends it.
func (p *Provider) discover(ctx context.Context, t *trip) {
	ctx = oidc.ClientContext(context.WithoutCancel(ctx), p.client)
	found, err := oidc.NewProvider(ctx, p.cfg.Issuer)
	p.mu.Lock()
	defer p.mu.Unlock()
	defer close(t.done)
	p.trip = nil
	if err != nil {
		p.delay = min(max(2*p.delay, firstDelay), lastDelay)
		p.not = time.Now().Add(p.delay)
		t.err = fmt.Errorf("asking the identity provider: %w: %w", fleet.ErrUnavailable, err)
		return
	}
	p.found, t.found, p.delay = found, found, 0
}
