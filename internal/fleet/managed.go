package fleet

import "time"

// ClusterSpec is a cluster as somebody hands it in through the web. Nothing in it is trusted.
type ClusterSpec struct {
	Name       string
	Kubeconfig Secret
	Context    string // which context of the kubeconfig; "" for its current or only one
}

// CredentialFacts say which credential it is without being able to use it.
type CredentialFacts struct {
	Kind        string    `json:"kind,omitempty"` // token or certificate
	User        string    `json:"user,omitempty"` // as the certificate or the token says, unverified
	Fingerprint string    `json:"fingerprint,omitempty"`
	Authority   string    `json:"authority,omitempty"`       // fingerprint of the first certificate of the authority
	ExpiresAt   time.Time `json:"expires_at,omitzero"`       // zero: it does not say
	Server      string    `json:"server,omitempty"`          // URL of the API server
	ServerName  string    `json:"tls_server_name,omitempty"` // whose certificate is expected; "" for the host of Server
}

// ManagedCluster is a cluster that came in through the web, as admins see it. The credential stays where it is.
type ManagedCluster struct {
	Name       string          `json:"name"`
	Credential CredentialFacts `json:"credential"`
	AddedBy    string          `json:"added_by"`
	AddedAt    time.Time       `json:"added_at"`
	ChangedBy  string          `json:"changed_by"`
	ChangedAt  time.Time       `json:"changed_at"`
	Fault      string          `json:"fault,omitempty"` // why it is not watched: one of the Fault constants
}

// The reasons why a managed cluster is not watched.
const (
	FaultName       = "name"       // a kubeconfig of the host has a context of the same name
	FaultKey        = "key"        // it is sealed with a key that this process was not given
	FaultUnreadable = "unreadable" // what is stored does not open
	FaultOther      = "other"      // the log says
)

// StoredCluster is a row of a managed cluster.
type StoredCluster struct {
	ID     string // never reused; part of what the credential is sealed to
	Name   string
	Server string // for display while the credential cannot be read
	Sealed
	Version   int64 // moves with every change of the credential, not with its rotation
	AddedBy   string
	AddedAt   time.Time
	ChangedBy string
	ChangedAt time.Time
}

// Place is where the credential is kept.
func (c StoredCluster) Place() Place {
	return SealedRow{Table: SealedClusters, ID: c.ID, Name: c.Name}.Place()
}

// ClusterTest is what came of trying a credential once.
type ClusterTest struct {
	Outcome     string          `json:"outcome"` // one of the Test constants
	Reason      string          `json:"reason,omitempty"`
	Version     string          `json:"version,omitempty"`
	UID         string          `json:"uid,omitempty"`
	Credential  CredentialFacts `json:"credential"`
	Permissions []TestedRight   `json:"permissions,omitempty"`
	Warnings    []string        `json:"warnings,omitempty"` // names of the Warn constants
}

// The outcomes of a test. They are all that is said of a server that is not an API server.
const (
	TestOK           = "ok"
	TestAddress      = "address"      // its address is one that may not be connected to
	TestUnreachable  = "unreachable"  // no connection
	TestTimeout      = "timeout"      // no answer in time
	TestUntrusted    = "untrusted"    // its certificate does not fit
	TestUnauthorized = "unauthorized" // it refuses the credential
	TestForbidden    = "forbidden"    // the credential may not read nodes
	TestRedirect     = "redirect"     // it sends us elsewhere
	TestOther        = "other"        // it does not answer as an API server does
)

// The warnings of a test.
const (
	WarnClusterAdmin = "cluster_admin" // it may do everything
	WarnWide         = "wide"          // it may do more than is good for it
	WarnMissing      = "missing"       // a feature will be refused
	WarnExpires      = "expires"       // it ends within a month, or has ended
)

// TestedRight is one thing that the cluster was asked whether the credential may do it.
type TestedRight struct {
	Verb        string `json:"verb"`
	Group       string `json:"group,omitempty"`
	Resource    string `json:"resource"`
	Subresource string `json:"subresource,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	Needed      bool   `json:"needed"` // by our features; what is not needed should not be allowed
	Allowed     bool   `json:"allowed"`
}
