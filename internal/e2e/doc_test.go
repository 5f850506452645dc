// Package e2e tries the whole product as people use it: the program itself, on a real control plane, in a real browser.
package e2e
