// Package batch runs one operation over many nodes. A single action is a batch of one.
//
// Everything that matters lives in the store: the frozen list, the state of each item, the lease. An Engine holds only
// what it can lose. The contract:
//
//   - Submit writes the batch, its items, the holds on its nodes and the audit intent in one transaction; after that
//     the batch is a fact, whoever made it may go away, and whichever engine gets its lease runs it.
//   - One engine owns a batch at a time, through a lease with an epoch. Every step names the epoch and the store
//     refuses a step of an older one, so that an owner which was frozen and woke up changes nothing any more.
//   - An item is claimed, acted on and finished, each recorded. What a crash leaves claimed is given to the Doer again,
//     which re-derives from the live node whether the change has landed.
//   - The version of a batch moves by one with every change. A reader that asks for what is newer than the version it
//     has misses nothing; Notify is only a hint that it is worth asking.
//   - Trouble with the store is never trouble of a node: the batch is interrupted, says so, and is tried again.
//
// The package knows no cluster. What an operation does to a node is the Doer's business.
package batch
