package realtime

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	sse "github.com/r3labs/sse/v2"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Bounds of one message, so that a person who signs out in the middle of a long catch-up is gone at once. A whole
// window is the exception: it has to arrive as one swap.
const (
	maxRows  = 64
	maxBytes = 64 << 10
)

// frame is one event on its way to a client. Those who stand at the same place are sent the same one.
type frame struct {
	ev     *sse.Event
	shared *shared   // nil: nobody else gets it
	made   time.Time // when it was made for the first of those who get it
	rows   int       // nodes, clusters or items in it
}

// holding says how many rows are in the frame.
func (f frame) holding(rows int) frame {
	f.rows = rows
	return f
}

// cursor is where a reader of a sight stands, as a client sends it back: epoch.revision, and behind a tilde the tag of a
// sight that is not of everything.
func (m *Manager) cursor(rev uint64, tag string) string { return m.number(rev, "", tag) }

func (m *Manager) number(rev uint64, more, tag string) string {
	if tag != "" {
		tag = "~" + tag
	}
	return m.cfg.Epoch + "." + strconv.FormatUint(rev, 10) + more + tag
}

// partial is the id of a message that is one of several which belong together. Whoever comes back with it has an
// unknown part of them, so it is no cursor and leads to a fresh start.
func (m *Manager) partial(rev uint64, tag string) string { return m.number(rev, "p", tag) }

// between is the cursor of somebody in the middle of a catch-up: everything up to rev is known, but a node that moved
// on while the catch-up ran may have been last seen at base, or never.
func (m *Manager) between(rev, base uint64, tag string) string {
	if rev == base {
		return m.cursor(rev, tag)
	}
	return m.number(rev, "-"+strconv.FormatUint(base, 10), tag)
}

func (v *view) cursor(rev uint64) string        { return v.m.cursor(rev, v.q.tag) }
func (v *view) partial(rev uint64) string       { return v.m.partial(rev, v.q.tag) }
func (v *view) between(rev, base uint64) string { return v.m.between(rev, base, v.q.tag) }

// parseCursor reads a cursor that this process gave out to the same sight.
func (m *Manager) parseCursor(s, tag string) (rev, base uint64, ok bool) {
	s, of, _ := strings.Cut(s, "~")
	epoch, number, found := strings.Cut(s, ".")
	if !found || epoch != m.cfg.Epoch || of != tag {
		return 0, 0, false
	}
	number, since, two := strings.Cut(number, "-")
	rev, err := strconv.ParseUint(number, 10, 64)
	if err != nil || rev > m.clock.Load() {
		return 0, 0, false
	}
	base = rev
	if two {
		if base, err = strconv.ParseUint(since, 10, 64); err != nil || base > rev {
			return 0, 0, false
		}
	}
	return rev, base, true
}

// event builds an event whose parts cannot break the framing: r3labs writes them as they are. Names and ids come from
// fixed alphabets of this package; data is made one line, and never starts with the colon that makes r3labs take it
// for a comment; empty data would end the connection.
func event(id, name string, data []byte) frame {
	data = oneLine(data)
	if len(data) == 0 || data[0] == ':' {
		data = append([]byte(" "), data...)
	}
	ev := &sse.Event{ID: []byte(id), Data: data}
	if name != "" {
		ev.Event = []byte(name)
	}
	return frame{ev: ev, shared: &shared{}, made: time.Now()}
}

// oneLine returns HTML or JSON that means the same and holds no CR and no LF, the two characters that end a line of an
// event stream. Inside a tag and outside of quotes they are spaces; everywhere else HTML writes them as references.
// JSON as encoding/json makes it has none.
func oneLine(b []byte) []byte {
	b = bytes.TrimSpace(b)
	if !bytes.ContainsAny(b, "\r\n") {
		return b
	}
	out := make([]byte, 0, len(b)+64)
	var tag bool
	var quote byte
	for i, c := range b {
		switch {
		case c == '\r' || c == '\n':
			switch {
			case tag && quote == 0:
				out = append(out, ' ')
			case c == '\r' && i+1 < len(b) && b[i+1] == '\n':
				// the LF that follows stands for both, as in every HTML parser
			default:
				out = append(out, "&#10;"...)
			}
			continue
		case !tag && c == '<' && i+1 < len(b) && (isLetter(b[i+1]) || b[i+1] == '/' || b[i+1] == '!'):
			tag = true
		case tag && quote == 0 && (c == '"' || c == '\''):
			quote = c
		case tag && c == quote:
			quote = 0
		case tag && quote == 0 && c == '>':
			tag = false
		}
		out = append(out, c)
	}
	return out
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// appendRow adds a row as an out-of-band swap.
func appendRow(b, row []byte) []byte {
	rest, ok := bytes.CutPrefix(row, []byte("<tr"))
	if !ok {
		return append(b, row...)
	}
	b = append(b, `<tr hx-swap-oob="outerMorph"`...)
	return append(b, rest...)
}

// appendGone adds the removal of a row. Ids come from the renderer, which makes them of safe characters; a quote is
// escaped all the same.
func appendGone(b []byte, id string) []byte {
	b = append(b, `<tr id="`...)
	b = append(b, attr.Replace(id)...)
	return append(b, `" hx-swap-oob="delete"></tr>`...)
}

var attr = strings.NewReplacer(`&`, "&amp;", `"`, "&#34;", "<", "&lt;", ">", "&gt;")

func partialStart(b []byte, target, swap string) []byte {
	b = append(b, `<hx-partial hx-target="`...)
	b = append(b, target...)
	b = append(b, `" hx-swap="`...)
	b = append(b, swap...)
	return append(b, `">`...)
}

func partialEnd(b []byte) []byte { return append(b, "</hx-partial>"...) }

// message is what a JSON stream says, one line each.
type message struct {
	Type    string          `json:"type"`
	Cluster string          `json:"cluster_name,omitempty"`
	Node    string          `json:"node_name,omitempty"`
	Data    json.RawMessage `json:"data"`
	Time    time.Time       `json:"timestamp"`
	Changes []string        `json:"changes"`
}

// The types of JSON messages; each is the name of its event too.
const (
	nodeAdd    = "node_add"
	nodeUpdate = "node_update"
	nodeDelete = "node_delete"
	typePing   = "ping"
	typeSynced = "synced"
	typeReset  = "reset"
)

// jsonEvent encodes a message by hand around the node's shared bytes: encoding/json would validate and copy all of it
// again for every message.
func jsonEvent(id string, m message) frame {
	b := make([]byte, 0, len(m.Data)+256)
	b = append(b, `{"type":"`...)
	b = append(b, m.Type...)
	b = append(b, '"')
	if m.Cluster != "" {
		b = append(b, `,"cluster_name":`...)
		b = appendString(b, m.Cluster)
	}
	if m.Node != "" {
		b = append(b, `,"node_name":`...)
		b = appendString(b, m.Node)
	}
	b = append(b, `,"data":`...)
	if m.Data == nil {
		b = append(b, "null"...)
	}
	b = append(b, m.Data...)
	b = append(b, `,"timestamp":"`...)
	b = m.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","changes":[`...)
	for i, c := range m.Changes {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, c)
	}
	b = append(b, "]}"...)
	return event(id, m.Type, b)
}

func appendString(b []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil {
		return append(b, `""`...) // a string always encodes
	}
	return append(b, quoted...)
}

type jsonKey struct {
	ref  fleet.NodeRef
	ver  *version
	id   place
	what changes
	kind byte
}

// place is where a reader of JSON stands; see between.
type place struct{ cur, base uint64 }

type memoKey struct {
	cur  uint64
	win  *window
	lang string
}

// position is where one reader of a page stands.
type position struct {
	cur   uint64
	win   *window // what the client shows; nil: whatever it was at cur
	reset bool    // what the client shows is not known
	lang  string

	seen   bool   // steps means something
	steps  uint64 // of the pane, at the last look
	merged uint64 // steps that came together with a later one, ever
}

// html returns what moves a reader to the present, and moves it. Everybody who stands at the same place gets the same
// bytes.
func (v *view) html(p *pane, pos *position) (frames []frame, next <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	next = p.sig
	if pos.seen && p.steps > pos.steps {
		pos.merged += p.steps - pos.steps - 1
	}
	pos.seen, pos.steps = true, p.steps
	if !pos.reset && pos.win == nil {
		if pos.cur < p.rev || pos.cur > v.rev {
			pos.reset = true
		} else {
			pos.win = p.win
		}
	}
	key := memoKey{pos.cur, pos.win, pos.lang}
	if pos.reset {
		key = memoKey{lang: pos.lang}
	}
	pos.cur, pos.win, pos.reset = v.rev, p.win, false
	if frames, ok := p.memo[key]; ok {
		return frames, next
	}
	if key.win == nil || distance(key.win, p.win) > p.key.perPage/2 {
		frames = []frame{v.whole(p, key.lang)}
	} else {
		frames = v.difference(p, key)
	}
	if p.memo == nil {
		p.memo = map[memoKey][]frame{}
	}
	p.memo[key] = frames
	return frames, next
}

// distance is how many rows would have to be put in.
func distance(from, to *window) int {
	if from == to {
		return 0
	}
	n := 0
	for _, ref := range to.refs {
		if _, ok := from.set[ref]; !ok {
			n++
		}
	}
	return n
}

// whole is the page from scratch, as one swap that keeps what the person is doing in it.
func (v *view) whole(p *pane, lang string) frame {
	b := partialStart(nil, "#rows", "innerMorph")
	for l := range p.win.lines {
		b = append(b, v.row(l, lang)...)
	}
	b = partialEnd(b)
	b = v.appendTail(b, p, lang, 0, true)
	return event(v.cursor(v.rev), "", b).holding(len(p.win.refs))
}

// appendTail adds counters and badges that moved after a revision.
func (v *view) appendTail(b []byte, p *pane, lang string, since uint64, turned bool) []byte {
	r := v.m.render
	if v.q.only == nil && (turned || v.countsRev > since) {
		b = append(b, oneLine(r.safely("counts", func() []byte {
			return r.Counts(v.counts, p.win.page, v.pages(p.key.perPage), v.counts.Total, lang)
		}))...)
	}
	for _, c := range v.clusters {
		if c.rev > since {
			b = append(b, oneLine(r.safely("cluster badge", func() []byte { return r.ClusterBadge(c.Cluster, lang) }))...)
		}
	}
	return b
}

func (v *view) difference(p *pane, key memoKey) []frame {
	from, to := key.win, p.win
	var frames []frame
	var b []byte
	rows := 0
	next := func() {
		if rows >= maxRows || len(b) >= maxBytes {
			frames = append(frames, event(v.partial(key.cur), "", b).holding(rows))
			b, rows = nil, 0
		}
	}
	for _, it := range v.since(key.cur, len(v.items)) {
		if _, here := to.set[it.ref]; !here || it.ver == nil {
			continue
		}
		if _, there := from.set[it.ref]; !there {
			continue
		}
		next()
		b = appendRow(b, v.m.render.row(it.ver, key.lang))
		rows++
	}
	for _, h := range to.heads {
		if l := (line{group: h.value, header: true}); v.sums.by[h.value].rev > key.cur && from.holds(l) {
			next()
			b = appendRow(b, v.row(l, key.lang))
			rows++
		}
	}
	if from != to {
		for l := range from.lines {
			if !to.holds(l) {
				next()
				b = appendGone(b, v.id(l))
				rows++
			}
		}
		open := false
		for l := range to.lines {
			if from.holds(l) {
				continue
			}
			if open && (rows >= maxRows || len(b) >= maxBytes) {
				b, open = partialEnd(b), false
			}
			next()
			if !open {
				b, open = partialStart(b, "#rows", "beforeend"), true
			}
			b = append(b, v.row(l, key.lang)...)
			rows++
		}
		if open {
			b = partialEnd(b)
		}
	}
	b = v.appendTail(b, p, key.lang, key.cur, from.page != to.page)
	if from == to {
		if len(b) > 0 {
			frames = append(frames, event(v.cursor(v.rev), "", b).holding(rows))
		}
		return frames
	}
	if len(b) > 0 {
		frames = append(frames, event(v.partial(key.cur), "", b).holding(rows))
	}
	return append(frames, event(v.cursor(v.rev), "order", v.orderOf(to)))
}

// orderOf is the DOM ids of a window in order, as JSON.
func (v *view) orderOf(w *window) []byte {
	b := []byte{'['}
	for l := range w.lines {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = appendString(b, v.id(l))
	}
	return append(b, ']')
}

// messages returns about maxRows JSON messages that move a reader forward, and moves it. Again is true when what it
// would need to know is forgotten.
func (v *view) messages(at *place) (frames []frame, again bool, next <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	next = v.sig
	if at.cur < v.purged || at.cur > v.rev {
		return nil, true, next
	}
	items := v.since(at.cur, maxRows)
	if len(items) == 0 {
		*at = place{v.rev, v.rev}
		return nil, false, next
	}
	if v.jsonMemo == nil {
		v.jsonMemo = map[jsonKey]frame{}
	}
	last := items[len(items)-1].rev
	all := last == v.head.prev.rev
	id := *at
	for i := range items {
		it := &items[i]
		if i == len(items)-1 || items[i+1].rev != it.rev {
			id.cur = it.rev // only after the last one of a revision is the revision a cursor
		}
		if all && i == len(items)-1 {
			id.base = id.cur
		}
		k := jsonKey{ref: it.ref, ver: it.ver, id: id, kind: 'd'}
		switch {
		case it.ver == nil:
		case it.entered > at.base:
			k.kind = 'a'
		default:
			k.kind, k.what = 'u', it.ver.changedSince(at.base)
		}
		f, ok := v.jsonMemo[k]
		if !ok {
			f = v.message(k)
			if len(v.jsonMemo) < 4*maxRows {
				v.jsonMemo[k] = f
			}
		}
		frames = append(frames, f)
	}
	*at = id
	return frames, false, next
}

func (v *view) message(k jsonKey) frame {
	m := message{Cluster: k.ref.Cluster, Node: k.ref.Name}
	switch k.kind {
	case 'd':
		m.Type, m.Time = nodeDelete, time.Now()
	case 'a':
		m.Type, m.Time, m.Data = nodeAdd, k.ver.node.UpdatedAt, v.m.render.json(k.ver)
	default:
		m.Type, m.Time, m.Data = nodeUpdate, k.ver.node.UpdatedAt, v.m.render.json(k.ver)
		m.Changes = k.what.names()
	}
	return jsonEvent(v.between(k.id.cur, k.id.base), m).holding(1)
}
