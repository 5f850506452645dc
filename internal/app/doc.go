// Package app ties the rooms together: it is the only one that sees all of them, and nothing but the command and tests
// imports it.
//
// New opens and wires, Run starts what runs and blocks. Whatever is opened or started pushes its own named end onto one
// stack, and the end of the program is that stack, from the top, within a bound.
package app
