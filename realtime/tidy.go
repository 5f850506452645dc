package realtime

import (
	"context"
	"runtime/debug"
	"time"
)

// tidyAfter is how long no list may have come before memory is given back: many clusters list one after the other.
const tidyAfter = 2 * time.Second

// tidyFrom is how many nodes a list has whose garbage is worth it.
const tidyFrom = 500

// tidy gives the memory of large lists back to the system. Decoding a list costs several times of what is kept of it,
// once; the runtime alone would hold on to that for minutes, as if it was needed again.
func (m *Manager) tidy(ctx context.Context) {
	quiet := time.NewTimer(tidyAfter)
	quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.listed:
			quiet.Reset(tidyAfter)
		case <-quiet.C:
			debug.FreeOSMemory()
		}
	}
}

// tookList is told of every complete list.
func (m *Manager) tookList(nodes int) {
	if nodes < tidyFrom {
		return
	}
	select {
	case m.listed <- struct{}{}:
	default: // told already
	}
}
