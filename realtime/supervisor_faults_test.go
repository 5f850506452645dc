package realtime

import (
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/faultproxy"
)

// proxied is an API server behind a TCP proxy.
type proxied struct {
	*faultproxy.TCP
	rest *rest.Config
}

func through(t testing.TB, cfg *rest.Config) proxied {
	t.Helper()
	p := faultproxy.NewTCP(t, strings.TrimPrefix(cfg.Host, "https://"), 1)
	cfg = rest.CopyConfig(cfg)
	cfg.Host = "https://" + p.Addr()
	return proxied{p, cfg}
}
