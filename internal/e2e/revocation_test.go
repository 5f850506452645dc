package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

// Every kind of stream, at two replicas, ends with what its person loses, in whichever way they lose it; the session is
// nobody then, at both, and nothing is left open.
func TestStreams_EndWithTheAuthority(t *testing.T) { //nolint:tparallel // what is left open is counted after the last of them
	t.Parallel()
	c := kubetest.Shared(t)
	node := c.Node(t, kubetest.NodeSpec{}).Name
	second := c.Node(t, kubetest.NodeSpec{Name: kubetest.Name(t, "second")}).Name
	db := storetest.Postgres(t).Database(t)
	metrics := [2]string{freePort(t), freePort(t)}
	a := startServerOn(t, db, "--kubeconfig", c.Kubeconfig, "--metrics-listen", metrics[0])
	b := startServerOn(t, db, "--kubeconfig", c.Kubeconfig, "--metrics-listen", metrics[1])
	password := a.addUser("root", "admin")
	root := &client{t: t, base: a.url}
	root.login("root", password)
	var running batch // it stays between its two nodes for as long as the test needs
	root.json(202, &running, "POST", "/api/v1/batches", slowBatch(c.Name, []string{node, second}, "1h"))
	kinds := []string{
		"/nodes/stream", "/clusters/stream", "/clusters/" + url.PathEscape(c.Name) + "/stream", "/clusters/" + url.PathEscape(c.Name) + "/nodes/" + node + "/stream",
		"/api/v1/nodes/events", "/batches/" + running.ID + "/events", "/api/v1/batches/" + running.ID + "/events",
	}
	another := func() string { // session of root's than that of now
		var list struct {
			Items []struct {
				ID      string
				Current bool
			}
		}
		root.json(200, &list, "GET", "/api/v1/sessions", "")
		for _, s := range list.Items {
			if !s.Current {
				return s.ID
			}
		}
		t.Fatal("root has one session")
		return ""
	}
	for _, tc := range []struct {
		name string
		end  func(who *client)
	}{
		{"out", func(who *client) { who.send("POST", "/logout", "", "").Body.Close() }},
		{"disabled", func(*client) { root.json(204, nil, "PATCH", "/api/v1/users/disabled", `{"disabled":true}`) }},
		{"demoted", func(*client) { root.json(204, nil, "PATCH", "/api/v1/users/demoted", `{"role":"viewer"}`) }},
		{"host", func(*client) { a.run("another long phrase", "user", "set-password", "host", "--password-file", "-") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			who := a.client(t, tc.name, "operator")
			there := &client{t: t, base: b.url, cookie: who.cookie}
			var here, far []*stream
			for _, kind := range kinds {
				here, far = append(here, who.stream("GET", kind, "")), append(far, there.stream("GET", kind, ""))
			}
			for i, st := range slices.Concat(here, far) {
				st.until(kinds[i%len(kinds)]+" to say something", func(event) bool { return true })
			}
			tc.end(who)
			began := time.Now()
			for _, st := range here {
				st.end(patience)
			}
			atOnce := time.Since(began)
			for _, st := range far {
				st.end(patience)
			}
			t.Logf("%d streams ended within %s here, %s at the other replica", len(kinds), atOnce, time.Since(began))
			for _, at := range []*client{who, there} {
				resp := at.send("GET", "/api/v1/nodes", "", "")
				resp.Body.Close()
				if resp.StatusCode != http.StatusUnauthorized {
					t.Errorf("afterwards %s answers %s", at.base, resp.Status)
				}
			}
		})
	}
	// One session among two of a person: the other one goes on.
	t.Run("one of two", func(t *testing.T) {
		other := &client{t: t, base: a.url}
		other.login("root", password)
		st, mineStill := other.stream("GET", "/nodes/stream", ""), root.stream("GET", "/nodes/stream?q="+node, "") // others make nodes enough to fill a page
		st.until("it to say something", func(event) bool { return true })
		root.json(204, nil, "DELETE", "/api/v1/sessions/"+another(), "")
		st.end(patience)
		c.Label(t, node, "topology.kubernetes.io/zone", "after-the-end")
		mineStill.until("what happens after the end of the other", func(e event) bool { return strings.Contains(e.Data, "after-the-end") })
		mineStill.stop()
	})
	for i, addr := range metrics {
		eventually(t, fmt.Sprintf("no stream is left at replica %d", i), func() bool {
			open := 0.0
			for _, format := range []string{"html", "json"} {
				for _, kind := range []string{"nodes", "clusters", "node", "batch"} {
					open += metric(t, addr, fmt.Sprintf(`knm_stream_open{format=%q,kind=%q}`, format, kind))
				}
			}
			return open == 0
		})
	}
	root.json(202, nil, "POST", "/api/v1/batches/"+running.ID+"/cancel", "{}")
}

// Five hundred nodes, and the person who began is demoted, or disabled, in the middle: by the word of the API server no
// more than one write for each worker follows. To sign out is none of that: what was begun goes on.
func TestBatch_EndsWithTheAuthority(t *testing.T) {
	t.Parallel()
	const size, workers = 500, 4
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "zz") // they come last, and fill nobody else's first page
	var names []string
	for _, n := range c.Nodes(t, size, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%03d", name, i)} }) {
		names = append(names, n.Name)
	}
	root := s.client(t, "root", "admin")
	begun := c.AuditLog(t).Mark()
	written := func() int { return len(c.AuditLog(t).Writes(begun, "nodes", mine(name))) }
	body := strings.Replace(slowBatch(c.Name, names, "5ms"), `"max_concurrent":2`, fmt.Sprintf(`"max_concurrent":%d`, workers), 1)
	for _, tc := range []struct {
		name  string
		loses func(*client)
		goes  bool // on, to the end
	}{
		{"demoted", func(*client) { root.json(204, nil, "PATCH", "/api/v1/users/demoted", `{"role":"viewer"}`) }, false},
		{"disabled", func(*client) { root.json(204, nil, "PATCH", "/api/v1/users/disabled", `{"disabled":true}`) }, false},
		{"out", func(who *client) { who.send("POST", "/logout", "", "").Body.Close() }, true},
	} {
		who := s.client(t, tc.name, "operator")
		before := written()
		var b batch
		who.json(202, &b, "POST", "/api/v1/batches", body)
		root.stream("GET", "/api/v1/batches/"+b.ID+"/events", "").until("some to be written", func(e event) bool {
			return e.Name == "progress" && written() >= before+40
		})
		tc.loses(who)
		at := written()
		done := root.batchEnds(b.ID)
		after := written()
		t.Logf("%s: %d written before, %d when it was answered, %d at the end", tc.name, before, at, after)
		switch {
		case tc.goes && (done.Outcome != "succeeded" || after != size):
			t.Errorf("%s: %v, with %d written", tc.name, done, after)
		case !tc.goes && at >= size:
			t.Fatalf("%s: all was written before anything was lost: this proves nothing", tc.name)
		case !tc.goes && (after > at+workers || done.Outcome != "cancelled"):
			t.Errorf("%s: %d writes after the answer, want at most %d; %v", tc.name, after-at, workers, done)
		}
	}
	writtenOnce(t, c, begun, name, names)
}
