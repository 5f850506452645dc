package e2e

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// What other tools got wrong and no other test here is about. docs/security.md lists all of them.

// TestPeers_TokenInTheAddress: a token is good in its header and nowhere else, so that no log of any proxy has it, and
// neither has ours.
func TestPeers_TokenInTheAddress(t *testing.T) {
	t.Parallel()
	s := startServerWith(t)
	ada := s.client(t, "ada", "operator")
	var made struct{ Token string }
	ada.json(http.StatusCreated, &made, "POST", "/api/v1/tokens", object(t, "name", "ci"))
	s.used("the token in an address", made.Token)
	nobody := &client{t: t, base: s.url}
	for _, path := range []string{"/api/v1/nodes", "/api/v1/nodes/events", "/nodes/stream", "/api/v1/audit"} {
		for _, name := range []string{"token", "access_token", "jwt", "authorization", "session", "knm"} {
			nobody.json(http.StatusUnauthorized, nil, "GET", path+"?"+url.Values{name: {made.Token}}.Encode(), "")
			nobody.json(http.StatusUnauthorized, nil, "GET", path+"?"+url.Values{name: {ada.cookie.Value}}.Encode(), "")
		}
	}
	(&client{t: t, base: s.url, bearer: made.Token}).json(http.StatusOK, nil, "GET", "/api/v1/nodes", "")
}

// TestPeers_NoOtherOrigin: no answer gives another origin leave to read it, streams neither, whatever it asks for.
func TestPeers_NoOtherOrigin(t *testing.T) {
	t.Parallel()
	s := startServerWith(t)
	ada := s.client(t, "ada", "admin")
	for _, method := range []string{"GET", "OPTIONS", "POST"} {
		for _, path := range []string{"/api/v1/nodes", "/api/v1/nodes/events", "/nodes/stream", "/clusters/stream", "/healthz", "/nope"} {
			for _, origin := range []string{"https://evil.example", "null", s.url + ".evil.example"} {
				resp := ada.send(method, path, "", "", "Origin", origin, "Access-Control-Request-Method", "POST", "Accept", "application/json", "Sec-Fetch-Site", "cross-site", "Connection", "close")
				_, _ = io.CopyN(io.Discard, resp.Body, 1) // a stream has no end
				resp.Body.Close()
				for name := range resp.Header {
					if strings.HasPrefix(name, "Access-Control-") {
						t.Errorf("%s %s for %s: %s: %s", method, path, origin, name, resp.Header.Get(name))
					}
				}
				if method == "POST" && resp.StatusCode < 400 {
					t.Errorf("%s %s for %s: %s", method, path, origin, resp.Status)
				}
			}
		}
	}
}
