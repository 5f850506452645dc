package realtime

import (
	"sync"
	"sync/atomic"
)

// cell is one rendering of one visible state of a node. Its bytes may go when memory is short; they are made again
// when somebody asks.
type cell struct {
	key string // a language, or jsonCell
	b   atomic.Pointer[[]byte]

	prev, next *cell // in the cache's ring, by use; guarded by its mu; nil outside of it
}

// jsonCell is the key of a node's JSON; languages never look like it.
const jsonCell = "\x00json"

// cellOverhead is what a cell costs beside its bytes.
const cellOverhead = 112

func cost(b []byte) int64 { return int64(len(b)) + cellOverhead }

// rowCache holds the rendered rows of all clusters and keeps them within a limit: those that nobody asked for the
// longest go first.
type rowCache struct {
	limit atomic.Int64

	mu    sync.Mutex // guards everything below, and the ring
	head  cell       // next is the most recently used
	bytes int64

	hits, misses, evicted atomic.Uint64
}

func newRowCache(limit int64) *rowCache {
	c := &rowCache{}
	c.limit.Store(limit)
	c.head.prev, c.head.next = &c.head, &c.head
	return c
}

// used marks a cell as just used, and puts it in if it is not here.
func (c *rowCache) used(x *cell, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.prev != nil {
		x.prev.next, x.next.prev = x.next, x.prev
	} else {
		x.b.Store(&b) // again, if somebody evicted it since it was found
		c.bytes += cost(b)
	}
	x.prev, x.next = &c.head, c.head.next
	c.head.next.prev, c.head.next = x, x
	c.shrink()
}

// shrink evicts until the limit is kept, but never the cell that was used last. mu is held.
func (c *rowCache) shrink() {
	for limit := c.limit.Load(); c.bytes > limit && c.head.prev != c.head.next; {
		c.evict(c.head.prev)
		c.evicted.Add(1)
	}
}

// evict takes a cell out and its bytes away. mu is held.
func (c *rowCache) evict(x *cell) {
	x.prev.next, x.next.prev = x.next, x.prev
	x.prev, x.next = nil, nil
	if b := x.b.Swap(nil); b != nil {
		c.bytes -= cost(*b)
	}
}

// forget drops the cells of a version that nobody will ask for any more.
func (c *rowCache) forget(cells []*cell) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range cells {
		if x.prev != nil {
			c.evict(x)
		}
	}
}

// setLimit changes the limit, and keeps it.
func (c *rowCache) setLimit(limit int64) {
	if c.limit.Swap(limit) <= limit {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shrink()
}

func (c *rowCache) size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// cells are the renderings of one (node, revision). Newer objects of the same revision share them: they look the same.
type cells struct {
	mu   sync.Mutex // guards made; held while rendering, so that a row is rendered once however many ask
	made []*cell    // two languages and JSON at most
}

// get is the rendering of a key, made on first use and again when it was evicted.
func (s *cells) get(c *rowCache, key string, render func() []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var x *cell
	for _, m := range s.made {
		if m.key == key {
			x = m
		}
	}
	if x == nil {
		x = &cell{key: key}
		s.made = append(s.made, x)
	}
	if b := x.b.Load(); b != nil {
		c.hits.Add(1)
		c.used(x, *b)
		return *b
	}
	c.misses.Add(1)
	b := render()
	c.used(x, b)
	return b
}

// drop gives everything back. A nil cache has nothing.
func (s *cells) drop(c *rowCache) {
	if c == nil {
		return
	}
	s.mu.Lock()
	made := s.made
	s.mu.Unlock()
	if len(made) > 0 {
		c.forget(made)
	}
}
