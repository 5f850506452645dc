// Package faultproxy stands between a client and a server in tests and misbehaves as told: on the level of TCP (TCP) and
// on that of an API server's HTTP (HTTP). Both obey changes while they run, for all connections or for a single one, and
// take their randomness from a seed.
//
// It is for tests only: nothing of the product imports it.
package faultproxy
