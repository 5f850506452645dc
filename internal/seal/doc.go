// Package seal keeps secrets encrypted at rest, all in one way: a data key of its own for each secret, AES-256-GCM,
// wrapped by a key that is not in the database. The format, table, row and column of a secret are part of what is
// authenticated, so that a ciphertext opens nowhere but where it was sealed for.
//
// Several keys can be given at once: the first one seals, all of them open, and Rotate wraps the data keys with the first
// one. It may be killed at any moment and run again.
//
// The package starts nothing and keeps nothing; its only I/O is reading and making key files. Keys are safe for
// concurrent use.
package seal
