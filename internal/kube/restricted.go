package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"

	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Access is the way to a cluster that came in through the web: only what is written here, nothing that names a file, a
// program or a proxy.
type Access struct {
	Server      string // URL, https
	ServerName  string // whose certificate is expected; "" for the host of Server
	Authority   []byte // PEM
	Token       fleet.Secret
	Certificate []byte // PEM, with Key
	Key         fleet.Secret
}

// Restricted makes the clients of a cluster that came in through the web. Its connections go where the addresses let
// them, never through a proxy of the environment, and what a server says that is no API server is repeated to nobody. It
// connects to nothing.
func Restricted(name string, a Access, to Addresses, opts ...Option) (Cluster, error) {
	u, err := url.Parse(a.Server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || len(a.Authority) == 0 {
		return Cluster{}, fleet.Invalid("server", "must be an https address with an authority")
	}
	return New(name, &rest.Config{
		Host:        a.Server,
		BearerToken: a.Token.Reveal(),
		TLSClientConfig: rest.TLSClientConfig{
			ServerName: a.ServerName, CAData: a.Authority, CertData: a.Certificate, KeyData: []byte(a.Key.Reveal()),
		},
		Proxy:         func(*http.Request) (*url.URL, error) { return nil, nil }, //nolint:nilnil // net/http: no proxy
		Dial:          to.dial,
		WrapTransport: func(rt http.RoundTripper) http.RoundTripper { return &discreet{rt} },
	}, opts...)
}

// discreet keeps what a server that is no API server answers from becoming part of an error: client-go quotes it, and
// whoever may add a cluster could read pages of the inner network that way. A Status is what API servers answer, and
// passes.
type discreet struct{ http.RoundTripper }

// maxStatus is more than a Status needs, and as much as is looked at.
const maxStatus = 64 << 10

func (d *discreet) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := d.RoundTripper.RoundTrip(r)
	if err != nil || resp.StatusCode < http.StatusBadRequest {
		return resp, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus+1))
	closeBody(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	if len(body) > maxStatus || !isStatus(resp.Header.Get("Content-Type"), body) {
		body = plainStatus(resp.StatusCode)
		resp.Header.Set("Content-Type", "application/json")
	}
	resp.Header.Del("Warning")
	resp.Header.Del("Content-Encoding")
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	resp.ContentLength, resp.Uncompressed, resp.TransferEncoding = int64(len(body)), false, nil
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// WrappedRoundTripper lets client-go find the transport below.
func (d *discreet) WrappedRoundTripper() http.RoundTripper { return d.RoundTripper }

// isStatus tells whether a body is a Status of an API server, in either of its encodings.
func isStatus(contentType string, body []byte) bool {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false
	}
	switch media {
	case "application/json":
		var s struct {
			Kind       string `json:"kind"`
			APIVersion string `json:"apiVersion"`
		}
		return json.Unmarshal(body, &s) == nil && s.Kind == "Status" && s.APIVersion == "v1"
	case "application/vnd.kubernetes.protobuf":
		return bytes.HasPrefix(body, []byte("k8s\x00"))
	}
	return false
}

func plainStatus(code int) []byte {
	reason := map[int]string{
		http.StatusUnauthorized: "Unauthorized", http.StatusForbidden: "Forbidden", http.StatusNotFound: "NotFound",
		http.StatusTooManyRequests: "TooManyRequests", http.StatusServiceUnavailable: "ServiceUnavailable",
	}[code]
	body, err := json.Marshal(map[string]any{
		"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code,
		"message": fmt.Sprintf("the server answered %d, and not as an API server does", code),
	})
	if err != nil {
		return []byte(`{"kind":"Status","apiVersion":"v1","status":"Failure"}`) // texts and a number cannot fail
	}
	return body
}
