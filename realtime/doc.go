// Package realtime watches clusters and shows what it sees to whoever looks.
//
// # The way of a change
//
// One supervisor per cluster keeps a reflector running and feeds one board: the newest object of every node, and a
// compacted change log in which each node stands once, at its last visible change. A view is what a query selects, in
// order; everybody who asks the same shares it, and it follows the boards incrementally. A stream is one cursor into
// one view and no queue: a client that is slow has an old cursor, and gets each node that changed since once, as it is
// now. It costs nobody else anything and misses nothing that lasted.
//
// # Cursors
//
// Revisions come from one counter for the whole process and are taken under a board's write lock. Whoever reads several
// boards holds their read locks while it loads the counter (Manager.at), so that a single number says exactly what was
// seen of all of them. A cursor is epoch.revision; the epoch is the process. Messages that are parts of a whole carry
// ids that are no cursors, or say so (Manager.between): a client that comes back with one starts anew or is told the
// doubtful part again.
//
// # Order and locks
//
// Events of one cluster are applied in the order of its watch, by one goroutine. Locks are taken in the order views,
// view, manager, board, boards by name; none is held over I/O. Rows and JSON are rendered at most once per node, revision and
// language, and shared by pages and streams.
//
// # Ends
//
// Constructors start nothing. Manager.Run owns the supervisors and the feeder, a request owns its stream, and the
// viewers of a batch own its reader; each owner waits for what it started.
package realtime
