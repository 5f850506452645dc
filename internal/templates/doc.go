// Package templates keeps named sets of labels and taints that people apply to nodes again and again.
//
// A template is lines with the grammar of the actions labels and taints. A value in them may hold placeholders
// {{name}}, each declared with the values that may be chosen for it; none means that anything may be. Every change makes
// a new version, and an old version stays as it was: what was done to nodes can be told by it. A version is what is
// changed: somebody who looked at an older one is refused.
//
// A Book may be used by many goroutines. It says what a template may be; applying one is the business of nodeops.
package templates
