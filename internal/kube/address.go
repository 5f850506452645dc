package kube

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Addresses say where connections to clusters that came in through the web may go. The zero value lets them go
// everywhere but to this host, to neighbours by link-local address, to what is no single host, and to the metadata
// services of clouds. Private ranges are where clusters live and are open.
type Addresses struct {
	Allow    []netip.Prefix // of loopback and link-local, what may be connected to all the same
	Resolver *net.Resolver  // nil: that of the system
}

// AddressError says that an address may not be connected to. It is ErrUnavailable.
type AddressError struct {
	Addr netip.Addr
	Why  string
}

func (e *AddressError) Error() string {
	return fmt.Sprintf("%s is %s, which clusters added through the web may not lead to", e.Addr, e.Why)
}

// Is makes every AddressError an ErrUnavailable.
func (e *AddressError) Is(target error) bool { return target == fleet.ErrUnavailable }

// Where metadata services of clouds answer, with credentials of the machine: never to be opened.
var metadata = addrs(
	"169.254.169.254", "169.254.169.253", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23", // AWS, and most others
	"fd20:ce::254",    // Google
	"100.100.100.200", // Alibaba
	"168.63.129.16",   // Azure
	"192.0.0.192",     // Oracle
)

func addrs(texts ...string) map[netip.Addr]bool {
	m := map[netip.Addr]bool{}
	for _, t := range texts {
		m[netip.MustParseAddr(t)] = true
	}
	return m
}

// Ranges that are no host.
var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	reserved    = netip.MustParsePrefix("240.0.0.0/4") // and broadcast
	siteLocal   = netip.MustParsePrefix("fec0::/10")
)

// embedding are the ranges of IPv6 that stand for an address of IPv4, and where in them it is.
var embedding = []struct {
	prefix netip.Prefix
	at     int  // first of its four bytes
	invert bool // Teredo writes it inverted
}{
	{netip.MustParsePrefix("::/96"), 12, false},             // IPv4-compatible, long deprecated
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12, false},   // IPv4-translated
	{netip.MustParsePrefix("64:ff9b::/96"), 12, false},      // NAT64
	{netip.MustParsePrefix("64:ff9b:1::/48"), 12, false},    // local NAT64, as it is used with /96
	{netip.MustParsePrefix("2002::/16"), 2, false},          // 6to4
	{netip.MustParsePrefix("2001::/32"), 12, true},          // Teredo, the client
	{netip.MustParsePrefix("2001::/32"), 4, false},          // Teredo, the server
	{netip.MustParsePrefix("fe80::5efe:0:0/96"), 12, false}, // ISATAP
}

// Check says why an address may not be connected to, nil if it may.
func (p Addresses) Check(a netip.Addr) error {
	a = a.WithZone("").Unmap()
	why, open := closed(a)
	if why == "" && a.Is6() {
		b := a.As16()
		for _, e := range embedding {
			if !e.prefix.Contains(a) {
				continue
			}
			v4 := [4]byte(b[e.at : e.at+4])
			for i := range v4 {
				if e.invert {
					v4[i] ^= 0xff
				}
			}
			if inner, openable := closed(netip.AddrFrom4(v4)); inner != "" {
				why, open = "another writing of "+netip.AddrFrom4(v4).String()+", "+inner, openable
				break
			}
		}
	}
	if why == "" || open && p.allows(a) {
		return nil
	}
	return &AddressError{Addr: a, Why: why}
}

func (p Addresses) allows(a netip.Addr) bool {
	for _, prefix := range p.Allow {
		if prefix.Contains(a) {
			return true
		}
	}
	return false
}

// closed says what an address is that may not be connected to, and whether the operator of the host may open it.
func closed(a netip.Addr) (why string, openable bool) {
	switch {
	case !a.IsValid():
		return "no address", false
	case metadata[a]:
		return "the metadata service of a cloud", false
	case a.IsUnspecified(), thisNetwork.Contains(a):
		return "unspecified", false
	case a.IsMulticast():
		return "multicast", false
	case reserved.Contains(a):
		return "reserved", false
	case a.IsLoopback():
		return "this host", true
	case a.IsLinkLocalUnicast(), siteLocal.Contains(a):
		return "link-local", true
	}
	return "", false
}

// CheckHost checks a host of a URL that is an address already. A name is nothing before it is resolved, and is checked
// when it is dialed.
func (p Addresses) CheckHost(host string) error {
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		return nil //nolint:nilerr // a name
	}
	return p.Check(a)
}

// dial connects to what may be connected to. It is decided on the address of each connection that is about to be made,
// after names were resolved: a name that was checked before could lead elsewhere by then.
func (p Addresses) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{
		Timeout: dialTimeout, KeepAlive: keepAlive, Resolver: p.Resolver,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return &AddressError{Why: "no address"}
			}
			return p.Check(ap.Addr())
		},
	}
	return d.DialContext(ctx, network, address)
}
