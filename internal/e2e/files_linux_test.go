package e2e

import (
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// TestR27_OutOfFiles: at the limit of open files nobody new comes in, those who are in notice nothing, and when files
// are free again everything is as before.
func TestR27_OutOfFiles(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	node := k.Node(t, kubetest.NodeSpec{}).Name
	s := startServer(t, k.Kubeconfig)
	who := s.client(t, "ada", "viewer")
	st := who.stream("GET", "/api/v1/nodes/events", "")
	st.until("the node", func(e event) bool { return e.Name == "node_add" && strings.Contains(e.Data, node) })

	files, err := os.ReadDir("/proc/" + strconv.Itoa(s.cmd.Process.Pid) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	few := uint64(len(files) + 20)
	if err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: few, Max: few}, nil); err != nil {
		t.Fatal(err)
	}
	var crowd []net.Conn
	for range 60 {
		c, err := net.Dial("tcp", s.listen) // the kernel takes them, until its own queue is full
		if err != nil {
			t.Fatal(err)
		}
		crowd = append(crowd, c)
	}
	impatient := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	defer impatient.CloseIdleConnections()
	if resp, err := impatient.Get(s.url + "/healthz"); err == nil {
		resp.Body.Close()
		t.Error("somebody new came in: the limit was not reached, and this test shows nothing")
	}
	k.Cordon(t, node)
	st.until("the cordon", func(e event) bool {
		return e.Name == "node_update" && strings.Contains(e.Data, node) && strings.Contains(e.Data, `"schedulable":false`)
	})

	for _, c := range crowd {
		_ = c.Close()
	}
	until(t, "the door to open again", 30*time.Second, func() bool {
		resp, err := impatient.Get(s.url + "/healthz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	k.Uncordon(t, node)
	st.until("the uncordon", func(e event) bool {
		return e.Name == "node_update" && strings.Contains(e.Data, node) && strings.Contains(e.Data, `"schedulable":true`)
	})
}
