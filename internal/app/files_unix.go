//go:build unix

package app

import (
	"math"
	"syscall"
)

// openFiles is how many files this process may have open.
func openFiles() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxUint64 // then the system itself says when there are too many
	}
	return uint64(limit.Cur) //nolint:unconvert // it has another type on some systems
}
