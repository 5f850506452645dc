package store

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	// packFrom is the size in bytes from which packing is worth its time.
	packFrom = 1 << 10
	// planMost bounds a plan as it is stored.
	planMost = 8 << 20
	// unpackMost bounds what stored bytes may become again: a row that was tampered with must not take all memory.
	unpackMost = 512 << 20
)

// gzipMagic begins what is packed; JSON begins with neither byte.
var gzipMagic = []byte{0x1f, 0x8b}

// pack is the JSON of v, compressed if it is large.
func pack(v any) ([]byte, error) {
	plain, err := json.Marshal(v)
	if err != nil || len(plain) < packFrom {
		return plain, err
	}
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	_, err = z.Write(plain)
	if err := errors.Join(err, z.Close()); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// packList keeps an empty list as nothing.
func packList[T any](list []T) ([]byte, error) {
	if len(list) == 0 {
		return nil, nil
	}
	return pack(list)
}

func packDrain(p *fleet.DrainProgress) ([]byte, error) {
	if p == nil {
		return nil, nil
	}
	return pack(p)
}

// packPlan keeps a plan that is too large without its pods: what it sums up is worth having without them.
func packPlan(p *fleet.Plan) ([]byte, error) {
	if p == nil {
		return nil, nil
	}
	data, err := pack(p)
	if err == nil && len(data) > planMost {
		data, err = pack(withoutPods(p))
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("writing a plan: %w", err)
	case len(data) > planMost:
		return nil, fmt.Errorf("writing a plan: its %d bytes are more than %d even without its pods: %w", len(data), planMost, fleet.ErrTooLarge)
	}
	return data, nil
}

func withoutPods(p *fleet.Plan) *fleet.Plan {
	out := *p
	out.Clusters = make([]fleet.ClusterPlan, len(p.Clusters))
	for i, c := range p.Clusters {
		nodes := make([]fleet.NodePlan, len(c.Nodes))
		for j, n := range c.Nodes {
			n.Pods = nil
			nodes[j] = n
		}
		c.Nodes = nodes
		out.Clusters[i] = c
	}
	return &out
}

// unpack reads what pack wrote into dest, and leaves dest as it is if there is nothing.
func unpack(data []byte, dest any) (err error) {
	if len(data) == 0 {
		return nil
	}
	if !bytes.HasPrefix(data, gzipMagic) {
		return json.Unmarshal(data, dest)
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	plain, err := io.ReadAll(io.LimitReader(z, unpackMost+1))
	if err := errors.Join(err, z.Close()); err != nil {
		return err
	}
	if len(plain) > unpackMost {
		return fmt.Errorf("%d stored bytes become more than %d: %w", len(data), unpackMost, fleet.ErrTooLarge)
	}
	return json.Unmarshal(plain, dest)
}
