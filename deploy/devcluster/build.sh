#!/bin/sh
# Builds the two programs, unless they are built already, and prints the
# directory that holds them. Several may run at once.
set -eu
cd "$(dirname "$0")"

sum() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }
key=$({ cat go.mod go.sum $(ls ./*.go | grep -v _test.go) ./*.yaml build.sh; uname -sm; } | sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kube-node-manager/devcluster
dir=$cache/$key

if [ ! -x "$dir/devcluster" ] || [ ! -x "$dir/kwok" ]; then
	mkdir -p "$cache"
	if command -v flock >/dev/null; then # else both build, and the last one wins
		exec 9>"$cache/lock"
		flock 9
	fi
	if [ ! -x "$dir/devcluster" ] || [ ! -x "$dir/kwok" ]; then
		echo "devcluster: building the control plane (minutes the first time, seconds later)" >&2
		kube=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' go.mod)
		minor=${kube#v1.}
		minor=${minor%%.*}
		v=k8s.io/component-base/version
		tmp=$(mktemp -d "$cache/tmp.XXXXXX")
		trap 'rm -rf "$tmp"' EXIT
		export CGO_ENABLED=0 GOWORK=off GOFLAGS=-buildvcs=false
		nice go build -trimpath -o "$tmp/devcluster" \
			-ldflags "-s -w -X $v.gitVersion=$kube -X $v.gitMajor=1 -X $v.gitMinor=$minor -X $v.gitTreeState=clean" . >&2
		nice go build -trimpath -o "$tmp/kwok" -ldflags "-s -w" sigs.k8s.io/kwok/cmd/kwok >&2
		mkdir -p "$dir"
		mv -f "$tmp/devcluster" "$tmp/kwok" "$dir/"
		# What other versions left behind and nobody has built for a week.
		find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +7 -exec rm -rf {} +
	fi
fi
echo "$dir"
