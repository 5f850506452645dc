// Package credentials takes kubeconfigs from people who are not trusted with the host, and keeps what is in them.
//
// Decode reads a kubeconfig by an allow-list: what may be in it is inline (an https address, an authority, a token or a
// client certificate), and everything that would make this process run a program, read a file, skip a check or go
// through somebody else's proxy is refused by name. It never hands the document to client-go. What is kept is an Access,
// encoded anew from its fields, so that nothing else of the document survives.
//
// Keys seal an Access for the database: a data key of its own for each secret, AES-256-GCM, wrapped by a key that is not
// in the database. A sealed secret opens only in the row and column it was sealed for. Rotate wraps the data keys with a
// newer key; it may be killed at any moment and run again.
//
// The package does no network I/O and starts nothing. Keys are safe for concurrent use.
package credentials
