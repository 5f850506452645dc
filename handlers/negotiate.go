package handlers

import (
	"net/http"
	"strings"
)

// form is the shape of an answer.
type form int

const (
	asJSON form = iota
	asPage
	asFragment
)

// accepts tells whether the Accept header names the media type itself, not by a wildcard.
func accepts(r *http.Request, media string) bool {
	for _, line := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(line, ",") {
			name, params, _ := strings.Cut(part, ";")
			if strings.EqualFold(strings.TrimSpace(name), media) && !refused(params) {
				return true
			}
		}
	}
	return false
}

// refused tells whether the parameters of a media range hold q=0.
func refused(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(k, "q") && strings.Trim(v, "0.") == "" {
			return true
		}
	}
	return false
}

// htmx tells whether a part of a page asks, rather than the browser for a whole one.
func htmx(r *http.Request) bool {
	return r.Header.Get("HX-Request") == "true" && r.Header.Get("HX-Request-Type") != "full"
}

// wantsHTML tells whether a browser asks, with or without htmx: programs name JSON or nothing.
func wantsHTML(r *http.Request) bool { return htmx(r) || accepts(r, "text/html") }

// errorForm is how an error is told to whoever asks. htmx gets a fragment, a browser a page, a program JSON; who names
// nothing gets what the address usually answers with.
func errorForm(r *http.Request, rt route) form {
	switch {
	case htmx(r):
		return asFragment
	case accepts(r, "application/json"), accepts(r, "application/problem+json"), accepts(r, "application/x-ndjson"):
		return asJSON
	case accepts(r, "text/html"):
		return asPage
	case strings.HasPrefix(r.URL.Path, "/api/"), accepts(r, "text/event-stream"), rt.kind == probe:
		return asJSON
	}
	return asPage
}
