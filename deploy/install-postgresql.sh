#!/usr/bin/env bash
# Installs PostgreSQL from Debian's packages where no server is found. The tests start one of their own, on a free port
# and with throw-away data; they look in the places below, or in the directory that KNM_TEST_POSTGRES names.
set -euo pipefail
if [ -n "${KNM_TEST_POSTGRES:-}" ]; then
  [ -x "$KNM_TEST_POSTGRES/initdb" ] && [ -x "$KNM_TEST_POSTGRES/postgres" ] && exit 0
  echo "KNM_TEST_POSTGRES=$KNM_TEST_POSTGRES has no initdb and postgres" >&2
  exit 1
fi
command -v initdb >/dev/null 2>&1 && exit 0
for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin; do
  [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && exit 0
done
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo -n"
if command -v apt-get >/dev/null 2>&1 && { [ -z "$sudo" ] || $sudo true 2>/dev/null; }; then
  echo "installing PostgreSQL for the tests (Debian's package)" >&2
  install() { DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
  $sudo apt-get update -qq && install postgresql-common &&
    # The package would make and start a server on the usual port, which nobody asked for.
    $sudo sed -ri 's/^#?(create_main_cluster) .*$/\1 = false/' /etc/postgresql-common/createcluster.conf &&
    install postgresql && exit 0
fi
cat >&2 <<'EOM'
The tests of PostgreSQL need its server, and it could not be installed here.
Install it yourself (Debian, Ubuntu: apt-get install postgresql · Fedora: dnf install postgresql-server · macOS: brew
install postgresql), then run make test again. If it lives somewhere unusual, name the directory of initdb and postgres:
KNM_TEST_POSTGRES=/path/to/bin make test
EOM
exit 1
