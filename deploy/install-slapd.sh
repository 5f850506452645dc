#!/usr/bin/env bash
# Installs OpenLDAP's server from Debian's packages where none is found: the tests of sign-in by directory start one of
# their own. They use slapd on PATH or in /usr/sbin, or what KNM_TEST_SLAPD names.
set -euo pipefail
if [ -n "${KNM_TEST_SLAPD:-}" ]; then
  [ -x "$KNM_TEST_SLAPD" ] && exit 0
  echo "KNM_TEST_SLAPD=$KNM_TEST_SLAPD is not an executable" >&2
  exit 1
fi
for b in slapd /usr/sbin/slapd /usr/local/libexec/slapd /opt/homebrew/opt/openldap/libexec/slapd; do
  command -v "$b" >/dev/null 2>&1 && exit 0
done
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo -n"
if command -v apt-get >/dev/null 2>&1 && { [ -z "$sudo" ] || $sudo true 2>/dev/null; }; then
  echo "installing OpenLDAP's server for the tests (Debian's package)" >&2
  $sudo apt-get update -qq
  # The package would configure and start a server on the usual port, which nobody asked for.
  echo "slapd slapd/no_configuration boolean true" | $sudo debconf-set-selections
  policy=/usr/sbin/policy-rc.d
  ours=
  if [ ! -e "$policy" ]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
  fi
  rc=0
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends slapd >/dev/null || rc=$?
  [ -z "$ours" ] || $sudo rm -f "$policy"
  [ "$rc" = 0 ] && exit 0
fi
cat >&2 <<'EOM'
The tests of directories need OpenLDAP's server, and it could not be installed here.
Install it yourself (Debian, Ubuntu: apt-get install slapd · Fedora: dnf install openldap-servers · macOS: brew install
openldap), then run make test again. If it lives somewhere unusual, name it: KNM_TEST_SLAPD=/path/to/slapd make test
EOM
exit 1
