// Package realtime watches clusters and shows what it sees to whoever looks.
//
// One supervisor per cluster feeds one board: a compacted change log in which each node stands once, at its last
// change. A subscriber is one cursor into the boards of its view and no queue, so a slow client costs nobody anything
// and converges to the newest state. Revisions come from one counter for the whole process and are taken under a
// board's lock; a reader that first loads the counter and then reads each board up to that value misses nothing, which
// is why a single number is a valid cursor over many clusters.
package realtime
