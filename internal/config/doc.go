// Package config turns the command line and the environment into one value, once. Nothing else reads either.
//
// Every flag has a variable KNM_… with its name in capitals and dashes as underscores; the command line wins. A variable
// that starts with KNM_ and belongs to no flag is an error, so that a misspelt setting is never silently the default.
package config
