// Package auth knows who is asking: people and their passwords, sessions of browsers, API tokens, and the end of all
// of them.
//
// The life of a session runs through an scs.SessionManager over a store of our own: a sign-in renews the token, a
// sign-out destroys it, a request loads it and, at most once a minute, commits it. The store makes three promises that
// the manager does not: only a sign-in inserts a row, a row that was ended is never written again, and a row is good
// only while its person is enabled and unchanged since. So authority is read from the database on every request and
// never from what a browser or a session carries.
//
// Everything that ends a credential announces it to the functions given to OnEnd: at once for what this process does,
// within pollEvery for what another process or a deadline does, as long as Run runs. An end may be announced more than
// once; a stream that was being opened at the first announcement is caught by the next.
//
// Passwords cost one argon2id computation each, whatever the outcome, and few run at a time.
package auth
