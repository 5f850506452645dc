package handlers

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// input is the body of a request, form or JSON alike: names with one or more texts. Each field is taken by name; what
// is left over at the end is an error, so that a misspelt field is never silently the default. The first problem is kept.
type input struct {
	values map[string][]string
	taken  map[string]bool
	err    error

	listed bool // there is a list of grants, of
	grants int  // so many
}

// readInput reads the whole body. A route that wants none is content with none.
func readInput(r *http.Request) (*input, error) {
	in := &input{values: map[string][]string{}, taken: map[string]bool{}}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, tooLarge(e.Limit)
		}
		return nil, say(fleet.ErrInvalid, "error.body_read", "the body of the request did not arrive in full")
	}
	if len(body) == 0 {
		return in, nil
	}
	media, err := mediaOf(r)
	switch {
	case err != nil:
	case media == mediaJSON:
		err = in.json(body)
	default:
		err = in.form(string(body))
	}
	if err != nil {
		return nil, err
	}
	if err := textOnly(in.values); err != nil {
		return nil, err
	}
	return in, nil
}

// The forms in which a body can come.
const (
	mediaForm = "application/x-www-form-urlencoded"
	mediaJSON = "application/json"
)

// mediaOf is the form in which the body comes, ErrUnsupported for any other.
func mediaOf(r *http.Request) (string, error) {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != mediaForm && media != mediaJSON || len(r.Header.Values("Content-Type")) > 1 {
		return "", say(fleet.ErrUnsupported, "error.media", "send application/x-www-form-urlencoded or application/json")
	}
	return media, nil
}

// maxValues is how many values a body may have: a batch may name 5,000 nodes, each as a field of its own.
const maxValues = 10_000

func tooManyValues() error {
	return say(fleet.ErrInvalid, "error.values", "the request may have at most {{.Part}} values", "Part", strconv.Itoa(maxValues))
}

func (in *input) form(body string) error {
	if strings.Count(body, "&") >= maxValues {
		return tooManyValues()
	}
	v, err := url.ParseQuery(body)
	if err != nil {
		return say(fleet.ErrInvalid, "error.form", "the body is not a well-formed form")
	}
	in.values = v
	return nil
}

// json accepts one flat object, in which value and values may be objects: {"value":{"a":"b"}} is value.a. Numbers and
// booleans become their text; a list is several texts; null is absent. A name that is there twice is refused: of two
// readers, one would take the first and one the last.
func (in *input) json(body []byte) error {
	j := jsonInput{in: in, dec: json.NewDecoder(bytes.NewReader(body))}
	j.dec.UseNumber()
	if start, err := j.dec.Token(); err != nil || start != json.Delim('{') {
		return notJSON()
	}
	if err := j.object("", map[string]bool{}); err != nil {
		return err
	}
	if _, err := j.dec.Token(); !errors.Is(err, io.EOF) {
		return notJSON()
	}
	return nil
}

func notJSON() error { return say(fleet.ErrInvalid, "error.json", "the body is not a JSON object") }

// jsonInput reads an object token by token, so that what is too deep or too much is refused where it begins.
type jsonInput struct {
	in   *input
	dec  *json.Decoder
	read int // values so far
}

// object reads what follows an opening brace; the names of its fields begin with the prefix. Seen are all names.
func (j *jsonInput) object(prefix string, seen map[string]bool) error {
	for j.dec.More() {
		key, err := j.dec.Token()
		if err != nil {
			return notJSON()
		}
		text, ok := key.(string)
		if !ok {
			return notJSON()
		}
		name := prefix + text
		if seen[name] {
			return fleet.Invalid(name, "is given more than once")
		}
		seen[name] = true
		v, err := j.dec.Token()
		switch {
		case err != nil:
			return notJSON()
		case v == json.Delim('{') && prefix == "" && (text == "value" || text == "values"):
			err = j.object(name+".", seen)
		case v == json.Delim('[') && name == "grants":
			err = j.grants(seen)
		case v == json.Delim('['):
			j.in.values[name] = nil // an empty list is there, and says nothing
			if j.read++; j.read > maxValues {
				return tooManyValues()
			}
			err = j.list(name)
		default:
			err = j.add(name, v)
		}
		if err != nil {
			return err
		}
	}
	if _, err := j.dec.Token(); err != nil {
		return notJSON()
	}
	return nil
}

// grants reads what follows the bracket of the one list of objects that there is: [{"scope":"a"}] is grants[0].scope.
func (j *jsonInput) grants(seen map[string]bool) error {
	j.in.listed = true
	for ; j.dec.More(); j.in.grants++ {
		v, err := j.dec.Token()
		switch {
		case err != nil:
			return notJSON()
		case v != json.Delim('{'):
			return notGrants()
		}
		if j.read++; j.read > maxValues {
			return tooManyValues()
		}
		if err := j.object("grants["+strconv.Itoa(j.in.grants)+"].", seen); err != nil {
			return err
		}
	}
	if _, err := j.dec.Token(); err != nil {
		return notJSON()
	}
	return nil
}

func notGrants() error {
	return fleet.Invalid("grants", "must be a list of objects with scope, role and also")
}

func (j *jsonInput) list(name string) error {
	for j.dec.More() {
		v, err := j.dec.Token()
		if err != nil {
			return notJSON()
		}
		if err := j.add(name, v); err != nil {
			return err
		}
	}
	if _, err := j.dec.Token(); err != nil {
		return notJSON()
	}
	return nil
}

// add takes one value.
func (j *jsonInput) add(name string, v json.Token) error {
	if j.read++; j.read > maxValues {
		return tooManyValues()
	}
	switch v := v.(type) {
	case nil:
	case string:
		j.in.values[name] = append(j.in.values[name], v)
	case json.Number:
		j.in.values[name] = append(j.in.values[name], v.String())
	case bool:
		j.in.values[name] = append(j.in.values[name], strconv.FormatBool(v))
	default:
		return fleet.Invalid(name, "must be a text, a number, true, false or a list of texts")
	}
	return nil
}

// fail keeps the first problem.
func (in *input) fail(err error) {
	if in.err == nil {
		in.err = err
	}
}

// text is the one value of a field, "" if it is absent.
func (in *input) text(name string) string {
	in.taken[name] = true
	v := in.values[name]
	switch len(v) {
	case 0:
		return ""
	case 1:
		return v[0]
	}
	in.fail(fleet.Invalid(name, "is given more than once"))
	return ""
}

// has tells whether the field is there, even empty.
func (in *input) has(name string) bool { return len(in.values[name]) > 0 }

// lines are the non-empty lines of all values of a field, without the blanks around them.
func (in *input) lines(name string) []string {
	in.taken[name] = true
	var out []string
	for _, v := range in.values[name] {
		for line := range strings.Lines(v) {
			if line = strings.TrimSpace(line); line != "" {
				out = append(out, line)
			}
		}
	}
	return out
}

// number is a whole number that is at least 0; absent and empty are 0.
func (in *input) number(name string) int {
	v := strings.TrimSpace(in.text(name))
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		in.fail(fleet.Invalid(name, "%q is not a whole number of at least 0", v))
		return 0
	}
	return n
}

// duration is written as 90s or 1m30s, or as a number of seconds; absent and empty are 0.
func (in *input) duration(name string) time.Duration {
	v := strings.TrimSpace(in.text(name))
	if v == "" {
		return 0
	}
	if n, err := strconv.Atoi(v); err == nil && n >= 0 && n <= int(maxDuration/time.Second) {
		return time.Duration(n) * time.Second
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 || d > maxDuration {
		in.fail(fleet.Invalid(name, "%q is not a duration like 30s or 5m", v))
		return 0
	}
	return d
}

// maxDuration is far beyond every pause and wait that a field can mean.
const maxDuration = 7 * 24 * time.Hour

// flag is true, false or absent; a checkbox sends on.
func (in *input) flag(name string) bool {
	// The same box may stand twice in a form, beside the others and next to what it is about.
	in.values[name] = slices.Compact(in.values[name])
	switch v := in.text(name); v {
	case "true", "on", "1":
		return true
	case "", "false", "off", "0":
	default:
		in.fail(fleet.Invalid(name, "%q is neither true nor false", v))
	}
	return false
}

// done returns the first problem; a field that nobody took is one.
func (in *input) done() error {
	if in.err != nil {
		return in.err
	}
	var unknown []string
	if in.listed && !in.taken["grants"] {
		unknown = append(unknown, "grants")
	}
	for name := range in.values {
		if !in.taken[name] {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	return &fleet.FieldError{Field: unknown[0], Message: "is not a field of this request", Key: "error.field_unknown"}
}

// moment reads a time of a query: RFC 3339, or a day, which begins in UTC.
func moment(field, v string) (time.Time, error) {
	if v == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.Parse(layout, v); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fleet.Invalid(field, "%q is neither a day like 2006-01-02 nor a time like 2006-01-02T15:04:05Z", v)
}

// onlyParams refuses parameters of the query that the page does not know.
func onlyParams(q url.Values, known ...string) error {
	for _, name := range slices.Sorted(maps.Keys(q)) {
		if !slices.Contains(known, name) && name != "lang" && name != "theme" {
			return &fleet.FieldError{Field: name, Message: "is not a parameter of this address", Key: "error.param_unknown"}
		}
	}
	return nil
}

// sequence is a number of the record; absent is 0.
func sequence(field, raw string) (int64, error) {
	if raw == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(raw, 10, 64)
	if err != nil || n < 1 {
		return 0, fleet.Invalid(field, "%q is not a number of an entry", raw)
	}
	return n, nil
}
