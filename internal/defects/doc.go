// Command defects proves that the tests bite: it plants faults in the product, one at a time, and runs the tests that
// have to notice. A fault that no test notices is a hole in the tests; `make defects` fails then.
//
// Nothing in the tree is touched. Each fault is a small replacement in one or more files, handed to the compiler as an
// overlay. A fault that does not compile counts as missed, for it was not a test that found it; and the same tests have
// to pass without it. A test of this package makes sure that every fault still fits the sources, so that the list cannot
// rot.
package main
