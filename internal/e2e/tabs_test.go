package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/security"
	"github.com/chromedp/chromedp"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// eventually asks again until it is so. It is for what only a poll can see.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	until(t, what, patience, ok)
}

// metric is the value of one series of the program, 0 for one that is not there.
func metric(t testing.TB, addr, series string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), series+" "); ok {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatalf("%s: %v", series, err)
			}
			return v
		}
	}
	return 0
}

// trust accepts the certificate that the server made for itself.
func (tb *tab) trust() {
	tb.t.Helper()
	tb.do("accepting the certificate", chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		_, err := cdp.Call(ctx, tg, security.SetIgnoreCertificateErrors, security.SetIgnoreCertificateErrorsParams{Ignore: true})
		return err
	}))
}

// Ten visible tabs of one person. Over plain HTTP/1.1 the browser has six connections for all of them, and still every
// tab loads and follows; over HTTPS all ten streams last.
func TestTabs_TenFollow(t *testing.T) {
	for _, tc := range []struct {
		name    string
		args    []string
		lasting float64
	}{
		{"http", nil, 4},
		{"https", []string{"--tls-self-signed"}, 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const tabs = 10
			c := kubetest.Shared(t)
			metrics := freePort(t)
			s := startServerWith(t, append([]string{"--kubeconfig", c.Kubeconfig, "--metrics-listen", metrics}, tc.args...)...)
			name := kubetest.Name(t, "n")
			node := c.Node(t, kubetest.NodeSpec{Name: name}).Name
			password := s.addUser("ada", "viewer")
			first := newTab(t, s.url)
			if s.tls {
				first.trust()
			}
			first.visit("/login")
			first.fill("input[name=username]", "ada")
			first.fill("input[name=password]", password)
			first.click("form[action='/login'] button")
			first.wait("signed in", `location.pathname === '/nodes'`)
			all := []*tab{first}
			for range tabs - 1 {
				next := first.sibling()
				if s.tls {
					next.trust()
				}
				all = append(all, next)
			}
			for i, tb := range all {
				tb.visit(fmt.Sprintf("/nodes?q=%s&per_page=%d", name, []int{20, 50, 100, 200}[i%4]))
				tb.wait(fmt.Sprintf("tab %d is live", i), isLive+` && !document.hidden && `+there(row(c.Name, node)))
			}
			for round := range 2 {
				mark := fmt.Sprintf("zone-%d", round)
				c.Label(t, node, "topology.kubernetes.io/zone", mark)
				for i, tb := range all {
					tb.wait(fmt.Sprintf("tab %d follows", i), in(row(c.Name, node)+` .c-zone`, mark))
				}
			}
			// Brief ones are between two visits most of the time.
			eventually(t, "as many streams last as have a place", func() bool {
				return metric(t, metrics, `knm_stream_open{format="html",kind="nodes"}`) == tc.lasting
			})
			hinted := 0
			for i, tb := range all {
				if !eval[bool](tb, isLive) {
					t.Errorf("tab %d says %q", i, tb.text("#live-state"))
				}
				if eval[bool](tb, `document.getElementById('live-state').title !== ''`) {
					hinted++
				}
			}
			if hinted != tabs-int(tc.lasting) {
				t.Errorf("%d tabs say that they update every few seconds, want %d", hinted, tabs-int(tc.lasting))
			}
			if got := metric(t, metrics, `knm_stream_refused_total{reason="session"}`); got != 0 {
				t.Errorf("%v streams were refused", got)
			}
			if tc.lasting == tabs {
				return
			}
			// A place is free: one of those who come back gets it.
			all[0].close()
			eventually(t, "the place is taken", func() bool {
				return metric(t, metrics, `knm_stream_admitted_total{served="lasting"}`) >= tc.lasting+1
			})
		})
	}
}
