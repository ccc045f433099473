#!/bin/sh
# Looks at the pages of a node in a headless browser: light and dark, narrow and wide. Not part of CI: it needs Debian's chromium
# (apt-get install chromium). Screenshots go to a temporary folder, whose path is the last line; or to the folder that is given.
set -eu
cd "$(dirname "$0")/../.."
command -v chromium >/dev/null || { echo "chromium is not installed: apt-get install chromium" >&2; exit 2; }
CGO_ENABLED=0 go build -o bin/ ./cmd/dmpd ./cmd/dmp-dataplane ./cmd/dmp-controlplane
exec python3 tools/browser/look.py "$@"
