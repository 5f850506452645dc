package fleet

import "time"

// ClusterState is what the supervisor of a cluster knows of the connection.
type ClusterState string

// The states of a cluster, in the words the pages show.
const (
	ClusterConnecting   ClusterState = "connecting"
	ClusterSyncing      ClusterState = "syncing"
	ClusterLive         ClusterState = "live"
	ClusterStale        ClusterState = "stale" // was live; the nodes shown are those of Since
	ClusterUnreachable  ClusterState = "unreachable"
	ClusterUnauthorized ClusterState = "unauthorized"
	ClusterForbidden    ClusterState = "forbidden"
	ClusterAsleep       ClusterState = "asleep" // not watched to save memory; the next look at it wakes it
	ClusterStopped      ClusterState = "stopped"
)

// Synced tells whether a cluster has ever had its nodes: an empty table then means no nodes.
func (c Cluster) Synced() bool { return !c.SyncedAt.IsZero() }

// Cluster is one watched cluster with its live state. It carries no credential.
type Cluster struct {
	Name      string
	Server    string // URL of the API server
	Version   string // its git version, "" until it answered
	UID       string // of its namespace kube-system: what tells two clusters apart; "" while unknown
	FoundUID  string // what answers at the address instead of UID, "" if nothing does
	State     ClusterState
	Since     time.Time // when State began
	Reason    string    // why, in words of the API server or the network; "" while live
	SyncedAt  time.Time // when the first list was complete; zero before
	LastEvent time.Time // last watch event or bookmark
	NextRetry time.Time // next attempt while not live; zero otherwise
	Nodes     int
	Ready     int
	NotReady  int // NotReady and Unknown
	Cordoned  int

	Identity string  // who acts in it: IdentityShared or IdentityImpersonate
	Labels   string  // of the configuration, as key=value with commas between them
	Rights   *Rights // of our credential, as the cluster said last; nil while it has not
}
