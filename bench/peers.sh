#!/usr/bin/env bash
# Installs the servers that `make bench` compares with (Debian, Ubuntu). They are started by the bench alone, on ports of its
# own, so the packages' services are kept from starting.
set -eu
[ "$(id -u)" = 0 ] || { echo "run it as root: sudo make bench-peers" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "this needs apt-get; install nsd, knot, bind9 and pdns-server by other means" >&2; exit 1; }
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod 755 $policy
  trap 'rm -f $policy' EXIT
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends nsd knot bind9 pdns-server pdns-backend-sqlite3 sqlite3 dnsperf
cd "$(dirname "$0")/.."
bash bench/nsd-mmsg.sh
# CoreDNS is not in Debian. The go command builds the release from its module, which is checked against the public checksum database.
coredns=v1.12.4
GOBIN=$PWD/.cache/coredns go install github.com/coredns/coredns@$coredns || echo "CoreDNS $coredns is left out: it cannot be built" >&2
chown -R --reference=. .cache
