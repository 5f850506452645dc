package main

import "syscall"

// childAttr makes the kernel kill a child when this program dies in whatever
// way, and keeps a terminal's Ctrl-C from the children, who are stopped in
// order instead.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
