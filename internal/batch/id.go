package batch

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// crockford is the alphabet of ULIDs, lower case: no letter that looks like a digit, and in order of ASCII.
const crockford = "0123456789abcdefghjkmnpqrstvwxyz"

// newID returns 26 characters that sort by time of creation and are safe in a URL: 48 bits of milliseconds and 80 random
// bits, as a ULID has them. Uniqueness rests on the random part; the primary key of the store is the proof.
func newID(at time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(at.UnixMilli())<<16)
	_, _ = rand.Read(b[6:]) // crypto/rand.Read never returns an error
	var out [26]byte
	// 128 bits in groups of five, from the end; the first character holds the three bits that are left.
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	for i := len(out) - 1; i >= 0; i-- {
		out[i] = crockford[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(out[:])
}
