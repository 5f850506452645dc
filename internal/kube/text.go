package kube

import (
	"strings"
	"unicode"
)

// maxPlain is in characters.
const maxPlain = 300

// Plain makes a text from a cluster one line of bounded length: anybody with access to the cluster may have written it.
func Plain(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == maxPlain {
			b.WriteString("…")
			break
		}
		if !unicode.IsPrint(r) {
			r = ' '
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}
