package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

const isLive = `document.getElementById('live-state').dataset.uiState === 'live'`

// curl reads a compressed stream message by message, and the plain one says the same.
func TestStream_CompressedForCurl(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	node := c.Node(t, kubetest.NodeSpec{Name: name}).Name
	ada := s.client(t, "ada", "viewer")
	follow := func(args ...string) *bufio.Scanner {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		args = append([]string{"-sNi", "-b", ada.cookie.Name + "=" + ada.cookie.Value}, args...)
		curl := exec.CommandContext(ctx, "curl", append(args, s.url+"/api/v1/nodes/events?q="+name)...)
		out, err := curl.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := curl.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cancel()
			_ = curl.Wait() // it was killed
		})
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		return lines
	}
	until := func(lines *bufio.Scanner, what string) (head string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), what) {
				return head
			}
			head += strings.ToLower(lines.Text()) + "\n"
		}
		t.Fatalf("the stream ended before %s: %v\n%s", what, lines.Err(), head)
		return ""
	}
	zipped, plain := follow("--compressed"), follow()
	if head := until(zipped, "event: synced"); !strings.Contains(head, "content-encoding: gzip") {
		t.Errorf("not compressed:\n%s", head)
	}
	if head := until(plain, "event: synced"); strings.Contains(head, "content-encoding") {
		t.Errorf("compressed for somebody who did not ask:\n%s", head)
	}
	for i := range 3 {
		mark := fmt.Sprintf("mark-%d", i)
		c.Label(t, node, "example.com/mark", mark)
		until(zipped, mark)
		until(plain, mark)
	}
}

// The program ends while somebody looks, and others work. The page follows the next one without a reload of its own: no
// row of the past stays. Another build is announced.
func TestPage_FollowsTheNextServer(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	nodes := c.Nodes(t, 4, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%d", name, i)} })
	ada := s.signIn(t, "ada", "viewer")
	ada.visit("/nodes?q=" + name)
	ada.wait("four rows, live", isLive+` && document.querySelectorAll('#rows tr').length === 4`)
	eval[bool](ada, `window.notReloaded = true`)

	s.stop()
	ada.wait("it says that it reconnects", `document.getElementById('live-state').dataset.uiState === 'reconnecting'`)
	c.DeleteNode(t, nodes[1].Name)
	c.Cordon(t, nodes[0].Name)
	late := c.Node(t, kubetest.NodeSpec{Name: name + "-late"}).Name
	s.start()
	ada.wait("live again", isLive)
	ada.wait("no row of the past", `!(`+there(row(c.Name, nodes[1].Name))+`)`)
	ada.wait("what changed meanwhile", there(row(c.Name, nodes[0].Name)+`.cordoned`)+` && `+there(row(c.Name, late)))
	if eval[bool](ada, there(`#live-bar`)) {
		t.Error("the same build is announced as a new one")
	}

	s.stop()
	s.version = "another"
	s.start()
	ada.wait("the new build is announced", `document.querySelector('#live-bar a')?.getAttribute('href') === '/nodes?q=`+name+`'`)
	ada.wait("and the page lives on", isLive)
	c.Uncordon(t, nodes[0].Name)
	ada.wait("changes arrive", there(row(c.Name, nodes[0].Name)+`:not(.cordoned)`))
	if !eval[bool](ada, `window.notReloaded === true`) {
		t.Error("the page was reloaded in between")
	}
	ada.click(`#live-bar a`)
	ada.wait("the new page", `window.notReloaded !== true && `+isLive)
	if eval[bool](ada, there(`#live-bar`)) {
		t.Error("the new page is told to reload again")
	}
}

// The way to the server swallows everything without a word. The page notices by itself, says so, and comes back on a
// new connection.
func TestPage_NoticesASilentServer(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	way := newDitch(t, s.listen)
	name := kubetest.Name(t, "n")
	node := c.Node(t, kubetest.NodeSpec{Name: name}).Name
	s.url = "http://" + way.addr
	ada := s.signIn(t, "ada", "viewer")
	ada.visit("/nodes?q=" + name)
	ada.wait("live", isLive+` && `+there(row(c.Name, node)))
	eval[bool](ada, `(() => {
		window.states = [];
		const light = document.getElementById('live-state');
		new MutationObserver(() => window.states.push(light.dataset.uiState)).observe(light, {attributes: true, attributeFilter: ['data-ui-state']});
		document.querySelector('[data-live]').dataset.silence = 3000;
		return true;
	})()`)
	way.swallow()
	c.Cordon(t, node)
	ada.wait("the change, over another connection", there(row(c.Name, node)+`.cordoned`))
	if states := eval[[]string](ada, `window.states`); len(states) < 2 || states[0] != "stale" || states[len(states)-1] != "live" {
		t.Errorf("the page went through %q, want stale and then live", states)
	}
}

// A session that is ended elsewhere ends its pages, which offer to sign in and do not ask again.
func TestPage_EndsWithItsSession(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	ada := s.signIn(t, "ada", "viewer")
	ada.wait("live", isLive)
	other := ada.sibling()
	other.visit("/clusters")
	other.wait("live", isLive)
	other.click(`form[action="/logout"] button`)
	ada.wait("the bar", there(`#live-bar[role=alert] a[href^="/login?next="]`))
	asked := eval[int](ada, `performance.getEntriesByType('resource').filter(e => e.name.includes('/stream')).length`)
	// A loop that went on would ask again within a second.
	eval[bool](ada, `new Promise(ok => setTimeout(() => ok(true), 2500))`)
	if again := eval[int](ada, `performance.getEntriesByType('resource').filter(e => e.name.includes('/stream')).length`); again != asked {
		t.Errorf("asked %d times again after the session had ended", again-asked)
	}
}

// A hidden tab holds no stream, and shows the exact state when somebody looks again.
func TestPage_HiddenTabHoldsNoStream(t *testing.T) {
	c := kubetest.Shared(t)
	metrics := freePort(t)
	s := startServerWith(t, "--kubeconfig", c.Kubeconfig, "--metrics-listen", metrics)
	name := kubetest.Name(t, "n")
	nodes := c.Nodes(t, 3, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%d", name, i)} })
	ada := s.signIn(t, "ada", "viewer")
	ada.visit("/nodes?q=" + name)
	ada.wait("live", isLive+` && document.querySelectorAll('#rows tr').length === 3`)
	hide := func(on bool) {
		eval[bool](ada, fmt.Sprintf(`(() => {
			Object.defineProperty(document, 'hidden', {configurable: true, get: () => %t});
			document.dispatchEvent(new Event('visibilitychange'));
			return true;
		})()`, on))
	}
	hide(true)
	eventually(t, "no stream is open", func() bool { return metric(t, metrics, `knm_stream_open{format="html",kind="nodes"}`) == 0 })
	c.DeleteNode(t, nodes[1].Name)
	c.Cordon(t, nodes[0].Name)
	late := c.Node(t, kubetest.NodeSpec{Name: name + "-late"}).Name
	hide(false)
	ada.wait("the exact state", `document.querySelectorAll('#rows tr').length === 3 && `+there(row(c.Name, nodes[0].Name)+`.cordoned`)+` && `+
		there(row(c.Name, late))+` && !(`+there(row(c.Name, nodes[1].Name))+`)`)
	ada.wait("live", isLive)
}

// ditch is a way to the server into which everything can be made to fall that comes back on the streams of now.
type ditch struct {
	addr string

	mu    sync.Mutex // guards conns
	conns []*fallen
}

// fallen is one connection; its bytes arrive until it is swallowed.
type fallen struct {
	net.Conn
	mu     sync.Mutex // guards everything below
	stream bool       // a stream is on it
	gone   bool
}

func (f *fallen) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return len(p), nil
	}
	f.stream = f.stream || bytes.Contains(p, []byte("text/event-stream"))
	return f.Conn.Write(p)
}

func newDitch(t *testing.T, to string) *ditch {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &ditch{addr: l.Addr().String()}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { d.carry(ctx, conn, to) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		wg.Wait()
	})
	return d
}

func (d *ditch) carry(ctx context.Context, from net.Conn, to string) {
	server, err := new(net.Dialer).DialContext(ctx, "tcp", to)
	if err != nil {
		from.Close()
		return
	}
	back := &fallen{Conn: from}
	d.mu.Lock()
	d.conns = append(d.conns, back)
	d.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { from.Close(); server.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(server, from) // until one side has had enough
		server.Close()
	})
	wg.Go(func() {
		_, _ = io.Copy(back, server)
		from.Close()
	})
	wg.Wait()
}

// swallow lets nothing through any more on the connections that carry a stream. Others would only be tried by the
// browser one after the other.
func (d *ditch) swallow() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		c.mu.Lock()
		c.gone = c.stream
		c.mu.Unlock()
	}
}
