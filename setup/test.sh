#!/usr/bin/env bash
# Runs the tests and closes with one line, `N passed, N failed`, summed over all of cargo's test binaries.
set -uo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Tests run side by side on tiny models: more threads inside libtorch would only wait for each other.
OMP_NUM_THREADS=1 cargo test --release --no-fail-fast 2>&1 </dev/null | tee "$log"
status=${PIPESTATUS[0]}
awk '/^test result:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) passed += $(i - 1); if ($i ~ /^failed/) failed += $(i - 1) } }
    END { printf "%d passed, %d failed\n", passed, failed }' "$log"
exit "$status"
