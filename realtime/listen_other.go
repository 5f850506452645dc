//go:build !linux

package realtime

import "syscall"

// control leaves the socket as it is: these systems have other names for the options or none, and the write deadline
// of a stream holds on every system.
func control(string, string, syscall.RawConn) error { return nil }
