package views

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strconv"

	"github.com/a-h/templ"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// NodeID is the DOM id of a node's row. It is a hash, so that no name of a cluster ever becomes part of a selector.
func NodeID(ref fleet.NodeRef) string { return "n-" + short(ref.Cluster, ref.Name) }

// GroupID is the DOM id of the header of a group.
func GroupID(value string) string { return "g-" + short(value) }

// ClusterID is the DOM id of a cluster's row on the clusters page.
func ClusterID(name string) string { return "c-" + short(name) }

// BadgeID is the DOM id of a cluster's badge on the node lists.
func BadgeID(name string) string { return "cb-" + short(name) }

// ItemID is the DOM id of the row of one node of a batch.
func ItemID(seq int) string { return "i-" + strconv.Itoa(seq) }

func short(parts ...string) string {
	h := sha256.New()
	for i, p := range parts {
		if i > 0 {
			h.Write([]byte{0})
		}
		h.Write([]byte(p))
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Fragment renders a component into one line, as a message of a stream must be: a CR or LF would end the message. The
// templates write none themselves, so what there is came with a value, in a text or in an attribute, and is written as
// the character reference that means the same in both.
func Fragment(c templ.Component) ([]byte, error) {
	var b bytes.Buffer
	if err := c.Render(context.Background(), &b); err != nil {
		return nil, err
	}
	return oneLine(b.Bytes()), nil
}

func oneLine(b []byte) []byte {
	if bytes.IndexByte(b, '\n') >= 0 {
		b = bytes.ReplaceAll(b, []byte("\n"), []byte("&#10;"))
	}
	if bytes.IndexByte(b, '\r') >= 0 {
		b = bytes.ReplaceAll(b, []byte("\r"), []byte("&#13;"))
	}
	return bytes.TrimSpace(b)
}

// OOB returns a copy of one rendered element with hx-swap-oob spliced into its first tag. An element that already has
// the attribute there comes back as it is.
func OOB(row []byte, style string) []byte {
	i := bytes.IndexAny(row, " >/\t")
	if len(row) == 0 || row[0] != '<' || i < 2 {
		return row
	}
	if end := bytes.IndexByte(row, '>'); end > 0 && bytes.Contains(row[:end], []byte(" hx-swap-oob=")) {
		return row
	}
	out := make([]byte, 0, len(row)+len(style)+16)
	out = append(out, row[:i]...)
	out = append(out, ` hx-swap-oob="`...)
	out = append(out, templ.EscapeString(style)...)
	out = append(out, '"')
	return append(out, row[i:]...)
}

// Renderer renders the live fragments for the streams. Its zero value is ready.
type Renderer struct{}

// must is for components that cannot fail: they write into memory. Should one ever fail, the row says so by its class
// rather than being left out, since a missing row would look like a deleted node.
func must(c templ.Component, id, tag string) []byte {
	b, err := Fragment(c)
	if err != nil {
		return []byte("<" + tag + ` id="` + id + `" class="render-error"></` + tag + ">")
	}
	return b
}

// NodeRow is the live row of a node.
func (Renderer) NodeRow(n *fleet.Node, lang string) []byte {
	return must(NodeRowView(NodeRow{Node: n, Lang: lang}), NodeID(n.Ref), "tr")
}

// NodeID is the DOM id of a node's row.
func (Renderer) NodeID(ref fleet.NodeRef) string { return NodeID(ref) }

// GroupRow is the live header of a group in a node list.
func (Renderer) GroupRow(g Group, lang string) []byte {
	return must(GroupRowView(GroupRow{Group: g, Lang: lang}), GroupID(g.Value), "tr")
}

// GroupID is the DOM id of the header of a group.
func (Renderer) GroupID(value string) string { return GroupID(value) }

// ClusterID is the DOM id of a cluster's row.
func (Renderer) ClusterID(name string) string { return ClusterID(name) }

// Counts are the numbers of the summary chips and the pager, each swapped out of band.
func (Renderer) Counts(c Counts, page, pages, total int, lang string) []byte {
	return must(CountsView(c, page, pages, total, lang), "counts", "span")
}

// ClusterBadge is the state of a cluster above a node list, swapped out of band.
func (Renderer) ClusterBadge(c fleet.Cluster, lang string) []byte {
	return OOB(must(ClusterBadgeView(ClusterRow{Cluster: c, Lang: lang}), BadgeID(c.Name), "li"), "outerMorph")
}

// ClusterRow is the live row of the clusters page.
func (Renderer) ClusterRow(c fleet.Cluster, lang string) []byte {
	return must(ClusterRowView(ClusterRow{Cluster: c, Lang: lang}), ClusterID(c.Name), "tr")
}

// BatchItem is the live row of one node of a batch.
func (Renderer) BatchItem(it fleet.Item, lang string) []byte {
	return must(BatchItemRowView(BatchItemRow{Item: it, Lang: lang}), ItemID(it.Seq), "tr")
}

// BatchProgress is the bar, the counts and the state of a batch, swapped out of band.
func (Renderer) BatchProgress(b fleet.Batch, lang string) []byte {
	return OOB(must(BatchProgressView(BatchProgress{Batch: b, Lang: lang}), "batch-progress", "div"), "outerMorph")
}
