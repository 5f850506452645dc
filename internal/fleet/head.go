package fleet

import (
	"strconv"
	"strings"
	"time"
)

// AuditHead is the last entry of the record at a moment, signed: kept where nobody who can write to the database can,
// it shows that the record was cut or rewritten since.
type AuditHead struct {
	Seq          int64     `json:"seq"`
	Hash         string    `json:"hash"`
	At           time.Time `json:"at"`
	Installation string    `json:"installation"`
	Key          string    `json:"key"`       // public, base64 of the 32 bytes of Ed25519
	Signature    string    `json:"signature"` // base64, over Text
}

// headForm names the text below. A change of it needs a new name.
const headForm = "knm-audit-head-1"

// Text is what is signed: the form's name, installation, number, hash, and microseconds since 1970, a line each.
func (h AuditHead) Text() []byte {
	return []byte(strings.Join([]string{
		headForm, h.Installation, strconv.FormatInt(h.Seq, 10), h.Hash, strconv.FormatInt(h.At.UnixMicro(), 10), "",
	}, "\n"))
}
