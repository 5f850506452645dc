package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

// Two replicas on one PostgreSQL database. What one of them is told, the other knows: people, sessions and their end,
// batches. The one that runs a batch is frozen in the middle: the other goes on with it, and when the first wakes up it
// does nothing more. The record is one unbroken chain.
func TestPostgres_TwoReplicas(t *testing.T) {
	c := kubetest.Shared(t)
	db := storetest.Postgres(t).Database(t)
	a := startServerOn(t, db, "--kubeconfig", c.Kubeconfig)
	b := startServerOn(t, db, "--kubeconfig", c.Kubeconfig)
	name := kubetest.Name(t, "n")
	var names []string
	for _, n := range c.Nodes(t, 20, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%02d", name, i)} }) {
		names = append(names, n.Name)
	}
	root := a.client(t, "root", "admin")
	there := &client{t: t, base: b.url, cookie: root.cookie} // the same session, at the other replica

	// The batch is made at a, which runs it, and followed at b.
	mark := c.AuditLog(t).Mark()
	var made batch
	root.json(202, &made, "POST", "/api/v1/batches", slowBatch(c.Name, names, "400ms"))
	progress := there.stream("GET", "/api/v1/batches/"+made.ID+"/events", "")
	progress.until("a part to be done", func(e event) bool {
		var p batch
		return e.Name == "progress" && json.Unmarshal([]byte(e.Data), &p) == nil && p.Counts.Succeeded >= 4
	})
	owner := a.cmd.Process
	if err := owner.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	frozen := time.Now()
	defer func() {
		_ = owner.Signal(syscall.SIGCONT) // or it could not be ended
	}()
	if n := len(c.AuditLog(t).Writes(mark, "nodes", mine(name))); n >= len(names) {
		t.Fatalf("all %d nodes were written before the owner was frozen: this proves nothing", n)
	}
	if done := there.batchEnds(made.ID); done.Outcome != "succeeded" || done.Counts.Succeeded != len(names) {
		t.Errorf("the other replica: %v", done)
	}
	t.Logf("taken over and done within %s", time.Since(frozen))
	if err := owner.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var now batch
	root.json(200, &now, "GET", "/api/v1/batches/"+made.ID, "") // it is awake, and has the same result
	if now.Outcome != "succeeded" || now.Counts.Succeeded != len(names) {
		t.Errorf("the one that was frozen: %v", now)
	}
	writtenOnce(t, c, mark, name, names)

	// A sign-out at a ends a stream at b.
	eve := a.client(t, "eve", "viewer")
	st := (&client{t: t, base: b.url, cookie: eve.cookie}).stream("GET", "/api/v1/nodes/events", "")
	st.until("the state to be complete", func(e event) bool { return e.Name == "synced" })
	eve.send("POST", "/logout", "", "").Body.Close()
	st.end(5*time.Second + 500*time.Millisecond) // half a second for a busy machine: the limit is the server's
	b.run("", "user", "disable", "eve")

	if out := b.run("", "audit", "verify"); !strings.Contains(out, "the chain is whole") {
		t.Errorf("audit verify: %s", out)
	}
}

// The database goes away in the middle of a batch and comes back. Meanwhile the program says that it is not ready and
// takes no orders; afterwards it goes on by itself, and each node is written once.
func TestPostgres_AwayInTheMiddleOfABatch(t *testing.T) {
	c := kubetest.Shared(t)
	pg := storetest.OwnPostgres(t)
	s := startServerOn(t, pg.Database(t), "--kubeconfig", c.Kubeconfig)
	name := kubetest.Name(t, "n")
	var names []string
	for _, n := range c.Nodes(t, 12, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%02d", name, i)} }) {
		names = append(names, n.Name)
	}
	root := s.client(t, "root", "admin")
	mark := c.AuditLog(t).Mark()
	var made batch
	root.json(202, &made, "POST", "/api/v1/batches", slowBatch(c.Name, names, "300ms"))
	root.stream("GET", "/api/v1/batches/"+made.ID+"/events", "").until("a part to be done", func(e event) bool {
		var p batch
		return e.Name == "progress" && json.Unmarshal([]byte(e.Data), &p) == nil && p.Counts.Succeeded >= 3
	})
	pg.Crash(t)
	s.answers("/readyz", http.StatusServiceUnavailable)
	if n := len(c.AuditLog(t).Writes(mark, "nodes", mine(name))); n >= len(names) {
		t.Fatalf("all %d nodes were written before the database went away: this proves nothing", n)
	}
	resp := root.send("POST", "/api/v1/batches", "application/json", slowBatch(c.Name, names[:1], "0s"))
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("an order while the database is away: %s, want 503", resp.Status)
	}
	pg.Start(t)
	s.answers("/readyz", http.StatusOK)
	if done := root.batchEnds(made.ID); done.Outcome != "succeeded" || done.Counts.Succeeded != len(names) {
		t.Errorf("afterwards: %v", done)
	}
	writtenOnce(t, c, mark, name, names)
	if out := s.run("", "audit", "verify"); !strings.Contains(out, "the chain is whole") {
		t.Errorf("audit verify: %s", out)
	}
}

// answers waits until a path answers with a status.
func (s *server) answers(path string, status int) {
	s.t.Helper()
	limit := time.After(time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := s.get(path)
		if err != nil {
			s.t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == status {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			s.t.Fatalf("%s answers %s, want %d", path, resp.Status, status)
		}
	}
}

// batchEnds asks for the batch until it is done: a lease has to run out before another replica goes on.
func (c *client) batchEnds(id string) batch {
	c.t.Helper()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var b batch
		if c.json(200, &b, "GET", "/api/v1/batches/"+id, ""); b.State == "done" {
			return b
		}
		select {
		case <-tick.C:
		case <-limit:
			c.t.Fatalf("the batch is not done after two minutes: %v", b)
		}
	}
}
