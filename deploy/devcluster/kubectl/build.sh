#!/bin/sh
# Builds the part of kubectl that drains nodes, unless it is built already, and
# prints the directory that holds it. Several may run at once. It is a module of
# its own: the control plane needs nothing of what it brings along.
set -eu
cd "$(dirname "$0")"

sum() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }
key=$({ cat go.mod go.sum main.go build.sh; uname -sm; } | sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kube-node-manager/kubectl
dir=$cache/$key

if [ ! -x "$dir/kubectl" ]; then
	mkdir -p "$cache"
	if command -v flock >/dev/null; then # else both build, and the last one wins
		exec 9>"$cache/lock"
		flock 9
	fi
	if [ ! -x "$dir/kubectl" ]; then
		echo "kubectl: building (minutes the first time, seconds later)" >&2
		tmp=$(mktemp -d "$cache/tmp.XXXXXX")
		trap 'rm -rf "$tmp"' EXIT
		export CGO_ENABLED=0 GOWORK=off GOFLAGS=-buildvcs=false
		nice go build -trimpath -o "$tmp/kubectl" -ldflags "-s -w" . >&2
		mkdir -p "$dir"
		mv -f "$tmp/kubectl" "$dir/"
		# What other versions left behind and nobody has built for a week.
		find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +7 -exec rm -rf {} +
	fi
fi
echo "$dir"
