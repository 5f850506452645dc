package realtime

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/flate"
)

// Streams are compressed without a compressor per stream, which would hold hundreds of kilobytes each. A connection
// gets one gzip header; then every message is deflated by itself, with the end of what the same connection was sent
// before as its dictionary, and ends on a byte, so that it can be read at once. What a stream keeps between two
// messages are two pointers and a checksum: the dictionary's parts belong to the messages, and everybody who was sent
// the same messages has the same ones. Who is in step with others therefore takes the bytes that were compressed once.

// tailBytes is how much of a message serves as a dictionary for the next one. A message keeps no more than this alive,
// however large it was.
const tailBytes = 4 << 10

// maxPacked bounds the compressed forms that a message keeps: one for each history that its readers have.
const maxPacked = 8

// tail is the end of a message as it was written. It never changes, and its address names what it holds.
type tail struct {
	bytes []byte
	whole bool // the message is not longer
}

// history is what a connection was sent last: the dictionary of the next message.
type history struct{ older, last *tail }

// then is the history after one more message. A dictionary is one piece, so an older message counts only in front of
// one that is there from its beginning.
func (h history) then(t *tail) history {
	if !t.whole {
		return history{last: t}
	}
	return history{older: h.last, last: t}
}

// shared is what all streams have in common that send the same message.
type shared struct {
	mu     sync.Mutex // guards everything below
	tail   *tail
	packed map[history]*packed
}

// packed is a message deflated after one history.
type packed struct {
	once  sync.Once
	bytes []byte
}

// tailOf is the message's tail; plain is the message as it is written, the same for everybody.
func (s *shared) tailOf(plain []byte) *tail {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tail == nil {
		from := max(0, len(plain)-tailBytes)
		s.tail = &tail{bytes: bytes.Clone(plain[from:]), whole: from == 0}
	}
	return s.tail
}

// after is the message deflated for connections with this history.
func (s *shared) after(h history, plain []byte) []byte {
	s.mu.Lock()
	p := s.packed[h]
	if p == nil {
		p = &packed{}
		if s.packed == nil {
			s.packed = make(map[history]*packed, 1)
		}
		if len(s.packed) < maxPacked {
			s.packed[h] = p
		}
	}
	s.mu.Unlock()
	p.once.Do(func() { p.bytes = deflate(plain, h) })
	return p.bytes
}

// presses bounds the compressions under way: more of them than processors would only hold more memory.
var presses = make(chan struct{}, runtime.GOMAXPROCS(0))

// dictionaries and plains are scratch memory that nobody keeps between two messages.
var (
	dictionaries = sync.Pool{New: func() any { return new(make([]byte, 0, 2*tailBytes)) }}
	plains       = sync.Pool{New: func() any { return new(bytes.Buffer) }}
)

// maxPooled keeps a buffer that one huge message has grown out of the pool.
const maxPooled = 256 << 10

// deflate compresses a message so that it ends on a byte and is not the last one. It does so in a goroutine of its own:
// the compressor's table would stay on the stack of every stream that ever compressed.
func deflate(plain []byte, h history) []byte {
	presses <- struct{}{}
	defer func() { <-presses }()
	dict := dictionaries.Get().(*[]byte)
	defer dictionaries.Put(dict)
	*dict = (*dict)[:0]
	for _, t := range []*tail{h.older, h.last} {
		if t != nil {
			*dict = append(*dict, t.bytes...)
		}
	}
	var out bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		// A buffer takes everything.
		_ = flate.StatelessDeflate(&out, plain, false, *dict)
	}()
	<-done
	return bytes.Clone(out.Bytes())
}

// gzipHeader begins every compressed stream: deflate, no name, no time, unknown system.
var gzipHeader = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}

// gzipStream is the compression of one connection.
type gzipStream struct {
	begun bool
	plain *bytes.Buffer // of the message that is being written; nil between two
	past  history
	sum   uint32
	size  uint32
}

func (g *gzipStream) Write(p []byte) (int, error) {
	if g.plain == nil {
		g.plain = plains.Get().(*bytes.Buffer)
		g.plain.Reset()
	}
	return g.plain.Write(p)
}

// take returns what there is to write now, and how much it was before. s belongs to the message, nil for one that
// nobody else gets.
func (g *gzipStream) take(s *shared) (out []byte, plain int) {
	if !g.begun {
		g.begun, out = true, gzipHeader
	}
	if g.plain == nil {
		return out, 0
	}
	b := g.plain.Bytes()
	if s == nil {
		s = &shared{}
	}
	g.sum = crc32.Update(g.sum, crc32.IEEETable, b)
	g.size += uint32(len(b)) //nolint:gosec // gzip counts modulo 2^32
	packed, t := s.after(g.past, b), s.tailOf(b)
	g.past = g.past.then(t)
	g.drop()
	if out != nil {
		return append(bytes.Clone(out), packed...), len(b)
	}
	return packed, len(b)
}

// drop gives the message's buffer back.
func (g *gzipStream) drop() {
	if g.plain != nil && g.plain.Cap() <= maxPooled {
		plains.Put(g.plain)
	}
	g.plain = nil
}

// end is what makes the stream a complete file: an empty last block, checksum and size.
func (g *gzipStream) end() []byte {
	out := []byte{3, 0} // a last block of fixed codes that holds nothing but its end
	out = binary.LittleEndian.AppendUint32(out, g.sum)
	return binary.LittleEndian.AppendUint32(out, g.size)
}

// acceptsGzip tells whether a client takes gzip and does not prefer the plain form, as RFC 9110 says.
func acceptsGzip(h http.Header) bool {
	const unnamed = -1
	gzip, identity, others := float64(unnamed), float64(unnamed), float64(unnamed)
	for _, line := range h.Values("Accept-Encoding") {
		for item := range strings.SplitSeq(line, ",") {
			name, params, _ := strings.Cut(item, ";")
			q := quality(params)
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "gzip", "x-gzip":
				gzip = max(gzip, q)
			case "identity":
				identity = q
			case "*":
				others = q
			}
		}
	}
	if gzip == unnamed {
		gzip = others
	}
	return gzip > 0 && gzip >= identity
}

// quality is the q of a list's item: 1 without one, 0 for one that makes no sense.
func quality(params string) float64 {
	for p := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(p, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "q") {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil || !(q >= 0 && q <= 1) {
			return 0
		}
		return q
	}
	return 1
}
