// Package credentials takes kubeconfigs from people who are not trusted with the host, and says what is in them.
//
// Decode reads a kubeconfig by an allow-list: what may be in it is inline (an https address, an authority, a token or a
// client certificate), and everything that would make this process run a program, read a file, skip a check or go
// through somebody else's proxy is refused by name. It never hands the document to client-go. What is kept is an Access,
// encoded anew from its fields, so that nothing else of the document survives.
//
// The package does no I/O and starts nothing. What it makes is sealed by package seal before it is kept anywhere.
package credentials
