#!/usr/bin/env bash
# Installs Chromium from Debian's packages where no browser is found. The browser tests use the first of the names
# below on PATH, or what KNM_TEST_BROWSER names.
set -euo pipefail
if [ -n "${KNM_TEST_BROWSER:-}" ]; then
  [ -x "$KNM_TEST_BROWSER" ] && exit 0
  echo "KNM_TEST_BROWSER=$KNM_TEST_BROWSER is not an executable" >&2
  exit 1
fi
for b in chromium chromium-browser google-chrome google-chrome-stable; do
  command -v "$b" >/dev/null 2>&1 && exit 0
done
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo -n"
if command -v apt-get >/dev/null 2>&1 && { [ -z "$sudo" ] || $sudo true 2>/dev/null; }; then
  echo "installing Chromium for the browser tests (Debian's package)" >&2
  $sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq chromium fonts-noto-cjk >/dev/null && exit 0
fi
cat >&2 <<'EOF'
The browser tests need Chromium, and it could not be installed here.
Install it yourself (Debian, Ubuntu: apt-get install chromium · Fedora: dnf install chromium · macOS: any Chrome),
then run make test again. If it lives somewhere unusual, name it: KNM_TEST_BROWSER=/path/to/chrome make test
EOF
exit 1
