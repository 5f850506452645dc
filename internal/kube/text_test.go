package kube

import (
	"strings"
	"testing"
)

func FuzzPlain(f *testing.F) {
	f.Add("no\x1b[31m")
	f.Add(strings.Repeat("ä", 400))
	f.Fuzz(func(t *testing.T, s string) {
		got := Plain(s)
		if strings.ContainsAny(got, "\n\r\x00\x1b\u2028") || len([]rune(got)) > maxPlain+1 {
			t.Errorf("Plain(%q) = %q", s, got)
		}
	})
}
