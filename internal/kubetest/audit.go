package kubetest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Audit reads an API server's audit log. The log holds each answered request
// once, except those of the control plane itself and of the seeder; a watch is
// in it once it is accepted. Bodies are there for everything but reads, events,
// leases and secrets.
//
// The server writes a request down before it ends the answer, so what a client
// has seen answered can be read without waiting.
type Audit struct {
	t    testing.TB
	path string
}

// Mark is a point in the log.
type Mark int64

// AuditEvent is one request and the answer to it.
type AuditEvent struct {
	ID          string
	Verb        string // get, list, watch, create, update, patch, delete, deletecollection
	Path        string // with query
	User        string
	Groups      []string
	UserAgent   string
	As          string   // the impersonated user, empty without impersonation
	AsGroups    []string // with impersonation
	APIGroup    string
	Resource    string // "pods"; empty for paths that are no resource, as /version
	Subresource string // "eviction", "status"
	Namespace   string
	Name        string
	Code        int
	Message     string // of a refusal
	Time        time.Time
	Request     json.RawMessage // body, absent for reads
	Response    json.RawMessage // body, absent for reads
}

// DryRun reports whether the request asked for nothing to be done.
func (e *AuditEvent) DryRun() bool {
	if u, err := url.Parse(e.Path); err == nil && u.Query().Has("dryRun") {
		return true
	}
	var body struct {
		DryRun        []string
		DeleteOptions struct{ DryRun []string }
	}
	_ = json.Unmarshal(e.Request, &body) // a patch may be a list, and has its dry run in the query
	return len(body.DryRun)+len(body.DeleteOptions.DryRun) > 0
}

// Filter picks events.
type Filter func(*AuditEvent) bool

// ByUser picks what a user did, impersonated or not.
func ByUser(name string) Filter {
	return func(e *AuditEvent) bool { return e.As == name || e.As == "" && e.User == name }
}

// ByAgent picks requests by the start of their user agent.
func ByAgent(prefix string) Filter {
	return func(e *AuditEvent) bool { return strings.HasPrefix(e.UserAgent, prefix) }
}

// NotByTests leaves out what this package's helpers did.
func NotByTests(e *AuditEvent) bool { return !strings.HasPrefix(e.UserAgent, userAgent) }

// Verb picks requests by verb.
func Verb(verbs ...string) Filter {
	return func(e *AuditEvent) bool { return slices.Contains(verbs, e.Verb) }
}

// On picks requests by resource: "nodes" is the nodes and all their
// subresources, "pods/eviction" just that subresource.
func On(resource string) Filter {
	resource, sub, one := strings.Cut(resource, "/")
	return func(e *AuditEvent) bool { return e.Resource == resource && (!one || e.Subresource == sub) }
}

// Named picks requests by the object's name.
func Named(name string) Filter { return func(e *AuditEvent) bool { return e.Name == name } }

// In picks requests by namespace.
func In(namespace string) Filter {
	return func(e *AuditEvent) bool { return e.Namespace == namespace }
}

// Mark returns the log's present end.
func (a *Audit) Mark() Mark {
	a.t.Helper()
	mark, err := a.end()
	if err != nil {
		a.t.Fatalf("kubetest: reading audit log: %v", err)
	}
	return mark
}

// Since returns the events after mark that pass all filters.
func (a *Audit) Since(mark Mark, filters ...Filter) []AuditEvent {
	a.t.Helper()
	events, err := a.read(mark, filters)
	if err != nil {
		a.t.Fatalf("kubetest: reading audit log: %v", err)
	}
	return events
}

// Writes returns the requests after mark that could have changed the resource
// or, as in "nodes", one of its subresources.
func (a *Audit) Writes(mark Mark, resource string, filters ...Filter) []AuditEvent {
	a.t.Helper()
	return a.Since(mark, append(filters, On(resource), Verb("create", "update", "patch", "delete", "deletecollection"))...)
}

// Reads returns the gets, lists and watches after mark.
func (a *Audit) Reads(mark Mark, resource string, filters ...Filter) []AuditEvent {
	a.t.Helper()
	return a.Since(mark, append(filters, On(resource), Verb("get", "list", "watch"))...)
}

// end is the offset after the last whole line.
func (a *Audit) end() (Mark, error) {
	f, err := os.Open(a.path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // it was only read
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	for end > 0 {
		start := max(0, end-int64(len(buf)))
		n, err := f.ReadAt(buf[:end-start], start)
		if err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return Mark(start + int64(i) + 1), nil
		}
		end = start
	}
	return 0, nil
}

func (a *Audit) read(mark Mark, filters []Filter) ([]AuditEvent, error) {
	f, err := os.Open(a.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	if _, err := f.Seek(int64(mark), io.SeekStart); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	// A last line without its end belongs to a request that is still being
	// answered.
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	var events []AuditEvent
	for line := range bytes.Lines(data) {
		e, err := parseEvent(line)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(filters, func(f Filter) bool { return !f(&e) }) {
			events = append(events, e)
		}
	}
	return events, nil
}

func parseEvent(line []byte) (AuditEvent, error) {
	type user struct {
		Username string
		Groups   []string
	}
	var raw struct {
		AuditID          string
		RequestURI       string
		Verb             string
		User             user
		ImpersonatedUser user
		UserAgent        string
		ObjectRef        struct{ APIGroup, Resource, Subresource, Namespace, Name string }
		ResponseStatus   struct {
			Code    int
			Message string
		}
		RequestObject            json.RawMessage
		ResponseObject           json.RawMessage
		RequestReceivedTimestamp time.Time
	}
	if err := json.Unmarshal(line, &raw); err != nil {
		return AuditEvent{}, err
	}
	e := AuditEvent{
		ID: raw.AuditID, Verb: raw.Verb, Path: raw.RequestURI, Time: raw.RequestReceivedTimestamp,
		User: raw.User.Username, Groups: raw.User.Groups, UserAgent: raw.UserAgent,
		As: raw.ImpersonatedUser.Username, AsGroups: raw.ImpersonatedUser.Groups,
		APIGroup: raw.ObjectRef.APIGroup, Resource: raw.ObjectRef.Resource, Subresource: raw.ObjectRef.Subresource,
		Namespace: raw.ObjectRef.Namespace, Name: raw.ObjectRef.Name,
		Code: raw.ResponseStatus.Code, Message: raw.ResponseStatus.Message,
		Request: raw.RequestObject, Response: raw.ResponseObject,
	}
	if e.Name == "" && e.Verb == "create" { // the name of what is made is in the body only
		var meta struct{ Metadata struct{ Name string } }
		_ = json.Unmarshal(raw.ResponseObject, &meta) // a refusal has none
		if meta.Metadata.Name == "" {
			_ = json.Unmarshal(raw.RequestObject, &meta)
		}
		e.Name = meta.Metadata.Name
	}
	return e, nil
}
