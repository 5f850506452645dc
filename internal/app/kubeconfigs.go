package app

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// kubeconfigEvery is how often the files are looked at. A file that is mounted from a secret is exchanged as a whole
// directory, which a watch of the file would not notice.
const kubeconfigEvery = 5 * time.Second

// kubeconfigs keeps the watched clusters what the configured files say, while running: contexts that come are watched,
// those that go are forgotten, and those that change are connected to anew, without their pages noticing.
type kubeconfigs struct {
	paths   []string
	version string
	every   time.Duration
	manager clusterSet
	logger  *slog.Logger
	broken  prometheus.Gauge

	sum   [sha256.Size]byte // of the files as they are followed
	known map[string]string // context to digest of what it says
}

type clusterSet interface {
	Add(c kube.Cluster) error
	Edit(ctx context.Context, c kube.Cluster) error
	Remove(name string) error
}

func newKubeconfigs(a *App, registry *prometheus.Registry) *kubeconfigs {
	k := &kubeconfigs{
		paths: a.cfg.Kubeconfigs, version: a.opts.Version, every: a.opts.KubeconfigEvery,
		manager: a.manager, logger: a.component("kubeconfig"), known: map[string]string{},
		broken: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "knm_kubeconfig_broken",
			Help: "1 while a kubeconfig has changed into something that cannot be used; what was there before is still followed.",
		}),
	}
	if k.every == 0 {
		k.every = kubeconfigEvery
	}
	registry.MustRegister(k.broken)
	return k
}

// load reads the files for the first time.
func (k *kubeconfigs) load() ([]kube.Cluster, error) {
	sum, err := k.fingerprint()
	if err != nil {
		return nil, err
	}
	clusters, err := k.read()
	if err != nil {
		return nil, err
	}
	k.sum = sum
	for _, c := range clusters {
		k.known[c.Name] = c.Digest
	}
	return clusters, nil
}

func (k *kubeconfigs) read() ([]kube.Cluster, error) {
	return kube.Load(k.paths, kube.WithVersion(k.version))
}

// nameable refuses names that are a step in every path that holds them, for browsers and proxies alike.
func nameable(name string) error {
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("a context named %q cannot be shown under a URL: rename it", name)
	}
	return nil
}

// fingerprint changes with the content of any of the files.
func (k *kubeconfigs) fingerprint() (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	for _, path := range k.paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return sum, fmt.Errorf("reading kubeconfig: %w", err)
		}
		if _, err := fmt.Fprintf(h, "%d\n", len(b)); err != nil {
			return sum, err
		}
		if _, err := h.Write(b); err != nil {
			return sum, err
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}

// run follows the files until ctx ends.
func (k *kubeconfigs) run(ctx context.Context) error {
	tick := time.NewTicker(k.every)
	defer tick.Stop()
	var last string
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		err := k.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			k.broken.Set(0)
			last = ""
			continue
		}
		k.broken.Set(1)
		if err.Error() != last { // once for each trouble, not every few seconds
			last = err.Error()
			k.logger.Error("kubeconfig has changed and cannot be used; what it said before is still followed", "err", err)
		}
	}
}

// follow makes the clusters what the files say now. A file that cannot be read or makes no sense changes nothing: it
// may be half written.
func (k *kubeconfigs) follow(ctx context.Context) error {
	sum, err := k.fingerprint()
	if err != nil || sum == k.sum {
		return err
	}
	clusters, err := k.read()
	if err != nil {
		return err
	}
	said := make(map[string]kube.Cluster, len(clusters))
	for _, c := range clusters {
		said[c.Name] = c
	}
	var errs []error
	for name := range k.known {
		if _, still := said[name]; still {
			continue
		}
		if err := k.manager.Remove(name); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(k.known, name)
		k.logger.Info("cluster removed", "cluster", name)
	}
	for _, c := range clusters {
		digest, here := k.known[c.Name]
		switch {
		case !here:
			if err = nameable(c.Name); err == nil {
				err = k.manager.Add(c)
			}
		case digest != c.Digest:
			err = k.manager.Edit(ctx, c)
		default:
			c.End() // it goes on as it is
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		k.known[c.Name] = c.Digest
		k.logger.Info("cluster follows its kubeconfig", "cluster", c.Name, "new", !here)
	}
	if len(errs) == 0 {
		k.sum = sum // otherwise the next round tries again
	}
	return errors.Join(errs...)
}
