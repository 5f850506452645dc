package realtime

import (
	"fmt"
	"syscall"
)

// Options of linux/tcp.h that package syscall does not name. Connections inherit them from the listener.
const (
	tcpUserTimeout  = 18
	tcpNotsentLowat = 25

	userTimeoutMillis = 30_000
	notsentLowatBytes = 16 << 10
)

func control(network, _ string, c syscall.RawConn) error {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil
	}
	var set error
	err := c.Control(func(fd uintptr) {
		if set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, notsentLowatBytes); set != nil {
			return
		}
		set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, userTimeoutMillis)
	})
	if err != nil {
		return fmt.Errorf("reaching the socket: %w", err)
	}
	if set != nil {
		return fmt.Errorf("setting TCP options: %w", set)
	}
	return nil
}
