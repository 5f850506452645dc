package handlers

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// TrustedHeader is how a proxy in front says who somebody is that it has signed in. Whoever could send these headers
// themselves could be anybody: they count from the named peers only, together with the secret, and everything about them
// that is not exactly as such a proxy sends it is refused.
type TrustedHeader struct {
	User, Groups, SecretName string // names of headers: letters, digits and dashes
	Secret                   string
	From                     []netip.Prefix // of the peer of the connection, whatever X-Forwarded-For says
}

// Bounds of what a header may say.
const (
	headerUserMost   = 256
	headerGroupsMost = 200
	headerGroupMost  = 256
)

// Bounds of the record of refusals: whoever sends bad headers must not fill it, nor the memory.
const (
	smuggledEvery = time.Minute
	smuggledMost  = 1024 // addresses that are counted one by one
)

// vouchedFor is whom the trusted proxy names.
type vouchedFor struct {
	name   string // "" for nobody
	groups []string
}

// proxyHeaders checks the headers of a trusted proxy.
type proxyHeaders struct {
	cfg    TrustedHeader
	secret [sha256.Size]byte
	names  []string // canonical

	mu      sync.Mutex // guards what follows; nothing is recorded under it
	refused map[string]*refusals
}

// refusals are those of one address since the last one that was recorded.
type refusals struct {
	told time.Time
	more int
}

func newProxyHeaders(cfg TrustedHeader) (*proxyHeaders, error) {
	h := &proxyHeaders{cfg: cfg, secret: sha256.Sum256([]byte(cfg.Secret)), refused: map[string]*refusals{}}
	for _, name := range []string{cfg.User, cfg.Groups, cfg.SecretName} {
		h.names = append(h.names, http.CanonicalHeaderKey(name))
	}
	if cfg.Secret == "" || len(cfg.From) == 0 || slices.Contains(h.names, "") || len(slices.Compact(slices.Sorted(slices.Values(h.names)))) != len(h.names) {
		return nil, errors.New("handlers: Config.Header is incomplete")
	}
	return h, nil
}

// errSmuggled says what is wrong with the headers of a trusted proxy. It goes into the record, not to whoever asks.
type errSmuggled struct{ why string }

func (e errSmuggled) Error() string { return "refused the headers of a trusted proxy: " + e.why }

// check answers whom the headers of a request name. It is an error that they are there, or something that somebody on
// the way might take for them, and are not exactly what the trusted proxy sends.
func (h *proxyHeaders) check(r *http.Request) (vouchedFor, error) {
	there := map[string]int{}
	for key, values := range r.Header {
		for _, name := range h.names {
			switch {
			case key == name:
				there[name] = len(values)
			case strings.EqualFold(likeDashes(key), name):
				return vouchedFor{}, errSmuggled{"a header that could be taken for " + name}
			}
		}
	}
	for _, line := range r.Header["Connection"] {
		for token := range strings.SplitSeq(line, ",") {
			if slices.Contains(h.names, http.CanonicalHeaderKey(strings.TrimSpace(token))) {
				return vouchedFor{}, errSmuggled{"Connection names one of them, which takes it away on the way"}
			}
		}
	}
	if len(there) == 0 {
		return vouchedFor{}, nil
	}
	if peer := peerOf(r); !slices.ContainsFunc(h.cfg.From, func(p netip.Prefix) bool { return p.Contains(peer) }) {
		return vouchedFor{}, errSmuggled{"they come from a peer that is not trusted"}
	}
	for _, name := range h.names {
		if there[name] > 1 {
			return vouchedFor{}, errSmuggled{name + " is there more than once"}
		}
	}
	sent := sha256.Sum256([]byte(r.Header.Get(h.names[2])))
	if there[h.names[2]] == 0 || subtle.ConstantTimeCompare(sent[:], h.secret[:]) != 1 {
		return vouchedFor{}, errSmuggled{"the secret is missing or wrong"}
	}
	who := vouchedFor{name: r.Header.Get(h.names[0])}
	switch {
	case there[h.names[0]] == 0 && there[h.names[1]] > 0:
		return vouchedFor{}, errSmuggled{"groups of nobody"}
	case there[h.names[0]] == 0:
		return vouchedFor{}, nil // the proxy lets somebody pass whom it does not know
	case !headerText(who.name, headerUserMost) || strings.Contains(who.name, ","):
		return vouchedFor{}, errSmuggled{"the name is empty, too long, a list, or not a text"}
	case there[h.names[1]] == 0:
		return who, nil
	}
	list := r.Header.Get(h.names[1])
	if list == "" {
		return who, nil
	}
	if strings.Count(list, ",") >= headerGroupsMost {
		return vouchedFor{}, errSmuggled{"too many groups"}
	}
	for g := range strings.SplitSeq(list, ",") {
		g = strings.Trim(g, " ")
		if !headerText(g, headerGroupMost) {
			return vouchedFor{}, errSmuggled{"a group is empty, too long, or not a text"}
		}
		who.groups = append(who.groups, g)
	}
	return who, nil
}

// likeDashes is a header's name as servers and proxies may spell it for one another.
func likeDashes(key string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, key)
}

// headerText tells whether a value is a text of 1 to most bytes on one line, without blanks around it.
func headerText(v string, most int) bool {
	return v != "" && len(v) <= most && utf8.ValidString(v) && strings.TrimSpace(v) == v &&
		!strings.ContainsFunc(v, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) })
}

// peerOf is the other end of the connection; the zero address, which is in no prefix, if that is unknown.
func peerOf(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// due counts a refusal of an address and tells whether it is to be recorded now, and how many there were since the last
// one that was: one in a minute for each address, and one for all that are too many to be counted.
func (h *proxyHeaders) due(addr string, now time.Time) (more int, due bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refused[addr] == nil && len(h.refused) >= smuggledMost {
		for a, r := range h.refused {
			if now.Sub(r.told) >= smuggledEvery {
				delete(h.refused, a)
			}
		}
		if len(h.refused) >= smuggledMost {
			addr = ""
		}
	}
	r := h.refused[addr]
	if r == nil {
		h.refused[addr] = &refusals{told: now}
		return 0, true
	}
	if now.Sub(r.told) < smuggledEvery {
		r.more++
		return 0, false
	}
	more, r.more, r.told = r.more, 0, now
	return more, true
}

// vouch learns whom a trusted proxy names, on every request: what is wrong about its headers is refused wherever it is
// sent to, and on record.
func (s *server) vouch(r *http.Request) error {
	if s.proxy == nil {
		return nil
	}
	who, err := s.proxy.check(r)
	stateOf(r).vouched = who
	wrong, ok := errors.AsType[errSmuggled](err)
	if !ok {
		return err
	}
	addr := r.RemoteAddr
	if peer := peerOf(r); peer.IsValid() {
		addr = peer.String()
	}
	if more, due := s.proxy.due(addr, time.Now()); due {
		detail := wrong.why
		if more > 0 {
			detail += fmt.Sprintf("; %d more since the last entry", more)
		}
		s.cfg.Audit.Denied(r.Context(), fleet.Caller{Via: viaHeader, Addr: addr}, "signin", detail)
	}
	return fmt.Errorf("%w: %w", say(fleet.ErrForbidden, "error.header", "the headers of this request name somebody and are not to be trusted"), err)
}

// viaHeader is how the record names what came with the headers of a trusted proxy.
const viaHeader = "header"

// byHeader signs in whom the trusted proxy names, and tells whether it did. Who is signed in as that person stays so.
func (s *server) byHeader(w http.ResponseWriter, r *http.Request, next string) (bool, error) {
	who := stateOf(r).vouched
	if who.name == "" || r.Method != http.MethodGet {
		return false, nil
	}
	from := fleet.Caller{Addr: stateOf(r).addr}
	if s.session(r) != "" {
		if old, err := s.authenticate(r); err == nil {
			if strings.EqualFold(old.Name, who.name) {
				return false, nil
			}
			from.Session = old.Session
		}
	}
	token, expires, err := s.cfg.Auth.SignInByHeader(r.Context(), who.name, who.groups, from, r.UserAgent())
	if errors.Is(err, fleet.ErrForbidden) {
		return false, say(fleet.ErrForbidden, "error.header_refused",
			"the proxy in front vouched for you, but none of your groups may use this program, or your name is taken")
	}
	if err != nil {
		return false, err
	}
	s.dropHalf(w, r)
	s.setCookie(w, token, expires)
	http.Redirect(w, r, next, http.StatusSeeOther) //nolint:gosec // G710: s.next lets only our own pages through
	return true, nil
}
