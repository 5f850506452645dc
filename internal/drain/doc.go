// Package drain empties nodes through the eviction API, and says beforehand what that would do.
//
// [Classify] says of one pod whether it would be evicted and gives every reason. [Budgets] says of many pods what their
// disruption budgets would answer. [NewPlan] puts both together for a batch of nodes, out of one [Read] of the cluster.
// [Probe] has the API server say the same without doing it. [Drain] empties one node.
//
// A drain evicts only what it has just seen: a pod must be in an open watch of its node and in a read of the moment, and
// the eviction names its uid. The order matters, because the API server takes from the budget of whatever pod has the
// name before it looks at the uid. A refusal is waited out, however long the caller lets it; it never becomes a deletion.
// Pods are deleted, past their budgets, where a person chose that for the whole drain ([Policy].Delete), and nowhere else.
//
// Whoever calls Drain can write down what is about to be done before it is ([Job].Intend), and have a drain wait in the
// middle ([Job].Held).
//
// Drain owns every goroutine that it starts and returns after the last of them. Its events come from one goroutine, in
// order, each with a sequence number. Nothing about a drain is kept but what the cluster itself knows, so a drain that
// was cut off is continued by draining the node again.
//
// Ids as DR-30 or PV-10 name the requirements that a rule comes from; they are what reasons carry for people who
// look one up.
package drain
