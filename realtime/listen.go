package realtime

import (
	"net"
	"time"
)

// ListenConfig listens with what streams need of TCP, where the system offers it: little data waits in the kernel, so
// that a slow client's next message is the newest state and not a queue of old ones, and a peer that vanished without
// a word is noticed in half a minute and not after fifteen.
func ListenConfig() *net.ListenConfig {
	return &net.ListenConfig{KeepAlive: 15 * time.Second, Control: control}
}
