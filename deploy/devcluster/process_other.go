//go:build !linux

package main

import "syscall"

// childAttr keeps a terminal's Ctrl-C from the children, who are stopped in
// order instead. Only Linux can tie their lives to this program's: elsewhere
// they survive its SIGKILL.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
