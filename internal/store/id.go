package store

import (
	"crypto/rand"
	"encoding/base32"
	"strings"
)

// NewID makes a name that nothing else has and nobody can guess: 128 random bits in lower-case letters and digits.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: the program ends if the system has no randomness
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
}
