// Package views renders the pages, and the fragments that streams carry, from typed values: no I/O, no clock, no client
// of a cluster. A fragment that a page shows and a stream sends is the same component; its row is rendered once per
// change and language and shared by everybody, so it holds no time that ticks, no permission, no nonce and no action.
// Every text comes from one catalogue in English and Chinese; every URL is made in url.go and people.go.
package views
