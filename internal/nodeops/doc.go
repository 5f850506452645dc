// Package nodeops holds the verbs that change nodes, and the choke point that each of them goes through:
//
//	may this person still do this → what is the node now → what is to be changed → record the intent → one patch →
//	record the result → show the new object to the cache
//
// Nothing else in the product writes to a cluster. A verb is a pure function from the live node to a change; it is asked
// again after every conflict, because the node that it decided about is not the node that is there now. The intent is on
// record before the request leaves, or the request does not leave.
//
// An operation is idempotent per batch: the id of the batch travels in the very patch that makes the change, so that
// after a crash the node itself says whether the change has landed.
package nodeops
