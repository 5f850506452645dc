package auth

import (
	_ "embed" // of commonList
	"slices"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// commonList are passwords that everybody knows, one a line, in lower case: see common.md. It is searched as it is, which
// takes less than a millisecond and no memory, and only when a password is set.
//
//go:embed common.txt
var commonList string

// ownWords are those that our own passwords would be made of, and those that everybody makes passwords of, without what
// is put around them to please rules.
var ownWords = []string{
	"kubenodemanager", "nodemanager", "kubenode", "knm", "kubernetes", "kubectl", "kubeadmin", "kubeconfig", "kube",
	"cluster", "clusteradmin", "node", "nodes", "admin", "administrator", "operator", "viewer", "root",
	"password", "passwort", "passwd", "changeme", "welcome", "letmein", "secret", "test", "qwerty",
}

// keyRows are what fingers and the alphabet suggest, each twice, so that one may begin anywhere.
var keyRows = []string{
	"1234567890-=1234567890-=", "01234567890123456789", "qwertyuiop[]qwertyuiop[]", "asdfghjkl;'asdfghjkl;'", "zxcvbnm,./zxcvbnm,./",
	"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
}

const differentLeast = 4 // characters

// common tells whether a password is among those that are tried first: on the list, also with digits and signs after
// it; one of our words with nothing but digits and signs; a row of keys, there or back; or a few characters again and
// again. Case and the width of characters do not matter.
func common(password string) bool {
	p := strings.ToLower(norm.NFKC.String(strings.TrimSpace(password)))
	notLetter := func(r rune) bool { return !unicode.IsLetter(r) }
	if listed(p) || listed(strings.TrimRightFunc(p, notLetter)) {
		return true
	}
	letters := strings.Map(func(r rune) rune {
		if notLetter(r) {
			return -1
		}
		return r
	}, p)
	if slices.Contains(ownWords, letters) {
		return true
	}
	back := []rune(p)
	slices.Reverse(back)
	for _, row := range keyRows {
		if strings.Contains(row, p) || strings.Contains(row, string(back)) {
			return true
		}
	}
	different := map[rune]bool{}
	for _, r := range p {
		different[r] = true
	}
	return len(different) < differentLeast
}

// listed tells whether p is a line of the list.
func listed(p string) bool {
	return p != "" && (strings.HasPrefix(commonList, p+"\n") || strings.Contains(commonList, "\n"+p+"\n"))
}
