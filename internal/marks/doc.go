// Package marks knows the labels and taints of nodes: the grammar of the lines in which people ask for changes, what the
// API server accepts, which of them belong to somebody else, and what a change comes to on a node. It is pure: it reads
// no cluster and writes to none.
//
// The grammar is kubectl's and stricter, so that a mistake is named before any request leaves:
//
//	labels   key=value   key=   key-
//	taints   key[=value]:Effect   key[=value]:Effect-   key-
//
// A key is named once for all of its lines, whether it is set or removed. What is already so, or already gone, is no
// mistake but EditUnchanged: batches meet nodes that others have worked on.
package marks
