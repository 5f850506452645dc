package e2e

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// hostileWords do something in every place of a document that forgets to escape them.
const hostileWords = `"><img src=x onerror="window.pwned=1"><script>window.pwned=1</script><svg/onload=window.pwned=1>' hx-get=/evil hx-trigger=load {{x}} ${x}`

// A node that was taken over says what it likes in every field that the API server lets it write, and so do people in
// theirs. Every page shows that as text; nothing of it runs, nothing of it is an element, and no policy has to step in.
func TestPages_HostileCluster(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	words := func(field string) string { return field + hostileWords }
	note, err := json.Marshal(map[string]any{"v": 1, "by": words("by"), "reason": words("reason"), "at": "2026-01-01T00:00:00Z", "job": words("job")})
	if err != nil {
		t.Fatal(err)
	}
	now := metav1.Now()
	node := c.Node(t, kubetest.NodeSpec{
		Unschedulable: true, Annotations: map[string]string{"kube-node-manager.io/cordon": string(note), "example.com/note": words("annotation")},
		Mutate: func(n *corev1.Node) {
			n.Status.NodeInfo = corev1.NodeSystemInfo{
				OSImage: words("image"), KernelVersion: words("kernel"), KubeletVersion: words("kubelet"), ContainerRuntimeVersion: words("runtime"),
				OperatingSystem: words("os"), Architecture: words("arch"), MachineID: words("machine"),
			}
			n.Status.Conditions = []corev1.NodeCondition{
				{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: words("ready"), Message: words("message"), LastHeartbeatTime: now, LastTransitionTime: now},
				{Type: "Haunted", Status: corev1.ConditionTrue, Reason: words("why"), Message: words("haunted"), LastHeartbeatTime: now, LastTransitionTime: now},
			}
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeExternalDNS, Address: words("address")}}
		},
	}).Name
	other := c.Node(t, kubetest.NodeSpec{Name: node + "-b"}).Name

	system, err := c.Client().CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	uid := string(system.UID)
	ada := s.signIn(t, "ada", "admin")
	api := s.client(t, "bob", "admin")
	id := api.post(map[string]any{"action": "cordon", "nodes": refs(c, []string{other}), "reason": hostileWords})
	api.batchDone(id)
	template, err := json.Marshal(map[string]any{"name": "t" + hostileWords[:40], "note": words("note"), "labels": []string{"example.com/a=b"}})
	if err != nil {
		t.Fatal(err)
	}
	api.json(http.StatusCreated, nil, "POST", "/api/v1/templates", string(template))

	clean := func(where string) {
		t.Helper()
		if got := eval[string](ada, `JSON.stringify([typeof window.pwned, document.querySelectorAll('img[src=x], [onload], [onerror], [hx-get="/evil"]').length])`); got != `["undefined",0]` {
			t.Errorf("%s: %s", where, got)
		}
	}
	detail := "/clusters/" + url.PathEscape(c.Name) + "/nodes/" + node
	list := "/clusters/" + url.PathEscape(c.Name) + "/nodes"
	for _, p := range []struct{ path, shows string }{
		{detail, words("haunted")},
		{detail, words("image")},
		{"/nodes?q=" + node, words("kubelet")[:20]},
		{list + "?q=" + node, node},
		{list + "?group=version&q=" + node, words("kubelet")[:20]},
		{"/batches/" + id, hostileWords},
		{"/batches", "bob"},
		{"/templates", hostileWords[:40]},
		{"/audit", hostileWords},
		{"/audit?reason=x", ""},
		{"/audit?user=" + url.QueryEscape(hostileWords), ""},
		{"/nodes?q=" + url.QueryEscape(hostileWords), ""},
		{"/clusters", c.Name},
		{"/users", "bob"},
		{"/account", ""},
		{"/plan?action=labels&nodes=" + url.QueryEscape(refs(c, []string{node})), ""},
		{"/login?next=" + url.QueryEscape(hostileWords), ""},
		{"/nope/" + url.PathEscape(hostileWords), ""},
	} {
		ada.visit(p.path)
		if p.shows != "" {
			ada.wait(p.path+" shows what was written", `document.documentElement.textContent.includes(`+quote(p.shows)+`)`)
		}
		clean(p.path)
	}

	// What comes later, in a row that is exchanged.
	for _, path := range []string{"/nodes?q=" + node, detail} {
		ada.visit(path)
		ada.wait("it is live", there(`#live-state[data-ui-state=live]`))
		later := words("later " + path[:5])
		patch, err := json.Marshal(map[string]any{"status": map[string]any{"nodeInfo": map[string]string{"kubeletVersion": later}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Client().CoreV1().Nodes().Patch(t.Context(), node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		ada.wait("the change is shown", `document.body.textContent.includes(`+quote(later[:20])+`)`)
		clean(path + ", changed")
	}

	// If a script did get in, it would not run: this is what stands behind the escaping. The browser says so on the
	// console, which is what this window is for.
	planted := ada.sibling()
	planted.planted = true
	planted.visit("/nodes")
	for i, plant := range []string{
		`const s = document.createElement('script'); s.append('window.pwned=1'); document.body.append(s)`,
		`document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.pwned=1">')`,
		`document.body.setAttribute('onclick', 'window.pwned=1'); document.body.click()`,
		`const s = document.createElement('script'); s.src = 'data:text/javascript,window.pwned=1'; document.body.append(s)`,
		`location.href = 'javascript:window.pwned=1'`,
		`const f = document.createElement('iframe'); f.srcdoc = '<script>parent.pwned=1</script>'; document.body.append(f)`,
	} {
		refused := eval[string](planted, `new Promise(ok => {
			document.addEventListener('securitypolicyviolation', e => ok(e.violatedDirective), { once: true });
			try { `+plant+` } catch { /* refused at once; the event says by what */ }
		})`)
		if !strings.HasPrefix(refused, "script-src") && !strings.Contains(refused, "trusted-types") && !strings.HasPrefix(refused, "frame-src") {
			t.Errorf("plant %d was refused by %q", i, refused)
		}
	}
	if got := eval[string](planted, `typeof window.pwned`); got != "undefined" {
		t.Errorf("a planted script ran: %s", got)
	}

	// The record knows which cluster it was, and exports the words as they were said.
	resp := api.send("GET", "/api/v1/audit/export?format=jsonl&batch="+id, "", "")
	defer resp.Body.Close()
	dec, nodes := json.NewDecoder(resp.Body), 0
	for dec.More() {
		var e struct {
			Node, Reason string
			ClusterUID   string `json:"cluster_uid"`
		}
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if e.Node == "" {
			continue
		}
		nodes++
		if e.ClusterUID != uid || e.Reason != hostileWords {
			t.Errorf("on record: %+v, and the cluster is %s", e, uid)
		}
	}
	if nodes < 3 { // the batch, the intent and the result
		t.Errorf("%d entries of batch %s name a node", nodes, id)
	}
}
