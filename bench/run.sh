#!/usr/bin/env bash
# Load tests (make bench). BENCH=quick: a smoke test beside an echo, well under two minutes, which asserts right answers and
# no timing. SCENARIO, PEERS: lists; ROUNDS, NAMES: numbers; FLOOD, DURATION: times, for registration and gc. The whole goes to BENCHMARKS.md, BENCHMARKS.json and
# docs/bench; a part only with MERGE=1. Tables that a run does not make stay as they are, each with its date; a scenario may stand there with several
# numbers of names. gc takes long and runs only if it is named.
set -eu
cd "$(dirname "$0")/.."
args=()
[ "${BENCH:-}" = quick ] && args+=(--quick)
[ -n "${SCENARIO:-}" ] && args+=(--scenario "$SCENARIO")
[ -n "${PEERS:-}" ] && args+=(--peers "$PEERS")
[ -n "${ROUNDS:-}" ] && args+=(--rounds "$ROUNDS")
[ -n "${NAMES:-}" ] && args+=(--names "$NAMES")
[ -n "${FLOOD:-}" ] && args+=(--flood "$FLOOD")
[ -n "${DURATION:-}" ] && args+=(--duration "$DURATION")
if [ -n "${MERGE:-}" ] || [ -z "${BENCH:-}${SCENARIO:-}${PEERS:-}" ]; then
  args+=(--write BENCHMARKS.md)
fi
said="make bench"
for v in MERGE BENCH SCENARIO PEERS ROUNDS NAMES FLOOD DURATION; do
  [ -n "${!v:-}" ] && said="$said $v='${!v}'"
done
mkdir -p .cache/bench
exec bin/dmp-bench suite --bin bin --dir .cache/bench --command "$said" "${args[@]}"
