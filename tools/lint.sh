#!/usr/bin/env bash
# gofmt, vet (with and without the tags of the tree), staticcheck, and govulncheck where its database can be reached.
set -eu
cd "$(dirname "$0")/.."
bad=$(gofmt -l $(git ls-files '*.go'))
if [ -n "$bad" ]; then
  echo "gofmt would change:" >&2
  echo "$bad" >&2
  exit 1
fi
go vet ./...
go vet -tags invariants,killpoints ./...
go vet -tags testclock ./...
export GOBIN=$PWD/.cache/bin
[ -x "$GOBIN/staticcheck" ] || go install honnef.co/go/tools/cmd/staticcheck@v0.7.0
"$GOBIN/staticcheck" ./...
[ -x "$GOBIN/govulncheck" ] || go install golang.org/x/vuln/cmd/govulncheck@latest
out=$("$GOBIN/govulncheck" ./... 2>&1) && code=0 || code=$?
case "$code:$out" in
  0:*) echo "govulncheck: nothing found" ;;
  *"fetching vulnerabilities"*|*"dial tcp"*|*"no such host"*|*"Get \"https://vuln"*) echo "govulncheck: SKIPPED, its database cannot be reached from here" ;;
  *) echo "$out" >&2; exit 1 ;;
esac
