package auth

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	nameMost      = 64
	passwordLeast = 10
	passwordMost  = 256
)

// normalName is the one spelling of a sign-in name: NFKC, lower case, trimmed. It has 1 to 64 characters, letters,
// digits and . _ - @, at least one of them a letter or a digit. The spelling of a spelling is itself.
func normalName(s string) (string, error) {
	if len(s) > 16*nameMost || !utf8.ValidString(s) { // NFKC makes one character of several at most
		return "", fleet.Problem("name", "error.name_long", strconv.Itoa(nameMost), "must have at most %s characters")
	}
	s = strings.TrimSpace(norm.NFKC.String(s))
	for range 3 { // lower case can take what NFKC made apart again, and the other way round
		next := strings.TrimSpace(norm.NFKC.String(strings.ToLower(s)))
		if next == s {
			break
		}
		s = next
	}
	if s == "" {
		return "", fleet.Problem("name", "error.name_empty", "", "must not be empty")
	}
	if n := utf8.RuneCountInString(s); n > nameMost {
		return "", fleet.Problem("name", "error.name_long", strconv.Itoa(nameMost), "must have at most %s characters")
	}
	speaking := false
	for _, r := range s {
		switch {
		case unicode.IsLetter(r), unicode.IsDigit(r):
			speaking = true
		case strings.ContainsRune("._-@", r):
		default:
			return "", fleet.Problem("name", "error.name_char", strconv.QuoteRune(r), "must have only letters, digits and . _ - @, not %s")
		}
	}
	if !speaking {
		return "", fleet.Problem("name", "error.name_letter", "", "must have a letter or a digit")
	}
	if strings.ToLower(s) != s || !norm.NFKC.IsNormalString(s) {
		return "", fleet.Problem("name", "error.name_spelling", "", "has no single lower-case spelling")
	}
	return s, nil
}

// normalPassword is what is hashed: the same characters are the same password on every keyboard.
func normalPassword(s string) string { return norm.NFC.String(s) }

// checkPassword refuses a password that must not be set.
func checkPassword(name, password string) error {
	switch {
	case len(password) > passwordMost:
		return fleet.Problem("password", "error.password_long", strconv.Itoa(passwordMost), "must have at most %s bytes")
	case utf8.RuneCountInString(password) < passwordLeast:
		return fleet.Problem("password", "error.password_short", strconv.Itoa(passwordLeast), "must have at least %s characters")
	case strings.EqualFold(strings.TrimSpace(password), name):
		return fleet.Problem("password", "error.password_name", "", "must not be the name")
	case common(password):
		return fleet.Problem("password", "error.password_common", "",
			"is one of those that are tried first: a common password, a row of keys, or too few different characters")
	}
	return nil
}
