#!/usr/bin/env bash
# Runs every fuzz target of the tree for FUZZTIME (30s), or the one that FUZZ names. A crasher is minimised by go test and kept
# in the target's testdata/fuzz; it fails `make test` from then on. --list names the targets.
set -eu -o pipefail
cd "$(dirname "$0")/.."
targets() { # package target
  git ls-files -co --exclude-standard '*_test.go' | xargs grep -HoE '^func Fuzz[A-Za-z0-9_]+' | sed -E 's#^(.*)/[^/]+:func (.*)#./\1 \2#' | sort
}
if [ "${1:-}" = --list ]; then
  targets
  exit
fi
# ended says that a failed run found nothing: now and then go test reports the end of -fuzztime itself as the failure, a lone "context
# deadline exceeded" below the target's FAIL line. A finding names the input it wrote, a broken target its error.
ended() { # log
  [ "$(grep -A1 -E '^--- FAIL: Fuzz' "$1" | sed 1d)" = "    context deadline exceeded" ] && ! grep -qE 'Failing input|panic:|[^[:space:]].*_test\.go:[0-9]+' "$1"
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=0
while read -r package target; do
  if [ -n "${FUZZ:-}" ] && [ "$target" != "$FUZZ" ]; then continue; fi
  echo "== $target ($package) for ${FUZZTIME:-30s}"
  # The corpora's new finds go to the build cache; 20 s of minimising are enough.
  if go test "$package" -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-30s}" -fuzzminimizetime 20s -parallel "${FUZZPARALLEL:-2}" </dev/null 2>&1 | tee "$log"; then
    passed=$((passed + 1))
  elif ended "$log"; then
    echo "passed: $target ran its time and found nothing; go test took the end of the time for a failure"
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED: $target. To see it again: go test $package -run $target" >&2
  fi
done < <(targets)
echo "fuzz targets: $passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
