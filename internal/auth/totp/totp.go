// Package totp makes and checks the codes of RFC 6238 as every authenticator app does: SHA-1, six digits, thirty
// seconds. It keeps nothing; whoever uses it remembers the step of the last code that was taken.
package totp

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // G505: what the apps speak; HMAC does not depend on collisions
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/boombuler/barcode/qr"
)

const (
	digits = 6
	period = 30 * time.Second
	// skew is how many steps before and after that of our clock are taken: clocks differ, and people type.
	skew        = 1
	secretBytes = 20 // RFC 4226 recommends the length of the hash
)

var encoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// Secret makes a secret.
func Secret() []byte {
	b := make([]byte, secretBytes)
	_, _ = rand.Read(b) // never fails: the program ends if the system has no randomness
	return b
}

// Text is a secret as apps take it typed.
func Text(secret []byte) string { return encoding.EncodeToString(secret) }

// URI is a secret as apps take it from a picture.
func URI(issuer, account string, secret []byte) string {
	u := url.URL{Scheme: "otpauth", Host: "totp", Path: "/" + issuer + ":" + account}
	// Not url.Values: some apps take its plus for a plus.
	u.RawQuery = "secret=" + Text(secret) + "&issuer=" + strings.ReplaceAll(url.QueryEscape(issuer), "+", "%20") + "&algorithm=SHA1&digits=" + strconv.Itoa(digits) +
		"&period=" + strconv.Itoa(int(period/time.Second))
	return u.String()
}

// Step is the number of the period that t is in.
func Step(t time.Time) int64 { return t.Unix() / int64(period/time.Second) }

// Code is the code of a step.
func Code(secret []byte, step int64) string {
	mac := hmac.New(sha1.New, secret)
	var counter [8]byte
	binary.BigEndian.PutUint64(counter[:], uint64(step)) //nolint:gosec // G115: steps are positive until our clocks run before 1970
	_, _ = mac.Write(counter[:])                         // never fails
	sum := mac.Sum(nil)
	at := sum[len(sum)-1] & 0x0f
	n := binary.BigEndian.Uint32(sum[at:at+4]) & 0x7fffffff
	return fmt.Sprintf("%0*d", digits, n%1_000_000)
}

// Match finds the step near now whose code this is. A step up to last is not looked for: a code that was taken is good no
// longer, nor is one from before it. All steps are computed and compared, whichever fits.
func Match(secret []byte, code string, now time.Time, last int64) (step int64, ok bool) {
	for s := Step(now) - skew; s <= Step(now)+skew; s++ {
		if subtle.ConstantTimeCompare([]byte(Code(secret, s)), []byte(code)) == 1 && s > last {
			step, ok = s, true
		}
	}
	return step, ok
}

// IsCode tells whether this is what codes look like.
func IsCode(s string) bool {
	if len(s) != digits {
		return false
	}
	for _, r := range s {
		if r < '0' || r > '9' {
			return false
		}
	}
	return true
}

// quiet is the empty border that the standard demands, in modules.
const quiet = 4

// Picture draws text as a QR code: the d attribute of an SVG path of dark modules, in a square of size units.
func Picture(text string) (path string, size int, err error) {
	code, err := qr.Encode(text, qr.M, qr.Auto)
	if err != nil {
		return "", 0, fmt.Errorf("drawing a QR code: %w", err)
	}
	n := code.Bounds().Dx()
	if n != code.Bounds().Dy() || n == 0 {
		return "", 0, errors.New("drawing a QR code: it is no square")
	}
	var b strings.Builder
	for y := range n {
		for x := 0; x < n; x++ {
			if r, _, _, _ := code.At(x, y).RGBA(); r != 0 {
				continue
			}
			run := 1
			for x+run < n {
				if r, _, _, _ := code.At(x+run, y).RGBA(); r != 0 {
					break
				}
				run++
			}
			fmt.Fprintf(&b, "M%d %dh%dv1h-%dz", x+quiet, y+quiet, run, run)
			x += run
		}
	}
	return b.String(), n + 2*quiet, nil
}
