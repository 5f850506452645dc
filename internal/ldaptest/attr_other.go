//go:build unix && !linux

package ldaptest

import "syscall"

// attributes are those of a system that does not tell children of their parent's end.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
