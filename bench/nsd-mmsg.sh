#!/usr/bin/env bash
# Builds the NSD of Debian's source package with recvmmsg, which Debian's own build goes without, into .cache/nsd-mmsg, for
# `make bench` (bench/peers.sh calls it). Nothing but the tools to build it is installed on the system.
set -eu
cd "$(dirname "$0")/.."
prefix=$PWD/.cache/nsd-mmsg
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$work/log
left_out() {
  tail -20 "$log" >&2
  echo "NSD with recvmmsg is left out: $1" >&2
  exit 0
}
mkdir -p .cache "$work/parts" "$work/lists/partial" "$work/cache/archives/partial"
chown --reference=. .cache

# The system's own sources, as sources of source packages, in folders that nobody else looks into.
for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
  [ -f "$f" ] && sed -n 's/^deb\([[:space:]]\)/deb-src\1/p' "$f" >"$work/parts/$(basename "$f" .list)-src.list"
done
for f in /etc/apt/sources.list.d/*.sources; do
  [ -f "$f" ] && sed 's/^Types:.*/Types: deb-src/' "$f" >"$work/parts/$(basename "$f" .sources)-src.sources"
done
apt=(apt-get -q -y -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/parts" -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache")
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends dpkg-dev gcc make libc6-dev libssl-dev libevent-dev flex bison >"$log" 2>&1 || left_out "the tools to build it cannot be had"
"${apt[@]}" update >>"$log" 2>&1 || true # other repositories have no sources
version=$(dpkg-query -W -f '${source:Version}' nsd 2>/dev/null) || left_out "nsd is not installed, so that its version is not known"
cd "$work"
"${apt[@]}" source "nsd=$version" >>"$log" 2>&1 || left_out "apt-get has no source package of nsd $version"
cd "$work"/nsd-*/ || left_out "its source package is not as expected"
eval "$(dpkg-buildflags --export=sh)"
./configure --prefix="$prefix" --with-libevent --with-ssl=/usr --enable-recvmmsg --with-user="$(id -un)" >>"$log" 2>&1 || left_out "it cannot be configured"
make >>"$log" 2>&1 || left_out "it does not build"
nm -D nsd | grep -q 'U recvmmsg' || left_out "what was built does not call recvmmsg"
rm -rf "$prefix"
make install >>"$log" 2>&1 || left_out "it cannot be installed into $prefix"
chown -R --reference="$prefix/../.." "$prefix"
echo "NSD $version with recvmmsg is in $prefix"
