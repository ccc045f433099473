#!/usr/bin/env bash
# This tree beside a commit (make bench-compare BASE=commit): the Go benchmarks of both, in turn, COUNT times (10) for BENCHTIME each
# (100ms), compared by benchstat; BENCH= is a pattern of benchmarks. With SCENARIO, the DNS process of both side by side under load instead,
# named `base` and `dmpd`; PEERS, ROUNDS and NAMES as in make bench. Nothing is written but .cache/compare.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
base=$(git rev-parse --verify --quiet "${BASE:-}^{commit}") || { echo "BASE=${BASE:-} is no commit of this repository; as in: make bench-compare BASE=HEAD~1" >&2; exit 2; }
count=${COUNT:-10}
[ "$count" -ge 1 ] 2>/dev/null && [ "$count" -le 100 ] || { echo "COUNT=$count: a number from 1 to 100" >&2; exit 2; }
# benchstat by `go run` and not as a tool of go.mod: its dependencies stay out of what the node is built from.
benchstat="golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da"
limit=$((${MINUTES:-30} * 60)) # seconds of measuring; what is there by then is compared
out=.cache/compare
tree=$PWD/$out/tree
drop() { git worktree remove --force "$tree" 2>/dev/null || true; rm -rf "$tree"; git worktree prune; }
trap drop EXIT
drop
rm -rf $out
mkdir -p $out
git worktree add --quiet --detach "$tree" "$base"

if [ -n "${SCENARIO:-}" ]; then
  for at in "$tree" "$PWD"; do
    to=$PWD/$out/bin
    [ "$at" = "$tree" ] && to=$PWD/$out/bin-base
    mkdir -p "$to"
    (cd "$at" && CGO_ENABLED=0 $GO build -trimpath -o "$to/" ./cmd/dmpd ./cmd/dmp-dataplane ./cmd/dmp-controlplane)
  done
  $GO build -o $out/bin/ ./cmd/dmp-bench
  args=(--scenario "$SCENARIO" --peers "${PEERS:-none}")
  [ -n "${ROUNDS:-}" ] && args+=(--rounds "$ROUNDS")
  [ -n "${NAMES:-}" ] && args+=(--names "$NAMES")
  $out/bin/dmp-bench suite --bin $out/bin --base $out/bin-base --dir $out/state "${args[@]}"
  exit
fi

packages=$(git grep -l '^func Benchmark' -- '*_test.go' | xargs -n1 dirname | sort -u)
for p in $packages; do
  for side in base new; do
    at=$PWD
    [ $side = base ] && at=$tree
    # A package that the base does not have is compared with nothing.
    [ -d "$at/$p" ] || continue
    (cd "$at" && $GO test -c -o "$OLDPWD/$out/$side-${p//\//_}.test" "./$p")
  done
done
began=$SECONDS
for ((i = 1; i <= count; i++)); do
  echo "round $i of $count" >&2
  for p in $packages; do
    for side in base new; do
      at=$PWD
      [ $side = base ] && at=$tree
      binary=$PWD/$out/$side-${p//\//_}.test
      [ -x "$binary" ] || continue
      left=$((limit - (SECONDS - began)))
      [ $left -gt 0 ] || break 3
      # Half a run is no figure: what does not end in time or fails is left out, and said.
      if (cd "$at/$p" && timeout -k 5 $left "$binary" -test.run '^$' -test.bench "${BENCH:-.}" -test.benchmem -test.benchtime "${BENCHTIME:-100ms}") >$out/one.txt 2>&1; then
        cat $out/one.txt >>$out/$side.txt
      else
        echo "$p ($side) is left out of round $i:" >&2
        tail -5 $out/one.txt >&2
      fi
    done
  done
done
[ $((SECONDS - began)) -lt $limit ] || echo "stopped after ${MINUTES:-30} minutes, in round $i of $count (MINUTES=)" >&2
[ -s $out/base.txt ] && [ -s $out/new.txt ] || { echo "there is nothing to compare" >&2; exit 1; }
$GO run $benchstat base=$out/base.txt new=$out/new.txt
