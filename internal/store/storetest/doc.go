// Package storetest says what a store promises, as tests that every engine has to pass.
//
// There is one Run function per domain. Each test gets a database of its own; where two handles are asked for they stand
// for two processes on the same database.
package storetest
