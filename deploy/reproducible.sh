#!/usr/bin/env bash
# Builds the current commit twice, from two directories, the second time with nothing in the build cache, and compares
# the two programs. Whoever doubts a release does the same with its commit and Go version.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${VERSION:-$(git describe --tags --always)}
tmp=$(mktemp -d)
trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT
build() { # directory, cache
  mkdir -p "$tmp/$1"
  git archive HEAD | tar -x -C "$tmp/$1"
  (cd "$tmp/$1" && GOCACHE=$2 make -s build VERSION="$version" BIN="$tmp/$1.bin")
}
build here "$(go env GOCACHE)"
build somewhere/else "$tmp/cache"
sums=$(cd "$tmp" && sha256sum here.bin/kube-node-manager somewhere/else.bin/kube-node-manager)
echo "$sums"
[ "$(cut -d' ' -f1 <<<"$sums" | sort -u | wc -l)" = 1 ] || { echo "the two programs differ" >&2; exit 1; }
echo "$(go version | cut -d' ' -f3), version $version: the same bytes twice"
