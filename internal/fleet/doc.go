// Package fleet holds the nouns of the product and the kinds of its errors.
//
// Everybody imports it and it imports nobody: standard library only. Nouns live here, verbs live elsewhere
// (nodeops acts, batch runs many, realtime watches, store keeps). Values are plain data; a Node that came out of the
// cache is shared by many readers and must never be written to.
package fleet
