package auth

import (
	"math"
	"net/netip"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// The limits of failed sign-ins. An attempt counts as failed until it turns out well, so that any number of attempts at
// once get no further than the same number one after the other.
const (
	nameFree   = 5 // failures of one name, or of one known browser, within nameWindow that cost nothing
	nameWindow = 5 * time.Minute
	delayMost  = 15 * time.Minute // the delay doubles from a second to this; it is never for ever

	addrMost   = 20 // failures of one address, or of one /64, within addrWindow
	addrWindow = time.Minute

	allMost   = 600 // failures of everybody within allWindow
	allWindow = time.Minute

	// quiet is how long a counter is kept that no longer counts.
	quiet = time.Hour
)

// attemptKeys are the counters of one attempt; whose is that of a name or of a known browser. The order is the same for
// everybody, so that two attempts never wait for each other's rows.
func attemptKeys(whose fleet.AttemptKey, addr string) []fleet.AttemptKey {
	return append(addrKeys(addr), whose)
}

// addrKeys are the counters of an attempt of nobody in particular.
func addrKeys(addr string) []fleet.AttemptKey {
	return []fleet.AttemptKey{
		{Scope: fleet.AttemptAll, Subject: "all"},
		{Scope: fleet.AttemptAddr, Subject: addrSubject(addr)},
	}
}

// addrSubject is what of an address belongs to one customer: the address of version 4, the /64 of version 6.
func addrSubject(addr string) string {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return "unknown"
	}
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a.String()
	}
	p, err := a.Prefix(64)
	if err != nil {
		return "unknown"
	}
	return p.String()
}

// count says what the counters become with one more attempt at now, or refuses it with a LimitError.
func count(keys []fleet.AttemptKey, have []fleet.Attempts, now time.Time) ([]fleet.Attempts, error) {
	next := make([]fleet.Attempts, len(have))
	addr, all := addrMost, allMost
	if keys[len(keys)-1].Scope == fleet.AttemptDevice { // counted, and not refused: see asKnown
		addr, all = math.MaxInt, math.MaxInt
	}
	for i, a := range have {
		var err error
		switch keys[i].Scope {
		case fleet.AttemptName, fleet.AttemptDevice:
			next[i], err = countDelayed(a, now)
		case fleet.AttemptAddr:
			next[i], err = countWindow(a, now, addr, addrWindow)
		case fleet.AttemptAll:
			next[i], err = countWindow(a, now, all, allWindow)
		}
		if err != nil {
			return nil, err
		}
	}
	return next, nil
}

func countDelayed(a fleet.Attempts, now time.Time) (fleet.Attempts, error) {
	if wait := a.Blocked.Sub(now); wait > 0 {
		return a, tooMany(wait)
	}
	over := a.Since.Add(nameWindow) // while free
	if a.Count >= nameFree {
		over = a.Blocked.Add(delayMost)
	}
	if a.Count == 0 || !now.Before(over) {
		a = fleet.Attempts{Since: now}
	}
	a.Count++
	if a.Count >= nameFree {
		a.Blocked = now.Add(delay(a.Count - nameFree))
	}
	return a, nil
}

// delay doubles from one second.
func delay(n int) time.Duration {
	if n >= 10 { // 2¹⁰ s are more than delayMost
		return delayMost
	}
	return min(time.Second<<n, delayMost)
}

func countWindow(a fleet.Attempts, now time.Time, most int, window time.Duration) (fleet.Attempts, error) {
	if a.Count == 0 || !now.Before(a.Since.Add(window)) {
		a = fleet.Attempts{Since: now}
	}
	if a.Count >= most {
		return a, tooMany(a.Since.Add(window).Sub(now))
	}
	a.Count++
	return a, nil
}

// tooMany rounds up: who comes back at the time that is told must not come in vain.
func tooMany(wait time.Duration) error {
	return &fleet.LimitError{What: "sign-in", Retry: time.Duration(math.Ceil(wait.Seconds())) * time.Second}
}
