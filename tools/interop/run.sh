#!/usr/bin/env bash
# Real peers against nodes that this script starts itself: the stock client from PyPI, dig, kdig, nsupdate, knsupdate, curl and
# dnspython, then the same 5,000 queries to a node, to Knot and to BIND (tools/conform). What is missing is named and fails the run.
#
#   make interop                              everything, against bin/dmpd
#   tools/interop/run.sh --impl reference     the client's scenario against the reference node, as a control of the scenario itself
#   tools/interop/run.sh --only tools         one part: scenario, mesh, cluster, tools, tls, acme, import or conform
set -eu
cd "$(dirname "$0")/../.."

impl=dmpd only=all keep=
while [ $# -gt 0 ]; do
  case $1 in
    --impl) impl=${2:?--impl dmpd or reference}; shift 2 ;;
    --only) only=${2:?--only scenario, mesh, cluster, tools, tls, acme, import or conform}; shift 2 ;;
    --keep) keep=--keep; shift ;; # leaves the nodes' folders and logs for a look
    *) echo "usage: $0 [--impl dmpd|reference] [--only scenario|mesh|cluster|tools|tls|acme|import|conform] [--keep]" >&2; exit 2 ;;
  esac
done

# Debian packages: bind9-dnsutils, knot-dnsutils, knot, bind9, curl, python3-venv. .ci/run installs them.
missing=
for tool in dig kdig nsupdate knsupdate curl openssl python3; do
  command -v "$tool" >/dev/null || missing="$missing $tool"
done
if [ "$impl" = dmpd ]; then
  for tool in knotd named; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || missing="$missing $tool"
  done
  for binary in dmpd dmp-dataplane dmp-controlplane; do
    [ -x bin/$binary ] || missing="$missing bin/$binary(make_build)"
  done
fi
if [ -n "$missing" ]; then
  echo "FAIL missing:$missing"
  echo "Install them with: apt-get install bind9-dnsutils knot-dnsutils knot bind9 curl openssl python3-venv"
  echo "0 passed, 1 failed"
  exit 1
fi

# The stock client, as PyPI has it. It is a peer: it is run, and nothing of it is read or linked.
client=0.7.5
venv=.cache/venv
if [ "$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("dnsmesh"))' 2>/dev/null)" != "$client" ]; then
  echo "installing dnsmesh $client in $venv"
  mkdir -p .cache
  rm -rf "$venv"
  if ! { python3 -m venv "$venv" && "$venv/bin/python" -m pip install -q --retries 5 --timeout 30 --disable-pip-version-check "dnsmesh==$client"; } >.cache/venv.log 2>&1; then
    tail -5 .cache/venv.log
    echo "FAIL dnsmesh $client cannot be installed in $venv (python3-venv, and a way to PyPI); the whole output is in .cache/venv.log"
    echo "0 passed, 1 failed"
    exit 1
  fi
fi

export PYTHONDONTWRITEBYTECODE=1
child=
end() { # the driver ends its own processes when it is told to stop
  trap - INT TERM
  [ -z "$child" ] || { kill -TERM "$child" 2>/dev/null && wait "$child"; } || true
  exit 130
}
trap end INT TERM

passed=0 failed=0
part() { # NAME COMMAND...: runs one part and takes over the counts of its last line
  local name=$1 out line rc=0
  shift
  out=$(mktemp)
  "$@" > >(tee "$out") &
  child=$!
  wait "$child" || rc=$?
  child=
  sleep 0.1 # tee's last line
  line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$out" | tail -1 || true)
  rm -f "$out"
  if [ -z "$line" ]; then
    echo "FAIL $name ended without a result (exit $rc)"
    failed=$((failed + 1))
    return
  fi
  passed=$((passed + ${line%% passed*}))
  line=${line#*, }
  failed=$((failed + ${line%% failed*}))
  if [ "$rc" != 0 ] && [ "${line%% failed*}" = 0 ]; then
    echo "FAIL $name exited $rc"
    failed=$((failed + 1))
  fi
}

case $only in
  all | scenario) part scenario "$venv/bin/python" tools/interop/main.py --impl "$impl" $keep scenario ;;
esac
case $only in
  all | mesh) part mesh "$venv/bin/python" tools/interop/main.py --impl "$impl" $keep mesh ;;
esac
if [ "$impl" = dmpd ]; then
  case $only in
    all | cluster) part cluster "$venv/bin/python" tools/interop/main.py --impl "$impl" $keep cluster ;;
  esac
  case $only in
    all | tools) part tools "$venv/bin/python" tools/interop/main.py --impl "$impl" $keep tools ;;
  esac
  case $only in
    all | tls) part tls "$venv/bin/python" tools/interop/main.py --impl "$impl" $keep tls ;;
  esac
  case $only in
    all | acme)
      # Let's Encrypt's test server, a program beside us and no dependency of ours.
      pebble=v2.10.3
      if [ "$(go version -m .cache/pebble 2>/dev/null | awk '$1 == "mod" { print $3 }')" != "$pebble" ]; then
        echo "installing pebble $pebble in .cache"
        GOBIN=$PWD/.cache CGO_ENABLED=0 go install "github.com/letsencrypt/pebble/v2/cmd/pebble@$pebble" >.cache/pebble.log 2>&1 || { tail -5 .cache/pebble.log; echo "FAIL pebble cannot be installed"; failed=$((failed + 1)); }
      fi
      part acme "$venv/bin/python" tools/interop/main.py --impl "$impl" $keep acme
      ;;
  esac
  case $only in
    all | import) part import "$venv/bin/python" tools/interop/main.py --impl "$impl" $keep import ;;
  esac
  case $only in
    all | conform)
      CGO_ENABLED=0 go build -o .cache/conform ./tools/conform
      part conform .cache/conform --bin bin
      ;;
  esac
fi

echo "interop in all (the stock client, the DNS tools, Knot and BIND):"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
