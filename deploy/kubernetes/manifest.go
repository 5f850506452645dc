// Package kubernetes holds the manifests that operators apply, for the parts of them that the product itself shows.
package kubernetes

import _ "embed" // for the manifests

// ServiceAccount is the namespace, the service account and the role that a cluster is given for us.
//
//go:embed rbac.yaml
var ServiceAccount string
