package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// profiles are the names of what a cluster can be filled with: nothing; healthy
// nodes and nothing else, for measuring; a fleet as one meets it, with all its
// little troubles and workloads.
var profiles = []string{"none", "bare", "fleet"}

// seed fills the cluster. What is there already is left as it is, and what is
// made depends on the cluster's name only, so a second run changes nothing.
func (c *cluster) seed(ctx context.Context) error {
	if c.profile == "none" || c.nodes == 0 {
		return nil
	}
	client, err := c.client(seedUser)
	if err != nil {
		return err
	}
	g := newGenerator(c)
	troubles := c.profile == "fleet"
	err = each(32, g.nodes(c.nodes, troubles), func(n *node) error { return createNode(ctx, client, n) })
	if err == nil && troubles {
		err = createWorkloads(ctx, client, g)
	}
	if err != nil {
		return fmt.Errorf("cluster %s: seeding: %w", c.name, err)
	}
	return nil
}

func createNode(ctx context.Context, client kubernetes.Interface, n *node) error {
	_, err := client.CoreV1().Nodes().Create(ctx, &n.Node, metav1.CreateOptions{FieldManager: "kubelet"})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil || !n.cordoned {
		return err
	}
	// Not created so, for the node remembers who has done it and when.
	_, err = client.CoreV1().Nodes().Patch(ctx, n.Name, types.StrategicMergePatchType,
		[]byte(`{"spec":{"unschedulable":true}}`), metav1.PatchOptions{FieldManager: "kubectl-cordon"})
	return err
}

// ignoreExisting makes creating again no error.
func ignoreExisting[T any](_ T, err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// each calls f for all items, n of them at once, and joins the errors; after the
// first error it begins no more.
func each[T any](n int, items []T, f func(T) error) error {
	var (
		mu   sync.Mutex // guards errs, next
		errs []error
		next int
		wg   sync.WaitGroup
	)
	take := func() (item T, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(errs) > 0 || next == len(items) {
			return item, false
		}
		next++
		return items[next-1], true
	}
	for range n {
		wg.Go(func() {
			for item, ok := take(); ok; item, ok = take() {
				if err := f(item); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// generator makes up a cluster. The same name makes the same cluster.
type generator struct {
	*rand.Rand
	prefix string
	region string
	images []corev1.ContainerImage // what the cluster runs, for the nodes to have pulled
	taken  map[string]bool         // node names
	made   int                     // nodes so far, for addresses
}

func newGenerator(c *cluster) *generator {
	h := fnv.New64a()
	_, _ = h.Write([]byte(c.name)) // cannot fail
	g := &generator{
		Rand:   rand.New(rand.NewPCG(h.Sum64(), 2)),
		prefix: c.opts.nodePrefix,
		taken:  map[string]bool{},
	}
	if g.prefix == "" {
		g.prefix = dnsName(c.name)
	}
	g.region = pick(g, []string{"eu-central-1", "eu-west-1", "us-east-1", "ap-northeast-1"})
	g.images = g.makeImages(120)
	return g
}

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

// id is a string of n characters as Kubernetes makes them up.
func (g *generator) id(n int) string { return g.from("bcdfghjklmnpqrstvwxz2456789", n) }

// hex is a string of n hexadecimal digits.
func (g *generator) hex(n int) string { return g.from("0123456789abcdef", n) }

func (g *generator) from(alphabet string, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[g.IntN(len(alphabet))]
	}
	return string(b)
}

// dnsName makes a context name fit for the name of a node.
func dnsName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(s))
	return strings.Trim(s, "-")
}
