package totp

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
)

// The vectors of RFC 6238, appendix B, of which six digits are used here.
func TestCode_RFC6238(t *testing.T) {
	t.Parallel()
	secret := []byte("12345678901234567890")
	for unix, want := range map[int64]string{
		59: "94287082", 1111111109: "07081804", 1111111111: "14050471", 1234567890: "89005924", 2000000000: "69279037", 20000000000: "65353130",
	} {
		if got := Code(secret, Step(time.Unix(unix, 0))); got != want[2:] {
			t.Errorf("at %d: %s, want %s", unix, got, want[2:])
		}
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	secret, now := Secret(), time.Unix(1_800_000_015, 0)
	at := Step(now)
	for _, tt := range []struct {
		what  string
		code  string
		last  int64
		want  int64
		wants bool
	}{
		{"now", Code(secret, at), 0, at, true},
		{"a step ago", Code(secret, at-1), 0, at - 1, true},
		{"a step ahead", Code(secret, at+1), 0, at + 1, true},
		{"two steps ago", Code(secret, at-2), 0, 0, false},
		{"two steps ahead", Code(secret, at+2), 0, 0, false},
		{"used", Code(secret, at), at, 0, false},
		{"from before the last one used", Code(secret, at-1), at, 0, false},
		{"after the last one used", Code(secret, at+1), at, at + 1, true},
		{"empty", "", 0, 0, false},
		{"too long", Code(secret, at) + "0", 0, 0, false},
	} {
		step, ok := Match(secret, tt.code, now, tt.last)
		if step != tt.want || ok != tt.wants {
			t.Errorf("%s: %d, %t; want %d, %t", tt.what, step, ok, tt.want, tt.wants)
		}
	}
}

func TestSecret(t *testing.T) {
	t.Parallel()
	a, b := Secret(), Secret()
	if len(a) != secretBytes || string(a) == string(b) {
		t.Errorf("%x, %x", a, b)
	}
}

func TestURI(t *testing.T) {
	t.Parallel()
	secret := []byte("12345678901234567890")
	uri := URI("nodes & co: x", "ada@example.org", secret)
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if u.Scheme != "otpauth" || u.Host != "totp" || u.Path != "/nodes & co: x:ada@example.org" ||
		q.Get("secret") != "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ" || q.Get("issuer") != "nodes & co: x" || strings.Contains(uri, "+") {
		t.Errorf("%s", uri)
	}
}

// TestPicture reads the picture back far enough to know that it is a QR code: the three corners, the quiet border, and a
// size of the standard.
func TestPicture(t *testing.T) {
	t.Parallel()
	path, size, err := Picture(URI("kube-node-manager", "ada", Secret()))
	if err != nil {
		t.Fatal(err)
	}
	if (size-2*quiet-17)%4 != 0 {
		t.Errorf("%d modules are no version of a QR code", size-2*quiet)
	}
	dark := map[[2]int]bool{}
	for run := range strings.SplitSeq(strings.TrimSuffix(path, "z"), "z") {
		var x, y, n, back int
		if _, err := fmt.Sscanf(run, "M%d %dh%dv1h-%d", &x, &y, &n, &back); err != nil || n != back {
			t.Fatalf("%q: %v", run, err)
		}
		for i := range n {
			dark[[2]int{x + i, y}] = true
		}
	}
	finder := []string{"#######", "#.....#", "#.###.#", "#.###.#", "#.###.#", "#.....#", "#######"}
	far := size - quiet - 7
	for _, corner := range [][2]int{{quiet, quiet}, {far, quiet}, {quiet, far}} {
		for dy, row := range finder {
			for dx, c := range row {
				if dark[[2]int{corner[0] + dx, corner[1] + dy}] != (c == '#') {
					t.Fatalf("corner %v is wrong at %d, %d", corner, dx, dy)
				}
			}
		}
	}
	for at := range dark {
		if at[0] < quiet || at[1] < quiet || at[0] >= size-quiet || at[1] >= size-quiet {
			t.Errorf("the border is not quiet at %v", at)
		}
	}
	if _, _, err := Picture(strings.Repeat("x", 5000)); err == nil {
		t.Error("more was drawn than fits")
	}
}
