package realtime

import "sync"

// inflight counts calls that somebody else's goroutines make, and lets their owner wait for them. Unlike a WaitGroup
// it may be entered while somebody waits, and refuses then.
type inflight struct {
	mu     sync.Mutex // guards everything below
	n      int
	closed bool
	idle   chan struct{} // set by close, closed when n is 0
}

func (f *inflight) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.n++
	return true
}

func (f *inflight) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.n == 0 && f.idle != nil {
		close(f.idle)
	}
}

// close lets nobody in any more and waits for those who are.
func (f *inflight) close() {
	f.mu.Lock()
	f.closed = true
	if f.n == 0 {
		f.mu.Unlock()
		return
	}
	f.idle = make(chan struct{})
	idle := f.idle
	f.mu.Unlock()
	<-idle
}
