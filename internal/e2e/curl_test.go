package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// The README's curl lines, with cookie and with token: list, detail, events, a batch with its progress.
func TestAPI_AsTheReadmeShows(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	node := c.Node(t, kubetest.NodeSpec{Name: kubetest.Name(t, "n"), Labels: map[string]string{"example.com/pool": "blue"}}).Name
	ada := s.client(t, "ada", "operator")

	var token struct{ Secret, Token, ID string }
	ada.json(201, &token, "POST", "/api/v1/tokens", `{"name":"ci"}`)
	secret := token.Secret + token.Token
	if !strings.HasPrefix(secret, "knm_") {
		t.Fatalf("no token in the answer: %+v", token)
	}
	s.used("the token", secret)
	bearer := &client{t: t, base: s.url, bearer: secret}

	events := bearer.stream("GET", "/api/v1/nodes/events?cluster="+c.Name+"&q=label:example.com/pool=blue", "")
	type message struct {
		Type, ClusterName, NodeName string
		Changes                     []string
		Data                        map[string]any
	}
	decode := func(e event) message {
		var raw struct {
			Type        string         `json:"type"`
			ClusterName string         `json:"cluster_name"`
			NodeName    string         `json:"node_name"`
			Data        map[string]any `json:"data"`
			Timestamp   string         `json:"timestamp"`
			Changes     []string       `json:"changes"`
		}
		if err := json.Unmarshal([]byte(e.Data), &raw); err != nil {
			t.Fatalf("not JSON: %v: %s", err, e.Data)
		}
		if raw.Type != e.Name {
			t.Errorf("event %q carries type %q", e.Name, raw.Type)
		}
		return message{raw.Type, raw.ClusterName, raw.NodeName, raw.Changes, raw.Data}
	}
	events.until("node_add of the state", func(e event) bool { return e.Name == "node_add" && decode(e).NodeName == node })
	synced := events.until("synced", func(e event) bool { return e.Name == "synced" })

	var list struct {
		Items    []map[string]any
		Revision uint64
	}
	for _, who := range []*client{ada, bearer} {
		list.Items = nil
		who.json(200, &list, "GET", "/api/v1/nodes?cluster_name="+c.Name+"&q="+node, "")
		if len(list.Items) != 1 || list.Items[0]["name"] != node || list.Revision == 0 {
			t.Errorf("nodes: %+v", list)
		}
	}

	// A batch whose POST is its progress.
	progress := bearer.stream("POST", "/api/v1/batches", "action=cordon&nodes="+c.Name+"/"+node+"&reason=disk+swap")
	done := progress.until("done", func(e event) bool { return e.Name == "done" })
	var b batch
	if err := json.Unmarshal([]byte(done.Data), &b); err != nil || b.Outcome != "succeeded" || len(b.Items) != 1 {
		t.Errorf("done: %v: %s", err, done.Data)
	}
	e := events.until("the cordon", func(e event) bool { return e.Name == "node_update" && decode(e).NodeName == node })
	if m := decode(e); !strings.Contains(strings.Join(m.Changes, " "), "Schedulable") || m.Data["schedulable"] != false {
		t.Errorf("changes %v, data.schedulable %v", m.Changes, m.Data["schedulable"])
	}

	// The writer reads its own write, and a second stream resumes where the first one was.
	var one map[string]any
	bearer.json(200, &one, "GET", "/api/v1/nodes/"+c.Name+"/"+node, "")
	if cordon, _ := one["cordon"].(map[string]any); cordon["by"] != "ada" || cordon["reason"] != "disk swap" {
		t.Errorf("cordon %v", one["cordon"])
	}
	var full struct {
		Kind     string
		Spec     struct{ Unschedulable bool }
		Metadata struct{ Name string }
	}
	bearer.json(200, &full, "GET", "/api/v1/nodes/"+c.Name+"/"+node+"?full=1", "")
	if full.Metadata.Name != node || !full.Spec.Unschedulable {
		t.Errorf("full: %+v", full)
	}
	resumed := bearer.stream("GET", "/api/v1/nodes/events?cluster="+c.Name+"&q=label:example.com/pool=blue", "", "Last-Event-ID", synced.ID)
	if e := resumed.until("the first message", func(event) bool { return true }); e.Name != "node_update" || decode(e).NodeName != node {
		t.Errorf("a resumed stream begins with %s %s, want the one change since", e.Name, e.Data)
	}
}

// The same key twice is one batch.
func TestAPI_IdempotencyKey(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	node := c.Node(t, kubetest.NodeSpec{Name: kubetest.Name(t, "n")}).Name
	ada := s.client(t, "ada", "operator")
	body := fmt.Sprintf(`{"action":"cordon","nodes":"%s/%s"}`, c.Name, node)
	var first, second batch
	ada.json(202, &first, "POST", "/api/v1/batches", body, "Idempotency-Key", "k1")
	ada.json(202, &second, "POST", "/api/v1/batches", body, "Idempotency-Key", "k1")
	if first.ID == "" || first.ID != second.ID {
		t.Errorf("two batches: %s and %s", first.ID, second.ID)
	}
	ada.json(409, nil, "POST", "/api/v1/batches", strings.Replace(body, "cordon", "uncordon", 1), "Idempotency-Key", "k1")
}

// What is wrong is refused with the right status and a message that names the field, and nothing is half-applied.
func TestAPI_BadInput(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	node := c.Node(t, kubetest.NodeSpec{Name: kubetest.Name(t, "n")}).Name
	op, viewer := s.client(t, "ada", "operator"), s.client(t, "eve", "viewer")
	nobody := &client{t: t, base: s.url}
	good := fmt.Sprintf(`{"action":"cordon","nodes":"%s/%s"}`, c.Name, node)
	mark := c.AuditLog(t).Mark()
	for _, tc := range []struct {
		name               string
		who                *client
		method, path, body string
		status             int
		says               string
	}{
		{"no session", nobody, "GET", "/api/v1/nodes", "", 401, ""},
		{"viewer posts a batch", viewer, "POST", "/api/v1/batches", good, 403, ""},
		{"unknown cluster", op, "GET", "/api/v1/nodes?cluster_name=nowhere", "", 404, "nowhere"},
		{"unknown node", op, "GET", "/api/v1/nodes/" + c.Name + "/nothing", "", 404, "nothing"},
		{"unknown query word", op, "GET", "/api/v1/nodes?q=colour:red", "", 422, "colour"},
		{"unknown sort", op, "GET", "/api/v1/nodes?sort=colour", "", 422, "colour"},
		{"bad selector", op, "GET", "/api/v1/nodes?q=label:%22a+in+(%22", "", 422, "label"},
		{"unknown field", op, "POST", "/api/v1/batches", `{"action":"cordon","nodes":"a/b","colour":"red"}`, 422, "colour"},
		{"unknown action", op, "POST", "/api/v1/batches", `{"action":"explode","nodes":"a/b"}`, 422, "explode"},
		{"no nodes", op, "POST", "/api/v1/batches", `{"action":"cordon"}`, 422, "nodes"},
		{"node name with a slash", op, "POST", "/api/v1/batches", fmt.Sprintf(`{"action":"cordon","nodes":"%s/../secrets"}`, c.Name), 422, "nodes"},
		{"one bad among good", op, "POST", "/api/v1/batches", fmt.Sprintf(`{"action":"cordon","nodes":"%s/%s\n%s/UPPER"}`, c.Name, node, c.Name), 422, "UPPER"},
		{"too large", op, "POST", "/api/v1/batches", `{"action":"cordon","nodes":"` + strings.Repeat("x", 3<<20) + `"}`, 413, ""},
		{"not JSON", op, "POST", "/api/v1/batches", `{"action"`, 422, "JSON"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			contentType := ""
			if tc.body != "" {
				contentType = "application/json"
			}
			resp := tc.who.send(tc.method, tc.path, contentType, tc.body)
			defer resp.Body.Close()
			var problem struct {
				Status int
				Title  string
				Detail string
				Field  string
			}
			var raw bytes.Buffer
			if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 1<<20)).Decode(&problem); err != nil {
				t.Fatalf("%s: the body is no problem document: %v", resp.Status, err)
			}
			fmt.Fprintf(&raw, "%+v", problem)
			if resp.StatusCode != tc.status || problem.Status != tc.status {
				t.Errorf("status %d (in the body %d), want %d: %s", resp.StatusCode, problem.Status, tc.status, &raw)
			}
			if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "application/problem+json") {
				t.Errorf("content type %q", ct)
			}
			if tc.says != "" && !strings.Contains(raw.String(), tc.says) {
				t.Errorf("the message does not name %q: %s", tc.says, &raw)
			}
		})
	}
	if w := c.AuditLog(t).Writes(mark, "nodes", mine("")); len(w) != 0 {
		t.Errorf("refused requests led to %d writes: %v", len(w), w)
	}
}

// Page views come from the cache: the API server sees no call of ours for them.
func TestPages_MakeNoAPICalls(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	nodes := c.Nodes(t, 20, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%02d", name, i)} })
	ada := s.client(t, "ada", "operator")
	st := ada.stream("GET", "/api/v1/nodes/events?q="+name, "")
	for range nodes {
		st.until("a node", func(e event) bool { return e.Name == "node_add" })
	}
	mark := c.AuditLog(t).Mark()
	for range 5 {
		for _, path := range []string{
			"/nodes", "/nodes?q=" + name + "&sort=-age", "/clusters/" + c.Name + "/nodes", "/clusters/" + c.Name + "/nodes/" + nodes[0].Name,
			"/clusters", "/batches", "/api/v1/nodes", "/api/v1/clusters", "/api/v1/nodes/" + c.Name + "/" + nodes[1].Name + "?full=1",
		} {
			resp := ada.send("GET", path, "", "", "Accept", "text/html,application/json")
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", path, resp.Status)
			}
		}
	}
	if n := calls(t, c, mark); n != 0 {
		t.Errorf("page views made %d calls to the API server", n)
	}
}

// The watch command prints what happens, one JSON object a line.
func TestWatchCommand(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	node := c.Node(t, kubetest.NodeSpec{Name: kubetest.Name(t, "n")}).Name
	ada := s.client(t, "ada", "viewer")
	var token struct{ Secret, Token string }
	ada.json(201, &token, "POST", "/api/v1/tokens", `{"name":"watch"}`)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := program("watch", "--server", s.url, "--cluster", c.Name)
	w := exec.CommandContext(ctx, p.Path, p.Args[1:]...)
	w.Env = append(p.Env, "KNM_TOKEN="+token.Secret+token.Token)
	out, err := w.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = w.Wait() }() // it was told to end: that it was killed is what we asked for
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		dec := json.NewDecoder(out)
		for {
			var raw json.RawMessage
			if dec.Decode(&raw) != nil {
				return
			}
			lines <- string(raw)
		}
	}()
	saw := func(what, typ string) {
		t.Helper()
		for line := range lines {
			if strings.Contains(line, `"type":"`+typ+`"`) && strings.Contains(line, node) {
				return
			}
		}
		t.Fatalf("the command ended before %s", what)
	}
	saw("the node", "node_add")
	c.Cordon(t, node)
	saw("the cordon", "node_update")
}
