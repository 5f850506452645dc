// Package store keeps what the product itself has to remember: people, sessions, tokens, the audit record, batches.
//
// It is one set of methods over one list of migrations. Statements are written in the SQL that SQLite and PostgreSQL
// share: question marks that are rebound, BIGINT for numbers and times, TEXT for everything else, no engine's own upsert.
// Times are stored as microseconds since 1970 in UTC, 0 for none, so that both engines compare them alike. SQLite is for
// one server on one machine; PostgreSQL for several replicas, which see and refuse the same as the goroutines of one
// would: transactions that write run one after the other on both.
//
// A Store may be used by many goroutines. Calls that write and wait at the same time share a transaction, and one wait
// for the disk; Store.Tx says what they can rely on. Every call ends within Config.Timeout or with its context, whichever
// is first, but for one that is cancelled once it takes part in a transaction: it is told what became of that.
// Errors carry a kind of fleet: ErrNotFound for a missing row, ErrConflict for what another row stands against,
// ErrUnavailable when the engine cannot answer now. Whatever changes something that people will ask about later takes the
// audit entry with it and writes both in one transaction: there is no change without its record.
package store
