package fleet

import "strings"

// maxNodeName is the limit of a DNS-1123 subdomain.
const maxNodeName = 253

// ValidNodeName tells whether s is a DNS-1123 subdomain: what the API server accepts as the name of a node. Everything
// that reaches an API call is checked first, because some of its clients join paths from names.
func ValidNodeName(s string) bool {
	if len(s) == 0 || len(s) > maxNodeName {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

// ParseNodeRef reads the cluster/node form. The name of a cluster is a kubeconfig context and may hold slashes; the name
// of a node never does, so the last slash divides. The error is a FieldError for the given field that shows the
// offending text.
func ParseNodeRef(field, s string) (NodeRef, error) {
	i := strings.LastIndexByte(s, '/')
	if i <= 0 {
		return NodeRef{}, Invalid(field, "%q is not of the form cluster/node", s)
	}
	ref := NodeRef{Cluster: s[:i], Name: s[i+1:]}
	if !ValidNodeName(ref.Name) {
		return NodeRef{}, Invalid(field, "%q does not end in the name of a node", s)
	}
	return ref, nil
}
